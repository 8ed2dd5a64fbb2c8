"""Reads samples of fields through their maps: which way each goes, windows, tiles, what stays decoded."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from parbake.store.chunkmap import AnyMap, ByteSource, FetchedMap, FieldMap, TiledMap
from parbake.store.chunks import Access, FieldChunks, OpenedFiles
from parbake.store.decoded import DecodedChunks
from parbake.store.index import Window, ascending
from parbake.store.layout import FieldLayout
from parbake.store.opened import OPEN_FILES_MAX, open_shards
from parbake.store.threads import in_slices

CACHE_NBYTES = 32 * 1024**2
_THREAD_NBYTES = 1 << 20  # less than this a thread is not worth its start
_SCRATCH_NBYTES = 4 << 20
_FAULTS_OF = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)  # macOS does not count by thread


class Reader:
    """Reads samples of the fields in ``maps``.

    The container is held open by descriptor: when another store takes its place under the same path, reading
    goes on from the old files, or raises StoreReplacedError once they are gone; the two never mix.
    """

    def __init__(self, maps: Mapping[str, AnyMap], access: Access, cache_nbytes: int) -> None:
        self.maps = dict(maps)
        self.access = access
        self.cache_nbytes = cache_nbytes
        opened: OpenedFiles = WeakValueDictionary()
        self._parts = {name: _parts(field, access, opened) for name, field in maps.items()}
        self._sharing = frozenset(name for name in maps if self._is_cached(name))
        self._begin()

    def _begin(self) -> None:
        """In this process: nothing is decoded, and nobody holds a lock of a parent's thread."""
        self._local = threading.local()
        self._lock = threading.Lock()
        self._decoded: dict[object, DecodedChunks] = {}
        for part in self._chunks():
            part.asked = np.zeros(0, np.bool_)
        self._process = os.getpid()  # last: a thread that finds it goes on with all of these

    def _chunks(self) -> Iterator[FieldChunks]:
        for part in itertools.chain.from_iterable(self._parts.values()):
            if isinstance(part, FieldChunks):
                yield part

    def close(self) -> None:
        """Release the files; views handed out stay valid."""
        for part in self._chunks():
            part.close()
        self._decoded = {}
        self.access.files.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, TypeError):  # half made, or the interpreter going down
            for part in self._chunks():
                part.close()

    def read_field(
        self,
        name: str,
        index: NDArray[np.int64],
        out: NDArray[Any],
        window: Window | None = None,
        threads: int = 1,
    ) -> None:
        """Read samples ``index`` (non-negative, in range) into ``out`` [len(index), *shape], native order.

        ``window``: the part of each sample to read. Raises DamagedStoreError, StoreReplacedError.
        """
        field = self.maps[name]
        if out.nbytes == 0:
            return
        if self._process != os.getpid():
            with open_shards.lock:  # several threads of the child may come first
                if self._process != os.getpid():
                    self._begin()
        self._ask(name, index, at_once=True)
        cut_from_map = window is not None and self._mapped_raw(name) is not None
        nbytes = out.nbytes if cut_from_map else len(index) * field.layout.sample_nbytes
        threads = min(threads, 1 + nbytes // _THREAD_NBYTES)
        if window is not None:
            self._read_windows(name, index, out, window, threads)
        else:
            self._read_whole(name, index, out, threads)
        if field.swapped:
            out.byteswap(inplace=True)

    def reserve(self, samples: int, names: Sequence[str], nbytes_max: int) -> int:
        """Keep decoded chunks of ``samples`` samples of these fields, in ``nbytes_max``; the bytes needed."""
        cached = [name for name in names if self._is_cached(name)]
        wanted = sum(
            -(-min(samples, self.maps[name].samples) // layout.chunk_samples) * layout.chunk_nbytes
            for name in cached
            for layout in map(_layout_of, self._parts[name])
        )
        self._sharing = frozenset(cached)
        self.cache_nbytes = max(self.cache_nbytes, min(wanted, nbytes_max))
        self._decoded = {}
        return wanted

    def will_need(self, name: str, index: NDArray[np.int64]) -> None:
        """Ask the kernel to begin reading samples that are about to be read.

        Once in a process, and again when pages had to come from the disk lately.
        """
        self._ask(name, index, at_once=False)

    def _is_cold(self) -> bool:
        """Whether pages had to come from the disk since this thread asked last."""
        before = getattr(self._local, "faults", None)
        self._local.faults = resource.getrusage(_FAULTS_OF).ru_majflt
        return before not in (None, self._local.faults)

    def _ask(self, name: str, index: NDArray[np.int64], at_once: bool) -> None:
        """``at_once``: they are read now."""
        cold = self._is_cold()
        for part in self._parts[name]:
            # who gathers knows what it has not read yet
            if isinstance(part, FieldChunks) and (cold or not (at_once and part.is_gathered)):
                part.ask(index, again=cold)

    def check(self, name: str, threads: int = 1) -> None:
        """Compare the checksums of all chunks of a field, as when each is first read.

        Raises DamagedStoreError.
        """
        for part in self._parts[name]:
            assert isinstance(part, FieldChunks)
            in_slices(part.check, part.field.chunks, threads)

    def view(self, name: str, start: int, stop: int) -> NDArray[Any] | None:
        """A read-only view of samples [start, stop) in the map, or None where none is possible."""
        field, part = self.maps[name], self._mapped_raw(name)
        chunk = start // field.layout.chunk_samples
        if part is None or field.swapped or (stop - 1) // field.layout.chunk_samples != chunk:
            return None
        first = chunk * field.layout.chunk_samples
        return part.raw_chunk(chunk)[start - first : stop - first]

    def source(self, name: str, shard: int) -> ByteSource:
        """The bytes of one shard file, its size checked; not kept open. Raises DamagedStoreError."""
        [part] = self._parts[name]
        assert isinstance(part, FieldChunks)
        return part.source(shard)

    # ---- ways of reading

    def _read_whole(self, name: str, index: NDArray[np.int64], out: NDArray[Any], threads: int) -> None:
        """Whole samples into ``out`` [k, *shape], byte order as on disk."""
        field = self.maps[name]
        if isinstance(field, TiledMap):
            self._read_tiles(field, index, out, threads)
            return
        # rows of bytes: one memcpy a sample
        [part] = self._parts[name]
        self._read_part(part, index, out.reshape(len(index), -1).view(np.uint8), threads)

    def _read_tiles(self, field: TiledMap, index: NDArray[np.int64], out: NDArray[Any], threads: int) -> None:
        largest = max(tile.map.layout.sample_nbytes for tile in field.tiles)
        step = max(1, _SCRATCH_NBYTES // largest)
        for start in range(0, len(index), step):
            some = slice(start, start + step)
            for tile, part in zip(field.tiles, self._parts[field.name], strict=True):
                layout = tile.map.layout
                nbytes = len(index[some]) * layout.sample_nbytes
                rows = self._scratch("tiles", nbytes).reshape(-1, layout.sample_nbytes)
                self._read_part(part, index[some], rows, threads)
                samples = rows.reshape(-1).view(layout.numpy_dtype).reshape(-1, *layout.sample_shape)
                target = out[(some, *tile.region)]
                target[...] = samples[(slice(None), *map(slice, target.shape[1:]))].view(out.dtype)

    def _read_part(
        self, part: _Part, index: NDArray[np.int64], rows: NDArray[np.uint8], threads: int
    ) -> None:
        layout = _layout_of(part)
        if isinstance(part, FieldChunks) and part.is_gathered:
            if len(index) <= OPEN_FILES_MAX or layout.shard_count(part.field.samples) <= OPEN_FILES_MAX:
                part.gather(index, rows)
                return
            order, index = ascending(index)
            groups = index // (layout.shard_samples * OPEN_FILES_MAX)
            edges = [*np.flatnonzero(np.diff(groups, prepend=-1)).tolist(), len(index)]
            for start, stop in itertools.pairwise(edges):  # a gather holds all the files that it reads
                part.gather(index[start:stop], rows, order[start:stop])
            return
        order, index = ascending(index)
        if isinstance(part, FieldChunks) and layout.chunk_samples == 1:
            in_slices(lambda some: part.read_samples(index[some], order[some], rows), len(index), threads)
        else:
            self._read_chunks(part, index, order, rows, threads)

    def _read_chunks(
        self,
        part: _Part,
        index: NDArray[np.int64],
        order: NDArray[np.int64],
        rows: NDArray[np.uint8],
        threads: int,
    ) -> None:
        """Samples that share chunks: each chunk decoded once, into its rows where it is wanted whole."""
        layout = _layout_of(part)
        chunks, within = np.divmod(index, layout.chunk_samples)
        starts = np.flatnonzero(np.diff(chunks, prepend=-1))
        loose = np.ones(len(index), np.bool_)
        whole: list[tuple[int, slice]] = []
        for start in starts[np.diff(starts, append=len(index)) == layout.chunk_samples].tolist():
            run = slice(start, start + layout.chunk_samples)
            place = _whole_rows(order[run], within[run])
            if place is not None:
                loose[run] = False
                whole.append((int(chunks[start]), place))

        def decode_whole(some: slice) -> None:
            for chunk, place in whole[some]:
                part.decode(chunk, rows[place].reshape(-1))

        in_slices(decode_whole, len(whole), threads)
        if whole:
            chunks, within, order = chunks[loose], within[loose], order[loose]
            starts = np.flatnonzero(np.diff(chunks, prepend=-1))
        if not len(chunks):
            return
        decoded = self._cache(part)
        groups = [*starts[:: decoded.slots].tolist(), len(chunks)]
        for first, stop in itertools.pairwise(groups):
            decoded.read(
                chunks[first:stop],
                within[first:stop] * layout.sample_nbytes,
                rows,
                order[first:stop],
                part.decode,
                threads,
            )

    def _read_windows(
        self, name: str, index: NDArray[np.int64], out: NDArray[Any], window: Window, threads: int
    ) -> None:
        """Parts of samples: of raw ones nothing but the part, of others through whole ones."""
        layout = self.maps[name].layout
        stored = out.view(layout.numpy_dtype)  # turned over with the rest, by the caller
        part = self._mapped_raw(name)
        if part is not None:
            raw_sample: Callable[[int], NDArray[Any]] = part.raw_sample

            def from_map(some: slice) -> None:
                window.part(some).cut(map(raw_sample, index[some].tolist()), stored[some])

            in_slices(from_map, len(index), threads)
            return
        step = max(1, _SCRATCH_NBYTES // layout.sample_nbytes)
        for start in range(0, len(index), step):
            some = slice(start, start + step)
            scratch = self._scratch("windows", len(index[some]) * layout.sample_nbytes)
            samples = scratch.view(layout.numpy_dtype).reshape(-1, *layout.sample_shape)
            self._read_whole(name, index[some], samples, threads)
            window.part(some).cut(samples, stored[some])

    # ---- memory

    def _mapped_raw(self, name: str) -> FieldChunks | None:
        """The chunks of a field whose samples can be had as views of the map."""
        part = self._parts[name][0]
        whole = isinstance(self.maps[name], FieldMap)
        return part if whole and isinstance(part, FieldChunks) and part.is_mapped_raw else None

    def _is_cached(self, name: str) -> bool:
        return any(not isinstance(part, FieldChunks) or part.is_cached for part in self._parts[name])

    def _cache(self, part: _Part) -> DecodedChunks:
        """Decoded chunks of this process; each field has room for about as many samples."""
        with self._lock:
            decoded = self._decoded.get(part)
            if decoded is not None and self.access.checksums != "always":
                return decoded
            layout = _layout_of(part)
            names = self._sharing | {layout.name}
            total = sum(_layout_of(other).sample_nbytes for name in names for other in self._parts[name])
            share = self.cache_nbytes * layout.sample_nbytes // total
            chunks = -(-self.maps[layout.name].samples // layout.chunk_samples)
            slots = min(max(1, share // layout.chunk_nbytes), chunks)
            decoded = DecodedChunks(chunks, slots, layout.chunk_nbytes)
            alone = len(self._parts[layout.name]) == 1
            # what is kept would be checked no more; many tiles with a chunk each may be far over the share
            if self.access.checksums != "always" and (alone or share >= layout.chunk_nbytes):
                self._decoded[part] = decoded
            return decoded

    def _scratch(self, purpose: str, nbytes: int) -> NDArray[np.uint8]:
        buffer: NDArray[np.uint8] | None = getattr(self._local, purpose, None)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = np.empty(nbytes, np.uint8)
            setattr(self._local, purpose, buffer)
        return buffer[:nbytes]


class _Fetched:
    """The samples of a field that another library reads, in pieces like chunks."""

    def __init__(self, field: FetchedMap) -> None:
        self.field = field

    def decode(self, chunk: int, out: NDArray[np.uint8]) -> None:
        """One piece into ``out``, bytes [chunk_nbytes]."""
        layout = self.field.layout
        start = chunk * layout.chunk_samples
        stop = min(start + layout.chunk_samples, self.field.samples)
        samples = np.ascontiguousarray(self.field.fetch(start, stop), layout.numpy_dtype)
        out[: samples.nbytes] = samples.reshape(-1).view(np.uint8)


_Part = FieldChunks | _Fetched


def _parts(field: AnyMap, access: Access, opened: OpenedFiles) -> Sequence[_Part]:
    if isinstance(field, FetchedMap):
        return [_Fetched(field)]
    maps = [field] if isinstance(field, FieldMap) else [tile.map for tile in field.tiles]
    return [FieldChunks(one, access, opened) for one in maps]


def _layout_of(part: _Part) -> FieldLayout:
    return part.field.layout


def _whole_rows(places: NDArray[np.int64], within: NDArray[np.int64]) -> slice | None:
    """The rows of a whole chunk that is wanted in its own order, else None."""
    straight = (np.diff(within) == 1).all() and (np.diff(places) == 1).all()
    return slice(int(places[0]), int(places[0]) + len(places)) if straight else None
