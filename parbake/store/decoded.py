"""The chunks of a field that were decoded last, for samples that share chunks."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from parbake.store.gather import gather
from parbake.store.threads import in_slices


class DecodedChunks:
    """Room for ``slots`` decoded chunks of one field, least recently used first out."""

    def __init__(self, chunks: int, slots: int, chunk_nbytes: int) -> None:
        self.slots = slots
        self._lock = threading.Lock()
        self._memory = np.empty((slots, chunk_nbytes), np.uint8)  # its pages are touched as they are used
        self._slot_of = np.zeros(chunks, np.int32)  # one more than the slot's number; 0: not decoded
        self._chunk_of = np.full(slots, -1, np.int64)
        self._used = np.zeros(slots, np.int64)
        self._reads = 0

    def read(
        self,
        chunks: NDArray[np.int64],
        offsets: NDArray[np.int64],
        rows: NDArray[np.uint8],
        places: NDArray[np.int64],
        decode: Callable[[int, NDArray[np.uint8]], None],
        threads: int,
    ) -> None:
        """Copy into rows ``places`` what lies ``offsets`` bytes into each chunk; decode those not here.

        ``chunks``: ascending, of at most ``slots`` different ones. ``decode(chunk, memory)``.
        """
        wanted = chunks[np.flatnonzero(np.diff(chunks, prepend=-1))]
        with self._lock:
            self._reads += 1
            slots = self._slot_of[wanted] - 1
            self._used[slots[slots >= 0]] = self._reads  # so that none of these gives way
            missing = wanted[slots < 0]
            if len(missing):
                free = np.argpartition(self._used, len(missing) - 1)[: len(missing)]
                self._empty(free)
                in_slices(lambda part: self._decode(missing[part], free[part], decode), len(missing), threads)
            slot = self._slot_of[chunks].astype(np.int64) - 1
            gather(self._memory.ctypes.data + slot * self._memory.shape[1] + offsets, rows, places)

    def _empty(self, slots: NDArray[np.int64]) -> None:
        before = self._chunk_of[slots]
        self._slot_of[before[before >= 0]] = 0
        self._chunk_of[slots] = -1
        self._used[slots] = 0

    def _decode(
        self,
        chunks: NDArray[np.int64],
        slots: NDArray[np.int64],
        decode: Callable[[int, NDArray[np.uint8]], None],
    ) -> None:
        for chunk, slot in zip(chunks.tolist(), slots.tolist(), strict=True):
            decode(chunk, self._memory[slot])
            # this order: a slot that a chunk is found in knows it, or would keep it when it gives way
            self._chunk_of[slot], self._used[slot], self._slot_of[chunk] = chunk, self._reads, slot + 1
