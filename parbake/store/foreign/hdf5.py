"""HDF5 files that others wrote (h5py, NetCDF-4, MATLAB 7.3): their contents as maps of chunks.

The HDF5 library reads metadata; samples come from the file itself, where a dataset lies in chunks or in one
piece and its filters are known. Everything else h5py reads.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import weakref
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, NotAStoreError
from parbake.store.chunkmap import MISSING, AnyMap, ByteSource, ChunkIndex, FetchedMap, FieldMap
from parbake.store.codecs import CodecError
from parbake.store.contents import Contents
from parbake.store.foreign.arrays import ForeignArray, Plan, attribute_texts, by_reason, contents_of, planned
from parbake.store.foreign.codecs import ForeignChain, Uncovered, filter_name, hdf5_chain
from parbake.store.foreign.hdf5_tree import Dataset, Storage, Tree, TreeError, read_tree
from parbake.store.foreign.maps import Column, Grid, fetched_map, grid_maps
from parbake.store.hdf5_index import ChunkTable, OpenFile, _Positioned, chunk_table, hdf5_file
from parbake.store.layout import CHUNK_NBYTES, FieldLayout

_SHARD_CHUNKS = 1 << 16  # looked at together: a list of as many numbers on first touch
_SHARDS_MAX = 128  # of one field: each open one holds a map of the file
_DENSE_CHUNKS_MAX = 1 << 22  # of a grid whose table is made whatever it holds: 64 MiB


def open_contents(path: Path, sample_dim: str | None = None) -> Contents:
    """What an HDF5 file of others holds.

    Raises StoreNotFoundError, NotAStoreError, DamagedStoreError; RecipeError for a ``sample_dim`` that no
    dataset has.
    """
    files = ForeignFile(path)
    try:
        return _contents(files, sample_dim)
    except CodecError as error:
        raise DamagedStoreError(f"{path}: {error}") from None
    except TreeError as error:
        raise NotAStoreError(f"{path}: {error}") from None
    except MemoryError:
        raise DamagedStoreError(f"{path}: its metadata asks for more memory than there is") from None


class ForeignFile(OpenFile):
    """An HDF5 file held open; for what only h5py reads, a handle of this process beside the descriptor."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._process = -1
        self._close_handle: Callable[[], object] = lambda: None

    def dataset(self, link: str) -> Any:
        """An ``h5py.Dataset``, of this process."""
        from h5py._objects import phil

        with phil:  # the one lock that h5py renews after a fork
            if self._process != os.getpid():
                self._open_handle()
            return self._handle[link]

    def _open_handle(self) -> None:
        import h5py

        span = self.open("")
        try:
            self._handle = h5py.File(_Positioned(span.descriptor), "r", locking=False)
        except BaseException:
            os.close(span.descriptor)
            raise
        # also when the interpreter ends: HDF5 would read through a file object that is gone
        self._close_handle = weakref.finalize(self, _close_handle, self._handle, span.descriptor)
        self._process = os.getpid()

    def close(self) -> None:
        self._close_handle()
        self._process = -1
        super().close()


def _close_handle(handle: Any, descriptor: int) -> None:
    handle.close()
    os.close(descriptor)


def _contents(files: ForeignFile, sample_dim: str | None) -> Contents:
    with hdf5_file(files) as file:
        tree = read_tree(file)
        sources = {d.name: _Source(files, d) for d in reversed(tree.datasets)}
        plan = planned(files.path, [_array(sources[d.name]) for d in tree.datasets], sample_dim)
        maps = {name: _map(sources[name], plan, file) for name in plan.axes}
    state = os.fstat(files.descriptor)
    return contents_of(
        files,
        plan,
        maps,
        read_coord=lambda name: sources[name].values(),
        nbytes_stored=lambda name: sources[name].nbytes,
        version=f"{state.st_dev}-{state.st_ino}-{state.st_size}-{state.st_mtime_ns}",
        notices=_notices(tree),
    )


def _notices(tree: Tree) -> list[str]:
    told = [f"not followed: {by_reason(tree.passed.items())}"] if tree.passed else []
    if any("MATLAB_class" in dataset.attributes for dataset in tree.datasets):
        told.append("written by MATLAB: axes are in reverse order, so that samples lie along its last one")
    return told


# ---- a dataset


class _Source:
    """A dataset and the file that it is in."""

    def __init__(self, files: ForeignFile, dataset: Dataset) -> None:
        self.files = files
        self.dataset = dataset
        self._table: ChunkTable | None = None

    @property
    def storage(self) -> Storage:
        assert self.dataset.storage is not None
        return self.dataset.storage

    @cached_property
    def chain(self) -> ForeignChain:
        """Raises Uncovered."""
        if not self.storage.is_plain:
            raise Uncovered("a type that NumPy has no equal of is read through h5py")
        shape = self.storage.chunk_shape or self.dataset.shape
        return hdf5_chain(self.storage.filters, self.dataset.dtype, shape)

    def table(self) -> ChunkTable:
        """Where its chunks lie; of threads that come first together each makes one. Raises CodecError."""
        if self._table is None:  # no lock of ours: a fork may come while another thread holds it
            with hdf5_file(self.files) as file:
                self._table = chunk_table(file[self.dataset.link])
        return self._table

    @property
    def nbytes(self) -> int:
        """Size of what is stored of it."""
        try:
            with hdf5_file(self.files) as file:
                return int(file[self.dataset.link].id.get_storage_size())
        except CodecError as error:
            raise DamagedStoreError(f"{self.files.path}: {self.dataset.name!r}: {error}") from None

    def values(self) -> NDArray[Any]:
        """All of it. Raises DamagedStoreError."""
        try:
            with hdf5_file(self.files) as file:
                found = file[self.dataset.link][...]
        except CodecError as error:
            raise DamagedStoreError(f"{self.files.path}: {self.dataset.name!r}: {error}") from None
        native: NDArray[Any] = found.astype(found.dtype.newbyteorder("="), copy=False)
        return native


def _array(source: _Source) -> ForeignArray:
    dataset = source.dataset
    units, description, coordinates = attribute_texts(dataset.attributes)
    codec, chunk_shape, unfit = "raw", None, dataset.unfit
    if dataset.storage is not None:
        chunk_shape = dataset.storage.chunk_shape
        try:
            codec = source.chain.name
        except Uncovered:
            codec, unfit = "h5py", _lacking(dataset.storage)
    return ForeignArray(
        dataset.name,
        dataset.shape,
        dataset.dtype,
        dataset.dims,
        units,
        description,
        coordinates,
        chunk_shape,
        codec,
        unfit,
        dataset.coded,
    )


def _lacking(storage: Storage) -> str | None:
    """Why not even h5py reads it: a filter that HDF5 has as a plugin only, which is not there."""
    from h5py import h5z

    numbers = [number for number, _, _ in storage.filters]
    if not all(map(h5z.filter_avail, numbers)):
        with contextlib.suppress(ImportError):
            importlib.import_module("hdf5plugin")  # brings most of those that are in use
    lacking = [filter_name(number) for number in numbers if not h5z.filter_avail(number)]
    return f"needs filter {lacking[0]}: pip install hdf5plugin" if lacking else None


# ---- its map


def _map(source: _Source, plan: Plan, file: Any) -> AnyMap:
    name, kind = source.dataset.name, source.storage.kind
    axis = plan.axes[name]

    def fetched(reason: str) -> FetchedMap:
        return fetched_map(source.files.path, plan, name, partial(_fetch, source, axis), reason)

    try:
        chain = source.chain
    except Uncovered as uncovered:
        return fetched(str(uncovered))
    if kind == "compact":
        held = file[source.dataset.link][...]
        return fetched_map(source.files.path, plan, name, partial(_part, held, axis), "")
    if kind == "virtual":
        return fetched("a virtual dataset")
    if axis:
        return fetched(f"samples lie along axis {axis}")
    if kind == "contiguous":
        return _contiguous(source)
    reason = _thin(source, file)
    return fetched(reason) if reason else grid_maps(_grid(source, plan.arrays[name], chain), fetched)


def _fetch(source: _Source, axis: int, start: int, stop: int) -> NDArray[Any]:
    return _part(source.files.dataset(source.dataset.link), axis, start, stop)


def _part(values: Any, axis: int, start: int, stop: int) -> NDArray[Any]:
    found: NDArray[Any] = values[(slice(None),) * axis + (slice(start, stop),)]
    return found


def _contiguous(source: _Source) -> FieldMap:
    """Samples one after another: cut into what is read at once, of the file's own size or less."""
    dataset, storage = source.dataset, source.storage
    samples, *shape = dataset.shape
    sample_nbytes = math.prod(shape) * dataset.dtype.itemsize
    chunk_samples = min(max(1, CHUNK_NBYTES // sample_nbytes), samples)
    per_shard = _chunks_per_shard(-(-samples // chunk_samples))
    end = samples * sample_nbytes

    def scan(source: ByteSource, shard: int) -> ChunkIndex:
        if storage.offset is None:
            return ChunkIndex.empty(per_shard)
        first = shard * per_shard * chunk_samples * sample_nbytes
        start = first + np.arange(per_shard, dtype=np.int64) * (chunk_samples * sample_nbytes)
        nbytes = np.minimum(chunk_samples * sample_nbytes, end - start)
        there = nbytes > 0
        index = ChunkIndex(np.where(there, storage.offset + start, MISSING), np.where(there, nbytes, MISSING))
        index.check_within(source.nbytes)
        return index

    return FieldMap(
        FieldLayout(
            dataset.name, dataset.dtype.str, tuple(shape), chunk_samples, chunk_samples * per_shard, "raw"
        ),
        samples,
        hdf5_chain((), dataset.dtype, (chunk_samples, *shape)),
        lambda shard: source.files.path.name,
        lambda shard: None,
        scan,
        storage.fill,
        cut_end=True,
    )


def _chunks_per_shard(chunks: int) -> int:
    return min(chunks, max(_SHARD_CHUNKS, -(-chunks // _SHARDS_MAX)))


def _thin(source: _Source, file: Any) -> str | None:
    """Why no table is made of a chunk grid that is huge, and next to nothing in it was written."""
    grid = _grid_shape(source)
    chunks = math.prod(grid)
    if chunks <= _DENSE_CHUNKS_MAX:
        return None
    written = file[source.dataset.link].id.get_num_chunks()
    return f"{written:,} chunks in a grid of {chunks:,}" if written < chunks // 16 else None


def _grid_shape(source: _Source) -> tuple[int, ...]:
    assert source.storage.chunk_shape is not None
    return tuple(-(-n // c) for n, c in zip(source.dataset.shape, source.storage.chunk_shape, strict=True))


def _grid(source: _Source, array: ForeignArray, chain: ForeignChain) -> Grid:
    assert source.storage.chunk_shape is not None
    per_shard = _chunks_per_shard(_grid_shape(source)[0])

    def column(place: tuple[int, ...]) -> Column:
        return Column(lambda shard: source.files.path.name, partial(_scan, source, per_shard, place))

    return Grid(array, source.storage.chunk_shape, per_shard, chain, source.storage.fill, column)


def _scan(
    source: _Source, per_shard: int, place: tuple[int, ...], file: ByteSource, shard: int
) -> ChunkIndex:
    """The chunks of one shard at one place of the grid. Raises CodecError."""
    table = source.table()
    rows = slice(shard * per_shard, (shard + 1) * per_shard)

    def part(values: NDArray[Any], absent: int) -> NDArray[Any]:
        where: tuple[Any, ...] = (rows, *place)
        found: NDArray[Any] = values.reshape(table.grid)[where]
        return np.concatenate([found, np.full(per_shard - len(found), absent, values.dtype)])

    whole = table.index
    mask = None if whole.mask is None else part(whole.mask, 0)
    index = ChunkIndex(part(whole.offset, MISSING), part(whole.nbytes, MISSING), mask=mask)
    index.check_within(file.nbytes)
    return index
