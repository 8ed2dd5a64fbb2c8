"""Which samples are read, and which part of each. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Index: TypeAlias = Sequence[int] | slice | range | NDArray[Any]


@dataclass(frozen=True)
class Window:
    """Elements [start, start + length) along ``axis`` of samples; ``starts``: int64, one a sample."""

    axis: int
    length: int
    starts: NDArray[np.int64]

    def check(self, field: str, sample_shape: tuple[int, ...], samples: int) -> None:
        """Raises IndexError for parts that do not lie within samples, as of a slice NumPy would not."""
        if not 0 <= self.axis < len(sample_shape):
            raise IndexError(f"field {field!r}: a window along axis {self.axis} of {len(sample_shape)}")
        if self.starts.shape != (samples,):
            raise IndexError(f"field {field!r}: {self.starts.shape} windows for {samples} samples")
        last = sample_shape[self.axis] - self.length
        if samples and not 0 <= int(self.starts.min()) <= int(self.starts.max()) <= last:
            raise IndexError(
                f"field {field!r}: windows of {self.length} elements begin at "
                f"{self.starts.min()} to {self.starts.max()}; the last of {sample_shape[self.axis]} at {last}"
            )

    def shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a sample's part."""
        return (*sample_shape[: self.axis], self.length, *sample_shape[self.axis + 1 :])

    def part(self, rows: slice | NDArray[np.int64]) -> Window:
        """Of some of the samples."""
        return Window(self.axis, self.length, self.starts[rows])

    def of(self, samples: NDArray[Any]) -> NDArray[Any]:
        """The parts of whole ``samples`` [k, *shape]."""
        out = np.empty((len(samples), *self.shape(samples.shape[1:])), samples.dtype)
        self.cut(samples, out)
        return out

    def cut(self, samples: Iterable[NDArray[Any]], out: NDArray[Any]) -> None:
        """Copy the parts of whole ``samples`` into ``out`` [k, *part]."""
        before = (slice(None),) * self.axis
        for sample, place, start in zip(samples, out, self.starts.tolist(), strict=True):
            place[...] = sample[(*before, slice(start, start + self.length))]


def normalised_index(index: Index, samples: int) -> NDArray[np.int64]:
    """Any index as non-negative int64 [k]: sequence, slice, range or bool mask; negatives from the end.

    Raises IndexError beyond the samples, TypeError for what is no index.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(samples), dtype=np.int64)
    array = np.asarray(index)
    if array.ndim != 1:
        raise TypeError(f"an index of {array.ndim} axes; give a sequence, slice, range or mask")
    if array.dtype == np.bool_ and array.size:
        if len(array) != samples:
            raise IndexError(f"a mask of {len(array)} for {samples} samples")
        return np.flatnonzero(array)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"an index of dtype {array.dtype}; sample numbers are integers")
    if array.size == 1:
        low = high = int(array[0])
    else:
        low, high = (int(array.min()), int(array.max())) if array.size else (0, -1)
    if low < -samples or high >= samples:  # before the cast, in which large unsigned numbers turn negative
        worst = high if high >= samples else low
        raise IndexError(f"sample {worst} of a store of {samples}")
    numbers = array.astype(np.int64)
    return np.where(numbers < 0, numbers + samples, numbers) if low < 0 else numbers


def ascending(index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions and samples in ascending order of sample: readahead helps when the cache is cold."""
    if len(index) < 2 or (index[1:] >= index[:-1]).all():
        return np.arange(len(index)), index
    order = np.argsort(index, kind="stable")
    return order, index[order]


def adjoining(numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Half-open stretches of places in ascending ``numbers`` at which each is one more than the last."""
    if not len(numbers):
        return []
    edges = (np.flatnonzero(np.diff(numbers) != 1) + 1).tolist()
    return list(itertools.pairwise([0, *edges, len(numbers)]))
