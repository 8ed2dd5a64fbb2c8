"""What a bake has to do, given what lies there already."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import (
    Executor,
)
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from parbake.errors import (
    DamagedStoreError,
    RecipeError,
    StaleStoreError,
    StoreNotFoundError,
    UnfinishedStoreError,
)
from parbake.producers.plan import Segment, SlabPlan, plan_slabs
from parbake.producers.slabs import SlabJob
from parbake.store import publish, zarr_dir, zarr_format
from parbake.store.document import StoredField, shard_identity
from parbake.store.durable import write_durably
from parbake.store.keys import JSON, Keys, Producer, canonical, compare, digest, without_source
from parbake.store.layout import Field, Layout, plan_layout
from parbake.store.pack import pack
from parbake.store.publish import Staging
from parbake.store.store import Store, open_store
from parbake.store.verify import Damage

DEFAULT_BATCH_SIZE = 64
DEFAULT_CODEC = "lz4"


@dataclass(frozen=True)
class BakeOptions:
    """How to bake; none of it changes what is baked (see ``bake``)."""

    codec: str | None = None
    batch_size: int | None = None
    executor: Executor | None = None
    command: str | None = None


@dataclass(frozen=True)
class Request:
    """What was asked for: a store of the first ``samples`` samples of ``producer`` under ``wanted`` keys.

    ``recipe``: from which the producer can be made again. ``origin``: of values that are carried over, for
    the provenance. ``check``: is given the whole store before it takes its place, and raises if it is wrong.
    """

    producer: Producer
    target: Path
    wanted: Keys
    schema: Mapping[str, Field]
    samples: int
    options: BakeOptions
    recipe: JSON
    origin: JSON = None
    check: Callable[[Store], None] | None = None


@dataclass(frozen=True)
class Job:
    """What to bake: the plan of all slabs, and what they share."""

    request: Request
    shared: SlabJob
    layout: Layout
    codec: str
    seed_drawn: int | None
    slabs: Sequence[SlabPlan]
    old_segments: tuple[Segment, ...]
    reproduce: frozenset[tuple[str, int]] = frozenset()  # (field, shard): bytes should come out as recorded
    accept_drift: bool = False
    notices: tuple[str, ...] = ()  # what the producer has to tell of itself


def fresh_store(request: Request) -> Store | None:
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


def old_store(target: Path, rebuild: bool) -> Store | None:
    try:
        return open_store(target)
    except (StoreNotFoundError, UnfinishedStoreError):
        return None
    except DamagedStoreError:
        if rebuild:
            return None
        raise


def source_accepted(request: Request, old: Store) -> tuple[Request, Store]:
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
    root = zarr_format.resealed(old.sealed.root, provenance)
    if old.path.is_dir():
        zarr_dir.write_root(old.path, root)
    else:
        staging = Staging(publish.staging_root(old.path) / "resealed")
        staging.folder.mkdir(parents=True, exist_ok=True)
        try:
            pack(old, staging.made(old.path), root=root)
            publish.swap_in(staging, old.path, root["attributes"][zarr_format.SEAL])
        except BaseException:
            staging.remove()
            raise
    old.close()
    return replace(request, wanted=stored), open_store(request.target)


def new_job(request: Request) -> Job:
    """A store where none is."""
    return _job(request, None, ())


def decide(request: Request, old: Store | None, rebuild: bool) -> Job | None:
    """What to bake, or None when the store is fresh. Raises StaleStoreError, RecipeError."""
    if old is None:
        return new_job(request)
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
        return new_job(request)
    stored = old.invalidation_keys.fields
    kept = [
        name
        for name in request.schema
        if canonical(stored.get(name)) == canonical(request.wanted.fields[name])
    ]
    recoded = request.options.codec not in (None, _codec_of(old))
    return new_job(request) if not kept or recoded else _job(request, old, kept)


def _job(request: Request, old: Store | None, kept: Iterable[str]) -> Job:
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


def recoding_job(request: Request, old: Store) -> Job:
    """All samples of ``old`` carried over into another store, with the codec that was asked for."""
    layout, codec = _layout(request, old)
    slabs = plan_slabs(layout, request.samples, old.stored_samples, lambda name, slab: True, linkable=False)
    purpose = {"base": old.contents.version, "kept": sorted(old.fields)}
    return _staged(request, layout, codec, slabs, old, _segments_of(old), purpose)


def repair_job(request: Request, old: Store, damaged: Sequence[Damage], accept_drift: bool) -> Job:
    layout, codec = old.layout, _codec_of(old)
    bad = {(d.field, s) for d in damaged if d.field for s in slabs_of(layout, d)}
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


def slabs_of(layout: Layout, damage: Damage) -> range:
    return range(damage.start // layout.slab_samples, (damage.stop - 1) // layout.slab_samples + 1)


def _shards_to_reproduce(layout: Layout, bad: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    per_shard = {name: field.shard_samples // layout.slab_samples for name, field in layout.fields.items()}
    return {(name, slab // per_shard[name]) for name, slab in bad}


def _segments_of(old: Store | None) -> tuple[Segment, ...]:
    return tuple(Segment.from_json(s) for s in old.provenance["segments"]) if old else ()


def _layout(request: Request, old: Store | None) -> tuple[Layout, str]:
    codec = request.options.codec or (_codec_of(old) if old else DEFAULT_CODEC)
    return plan_layout(request.schema, codec), codec


def _staged(
    request: Request,
    layout: Layout,
    codec: str,
    slabs: Sequence[SlabPlan],
    old: Store | None,
    segments: tuple[Segment, ...],
    purpose: Mapping[str, JSON],
) -> Job:
    """The job with its staging folder, whose plan is written unless an earlier run left the same."""
    notices = tuple(getattr(request.producer, "notices", ()))  # may find a fault: nothing is begun yet
    keys = request.wanted
    layouts = {name: [*vars(field).values()][:6] for name, field in layout.fields.items()}
    identity = {"shared": keys.shared, "fields": keys.fields, "layout": canonical(layouts), **purpose}
    if request.origin is not None:  # under vouched keys lie another's samples
        identity["origin"] = request.origin
    staging = Staging(publish.staging_root(request.target) / digest(identity)[:16])
    recorded = recorded_plan(staging)
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
        "began": recorded.get("began") or utc_now(),
    }
    staging.folder.mkdir(parents=True, exist_ok=True)
    write_durably(staging.plan, canonical(plan).encode())
    fields = {
        name: StoredField.of(name, field, layout.fields[name]) for name, field in request.schema.items()
    }
    identities = {name: shard_identity(keys, field.layout, seed) for name, field in fields.items()}
    producer = _with_seed(request.producer, seed)
    shared = SlabJob(producer, staging, fields, identities, batch_size, (), old)
    return Job(request, shared, layout, codec, seed, slabs, segments, notices=notices)


def recorded_plan(staging: Staging) -> dict[str, Any]:
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
    if old is None:
        return secrets.randbits(63)
    if (drawn := old.provenance["seed_drawn"]) is None:  # carried over from a file, under vouched keys
        raise RecipeError(
            f"{old.path}: the seed that its samples were drawn with is not known, so that none can be made "
            "to go with them; bake into another path"
        )
    return int(drawn)


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


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
