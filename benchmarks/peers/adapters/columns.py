"""Libraries that store columns: tensordict, Hugging Face datasets, Lance."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shapes import Source

from adapters.base import Batch, Batches, Index


class TensorDicts(Batches):
    """tensordict's memory-mapped TensorDict."""

    kept_after_fork = True

    def write(self, folder: Path, source: Source) -> None:
        import torch
        from tensordict import TensorDict

        arrays = source.arrays()
        empty = TensorDict(
            {
                name: torch.zeros((), dtype=getattr(torch, str(array.dtype))).expand(array.shape)
                for name, array in arrays.items()
            },
            [len(next(iter(arrays.values())))],
        )
        stored = empty.memmap_like(folder)
        for start, block in source.blocks():
            for name, array in block.items():
                stored[name][start : start + len(array)] = torch.from_numpy(np.array(array))

    def connect(self) -> Any:
        from tensordict import TensorDict

        return TensorDict.load_memmap(self.folder)

    def batch(self, index: Index) -> Batch:
        import torch

        return dict(self.handle[torch.from_numpy(index)].items())

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        from torch.utils.data import DataLoader

        return DataLoader(self.handle, batch_size, shuffle, num_workers=workers, collate_fn=_as_dict)


def _as_dict(batch: Any) -> Batch:
    return dict(batch.items())


class HuggingFace(Batches):
    """datasets, columns of fixed-size lists; ``form``: the format that batches have, numpy or torch."""

    kept_after_fork = True

    def __init__(self, form: str) -> None:
        self.form = form

    def write(self, folder: Path, source: Source) -> None:
        import datasets

        features = datasets.Features(
            {
                name: datasets.List(datasets.Value(str(array.dtype)), length=math.prod(array.shape[1:]))
                for name, array in source.arrays().items()
            }
        )
        with datasets.arrow_writer.ArrowWriter(
            path=str(folder / "data.arrow"), features=features, writer_batch_size=source.batch
        ) as writer:
            for _, block in source.blocks():
                writer.write_table(_table(block))
            writer.finalize()

    def connect(self) -> Any:
        import datasets

        [dtype] = {str(dtype) for _, dtype in self.fields.values()}
        known = getattr(importlib.import_module(self.form), dtype)  # left to itself it makes int64 of int16
        stored = datasets.Dataset.from_file(str(self.folder / "data.arrow"))
        return stored.with_format(self.form, dtype=known)

    def batch(self, index: Index) -> Batch:
        found = self.handle[index]
        return [found[name].reshape(len(index), *form) for name, (form, _) in self.fields.items()]

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        from torch.utils.data import DataLoader

        return DataLoader(self.handle, batch_size, shuffle, num_workers=workers)


class Lance(Batches):
    """Lance, fixed-size lists; ``take`` for random batches, scanned batches for sequential ones."""

    start_method = "spawn"  # as lance.torch.data.get_safe_loader: its threads do not outlive a fork
    streams = True

    def write(self, folder: Path, source: Source) -> None:
        import lance
        import pyarrow as pa

        def batches() -> Iterator[Any]:
            for _, block in source.blocks():
                yield from _table(block).to_batches()

        schema = _table(next(iter(source.blocks()))[1]).schema
        lance.write_dataset(
            pa.RecordBatchReader.from_batches(schema, batches()), str(folder), mode="overwrite"
        )

    def connect(self) -> Any:
        import lance

        return lance.dataset(str(self.folder))

    def batch(self, index: Index) -> Batch:
        order = np.argsort(index)  # ascending reads are twice as fast, the copy included
        back = np.argsort(order)
        return [array[back] for array in self.arrays(self.handle.take(index[order]))]

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        if workers or shuffle:
            return super().loader(batch_size, workers, shuffle)
        return _Scan(self, batch_size)

    def arrays(self, found: Any) -> list[np.ndarray]:
        """The columns of a table or record batch as arrays, without a copy where they lie in one piece."""
        columns = [found.column(name) for name in self.fields]
        whole = [c.combine_chunks() if hasattr(c, "combine_chunks") else c for c in columns]
        forms = [form for form, _ in self.fields.values()]
        return [c.flatten().to_numpy().reshape(-1, *form) for c, form in zip(whole, forms, strict=True)]


@dataclass(frozen=True)
class _Scan:
    """All batches of a Lance dataset in order."""

    peer: Lance
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        return map(self.peer.arrays, self.peer.handle.to_batches(batch_size=self.batch_size))


def _table(block: dict[str, np.ndarray]) -> Any:
    """A batch of samples as a pyarrow table of fixed-size lists."""
    import pyarrow as pa

    return pa.table(
        {
            name: pa.FixedSizeListArray.from_arrays(
                pa.array(np.ascontiguousarray(array).reshape(-1)), math.prod(array.shape[1:])
            )
            for name, array in block.items()
        }
    )
