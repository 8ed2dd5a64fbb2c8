"""Reads samples through a chunk map: maps files lazily, checks, decodes into the caller's buffers."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
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
        return np.frombuffer(os.pread(self._descriptor, stop - start, start), np.uint8)

    def __del__(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True)
class _Shard:
    source: ByteSource
    index: ChunkIndex
    checked: NDArray[np.bool_]  # chunks whose CRC this process has seen to be right


class _OpenShards:
    """The shards that this process has open, least recently used first out."""

    def __init__(self) -> None:
        self._shards: OrderedDict[tuple[int, str, int], _Shard] = OrderedDict()
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()  # another thread may have held it at the fork

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
            for key in [key for key in self._shards if key[0] == reader]:
                del self._shards[key]


_open_shards = _OpenShards()
_reader_numbers = itertools.count()


class OpenFolder:
    """A store's folder, held open: its files stay reachable when another folder takes its path."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._descriptor = -1
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def descriptor(self) -> int:
        """Raises ValueError when closed."""
        if self._descriptor < 0:
            raise ValueError(f"{self.path}: the store is closed")
        return self._descriptor

    def open(self, name: str) -> int:
        """A descriptor of a plain file below, following no link. Raises FileNotFoundError, CodecError."""
        return open_beneath(self.descriptor, name)

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
        rows = out.reshape(len(index), -1).view(np.uint8)  # rows of bytes: one memcpy a sample
        for chunk, positions in _grouped(index // field.layout.chunk_samples):
            within = index[positions] - chunk * field.layout.chunk_samples
            self._read_chunk(field, chunk, within, positions, rows)
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
        with self._explained(field, chunk):
            body = field.chain.raw_body(self._payload(field, chunk), field.layout.chunk_nbytes)
        samples = body.view(field.native_dtype).reshape(-1, *field.layout.sample_shape)
        first = chunk * field.layout.chunk_samples
        return samples[start - first : stop - first]

    def payload(self, name: str, chunk: int) -> NDArray[np.uint8]:
        """The encoded bytes of one chunk, checked. Raises DamagedStoreError."""
        with self._explained(self.maps[name], chunk):
            return self._payload(self.maps[name], chunk)

    def source(self, name: str, shard: int) -> ByteSource:
        """The bytes of one shard file, its size checked; not kept open. Raises DamagedStoreError."""
        field = self.maps[name]
        with self._explained(field, shard * field.layout.chunks_per_shard, whole_shard=True):
            return self._open(field, shard)

    def _read_chunk(
        self,
        field: FieldMap,
        chunk: int,
        within: NDArray[np.int64],
        positions: NDArray[np.int64] | slice,
        rows: NDArray[np.uint8],
    ) -> None:
        layout = field.layout
        with self._explained(field, chunk):
            payload = self._payload(field, chunk)
            if field.chain.name == "raw":
                body = field.chain.raw_body(payload, layout.chunk_nbytes)
                decoded = body.reshape(layout.chunk_samples, layout.sample_nbytes)
            elif isinstance(positions, slice) and _is_whole(within, layout.chunk_samples):
                field.chain.decode(payload, rows[positions].reshape(-1))
                return
            else:
                decoded = self._scratch_rows(layout.chunk_samples, layout.sample_nbytes)
                field.chain.decode(payload, decoded.reshape(-1))
        if len(within) == 1:
            rows[positions] = decoded[within[0]]
        else:
            rows[positions] = decoded[within]

    def _scratch_rows(self, samples: int, sample_nbytes: int) -> NDArray[np.uint8]:
        nbytes = samples * sample_nbytes
        buffer: NDArray[np.uint8] | None = getattr(self._scratch, "buffer", None)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._scratch.buffer = np.empty(nbytes, np.uint8)
        return buffer[:nbytes].reshape(samples, sample_nbytes)

    def _payload(self, field: FieldMap, chunk: int) -> NDArray[np.uint8]:
        number, entry = divmod(chunk, field.layout.chunks_per_shard)
        shard = self._shard(field, number)
        offset = int(shard.index.offset[entry])
        if offset == MISSING:
            raise CodecError("the chunk is missing")
        payload = shard.source.get(offset, offset + int(shard.index.nbytes[entry]))
        if self._checksums == "always" or (self._checksums == "first" and not shard.checked[entry]):
            check_crc(payload)
            shard.checked[entry] = True
        return payload

    def _shard(self, field: FieldMap, number: int) -> _Shard:
        key = (self._number, field.name, number)
        shard = _open_shards.get(key)
        if shard is None:
            source = self._open(field, number)
            index = field.scan(source, number)
            shard = _Shard(source, index, np.zeros(len(index.offset), np.bool_))
            _open_shards.put(key, shard)
        return shard

    def _open(self, field: FieldMap, number: int) -> ByteSource:
        name = field.file_name(number)
        try:
            descriptor = self._folder.open(name)
        except FileNotFoundError:
            self._raise_if_replaced()
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

    def _raise_if_replaced(self) -> None:
        held = os.fstat(self._folder.descriptor)
        try:
            now = os.stat(self._folder.path)
        except FileNotFoundError:
            raise StoreReplacedError(
                f"{self._folder.path}: the store was removed while it was open"
            ) from None
        if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):
            raise StoreReplacedError(
                f"{self._folder.path}: the store was baked again while it was open; reopen it"
            )

    @contextlib.contextmanager
    def _explained(self, field: FieldMap, chunk: int, *, whole_shard: bool = False) -> Iterator[None]:
        try:
            yield
        except CodecError as error:
            shard, entry = divmod(chunk, field.layout.chunks_per_shard)
            start, stop = field.chunk_range(chunk)
            where = f"chunk {chunk}"
            if whole_shard:
                where, stop = f"shard {shard}", min(start + field.layout.shard_samples, field.samples)
            raise DamagedStoreError(
                f"{self._folder.path}: field {field.name!r}, {where} (samples {start}-{stop - 1}) in "
                f"{field.file_name(shard)}: {error}; run 'parbake verify {self._folder.path} --repair RECIPE'"
            ) from None


def open_beneath(folder: int, name: str) -> int:
    """Open a file for reading below an open directory, following no link. Raises CodecError."""
    parts = name.split("/")
    for depth in range(1, len(parts)):
        inner = "/".join(parts[:depth])
        if not stat.S_ISDIR(os.stat(inner, dir_fd=folder, follow_symlinks=False).st_mode):
            raise CodecError(f"{inner} is not a folder of the store")
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
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
    numbers = array.astype(np.int64)
    if numbers.size:
        low, high = int(numbers.min()), int(numbers.max())
        if low < -samples or high >= samples:
            worst = high if high >= samples else low
            raise IndexError(f"sample {worst} of a store of {samples}")
        if low < 0:
            numbers = np.where(numbers < 0, numbers + samples, numbers)
    return numbers


def _grouped(chunks: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64] | slice]]:
    """Each chunk once, ascending (readahead helps when the cache is cold), with its positions."""
    if len(chunks) == 0:
        return
    order = None
    ordered = chunks
    if len(chunks) > 1 and (chunks[1:] < chunks[:-1]).any():
        order = np.argsort(chunks, kind="stable")
        ordered = chunks[order]
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    starts = [0, *edges.tolist()]
    stops = [*starts[1:], len(chunks)]
    firsts = ordered[starts].tolist()
    places = None if order is None else order.tolist()
    for chunk, start, stop in zip(firsts, starts, stops, strict=True):
        if order is None or places is None:
            yield chunk, slice(start, stop)
        elif stop - start == 1:
            yield chunk, slice(places[start], places[start] + 1)
        else:
            yield chunk, order[start:stop]


def _is_whole(within: NDArray[np.int64], chunk_samples: int) -> bool:
    return len(within) == chunk_samples and (
        chunk_samples == 1 or bool((within == np.arange(chunk_samples)).all())
    )
