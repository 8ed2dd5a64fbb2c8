"""``parbake build``: a command for each producer, its options made from the producer's fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from parbake import cli_recipe
from parbake.cli_bake import BuildOptions, built
from parbake.errors import ParbakeError

CODECS = ("raw", "lz4", "zstd")  # as in store.layout, without importing NumPy for --help
STORE_SETTINGS = {"path": "output", "codec": "codec", "batch_size": "batch_size", "workers": "workers"}


COMMON_OPTIONS = (
    click.Option(["-o", "--output"], type=click.Path(path_type=Path), help="The store to bake."),
    click.Option(
        ["--cache"],
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Bake into this folder, under a name made of the producer and its keys.",
    ),
    click.Option(
        ["--codec"], type=click.Choice(CODECS), help="Compression  [default: the store's, else lz4]"
    ),
    click.Option(
        ["--batch-size"],
        type=click.IntRange(min=1),
        metavar="N",
        help="Samples computed at once  [default: the store's, else the producer's, else 64]",
    ),
    click.Option(
        ["--workers"], type=click.IntRange(min=1), metavar="N", help="Compute in this many processes."
    ),
    click.Option(
        ["--rebuild"],
        is_flag=True,
        help="Over a stale store bake what is stale, over a fresh one everything.",
    ),
    click.Option(["--dry-run"], is_flag=True, help="Predict size and time from a few batches; bake nothing."),
    click.Option(
        ["--accept-source"], is_flag=True, help="Keep what is baked though the producer's code changed."
    ),
    click.Option(["--rehash"], is_flag=True, help="Hash all input files again."),
    click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
)


class BuildGroup(click.Group):
    """Finds the command of a producer by its name, its recipe file or module:Class."""

    def __init__(self) -> None:
        super().__init__(
            "build",
            help="Bake a producer into a store, or what is missing of it.\n\nPRODUCER: a name below, a "
            "recipe file (recipe.yaml), or module:Class; the current folder is importable. 'parbake build "
            "PRODUCER --help' shows its options.",
            options_metavar="",
            subcommand_metavar="PRODUCER [OPTIONS]...",
            no_args_is_help=False,
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # a shell that completes the line
            return super().parse_args(ctx, args)
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            raise click.UsageError(
                f"name the PRODUCER before its options: parbake build PRODUCER {args[0]}", ctx
            )
        if not args:
            known = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"missing PRODUCER: {known}, a recipe file or module:Class", ctx)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        from parbake.producers.recipe import BUILTIN_PRODUCERS

        return sorted(BUILTIN_PRODUCERS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            return producer_command(cli_recipe.find_source(cmd_name))
        except ParbakeError:
            if ctx.resilient_parsing:
                return None
            raise

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = super().shell_complete(ctx, incomplete)
        return found or [CompletionItem(incomplete, type="file")]  # a recipe

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [
            (name, command.get_short_help_str(64))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None
        ]
        with formatter.section("Producers"):
            formatter.write_dl(rows)


class ProducerCommand(click.Command):
    """Help in two parts: the producer's options, then those of every bake."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        common = [p for p in self.get_params(ctx) if p in COMMON_OPTIONS or p.name == "help"]
        own = [p for p in self.get_params(ctx) if p not in common]
        for title, params in ((f"Options of {self.name}", own), ("Options of every bake", common)):
            rows = [row for p in params if (row := p.get_help_record(ctx)) is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def producer_command(source: cli_recipe.Source) -> click.Command:
    """``build``'s command for one source. Raises RecipeError for a field that clashes with an option."""

    from parbake import cli_mesh

    several = cli_mesh.OPTIONS if source.spec == cli_mesh.PRODUCER else ()

    @click.pass_context
    def callback(ctx: click.Context, /, **values: Any) -> None:
        common = {p.name: values.pop(p.name) for p in COMMON_OPTIONS if p.name}
        which = {p.name: values.pop(p.name) for p in several if p.name}
        given = cli_recipe.given_params(source, values)
        options = BuildOptions(**_with_recipe(common, source.store))
        if any(which.values()):
            cli_mesh.run_pairs(ctx, given, options, **which)
        else:
            run(ctx, source, given, options)

    own = [*several, *cli_recipe.producer_options(source, (*COMMON_OPTIONS, *several))]
    help_text = cli_recipe.summary(source.cls) or f"Bake {source.spec}."
    return ProducerCommand(source.spec, params=[*own, *COMMON_OPTIONS], callback=callback, help=help_text)


def _with_recipe(common: dict[str, Any], store: Mapping[str, Any]) -> dict[str, Any]:
    """Options given on the command line, over a recipe's ``store:`` settings."""
    for setting, option in STORE_SETTINGS.items():
        if common[option] is None and store.get(setting) is not None:
            if option == "output":
                common[option] = None if common["cache"] else Path(store[setting])
            else:
                common[option] = store[setting]
    return common


def run(
    ctx: click.Context, source: cli_recipe.Source, given: Mapping[str, Any], options: BuildOptions
) -> None:
    """Bake, or predict with ``--dry-run``, and print the result."""
    if (options.output is None) == (options.cache is None):
        both = "not both" if options.output else f"for example: parbake build {source.spec} -o train.zarr"
        raise click.UsageError(f"say where: -o PATH or --cache DIR, {both}", ctx)
    from parbake import cli_output as output

    result = built(ctx, source.make(given), options)
    if options.as_json:
        output.print_json(**result)
    ctx.exit(0 if result.get("fits", True) else 1)
