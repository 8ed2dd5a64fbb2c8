"""Reads samples through a chunk map: maps files lazily, checks, decodes into the caller's buffers."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import mmap
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, StoreReplacedError
from parbake.store.chunkmap import MISSING, ByteSource, ChunkIndex, FieldMap
from parbake.store.codecs import CodecError, check_crc

Checksums: TypeAlias = Literal["first", "always", "never"]
Index: TypeAlias = Sequence[int] | slice | range | NDArray[Any]

OPEN_FILES_MAX = 256  # in one process, over all stores; each costs a descriptor and a map


@dataclass(frozen=True)
class MappedFile:
    """A file's bytes through a memory map."""

    data: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def get(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.data[start:stop]


class PreadFile:
    """A file's bytes through ``pread``, where a mapped file may vanish. Closes with its last reference."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self._descriptor = descriptor
        self.nbytes = nbytes

    def get(self, start: int, stop: int) -> NDArray[np.uint8]:
        found = os.pread(self._descriptor, stop - start, start)
        if len(found) != stop - start:
            raise CodecError(f"the file was cut while it was open: {len(found)} bytes of {stop - start} left")
        return np.frombuffer(found, np.uint8)

    def __del__(self) -> None:
        os.close(self._descriptor)


class _Shard:
    """One open shard. Its index is kept as lists: the hot path takes single numbers out of it."""

    __slots__ = ("admitted", "get", "number", "starts", "stops")

    def __init__(self, number: int, source: ByteSource, index: ChunkIndex) -> None:
        self.number = number
        self.get = source.get
        self.starts: list[int] = index.offset.tolist()
        self.stops: list[int] = (index.offset + index.nbytes).tolist()
        self.admitted = bytearray(len(self.starts))  # chunks that this process has found to be right


class _OpenShards:
    """The shards that this process has open, least recently used first out."""

    def __init__(self) -> None:
        self._shards: OrderedDict[tuple[int, str, int], _Shard] = OrderedDict()
        self._renew_lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        # new in a forked child: another thread may have held it. Reentrant: the garbage collector may end
        # another reader, which drops its shards, in the thread that holds it
        self._lock = threading.RLock()

    def get(self, key: tuple[int, str, int]) -> _Shard | None:
        with self._lock:
            shard = self._shards.get(key)
            if shard is not None:
                self._shards.move_to_end(key)
            return shard

    def put(self, key: tuple[int, str, int], shard: _Shard) -> None:
        with self._lock:
            self._shards[key] = shard
            while len(self._shards) > OPEN_FILES_MAX:
                self._shards.popitem(last=False)

    def drop(self, reader: int) -> None:
        with self._lock:
            for key in list(self._shards):
                if key[0] == reader:
                    self._shards.pop(key, None)


_open_shards = _OpenShards()
_reader_numbers = itertools.count()


class OpenFolder:
    """A store's folder, held open: its files stay reachable when another folder takes its path."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._descriptor = -1
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # file systems without locks; says "being read" to who clears
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    @property
    def descriptor(self) -> int:
        """Raises ValueError when closed."""
        if self._descriptor < 0:
            raise ValueError(f"{self.path}: the store is closed")
        return self._descriptor

    def open(self, name: str) -> int:
        """A descriptor of a plain file below, following no link.

        Raises FileNotFoundError, CodecError, StoreReplacedError.
        """
        try:
            return open_beneath(self.descriptor, name)
        except FileNotFoundError:
            self._raise_if_replaced()
            raise

    def _raise_if_replaced(self) -> None:
        held = os.fstat(self.descriptor)
        try:
            now = self.path.stat()
        except FileNotFoundError:
            raise StoreReplacedError(f"{self.path}: the store was removed while it was open") from None
        if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):
            raise StoreReplacedError(f"{self.path}: the store was baked again while it was open; reopen it")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError, TypeError):  # the interpreter may be going down
            self.close()


class Reader:
    """Reads samples of the fields in ``maps`` from files in ``folder``.

    The folder is held open by descriptor: when another store takes its place under the same path, reading
    goes on from the old files, or raises StoreReplacedError once they are gone; the two never mix.
    """

    def __init__(
        self, folder: OpenFolder, maps: Mapping[str, FieldMap], checksums: Checksums, use_mmap: bool
    ) -> None:
        self.maps = dict(maps)
        self._folder = folder
        self._checksums = checksums
        self._use_mmap = use_mmap
        self._number = next(_reader_numbers)
        self._scratch = threading.local()

    def close(self) -> None:
        """Release the files and the folder; views handed out stay valid."""
        _open_shards.drop(self._number)
        self._folder.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, TypeError):  # half made, or the interpreter going down
            _open_shards.drop(self._number)

    def read_field(self, name: str, index: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read samples ``index`` (non-negative, in range) into ``out`` [len(index), *shape], native order.

        Raises DamagedStoreError, StoreReplacedError.
        """
        field = self.maps[name]
        if len(index) == 0:
            return
        rows = out.reshape(len(index), -1).view(np.uint8)  # rows of bytes: one memcpy a sample
        order, index = _ascending(index)
        if field.layout.chunk_samples == 1:
            self._read_samples(field, index, order, rows)
        else:
            self._read_chunks(field, index, order, rows)
        if field.swapped:
            out.byteswap(inplace=True)

    def view(self, name: str, start: int, stop: int) -> NDArray[Any] | None:
        """A read-only view of samples [start, stop) in the map, or None where none is possible."""
        field = self.maps[name]
        chunk = start // field.layout.chunk_samples
        if (
            field.chain.name != "raw"
            or field.swapped
            or not self._use_mmap
            or (stop - 1) // field.layout.chunk_samples != chunk
        ):
            return None
        try:
            body = field.chain.raw_body(self._payload(field, chunk), field.layout.chunk_nbytes)
        except CodecError as error:
            raise self._damaged(field, *divmod(chunk, field.layout.chunks_per_shard), error) from None
        samples = body.view(field.native_dtype).reshape(-1, *field.layout.sample_shape)
        first = chunk * field.layout.chunk_samples
        return samples[start - first : stop - first]

    def payload(self, name: str, chunk: int) -> NDArray[np.uint8]:
        """The encoded bytes of one chunk, checked. Raises DamagedStoreError."""
        return self._payload(self.maps[name], chunk)

    def source(self, name: str, shard: int) -> ByteSource:
        """The bytes of one shard file, its size checked; not kept open. Raises DamagedStoreError."""
        field = self.maps[name]
        try:
            return self._open(field, shard)
        except CodecError as error:
            raise self._damaged(field, shard, None, error) from None

    def _read_samples(
        self, field: FieldMap, index: NDArray[np.int64], order: NDArray[np.int64], rows: NDArray[np.uint8]
    ) -> None:
        """Samples that have a chunk each: straight into their rows. The hot path."""
        raw, nbytes, per_shard = (
            field.chain.name == "raw",
            field.layout.sample_nbytes,
            field.layout.shard_samples,
        )
        decode = field.chain.decode
        shard = self._shard(field, int(index[0]) // per_shard)
        for sample, position in zip(index.tolist(), order.tolist(), strict=True):
            number, entry = divmod(sample, per_shard)
            if number != shard.number:
                shard = self._shard(field, number)
            if not shard.admitted[entry]:
                self._admit(field, shard, entry)
            start = shard.starts[entry]
            if raw:
                rows[position] = shard.get(start, start + nbytes)
                continue
            try:
                decode(shard.get(start, shard.stops[entry]), rows[position])
            except CodecError as error:
                raise self._damaged(field, number, entry, error) from None

    def _read_chunks(
        self, field: FieldMap, index: NDArray[np.int64], order: NDArray[np.int64], rows: NDArray[np.uint8]
    ) -> None:
        """Samples that share chunks: each chunk decoded once, then gathered."""
        layout = field.layout
        chunks, within = np.divmod(index, layout.chunk_samples)
        for start, stop in _runs(chunks):
            places, inner = order[start:stop], within[start:stop]
            whole = _whole_rows(places, inner, layout.chunk_samples)
            chunk = int(chunks[start])
            payload = self._payload(field, chunk)
            try:
                if field.chain.name == "raw":
                    body = field.chain.raw_body(payload, layout.chunk_nbytes)
                    decoded = body.reshape(layout.chunk_samples, layout.sample_nbytes)
                elif whole is not None:
                    field.chain.decode(payload, rows[whole].reshape(-1))
                    continue
                else:
                    decoded = self._scratch_rows(layout.chunk_samples, layout.sample_nbytes)
                    field.chain.decode(payload, decoded.reshape(-1))
            except CodecError as error:
                raise self._damaged(field, *divmod(chunk, layout.chunks_per_shard), error) from None
            if whole is not None:
                rows[whole] = decoded
            elif len(inner) == 1:
                rows[places[0]] = decoded[inner[0]]
            else:
                rows[places] = decoded[inner]

    def _scratch_rows(self, samples: int, sample_nbytes: int) -> NDArray[np.uint8]:
        nbytes = samples * sample_nbytes
        buffer: NDArray[np.uint8] | None = getattr(self._scratch, "buffer", None)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._scratch.buffer = np.empty(nbytes, np.uint8)
        return buffer[:nbytes].reshape(samples, sample_nbytes)

    def _payload(self, field: FieldMap, chunk: int) -> NDArray[np.uint8]:
        number, entry = divmod(chunk, field.layout.chunks_per_shard)
        shard = self._shard(field, number)
        if not shard.admitted[entry]:
            self._admit(field, shard, entry)
        return shard.get(shard.starts[entry], shard.stops[entry])

    def _admit(self, field: FieldMap, shard: _Shard, entry: int) -> None:
        """Check a chunk that this process has not read yet, or that is to be checked always."""
        try:
            if shard.starts[entry] == MISSING:
                raise CodecError("the chunk is missing")
            payload = shard.get(shard.starts[entry], shard.stops[entry])
            if field.chain.name == "raw":
                field.chain.raw_body(payload, field.layout.chunk_nbytes)
            if self._checksums != "never":
                check_crc(payload)
        except CodecError as error:
            raise self._damaged(field, shard.number, entry, error) from None
        shard.admitted[entry] = self._checksums != "always"

    def _shard(self, field: FieldMap, number: int) -> _Shard:
        key = (self._number, field.name, number)
        shard = _open_shards.get(key)
        if shard is None:
            try:
                source = self._open(field, number)
                index = field.scan(source, number)
            except CodecError as error:
                raise self._damaged(field, number, None, error) from None
            shard = _Shard(number, source, index)
            _open_shards.put(key, shard)
        return shard

    def _open(self, field: FieldMap, number: int) -> ByteSource:
        name = field.file_name(number)
        try:
            descriptor = self._folder.open(name)
        except FileNotFoundError:
            raise CodecError(f"the file {name} is missing") from None
        nbytes = os.fstat(descriptor).st_size
        recorded = field.file_nbytes(number)
        if nbytes != recorded:
            os.close(descriptor)
            raise CodecError(f"the file {name} has {nbytes} bytes where {recorded} were written")
        if not self._use_mmap:
            return PreadFile(descriptor, nbytes)
        try:
            mapped = mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        return MappedFile(np.frombuffer(mapped, np.uint8))

    def _damaged(
        self, field: FieldMap, shard: int, entry: int | None, error: CodecError
    ) -> DamagedStoreError:
        """What to raise for a fault in a chunk, or in a whole shard."""
        layout = field.layout
        start = shard * layout.shard_samples
        where, stop = f"shard {shard}", start + layout.shard_samples
        if entry is not None:
            start += entry * layout.chunk_samples
            where, stop = f"chunk {shard * layout.chunks_per_shard + entry}", start + layout.chunk_samples
        return DamagedStoreError(
            f"{self._folder.path}: field {field.name!r}, {where} (samples "
            f"{start}-{min(stop, field.samples) - 1}) in {field.file_name(shard)}: {error}; "
            f"run 'parbake verify {self._folder.path} --repair RECIPE'"
        )


def open_beneath(folder: int, name: str) -> int:
    """Open a file for reading below an open directory, following no link. Raises CodecError."""
    parts = name.split("/")
    for depth in range(1, len(parts)):
        inner = "/".join(parts[:depth])
        if not stat.S_ISDIR(os.stat(inner, dir_fd=folder, follow_symlinks=False).st_mode):
            raise CodecError(f"{inner} is not a folder of the store")
    try:
        # non-blocking: a fifo would wait for somebody to write
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise CodecError(f"{name} is not a plain file ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CodecError(f"{name} is not a plain file")
    return descriptor


def normalised_index(index: Index, samples: int) -> NDArray[np.int64]:
    """Any index as non-negative int64 [k]: sequence, slice, range or bool mask; negatives from the end.

    Raises IndexError beyond the samples, TypeError for what is no index.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(samples), dtype=np.int64)
    array = np.asarray(index)
    if array.ndim != 1:
        raise TypeError(f"an index of {array.ndim} axes; give a sequence, slice, range or mask")
    if array.dtype == np.bool_ and array.size:
        if len(array) != samples:
            raise IndexError(f"a mask of {len(array)} for {samples} samples")
        return np.flatnonzero(array)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"an index of dtype {array.dtype}; sample numbers are integers")
    low, high = (int(array.min()), int(array.max())) if array.size else (0, -1)
    if low < -samples or high >= samples:  # before the cast, in which large unsigned numbers turn negative
        worst = high if high >= samples else low
        raise IndexError(f"sample {worst} of a store of {samples}")
    numbers = array.astype(np.int64)
    return np.where(numbers < 0, numbers + samples, numbers) if low < 0 else numbers


def _ascending(index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions and samples in ascending order of sample: readahead helps when the cache is cold."""
    if len(index) < 2 or (index[1:] >= index[:-1]).all():
        return np.arange(len(index)), index
    order = np.argsort(index, kind="stable")
    return order, index[order]


def _runs(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Half-open stretches of equal values."""
    edges = (np.flatnonzero(values[1:] != values[:-1]) + 1).tolist()
    return list(zip([0, *edges], [*edges, len(values)], strict=True))


def _whole_rows(places: NDArray[np.int64], within: NDArray[np.int64], chunk_samples: int) -> slice | None:
    """The rows of a whole chunk that is wanted in its own order, else None."""
    count = len(within)
    if count != chunk_samples or places[-1] - places[0] != count - 1:
        return None
    straight = (np.diff(within) == 1).all() and (np.diff(places) == 1).all()
    return slice(int(places[0]), int(places[0]) + count) if straight else None
