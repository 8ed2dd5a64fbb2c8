"""The command line: thin verbs over the library, and one gate that turns errors into one line."""

from __future__ import annotations

import contextlib
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parbake import __version__, human
from parbake.cli_bench import bench
from parbake.cli_build import BuildGroup
from parbake.cli_clear import clear, stores_in
from parbake.cli_convert import convert, diff
from parbake.cli_options import as_json_option, sample_dim_option
from parbake.errors import ParbakeError, RecipeError, StoreWarning, one_line

if TYPE_CHECKING:
    from parbake.store.store import Store
    from parbake.store.verify import VerifyReport

EXIT_NO = 1

RECIPE_WORDS = {"ignore_unknown_options": True}  # a recipe's options are read by its producer's parser


class Failed(click.ClickException):
    """What the user sees of an error: one line. The answer is no, or the work could not be done."""

    exit_code = EXIT_NO

    def __init__(self, message: str) -> None:
        super().__init__(human.printable(one_line(message)))

    def show(self, file: Any = None) -> None:
        click.echo(f"parbake: error: {self.message}", file=file, err=file is None)


class Misused(Failed):
    """A command line or recipe that cannot be used as given."""

    exit_code = 2


class Interrupted(Failed):
    """Ctrl-C."""

    exit_code = 130  # as a shell reports SIGINT


class Gate(click.Group):
    """The root command; every error passes through here."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        command = shlex.join(["parbake", *args])
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise usage_line(error) from error
        context.meta["parbake.command"] = command  # for the provenance of what this run bakes
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with told_warnings():
                return super().invoke(ctx)
        except click.UsageError as error:
            raise usage_line(error) from error
        except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise  # click ends these quietly
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params["debug"]:
                traceback.print_exc(file=sys.stderr)
            raise failure(error) from error


@contextlib.contextmanager
def told_warnings() -> Iterator[None]:
    """What is worth knowing of stores as a line each, once; other warnings as Python has them."""

    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **named: Any) -> None:
        if issubclass(category, StoreWarning):
            if str(message) in told:
                return
            told.add(str(message))
            click.echo(f"parbake: {human.printable(one_line(str(message)))}", err=True)
        else:
            python_shows(message, category, *place, **named)

    with warnings.catch_warnings():
        warnings.simplefilter("always", StoreWarning)
        python_shows = warnings.showwarning
        warnings.showwarning = show
        yield


def usage_line(error: click.UsageError) -> click.ClickException:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    hint = f"; see '{error.ctx.command_path} --help'" if error.ctx else ""
    return Misused(error.format_message().removesuffix(".") + hint)


def failure(error: BaseException) -> Failed:
    """What the user sees of ``error``; parbake's own say what to do already."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted; run the same command again: what was baked stays")
    if isinstance(error, RecipeError):
        return Misused(str(error))
    if isinstance(error, ParbakeError):
        return Failed(str(error))
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return Failed(f"{where}{error.strerror}")
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Failed(f"unexpected {what}; 'parbake --debug ...' shows where")


@click.group(cls=Gate, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="parbake")
def main(debug: bool) -> None:
    """Bake expensive training data once; know when it is stale; read it at the speed of memory.

    Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 the answer is no (stale,
    damaged, unfinished) or it failed, 2 usage.
    """


main.add_command(BuildGroup())

store_path = click.argument("path", type=click.Path(path_type=Path))
cache_folder = click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), required=False)


@main.command()
@store_path
@click.option("--plot", type=click.Path(path_type=Path), help="Draw a sample into this .png, .svg or .pdf.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a report with pictures, one .html file.")
@click.option("--sample", type=int, help="With --plot: which sample. Default: the middle one.")
@click.option("--field", help="With --plot: this field alone.")
@sample_dim_option
@as_json_option
@click.pass_context
def inspect(
    ctx: click.Context,
    path: Path,
    plot: Path | None,
    html: Path | None,
    sample: int | None,
    field: str | None,
    sample_dim: str | None,
    as_json: bool,
) -> None:
    """Show fields, sizes, statistics, keys and provenance of PATH.

    With --plot or --html these files are written instead, and named.
    """
    from parbake.cli_inspect import show_store
    from parbake.cli_output import show_unfinished
    from parbake.errors import UnfinishedStoreError
    from parbake.store.publish import unfinished_bakes
    from parbake.store.store import open_store

    if plot is None and (sample is not None or field is not None):
        raise click.UsageError("--sample and --field say what --plot draws; give it too", ctx)
    try:
        store = open_store(path, sample_dim=sample_dim)
    except UnfinishedStoreError:
        show_unfinished(path, unfinished_bakes(path), as_json)
        ctx.exit(EXIT_NO)
    with store:
        if plot is not None or html is not None:
            from parbake.cli_look import write_pictures

            ctx.exit(0 if write_pictures(store, plot, html, (sample, field), as_json) else EXIT_NO)
        show_store(path, store, unfinished_bakes(path), as_json)


@main.command(context_settings=RECIPE_WORDS)
@store_path
@click.argument("recipe", nargs=-1, type=click.UNPROCESSED)
@click.option("--rehash", is_flag=True, help="Hash all input files again.")
@as_json_option
@click.pass_context
def check(ctx: click.Context, path: Path, recipe: tuple[str, ...], rehash: bool, as_json: bool) -> None:
    """Say whether PATH is fresh, or which invalidation keys changed.

    RECIPE: a recipe file, or PRODUCER and its options as for 'build'. A store of a built-in producer
    knows its own.
    """
    from parbake import cli_output as output
    from parbake.cli_recipe import results_kept_apart, wanted_producer
    from parbake.store.keys import CONVERTED, Change, Freshness
    from parbake.store.store import open_store

    with open_store(path) as store, results_kept_apart():
        unknown = store.is_foreign or store.invalidation_keys.shared["producer"] == CONVERTED
        if unknown and not recipe:
            freshness = Freshness((Change(None, "keys", "unknown", "a recipe's"),))
        else:
            producer = wanted_producer(path, store, recipe, f"{ctx.command_path} {path}")
            freshness = store.freshness(producer, rehash=rehash)
    output.show_freshness(path, freshness, as_json)
    ctx.exit(0 if freshness else EXIT_NO)


@main.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--repair",
    is_flag=False,
    flag_value="",
    metavar="[RECIPE]",
    help="Bake the damaged slabs again, and only those. RECIPE: a recipe file, or 'PRODUCER --option "
    "value ...' in quotes; a store of a built-in producer knows its own.",
)
@click.option("--accept-drift", is_flag=True, help="Repair even where the new bytes differ; recorded.")
@sample_dim_option
@as_json_option
@click.pass_context
def verify(
    ctx: click.Context,
    path: Path | None,
    repair: str | None,
    accept_drift: bool,
    sample_dim: str | None,
    as_json: bool,
) -> None:
    """Check every checksum of the store at PATH."""
    from parbake import cli_output as output
    from parbake.cli_recipe import recorded_recipe
    from parbake.store.store import open_store

    if path is None and repair:  # 'verify --repair PATH': the path was taken for the recipe
        path, repair = Path(repair), ""
    if path is None:
        raise click.UsageError("Missing argument 'PATH'", ctx)
    try:
        words = shlex.split(repair or "")
    except ValueError as error:  # a quote that does not end
        raise click.UsageError(f"--repair: {error}", ctx) from error
    with open_store(path, sample_dim=sample_dim) as store:
        report = after = store.verify()
        if store.is_foreign:
            remedy = "get the file again: parbake did not bake it"
        else:
            recipe = "" if recorded_recipe(store) else " RECIPE"
            remedy = f"run '{ctx.command_path} {path} --repair{recipe}'"
        if repair is not None and not report and not store.is_foreign:
            if not as_json:
                output.show_damage(report.damaged)
            after = repaired(ctx, path, store, words, accept_drift)
    mended = [damage for damage in report.damaged if damage not in after.damaged]
    output.show_verified(path, after, mended, remedy, as_json)
    ctx.exit(0 if after else EXIT_NO)


def repaired(
    ctx: click.Context, path: Path, store: Store, recipe: Sequence[str], accept_drift: bool
) -> VerifyReport:
    """Repair ``store`` and give the report of verifying it again."""
    from parbake.cli_recipe import results_kept_apart, wanted_producer
    from parbake.producers import bake
    from parbake.progress import default_progress

    with results_kept_apart(), default_progress() as progress:
        producer = wanted_producer(path, store, recipe, f"{ctx.command_path} {path} --repair")
        command = ctx.meta["parbake.command"]
        whole = bake.repair(producer, path, accept_drift=accept_drift, progress=progress, command=command)
    with whole:
        return whole.verify()


@main.command()
@cache_folder
@as_json_option
def ls(folder: Path | None, as_json: bool) -> None:
    """List the stores in DIR (the cache folder unless named)."""
    from parbake import cli_output as output

    output.show_stores(*stores_in(folder), as_json)


main.add_command(clear)
main.add_command(bench)
main.add_command(convert)
main.add_command(diff)
