"""The bytes of one shard file: header, payloads at multiples of 64 bytes, index at the end. Pure.

Zarr v3 sharding codec, section "Binary shard format", with ``index_location: end``. The header lies in
a gap before the first payload, which the codec allows: it says which field, bake and shard this is, so
that a shard in the wrong place is found where checksums alone find nothing.

The checksum of a whole shard is the CRC-32C of all its bytes but the CRCs in it (of the header, of each
chunk, of the index). The CRC of the file itself would say nothing: the CRC of data followed by its own CRC
is a constant, whatever the data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from parbake.store.chunkmap import MISSING, ByteSource, ChunkIndex
from parbake.store.codecs import CRC_NBYTES, CodecError
from parbake.store.layout import FieldLayout

ALIGNMENT = 64
HEADER_NBYTES = 64
_MAGIC = b"parbake\x01"
_HEADER = struct.Struct("<8s32sQ8sII")  # magic, bake digest, shard number, layout digest, samples, crc32c
_ABSENT = np.uint64(2**64 - 1)
_ENTRY_NBYTES = 16


@dataclass(frozen=True)
class ShardIdentity:
    """Which bake and layout a shard belongs to. ``bake_digest``: 32 bytes; ``layout_digest``: 8."""

    bake_digest: bytes
    layout_digest: bytes

    def header(self, shard: int, samples: int) -> bytes:
        """The 64 bytes at the start of shard number ``shard``, which holds ``samples``."""
        head = _HEADER.pack(_MAGIC, self.bake_digest, shard, self.layout_digest, samples, 0)[:-CRC_NBYTES]
        return head + crc32c(head).to_bytes(CRC_NBYTES, "little")


def index_nbytes(chunks: int) -> int:
    """Size of the index of a shard of ``chunks`` chunks, its CRC included."""
    return chunks * _ENTRY_NBYTES + CRC_NBYTES


def shard_nbytes_min(layout: FieldLayout, samples: int) -> NDArray[np.int64]:
    """The least bytes that each shard of a field of ``samples`` can have, [shard]."""
    counts = np.full(layout.shard_count(samples), layout.chunks_per_shard, np.int64)
    counts[-1] -= (len(counts) * layout.shard_samples - samples) // layout.chunk_samples
    payload = CRC_NBYTES + (layout.chunk_nbytes if layout.codec == "raw" else 1)
    return HEADER_NBYTES + index_nbytes(layout.chunks_per_shard) + counts * payload


def pack_index(index: ChunkIndex) -> bytes:
    """The index as it stands at the end of a shard: uint64 (offset, nbytes) a chunk, then its CRC-32C."""
    table = np.stack([index.offset, index.nbytes], axis=1).astype("<u8")
    table[index.offset == MISSING] = _ABSENT
    body = table.tobytes()
    return body + crc32c(body).to_bytes(CRC_NBYTES, "little")


def scan_shard(
    source: ByteSource, shard: int, samples: int, chunks: int, identity: ShardIdentity
) -> ChunkIndex:
    """Where the chunks of a shard of ``samples`` lie, after its header, index and bounds were checked.

    Raises CodecError.
    """
    tail = index_nbytes(chunks)
    if source.nbytes < HEADER_NBYTES + tail:
        raise CodecError(f"{source.nbytes} bytes are too few for a shard of {chunks} chunks")
    header = source.get(0, HEADER_NBYTES).tobytes()
    if header != identity.header(shard, samples):
        raise CodecError(_header_fault(header, identity, shard, samples))
    table = source.get(source.nbytes - tail, source.nbytes)
    found, stored = crc32c(table[:-CRC_NBYTES].data), int.from_bytes(table[-CRC_NBYTES:].tobytes(), "little")
    if found != stored:
        raise CodecError(f"index crc32c {found:#010x} where {stored:#010x} is stored")
    entries = table[:-CRC_NBYTES].copy().view("<u8").reshape(chunks, 2)
    absent = (entries == _ABSENT).all(axis=1)
    limit = np.uint64(source.nbytes - tail)
    offset, nbytes = entries[:, 0], entries[:, 1]
    inside = (offset >= HEADER_NBYTES) & (offset <= limit) & (nbytes <= limit - np.minimum(offset, limit))
    if not (inside | absent).all():
        raise CodecError(f"index of chunk {int(np.argmin(inside | absent))} points outside of the shard")
    return ChunkIndex(_masked(offset, absent), _masked(nbytes, absent))


def _masked(values: NDArray[np.uint64], absent: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(absent, np.int64(MISSING), values.astype(np.int64))


def _header_fault(header: bytes, identity: ShardIdentity, shard: int, samples: int) -> str:
    magic, bake, number, layout, count, crc = _HEADER.unpack(header)
    if magic != _MAGIC or crc != crc32c(header[:-CRC_NBYTES]):
        return "the shard's header is damaged"
    if bake != identity.bake_digest:
        return "the shard belongs to another bake or field"
    if number != shard:
        return f"shard {number} lies where shard {shard} belongs"
    if layout != identity.layout_digest:
        return "the shard was written with another layout"
    return f"the shard holds {count} samples where {samples} belong"


def pack_shard(
    header: bytes,
    sizes: Sequence[int | None],
    payload: Callable[[int], NDArray[np.uint8]],
    crcs: NDArray[np.uint32],
) -> NDArray[np.uint8]:
    """A whole shard as it lies in a directory, out of payloads whose last four bytes are not their CRC.

    ``sizes``: of the payloads in bytes; None: the chunk is missing. ``payload(entry)``: asked for one after
    the other, so that only the shard itself is held. ``crcs``: the CRC-32C of each body, which takes the
    place of those four bytes.
    """
    index = ChunkIndex.empty(len(sizes))
    end = HEADER_NBYTES
    for entry, nbytes in enumerate(sizes):
        if nbytes is not None:
            index.offset[entry] = end + -end % ALIGNMENT
            index.nbytes[entry] = nbytes
            end = int(index.offset[entry]) + nbytes
    tail = pack_index(index)
    shard = np.zeros(end + len(tail), np.uint8)
    shard[:HEADER_NBYTES] = np.frombuffer(header, np.uint8)
    for entry, (nbytes, crc, start) in enumerate(zip(sizes, crcs, index.offset.tolist(), strict=True)):
        if nbytes is not None:
            stop = start + nbytes
            shard[start : stop - CRC_NBYTES] = payload(entry)[:-CRC_NBYTES]
            shard[stop - CRC_NBYTES : stop] = np.frombuffer(int(crc).to_bytes(CRC_NBYTES, "little"), np.uint8)
    shard[end:] = np.frombuffer(tail, np.uint8)
    return shard
