"""Open folders and files of a store: by descriptor, through maps or ``pread``, bounded in number."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.errors import StoreReplacedError
from parbake.store.chunkmap import ChunkIndex
from parbake.store.codecs import CodecError

_NO_FAULT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF}  # of the file that is to be opened
OPEN_FILES_MAX = 256  # in one process, over all stores; each costs a descriptor and a map


@dataclass(frozen=True)
class FileSpan:
    """An open file and the bytes of it that are one file of a container; who asked closes the descriptor."""

    descriptor: int
    start: int
    nbytes: int


class Files(Protocol):
    """The files of a container, by name: in a folder, in a zip, or one alone."""

    path: Path

    def open(self, name: str) -> FileSpan:
        """Raises FileNotFoundError, CodecError, StoreReplacedError; ValueError when closed."""

    def close(self) -> None: ...


class Folder(Files, Protocol):
    """Files whose names can be listed."""

    def names(self, folder: str) -> list[str]:
        """Of files and folders directly in ``folder`` ("": the root). Raises as ``open``."""


def read_file(files: Files, name: str, nbytes_max: int) -> bytes:
    """A whole small file. Raises FileNotFoundError, CodecError."""
    span = files.open(name)
    try:
        if span.nbytes > nbytes_max:
            raise CodecError(f"{name} has {span.nbytes:,} bytes where at most {nbytes_max:,} are expected")
        content = bytearray()
        while len(content) < span.nbytes:
            part = os.pread(span.descriptor, span.nbytes - len(content), span.start + len(content))
            if not part:
                raise CodecError(f"{name} was cut while it was read")
            content += part
        return bytes(content)
    finally:
        os.close(span.descriptor)


class MappedFile:
    """A file's bytes through a memory map. ``address``: of its first byte."""

    def __init__(self, span: FileSpan) -> None:
        skipped = span.start % mmap.ALLOCATIONGRANULARITY
        self._map = mmap.mmap(
            span.descriptor, skipped + span.nbytes, access=mmap.ACCESS_READ, offset=span.start - skipped
        )
        self._skipped = skipped
        self.data: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)[skipped:]
        self.address: int = self.data.ctypes.data

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def get(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.data[start:stop]

    def will_need(self, start: int, stop: int) -> None:
        """Ask the kernel to begin reading bytes [start, stop)."""
        start, stop = start + self._skipped, stop + self._skipped
        first = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, first, stop - first)


class PreadFile:
    """A file's bytes through ``pread``, where a mapped file may vanish. Closes with its last reference."""

    def __init__(self, span: FileSpan) -> None:
        self._descriptor = span.descriptor
        self._start = span.start
        self.nbytes = span.nbytes

    def get(self, start: int, stop: int) -> NDArray[np.uint8]:
        found = os.pread(self._descriptor, stop - start, self._start + start)
        if len(found) != stop - start:
            raise CodecError(f"the file was cut while it was open: {len(found)} bytes of {stop - start} left")
        return np.frombuffer(found, np.uint8)

    def will_need(self, start: int, stop: int) -> None:
        """Ask the kernel to begin reading bytes [start, stop)."""
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self._descriptor, self._start + start, stop - start, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        os.close(self._descriptor)


class AbsentFile:
    """In the place of a file that is not there, where that stands for fill values: no chunk lies in it."""

    nbytes = 0

    def get(self, start: int, stop: int) -> NDArray[np.uint8]:
        raise CodecError("the file is not there")

    def will_need(self, start: int, stop: int) -> None:
        return


File: TypeAlias = MappedFile | PreadFile | AbsentFile


class Shard:
    """One open shard. Its index is kept as lists: the hot path takes single numbers out of it."""

    __slots__ = ("addresses", "admitted", "crcs", "file", "is_open", "masks", "number", "starts", "stops")

    def __init__(self, number: int, file: File, index: ChunkIndex, addresses: ChunkAddresses) -> None:
        self.number = number
        self.file = file
        self.crcs = index.crc32c
        self.masks = index.mask
        self.starts: list[int] = index.offset.tolist()
        self.stops: list[int] = (index.offset + index.nbytes).tolist()
        self.admitted = bytearray(len(self.starts))  # chunks that this process has found to be right
        self.addresses = addresses
        self.is_open = False  # among the open ones


class OpenShards:
    """The shards that this process has open, least recently used first out."""

    def __init__(self) -> None:
        self._shards: OrderedDict[tuple[int, int], Shard] = OrderedDict()
        self._renew_lock()
        # a fork waits until no other thread is between closing a file and forgetting its addresses
        os.register_at_fork(
            before=lambda: self.lock.acquire(),
            after_in_parent=lambda: self.lock.release(),
            after_in_child=self._renew_lock,
        )

    def _renew_lock(self) -> None:
        # new in a forked child, in which it is held. Reentrant: the garbage collector may end
        # another reader, which drops its shards, in the thread that holds it
        self.lock = threading.RLock()

    def get(self, key: tuple[int, int]) -> Shard | None:
        with self.lock:
            shard = self._shards.get(key)
            if shard is not None:
                self._shards.move_to_end(key)
            return shard

    def put(self, key: tuple[int, int], shard: Shard) -> Shard:
        """The shard that is open under ``key`` now: another thread may have been faster."""
        with self.lock:
            shard = self._shards.setdefault(key, shard)
            shard.is_open = True
            while len(self._shards) > OPEN_FILES_MAX:
                self._end(self._shards.popitem(last=False)[1])
            return shard

    def drop(self, reader: int) -> None:
        with self.lock:
            for key in list(self._shards):
                if key[0] == reader:
                    self._end(self._shards.pop(key))

    @staticmethod
    def _end(shard: Shard) -> None:
        shard.is_open = False
        shard.addresses.forget(shard)


open_shards = OpenShards()


class ChunkAddresses:
    """Where in memory the checked chunks of one field's mapped shards lie; 0: not known.

    Only of open shards, which are held as long as their addresses are known: no address outlives its map.
    """

    def __init__(self, chunks: int, chunks_per_shard: int) -> None:
        self._chunks, self._chunks_per_shard = chunks, chunks_per_shard
        self._held: dict[int, Shard] = {}

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        return np.zeros(self._chunks, np.int64)  # its pages are touched as they are used

    def lookup(self, chunks: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[Shard, ...]]:
        """The addresses of ``chunks``, and what must be kept for as long as they are used."""
        with open_shards.lock:
            return self._table[chunks], tuple(self._held.values())

    def put(self, chunk: int, shard: Shard, address: int) -> None:
        """Note where a chunk of ``shard`` lies, if that is still open."""
        with open_shards.lock:
            if shard.is_open:
                self._held[shard.number] = shard
                self._table[chunk] = address

    def forget(self, shard: Shard) -> None:
        """Of a shard that is no longer open; the lock of the open ones is held."""
        if shard.number in self._held:
            first = shard.number * self._chunks_per_shard
            self._table[first : first + self._chunks_per_shard] = 0
            del self._held[shard.number]


class Held:
    """A container, held open by descriptor: it stays readable when another takes its path."""

    def __init__(self, path: Path, flags: int) -> None:
        """Raises OSError."""
        self._descriptor = -1
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        with contextlib.suppress(OSError):  # file systems without locks; says "being read" to who clears
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    @property
    def descriptor(self) -> int:
        """Raises ValueError when closed."""
        if self._descriptor < 0:
            raise ValueError(f"{self.path}: the store is closed")
        return self._descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError, TypeError):  # the interpreter may be going down
            self.close()


class OpenFolder(Held):
    """A store's folder."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        super().__init__(path, os.O_DIRECTORY)

    def open(self, name: str) -> FileSpan:
        """A plain file below, following no link.

        Raises FileNotFoundError, CodecError, StoreReplacedError; ValueError when closed.
        """
        try:
            descriptor = open_beneath(self.descriptor, name)
            return FileSpan(descriptor, 0, os.fstat(descriptor).st_size)
        except (OSError, CodecError) as error:
            descriptor = self.descriptor  # raises, where another thread closed it meanwhile
            if isinstance(error, FileNotFoundError):
                self._raise_if_replaced(descriptor)
            raise

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder below ("": this one), following no link, in order.

        Raises FileNotFoundError, CodecError; ValueError when closed.
        """
        descriptor = open_beneath(self.descriptor, folder or ".", folder=True)
        try:
            return sorted(os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def _raise_if_replaced(self, descriptor: int) -> None:
        held = os.fstat(descriptor)
        try:
            now = self.path.stat()
        except FileNotFoundError:
            raise StoreReplacedError(f"{self.path}: the store was removed while it was open") from None
        if (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino):
            raise StoreReplacedError(f"{self.path}: the store was baked again while it was open; reopen it")


def open_beneath(root: int, name: str, *, folder: bool = False) -> int:
    """Open a file, or a folder, for reading below an open directory, following no link.

    Raises CodecError, OSError.
    """
    parts = name.split("/")
    for depth in range(1, len(parts)):
        inner = "/".join(parts[:depth])
        if not stat.S_ISDIR(os.stat(inner, dir_fd=root, follow_symlinks=False).st_mode):
            raise CodecError(f"{inner} is not a folder of the store")
    wanted, is_wanted = ("folder", stat.S_ISDIR) if folder else ("plain file", stat.S_ISREG)
    try:
        # non-blocking: a fifo would wait for somebody to write
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=root)
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError) or error.errno in _NO_FAULT:
            raise
        raise CodecError(f"{name} is not a {wanted} ({error.strerror})") from None
    if not is_wanted(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CodecError(f"{name} is not a {wanted}")
    return descriptor
