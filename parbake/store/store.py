"""An open store: a mapping of fields, read through the chunk map, that knows its keys."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import (
    NotAStoreError,
    RecipeError,
    StaleStoreError,
    StoreNotFoundError,
    StoreReplacedError,
    StoreWarning,
)
from parbake.store import publish
from parbake.store.chunkmap import ByteSource
from parbake.store.chunks import Access, Checksums
from parbake.store.containers import open_contents
from parbake.store.contents import Contents, Sealed
from parbake.store.document import Manifest, StoredField, StoreDocument
from parbake.store.foreign.arrays import structure_digest
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
from parbake.store.reader import CACHE_NBYTES, Reader
from parbake.store.samples import Samples
from parbake.store.shard import ShardIdentity
from parbake.store.verify import VerifyReport, verify

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESERVED_NBYTES_MAX = 1 << 30  # of decoded chunks, taken without being asked for in bytes


def open_store(
    path: str | os.PathLike[str],
    *,
    expect: Producer | None = None,
    checksums: Checksums = "first",
    mmap: bool = True,
    cache_nbytes: int = CACHE_NBYTES,
    sample_dim: str | None = None,
) -> Store:
    """Open a baked store for reading, or a Zarr, HDF5 or NetCDF4 file that somebody else wrote.

    Of a foreign file the arrays that share axis 0 are fields; its keys are unknown, so it is never fresh.
    What is left out of it, and what is read slowly, is told once, as a warning. ``sample_dim``: the name of
    the dimension that counts its samples, or of an array along whose first axis they lie.
    ``expect``: the producer that should have baked it; the store then shows ``len(expect)`` samples.
    ``checksums``: check each chunk when this process first reads it, ``"always"`` or ``"never"``.
    ``mmap``: False reads with ``pread``, for file systems on which a mapped file may vanish.
    ``cache_nbytes``: memory in each process for decoded chunks that hold many samples.

    Raises StoreNotFoundError, NotAStoreError, UnfinishedStoreError, DamagedStoreError, StaleStoreError.
    """
    if checksums not in ("first", "always", "never"):
        raise RecipeError(f"checksums={checksums!r}; one of 'first', 'always', 'never'")
    if not isinstance(cache_nbytes, int) or cache_nbytes < 0:
        raise RecipeError(f"cache_nbytes={cache_nbytes!r}; a number of bytes, 0 or more")
    opened = _open(Path(path).expanduser(), _Options(checksums, mmap, cache_nbytes, sample_dim))
    for notice in opened.contents.notices:
        warnings.warn(f"{path}: {notice}", StoreWarning, stacklevel=2)
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
    sample_dim: str | None = None
    known_fresh: bool = False  # travels with the store: to its first samples, to other processes


def _open(path: Path, options: _Options, samples: int | None = None, version: str | None = None) -> Store:
    path = path.absolute()
    try:
        contents = open_contents(path, options.sample_dim)
    except StoreNotFoundError:
        publish.raise_if_unfinished(path)
        raise
    except StoreReplacedError:  # just now, while it was being opened
        return _open(path, options, samples, version)
    if version is not None and contents.version != version:
        raise StoreReplacedError(f"{path}: baked again since it was opened in another process; reopen it")
    remedy = f"run 'parbake verify {path} --repair RECIPE'"
    if contents.sealed is None:
        remedy = "the file is damaged, or was cut: get it again"
    access = Access(contents.files, options.checksums, options.mmap, remedy)
    return Store(contents, Reader(contents.maps, access, options.cache_nbytes), options, samples)


class Store(Samples):
    """An open, immutable store: fields by name, read through memory maps.

    Picklable (it reopens the same bake or raises StoreReplacedError) and usable after a fork. Made by
    ``open_store``, ``bake`` and ``cached``.
    """

    def __init__(
        self,
        contents: Contents,
        reader: Reader,
        options: _Options,
        samples: int | None,
    ) -> None:
        self.contents = contents
        self.reader = reader
        self._options = options
        self._samples = samples

    @property
    def _document(self) -> StoreDocument:
        return self.contents.document

    @property
    def sealed(self) -> Sealed:
        """What parbake's own stores hold beside samples. Raises NotAStoreError for files of others."""
        if self.contents.sealed is None:
            raise NotAStoreError(f"{self.path}: not baked by parbake")
        return self.contents.sealed

    def manifest(self, field: str) -> Manifest:
        """Sizes, checksums and partial statistics. Raises DamagedStoreError, NotAStoreError."""
        return self.sealed.manifest(field)

    def shard(self, field: str, number: int) -> ByteSource:
        """The bytes of a shard as they lie in a directory. Raises CodecError, DamagedStoreError."""
        made = self.sealed.shard
        return self.reader.source(field, number) if made is None else made(field, number)

    # ---- what it is

    @property
    def path(self) -> Path:
        """The folder or file that the store is."""
        return self.contents.files.path

    @property
    def is_foreign(self) -> bool:
        """Whether parbake did not write this file: its keys are unknown, it is never fresh."""
        return self.contents.sealed is None

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
        """The fields by name, in the producer's order, with shapes and dtypes as they are stored."""
        return self._document.fields

    @property
    def layout(self) -> Layout:
        return self._document.layout

    @cached_property
    def coords(self) -> Mapping[str, Coord]:
        """Values along dimensions, such as time in seconds. Raises DamagedStoreError."""
        return self.contents.coords()

    def identity(self, field: str) -> ShardIdentity:
        """What the header of this field's shards says."""
        return self._document.identity(field)

    @property
    def invalidation_keys(self) -> Keys:
        """What the values depend on, as stored: ``.shared``, and ``.fields`` with each field's own."""
        return self._document.keys

    @property
    def digest(self) -> str:
        """Digest of the shared invalidation keys; of a file that others wrote, of its fields and shapes."""
        if self.is_foreign:
            return structure_digest(self._document)
        return self._document.keys.digest

    @property
    def provenance(self) -> Mapping[str, JSON]:
        """How it was made: recipe, seed drawn, bakes, devices and versions by range of samples. No keys."""
        return self._document.provenance

    @property
    def edited(self) -> bool:
        """Whether attributes that only describe were changed since the bake."""
        return self.contents.sealed is not None and self.contents.sealed.edited

    @property
    def known_fresh(self) -> bool:
        """Whether the store was compared with a producer, and was fresh when it was last."""
        return self._options.known_fresh

    @cached_property
    def statistics(self) -> Mapping[str, JSON]:
        """Per field its min, max, mean, std (population), count and nonfinite, and per channel."""
        if self.samples == self.stored_samples and not self.is_foreign:
            return self._document.statistics
        return {name: self.computed_statistics(field) for name, field in self.fields.items()}

    def nbytes_stored(self, field: str) -> int:
        """Size of a field's chunks with what checks them, in bytes."""
        return self.contents.nbytes_stored(field)

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
        if self.contents.sealed is not None:
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
                StoreWarning,
                stacklevel=2,
            )

    def first(self, samples: int) -> Store:
        """This store showing its first ``samples`` samples only."""
        if samples == self.samples:
            return self
        if not 0 < samples <= self.stored_samples:
            raise IndexError(f"{self.path}: {samples} of {self.stored_samples} samples")
        return Store(self.contents, self.reader, self._options, samples)

    # ---- knowing

    def freshness(self, producer: Producer, *, rehash: bool = False) -> Freshness:
        """Whether this store holds what ``producer`` would give; lists every key that differs.

        Fewer samples than stored are fresh, more are a change of ``samples``.
        """
        wanted, _ = producer_keys(producer, rehash=rehash)
        return self.compared(wanted, len(producer))

    def compared(self, wanted: Keys, samples: int) -> Freshness:
        """``freshness`` for keys already at hand."""
        found = self._compared(wanted, samples)
        self._options = replace(self._options, known_fresh=bool(found))
        return found

    def _compared(self, wanted: Keys, samples: int) -> Freshness:
        if self.is_foreign:
            return Freshness((Change(None, "producer", "unknown", wanted.shared["producer"]),))
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
        """The samples as an ``xarray.Dataset``, lazily, channels by name. Needs the extra ``[xarray]``.

        The same as ``xarray.open_dataset(path, engine="parbake")``, but read through this store, for as long
        as it is open. Raises RecipeError where xarray is not installed.
        """
        try:
            from parbake.browse.xarrays import dataset_of
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "xarray":
                raise
            raise RecipeError(
                f"needs xarray ({error}); install it with: pip install 'parbake[xarray]'"
            ) from None

        return dataset_of(self)

    def _repr_html_(self) -> str:
        """For notebooks: all of the above, and a picture of each field."""
        from parbake.browse.html import store_html

        return store_html(self)

    def plot(self, sample: int | None = None, field: str | None = None) -> Figure:
        """A matplotlib figure of one sample (the middle one unless named), or of one of its fields.

        Waveforms with their spectra, maps on meshes, images; of scalars the distribution over the samples.
        It belongs to no window and shows itself in a notebook. Raises IndexError, RecipeError (unknown
        field, or no matplotlib: the extra ``[plot]``), DamagedStoreError.
        """
        from parbake.browse.plot import figure_of

        return figure_of(self, sample, field)

    # ---- housekeeping

    def close(self) -> None:
        """Release the files; a closed store reads no more."""
        self.reader.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.path, self._options, self._samples, self.contents.version)
