"""The file object that the HDF5 library writes a store through, chunks in large blocks."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from parbake.store.durable import Writeback, write_parts
from parbake.store.shard import ALIGNMENT

_BLOCK_NBYTES = 4 * 1024**2
_BLOCKS_AHEAD = 4
_PARTS_MAX = 1000  # of one call; systems take 1,024
_NOWHERE = -2 * ALIGNMENT  # follows nothing


class BlockFile:
    """The file object that h5py writes through, by position. Chunks go out many at a time, in a thread.

    ``instead``: what takes the place of bytes of equal number that HDF5 is given, so that no chunk is copied.
    """

    def __init__(self, descriptor: int, writeback: Writeback) -> None:
        self._descriptor = descriptor
        self._writeback = writeback
        self._writer = ThreadPoolExecutor(1, "parbake-hdf5")
        self._writing: deque[Future[None]] = deque()
        self._position = 0
        self._parts: list[memoryview] = []  # wait to be written from ``_start`` on
        self._start, self._filled = _NOWHERE, 0
        self._shown_at: int | None = None
        self._payload: tuple[memoryview, ...] = ()
        self.fault: OSError | None = None

    def close(self) -> None:
        """End the thread; what was not flushed is not written, nor what HDF5 writes after a fault."""
        self._writer.shutdown()
        self._descriptor = -1  # its number may be another file's by then

    def instead(self, shown: memoryview, payload: tuple[memoryview, ...]) -> None:
        """Write ``payload`` where HDF5 writes ``shown``, the very memory: what it writes before is its own.

        (To find a place in a large index it may make room in its cache.) ``payload`` must stay as it is until
        it is written, which is before anything is read.
        """
        assert sum(map(len, payload)) == len(shown)
        self._shown_at, self._payload = _address(shown), payload

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            self.flush()
            offset += os.fstat(self._descriptor).st_size
        self._position = offset + (self._position if whence == os.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        self.flush()
        count = os.preadv(self._descriptor, [buffer], self._position)
        self._position += count
        return count

    def read(self, count: int) -> bytes:
        self.flush()
        found = os.pread(self._descriptor, count, self._position)
        self._position += len(found)
        return found

    def write(self, data: memoryview) -> int:
        nbytes = len(data)
        if self._shown_at is not None and _address(data) == self._shown_at:
            payload, self._shown_at, self._payload = self._payload, None, ()
            assert sum(map(len, payload)) == nbytes, "HDF5 writes a chunk in one piece"
            self._append(payload)
        else:
            self.flush()
            self._start = _NOWHERE
            self._write([memoryview(data)], self._position)
        self._position += nbytes
        return nbytes

    def _append(self, payload: tuple[memoryview, ...]) -> None:
        gap = self._position - (self._start + self._filled)
        if 0 <= gap < ALIGNMENT:  # room before a chunk that was aligned just now: nothing lies there yet
            payload = (memoryview(bytes(gap)), *payload)
        else:
            self._hand_on()
            self._start = self._position
        for part in payload:
            while len(part):
                room = _BLOCK_NBYTES - (self._start + self._filled) % _BLOCK_NBYTES
                self._parts.append(part[:room])
                self._filled += len(self._parts[-1])
                part = part[room:]
                if len(self._parts) == _PARTS_MAX or not (self._start + self._filled) % _BLOCK_NBYTES:
                    self._hand_on()

    def flush(self) -> None:
        """Write all, and wait until that is done. Raises OSError."""
        self._hand_on()
        while self._writing:
            self._writing.popleft().result()

    def _hand_on(self) -> None:
        """Have what is gathered written while more is; a few blocks wait at most."""
        parts, self._parts = self._parts, []
        start, self._start, self._filled = self._start, self._start + self._filled, 0
        if parts:
            self._writing.append(self._writer.submit(self._write, parts, start))
        while len(self._writing) > _BLOCKS_AHEAD:
            self._writing.popleft().result()

    def _write(self, parts: list[memoryview], start: int) -> None:
        try:
            self._writeback.wrote(write_parts(self._descriptor, parts, start))
        except OSError as error:  # such as a full disk; h5py would tell of something else
            self.fault = self.fault or error
            raise

    def truncate(self, size: int | None = None) -> int:
        self.flush()
        end = self._position if size is None else size
        os.ftruncate(self._descriptor, end)
        return end


def _address(data: memoryview) -> int:
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address
