"""Stores as xarray sees them: lazy datasets whose arrays are read through the store's own reader."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from parbake.store.index import Window
from parbake.store.layout import SAMPLE_DIM

if TYPE_CHECKING:
    from parbake.store.document import StoredField
    from parbake.store.store import Store

# of whole samples, read at once where much less of them is wanted
_BATCH_NBYTES = 32 * 1024**2

_OURS = "parbake_"
_TOLD = ("parbake_producer", "parbake_keys", "parbake_digest")
_OWN = ("coordinates", "statistics")

# What xarray asks for along one axis: of blocks an integer, a slice or an array; of points slices and
# arrays that are broadcast together.
AxisIndex: TypeAlias = int | slice | NDArray[np.int64]


def dataset_of(store: Store) -> xr.Dataset:
    """The samples that ``store`` shows as a dataset: nothing is read until it is used.

    As ``xarray.open_zarr`` shows it, but for channels, which have their names, and for attributes: of those
    that parbake keeps for itself only producer, keys and digest are told, since results carry them on.
    Scalars are coordinates along ``sample``. The dataset reads through ``store``, and is of use for as long
    as that is open.
    """
    from parbake.browse.engine import ParbakeBackend

    opened: Any = store  # an engine may take what it likes
    return xr.open_dataset(opened, engine=ParbakeBackend)


def lazy_dataset(store: Store) -> xr.Dataset:
    """The dataset as a backend gives it to xarray, which adds caches and indexes."""
    root, nodes = _attributes(store)
    variables = {name: _field_variable(store, field, nodes) for name, field in store.fields.items()}
    beside = {name for name, field in store.fields.items() if field.is_scalar}
    if len(beside) == len(variables):  # nothing that they could be coordinates of
        beside = set()
    for name, coord in store.coords.items():
        labels = coord.labels
        values = coord.values if labels is None else np.array(labels, dtype=object)
        said = {"units": coord.units} if coord.units is not None else {}
        said = {k: v for k, v in nodes.get(name, said).items() if labels is None or k != "labels"}
        variables[name] = xr.Variable(
            (coord.dim or name,), values.astype(values.dtype.newbyteorder("=")), said
        )
        beside.add(name)
    return xr.Dataset(variables, attrs=root).set_coords(beside)


def _attributes(store: Store) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Attributes of the store, and of its arrays by name; of files of others units and long names alone."""
    if store.is_foreign:
        shown = {
            name: {"units": field.units, "long_name": field.description}
            for name, field in store.fields.items()
        }
        return {}, {name: {k: v for k, v in one.items() if v is not None} for name, one in shown.items()}
    root = store.sealed.root
    nodes = root["consolidated_metadata"]["metadata"]
    named = {
        # CF "coordinates" is said by the dataset, and by what writes it
        name: {
            k: v for k, v in nodes[name]["attributes"].items() if k not in _OWN and not k.startswith(_OURS)
        }
        for name in (*store.fields, *store.coords)
    }
    told = {k: v for k, v in root["attributes"].items() if k in _TOLD or not k.startswith(_OURS)}
    return told, named


def _field_variable(store: Store, field: StoredField, nodes: Mapping[str, Mapping[str, Any]]) -> xr.Variable:
    dims = (SAMPLE_DIM, *field.dims)
    # of slabs, those of scalars too: chunks along ``sample`` are then the same in all variables
    lengths = (min(store.layout.slab_samples, store.samples), *field.shape)
    return xr.Variable(
        dims,
        indexing.LazilyIndexedArray(LazyField(store, field)),
        nodes[field.name],
        encoding={"preferred_chunks": dict(zip(dims, lengths, strict=True))},
    )


class LazyField(BackendArray):
    """One field of a store, [sample, *shape]: any index reads the samples that it names, and no others."""

    __slots__ = ("dtype", "field", "shape", "store")

    def __init__(self, store: Store, field: StoredField) -> None:
        self.store = store
        self.field = field
        self.shape = (store.samples, *field.shape)
        self.dtype = field.dtype.newbyteorder("=")

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[Any]:
        wanted = tuple(
            _normalised(index, length) for index, length in zip(key.tuple, self.shape, strict=True)
        )
        if isinstance(key, indexing.VectorizedIndexer):
            return self._points(wanted)
        return self._block(wanted)

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> NDArray[Any]:
        import asyncio

        return await asyncio.to_thread(self.__getitem__, key)

    def __dask_tokenize__(self) -> object:
        return (
            type(self).__name__,
            str(self.store.path),
            self.store.contents.version,
            self.shape,
            self.field.name,
        )

    def _block(self, index: tuple[AxisIndex, ...]) -> NDArray[Any]:
        """What orthogonal indexes name; integers drop their axes."""
        first, rest = index[0], index[1:]
        if all(map(_is_all, rest, self.field.shape)):
            samples = self.store.read([first] if isinstance(first, int) else first, (self.field.name,))
            out = samples[self.field.name]
        else:
            numbers = _numbers(first, self.shape[0])
            shape = [
                n
                for n, one in zip(map(_length, rest, self.field.shape), rest, strict=True)
                if not isinstance(one, int)
            ]
            out = np.empty((len(numbers), *shape), self.dtype)
            if out.size:
                part = _part_of(self.field, rest)
                for some in self._batches(numbers, part, out.nbytes):
                    out[some] = _picked(self._read(numbers[some], part), part.index)
        return out[0, ...] if isinstance(first, int) else out

    def _points(self, index: tuple[AxisIndex, ...]) -> NDArray[Any]:
        """What arrays that are broadcast together name, their axes first, and then those of slices."""
        first, rest = index[0], index[1:]
        shape = _points_shape(index, self.shape)
        out = np.empty(shape, self.dtype)
        if not out.size:
            return out
        part = _part_of(self.field, rest)
        if not isinstance(first, np.ndarray):
            numbers = _numbers(first, self.shape[0])
            pointed = len(shape) - sum(isinstance(one, slice) for one in index)
            for some in self._batches(numbers, part, out.nbytes):
                target = out[(slice(None),) * pointed + (some,)]
                target[...] = _pointed(self._read(numbers[some], part), (slice(None), *part.index))
            return out
        numbers, places = np.unique(first, return_inverse=True)
        places = places.reshape(first.shape)
        batches = list(self._batches(numbers, part, out.nbytes))
        if len(batches) == 1:
            return _pointed(self._read(numbers, part), (places, *part.index))
        # few points of many or of long samples: some samples at a time
        pointing = [places, *(one for one in part.index if isinstance(one, np.ndarray))]
        broadcast = np.broadcast_arrays(*pointing)
        places, *pointing = (array.reshape(-1) for array in broadcast)
        points = out.reshape(-1, *shape[broadcast[0].ndim :])
        order = np.argsort(places, kind="stable")
        edges = np.searchsorted(places[order], [0, *(some.stop for some in batches)])
        for some, (begin, end) in zip(batches, itertools.pairwise(edges.tolist()), strict=True):
            which = order[begin:end]
            picked = (array[which] for array in pointing)
            inner = (next(picked) if isinstance(one, np.ndarray) else one for one in part.index)
            points[which] = _pointed(self._read(numbers[some], part), (places[which] - some.start, *inner))
        return out

    def _read(self, numbers: NDArray[np.int64], part: _Part) -> NDArray[Any]:
        """Samples, of which ``part`` tells what is read, [len(numbers), *part]."""
        name, windows = self.field.name, None
        if part.axis is not None:
            starts = np.full(len(numbers), part.start, np.int64)
            windows = {name: Window(part.axis, part.length, starts)}
        return self.store.read(numbers, (name,), windows=windows)[name]

    def _batches(self, numbers: NDArray[np.int64], part: _Part, wanted_nbytes: int) -> Iterator[slice]:
        """Stretches of ``numbers`` to read at once, all of them where most of what is read is wanted."""
        nbytes = part.nbytes(self.field)
        step = len(numbers)
        if step * nbytes > max(_BATCH_NBYTES, 2 * wanted_nbytes):
            step = max(1, _BATCH_NBYTES // nbytes)
        for start in range(0, len(numbers), step):
            yield slice(start, min(start + step, len(numbers)))


# ---- indexes; pure


@dataclass(frozen=True, eq=False)
class _Part:
    """What is read of each sample: all, or elements [start, start + length) along ``axis``.

    ``index``: what is wanted of that, by axis of a sample.
    """

    axis: int | None
    start: int
    length: int
    index: tuple[AxisIndex, ...]

    def shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.axis is None:
            return sample_shape
        return (*sample_shape[: self.axis], self.length, *sample_shape[self.axis + 1 :])

    def nbytes(self, field: StoredField) -> int:
        return math.prod(self.shape(field.shape)) * field.dtype.itemsize


def _is_all(index: AxisIndex, length: int) -> bool:
    return isinstance(index, slice) and index.indices(length) == (0, length, 1)


def _normalised(index: Any, length: int) -> AxisIndex:
    """An integer or array without negative numbers, or a slice. Raises IndexError."""
    if isinstance(index, slice):
        return index
    if isinstance(index, int | np.integer) and 0 <= index < length:
        return int(index)
    array = np.asarray(index)
    if array.dtype == np.bool_:
        array = np.flatnonzero(array)
    if array.size and not -length <= int(array.min()) <= int(array.max()) < length:
        raise IndexError(f"index {array.min()} to {array.max()} along an axis of {length}")
    array = np.where(array < 0, array + length, array).astype(np.int64)
    return int(array) if np.ndim(index) == 0 else array


def _numbers(index: AxisIndex, length: int) -> NDArray[np.int64]:
    if isinstance(index, slice):
        return np.arange(*index.indices(length), dtype=np.int64)
    return np.atleast_1d(np.asarray(index, np.int64))


def _length(index: AxisIndex, length: int) -> int:
    return len(range(*index.indices(length))) if isinstance(index, slice) else np.size(index)


def _points_shape(index: Sequence[AxisIndex], shape: tuple[int, ...]) -> tuple[int, ...]:
    arrays = [one.shape for one in index if isinstance(one, np.ndarray)]
    pairs = zip(index, shape, strict=True)
    slices = [_length(one, length) for one, length in pairs if isinstance(one, slice)]
    return (*np.broadcast_shapes(*arrays), *slices)


def _part_of(field: StoredField, index: tuple[AxisIndex, ...]) -> _Part:
    """The shortest stretch along one axis that holds what is wanted of each sample.

    Of samples that share a chunk all is read: to cut each costs more than to copy it.
    """
    if field.layout.chunk_samples > 1:
        return _Part(None, 0, 0, index)
    stretches = [_stretch(one, length) for one, length in zip(index, field.shape, strict=True)]
    shares = [(stop - start) / length for (start, stop), length in zip(stretches, field.shape, strict=True)]
    axis = min(range(len(shares)), key=shares.__getitem__, default=None)
    if axis is None or shares[axis] == 1:
        return _Part(None, 0, 0, index)
    start, stop = stretches[axis]
    within = _moved(index[axis], field.shape[axis], start)
    return _Part(axis, start, stop - start, (*index[:axis], within, *index[axis + 1 :]))


def _stretch(index: AxisIndex, length: int) -> tuple[int, int]:
    """The elements [start, stop) between the first and the last of a non-empty index."""
    if isinstance(index, slice):
        steps = range(*index.indices(length))
        return min(steps[0], steps[-1]), max(steps[0], steps[-1]) + 1
    return int(np.min(index)), int(np.max(index)) + 1


def _moved(index: AxisIndex, length: int, start: int) -> AxisIndex:
    """The same elements, counted from ``start``, which is the lowest."""
    if not isinstance(index, slice):
        return index - start
    steps = range(*index.indices(length))
    if steps.step < 0:
        return slice(steps[0] - start, None, steps.step)
    return slice(0, steps[-1] + 1 - start, steps.step)


def _picked(samples: NDArray[Any], index: tuple[AxisIndex, ...]) -> NDArray[Any]:
    """What orthogonal indexes name of each of ``samples`` [k, *shape]; integers drop their axes."""
    samples = samples[(slice(None), *(one if isinstance(one, slice) else slice(None) for one in index))]
    for axis, one in enumerate(index, start=1):
        if isinstance(one, np.ndarray):
            samples = samples.take(one, axis)
    dropped: list[Any] = [one if isinstance(one, int) else slice(None) for one in index]
    picked: NDArray[Any] = samples[(slice(None), *dropped)]
    return picked


def _pointed(array: NDArray[Any], index: tuple[AxisIndex, ...]) -> NDArray[Any]:
    """What arrays that are broadcast together name, their axes first, and then those of slices."""
    slices = [axis for axis, one in enumerate(index) if isinstance(one, slice)]
    arrays = [axis for axis in range(array.ndim) if axis not in slices]
    turned = array.transpose(*arrays, *slices)[(slice(None),) * len(arrays) + tuple(index[a] for a in slices)]
    pointed: NDArray[Any] = turned[tuple(index[axis] for axis in arrays)] if arrays else turned
    return pointed
