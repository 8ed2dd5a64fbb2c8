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
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError
from parbake.producers.batches import Batch, produce_batch, producing
from parbake.producers.plan import Segment, SlabPlan, Step, steps
from parbake.store import statistics
from parbake.store.document import StoredField
from parbake.store.durable import durable, sync_folder, write_durably
from parbake.store.keys import JSON, Producer, canonical
from parbake.store.pack import copy_shard
from parbake.store.publish import Staging
from parbake.store.shard import HEADER_NBYTES, ShardIdentity
from parbake.store.store import Store
from parbake.store.writer import Pipeline, ShardFile, SlabBuffer, SlabWriter
from parbake.store.zarr_format import shard_file

SPOOL_AFTER_S = 20.0  # a kill loses at most this and one batch
_VERSIONED = ("torch", "scipy")  # beside what every bake uses
_DEVICE = "__device"  # in a spool file; no field's name begins so


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
    spool = _Spool(job, plan, writer)
    device: str | None = None
    pending: tuple[Step, Batch] | None = None  # still being copied from the device while the next is computed

    def settle() -> None:
        nonlocal pending
        if pending is not None:
            (step, batch), pending = pending, None
            _append(writer, batch.checked(fields))
            spool.reached(step, batch.device, pipeline)

    try:
        for step in steps(plan, job.batch_size, job.recorded):
            if step.kept:
                assert job.old is not None
                _append(writer, job.old.read(range(step.start, step.stop), step.kept))
            if not step.produced:
                if produced is not None and plan.work and not plan.missing:
                    produced(step.stop - step.start)
                continue
            spooled = spool.read(step)
            if spooled is not None:
                settle()
                _append(writer, spooled)
            else:
                with producing:
                    batch = produce_batch(job.producer, fields, step.produced, step.start, step.stop)
                    device = batch.device
                    settle()
                    pending = step, batch
                    if not batch.waits:
                        settle()
            if produced is not None:
                produced(step.stop - step.start)
        settle()
    except BaseException:
        with contextlib.suppress(Exception):  # the cause is told, not what follows from it
            settle()
        with contextlib.suppress(Exception):  # a full disk, say
            spool.write(device or "cpu")
        raise
    segments = _segments(job, plan, device or spool.device)
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
            size = step.batch_size
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
        """The record in a file, None where there is none that can be read: the slab is then baked again."""
        try:
            value = json.loads(file.read_bytes())
            return cls(
                **{
                    **value,
                    "shards": {name: tuple(shard) for name, shard in value["shards"].items()},
                    "statistics": {name: _unpacked(text) for name, text in value["statistics"].items()},
                    "segments": tuple(Segment.from_json(segment) for segment in value["segments"]),
                }
            )
        except (FileNotFoundError, KeyError, ValueError, TypeError, AttributeError):
            return None


def _packed(partial: NDArray[np.float64]) -> str:
    return base64.b64encode(partial.astype("<f8").tobytes()).decode()


def _unpacked(text: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), "<f8").reshape(len(statistics.ROWS), -1)


def valid_record(job: SlabJob, plan: SlabPlan) -> SlabRecord | None:
    """The record of a slab when it is for these samples and its files have their sizes and headers."""
    record = SlabRecord.read(job.staging.record(plan.slab))
    if record is None or (record.start, record.stop) != (plan.start, plan.stop):
        return None
    for name, field in job.fields.items():
        if field.is_scalar:
            if _crc_of(job.staging.scalars(name, plan.slab)) != record.scalars.get(name):
                return None
            continue
        file = job.staging.store / shard_file(name, len(field.shape), plan.slab)
        if name not in record.shards or not _has(file, record.shards[name][0]):
            return None
        with file.open("rb") as opened:
            if opened.read(HEADER_NBYTES) != job.identities[name].header(plan.slab, plan.stop - plan.start):
                return None
    return record


def _crc_of(file: Path) -> int | None:
    try:
        return int(crc32c(file.read_bytes()))
    except FileNotFoundError:
        return None


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
    manifest = job.old.manifest(name)
    nbytes, crc = int(manifest.nbytes[plan.slab]), int(manifest.crc32c[plan.slab])
    if job.old.path.is_dir() and not _has(old, nbytes):
        raise DamagedStoreError(
            f"{old}: field {name!r}, samples {plan.start}-{plan.stop - 1}: missing, or not of the {nbytes} "
            f"bytes that were written; run 'parbake verify {job.old.path} --repair RECIPE' first"
        )
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
        sync_folder(new.parent)
    except OSError:  # another file system, too many links, none at all, or a container that is one file
        copy_shard(job.old, name, plan.slab, new)
    return ShardFile(nbytes, crc, manifest.statistics[plan.slab])


@dataclass
class _Stretch:
    """Adjoining samples of some fields that are in the writer, but not in a spool file yet."""

    fields: tuple[str, ...]
    start: int
    stop: int


class _Spool:
    """Produced batches of an unfinished slab, as files: what a kill does not lose.

    A file counts only for the batch size and the slab's end that it was produced with: another width of
    a batch may change the last bits of its samples.
    """

    def __init__(self, job: SlabJob, plan: SlabPlan, writer: SlabWriter) -> None:
        self.device = "cpu"  # of what was read from here
        self._folder = job.staging.spool(plan.slab)
        self._grid = f"{job.batch_size}-{plan.stop}"
        self._writer = writer
        self._stop = plan.stop
        self._files = sorted(self._folder.glob(f"*-{self._grid}.npz"))
        self._pending: list[_Stretch] = []
        self._since = time.monotonic()
        self._loaded: tuple[Path, dict[str, NDArray[Any]]] | None = None

    def read(self, step: Step) -> dict[str, NDArray[Any]] | None:
        """A batch that an earlier, killed run spooled, or None."""
        for file in self._files:
            start, stop = (int(part) for part in file.stem.split("-")[:2])
            if start <= step.start and step.stop <= stop:
                arrays = self._load(file)
                if set(step.produced) <= arrays.keys():
                    return {n: arrays[n][step.start - start : step.stop - start] for n in step.produced}
        return None

    def _load(self, file: Path) -> dict[str, NDArray[Any]]:
        if self._loaded is None or self._loaded[0] != file:
            try:
                # a zip: its CRCs are checked
                with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
                    self._loaded = file, dict(archive)
                self.device = str(self._loaded[1].pop(_DEVICE))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                self._loaded = file, {}  # damaged: produced again
        return self._loaded[1]

    def reached(self, step: Step, device: str, pipeline: Pipeline) -> None:
        """Note that a produced batch is in the writer; spool, in another thread, when that is due."""
        last = self._pending[-1] if self._pending else None
        if last is not None and (last.fields, last.stop) == (step.produced, step.start):
            last.stop = step.stop
        else:
            self._pending.append(_Stretch(step.produced, step.start, step.stop))
        if time.monotonic() - self._since > SPOOL_AFTER_S and step.stop < self._stop:
            due, self._pending, self._since = self._pending, [], time.monotonic()
            pipeline.aside(lambda: self._write(due, device))

    def write(self, device: str) -> None:
        """Spool now what is not spooled yet."""
        self._write(self._pending, device)

    def _write(self, stretches: list[_Stretch], device: str) -> None:
        for part in stretches:
            arrays = {name: self._writer.written(name, part.start, part.stop) for name in part.fields}
            arrays[_DEVICE] = np.array(device)
            self._folder.mkdir(parents=True, exist_ok=True)
            with durable(self._folder / f"{part.start}-{part.stop}-{self._grid}.npz") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # no field is named allow_pickle
