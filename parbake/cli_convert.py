"""``parbake convert`` and ``parbake diff``."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import click

from parbake import human
from parbake.cli_build import CODECS
from parbake.cli_options import as_json_option, sample_dim_option

_path = click.Path(path_type=Path)


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name.strip() for name in value.split(","))


@click.command()
@click.argument("source", metavar="SRC", type=_path)
@click.argument("target", metavar="DST", type=_path)
@click.option("--codec", type=click.Choice(CODECS), help="Encode again  [default: as it is, else lz4]")
@click.option(
    "--fields",
    metavar="NAMES",
    callback=_names,
    help="Of a file that others wrote: which fields (x,y,f0); for tuples a name an entry, '-' to leave out.",
)
@sample_dim_option
@click.option(
    "--keys",
    "recipe",
    metavar="RECIPE",
    help="A recipe file, or 'PRODUCER --option value ...' in quotes: you vouch that it made these values.",
)
@as_json_option
@click.pass_context
def convert(
    ctx: click.Context,
    source: Path,
    target: Path,
    codec: str | None,
    fields: tuple[str, ...] | None,
    sample_dim: str | None,
    recipe: str | None,
    as_json: bool,
) -> None:
    """Make a store of SRC at DST, in the container that DST names.

    DST: a zip where it ends in .zip, an HDF5 file in .h5, else a Zarr directory. SRC: a store, whose encoded
    chunks move as they are; a Zarr, HDF5 or NetCDF4 file that others wrote; a legacy .pt or .pkl cache. What
    was written is compared with SRC before it gets its name.
    """
    from parbake import cli_output as output
    from parbake.cli_recipe import parse_producer, results_kept_apart
    from parbake.producers.convert import convert as run
    from parbake.progress import default_progress

    with results_kept_apart():
        producer = None
        if recipe is not None:
            try:
                words = shlex.split(recipe)
            except ValueError as error:  # a quote that does not end
                raise click.UsageError(f"--keys: {error}", ctx) from error
            producer = parse_producer(words, "parbake build")
        with default_progress() as progress:
            store = run(
                source,
                target,
                codec=codec,
                fields=fields,
                sample_dim=sample_dim,
                recipe=producer,
                progress=progress,
                command=ctx.meta["parbake.command"],
            )
    with store:
        output.show_converted(source, target, store, as_json)


@click.command()
@click.argument("first", metavar="A", type=_path)
@click.argument("second", metavar="B", type=_path)
@sample_dim_option
@as_json_option
@click.pass_context
def diff(ctx: click.Context, first: Path, second: Path, sample_dim: str | None, as_json: bool) -> None:
    """Say whether two stores hold the same keys, fields and samples.

    Samples are compared bit for bit. Exits with 1 where they differ. Codec, chunks, container and provenance
    are no difference, nor are the keys of a file that others wrote, which nobody knows.
    """
    from parbake import cli_output as output
    from parbake.store.differences import compare_stores
    from parbake.store.store import open_store

    with open_store(first, sample_dim=sample_dim) as a, open_store(second, sample_dim=sample_dim) as b:
        found = compare_stores(a, b)
    for number in found.keys_unknown:
        click.echo(human.printable(f"parbake: {(first, second)[number]}: its keys are unknown"), err=True)
    if as_json:
        values: dict[str, Any] = dataclasses.asdict(found)
        output.print_json(first=str(first), second=str(second), equal=bool(found), **values)
    else:
        for line in map(str, found.all) if not found else ["equal"]:
            click.echo(human.printable(line))
    ctx.exit(0 if found else 1)
