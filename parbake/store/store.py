"""An open store: a mapping of fields, read through the chunk map, that knows its keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import RecipeError, StaleStoreError, StoreNotFoundError, StoreReplacedError
from parbake.store import publish, statistics, zarr_dir
from parbake.store.document import Manifest, StoredField, StoreDocument
from parbake.store.keys import (
    JSON,
    Change,
    Freshness,
    Keys,
    Producer,
    compare,
    digest,
    producer_keys,
    without_source,
)
from parbake.store.layout import Coord, Layout
from parbake.store.reader import Checksums, Index, OpenFolder, Reader, normalised_index
from parbake.store.verify import VerifyReport, verify

_STATISTICS_READ_NBYTES = 32 * 1024**2


def open_store(
    path: str | os.PathLike[str],
    *,
    expect: Producer | None = None,
    checksums: Checksums = "first",
    mmap: bool = True,
) -> Store:
    """Open a baked store for reading.

    ``expect``: the producer that should have baked it; the store then shows ``len(expect)`` samples.
    ``checksums``: check each chunk when this process first reads it, ``"always"`` or ``"never"``.
    ``mmap=False`` reads with ``pread``, for file systems on which a mapped file may vanish.

    Raises StoreNotFoundError, NotAStoreError, UnfinishedStoreError, DamagedStoreError, StaleStoreError.
    """
    if checksums not in ("first", "always", "never"):
        raise RecipeError(f"checksums={checksums!r}; one of 'first', 'always', 'never'")
    opened = _open(Path(path), _Options(checksums, mmap))
    if expect is None:
        return opened
    freshness = opened.freshness(expect)
    if not freshness:
        opened.close()
        raise StaleStoreError(f"{path}: stale: {freshness}; bake it again", freshness.changes)
    return opened.first(len(expect))


@dataclass(frozen=True)
class _Options:
    checksums: Checksums
    mmap: bool


def _open(path: Path, options: _Options, samples: int | None = None, seal: str | None = None) -> Store:
    path = path.absolute()
    try:
        folder = zarr_dir.open_folder(path)
    except StoreNotFoundError:
        publish.raise_if_unfinished(path)
        raise
    try:
        opened = zarr_dir.open_metadata(folder)
    except StoreReplacedError:  # just now, between the two lines above
        return _open(path, options, samples, seal)
    if seal is not None and opened.seal != seal:
        raise StoreReplacedError(f"{path}: baked again since it was opened in another process; reopen it")
    manifest = cache(partial(zarr_dir.read_manifest, folder, opened))
    reader = Reader(folder, zarr_dir.chunk_maps(opened, manifest), options.checksums, options.mmap)
    return Store(folder, opened, reader, manifest, options, samples)


class FieldArray:
    """One field of a store, [sample, *shape]; indexing reads into new NumPy arrays.

    Indexed as NumPy's arrays are; the first index, which picks the samples that are read, is an integer,
    slice, sequence or mask of one axis.
    """

    def __init__(self, store: Store, field: StoredField) -> None:
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


class Store(Mapping[str, FieldArray]):
    """An open, immutable store: fields by name, read through memory maps.

    Picklable (it reopens the same bake or raises StoreReplacedError) and usable after a fork. Made by
    ``open_store``, ``bake`` and ``cached``.
    """

    def __init__(
        self,
        folder: OpenFolder,
        opened: zarr_dir.Opened,
        reader: Reader,
        manifest: Callable[[str], Manifest],
        options: _Options,
        samples: int | None,
    ) -> None:
        self.folder = folder
        self.reader = reader
        self.manifest = manifest  # of a field: sizes, checksums, partial statistics; DamagedStoreError
        self._opened = opened
        self._options = options
        self._samples = samples

    @property
    def _document(self) -> StoreDocument:
        return self._opened.document

    @property
    def root(self) -> dict[str, Any]:
        """The group's metadata document, consolidated metadata included."""
        return self._opened.root

    # ---- what it is

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def seal(self) -> str:
        """Names this bake: the digest of all its metadata."""
        return self._opened.seal

    @property
    def samples(self) -> int:
        """Number of samples that this store shows."""
        return self._document.samples if self._samples is None else self._samples

    @property
    def stored_samples(self) -> int:
        """Number of samples that lie on disk."""
        return self._document.samples

    @property
    def fields(self) -> Mapping[str, StoredField]:
        return self._document.fields

    @property
    def layout(self) -> Layout:
        return self._document.layout

    @cached_property
    def coords(self) -> Mapping[str, Coord]:
        """Values along dimensions, such as time in seconds. Raises DamagedStoreError."""
        return zarr_dir.read_coords(self.folder, self.root, self.fields)

    @property
    def invalidation_keys(self) -> Keys:
        return self._document.keys

    @property
    def digest(self) -> str:
        """Digest of the shared invalidation keys."""
        return self._document.keys.digest

    @property
    def provenance(self) -> Mapping[str, JSON]:
        return self._document.provenance

    @property
    def edited(self) -> bool:
        """Whether attributes that only describe were changed since the bake."""
        return self._opened.edited

    @cached_property
    def statistics(self) -> Mapping[str, JSON]:
        """Per field its min, max, mean, std (population), count and nonfinite, and per channel."""
        if self.samples == self.stored_samples:
            return self._document.statistics
        return {name: self._computed_statistics(field) for name, field in self.fields.items()}

    def _computed_statistics(self, field: StoredField) -> JSON:
        step = max(1, _STATISTICS_READ_NBYTES // field.layout.sample_nbytes)
        partials = (
            statistics.partial_of(self[field.name][start : start + step], field.channel_axis)
            for start in range(0, self.samples, step)
        )
        columns = statistics.columns_of(field.shape, field.channel_axis)
        return statistics.summary(statistics.merged(partials, columns))

    def nbytes_stored(self, field: str) -> int:
        """Size of a field's shard files, in bytes."""
        return int(self.manifest(field).nbytes.sum())

    # ---- reading

    def read(
        self,
        index: Index,
        fields: Sequence[str] | None = None,
        out: Mapping[str, NDArray[Any]] | None = None,
        *,
        view: bool = False,
    ) -> dict[str, NDArray[Any]]:
        """Samples as ``{field: array [len(index), *shape]}``, in the order asked for, native byte order.

        ``index``: a sequence, slice, range or bool mask; negatives count from the end. ``out``: arrays to
        read into, C-contiguous and of the right dtype; reusing them is up to four times faster than fresh
        ones. ``view``: read-only views into the file instead, for adjoining samples of one raw chunk.

        Raises IndexError, TypeError, RecipeError (unknown field, unfit ``out``), DamagedStoreError,
        StoreReplacedError.
        """
        names = tuple(self.fields) if fields is None else tuple(fields)
        for name in names:
            if name not in self.fields:
                raise RecipeError(f"{self.path}: no field {name!r}; there are {', '.join(self.fields)}")
            self.manifest(name)  # refuses a number of samples that lies, before any allocation trusts it
        numbers = normalised_index(index, self.samples)
        if view:
            return {name: self._view(name, numbers) for name in names}
        result = {}
        for name in names:
            result[name] = self._target(name, len(numbers), out)
            self.reader.read_field(name, numbers, result[name])
        return result

    def _target(self, name: str, count: int, out: Mapping[str, NDArray[Any]] | None) -> NDArray[Any]:
        dtype, shape = self[name].dtype, (count, *self.fields[name].shape)
        if out is None:
            return np.empty(shape, dtype)
        array = out.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            found = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise RecipeError(f"out[{name!r}]: {dtype} {shape} is needed, {found} was given")
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise RecipeError(f"out[{name!r}]: must be C-contiguous and writable")
        return array

    def _view(self, name: str, numbers: NDArray[np.int64]) -> NDArray[Any]:
        view = None
        if len(numbers) and (np.diff(numbers) == 1).all():
            view = self.reader.view(name, int(numbers[0]), int(numbers[-1]) + 1)
        if view is None:
            raise RecipeError(
                f"{self.path}: field {name!r} gives no view of these samples; views need adjoining samples "
                "of one chunk, codec 'raw', native byte order and mmap=True"
            )
        return view

    def first(self, samples: int) -> Store:
        """This store showing its first ``samples`` samples only."""
        if samples == self.samples:
            return self
        if not 0 < samples <= self.stored_samples:
            raise IndexError(f"{self.path}: {samples} of {self.stored_samples} samples")
        return Store(self.folder, self._opened, self.reader, self.manifest, self._options, samples)

    # ---- knowing

    def freshness(self, producer: Producer, *, rehash: bool = False) -> Freshness:
        """Whether this store holds what ``producer`` would give; lists every key that differs.

        Fewer samples than stored are fresh, more are a change of ``samples``.
        """
        wanted, _ = producer_keys(producer, rehash=rehash)
        return self.compared(wanted, len(producer))

    def compared(self, wanted: Keys, samples: int) -> Freshness:
        """``freshness`` for keys already at hand."""
        stored = self.invalidation_keys
        if digest(wanted.shared.get("source")) in self.provenance.get("accepted_source", ()):
            stored, wanted = without_source(stored), without_source(wanted)
        changes = compare(stored, wanted).changes
        if samples > self.stored_samples:
            changes += (Change(None, "samples", self.stored_samples, samples),)
        return Freshness(changes)

    def verify(self) -> VerifyReport:
        """Check every byte against the recorded checksums; the report is true when the store is whole."""
        return verify(self)

    def to_xarray(self) -> Any:
        """The store as an ``xarray.Dataset``, lazily. Needs the extra ``[xarray]``."""
        import xarray as xr

        return xr.open_zarr(self.path, chunks=None).isel(sample=slice(self.samples))

    # ---- housekeeping

    def __getitem__(self, name: str) -> FieldArray:
        return FieldArray(self, self.fields[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def close(self) -> None:
        """Release the files; a closed store reads no more."""
        self.reader.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.path, self._options, self._samples, self.seal)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in self.items())
        return f"<parbake.Store {str(self.path)!r}: {self.samples} samples; {fields}>"
