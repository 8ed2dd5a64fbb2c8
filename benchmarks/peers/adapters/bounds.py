"""What no reader can beat: copying rows that are in RAM, NumPy's indexing, the decoder alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from adapters.base import Batch, Index, Opened, gathered


class CopyLimit(Opened):
    """Copies rows out of one large array per field in RAM into reused buffers."""

    def connect(self) -> list[np.ndarray]:
        return [np.load(self.folder / f"{name}.npy") for name in self.fields]

    def batch(self, index: Index) -> Batch:
        return gathered(self.handle, index, self.buffers(len(index)), self.is_small)


class Fancy(Opened):
    """NumPy's fancy indexing into one memory map per field; a fresh batch each time."""

    def connect(self) -> list[np.ndarray]:
        return [np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in self.fields]

    def batch(self, index: Index) -> Batch:
        return [array[index] for array in self.handle]


class Decoder(Opened):
    """numcodecs' Blosc on the chunks of an lz4 store, already in RAM, into reused buffers.

    Samples of one chunk that stand together in a batch are decoded at once, as any reader would.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def connect(self) -> list[tuple[int, list[np.ndarray]]]:
        """For each field the samples in a chunk, and the chunks without their checksums."""
        import parbake

        if self.threads > 1:
            self._pool = ThreadPoolExecutor(self.threads)
        store = parbake.open_store(self.folder)
        sizes = {name: store.fields[name].layout.chunk_samples for name in self.fields}
        return [
            (size, [store.reader.payload(name, i)[:-4].copy() for i in range(-(-store.samples // size))])
            for name, size in sizes.items()
        ]

    def batch(self, index: Index) -> Batch:
        out = self.buffers(len(index))
        parts = np.array_split(np.argsort(index, kind="stable"), self.threads)
        if self.threads == 1:
            self._decode(index, parts[0], out)
        else:
            list(self._pool.map(lambda rows: self._decode(index, rows, out), parts))
        return out

    def _decode(self, index: Index, rows: Index, out: list[np.ndarray]) -> None:
        from numcodecs.blosc import decompress

        for (size, chunks), target in zip(self.handle, out, strict=True):
            scratch, decoded = np.empty((size, *target.shape[1:]), target.dtype), -1
            for row, sample in zip(rows.tolist(), index[rows].tolist(), strict=True):
                if size == 1:
                    decompress(chunks[sample], target[row])
                    continue
                if decoded != sample // size:
                    decoded = sample // size
                    decompress(chunks[decoded], scratch)
                target[row] = scratch[sample % size]

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("bounds are read in one process")
