"""Other readers of the very Zarr files that parbake baked."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from adapters.base import Batch, Batches, Index, Rows

CACHE_NBYTES = 16 * 1024**2  # of tensorstore: enough for the indices of shards


class ZarrPython(Rows):
    """zarr-python: row by row, or by ``oindex`` where samples are small. ``pipeline``: its codec pipeline."""

    start_method = "spawn"  # its event loop and zarrs' threads do not outlive a fork

    def __init__(self, pipeline: str | None = None) -> None:
        self.pipeline = pipeline

    def connect(self) -> list[Any]:
        import zarr

        warnings.simplefilter("ignore")
        if self.pipeline is not None:
            zarr.config.set({"codec_pipeline.path": self.pipeline})
        group = zarr.open_group(self.folder, mode="r")
        return [group[name] for name in self.fields]

    def __getitem__(self, sample: int) -> list[np.ndarray]:
        return [array[sample] for array in self.handle]

    def batch(self, index: Index) -> Batch:
        if not self.is_small:
            return super().batch(index)
        order = np.argsort(index)
        back = np.argsort(order)
        return [array.oindex[index[order]][back] for array in self.handle]


class TensorStore(Batches):
    """tensorstore: all rows of a batch in one request, all fields at once, written into reused buffers."""

    start_method = "spawn"

    def connect(self) -> list[Any]:
        import tensorstore as ts

        cache = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_NBYTES}})
        files = {"driver": "file"}
        return [
            ts.open(
                {"driver": "zarr3", "kvstore": files | {"path": str(self.folder / name)}},
                read=True,
                context=cache,
            ).result()
            for name in self.fields
        ]

    def batch(self, index: Index) -> Batch:
        import tensorstore as ts

        out = self.buffers(len(index))
        writes = [ts.array(to).write(array[index]) for array, to in zip(self.handle, out, strict=True)]
        for write in writes:
            write.result()
        return out

    def __getitem__(self, index: list[int]) -> Batch:
        return [future.result() for future in [array[index].read() for array in self.handle]]
