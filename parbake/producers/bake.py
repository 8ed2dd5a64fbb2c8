"""Runs a producer into a store: plan, bake the missing slabs, publish."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import replace
from pathlib import Path
from typing import Literal

from parbake.errors import (
    NoSpaceError,
    ProducerError,
    RecipeError,
    StaleStoreError,
    described,
)
from parbake.producers.jobs import (
    BakeOptions,
    Job,
    Request,
    decide,
    fresh_store,
    old_store,
    recorded_plan,
    repair_job,
    source_accepted,
)
from parbake.producers.plan import SlabPlan
from parbake.producers.publishing import publish_store
from parbake.producers.recipe import recipe_of
from parbake.producers.reporting import Report, Reporter
from parbake.producers.slabs import SlabJob, bake_slab, valid_record
from parbake.store import publish
from parbake.store.durable import sweep, write_durably
from parbake.store.keys import Producer, canonical, producer_keys
from parbake.store.publish import Staging
from parbake.store.store import Store, open_store
from parbake.store.writer import Pipeline, disk_is_full

SLOW_BATCH_S = 30.0  # a batch is what a kill loses
_TASKS_AHEAD = 32


def bake(
    producer: Producer,
    path: str | os.PathLike[str],
    *,
    codec: str | None = None,
    batch_size: int | None = None,
    executor: Executor | None = None,
    rebuild: bool = False,
    progress: Report | Literal[False] | None = None,
    accept_source: bool = False,
    rehash: bool = False,
    command: str | None = None,
) -> Store:
    """Bake ``producer`` into the store at ``path``, or open it there when it is fresh.

    What was baked already is kept: an interrupted bake is resumed; a store with fewer samples grows; with
    ``rebuild`` a stale store is baked again (only the fields whose own keys changed, where the shared
    keys did not), and a fresh one wholly. The old store stays readable until the new one is whole.

    ``codec``: ``"lz4"`` (default), ``"zstd"``, ``"raw"``. ``batch_size``: samples per call of the producer
    (default: the producer's ``batch_size``, else 64). ``executor``: computes slabs side by side, see
    ``process_pool``. ``progress``: None for a bar in a terminal or notebook, False, or a callable taking
    Progress. ``accept_source``: keep a store although the source of the producer changed; recorded.
    ``rehash``: do not trust remembered hashes of files. ``command``: how to repeat this bake.

    Returns the open store, showing ``len(producer)`` samples. Raises StaleStoreError with every changed
    key, NotAStoreError, ProducerError, NoSpaceError, DamagedStoreError, KeysError, SchemaError.
    """
    target = publish.resolved(path)
    options = BakeOptions(codec, batch_size, executor, command)
    wanted, schema = producer_keys(producer, rehash=rehash)
    request = Request(producer, target, wanted, schema, len(producer), options, recipe_of(producer))
    if request.samples < 1:
        raise RecipeError(f"{producer.name}: a producer of {request.samples} samples; nothing to bake")
    publish.check_target(target)
    if not rebuild and (store := fresh_store(request)) is not None:
        return store
    with baking(path, target, progress) as reporter:
        old = old_store(target, rebuild)
        if old is not None and accept_source:
            request, old = source_accepted(request, old)
        job = decide(request, old, rebuild)
        if job is not None:
            run_job(job, reporter)
        store = open_store(target)
        store.compared(request.wanted, request.samples)  # so that it is known to be fresh
        return store.first(request.samples)


def repair(
    producer: Producer,
    path: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    progress: Report | Literal[False] | None = None,
    accept_drift: bool = False,
    command: str | None = None,
) -> Store:
    """Bake the damaged slabs of a store again, and only those; returns the open store.

    ``accept_drift``: take new bytes that differ from the recorded ones, as they may on another device or
    with other versions. Raises StaleStoreError, NotReproducibleError, and what ``bake`` raises.
    """
    target = publish.resolved(path)
    publish.check_target(target)
    wanted, schema = producer_keys(producer)
    with baking(path, target, progress) as reporter:
        with open_store(target) as old:
            samples = old.stored_samples
            options = BakeOptions(None, None, executor, command)
            request = Request(producer, target, wanted, schema, samples, options, recipe_of(producer))
            freshness = old.compared(wanted, samples)
            if not freshness:
                raise StaleStoreError(f"{path}: another recipe baked it: {freshness}", freshness.changes)
            if len(producer) < samples:
                raise RecipeError(f"{path}: holds {samples} samples, the recipe gives only {len(producer)}")
            damaged = old.verify().damaged
            if damaged:
                request = replace(request, wanted=old.invalidation_keys)
                run_job(repair_job(request, old, damaged, accept_drift), reporter)
        return open_store(target)


@contextlib.contextmanager
def baking(
    path: str | os.PathLike[str], target: Path, progress: Report | Literal[False] | None
) -> Iterator[Reporter]:
    """The lock of a target, an interrupted swap of it completed, with the progress shown meanwhile."""
    with _shown(progress) as report, _full_disk_explained(target):
        reporter = Reporter(str(path), report)
        waiting = f"{target}: "  # the reporter says of what
        with publish.baking_lock(target, lambda text: reporter.notice(text.removeprefix(waiting))):
            publish.finish_swap(target)
            yield reporter


@contextlib.contextmanager
def _shown(progress: Report | Literal[False] | None) -> Iterator[Report | None]:
    if progress is not None:
        yield progress or None
        return
    from parbake.progress import default_progress

    with default_progress() as display:  # leaves the terminal as it was, whatever happens
        yield display


@contextlib.contextmanager
def _full_disk_explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            raise NoSpaceError(
                f"{target}: the disk is full; what was baked is kept: free some space and run the same bake "
                "again"
            ) from error
        raise


# ---- baking


def run_job(job: Job, reporter: Reporter) -> None:
    """Bake the slabs without a record, then publish."""
    staging = job.shared.staging
    sweep(staging.folder)
    todo = [plan for plan in job.slabs if valid_record(job.shared, plan) is None]
    for plan in todo:
        staging.record(plan.slab).unlink(missing_ok=True)
    for notice in job.notices:
        reporter.notice(notice)
    reporter.begin(sum(plan.work for plan in todo))
    try:
        try:
            if job.request.options.executor is None:
                _bake_here(job, todo, reporter)
            else:
                _bake_elsewhere(job, todo, job.request.options.executor, reporter)
        finally:
            with contextlib.suppress(OSError):  # a full disk, say, of which is told already
                _note_seconds(staging, reporter.seconds)
        publish_store(job)
    except BaseException:
        sweep(staging.folder)  # a full disk gets its room back
        raise
    reporter.finish()


def _bake_here(job: Job, todo: Sequence[SlabPlan], reporter: Reporter) -> None:
    began, told = time.monotonic(), False

    def produced(samples: int) -> None:
        nonlocal began, told
        reporter.produced(samples, pipeline.nbytes_written)
        seconds, began = time.monotonic() - began, time.monotonic()
        if seconds > SLOW_BATCH_S and samples > 1 and not told:
            told = True
            reporter.notice(
                f"{samples} samples took {seconds:.0f} s, and a kill loses as many: a smaller batch "
                "(--batch-size, or batch_size of the producer) loses less"
            )

    with Pipeline(job.layout.fields) as pipeline:
        for plan in todo:
            bake_slab(job.shared, plan, pipeline, produced)
        pipeline.drain()
        reporter.written(pipeline.nbytes_written)


def _bake_elsewhere(job: Job, todo: Sequence[SlabPlan], executor: Executor, reporter: Reporter) -> None:
    running: dict[Future[int], SlabPlan] = {}
    waiting = iter(todo)
    nbytes_written = 0
    if isinstance(executor, ProcessPoolExecutor):
        _check_picklable(job)
    try:
        while True:
            while len(running) < _TASKS_AHEAD and (plan := next(waiting, None)) is not None:
                running[executor.submit(bake_slab_alone, job.shared, plan)] = plan
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                plan = running.pop(future)
                nbytes_written += future.result()
                reporter.produced(plan.work, nbytes_written)
    except BrokenExecutor as error:
        executor.shutdown()  # of no more use; its last workers are gone then
        raise ProducerError(
            f"{job.request.producer.name}: a worker process died (out of memory, a crash, a producer that it "
            "cannot import, or a script without if __name__ == '__main__':); what was baked is kept: run the "
            "same bake again, with fewer workers or none"
        ) from error
    finally:
        for future in running:
            future.cancel()
        wait(running)  # nothing writes once the lock is free


def _check_picklable(job: Job) -> None:
    try:
        pickle.dumps(job.shared)
    except Exception as error:
        text = described(error)
        raise RecipeError(
            f"{job.request.producer.name}: cannot be sent to worker processes ({text}); define it at the top "
            "of a module, without lambdas and open files, or bake without workers"
        ) from error


def bake_slab_alone(job: SlabJob, plan: SlabPlan) -> int:
    """Bake one slab with threads of its own: an executor's task; repeating it does no harm.

    Returns the encoded bytes that it wrote.
    """
    with Pipeline({name: field.layout for name, field in job.fields.items()}) as pipeline:
        bake_slab(job, plan, pipeline)
        pipeline.drain()
        return pipeline.nbytes_written


def _note_seconds(staging: Staging, seconds: float) -> None:
    plan = recorded_plan(staging)
    if plan:
        plan["seconds"] += seconds
        write_durably(staging.plan, canonical(plan).encode())
