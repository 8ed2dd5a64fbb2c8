"""HDF5 files by descriptor: told by their signature, opened for a moment, chunks of a dataset as a table.

The HDF5 library parses metadata and nothing else. It reads through ``pread`` on a held descriptor: no path,
no lock, no position that others share, and no handle is left open for a fork to copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import NotAStoreError, ParbakeError, StoreNotFoundError, described
from parbake.store.chunkmap import MISSING, ChunkIndex
from parbake.store.codecs import CodecError
from parbake.store.opened import FileSpan, Held

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SIGNATURE_FIRST = 512  # at 0, or after a user block of 512 bytes times a power of two
_HEAP = b"GCOL\x01"
_HEAP_HEADER_NBYTES = 16  # of a global heap, and of each object in it
CHUNKS_MAX = 1 << 26  # of one dataset: a table of 1 GiB


@dataclass(frozen=True)
class ChunkTable:
    """Where the chunks of one dataset lie, in C order of its grid; MISSING: never written.

    ``grid``: number of chunks along each axis. ``index.mask``: None where no chunk leaves a filter out.
    """

    grid: tuple[int, ...]
    index: ChunkIndex


class OpenFile(Held):
    """A container that is one file."""

    def __init__(self, path: Path) -> None:
        """Raises StoreNotFoundError, NotAStoreError, OSError."""
        try:  # non-blocking: a fifo would wait for somebody to write
            super().__init__(path, os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreNotFoundError(f"{path}: nothing there; bake it first") from None
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self.close()
            raise NotAStoreError(f"{path}: not a plain file")

    def open(self, name: str) -> FileSpan:
        """The whole file, whatever the name. Raises ValueError when closed."""
        held = self.descriptor
        descriptor = fcntl.fcntl(held, fcntl.F_DUPFD_CLOEXEC, 0)
        return FileSpan(descriptor, 0, os.fstat(descriptor).st_size)


class _Positioned:
    """The file object that h5py reads through: a position of its own over ``pread``."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        ahead = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
        end = os.fstat(self._descriptor).st_size if whence == os.SEEK_END else 0
        self._position = ahead.get(whence, end) + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        count = os.preadv(self._descriptor, [buffer], self._position)
        self._position += count
        found = memoryview(buffer).cast("B")
        if found[:5] == _HEAP and not _is_sound_heap(found):
            found[:4] = bytes(4)  # the library refuses it: in a damaged one it may go round for ever
        return count

    def read(self, count: int) -> bytes:  # h5py asks for its presence
        found = os.pread(self._descriptor, count, self._position)
        self._position += len(found)
        return found


def _is_sound_heap(heap: memoryview) -> bool:
    """Whether the objects of a global heap collection follow one another to its end.

    Texts of varying length lie in there. ``heap``: all of it, or its beginning, when the library looks for
    its size. Source: HDF5 File Format Specification, III.E "Global Heap"; lengths of 8 bytes.
    """
    nbytes = int.from_bytes(heap[8:16], "little")
    at, end = _HEAP_HEADER_NBYTES, min(nbytes, len(heap))
    if nbytes > len(heap):  # it will be read again, whole
        return True
    while end - at >= _HEAP_HEADER_NBYTES:
        number, size = (
            int.from_bytes(heap[at : at + 2], "little"),
            int.from_bytes(heap[at + 8 : at + 16], "little"),
        )
        step = (
            size if number == 0 else _HEAP_HEADER_NBYTES + -(-size // 8) * 8
        )  # 0: the free space, itself included
        if not _HEAP_HEADER_NBYTES <= step <= end - at:
            return False
        at += step
    return True


@contextlib.contextmanager
def hdf5_file(files: OpenFile) -> Iterator[Any]:
    """The file as an ``h5py.File`` for reading, closed at the end.

    Whatever h5py raises within, of which there are many kinds where a file is damaged, becomes a CodecError.
    Raises ValueError when ``files`` is closed.
    """
    span = files.open("")
    try:
        with library_faults():
            import h5py

            with h5py.File(_Positioned(span.descriptor), "r", locking=False) as file:
                yield file
    finally:
        os.close(span.descriptor)


@contextlib.contextmanager
def library_faults() -> Iterator[None]:
    """Turns what the HDF5 library raises about a damaged file into a CodecError of one line."""
    try:
        yield
    except (CodecError, ParbakeError):
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, LookupError, ArithmeticError) as error:
        raise CodecError(f"the HDF5 library cannot read it ({described(error)})") from None


def chunk_table(dataset: Any) -> ChunkTable:
    """The chunks of an open, chunked ``h5py.Dataset``: one pass through its index, about 2 us a chunk.

    Offsets are those in the file, a user block included. The entries lie on the grid and no two of them
    share bytes; that they lie within the file is for ``ChunkIndex.check_within``. Raises CodecError.
    """
    shape, chunk_shape = dataset.shape, dataset.chunks
    grid = tuple(-(-length // chunk) for length, chunk in zip(shape, chunk_shape, strict=True))
    chunks = math.prod(grid)
    if chunks > CHUNKS_MAX:
        raise CodecError(f"{chunks:,} chunks, more than the {CHUNKS_MAX:,} that are mapped")
    found: list[Any] = []

    def take(info: Any) -> bool | None:  # anything but None ends the walk
        found.append(info)
        return True if len(found) > chunks else None

    with library_faults():
        dataset.id.chunk_iter(take)  # not get_chunk_info: each call of that walks the whole index
    if len(found) > chunks:
        raise CodecError(f"its index names more chunks than the {chunks:,} of its grid")
    index = ChunkIndex.empty(chunks)
    if not found:
        return ChunkTable(grid, index)
    count = len(found)
    corners = np.array([info.chunk_offset for info in found], np.int64).reshape(count, len(grid))
    places, rest = np.divmod(corners, np.array(chunk_shape, np.int64))
    if rest.any() or (places < 0).any() or (places >= np.array(grid)).any():
        raise CodecError("its index names a chunk that is not on the grid")
    numbers = np.ravel_multi_index(tuple(places.T), grid)
    offset = np.fromiter((info.byte_offset or MISSING for info in found), np.int64, count)
    nbytes = np.fromiter((info.size for info in found), np.int64, count)
    mask = np.fromiter((info.filter_mask for info in found), np.uint32, count)
    _check_apart(offset, nbytes)
    if len(np.unique(numbers)) != count:
        raise CodecError("its index names a chunk twice")
    index.offset[numbers], index.nbytes[numbers] = offset, nbytes
    if not mask.any():
        return ChunkTable(grid, index)
    masks = np.zeros(chunks, np.uint32)
    masks[numbers] = mask
    return ChunkTable(grid, ChunkIndex(index.offset, index.nbytes, mask=masks))


def _check_apart(offset: NDArray[np.int64], nbytes: NDArray[np.int64]) -> None:
    """Raises CodecError where chunks share bytes: a small file that decodes to a huge one, or a forgery."""
    order = np.argsort(offset)
    ends = offset[order] + nbytes[order]
    if (nbytes < 0).any() or (ends < offset[order]).any() or (ends[:-1] > offset[order][1:]).any():
        raise CodecError("its index names chunks that overlap")


def is_hdf5(path: Path) -> bool:
    """Whether a file has the signature of HDF5; false for anything that cannot be read."""
    try:
        files = OpenFile(path)
    except (OSError, NotAStoreError):
        return False
    try:
        at, end = 0, os.fstat(files.descriptor).st_size
        while at < end:
            if os.pread(files.descriptor, len(SIGNATURE), at) == SIGNATURE:
                return True
            at = max(2 * at, _SIGNATURE_FIRST)
        return False
    finally:
        files.close()
