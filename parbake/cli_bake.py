"""One bake from the command line: where it goes, what is shown meanwhile, what is told of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from parbake import cli_recipe


@dataclass(frozen=True)
class BuildOptions:
    """The options that every producer has."""

    output: Path | None
    cache: Path | None
    codec: str | None
    batch_size: int | None
    workers: int | None
    rebuild: bool
    dry_run: bool
    accept_source: bool
    rehash: bool
    as_json: bool


def built(ctx: click.Context, producer: Any, options: BuildOptions) -> dict[str, Any]:
    """Bake or predict; tells the result, but as JSON gives it back only."""
    from parbake import cli_output as output
    from parbake.producers import bake

    with cli_recipe.results_kept_apart():
        if options.cache is not None:
            producer, path = _in_cache(producer, options.cache, options.rehash)
        else:
            assert options.output is not None
            path = options.output
    if options.dry_run:
        from parbake.producers.dry_run import dry_run

        with cli_recipe.results_kept_apart():
            predicted = dry_run(producer, path, codec=options.codec, batch_size=options.batch_size)
        return output.show_dry_run(path, predicted, options.as_json)

    from parbake.progress import default_progress

    with cli_recipe.results_kept_apart(), contextlib.ExitStack() as stack:
        watch = Watch(stack.enter_context(default_progress()))
        executor = None
        if options.workers is not None:
            from parbake.producers.executors import process_pool

            executor = stack.enter_context(process_pool(options.workers))
        store = bake.bake(
            producer,
            path,
            codec=options.codec,
            batch_size=options.batch_size,
            executor=executor,
            rebuild=options.rebuild,
            progress=watch,
            accept_source=options.accept_source,
            rehash=options.rehash,
            command=ctx.meta["parbake.command"],
        )
    with store:
        return output.show_bake(path, store, watch.last, options.as_json)


class Watch:
    """Hands each Progress on and remembers the last, which says what the bake did."""

    def __init__(self, display: Callable[[Any], None]) -> None:
        self._display = display
        self.last: Any = None

    def __call__(self, progress: Any) -> None:
        self.last = progress
        self._display(progress)


def _in_cache(producer: Any, folder: Path, rehash: bool) -> tuple[Any, Path]:
    from parbake.producers.cached import at_home
    from parbake.store.cache import store_name
    from parbake.store.keys import producer_keys

    producer = at_home(producer, folder)
    keys, _ = producer_keys(producer, rehash=rehash)
    return producer, folder / store_name(keys)
