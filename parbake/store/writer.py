"""Writes slabs: samples in, encoded and checked shard files with a record out.

Samples are copied into one of two reused slab buffers (a producer may reuse its own arrays), encoded in
threads, written in order by one more thread, and finished (index, fsync, rename, record) by another, so
that the producer goes on meanwhile. The two buffers bound the memory.
"""

from __future__ import annotations

import errno
import io
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from parbake.errors import NoSpaceError
from parbake.store import statistics
from parbake.store.chunkmap import ChunkIndex
from parbake.store.codecs import CRC_NBYTES, Chain, chain_of
from parbake.store.document import StoredField
from parbake.store.durable import sync_folder, temporary_name, write_parts
from parbake.store.layout import FieldLayout
from parbake.store.shard import ALIGNMENT, ShardIdentity, pack_index
from parbake.store.zarr_format import shard_file

_GROUP_NBYTES = 1024**2  # chunks encoded in one task: a task costs as much as a small chunk
_IN_FLIGHT_NBYTES = 16 * 1024**2  # encoded, not yet written
_PARTS_MAX = 1000  # of one call; systems take 1,024
_BLOCK_NBYTES = 4 * 1024**2  # whole huge pages: the page cache then keeps and maps them as such


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error says that there is no room left."""
    return isinstance(error, NoSpaceError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    )


@dataclass(frozen=True)
class ShardFile:
    """A finished shard: its size, its checksum (see shard.py), its partial statistics."""

    nbytes: int
    crc32c: int
    statistics: NDArray[np.float64]


class _BlockFile:
    """A new file that is written in whole, aligned blocks, but for its end.

    ``io.BufferedWriter`` writes whatever fits before its buffer is full, and a file so written is kept and
    mapped in small pages: measured, random samples are copied out of its map a tenth slower. What is
    written is not copied, and must stay as it is until the next block, or the end, is on its way.
    """

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path, "w")
        self._parts: list[memoryview] = []
        self._filled = 0

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while len(rest):
            part = rest[: _BLOCK_NBYTES - self._filled]
            self._parts.append(part)
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == _BLOCK_NBYTES:
                self._flush()
            elif len(self._parts) == _PARTS_MAX:
                self._parts = [memoryview(b"".join(self._parts))]

    def _flush(self) -> None:
        parts, self._parts, self._filled = self._parts, list[memoryview](), 0
        write_parts(self._file.fileno(), parts)

    def sync(self) -> None:
        """Make all that was written durable."""
        self._flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close, without what was not synced."""
        self._file.close()


class ShardWriter:
    """One shard file being written under a temporary name; not safe for several threads at once."""

    def __init__(self, store: Path, name: str, header: bytes, chunks: int) -> None:
        self.path = store / name
        self._temporary = temporary_name(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _BlockFile(self._temporary)
        self._index = ChunkIndex.empty(chunks)
        self._written = 0
        self._chunk = 0
        self._crc = 0
        self._write(header[:-CRC_NBYTES], header[-CRC_NBYTES:])

    def _write(self, data: bytes | memoryview, checksum: bytes = b"") -> None:
        self._file.write(data)
        self._file.write(checksum)
        self._crc = crc32c(data, self._crc)  # without the checksum: see shard.py
        self._written += len(data) + len(checksum)

    def add(self, body: bytes | memoryview, crc: bytes) -> None:
        """Append the next chunk's payload."""
        self._write(bytes(-self._written % ALIGNMENT))
        self._index.offset[self._chunk] = self._written
        self._index.nbytes[self._chunk] = len(body) + CRC_NBYTES
        self._chunk += 1
        self._write(body, crc)

    def finish(self, found: NDArray[np.float64]) -> ShardFile:
        """Write the index, make the file durable under its own name."""
        index = pack_index(self._index)
        self._write(index[:-CRC_NBYTES], index[-CRC_NBYTES:])
        self._file.sync()
        self._file.close()
        self._temporary.rename(self.path)
        sync_folder(self.path.parent)
        return ShardFile(self._written, self._crc, found)

    def discard(self) -> None:
        """Give up: write no more, and give the room back (an open file keeps it though removed)."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Encoded:
    payloads: list[tuple[bytes | memoryview, bytes]]
    statistics: NDArray[np.float64]


def _encode(chain: Chain, stored: StoredField, group: NDArray[Any], valid: int) -> _Encoded:
    """Encode the chunks of a group of which the first ``valid`` samples count."""
    found = statistics.partial_of(group[:valid], stored.channel_axis)
    chunk = stored.layout.chunk_samples
    chunks = -(-valid // chunk)
    group[valid : chunks * chunk] = _fill(group.dtype)
    return _Encoded([chain.encode(group[i * chunk : (i + 1) * chunk]) for i in range(chunks)], found)


SlabBuffer: TypeAlias = dict[str, NDArray[Any]]  # field -> [capacity, *shape], byte order as on disk


@dataclass(frozen=True)
class _Task:
    """A group of chunks on its way to its shard file."""

    write: Callable[[_Encoded], None]
    encoded: Future[_Encoded]


class Pipeline:
    """The threads and buffers that slabs are written with; a context manager.

    A fault in any thread is raised in the caller's at its next call.
    """

    def __init__(self, layouts: Mapping[str, FieldLayout]) -> None:
        group = max(_group_samples(layout) * layout.sample_nbytes for layout in layouts.values())
        self._in_flight = threading.BoundedSemaphore(max(2, _IN_FLIGHT_NBYTES // group))
        self._buffers: queue.SimpleQueue[SlabBuffer] = queue.SimpleQueue()
        for _ in range(2):
            self._buffers.put({})
        self._encoders = ThreadPoolExecutor(os.cpu_count(), "parbake-encode")
        self._finisher = ThreadPoolExecutor(1, "parbake-finish")
        self._tasks: queue.SimpleQueue[_Task | Callable[[], object] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._shards: set[ShardWriter] = set()  # not finished yet
        self.nbytes_written = 0  # encoded
        self._writer = threading.Thread(target=self._write_all, name="parbake-write", daemon=True)
        self._writer.start()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._tasks.put(None)
        self._writer.join()
        self._finisher.shutdown()
        self._encoders.shutdown()
        for shard in self._shards:
            shard.discard()

    def raise_error(self) -> None:
        """Raise what went wrong in a thread, if anything did."""
        if disk_is_full(self._error):
            raise NoSpaceError(
                "the disk is full; what was baked is kept: free some space and run the same bake again"
            ) from self._error
        if self._error is not None:
            raise self._error

    def drain(self) -> None:
        """Wait until all that was submitted is durable."""
        done = threading.Event()
        self.when_written(done.set)
        while not done.wait(timeout=0.2):  # never set after a fault
            self.raise_error()
        self.raise_error()

    def buffer(self) -> SlabBuffer:
        """A slab buffer, waiting until an earlier slab is durable."""
        while True:
            self.raise_error()
            try:
                return self._buffers.get(timeout=0.2)
            except queue.Empty:  # perhaps the slab that held it failed
                continue

    def release(self, buffer: SlabBuffer) -> None:
        """Give a slab buffer back."""
        self._buffers.put(buffer)

    def open_shard(self, store: Path, name: str, header: bytes, chunks: int) -> ShardWriter:
        """A shard to write; discarded at the end unless ``shards_finished`` is told of it."""
        shard = ShardWriter(store, name, header, chunks)
        self._shards.add(shard)
        return shard

    def shards_finished(self, shards: Iterable[ShardWriter]) -> None:
        """Note that these shards are durable."""
        self._shards.difference_update(shards)

    def wrote(self, nbytes: int) -> None:
        """Count encoded bytes; only from the writing thread."""
        self.nbytes_written += nbytes

    def submit(self, encode: Callable[[], _Encoded], write: Callable[[_Encoded], None]) -> None:
        """Encode in some thread and write in the order of submission."""
        self.raise_error()
        self._in_flight.acquire()
        self._tasks.put(_Task(write, self._encoders.submit(encode)))

    def when_written(self, call: Callable[[], None]) -> None:
        """Run ``call`` in the finishing thread once all that was submitted before is written."""
        self._tasks.put(lambda: self._finisher.submit(self._guarded, call))

    def aside(self, call: Callable[[], None]) -> None:
        """Run ``call`` in the finishing thread, now or after what it is doing."""
        self._finisher.submit(self._guarded, call)

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            if self._error is None:
                call()
        except BaseException as error:  # handed to the caller's thread
            self._error = self._error or error

    def _write_all(self) -> None:
        while (task := self._tasks.get()) is not None:
            if isinstance(task, _Task):
                self._guarded(partial(_write, task))
                self._in_flight.release()
            else:
                self._guarded(task)


def _write(task: _Task) -> None:
    task.write(task.encoded.result())


def _group_samples(layout: FieldLayout) -> int:
    """Samples of one encoding task: whole chunks of together about 1 MiB."""
    chunks = min(max(1, _GROUP_NBYTES // layout.chunk_nbytes), layout.chunks_per_shard)
    return chunks * layout.chunk_samples


class ShardAssembly:
    """The samples of one shard: hands full groups of chunks on to be encoded and written.

    ``samples``: the slab buffer of this field, filled from the start by the caller.
    """

    def __init__(
        self, pipeline: Pipeline, field: StoredField, samples: NDArray[Any], writer: ShardWriter
    ) -> None:
        self.writer = writer
        self._pipeline = pipeline
        self._field = field
        self._samples = samples
        self._submitted = 0
        self._partials: list[NDArray[np.float64]] = []

    def filled(self, count: int, *, last: bool = False) -> None:
        """Say that the first ``count`` samples are in the buffer; the ``last`` call flushes the rest."""
        step = _group_samples(self._field.layout)
        chain = chain_of(self._field.layout)
        while self._submitted < count and (last or self._submitted + step <= count):
            start, valid = self._submitted, min(step, count - self._submitted)
            group = self._samples[start : start + step]
            self._pipeline.submit(partial(_encode, chain, self._field, group, valid), self._write)
            self._submitted += valid

    def _write(self, encoded: _Encoded) -> None:
        for body, crc in encoded.payloads:
            self.writer.add(body, crc)
            self._pipeline.wrote(len(body) + len(crc))
        self._partials.append(encoded.statistics)

    def finish(self) -> ShardFile:
        """Make the shard durable; only after all was written."""
        columns = statistics.columns_of(self._field.shape, self._field.channel_axis)
        return self.writer.finish(statistics.merged(self._partials, columns))


class SlabWriter:
    """Writes samples [start, stop) of several fields: shards of some, plain arrays of scalars.

    ``identities``: per field what its shard's header says.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        store: Path,
        fields: Mapping[str, StoredField],
        identities: Mapping[str, ShardIdentity],
        start: int,
        stop: int,
    ) -> None:
        self._pipeline = pipeline
        self._fields = fields
        self._start, self._stop = start, stop
        self._buffer = pipeline.buffer()
        self._assemblies: dict[str, ShardAssembly] = {}
        self._filled = dict.fromkeys(fields, 0)
        for name, field in fields.items():
            samples = self._samples(name)
            if not field.is_scalar:
                shard = start // field.layout.shard_samples
                file = shard_file(name, len(field.shape), shard)
                header = identities[name].header(shard, stop - start)
                writer = pipeline.open_shard(store, file, header, field.layout.chunks_per_shard)
                self._assemblies[name] = ShardAssembly(pipeline, field, samples, writer)

    def _samples(self, name: str) -> NDArray[Any]:
        """This slab's buffer of one field, with room up to the end of its last chunk or group."""
        field = self._fields[name]
        step = 1 if field.is_scalar else field.layout.chunk_samples
        capacity = -(-(self._stop - self._start) // step) * step
        held = self._buffer.get(name)
        if held is None or len(held) < capacity:
            held = self._buffer[name] = np.empty((capacity, *field.shape), field.dtype)
        return held

    def append(self, name: str, samples: NDArray[Any]) -> None:
        """Add samples [k, *shape] of one field; they are copied. Raises what went wrong in a thread."""
        filled = self._filled[name]
        self._buffer[name][filled : filled + len(samples)] = samples
        self._filled[name] = filled + len(samples)
        if name in self._assemblies:
            self._assemblies[name].filled(self._filled[name])

    def written(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Samples [start, stop) that were appended; valid until the slab is finished."""
        return self._buffer[name][start - self._start : stop - self._start]

    def finish(self, done: Callable[[dict[str, ShardFile], SlabBuffer], None]) -> None:
        """Have the shards made durable, then ``done`` called with them and the scalars, in a thread."""
        for name, assembly in self._assemblies.items():
            assembly.filled(self._filled[name], last=True)
        count = self._stop - self._start
        scalars = {n: self._buffer[n][:count] for n, field in self._fields.items() if field.is_scalar}

        def conclude() -> None:
            shards = {name: assembly.finish() for name, assembly in self._assemblies.items()}
            self._pipeline.shards_finished(assembly.writer for assembly in self._assemblies.values())
            done(shards, scalars)
            self._pipeline.release(self._buffer)

        self._pipeline.when_written(conclude)


def write_scalar_shard(
    store: Path, field: StoredField, identity: ShardIdentity, shard: int, samples: NDArray[Any]
) -> tuple[int, int]:
    """Write one shard of a scalar field, samples [k, *shape]; returns its size and CRC-32C."""
    layout = field.layout
    file = shard_file(field.name, len(field.shape), shard)
    header = identity.header(shard, len(samples))
    writer = ShardWriter(store, file, header, layout.chunks_per_shard)
    try:
        for start in range(0, len(samples), layout.chunk_samples):
            part = samples[start : start + layout.chunk_samples]
            chunk = np.full((layout.chunk_samples, *field.shape), _fill(field.dtype), field.dtype)
            chunk[: len(part)] = part
            writer.add(*chain_of(layout).encode(chunk))
        finished = writer.finish(statistics.empty(1))
    except BaseException:
        writer.discard()
        raise
    return finished.nbytes, finished.crc32c


def _fill(dtype: np.dtype[Any]) -> float | int:
    """Zarr's fill value, as numbers."""
    return np.nan if dtype.kind in "fc" else 0
