"""``parbake build mesh --meshes DIR --all-pairs``: every pair of a folder's series at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from parbake import cli_output as output
from parbake import cli_recipe, human, settings
from parbake.cli_bake import BuildOptions, built
from parbake.errors import ParbakeError

PRODUCER = "mesh"
OPTIONS = (
    click.Option(
        ["--meshes"],
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        help="A folder of series of several resolutions, with --all-pairs; instead of --source and --target.",
    ),
    click.Option(
        ["--all-pairs"], is_flag=True, help="Bake each series of --meshes with every finer one, into --cache."
    ),
)


def run_pairs(
    ctx: click.Context,
    given: Mapping[str, Any],
    options: BuildOptions,
    meshes: Path | None,
    all_pairs: bool,
) -> None:
    """Bake or predict every pair; a line each."""
    from parbake.producers.meshes import pair as mesh

    if meshes is None or not all_pairs:
        raise click.UsageError("--meshes DIR and --all-pairs go together", ctx)
    if clash := [f"--{name}" for name in ("source", "target") if name in given]:
        raise click.UsageError(f"{clash[0]} is one pair; leave it out, or --all-pairs", ctx)
    if options.output is not None:
        raise click.UsageError("several stores go into a folder: --cache DIR instead of -o", ctx)
    options = replace(options, cache=options.cache or settings.cache_home())
    with cli_recipe.results_kept_apart():
        pairs = list(mesh.all_pairs(meshes, tell=lambda text: click.echo(text, err=True), **given))
    results: list[dict[str, Any]] = []
    failed = 0
    for number, pair in enumerate(pairs, 1):
        names = f"{Path(str(pair.source)).name} -> {Path(str(pair.target)).name}"
        click.echo(f"{number} of {len(pairs)}: {names}", err=True)
        try:
            result = built(ctx, pair, options)
        except ParbakeError as error:
            click.echo(f"{names}: {error}", err=True)
            failed += 1
            continue
        results.append({"source": str(pair.source), "target": str(pair.target), **result})
    stored = sum(result["nbytes_stored"] for result in results)
    if options.as_json:
        output.print_json(folder=str(options.cache), pairs=results, failed=failed, nbytes_stored=stored)
    else:
        pairs_done = human.count(len(results), "pair")
        wrong = f", {failed} failed" if failed else ""
        click.echo(f"{options.cache}: {pairs_done}{wrong}, {human.size(stored)}")
    ctx.exit(0 if not failed and all(result.get("fits", True) for result in results) else 1)
