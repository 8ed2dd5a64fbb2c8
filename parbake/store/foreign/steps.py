"""The steps of foreign codec chains: checksums, compressors and filters, decoding only.

A step gets bytes and the room that they may decode to. Every size that a payload states is compared with that
before anything trusts it; what does not state one is decompressed no further than the room.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from parbake.store.codecs import CodecError, _blosc

U8 = NDArray[np.uint8]
CHECKSUM_NBYTES = 4
_BLOSC_HEADER = struct.Struct("<BBBBIII")  # version, lz version, flags, typesize, nbytes, blocksize, cbytes
_BLOSC_VERSION = 2
_BLOSC_SHUFFLED_BLOCK = 1 | 1 << 4 | 1 << 5  # flags: bytes shuffled, block not split, format LZ4
_BLOSC_UNSHUFFLE_NBYTES_MAX = 16 * 1024**2  # Blosc takes scratch memory of the block's size
_LZMA_MEMORY_MAX = 128 * 1024**2  # preset 9 decodes in 65 MiB; a header may ask for 4 GiB
LZMA_DICT_NBYTES_MAX = 64 * 1024**2  # raw streams: the dictionary that preset 9 has
ZLIB, GZIP = zlib.MAX_WBITS, 16 + zlib.MAX_WBITS


@dataclass(frozen=True)
class Room:
    """What a step may decode to: ``nbytes`` exactly, or at most; ``out`` where the chunk itself is next."""

    nbytes: int
    exact: bool
    out: U8 | None = None

    def array(self, nbytes: int) -> U8:
        """Where to put ``nbytes`` that a payload states. Raises CodecError where they do not fit."""
        self.check(nbytes)
        return np.empty(nbytes, np.uint8) if self.out is None else self.out

    def check(self, nbytes: int) -> None:
        if nbytes > self.nbytes or (self.exact and nbytes != self.nbytes):
            raise CodecError(
                f"{nbytes} bytes where {'' if self.exact else 'at most '}{self.nbytes} are expected"
            )


@dataclass(frozen=True)
class Checksum:
    """Four bytes, little-endian, before or after what they protect."""

    name: str
    compute: Callable[[U8], int]
    at_start: bool = False
    also: Callable[[int], int] | None = None  # another value that is as good

    def body(self, data: U8) -> U8:
        if data.nbytes < CHECKSUM_NBYTES:
            raise CodecError(f"{data.nbytes} bytes are too few for a {self.name} checksum")
        return data[CHECKSUM_NBYTES:] if self.at_start else data[:-CHECKSUM_NBYTES]

    def check(self, data: U8, body: U8 | None = None) -> None:
        """Compare with the checksum of data's body, or of a copy of that. Raises CodecError naming both."""
        found = self.compute(self.body(data) if body is None else body)
        four = data[:CHECKSUM_NBYTES] if self.at_start else data[-CHECKSUM_NBYTES:]
        stored = int.from_bytes(four.tobytes(), "little")
        if stored != found and (self.also is None or stored != self.also(found)):
            raise CodecError(f"{self.name} {found:#010x} where {stored:#010x} is stored")

    def decode(self, data: U8, room: Room) -> U8:
        self.check(data)
        return self.body(data)


@dataclass(frozen=True)
class Step:
    """One codec: ``decode(encoded, room)``; ``encoded_nbytes`` of so many bytes, None where it varies."""

    name: str
    decode: Callable[[U8, Room], U8]
    encoded_nbytes: Callable[[int], int | None] = lambda nbytes: nbytes
    checksum: Checksum | None = None


def compressor(name: str, decode: Callable[[U8, Room], U8]) -> Step:
    """A step whose output has any length."""
    return Step(name, decode, lambda nbytes: None)


def checked(checksum: Checksum) -> Step:
    """The step that takes a checksum off."""
    return Step(checksum.name, checksum.decode, lambda nbytes: nbytes + CHECKSUM_NBYTES, checksum)


# ---- checksums


def fletcher32(data: U8) -> int:
    """Fletcher's checksum of bytes as HDF5 computes it, stored little-endian behind them.

    Of big-endian 16-bit words, an odd last byte before a zero. Source: H5_checksum_fletcher32.
    """
    from numcodecs.fletcher32 import Fletcher32

    if data.nbytes == 0:
        return 0
    return int.from_bytes(Fletcher32().encode(data)[-CHECKSUM_NBYTES:], "little")


def _fletcher32_before_1_6_3(value: int) -> int:
    """The checksum as old HDF5 stored it on little-endian machines: bytes swapped in both halves."""
    return (value & 0x00FF00FF) << 8 | value >> 8 & 0x00FF00FF


def jenkins(data: U8, initval: int) -> int:
    """Bob Jenkins' lookup3 of bytes, as HDF5 has it for its metadata."""
    from numcodecs.jenkins import jenkins_lookup3

    return int(jenkins_lookup3(data.tobytes(), initval))


CRC32 = Checksum("crc32", lambda data: zlib.crc32(data.data), at_start=True)
ADLER32 = Checksum("adler32", lambda data: zlib.adler32(data.data), at_start=True)
CRC32C = Checksum("crc32c", lambda data: crc32c(data.data))
FLETCHER32 = Checksum("fletcher32", fletcher32, also=_fletcher32_before_1_6_3)


# ---- compressors


@cache
def _optional(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


def libdeflate() -> Any:
    """The package ``deflate``, if it is there: inflates 2.5 to 3 times as fast as zlib, without the GIL."""
    return _optional("deflate")


def inflate(wbits: int, data: U8, room: Room) -> U8:
    """A zlib stream, or gzip members one after another."""
    fast = libdeflate()
    if fast is not None and room.exact and 0 < room.nbytes < 1 << 32:
        decompress = fast.zlib_decompress if wbits == ZLIB else fast.gzip_decompress
        try:
            found = decompress(data, room.nbytes)
        except fast.DeflateError:
            found = b""  # zlib says why
        if len(found) == room.nbytes:
            return np.frombuffer(found, np.uint8)
    stream = zlib.decompressobj(wbits)
    parts = [stream.decompress(data.data, room.nbytes + 1)]
    left = room.nbytes + 1 - len(parts[0])
    while wbits == GZIP and stream.eof and left > 0 and (more := stream.unused_data.lstrip(b"\0")):
        stream = zlib.decompressobj(wbits)  # another member
        parts.append(stream.decompress(more, left))
        left -= len(parts[-1])
    return _whole(parts, stream.eof, room)


def _whole(parts: list[bytes], at_end: bool, room: Room) -> U8:
    found = np.frombuffer(b"".join(parts) if len(parts) > 1 else parts[0], np.uint8)
    if found.nbytes > room.nbytes:
        raise CodecError(f"more than the {room.nbytes} bytes that are expected")
    if not at_end:
        raise CodecError("the stream is cut")
    return found


def decode_bz2(data: U8, room: Room) -> U8:
    stream = bz2.BZ2Decompressor()
    return _whole([stream.decompress(data.data, room.nbytes + 1)], stream.eof, room)


def lzma_stream(kind: int, filters: Any) -> lzma.LZMADecompressor:
    """A decompressor; raises ValueError or LZMAError for formats and filters that it does not have."""
    if kind == lzma.FORMAT_RAW:
        return lzma.LZMADecompressor(kind, filters=filters)
    return lzma.LZMADecompressor(kind, memlimit=_LZMA_MEMORY_MAX)


def decode_lzma(kind: int, filters: Any, data: U8, room: Room) -> U8:
    stream = lzma_stream(kind, filters)
    found = stream.decompress(data.data, room.nbytes + 1)
    # a raw stream need not say where it ends
    return _whole([found], stream.eof or kind == lzma.FORMAT_RAW, room)


def decode_zstd(data: U8, room: Room) -> U8:
    from numcodecs import zstd

    stated = _zstd_content_nbytes(data)
    if stated is None and not room.exact:
        raise CodecError("a frame that does not state its size")
    out = room.array(room.nbytes if stated is None else stated)
    zstd.decompress(data, out)  # never beyond out, whatever follows in the payload
    return out


def _zstd_content_nbytes(data: U8) -> int | None:
    """Content size in the header of a Zstandard frame, None where it is left out (RFC 8878, 3.1.1.1)."""
    head = data[:18].tobytes()
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 6:
        raise CodecError("not a Zstandard frame")
    single_segment = head[4] >> 5 & 1
    start = 6 - single_segment + (0, 1, 2, 4)[head[4] & 3]
    nbytes = (single_segment, 2, 4, 8)[head[4] >> 6]
    if len(head) < start + nbytes:
        raise CodecError("the frame is cut")
    if nbytes == 0:
        return None
    return int.from_bytes(head[start : start + nbytes], "little") + (256 if nbytes == 2 else 0)


def decode_lz4(data: U8, room: Room) -> U8:
    from numcodecs import lz4

    if data.nbytes < 4:
        raise CodecError(f"{data.nbytes} bytes are too few")
    out = room.array(int.from_bytes(data[:4].tobytes(), "little"))
    lz4.decompress(data, out)
    return out


def blosc_chunk(data: U8, room: Room) -> U8:
    # the decoder believes its header: a size that lies would read or write beyond the buffers
    if data.nbytes < _BLOSC_HEADER.size:
        raise CodecError(f"{data.nbytes} bytes are too few")
    version, _, _, typesize, nbytes, blocksize, cbytes = _BLOSC_HEADER.unpack_from(data.data)
    if version != _BLOSC_VERSION or typesize == 0:
        raise CodecError(f"header of version {version}, type size {typesize}")
    if cbytes != data.nbytes:
        raise CodecError(f"header states {cbytes} bytes in a payload of {data.nbytes}")
    if not 0 < blocksize <= max(nbytes, 1):
        raise CodecError(f"header states blocks of {blocksize} bytes in a chunk of {nbytes}")
    out = room.array(nbytes)
    _blosc().decompress(data, out)
    return out


def liblzf() -> Any:
    """The package ``python-neo-lzf``, None where it is not there; in Python itself h5py would be faster."""
    return _optional("lzf")


def decode_lzf(data: U8, room: Room) -> U8:
    found = liblzf().decompress(data.tobytes(), room.nbytes)  # None: more than that
    if found is None:
        raise CodecError(f"more than the {room.nbytes} bytes that are expected")
    return np.frombuffer(found, np.uint8)


# ---- filters


def unshuffle(size: int, data: U8, room: Room) -> U8:
    """Bytes 0 of all elements, bytes 1, ... back into elements of ``size`` bytes; the rest stays last."""
    nbytes = data.nbytes
    out = room.array(nbytes)
    if nbytes < 2 * size:  # one element: nothing was moved
        out[:] = data
        return out
    if nbytes <= _BLOSC_UNSHUFFLE_NBYTES_MAX and size < 256:
        # Blosc unshuffles with vector instructions and without the GIL, 2.5 times as fast as numcodecs' own
        # loop: given a chunk of one block that is shuffled but not compressed
        start = _BLOSC_HEADER.size + 4
        head = _BLOSC_HEADER.pack(2, 1, _BLOSC_SHUFFLED_BLOCK, size, nbytes, nbytes, start + 4 + nbytes)
        _blosc().decompress(b"".join((head, struct.pack("<II", start, nbytes), data.data)), out)
        return out
    whole = nbytes - nbytes % size
    np.copyto(out[:whole].reshape(-1, size), data[:whole].reshape(size, -1).T)
    out[whole:] = data[whole:]
    return out


def elementwise(codec: Any, data: U8, room: Room) -> U8:
    """A filter of numcodecs over elements of its own dtypes."""
    with np.errstate(all="ignore"):  # as values they are what they are
        decoded = codec.decode(data)
    return np.asarray(decoded).reshape(-1).view(np.uint8)


def _untranspose(
    shape: tuple[int, ...], order: tuple[int, ...], dtype: np.dtype[Any], data: U8, room: Room
) -> U8:
    out = room.array(data.nbytes)
    stored = data.view(dtype).reshape([shape[axis] for axis in order])
    np.copyto(out.view(dtype).reshape(shape), stored.transpose(np.argsort(order)))
    return out


def transpose(shape: tuple[int, ...], order: Sequence[int], dtype: np.dtype[Any], name: str) -> list[Step]:
    """The step that stores ``chunk.transpose(order)``; none where that leaves all bytes in place."""
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"order {order} of {len(shape)} axes")
    axes = [axis for axis in order if shape[axis] != 1]
    if axes == sorted(axes):
        return []
    return [Step(name, partial(_untranspose, shape, tuple(order), dtype))]
