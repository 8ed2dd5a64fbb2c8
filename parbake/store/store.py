"""An open store: a mapping of fields, read through the chunk map, that knows its keys."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import RecipeError, StaleStoreError, StoreNotFoundError, StoreReplacedError
from parbake.store import publish, zarr_dir
from parbake.store.document import Manifest, StoredField, StoreDocument
from parbake.store.index import Index, Window, normalised_index
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
from parbake.store.opened import OpenFolder
from parbake.store.reader import CACHE_NBYTES, Checksums, Reader
from parbake.store.samples import Samples
from parbake.store.verify import VerifyReport, verify

RESERVED_NBYTES_MAX = 1 << 30  # of decoded chunks, taken without being asked for in bytes


def open_store(
    path: str | os.PathLike[str],
    *,
    expect: Producer | None = None,
    checksums: Checksums = "first",
    mmap: bool = True,
    cache_nbytes: int = CACHE_NBYTES,
) -> Store:
    """Open a baked store for reading.

    ``expect``: the producer that should have baked it; the store then shows ``len(expect)`` samples.
    ``checksums``: check each chunk when this process first reads it, ``"always"`` or ``"never"``.
    ``mmap=False`` reads with ``pread``, for file systems on which a mapped file may vanish.
    ``cache_nbytes``: memory in each process for decoded chunks that hold many samples.

    Raises StoreNotFoundError, NotAStoreError, UnfinishedStoreError, DamagedStoreError, StaleStoreError.
    """
    if checksums not in ("first", "always", "never"):
        raise RecipeError(f"checksums={checksums!r}; one of 'first', 'always', 'never'")
    if not isinstance(cache_nbytes, int) or cache_nbytes < 0:
        raise RecipeError(f"cache_nbytes={cache_nbytes!r}; a number of bytes, 0 or more")
    opened = _open(Path(path), _Options(checksums, mmap, cache_nbytes))
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
    cache_nbytes: int


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
    maps = zarr_dir.chunk_maps(opened, manifest)
    reader = Reader(folder, maps, options.checksums, options.mmap, options.cache_nbytes)
    return Store(folder, opened, reader, manifest, options, samples)


class Store(Samples):
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
        return {name: self.computed_statistics(field) for name, field in self.fields.items()}

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
        windows: Mapping[str, Window] | None = None,
        threads: int = 1,
        view: bool = False,
    ) -> dict[str, NDArray[Any]]:
        """Samples as ``{field: array [len(index), *shape]}``, in the order asked for, native byte order.

        ``index``: a sequence, slice, range or bool mask; negatives count from the end. ``out``: arrays to
        read into, C-contiguous and of the right dtype; reusing them is up to four times faster than fresh
        ones. ``windows``: by field, the part of each sample to read. ``threads``: that copy or decode at
        the same time, at most. ``view``: read-only views into the file instead, for adjoining samples of
        one raw chunk.

        Raises IndexError, TypeError, RecipeError (unknown field, unfit ``out``), DamagedStoreError,
        StoreReplacedError.
        """
        names = self.chosen(fields)
        for name in names:
            self.manifest(name)  # refuses a number of samples that lies, before any allocation trusts it
        if not view:
            return super().read(index, names, out, windows=windows, threads=threads)
        numbers = normalised_index(index, self.samples)
        if out is not None or windows:
            raise RecipeError(f"{self.path}: view=True reads nothing, into no 'out' and of no window")
        return {name: self._view(name, numbers) for name in names}

    def _fill(
        self,
        arrays: Mapping[str, NDArray[Any]],
        numbers: NDArray[np.int64],
        windows: Mapping[str, Window],
        threads: int,
    ) -> None:
        for name, array in arrays.items():
            self.reader.read_field(name, numbers, array, windows.get(name), threads)

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

    def will_need(self, index: Index, fields: Sequence[str] | None = None) -> None:
        numbers = normalised_index(index, self.samples)
        for name in self.chosen(fields):
            self.reader.will_need(name, numbers)

    def reserve(self, samples: int, fields: Sequence[str] | None = None) -> None:
        needed = self.reader.reserve(samples, self.chosen(fields), RESERVED_NBYTES_MAX)
        self._options = replace(self._options, cache_nbytes=self.reader.cache_nbytes)  # also when pickled
        if needed > max(RESERVED_NBYTES_MAX, self.reader.cache_nbytes):
            warnings.warn(
                f"{self.path}: {samples} samples take {needed / 2**30:.1f} GiB decoded, more than is kept: "
                "chunks will be decoded several times; shuffle in a smaller span, or open the store with "
                f"cache_nbytes={needed}",
                stacklevel=2,
            )

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
        """The store as an ``xarray.Dataset``, lazily, with channels by name. Needs the extra ``[xarray]``."""
        import xarray as xr

        named = {name: list(c.labels) for name, c in self.coords.items() if c.labels is not None}
        dataset = xr.open_zarr(self.path, chunks=None).isel(sample=slice(self.samples))
        return dataset.assign_coords({name: (dataset[name].dims, labels) for name, labels in named.items()})

    # ---- housekeeping

    def close(self) -> None:
        """Release the files; a closed store reads no more."""
        self.reader.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.path, self._options, self._samples, self.seal)
