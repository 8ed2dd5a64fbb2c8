"""The chunks of one map: found, opened, checked once in a process, decoded."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError
from parbake.store.chunkmap import MISSING, ByteSource, ChunkIndex, FieldMap
from parbake.store.codecs import CodecError, Decoder, check_crc
from parbake.store.gather import gather
from parbake.store.opened import (
    AbsentFile,
    ChunkAddresses,
    File,
    Files,
    MappedFile,
    PreadFile,
    Shard,
    open_shards,
)

Checksums: TypeAlias = Literal["first", "always", "never"]

_numbers = itertools.count()


@dataclass(frozen=True)
class Access:
    """Where the files of a container are and how they are read. ``remedy``: what to do about damage."""

    files: Files
    checksums: Checksums
    use_mmap: bool
    remedy: str


OpenedFiles: TypeAlias = "WeakValueDictionary[str, MappedFile | PreadFile]"
"""Files of one container by name, for as long as a shard holds them: each is mapped once, however many shards
and tiles lie in it."""


class FieldChunks:
    """The chunks of one map. It may be used in threads side by side, and after a fork."""

    def __init__(self, field: FieldMap, access: Access, opened: OpenedFiles) -> None:
        """``opened``: shared with other maps whose chunks may lie in the same files."""
        self.field = field
        self._access = access
        self._opened = opened
        self._files = access.files
        self._checksums = access.checksums
        self._number = next(_numbers)
        self._addresses = ChunkAddresses(field.chunks, field.layout.chunks_per_shard)
        self.asked = np.zeros(0, np.bool_)  # chunks that the kernel was asked for, in this process

    def close(self) -> None:
        """Release the files."""
        open_shards.drop(self._number)

    @property
    def is_mapped_raw(self) -> bool:
        return self.field.chain.is_raw and self._access.use_mmap

    @property
    def is_gathered(self) -> bool:
        """Whether small samples are copied out of the maps, many by one call."""
        return self.field.layout.chunk_samples > 1 and self.is_mapped_raw and self._checksums != "always"

    @property
    def is_cached(self) -> bool:
        """Whether samples share chunks that must be decoded."""
        return self.field.layout.chunk_samples > 1 and not self.is_gathered

    def ask(self, index: NDArray[np.int64], again: bool) -> None:
        """Ask the kernel to begin reading samples; ``again``: also where it was asked before."""
        chunks = index // self.field.layout.chunk_samples
        if not len(self.asked):
            self.asked = np.zeros(self.field.chunks, np.bool_)  # pages are touched as needed
        if not again:
            chunks = chunks[~self.asked[chunks]]
            if not len(chunks):
                return
        self.asked[chunks] = True
        for chunk in np.unique(chunks).tolist():
            number, entry = divmod(chunk, self.field.layout.chunks_per_shard)
            shard = self._shard(number)
            if shard.starts[entry] != MISSING:
                shard.file.will_need(shard.starts[entry], shard.stops[entry])

    def source(self, shard: int) -> ByteSource:
        """The bytes of one shard file, its size checked; not kept open. Raises DamagedStoreError."""
        try:
            return self._open(shard)
        except CodecError as error:
            raise self._damaged(shard, None, error) from None

    # ---- samples

    def read_samples(
        self, index: NDArray[np.int64], order: NDArray[np.int64], rows: NDArray[np.uint8]
    ) -> None:
        """Samples that have a chunk each: straight into their rows. The hot path."""
        field = self.field
        raw, nbytes, per_shard = field.chain.is_raw, field.layout.sample_nbytes, field.layout.shard_samples
        decode = field.chain.decode
        shard = self._shard(int(index[0]) // per_shard)
        for sample, position in zip(index.tolist(), order.tolist(), strict=True):
            number, entry = divmod(sample, per_shard)
            if number != shard.number:
                shard = self._shard(number)
            if not shard.admitted[entry]:
                self._read_first(shard, entry, rows[position])
                continue
            start = shard.starts[entry]
            if raw:
                rows[position] = shard.file.get(start, start + nbytes)
                continue
            try:
                decode(shard.file.get(start, shard.stops[entry]), rows[position])
            except CodecError as error:
                raise self._damaged(number, entry, error) from None

    def gather(
        self,
        index: NDArray[np.int64],
        rows: NDArray[np.uint8],
        places: NDArray[np.int64] | None = None,
    ) -> None:
        """Small samples out of the maps, without a Python step a sample."""
        layout = self.field.layout
        chunks, within = np.divmod(index, layout.chunk_samples)
        addresses, kept = self._addresses.lookup(chunks)
        touched = []  # maps must outlive the copy
        if not addresses.all():
            unknown = np.flatnonzero(addresses == 0)
            self.ask(index[unknown], again=False)
            fresh, inverse = np.unique(chunks[unknown], return_inverse=True)
            found = np.empty(len(fresh), np.int64)
            for i, chunk in enumerate(fresh.tolist()):
                shard, entry = self._admitted(chunk)
                found[i] = self._address(shard, entry)
                self._addresses.put(chunk, shard, int(found[i]))
                touched.append(shard)
            addresses[unknown] = found[inverse]
        offsets = within * layout.sample_nbytes
        if "_absent" in vars(self):  # all samples of what is not there are one
            offsets[addresses == self._absent.ctypes.data] = 0
        gather(addresses + offsets, rows, places)
        del kept, touched

    def _address(self, shard: Shard, entry: int) -> int:
        if shard.starts[entry] == MISSING:
            return int(self._absent.ctypes.data)
        assert isinstance(shard.file, MappedFile)
        return shard.file.address + shard.starts[entry]

    def raw_sample(self, sample: int) -> NDArray[Any]:
        """A view of one raw sample, byte order as on disk."""
        chunk, within = divmod(sample, self.field.layout.chunk_samples)
        found: NDArray[Any] = self.raw_chunk(chunk)[within]
        return found

    # ---- chunks

    def decode(self, chunk: int, out: NDArray[np.uint8]) -> None:
        """One chunk into ``out``, bytes [chunk_nbytes]."""
        number, entry = divmod(chunk, self.field.layout.chunks_per_shard)
        shard = self._shard(number)
        if not shard.admitted[entry]:  # what is decoded are the very bytes that were checked
            self._read_first(shard, entry, out)
            return
        try:
            payload = shard.file.get(shard.starts[entry], shard.stops[entry])
            if self.field.chain.is_raw:
                body = self.field.chain.raw_body(payload, self._body_nbytes(chunk))
                out[: body.nbytes] = body
            else:
                self.field.chain.decode(payload, out)
        except CodecError as error:
            raise self._damaged(number, entry, error) from None

    def check(self, chunks: slice) -> None:
        """Compare the checksums of some chunks. Raises DamagedStoreError."""
        for chunk in range(chunks.start, chunks.stop):
            number, entry = divmod(chunk, self.field.layout.chunks_per_shard)
            self._read_first(self._shard(number), entry, None)

    def raw_chunk(self, chunk: int) -> NDArray[Any]:
        """A view of the samples of a raw chunk [k, *shape], checked, byte order as on disk."""
        layout = self.field.layout
        shard, entry = self._admitted(chunk)
        if shard.starts[entry] == MISSING:
            sample = self._absent.view(layout.numpy_dtype).reshape(layout.sample_shape)
            return np.broadcast_to(sample, (layout.chunk_samples, *layout.sample_shape))
        try:
            payload = shard.file.get(shard.starts[entry], shard.stops[entry])
            body = self._chain(shard, entry).raw_body(payload, self._body_nbytes(chunk))
        except CodecError as error:
            raise self._damaged(shard.number, entry, error) from None
        return body.view(layout.numpy_dtype).reshape(-1, *layout.sample_shape)

    def _body_nbytes(self, chunk: int) -> int:
        layout = self.field.layout
        samples = layout.chunk_samples
        if self.field.cut_end:
            samples = min(samples, self.field.samples - chunk * layout.chunk_samples)
        return samples * layout.sample_nbytes

    def _chain(self, shard: Shard, entry: int) -> Decoder:
        mask = 0 if shard.masks is None else int(shard.masks[entry])
        return self.field.chain.without(mask) if mask else self.field.chain

    @cached_property
    def _absent(self) -> NDArray[np.uint8]:
        """One sample of a chunk that is not there, as bytes: a whole chunk may be large, and is nowhere."""
        layout = self.field.layout
        sample = np.empty(layout.sample_nbytes, np.uint8)
        self._fill(sample)
        sample.flags.writeable = False
        return sample

    def _fill(self, out: NDArray[np.uint8]) -> None:
        assert self.field.fill is not None
        out.view(self.field.layout.numpy_dtype)[:] = self.field.fill

    def _admitted(self, chunk: int) -> tuple[Shard, int]:
        """The shard of a chunk and its place there, checked if this process has not read it yet."""
        number, entry = divmod(chunk, self.field.layout.chunks_per_shard)
        shard = self._shard(number)
        if not shard.admitted[entry]:
            self._read_first(shard, entry, None)
        return shard, entry

    def _read_first(self, shard: Shard, entry: int, out: NDArray[np.uint8] | None) -> None:
        """Check a chunk that this process has not read yet, or that is to be checked always; decode it.

        Chunks that are absent, or lack a filter, come here each time.
        """
        try:
            if shard.starts[entry] == MISSING:
                if self.field.fill is None:
                    raise CodecError("the chunk is missing")
                if out is not None:
                    self._fill(out)
                return
            chain = self._chain(shard, entry)
            payload = shard.file.get(shard.starts[entry], shard.stops[entry])
            chunk = shard.number * self.field.layout.chunks_per_shard + entry
            body = None
            if chain.is_raw:
                body = chain.raw_body(payload, self._body_nbytes(chunk))
                if out is not None:  # the copy is checked: it is in the cache now
                    out[: body.nbytes] = body
                    body = out[: body.nbytes]
            if self._checksums != "never":
                if shard.crcs is not None:
                    check_crc(payload, body, int(shard.crcs[entry]))
                else:
                    chain.check(payload, body)
            if not chain.is_raw and out is not None:
                chain.decode(payload, out)
        except CodecError as error:
            raise self._damaged(shard.number, entry, error) from None
        shard.admitted[entry] = self._checksums != "always" and chain is self.field.chain

    # ---- shards

    def _shard(self, number: int) -> Shard:
        key = (self._number, number)
        shard = open_shards.get(key)
        if shard is None:
            try:
                file = self._open(number)
                if isinstance(file, AbsentFile):
                    index = ChunkIndex.empty(self.field.layout.chunks_per_shard)
                else:
                    index = self.field.scan(file, number)
            except CodecError as error:
                raise self._damaged(number, None, error) from None
            shard = open_shards.put(key, Shard(number, file, index, self._addresses))
        return shard

    def _open(self, number: int) -> File:
        name = self.field.file_name(number)
        recorded = self.field.file_nbytes(number)
        held = self._opened.get(name)
        if held is not None and recorded in (None, held.nbytes):
            return held
        try:
            span = self._files.open(name)
        except FileNotFoundError:
            if self.field.fill is not None:
                return AbsentFile()
            raise CodecError(f"the file {name} is missing") from None
        if recorded is not None and span.nbytes != recorded:
            os.close(span.descriptor)
            raise CodecError(f"the file {name} has {span.nbytes} bytes where {recorded} were written")
        if not self._access.use_mmap or not span.nbytes:
            return self._opened.setdefault(name, PreadFile(span))
        try:
            return self._opened.setdefault(name, MappedFile(span))
        finally:
            os.close(span.descriptor)

    def _damaged(self, shard: int, entry: int | None, error: CodecError) -> DamagedStoreError:
        """What to raise for a fault in a chunk, or in a whole shard."""
        layout = self.field.layout
        start = shard * layout.shard_samples
        where, stop = f"shard {shard}", start + layout.shard_samples
        if entry is not None:
            start += entry * layout.chunk_samples
            where, stop = f"chunk {shard * layout.chunks_per_shard + entry}", start + layout.chunk_samples
        return DamagedStoreError(
            f"{self._files.path}: field {self.field.name!r}, {where} (samples "
            f"{start}-{min(stop, self.field.samples) - 1}) in {self.field.file_name(shard)}: {error}; "
            f"{self._access.remedy}"
        )
