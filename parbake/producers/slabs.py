"""Bakes one slab: produces its batches, spools them where that takes long, leaves a record."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from parbake.producers.batches import Batch, produce_batch
from parbake.producers.plan import Segment, SlabPlan, Step, steps
from parbake.store import statistics
from parbake.store.document import StoredField
from parbake.store.keys import JSON, Producer, canonical
from parbake.store.publish import Staging
from parbake.store.shard import HEADER_NBYTES, ShardIdentity
from parbake.store.store import Store
from parbake.store.writer import Pipeline, ShardFile, SlabBuffer, SlabWriter
from parbake.store.zarr_dir import shard_file, sync_folder, write_durably

SPOOL_AFTER_S = 20.0  # a kill loses at most this and one batch
_VERSIONED = ("torch", "scipy")  # beside what every bake uses


@dataclass(frozen=True)
class SlabJob:
    """What all slabs of one bake share; picklable. ``old``: the store that samples are kept from."""

    producer: Producer
    staging: Staging
    fields: Mapping[str, StoredField]
    identities: Mapping[str, ShardIdentity]
    batch_size: int
    recorded: tuple[Segment, ...] = ()
    old: Store | None = None


def bake_slab(
    job: SlabJob, plan: SlabPlan, pipeline: Pipeline, produced: Callable[[int], None] | None = None
) -> None:
    """Bake one slab; its record appears once all of it is durable (``pipeline.drain()``).

    ``produced`` is told the samples of each batch. Raises ProducerError, DamagedStoreError, NoSpaceError.
    """
    linked = {name: _link(job, plan, name) for name, source in plan.sources.items() if source.linked}
    fields = {name: job.fields[name] for name, source in plan.sources.items() if not source.linked}
    writer = SlabWriter(pipeline, job.staging.store, fields, job.identities, plan.start, plan.stop)
    spool = _Spool(job.staging.spool(plan.slab), writer, plan)
    device = "cpu"
    pending: Batch | None = None  # still being copied from the device while the next is computed
    try:
        for step in steps(plan, job.batch_size, job.recorded):
            if step.kept:
                assert job.old is not None
                for name, kept in job.old.read(range(step.start, step.stop), step.kept).items():
                    writer.append(name, kept)
            if not step.produced:
                continue
            spooled = spool.read(step)
            if spooled is not None:
                _append(writer, spooled)
            else:
                batch = produce_batch(job.producer, fields, step.produced, step.start, step.stop)
                device = batch.device
                if pending is not None:
                    _append(writer, pending.checked(fields))
                pending = batch if batch.waits else None
                if pending is None:
                    _append(writer, batch.checked(fields))
            if pending is None:
                spool.reached(step, pipeline)
            if produced is not None:
                produced(step.stop - step.start)
        if pending is not None:
            _append(writer, pending.checked(fields))
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk, say: the cause is told, not this
            spool.write()
        raise
    segments = _segments(job, plan, device)
    writer.finish(lambda shards, scalars: _conclude(job, plan, linked | shards, scalars, segments))


def _append(writer: SlabWriter, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        writer.append(name, array)


def _segments(job: SlabJob, plan: SlabPlan, device: str) -> list[Segment]:
    """How the produced samples of a slab came to be, a segment per stretch of equal grid and fields."""
    here = environment(device)
    found: list[Segment] = []
    for step in steps(plan, job.batch_size, job.recorded):
        if step.produced:
            size = next(
                (s.batch_size for s in job.recorded if s.start <= step.start < s.stop), job.batch_size
            )
            last = found[-1] if found else None
            if last and (last.fields, last.batch_size) == (step.produced, size) and step.start % size == 0:
                found[-1] = Segment(last.fields, last.start, step.stop, size, here)
            else:
                found.append(Segment(step.produced, step.start, step.stop, size, here))
    return found


def environment(device: str) -> dict[str, JSON]:
    """What may change the last bits of a producer's results: device, versions, threads."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for name in ("parbake", *(n for n in _VERSIONED if n in sys.modules)):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else None
    return {"device": device, "machine": platform.machine(), "threads": threads, "versions": versions}


# ---- what a slab leaves behind


@dataclass(frozen=True)
class SlabRecord:
    """A complete slab: its shards, the CRC-32C of its scalars' bytes, partial statistics, segments."""

    slab: int
    start: int
    stop: int
    shards: Mapping[str, tuple[int, int]]  # nbytes, crc32c of the file
    scalars: Mapping[str, int]  # crc32c
    statistics: Mapping[str, NDArray[np.float64]]
    segments: tuple[Segment, ...]

    def to_bytes(self) -> bytes:
        return canonical(
            {
                **vars(self),
                "shards": {name: list(shard) for name, shard in self.shards.items()},
                "statistics": {name: _packed(partial) for name, partial in self.statistics.items()},
                "segments": [segment.as_json() for segment in self.segments],
            }
        ).encode()

    @classmethod
    def read(cls, file: Path) -> SlabRecord | None:
        """The record in a file, None where there is none."""
        try:
            value = json.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        return cls(
            **{
                **value,
                "shards": {name: tuple(shard) for name, shard in value["shards"].items()},
                "statistics": {name: _unpacked(text) for name, text in value["statistics"].items()},
                "segments": tuple(Segment.from_json(segment) for segment in value["segments"]),
            }
        )


def _packed(partial: NDArray[np.float64]) -> str:
    return base64.b64encode(partial.astype("<f8").tobytes()).decode()


def _unpacked(text: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), "<f8").reshape(len(statistics.ROWS), -1)


def valid_record(job: SlabJob, plan: SlabPlan) -> SlabRecord | None:
    """The record of a slab when it is for these samples and its files have their sizes and headers."""
    record = SlabRecord.read(job.staging.record(plan.slab))
    if record is None or (record.start, record.stop) != (plan.start, plan.stop):
        return None
    count = plan.stop - plan.start
    for name, field in job.fields.items():
        if field.is_scalar:
            if not _has(job.staging.scalars(name, plan.slab), count * field.layout.sample_nbytes):
                return None
            continue
        file = job.staging.store / shard_file(name, len(field.shape), plan.slab)
        if name not in record.shards or not _has(file, record.shards[name][0]):
            return None
        with file.open("rb") as opened:
            if opened.read(HEADER_NBYTES) != job.identities[name].header(plan.slab):
                return None
    return record


def _has(file: Path, nbytes: int) -> bool:
    try:
        return file.stat().st_size == nbytes
    except FileNotFoundError:
        return False


def _conclude(
    job: SlabJob,
    plan: SlabPlan,
    shards: Mapping[str, ShardFile],
    scalars: SlabBuffer,
    segments: list[Segment],
) -> None:
    found = {name: shard.statistics for name, shard in shards.items()}
    checksums = {}
    for name, samples in scalars.items():
        content = samples.tobytes()
        file = job.staging.scalars(name, plan.slab)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, content)
        checksums[name] = crc32c(content)
        found[name] = statistics.partial_of(samples, job.fields[name].channel_axis)
    files = {name: (shard.nbytes, shard.crc32c) for name, shard in shards.items()}
    record = SlabRecord(plan.slab, plan.start, plan.stop, files, checksums, found, tuple(segments))
    file = job.staging.record(plan.slab)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file, record.to_bytes())
    shutil.rmtree(job.staging.spool(plan.slab), ignore_errors=True)


def _link(job: SlabJob, plan: SlabPlan, name: str) -> ShardFile:
    """Enter an old store's shard under its recorded checksum: a hard link, or a copy where none can be."""
    assert job.old is not None
    file = shard_file(name, len(job.fields[name].shape), plan.slab)
    old, new = job.old.path / file, job.staging.store / file
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
        with new.open("rb") as copied:
            os.fsync(copied.fileno())
    sync_folder(new.parent)
    manifest = job.old.manifest(name)
    nbytes, crc = int(manifest.nbytes[plan.slab]), int(manifest.crc32c[plan.slab])
    return ShardFile(nbytes, crc, manifest.statistics[plan.slab])


class _Spool:
    """Produced batches of an unfinished slab, as files: what a kill does not lose."""

    def __init__(self, folder: Path, writer: SlabWriter, plan: SlabPlan) -> None:
        self._folder = folder
        self._writer = writer
        self._plan = plan
        self._files = sorted(folder.glob("*.npz"))
        self._written = self._reached = plan.start
        self._names: tuple[str, ...] = ()
        self._since = time.monotonic()
        self._loaded: tuple[Path, dict[str, NDArray[Any]]] | None = None

    def read(self, step: Step) -> dict[str, NDArray[Any]] | None:
        """A batch that an earlier, killed run spooled, or None."""
        for file in self._files:
            start, stop = (int(part) for part in file.stem.split("-"))
            if start <= step.start and step.stop <= stop:
                arrays = self._load(file)
                if set(step.produced) <= arrays.keys():
                    self._names = step.produced
                    self._written = self._reached = step.stop
                    return {n: arrays[n][step.start - start : step.stop - start] for n in step.produced}
        return None

    def _load(self, file: Path) -> dict[str, NDArray[Any]]:
        if self._loaded is None or self._loaded[0] != file:
            with np.load(file, allow_pickle=False) as archive:  # a zip: its CRCs are checked
                self._loaded = file, dict(archive)
        return self._loaded[1]

    def reached(self, step: Step, pipeline: Pipeline) -> None:
        """Note that a batch is in the writer; spool, in another thread, when that is due."""
        if step.produced != self._names:
            self._names, self._written = step.produced, step.start
        self._reached = step.stop
        if time.monotonic() - self._since > SPOOL_AFTER_S and step.stop < self._plan.stop:
            start, self._written, self._since = self._written, self._reached, time.monotonic()
            pipeline.aside(lambda: self._write(start, step.stop))

    def write(self) -> None:
        """Spool now what is not spooled yet."""
        self._write(self._written, self._reached)

    def _write(self, start: int, stop: int) -> None:
        if start < stop and self._names:
            content = BytesIO()
            np.savez(content, **{name: self._writer.written(name, start, stop) for name in self._names})
            self._folder.mkdir(parents=True, exist_ok=True)
            write_durably(self._folder / f"{start}-{stop}.npz", content.getvalue())
