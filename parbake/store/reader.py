"""Reads samples through a chunk map: maps files lazily, checks, decodes into the caller's buffers."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError
from parbake.store.chunkmap import MISSING, ByteSource, FieldMap
from parbake.store.codecs import CodecError, check_crc
from parbake.store.decoded import DecodedChunks
from parbake.store.gather import gather
from parbake.store.index import Window, ascending
from parbake.store.opened import (
    OPEN_FILES_MAX,
    ChunkAddresses,
    File,
    MappedFile,
    OpenFolder,
    PreadFile,
    Shard,
    open_shards,
)
from parbake.store.threads import in_slices

Checksums: TypeAlias = Literal["first", "always", "never"]

CACHE_NBYTES = 32 * 1024**2
_THREAD_NBYTES = 1 << 20  # less than this a thread is not worth its start
_SCRATCH_NBYTES = 4 << 20
_reader_numbers = itertools.count()
_FAULTS_OF = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)  # macOS does not count by thread


class Reader:
    """Reads samples of the fields in ``maps`` from files in ``folder``.

    The folder is held open by descriptor: when another store takes its place under the same path, reading
    goes on from the old files, or raises StoreReplacedError once they are gone; the two never mix.
    """

    def __init__(
        self,
        folder: OpenFolder,
        maps: Mapping[str, FieldMap],
        checksums: Checksums,
        use_mmap: bool,
        cache_nbytes: int,
    ) -> None:
        self.maps = dict(maps)
        self._folder = folder
        self._checksums = checksums
        self._use_mmap = use_mmap
        self.cache_nbytes = cache_nbytes
        self._sharing = frozenset(name for name, field in maps.items() if self._is_cached(field))
        self._number = next(_reader_numbers)
        self._addresses = {
            name: ChunkAddresses(field.chunks, field.layout.chunks_per_shard) for name, field in maps.items()
        }
        self._begin()

    def _begin(self) -> None:
        """In this process: nothing is decoded, and nobody holds a lock of a parent's thread."""
        self._local = threading.local()
        self._lock = threading.Lock()
        self._decoded: dict[str, DecodedChunks] = {}
        self._asked: dict[str, NDArray[np.bool_]] = {}  # chunks that the kernel was asked for
        self._process = os.getpid()  # last: a thread that finds it goes on with all of these

    def close(self) -> None:
        """Release the files and the folder; views handed out stay valid."""
        open_shards.drop(self._number)
        self._decoded = {}
        self._folder.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, TypeError):  # half made, or the interpreter going down
            open_shards.drop(self._number)

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
        cold = self._is_cold()
        if cold or not self._is_gathered(field):  # which knows what it has not read yet
            self._ask(field, index, cold)
        cut_from_map = window is not None and self._is_mapped_raw(field)
        nbytes = out.nbytes if cut_from_map else len(index) * field.layout.sample_nbytes
        threads = min(threads, 1 + nbytes // _THREAD_NBYTES)
        if window is not None:
            self._read_windows(field, index, out, window, threads)
        else:
            # rows of bytes: one memcpy a sample
            self._read_whole(field, index, out.reshape(len(index), -1).view(np.uint8), threads)
        if field.swapped:
            out.byteswap(inplace=True)

    def reserve(self, samples: int, names: Sequence[str], nbytes_max: int) -> int:
        """Keep decoded chunks of ``samples`` samples of these fields, in ``nbytes_max``; the bytes needed."""
        fields = [self.maps[name] for name in names if self._is_cached(self.maps[name])]
        wanted = sum(
            -(-min(samples, field.samples) // field.layout.chunk_samples) * field.layout.chunk_nbytes
            for field in fields
        )
        self._sharing = frozenset(field.name for field in fields)
        self.cache_nbytes = max(self.cache_nbytes, min(wanted, nbytes_max))
        self._decoded = {}
        return wanted

    def will_need(self, name: str, index: NDArray[np.int64]) -> None:
        """Ask the kernel to begin reading samples that are about to be read.

        Once in a process, and again when pages had to come from the disk lately.
        """
        self._ask(self.maps[name], index, self._is_cold())

    def _is_cold(self) -> bool:
        """Whether pages had to come from the disk since this thread asked last."""
        before = getattr(self._local, "faults", None)
        self._local.faults = resource.getrusage(_FAULTS_OF).ru_majflt
        return before not in (None, self._local.faults)

    def _ask(self, field: FieldMap, index: NDArray[np.int64], cold: bool) -> None:
        chunks = index // field.layout.chunk_samples
        asked = self._asked.get(field.name)
        if asked is None:
            asked = self._asked[field.name] = np.zeros(field.chunks, np.bool_)  # pages are touched as needed
        if not cold:
            chunks = chunks[~asked[chunks]]
        asked[chunks] = True
        for chunk in np.unique(chunks).tolist():
            number, entry = divmod(chunk, field.layout.chunks_per_shard)
            shard = self._shard(field, number)
            if shard.starts[entry] != MISSING:
                shard.file.will_need(shard.starts[entry], shard.stops[entry])

    def view(self, name: str, start: int, stop: int) -> NDArray[Any] | None:
        """A read-only view of samples [start, stop) in the map, or None where none is possible."""
        field = self.maps[name]
        chunk = start // field.layout.chunk_samples
        if (
            not self._is_mapped_raw(field)
            or field.swapped
            or (stop - 1) // field.layout.chunk_samples != chunk
        ):
            return None
        samples = self._raw_chunk(field, chunk).view(field.native_dtype)
        first = chunk * field.layout.chunk_samples
        return samples.reshape(-1, *field.layout.sample_shape)[start - first : stop - first]

    def payload(self, name: str, chunk: int) -> NDArray[np.uint8]:
        """The encoded bytes of one chunk, checked. Raises DamagedStoreError."""
        return self._payload(self.maps[name], chunk)

    def source(self, name: str, shard: int) -> ByteSource:
        """The bytes of one shard file, its size checked; not kept open. Raises DamagedStoreError."""
        field = self.maps[name]
        try:
            return self._open(field, shard)
        except CodecError as error:
            raise self._damaged(field, shard, None, error) from None

    # ---- ways of reading

    def _read_whole(
        self, field: FieldMap, index: NDArray[np.int64], rows: NDArray[np.uint8], threads: int
    ) -> None:
        layout = field.layout
        if self._is_gathered(field):
            if len(index) <= OPEN_FILES_MAX or layout.shard_count(field.samples) <= OPEN_FILES_MAX:
                self._gather(field, index, rows)
                return
            order, index = ascending(index)
            groups = index // (layout.shard_samples * OPEN_FILES_MAX)
            edges = [*np.flatnonzero(np.diff(groups, prepend=-1)).tolist(), len(index)]
            for start, stop in itertools.pairwise(edges):  # a gather holds all the files that it reads
                self._gather(field, index[start:stop], rows, order[start:stop])
            return
        order, index = ascending(index)
        if layout.chunk_samples == 1:
            in_slices(
                lambda part: self._read_samples(field, index[part], order[part], rows), len(index), threads
            )
        else:
            self._read_chunks(field, index, order, rows, threads)

    def _read_samples(
        self, field: FieldMap, index: NDArray[np.int64], order: NDArray[np.int64], rows: NDArray[np.uint8]
    ) -> None:
        """Samples that have a chunk each: straight into their rows. The hot path."""
        raw, nbytes, per_shard = (
            field.chain.name == "raw",
            field.layout.sample_nbytes,
            field.layout.shard_samples,
        )
        decode = field.chain.decode
        shard = self._shard(field, int(index[0]) // per_shard)
        for sample, position in zip(index.tolist(), order.tolist(), strict=True):
            number, entry = divmod(sample, per_shard)
            if number != shard.number:
                shard = self._shard(field, number)
            if not shard.admitted[entry]:
                self._read_first(field, shard, entry, rows[position])
                continue
            start = shard.starts[entry]
            if raw:
                rows[position] = shard.file.get(start, start + nbytes)
                continue
            try:
                decode(shard.file.get(start, shard.stops[entry]), rows[position])
            except CodecError as error:
                raise self._damaged(field, number, entry, error) from None

    def _gather(
        self,
        field: FieldMap,
        index: NDArray[np.int64],
        rows: NDArray[np.uint8],
        places: NDArray[np.int64] | None = None,
    ) -> None:
        """Small samples out of the maps, without a Python step a sample."""
        chunks, within = np.divmod(index, field.layout.chunk_samples)
        known = self._addresses[field.name]
        addresses, kept = known.lookup(chunks)
        touched = []  # maps must outlive the copy
        if not addresses.all():
            unknown = np.flatnonzero(addresses == 0)
            self._ask(field, index[unknown], cold=False)
            fresh, inverse = np.unique(chunks[unknown], return_inverse=True)
            found = np.empty(len(fresh), np.int64)
            for i, chunk in enumerate(fresh.tolist()):
                shard, entry = self._admitted(field, chunk)
                assert isinstance(shard.file, MappedFile)
                found[i] = shard.file.address + shard.starts[entry]
                known.put(chunk, shard, int(found[i]))
                touched.append(shard)
            addresses[unknown] = found[inverse]
        gather(addresses + within * field.layout.sample_nbytes, rows, places)
        del kept, touched

    def _read_chunks(
        self,
        field: FieldMap,
        index: NDArray[np.int64],
        order: NDArray[np.int64],
        rows: NDArray[np.uint8],
        threads: int,
    ) -> None:
        """Samples that share chunks: each chunk decoded once, into its rows where it is wanted whole."""
        layout = field.layout
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

        def decode_whole(part: slice) -> None:
            for chunk, place in whole[part]:
                self._decode(field, chunk, rows[place].reshape(-1))

        in_slices(decode_whole, len(whole), threads)
        if whole:
            chunks, within, order = chunks[loose], within[loose], order[loose]
            starts = np.flatnonzero(np.diff(chunks, prepend=-1))
        decoded = self._cache(field)
        groups = [*starts[:: decoded.slots].tolist(), len(chunks)]
        for first, stop in itertools.pairwise(groups):
            decoded.read(
                chunks[first:stop],
                within[first:stop] * layout.sample_nbytes,
                rows,
                order[first:stop],
                partial(self._decode, field),
                threads,
            )

    def _read_windows(
        self, field: FieldMap, index: NDArray[np.int64], out: NDArray[Any], window: Window, threads: int
    ) -> None:
        """Parts of samples: of raw ones nothing but the part, of others through whole ones."""
        layout = field.layout
        stored = out.view(layout.numpy_dtype)  # turned over with the rest, by the caller

        def from_map(part: slice) -> None:
            samples = map(partial(self._raw_sample, field), index[part].tolist())
            window.part(part).cut(samples, stored[part])

        if self._is_mapped_raw(field):
            in_slices(from_map, len(index), threads)
            return
        step = max(1, _SCRATCH_NBYTES // layout.sample_nbytes)
        for start in range(0, len(index), step):
            part = slice(start, start + step)
            rows = self._scratch(len(index[part]) * layout.sample_nbytes).reshape(-1, layout.sample_nbytes)
            self._read_whole(field, index[part], rows, threads)
            samples = rows.reshape(-1).view(layout.numpy_dtype).reshape(-1, *layout.sample_shape)
            window.part(part).cut(samples, stored[part])

    # ---- chunks

    def _is_mapped_raw(self, field: FieldMap) -> bool:
        return field.chain.name == "raw" and self._use_mmap

    def _is_gathered(self, field: FieldMap) -> bool:
        return field.layout.chunk_samples > 1 and self._is_mapped_raw(field) and self._checksums != "always"

    def _is_cached(self, field: FieldMap) -> bool:
        return field.layout.chunk_samples > 1 and not self._is_gathered(field)

    def _cache(self, field: FieldMap) -> DecodedChunks:
        """Decoded chunks of this process; each field has room for about as many samples."""
        with self._lock:
            decoded = self._decoded.get(field.name)
            if decoded is None or self._checksums == "always":
                names = self._sharing | {field.name}
                total = sum(self.maps[name].layout.sample_nbytes for name in names)
                share = self.cache_nbytes * field.layout.sample_nbytes // total
                slots = min(max(1, share // field.layout.chunk_nbytes), field.chunks)
                decoded = DecodedChunks(field.chunks, slots, field.layout.chunk_nbytes)
                if self._checksums == "always":  # what is kept would be checked no more
                    return decoded
                self._decoded[field.name] = decoded
            return decoded

    def _scratch(self, nbytes: int) -> NDArray[np.uint8]:
        buffer: NDArray[np.uint8] | None = getattr(self._local, "scratch", None)
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._local.scratch = np.empty(nbytes, np.uint8)
        return buffer[:nbytes]

    def _decode(self, field: FieldMap, chunk: int, out: NDArray[np.uint8]) -> None:
        """One chunk into ``out``, bytes [chunk_nbytes]."""
        number, entry = divmod(chunk, field.layout.chunks_per_shard)
        shard = self._shard(field, number)
        if not shard.admitted[entry]:  # what is decoded are the very bytes that were checked
            self._read_first(field, shard, entry, out)
            return
        try:
            field.chain.decode(shard.file.get(shard.starts[entry], shard.stops[entry]), out)
        except CodecError as error:
            raise self._damaged(field, number, entry, error) from None

    def _raw_sample(self, field: FieldMap, sample: int) -> NDArray[Any]:
        """A view of one sample in the map, byte order as on disk."""
        chunk, within = divmod(sample, field.layout.chunk_samples)
        samples = self._raw_chunk(field, chunk).view(field.layout.numpy_dtype)
        found: NDArray[Any] = samples.reshape(-1, *field.layout.sample_shape)[within]
        return found

    def _raw_chunk(self, field: FieldMap, chunk: int) -> NDArray[np.uint8]:
        payload = self._payload(field, chunk)
        try:
            return field.chain.raw_body(payload, field.layout.chunk_nbytes)
        except CodecError as error:
            raise self._damaged(field, *divmod(chunk, field.layout.chunks_per_shard), error) from None

    def _payload(self, field: FieldMap, chunk: int) -> NDArray[np.uint8]:
        shard, entry = self._admitted(field, chunk)
        return shard.file.get(shard.starts[entry], shard.stops[entry])

    def _admitted(self, field: FieldMap, chunk: int) -> tuple[Shard, int]:
        """The shard of a chunk and its place there, checked if this process has not read it yet."""
        number, entry = divmod(chunk, field.layout.chunks_per_shard)
        shard = self._shard(field, number)
        if not shard.admitted[entry]:
            self._read_first(field, shard, entry, None)
        return shard, entry

    def _read_first(self, field: FieldMap, shard: Shard, entry: int, out: NDArray[np.uint8] | None) -> None:
        """Check a chunk that this process has not read yet, or that is to be checked always; decode it."""
        try:
            if shard.starts[entry] == MISSING:
                raise CodecError("the chunk is missing")
            payload = shard.file.get(shard.starts[entry], shard.stops[entry])
            body = None
            if field.chain.name == "raw":
                body = field.chain.raw_body(payload, field.layout.chunk_nbytes)
                if out is not None:  # the copy is checked: it is in the cache now
                    np.copyto(out, body)
                    body = out
            if self._checksums != "never":
                check_crc(payload, body)
            if field.chain.name != "raw" and out is not None:
                field.chain.decode(payload, out)
        except CodecError as error:
            raise self._damaged(field, shard.number, entry, error) from None
        shard.admitted[entry] = self._checksums != "always"

    def _shard(self, field: FieldMap, number: int) -> Shard:
        key = (self._number, field.name, number)
        shard = open_shards.get(key)
        if shard is None:
            try:
                file = self._open(field, number)
                index = field.scan(file, number)
            except CodecError as error:
                raise self._damaged(field, number, None, error) from None
            shard = open_shards.put(key, Shard(number, file, index, self._addresses[field.name]))
        return shard

    def _open(self, field: FieldMap, number: int) -> File:
        name = field.file_name(number)
        try:
            descriptor = self._folder.open(name)
        except FileNotFoundError:
            raise CodecError(f"the file {name} is missing") from None
        nbytes = os.fstat(descriptor).st_size
        recorded = field.file_nbytes(number)
        if nbytes != recorded:
            os.close(descriptor)
            raise CodecError(f"the file {name} has {nbytes} bytes where {recorded} were written")
        if not self._use_mmap:
            return PreadFile(descriptor, nbytes)
        try:
            return MappedFile(descriptor, nbytes)
        finally:
            os.close(descriptor)

    def _damaged(
        self, field: FieldMap, shard: int, entry: int | None, error: CodecError
    ) -> DamagedStoreError:
        """What to raise for a fault in a chunk, or in a whole shard."""
        layout = field.layout
        start = shard * layout.shard_samples
        where, stop = f"shard {shard}", start + layout.shard_samples
        if entry is not None:
            start += entry * layout.chunk_samples
            where, stop = f"chunk {shard * layout.chunks_per_shard + entry}", start + layout.chunk_samples
        return DamagedStoreError(
            f"{self._folder.path}: field {field.name!r}, {where} (samples "
            f"{start}-{min(stop, field.samples) - 1}) in {field.file_name(shard)}: {error}; "
            f"run 'parbake verify {self._folder.path} --repair RECIPE'"
        )


def _whole_rows(places: NDArray[np.int64], within: NDArray[np.int64]) -> slice | None:
    """The rows of a whole chunk that is wanted in its own order, else None."""
    straight = (np.diff(within) == 1).all() and (np.diff(places) == 1).all()
    return slice(int(places[0]), int(places[0]) + len(places)) if straight else None
