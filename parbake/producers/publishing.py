"""The end of a bake: scalars gathered, statistics merged, metadata sealed, the store in its place."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping, Sequence

import numpy as np

from parbake.errors import (
    DamagedStoreError,
    NotReproducibleError,
)
from parbake.producers.jobs import Job, recorded_plan, slabs_of, utc_now
from parbake.producers.plan import clipped, merge_segments
from parbake.producers.slabs import SlabRecord
from parbake.store import publish, statistics, zarr_dir
from parbake.store.document import Manifest, StoredField, StoreDocument
from parbake.store.keys import JSON
from parbake.store.layout import merged_coords
from parbake.store.pack import pack
from parbake.store.store import Store, open_store
from parbake.store.writer import write_scalar_shard


def publish_store(job: Job) -> None:
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
    made = staging.made(job.request.target)
    if made != staging.store:
        with open_store(staging.store) as store:
            try:
                pack(store, made)
            except DamagedStoreError as error:
                _forget_damaged(job, store)
                raise DamagedStoreError(
                    f"{job.request.target}: what was baked before was damaged meanwhile ({error}); "
                    "run the same bake again: it bakes those slabs anew"
                ) from error
    if job.request.check is not None:
        with open_store(made) as store:
            try:
                job.request.check(store)
            except DamagedStoreError:
                staging.remove()  # else the next run would go on with these bytes
                raise
    publish.swap_in(staging, job.request.target, seal)


def _forget_damaged(job: Job, store: Store) -> None:
    """Have the next run bake the slabs again whose shards are damaged."""
    for damage in store.verify().damaged:
        if damage.field is not None:
            for slab in slabs_of(job.layout, damage):
                job.shared.staging.record(slab).unlink(missing_ok=True)


def _remove_surplus(job: Job) -> None:
    """Remove shards that an interrupted bake of more samples left behind."""
    for name, field in job.shared.fields.items():
        count = field.layout.shard_count(job.request.samples)
        for shard in (job.shared.staging.store / name / "c").glob("*"):
            if shard.name.isdigit() and int(shard.name) >= count:
                for file in sorted(shard.rglob("*"), reverse=True):
                    file.rmdir() if file.is_dir() else file.unlink()
                shard.rmdir() if shard.is_dir() else shard.unlink()


def _manifest(job: Job, name: str, records: Sequence[SlabRecord]) -> Manifest:
    field = job.shared.fields[name]
    found = np.stack([record.statistics[name] for record in records])
    files = _gathered(job, field, records) if field.is_scalar else [record.shards[name] for record in records]
    nbytes, crcs = zip(*files, strict=True)
    return Manifest(np.array(nbytes, np.int64), np.array(crcs, np.uint32), found)


def _gathered(job: Job, field: StoredField, records: Sequence[SlabRecord]) -> list[tuple[int, int]]:
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


def _drifted(job: Job, manifests: Mapping[str, Manifest]) -> list[tuple[str, int]]:
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
    job: Job, records: Sequence[SlabRecord], drifted: Sequence[tuple[str, int]]
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
    plan = recorded_plan(job.shared.staging)
    this = {
        "began": plan["began"],
        "ended": utc_now(),
        "seconds": round(plan["seconds"], 3),
        "samples": job.request.samples,
        "host": socket.gethostname(),
        "command": job.request.options.command,
        "git_commit": _git_commit(),
    }
    if job.request.origin is not None:
        this["converted"] = job.request.origin
    if drifted:
        this["accepted_drift"] = [f"{name}, shard {shard}" for name, shard in drifted]
    return {
        "codec": job.codec,
        "batch_size": job.shared.batch_size,
        "seed_drawn": job.seed_drawn,
        "recipe": job.request.recipe,
        "accepted_source": list(old.provenance["accepted_source"]) if old else [],
        "notices": list(job.notices),
        "segments": [segment.as_json() for segment in segments],
        "bakes": [*(old.provenance["bakes"] if old else []), this],
    }


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
