"""Samples by field: what an open store and one that is computed on the fly have in common."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parbake.errors import RecipeError
from parbake.store import statistics
from parbake.store.document import StoredField
from parbake.store.index import Index, Window, normalised_index
from parbake.store.keys import JSON, Freshness, Producer

_STATISTICS_READ_NBYTES = 32 * 1024**2


class FieldArray:
    """One field of a store, [sample, *shape]; indexing reads into new NumPy arrays.

    Indexed as NumPy's arrays are; the first index, which picks the samples that are read, is an integer,
    slice, sequence or mask of one axis.
    """

    def __init__(self, store: Samples, field: StoredField) -> None:
        self._store = store
        self.field = field

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._store.samples, *self.field.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of what is read: native byte order."""
        return self.field.dtype.newbyteorder("=")

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self._store.samples

    def __getitem__(self, index: Any) -> NDArray[Any]:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        if first is Ellipsis or isinstance(first, tuple):
            return self._picked(np.asarray(self), index)
        if isinstance(first, int | np.integer):
            return self._picked(self._read([int(first)]), (0, *rest))
        samples = self._read(first)
        if not rest:
            return samples
        # a list or mask pairs with further ones, as in NumPy
        return self._picked(
            samples, (slice(None) if isinstance(first, slice) else np.arange(len(samples)), *rest)
        )

    @staticmethod
    def _picked(samples: NDArray[Any], index: Any) -> NDArray[Any]:
        picked: NDArray[Any] = samples[index]
        return picked

    def _read(self, index: Index) -> NDArray[Any]:
        return self._store.read(index, (self.field.name,))[self.field.name]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._read(slice(None)).astype(dtype or self.dtype, copy=False)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<field {self.field.name!r} {self.shape} {self.dtype}>"


class Samples(Mapping[str, FieldArray], abc.ABC):
    """Fields by name, read by sample: the interface that loaders use."""

    @property
    @abc.abstractmethod
    def path(self) -> Path | str:
        """Where the samples are, for messages."""

    @property
    @abc.abstractmethod
    def samples(self) -> int:
        """Number of samples shown."""

    @property
    @abc.abstractmethod
    def fields(self) -> Mapping[str, StoredField]:
        """The fields, with shapes and dtypes as they are stored."""

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """Tells samples of other invalidation keys apart, for states of loaders."""

    @property
    @abc.abstractmethod
    def statistics(self) -> Mapping[str, JSON]:
        """Per field its min, max, mean, std (population), count and nonfinite, and per channel."""

    def read(
        self,
        index: Index,
        fields: Sequence[str] | None = None,
        out: Mapping[str, NDArray[Any]] | None = None,
        *,
        windows: Mapping[str, Window] | None = None,
        threads: int = 1,
    ) -> dict[str, NDArray[Any]]:
        """Samples as ``{field: array [len(index), *shape]}``; see ``Store.read``."""
        names = self.chosen(fields)
        numbers = normalised_index(index, self.samples)
        windows = windows or {}
        result = {name: self._target(name, len(numbers), out, windows.get(name)) for name in names}
        self._fill(result, numbers, windows, threads)
        return result

    @abc.abstractmethod
    def _fill(
        self,
        arrays: Mapping[str, NDArray[Any]],
        numbers: NDArray[np.int64],
        windows: Mapping[str, Window],
        threads: int,
    ) -> None:
        """Read samples ``numbers``, of fields in ``windows`` the part, into ``arrays``, by field."""

    @abc.abstractmethod
    def first(self, samples: int) -> Self:
        """The same, showing the first ``samples`` only. Raises IndexError."""

    @abc.abstractmethod
    def freshness(self, producer: Producer, *, rehash: bool = False) -> Freshness:
        """Whether these are the samples that ``producer`` would give; lists every key that differs."""

    @property
    def is_stored(self) -> bool:
        """Whether samples are at hand, so that many small reads cost no more than one."""
        return True

    def will_need(self, index: Index, fields: Sequence[str] | None = None) -> None:
        """Say which samples will be read next, so that they can be fetched meanwhile."""

    def reserve(self, samples: int, fields: Sequence[str] | None = None) -> None:
        """Say that ``samples`` adjoining ones will be read in any order, so that they are decoded once."""

    def close(self) -> None:
        """Release what is held open."""

    def chosen(self, fields: Sequence[str] | None) -> tuple[str, ...]:
        """The names of ``fields``, all for None. Raises RecipeError for one that is unknown."""
        names = tuple(self.fields) if fields is None else tuple(fields)
        for name in names:
            if name not in self.fields:
                raise RecipeError(f"{self.path}: no field {name!r}; there are {', '.join(self.fields)}")
        return names

    def _target(
        self, name: str, count: int, out: Mapping[str, NDArray[Any]] | None, window: Window | None
    ) -> NDArray[Any]:
        """The array to read ``count`` samples of a field into: of ``out``, checked, or a new one."""
        sample = self.fields[name].shape
        dtype, shape = self[name].dtype, (count, *(sample if window is None else window.shape(sample)))
        if window is not None:
            window.check(name, sample, count)
        if out is None:
            return np.empty(shape, dtype)
        array = out.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            found = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise RecipeError(f"out[{name!r}]: {dtype} {shape} is needed, {found} was given")
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise RecipeError(f"out[{name!r}]: must be C-contiguous and writable")
        return array

    def computed_statistics(self, field: StoredField) -> JSON:
        """Statistics of a field's samples that are shown, by reading them all."""
        step = max(1, _STATISTICS_READ_NBYTES // field.layout.sample_nbytes)
        partials = (
            statistics.partial_of(self[field.name][start : start + step], field.channel_axis)
            for start in range(0, self.samples, step)
        )
        columns = statistics.columns_of(field.shape, field.channel_axis)
        return statistics.summary(statistics.merged(partials, columns))

    def __getitem__(self, name: str) -> FieldArray:
        return FieldArray(self, self.fields[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __repr__(self) -> str:
        return f"<parbake.{type(self).__name__} {str(self.path)!r}: {self._shown()}>"

    def _shown(self) -> str:
        fields = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in self.items())
        return f"{self.samples} samples; {fields}"

    def _repr_html_(self) -> str:
        """For notebooks: a table of the fields."""
        from parbake.browse.html import samples_html

        return samples_html(self, "unknown" if self.is_stored else "computed")

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
