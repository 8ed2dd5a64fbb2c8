"""Runs a producer into a store: plan, bake the missing slabs, publish."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import secrets
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from parbake.errors import (
    DamagedStoreError,
    NoSpaceError,
    NotReproducibleError,
    ProducerError,
    RecipeError,
    StaleStoreError,
    StoreNotFoundError,
    UnfinishedStoreError,
    described,
)
from parbake.producers.plan import Segment, SlabPlan, clipped, merge_segments, plan_slabs
from parbake.producers.recipe import recipe_of
from parbake.producers.reporting import Report, Reporter
from parbake.producers.slabs import SlabJob, SlabRecord, bake_slab, valid_record
from parbake.store import publish, statistics, zarr_dir
from parbake.store.document import Manifest, StoredField, StoreDocument, shard_identity
from parbake.store.durable import sweep, write_durably
from parbake.store.keys import JSON, Keys, Producer, canonical, compare, digest, producer_keys, without_source
from parbake.store.layout import Field, Layout, merged_coords, plan_layout
from parbake.store.publish import Staging
from parbake.store.store import Store, open_store
from parbake.store.verify import Damage
from parbake.store.writer import Pipeline, disk_is_full, write_scalar_shard

DEFAULT_BATCH_SIZE = 64
DEFAULT_CODEC = "lz4"
SLOW_BATCH_S = 30.0  # a batch is what a kill loses
_TASKS_AHEAD = 32


@dataclass(frozen=True)
class BakeOptions:
    """How to bake; none of it changes what is baked (see ``bake``)."""

    codec: str | None = None
    batch_size: int | None = None
    executor: Executor | None = None
    command: str | None = None


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
    request = _Request(producer, target, wanted, schema, len(producer), options)
    if request.samples < 1:
        raise RecipeError(f"{producer.name}: a producer of {request.samples} samples; nothing to bake")
    publish.check_target(target)
    if not rebuild and (store := _fresh(request)) is not None:
        return store
    with _baking(path, target, progress) as reporter:
        old = _old_store(target, rebuild)
        if old is not None and accept_source:
            request, old = _source_accepted(request, old)
        job = _decide(request, old, rebuild)
        if job is not None:
            _run(job, reporter)
        return open_store(target).first(request.samples)


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
    wanted, schema = producer_keys(producer)
    with _baking(path, target, progress) as reporter:
        with open_store(target) as old:
            samples = old.stored_samples
            request = _Request(
                producer, target, wanted, schema, samples, BakeOptions(None, None, executor, command)
            )
            freshness = old.compared(wanted, samples)
            if not freshness:
                raise StaleStoreError(f"{path}: another recipe baked it: {freshness}", freshness.changes)
            if len(producer) < samples:
                raise RecipeError(f"{path}: holds {samples} samples, the recipe gives only {len(producer)}")
            damaged = old.verify().damaged
            if damaged:
                request = replace(request, wanted=old.invalidation_keys)
                _run(_repair_job(request, old, damaged, accept_drift), reporter)
        return open_store(target)


@contextlib.contextmanager
def _baking(
    path: str | os.PathLike[str], target: Path, progress: Report | Literal[False] | None
) -> Iterator[Reporter]:
    """The lock of a target, an interrupted swap of it completed, with the progress shown meanwhile."""
    with _shown(progress) as report, _full_disk_explained(target):
        reporter = Reporter(str(path), report)
        with publish.baking_lock(target, reporter.notice):
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


# ---- deciding what to bake


@dataclass(frozen=True)
class _Request:
    """What was asked for: a store of the first ``samples`` samples of ``producer`` under ``wanted`` keys."""

    producer: Producer
    target: Path
    wanted: Keys
    schema: Mapping[str, Field]
    samples: int
    options: BakeOptions


@dataclass(frozen=True)
class _Job:
    """What to bake: the plan of all slabs, and what they share."""

    request: _Request
    shared: SlabJob
    layout: Layout
    codec: str
    seed_drawn: int | None
    slabs: Sequence[SlabPlan]
    old_segments: tuple[Segment, ...]
    reproduce: frozenset[tuple[str, int]] = frozenset()  # (field, shard): bytes should come out as recorded
    accept_drift: bool = False
    notices: tuple[str, ...] = ()  # what the producer has to tell of itself


def _fresh(request: _Request) -> Store | None:
    """The store when it needs no bake; looked for before locking, so that read-only folders work."""
    try:
        store = open_store(request.target)
    except (StoreNotFoundError, UnfinishedStoreError, DamagedStoreError):
        return None
    if store.compared(request.wanted, request.samples) and request.options.codec in (None, _codec_of(store)):
        return store.first(request.samples)
    store.close()
    return None


def _codec_of(store: Store) -> str:
    return str(store.provenance["codec"])


def _old_store(target: Path, rebuild: bool) -> Store | None:
    try:
        return open_store(target)
    except (StoreNotFoundError, UnfinishedStoreError):
        return None
    except DamagedStoreError:
        if rebuild:
            return None
        raise


def _source_accepted(request: _Request, old: Store) -> tuple[_Request, Store]:
    """Record that the producer's source may differ where nothing else does; its stored keys stay."""
    stored, wanted = old.invalidation_keys, request.wanted
    if compare(without_source(stored), without_source(wanted)).changes or not compare(stored, wanted).changes:
        return request, old
    accepted = digest(wanted.shared.get("source"))
    known = list(old.provenance.get("accepted_source", ()))
    provenance = {
        **old.provenance,
        "accepted_source": [*known, *([accepted] if accepted not in known else [])],
    }
    zarr_dir.reseal(old.path, old.sealed.root, provenance)
    old.close()
    return replace(request, wanted=stored), open_store(request.target)


def _decide(request: _Request, old: Store | None, rebuild: bool) -> _Job | None:
    """What to bake, or None when the store is fresh. Raises StaleStoreError, RecipeError."""
    if old is None:
        return _job(request, None, ())
    freshness = old.compared(request.wanted, request.samples)
    grows = all(change.path == "samples" and change.field is None for change in freshness.changes)
    if not rebuild and not grows:
        raise StaleStoreError(
            f"{request.target}: stale: {freshness}; bake it again with --rebuild (rebuild=True) or elsewhere",
            freshness.changes,
        )
    if not rebuild:
        if request.options.codec not in (None, _codec_of(old)):
            raise RecipeError(
                f"{request.target}: is baked with codec {_codec_of(old)!r}; --rebuild bakes it again with "
                "another"
            )
        if freshness:
            return None
        # the stored keys: of an accepted source that is the older one, which the old shards' headers carry
        return _job(replace(request, wanted=old.invalidation_keys), old, tuple(old.fields))
    if freshness or compare(Keys(old.invalidation_keys.shared, {}), Keys(request.wanted.shared, {})).changes:
        return _job(request, None, ())
    stored = old.invalidation_keys.fields
    kept = [
        name
        for name in request.schema
        if canonical(stored.get(name)) == canonical(request.wanted.fields[name])
    ]
    recoded = request.options.codec not in (None, _codec_of(old))
    return _job(request, None, ()) if not kept or recoded else _job(request, old, kept)


def _job(request: _Request, old: Store | None, kept: Iterable[str]) -> _Job:
    kept = frozenset(kept)
    layout, codec = _layout(request, old)
    segments = _segments_of(old)
    same = {n for n in kept if old is not None and old.layout.fields[n] == layout.fields[n]}
    linkable = old is not None and old.layout.slab_samples == layout.slab_samples and same == kept
    slabs = plan_slabs(
        layout,
        request.samples,
        old.stored_samples if old else 0,
        lambda name, _: name in kept,
        linkable=linkable,
    )
    purpose = {"base": old.contents.version if old else None, "kept": sorted(kept)}
    return _staged(request, layout, codec, slabs, old, segments, purpose)


def _repair_job(request: _Request, old: Store, damaged: Sequence[Damage], accept_drift: bool) -> _Job:
    layout, codec = old.layout, _codec_of(old)
    bad = {(d.field, s) for d in damaged if d.field for s in _slabs_of(layout, d)}
    slabs = plan_slabs(
        layout, old.stored_samples, old.stored_samples, lambda name, slab: (name, slab) not in bad
    )
    purpose = {"base": old.contents.version, "repair": sorted(map(list, bad))}
    segments = _segments_of(old)
    job = _staged(request, layout, codec, slabs, old, segments, purpose)
    return replace(
        job,
        shared=replace(job.shared, recorded=segments),
        reproduce=frozenset(_shards_to_reproduce(layout, bad)),
        accept_drift=accept_drift,
    )


def _slabs_of(layout: Layout, damage: Damage) -> range:
    return range(damage.start // layout.slab_samples, (damage.stop - 1) // layout.slab_samples + 1)


def _shards_to_reproduce(layout: Layout, bad: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    per_shard = {name: field.shard_samples // layout.slab_samples for name, field in layout.fields.items()}
    return {(name, slab // per_shard[name]) for name, slab in bad}


def _segments_of(old: Store | None) -> tuple[Segment, ...]:
    return tuple(Segment.from_json(s) for s in old.provenance["segments"]) if old else ()


def _layout(request: _Request, old: Store | None) -> tuple[Layout, str]:
    codec = request.options.codec or (_codec_of(old) if old else DEFAULT_CODEC)
    return plan_layout(request.schema, codec), codec


def _staged(
    request: _Request,
    layout: Layout,
    codec: str,
    slabs: Sequence[SlabPlan],
    old: Store | None,
    segments: tuple[Segment, ...],
    purpose: Mapping[str, JSON],
) -> _Job:
    """The job with its staging folder, whose plan is written unless an earlier run left the same."""
    notices = tuple(getattr(request.producer, "notices", ()))  # may find a fault: nothing is begun yet
    keys = request.wanted
    layouts = {name: [*vars(field).values()][:6] for name, field in layout.fields.items()}
    identity = {"shared": keys.shared, "fields": keys.fields, "layout": canonical(layouts), **purpose}
    staging = Staging(publish.staging_root(request.target) / digest(identity)[:16])
    recorded = _recorded_plan(staging)
    seed = _seed(request.producer, recorded, old)
    options = request.options
    batch_size = options.batch_size
    if batch_size is None:
        used = old.provenance["batch_size"] if old is not None else default_batch_size(request.producer)
        batch_size = int(recorded.get("batch_size") or used)
    if batch_size < 1:
        raise RecipeError(f"{request.producer.name}: batch_size {batch_size}; at least 1 is needed")
    plan = {
        "batch_size": batch_size,
        "seed_drawn": seed,
        "slabs": len(slabs),
        "samples": request.samples,
        "command": options.command,
        "producer": request.producer.name,
        "seconds": recorded.get("seconds", 0.0),
        "began": recorded.get("began") or _now(),
    }
    staging.folder.mkdir(parents=True, exist_ok=True)
    write_durably(staging.plan, canonical(plan).encode())
    fields = {
        name: StoredField.of(name, field, layout.fields[name]) for name, field in request.schema.items()
    }
    identities = {name: shard_identity(keys, field.layout, seed) for name, field in fields.items()}
    producer = _with_seed(request.producer, seed)
    shared = SlabJob(producer, staging, fields, identities, batch_size, (), old)
    return _Job(request, shared, layout, codec, seed, slabs, segments, notices=notices)


def _recorded_plan(staging: Staging) -> dict[str, Any]:
    try:
        return dict(json.loads(staging.plan.read_bytes()))
    except (OSError, ValueError):
        return {}


def default_batch_size(producer: Producer) -> int:
    """Samples per call of the producer where nobody says."""
    return int(getattr(producer, "batch_size", DEFAULT_BATCH_SIZE))


def _seed(producer: Producer, recorded: Mapping[str, Any], old: Store | None) -> int | None:
    """The seed to draw samples with where the recipe says "fresh": drawn once, then kept with the bake."""
    if getattr(producer, "seed", None) != "fresh":
        return None
    if recorded.get("seed_drawn") is not None:
        return int(recorded["seed_drawn"])
    if old is not None:
        return int(old.provenance["seed_drawn"])
    return secrets.randbits(63)


def with_drawn_seed(producer: Producer) -> Producer:
    """``producer`` with a number in the place of a seed that is "fresh"."""
    return _with_seed(producer, _seed(producer, {}, None))


def _with_seed(producer: Producer, seed: int | None) -> Producer:
    if seed is None:
        return producer
    if callable(seeded := getattr(producer, "with_seed", None)):
        return seeded(seed)  # type: ignore[no-any-return]
    if not dataclasses.is_dataclass(producer) or isinstance(producer, type):
        raise RecipeError(
            f"{producer.name}: seed 'fresh' needs a dataclass producer, to put the drawn seed in"
        )
    return dataclasses.replace(producer, seed=seed)


# ---- baking


def _run(job: _Job, reporter: Reporter) -> None:
    """Bake the slabs without a record, then publish."""
    staging = job.shared.staging
    sweep(staging.folder)
    todo = [plan for plan in job.slabs if valid_record(job.shared, plan) is None]
    for plan in todo:
        staging.record(plan.slab).unlink(missing_ok=True)
    for notice in job.notices:
        reporter.notice(notice)
    reporter.begin(sum(plan.missing for plan in todo))
    try:
        try:
            if job.request.options.executor is None:
                _bake_here(job, todo, reporter)
            else:
                _bake_elsewhere(job, todo, job.request.options.executor, reporter)
        finally:
            with contextlib.suppress(OSError):  # a full disk, say, of which is told already
                _note_seconds(staging, reporter.seconds)
        _publish(job)
    except BaseException:
        sweep(staging.folder)  # a full disk gets its room back
        raise
    reporter.finish()


def _bake_here(job: _Job, todo: Sequence[SlabPlan], reporter: Reporter) -> None:
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


def _bake_elsewhere(job: _Job, todo: Sequence[SlabPlan], executor: Executor, reporter: Reporter) -> None:
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
                reporter.produced(plan.missing, nbytes_written)
    except BrokenExecutor as error:
        executor.shutdown()  # of no more use; its last workers are gone then
        raise ProducerError(
            f"{job.request.producer.name}: a worker process died (out of memory, a crash, or a producer that "
            "it cannot import); what was baked is kept: run the same bake again, with fewer workers or none"
        ) from error
    finally:
        for future in running:
            future.cancel()
        wait(running)  # nothing writes once the lock is free


def _check_picklable(job: _Job) -> None:
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
    plan = _recorded_plan(staging)
    if plan:
        plan["seconds"] += seconds
        write_durably(staging.plan, canonical(plan).encode())


# ---- publishing


def _publish(job: _Job) -> None:
    """Gather scalars, statistics and the manifest, write the sealed metadata, swap the store in."""
    staging = job.shared.staging
    records = [
        record for plan in job.slabs if (record := SlabRecord.read(staging.record(plan.slab))) is not None
    ]
    assert len(records) == len(job.slabs)
    _remove_surplus(job)
    manifests = {name: _manifest(job, name, records) for name in job.shared.fields}
    drifted = _drifted(job, manifests)
    if drifted and not job.accept_drift:
        staging.remove()  # else a repair on the right device would go on with these bytes
        name, shard = drifted[0]
        raise NotReproducibleError(
            f"{job.request.target}: field {name!r}, shard {shard}: the producer no longer gives the recorded "
            "bytes (another device or version?); --accept-drift takes the new ones, --rebuild bakes all again"
        )
    summaries = {
        name: statistics.summary(statistics.merged(manifest.statistics, manifest.statistics.shape[2]))
        for name, manifest in manifests.items()
    }
    document = StoreDocument(
        samples=job.request.samples,
        layout=job.layout,
        fields=job.shared.fields,
        coords=merged_coords(job.request.schema),
        keys=job.request.wanted,
        provenance=_provenance(job, records, drifted),
        statistics=summaries,
    )
    seal = zarr_dir.write_metadata(staging.store, document, manifests)
    publish.swap_in(staging, job.request.target, seal)


def _remove_surplus(job: _Job) -> None:
    """Remove shards that an interrupted bake of more samples left behind."""
    for name, field in job.shared.fields.items():
        count = field.layout.shard_count(job.request.samples)
        for shard in (job.shared.staging.store / name / "c").glob("*"):
            if shard.name.isdigit() and int(shard.name) >= count:
                for file in sorted(shard.rglob("*"), reverse=True):
                    file.rmdir() if file.is_dir() else file.unlink()
                shard.rmdir() if shard.is_dir() else shard.unlink()


def _manifest(job: _Job, name: str, records: Sequence[SlabRecord]) -> Manifest:
    field = job.shared.fields[name]
    found = np.stack([record.statistics[name] for record in records])
    files = _gathered(job, field, records) if field.is_scalar else [record.shards[name] for record in records]
    nbytes, crcs = zip(*files, strict=True)
    return Manifest(np.array(nbytes, np.int64), np.array(crcs, np.uint32), found)


def _gathered(job: _Job, field: StoredField, records: Sequence[SlabRecord]) -> list[tuple[int, int]]:
    """Write the shards of a scalar from what the slabs left."""
    staging, per_shard = job.shared.staging, field.layout.shard_samples // job.layout.slab_samples
    written = []
    for shard, first in enumerate(range(0, len(records), per_shard)):
        content = b"".join(
            staging.scalars(field.name, record.slab).read_bytes()
            for record in records[first : first + per_shard]
        )
        samples = np.frombuffer(content, field.dtype).reshape(-1, *field.shape)
        identity = job.shared.identities[field.name]
        written.append(write_scalar_shard(staging.store, field, identity, shard, samples))
    return written


def _drifted(job: _Job, manifests: Mapping[str, Manifest]) -> list[tuple[str, int]]:
    """The (field, shard) whose bytes were to come out as recorded, and did not."""
    drifted = []
    for name, shard in sorted(job.reproduce):
        assert job.shared.old is not None
        try:
            recorded = job.shared.old.manifest(name)
        except DamagedStoreError:  # nothing left to compare with
            continue
        if manifests[name].crc32c[shard] != recorded.crc32c[shard]:
            drifted.append((name, shard))
    return drifted


def _provenance(
    job: _Job, records: Sequence[SlabRecord], drifted: Sequence[tuple[str, int]]
) -> dict[str, JSON]:
    old = job.shared.old
    kept = [
        segment
        for plan in job.slabs
        for name, source in plan.sources.items()
        if source.kept_until > plan.start
        for segment in clipped(job.old_segments, name, plan.start, source.kept_until)
    ]
    produced = [segment for record in records for segment in record.segments]
    segments = merge_segments([*kept, *produced], job.layout.slab_samples)
    plan = _recorded_plan(job.shared.staging)
    this = {
        "began": plan["began"],
        "ended": _now(),
        "seconds": round(plan["seconds"], 3),
        "samples": job.request.samples,
        "host": socket.gethostname(),
        "command": job.request.options.command,
        "git_commit": _git_commit(),
    }
    if drifted:
        this["accepted_drift"] = [f"{name}, shard {shard}" for name, shard in drifted]
    return {
        "codec": job.codec,
        "batch_size": job.shared.batch_size,
        "seed_drawn": job.seed_drawn,
        "recipe": recipe_of(job.request.producer),
        "accepted_source": list(old.provenance["accepted_source"]) if old else [],
        "notices": list(job.notices),
        "segments": [segment.as_json() for segment in segments],
        "bakes": [*(old.provenance["bakes"] if old else []), this],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
