"""What every adapter can do, and the two common ways of it: by rows, and by whole batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from shapes import Source

Batch = Mapping[str, Any] | Sequence[Any]  # arrays or tensors, each [batch, *shape]
Index = NDArray[np.int64]


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

    def buffers(self, batch: int) -> list[NDArray]:
        """Arrays [batch, *shape], the same at every call: fresh ones cost page faults."""
        if batch not in self._buffers:
            self._buffers[batch] = [np.zeros((batch, *form), dtype) for form, dtype in self.fields.values()]
        return self._buffers[batch]

    def __len__(self) -> int:
        return self.samples

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_buffers": {}}


class Rows(Opened):
    """Reads one sample at a time: ``self[i]`` is a dict or tuple of arrays."""

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
        from torch.utils.data import DataLoader

        method = self.start_method if workers else None
        return DataLoader(
            self, batch_size, shuffle, num_workers=workers, multiprocessing_context=method, pin_memory=False
        )


class Batches(Opened):
    """Reads a whole batch at a time: ``batch(index)`` is fresh arrays or tensors."""

    def batch(self, index: Index) -> Batch:
        raise NotImplementedError

    def __getitem__(self, index: list[int]) -> Batch:
        return self.batch(np.asarray(index))

    def loader(self, batch_size: int, workers: int, shuffle: bool) -> Iterable[Batch]:
        from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

        order = RandomSampler(self) if shuffle else SequentialSampler(self)
        batches = BatchSampler(order, batch_size, drop_last=False)
        method = self.start_method if workers else None
        return DataLoader(self, None, sampler=batches, num_workers=workers, multiprocessing_context=method)
