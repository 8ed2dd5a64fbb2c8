"""``parbake clear``: which stores of a folder go, asked first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from parbake import human
from parbake.cli_options import Parsed, as_json_option
from parbake.errors import RecipeError

if TYPE_CHECKING:
    from parbake.store.cache import StoreSummary


@dataclass(frozen=True)
class Choice:
    """What the user wants gone."""

    everything: bool
    stale: str | None
    older_than: float | None  # seconds
    max_size: int | None  # bytes
    partial: bool


@click.command("clear")
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), required=False)
@click.option("--all", "everything", is_flag=True, help="Every store.")
@click.option(
    "--stale",
    metavar="RECIPE",
    help="Stores of the recipe's producer and input files that hold something else than it asks for. RECIPE: "
    "a recipe file, or 'PRODUCER --option value ...' in quotes.",
)
@click.option(
    "--older-than",
    type=Parsed("duration", human.parsed_duration, "30d or 12h"),
    metavar="TIME",
    help="Stores that were not used for so long, such as 30d.",
)
@click.option(
    "--max-size",
    type=Parsed("size", human.parsed_size, "10GB"),
    metavar="SIZE",
    help="The least recently used ones, until the rest is no larger, such as 10GB.",
)
@click.option("--partial", is_flag=True, help="Unfinished bakes, which could be resumed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@as_json_option
@click.pass_context
def clear(
    ctx: click.Context,
    folder: Path | None,
    everything: bool,
    stale: str | None,
    older_than: float | None,
    max_size: int | None,
    partial: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove stores from DIR, after showing them and asking.

    DIR: the cache folder unless named. What is being baked or read stays, and so does all that is not
    parbake's.
    """
    from parbake import cli_output as output
    from parbake.store.cache import nbytes_of
    from parbake.store.clear import InUseError, remove_remains, remove_store, remove_unfinished

    choice = Choice(everything, stale, older_than, max_size, partial)
    if choice == Choice(False, None, None, None, False):
        raise click.UsageError("say what: --all, --stale, --older-than, --max-size or --partial", ctx)
    folder, stores = stores_in(folder)
    whole = chosen_stores(choice, stores)
    bakes = [s for s in stores if s.slabs is not None and s not in whole] if partial else []
    if not as_json:
        output.show_clearing(folder, whole, bakes)
    if (whole or bakes) and not yes:
        click.confirm("Remove?", abort=True, err=True)
    removed: list[StoreSummary] = []
    kept: list[str] = []
    for store in [*whole, *bakes]:
        try:
            (remove_store if store in whole else remove_unfinished)(store.path)
            removed.append(store)
        except InUseError as error:
            kept.append(str(error))
        except OSError as error:
            kept.append(f"{store.path}: {error.strerror or error}; left alone")
    if folder.is_dir():
        remove_remains(folder)
    freed = sum(store.nbytes_stored - nbytes_of(store.path) for store in removed)
    output.show_cleared(folder, [store.path for store in removed], kept, freed, as_json)
    ctx.exit(1 if kept else 0)


def stores_in(folder: Path | None) -> tuple[Path, list[StoreSummary]]:
    """A folder of stores, by default that of caches, and what is in it."""
    from parbake import settings
    from parbake.store.cache import list_stores
    from parbake.store.containers import is_ours

    home = settings.cache_home()
    if folder is None and not home.exists():
        return home, []
    if folder is not None and folder.is_dir() and is_ours(folder):
        raise RecipeError(f"{folder}: a store, not a folder of stores; parbake inspect {folder}")
    return folder or home, list_stores(folder or home)


def chosen_stores(choice: Choice, stores: Sequence[StoreSummary]) -> list[StoreSummary]:
    """The stores that go as a whole, in the order of the listing."""
    from parbake.store.clear import least_used_beyond, unused_since

    chosen: list[StoreSummary] = list(stores) if choice.everything else []
    if choice.stale is not None:
        chosen += _stale(choice.stale, stores)
    if choice.older_than is not None:
        chosen += unused_since(stores, datetime.now(UTC) - timedelta(seconds=choice.older_than))
    if choice.max_size is not None:
        rest = [store for store in stores if store not in chosen]
        chosen += least_used_beyond(rest, choice.max_size)
    return [store for store in stores if store in chosen]


def _stale(recipe: str, stores: Sequence[StoreSummary]) -> list[StoreSummary]:
    from parbake.cli_recipe import parse_producer, results_kept_apart
    from parbake.errors import ParbakeError
    from parbake.producers.recipe import recipe_of
    from parbake.store.cache import recorded_files
    from parbake.store.keys import producer_keys
    from parbake.store.store import open_store

    with results_kept_apart():
        producer = parse_producer(shlex.split(recipe), "parbake clear --stale")
        wanted, _ = producer_keys(producer)
        files = recorded_files(recipe_of(producer))
    found = []
    for summary in stores:
        if summary.producer != producer.name or summary.state not in ("complete", "edited"):
            continue
        try:
            with open_store(summary.path) as store:
                same = recorded_files(store.provenance.get("recipe")) == files
                if same and not store.compared(wanted, store.stored_samples):
                    found.append(summary)
        except ParbakeError:  # went away, or broke, meanwhile
            continue
    return found
