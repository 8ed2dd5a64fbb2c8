"""parbake: reading into buffers, the plain DataLoader, and its own loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shapes import Source

import parbake
from adapters.base import Batch, Index, Opened, UnavailableError


@dataclass(frozen=True)
class Copied:
    """A producer of what lies in the source."""

    source: Source
    batch_size: int
    name = "copied"
    version = 1

    def schema(self) -> Mapping[str, parbake.Field]:
        return {
            name: parbake.Field(
                array.shape[1:], str(array.dtype), tuple(f"axis_{i}" for i in range(array.ndim - 1))
            )
            for name, array in self.source.arrays().items()
        }

    def invalidation_keys(self) -> Mapping[str, object]:
        return {}

    def __len__(self) -> int:
        return len(self.source.checksums())

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: array[start:stop] for name, array in self.source.arrays().items()}


class Read(Opened):
    """``store.read(index, out=...)`` into reused buffers."""

    kept_after_fork = True

    def __init__(self, codec: str, threads: int = 1) -> None:
        self.codec = codec
        self.threads = threads

    def write(self, folder: Path, source: Source) -> None:
        folder.rmdir()
        parbake.bake(Copied(source, source.batch), folder, codec=self.codec, progress=False)

    def connect(self) -> Any:
        return parbake.open_store(self.folder)

    def batch(self, index: Index) -> Batch:
        out = dict(zip(self.fields, self.buffers(len(index)), strict=True))
        return self.handle.read(index, out=out, threads=self.threads)


class Plain(Opened):
    """``StoreDataset`` in a plain torch DataLoader with default collation."""

    kept_after_fork = True

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def connect(self) -> Any:
        return parbake.StoreDataset(self.folder, threads=self.threads)

    def batch(self, index: Index) -> Batch:
        from torch.utils.data import default_collate

        return default_collate(self.handle.__getitems__(index))

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        from torch.utils.data import DataLoader

        return DataLoader(self.handle, batch_size, shuffle, num_workers=workers)


class Loader(Opened):
    """``StoreDataset.loader``: worker processes that fill shared slots."""

    batch = None

    def connect(self) -> Any:
        return parbake.StoreDataset(self.folder)

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        if not workers:
            raise UnavailableError("it is the way with worker processes")
        return self.handle.loader(batch_size, shuffle, num_workers=workers)


class Threads(Opened):
    """``BatchLoader``: as many threads as others have workers, one where they have none."""

    batch = None

    def connect(self) -> Any:
        return parbake.StoreDataset(self.folder)

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        return parbake.BatchLoader(self.handle, batch_size, shuffle, threads=max(1, workers))
