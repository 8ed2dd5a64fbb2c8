"""Checks every byte of a store against its recorded checksums."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from crc32c import crc32c

from parbake.errors import DamagedStoreError
from parbake.store.chunkmap import MISSING, AnyMap, ChunkIndex, FieldMap, TiledMap
from parbake.store.codecs import CRC_NBYTES, CodecError, check_crc
from parbake.store.document import Manifest
from parbake.store.reader import Reader
from parbake.store.shard import HEADER_NBYTES, scan_shard
from parbake.store.zarr_format import shard_file

if TYPE_CHECKING:
    from parbake.store.store import Store

_BLOCK_NBYTES = 4 * 1024**2
_ASSEMBLED_MAX = 2  # shards that are put together in memory at a time, of 64 MiB each


@dataclass(frozen=True)
class Damage:
    """One damaged place: a file inside the store and, where it is a shard, its field and samples.

    ``start``, ``stop``: the samples that cannot be trusted, half-open; equal where none are concerned.
    """

    file: str
    field: str | None
    start: int
    stop: int
    found: str

    def __str__(self) -> str:
        if self.field is None:
            return f"{self.file}: {self.found}"
        return f"{self.file}: field {self.field!r}, samples {self.start}-{self.stop - 1}: {self.found}"


@dataclass(frozen=True)
class VerifyReport:
    """What verification found; true when the store is whole.

    ``unchecked``: fields of a foreign file that have no checksums: they were read and decoded.
    """

    damaged: tuple[Damage, ...]
    checked_nbytes: int
    unchecked: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.damaged

    def __repr__(self) -> str:
        """The first damage, and how much more there is."""
        found = "whole"
        if self.damaged:
            more = len(self.damaged) - 1
            found = f"damaged: {self.damaged[0]}{f'; and {more:,} more' if more else ''}"
        unchecked = f"; without checksums: {', '.join(self.unchecked)}" if self.unchecked else ""
        return f"<parbake.VerifyReport: {found}; {self.checked_nbytes:,} bytes checked{unchecked}>"

    def _repr_html_(self) -> str:
        """For notebooks: whole, or a table of what is damaged."""
        from parbake.browse.verdicts import verified_html

        return verified_html(self)


def verify(store: Store) -> VerifyReport:
    """Compare all metadata with the seal and all shards with the manifest, chunk by chunk.

    The seal itself was compared when the store was opened. Of a foreign file: the checksums that it has.
    """
    if store.is_foreign:
        return _verify_foreign(store)
    damaged = [Damage(file, None, 0, 0, found) for file, found in store.sealed.faults()]
    try:
        store.contents.coords()
    except DamagedStoreError as error:
        damaged.append(Damage("coordinates", None, 0, 0, str(error)))
    checked = 0
    with ThreadPoolExecutor(None if store.sealed.shard is None else _ASSEMBLED_MAX) as pool:
        for name in store.fields:
            layout = store.fields[name].layout
            samples = store.stored_samples
            try:
                manifest = store.manifest(name)
            except DamagedStoreError as error:
                damaged.append(Damage(f"manifest/{name}", name, 0, samples, str(error)))
                continue
            shards = range(layout.shard_count(samples))
            jobs = pool.map(partial(_shard_faults, store, name, manifest), shards)
            for faults in jobs:
                damaged += faults
            checked += int(manifest.nbytes.sum())
    return VerifyReport(tuple(damaged), checked)


def _verify_foreign(store: Store) -> VerifyReport:
    """Read every chunk: checksums are compared, and what must be decoded is."""
    reader = Reader(store.contents.maps, replace(store.reader.access, checksums="always"), 0)
    damaged: list[Damage] = []
    for name, field in store.fields.items():
        chunks = max(1, _BLOCK_NBYTES // field.layout.chunk_nbytes)
        damaged += _read_faults(store, reader, name, range(store.stored_samples), chunks)
    unchecked = tuple(name for name, field in store.contents.maps.items() if not _has_checksums(field))
    checked = sum(store.nbytes_stored(name) for name in store.fields if name not in unchecked)
    return VerifyReport(tuple(damaged), checked, unchecked)


def _read_faults(store: Store, reader: Reader, name: str, samples: range, chunks: int) -> Iterator[Damage]:
    """What cannot be read, ``chunks`` at once, and where one of them fails, each alone."""
    field = store.fields[name]
    step = chunks * field.layout.chunk_samples
    for first in samples[::step]:
        last = min(first + step, samples.stop)
        out = np.empty((last - first, *field.shape), store[name].dtype)
        try:
            reader.read_field(name, np.arange(first, last), out)
        except DamagedStoreError as error:
            if chunks > 1:
                yield from _read_faults(store, reader, name, range(first, last), 1)
            else:
                # without the path, and the field and samples that are told anyhow
                found = str(error).split(": ", 1)[-1].removesuffix(f"; {reader.access.remedy}")
                found = found.removeprefix(f"field {name!r}, ")
                yield Damage(store.path.name, name, first, last, found)


def _has_checksums(field: AnyMap) -> bool:
    if isinstance(field, TiledMap):
        return field.tiles[0].map.chain.has_checksum
    return isinstance(field, FieldMap) and field.chain.has_checksum


def _shard_faults(store: Store, name: str, manifest: Manifest, shard: int) -> list[Damage]:
    return list(_faults_of(store, name, int(manifest.crc32c[shard]), shard))


def _faults_of(store: Store, name: str, recorded: int, shard: int) -> Iterator[Damage]:
    layout = store.fields[name].layout
    file = shard_file(name, len(layout.sample_shape), shard)
    first = shard * layout.shard_samples
    last = min(first + layout.shard_samples, store.stored_samples)
    try:
        source = store.shard(name, shard)
        index = scan_shard(source, shard, last - first, layout.chunks_per_shard, store.identity(name))
    except (DamagedStoreError, CodecError) as error:
        found = str(error).split("; run ")[0]
        # without the path, field and file, which are told anyhow
        yield Damage(file, name, first, last, found.rsplit(f"{file}: ", 1)[-1])
        return
    blamed = False
    checksum, done = 0, 0  # of all bytes up to ``done`` but the CRCs among them
    for end in (HEADER_NBYTES, *_chunk_ends(index), source.nbytes):
        checksum = crc32c(source.get(done, max(end - CRC_NBYTES, done)).data, checksum)
        done = end
    for entry in range(-(-(last - first) // layout.chunk_samples)):
        start = first + entry * layout.chunk_samples
        offset, nbytes = int(index.offset[entry]), int(index.nbytes[entry])
        try:
            if offset == MISSING:
                raise CodecError("the chunk is missing")
            check_crc(source.get(offset, offset + nbytes))
        except CodecError as error:
            blamed = True
            yield Damage(file, name, start, min(start + layout.chunk_samples, last), str(error))
    if checksum != recorded and not blamed:
        found = f"checksum {checksum:#010x} where {recorded:#010x} is recorded: not the shard that was baked"
        yield Damage(file, name, first, last, found)


def _chunk_ends(index: ChunkIndex) -> list[int]:
    return [int(end) for end in (index.offset + index.nbytes)[index.offset != MISSING]]
