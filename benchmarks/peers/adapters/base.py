"""What every adapter can do, and the two common ways of it: by rows, and by whole batches."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from shapes import Source

Batch = Mapping[str, Any] | Sequence[Any]  # arrays or tensors, each [batch, *shape]
Index = NDArray[np.int64]


SMALL_NBYTES = 65_536  # samples below are better read by a list of indices than one by one


class UnavailableError(Exception):
    """This reader has no such way of reading; the text says why."""


class Peer(Protocol):
    """A way to store samples and to read them in batches.

    ``random``: whether it reads in random order at all. ``streams``: whether a sequential epoch is read
    through ``loader``, not ``batch``. One without ``batch`` reads everything through ``loader``.
    """

    random: bool
    streams: bool

    def write(self, folder: Path, source: Source) -> None: ...
    def open(self, folder: Path, source: Source) -> None: ...
    def batch(self, index: Index) -> Batch: ...
    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]: ...


class Opened:
    """Opens lazily once per process, so that it can be sent to workers; a map-style dataset for torch."""

    random = True
    streams = False
    start_method = "fork"  # of workers, as the library asks for
    kept_after_fork = False  # whether workers may go on with what their parent opened

    def open(self, folder: Path, source: Source) -> None:
        self.folder = folder
        self._opened: tuple[int, Any] | None = None
        arrays = source.arrays()
        self.samples = len(next(iter(arrays.values())))
        self.fields = {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}
        self._buffers: dict[int, list[NDArray]] = {}
        _ = self.handle

    def connect(self) -> Any:
        """What ``handle`` gives: the library's own open dataset."""
        raise NotImplementedError

    @property
    def handle(self) -> Any:
        if self._opened is None or (self._opened[0] != os.getpid() and not self.kept_after_fork):
            self._opened = (os.getpid(), self.connect())
        return self._opened[1]

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        raise UnavailableError("it has no loader")

    @property
    def is_small(self) -> bool:
        return sum(math.prod(form) * dtype.itemsize for form, dtype in self.fields.values()) < SMALL_NBYTES

    def buffers(self, batch: int) -> list[NDArray]:
        """Arrays [batch, *shape], the same at every call: fresh ones cost page faults."""
        if batch not in self._buffers:
            self._buffers[batch] = [np.zeros((batch, *form), dtype) for form, dtype in self.fields.values()]
        return self._buffers[batch]

    def __len__(self) -> int:
        return self.samples

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_buffers": {}}


def gathered(arrays: Sequence[NDArray], index: Index, out: list[NDArray], by_list: bool) -> list[NDArray]:
    """Rows ``index`` of arrays, by one call where rows are small and by one copy a row where they are not."""
    for array, target in zip(arrays, out, strict=True):
        if by_list:
            np.take(array, index, axis=0, out=target, mode="clip")  # "raise" would go through another buffer
        else:
            for row, sample in enumerate(index.tolist()):
                target[row] = array[sample]
    return out


class Rows(Opened):
    """Reads one sample at a time: ``self[i]`` is a dict or tuple of arrays."""

    batched_if_small = True  # a collation of a thousand small samples costs more than reading them

    def __getitem__(self, sample: int) -> Any:
        raise NotImplementedError

    def batch(self, index: Index) -> Batch:
        out = self.buffers(len(index))
        for row, sample in enumerate(index.tolist()):
            values = self[sample]
            for target, value in zip(
                out, values.values() if isinstance(values, dict) else values, strict=True
            ):
                target[row] = value
        return out

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        if self.batched_if_small and self.is_small:
            return batch_loader(_Copies(self), batch_size, workers, shuffle, self.start_method)
        from torch.utils.data import DataLoader

        method = self.start_method if workers else None
        return DataLoader(self, batch_size, shuffle, num_workers=workers, multiprocessing_context=method)


class Batches(Opened):
    """Reads a whole batch at a time: ``batch(index)`` is fresh arrays or tensors."""

    def batch(self, index: Index) -> Batch:
        raise NotImplementedError

    def __getitem__(self, index: list[int]) -> Batch:
        return self.batch(np.asarray(index))

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        return batch_loader(self, batch_size, workers, shuffle, self.start_method)


@dataclass(frozen=True)
class _Copies:
    """A dataset of batches out of a peer that reuses its buffers: torch sends what it gets later."""

    peer: Opened

    def __getitem__(self, index: list[int]) -> Batch:
        return [np.array(array) for array in self.peer.batch(np.asarray(index))]

    def __len__(self) -> int:
        return len(self.peer)


def batch_loader(dataset: Any, batch_size: int, workers: int, shuffle: bool, method: str) -> Iterable[Batch]:
    """torch's loader over a dataset that is indexed by the samples of a whole batch."""
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

    order = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    sampler = BatchSampler(order, batch_size, drop_last=False)
    context = method if workers else None
    return DataLoader(dataset, None, sampler=sampler, num_workers=workers, multiprocessing_context=context)
