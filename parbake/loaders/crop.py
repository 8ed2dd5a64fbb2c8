"""Which part of each sample a dataset reads: a fixed or a random window along one dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parbake.errors import RecipeError
from parbake.loaders.order import checked_integer, window_starts
from parbake.store.index import Window
from parbake.store.samples import Samples


@dataclass(frozen=True)
class Crop:
    """``length`` elements of the ``size`` along a dimension, from ``start`` on; None: anywhere.

    ``axes``: of the dimension in each field that has it, the sample axis not counted.
    """

    axes: Mapping[str, int]
    size: int
    length: int
    start: int | None

    def windows(self, samples: NDArray[np.int64], draw: int) -> dict[str, Window]:
        """The window of each of ``samples``, the same for all fields; where it begins depends on ``draw``."""
        if self.start is None:
            starts = window_starts(samples, self.size - self.length + 1, draw)
        else:
            starts = np.full(len(samples), self.start, np.int64)
        return {name: Window(axis, self.length, starts) for name, axis in self.axes.items()}

    def shape(self, field: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a sample's part, from that of the whole."""
        axis = self.axes.get(field)
        return shape if axis is None else (*shape[:axis], self.length, *shape[axis + 1 :])


def crop_of(store: Samples, fields: Sequence[str], crop: Mapping[str, int | slice] | None) -> Crop:
    """What ``crop={dimension: length or slice}`` means for ``fields``. Raises RecipeError."""
    if crop is None:
        return Crop({}, 0, 0, 0)
    if not isinstance(crop, Mapping) or len(crop) != 1:
        raise RecipeError(
            f"crop={crop!r}: give one dimension, as {{'time': 8192}} or {{'time': slice(0, 8192)}}"
        )
    [(dim, part)] = crop.items()
    axes = {name: store.fields[name].dims.index(dim) for name in fields if dim in store.fields[name].dims}
    sizes = {store.fields[name].shape[axis] for name, axis in axes.items()}
    if not sizes:
        dims = sorted({dim for name in fields for dim in store.fields[name].dims})
        raise RecipeError(
            f"crop={crop!r}: no field has a dimension {dim!r}; there are {', '.join(dims) or 'none'}"
        )
    if len(sizes) > 1:
        raise RecipeError(f"crop={crop!r}: fields have {dim!r} of {sorted(sizes)} elements; choose others")
    [size] = sizes
    if not isinstance(part, slice):
        return Crop(axes, size, checked_integer(f"crop: length of {dim!r}", part, 1, size), None)
    start, stop, step = part.indices(size)
    if step != 1 or stop <= start:
        raise RecipeError(
            f"crop={crop!r}: no window of {size} elements; the step is 1, the end beyond the start"
        )
    return Crop(axes, size, stop - start, start)
