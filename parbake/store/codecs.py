"""Codec chains: how a chunk's samples become the bytes on disk and back.

A payload is the body (the samples, as they are or Blosc-compressed) and its CRC-32C, four bytes,
little-endian: Zarr v3 codecs ``bytes``, ``blosc``, ``crc32c``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from parbake.store.layout import FieldLayout

CRC_NBYTES = 4
_BLOSC_HEADER = struct.Struct("<BBBBIII")  # version, lz version, flags, typesize, nbytes, blocksize, cbytes
_BLOSC_VERSION = 2
_BLOSC_FORMATS = {"lz4": 1, "zstd": 4}  # flags, bits 5 to 7
_CLEVEL = 5


class CodecError(ValueError):
    """A payload that is not what its chain writes; the reader adds where it lies."""


class Decoder(Protocol):
    """How the payloads of a field become samples. ``name``: for tables; ``dtype``: byte order as on disk.

    ``is_raw``: a payload begins with its samples as they are, in C order.
    """

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def is_raw(self) -> bool: ...
    @property
    def has_checksum(self) -> bool: ...

    def check(self, payload: NDArray[np.uint8], body: NDArray[np.uint8] | None = None) -> None:
        """Compare checksums in the payload, if any, with its body, or a copy of that. Raises CodecError."""

    def decode(self, payload: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Decode into ``out``, bytes of a whole chunk; trusts no size in the payload. Raises CodecError."""

    def raw_body(self, payload: NDArray[np.uint8], nbytes: int) -> NDArray[np.uint8]:
        """The ``nbytes`` of samples in a raw payload. Raises CodecError."""

    def without(self, mask: int) -> Self:
        """The chain less the filters in an HDF5 filter mask. Raises CodecError."""


def _blosc() -> Any:
    """numcodecs' Blosc, its own threads off: ours run side by side and each releases the GIL."""
    from numcodecs import blosc

    blosc.use_threads = False
    return blosc


@dataclass(frozen=True)
class Chain:
    """One codec chain for elements of ``dtype`` (byte order as on disk); ``name`` from layout.CODECS."""

    name: str
    dtype: np.dtype[Any]

    @property
    def is_raw(self) -> bool:
        return self.name == "raw"

    @property
    def has_checksum(self) -> bool:
        return True

    def check(self, payload: NDArray[np.uint8], body: NDArray[np.uint8] | None = None) -> None:
        check_crc(payload, body)

    def without(self, mask: int) -> Self:
        raise CodecError(f"filter mask {mask:#x} where all filters were applied")

    @cached_property
    def zarr_codecs(self) -> list[dict[str, Any]]:
        """The chain as Zarr v3 metadata."""
        endian = {"=": "little", "<": "little", ">": "big"}.get(self.dtype.byteorder)
        bytes_codec: dict[str, Any] = {"name": "bytes"}
        if endian is not None:
            bytes_codec["configuration"] = {"endian": endian}
        compress = [] if self.name == "raw" else [{"name": "blosc", "configuration": self._blosc_options}]
        return [bytes_codec, *compress, {"name": "crc32c"}]

    @property
    def _blosc_options(self) -> dict[str, Any]:
        return {
            "typesize": self.dtype.itemsize,
            "cname": self.name,
            "clevel": _CLEVEL,
            "shuffle": "shuffle" if self.dtype.itemsize > 1 else "noshuffle",
            "blocksize": 0,
        }

    def encode(self, chunk: NDArray[Any]) -> tuple[memoryview | bytes, bytes]:
        """The body and the CRC of a C-contiguous chunk; a raw body is a view of ``chunk``."""
        body: memoryview | bytes = chunk.reshape(-1).view(np.uint8).data
        if self.name != "raw":
            shuffle = int(self.dtype.itemsize > 1)
            body = _blosc().compress(
                body, self.name.encode(), _CLEVEL, shuffle, 0, typesize=self.dtype.itemsize
            )
        return body, crc32c(body).to_bytes(CRC_NBYTES, "little")

    def decode(self, payload: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Decode a payload into ``out``, bytes [chunk_nbytes]. Sizes are checked; the CRC is not.

        Raises CodecError.
        """
        body = payload[:-CRC_NBYTES]
        if self.is_raw:
            np.copyto(out, self.raw_body(payload, out.nbytes))
            return
        self._check_blosc_header(body, out.nbytes)
        try:
            _blosc().decompress(body, out)
        except RuntimeError as error:
            raise CodecError(f"Blosc: {error}") from None

    def raw_body(self, payload: NDArray[np.uint8], nbytes: int) -> NDArray[np.uint8]:
        """The samples' bytes inside an uncompressed payload. Raises CodecError."""
        if payload.nbytes != nbytes + CRC_NBYTES:
            raise CodecError(f"{payload.nbytes} bytes where {nbytes + CRC_NBYTES} are expected")
        return payload[:-CRC_NBYTES]

    def _check_blosc_header(self, body: NDArray[np.uint8], nbytes: int) -> None:
        # the decoder believes its header: a size that lies would read or write beyond the buffers
        if body.nbytes < _BLOSC_HEADER.size:
            raise CodecError(f"{body.nbytes} bytes are too few for a Blosc chunk")
        version, _, flags, typesize, stated, blocksize, cbytes = _BLOSC_HEADER.unpack_from(body.data)
        if version != _BLOSC_VERSION or flags >> 5 != _BLOSC_FORMATS[self.name]:
            raise CodecError(f"Blosc header of version {version}, format {flags >> 5}")
        if stated != nbytes or cbytes != body.nbytes or typesize != self.dtype.itemsize:
            raise CodecError(
                f"Blosc header states {stated} bytes in {cbytes} of type size {typesize} where "
                f"{nbytes} in {body.nbytes} of {self.dtype.itemsize} are expected"
            )
        if not 0 < blocksize <= max(nbytes, 1):
            raise CodecError(f"Blosc header states blocks of {blocksize} bytes in a chunk of {nbytes}")


def chain_of(layout: FieldLayout) -> Chain:
    """The chain that a field's layout names."""
    return Chain(layout.codec, layout.numpy_dtype)


def check_crc(
    payload: NDArray[np.uint8], body: NDArray[np.uint8] | None = None, recorded: int | None = None
) -> None:
    """Compare the CRC-32C of a payload's body, or of a copy of that, with the one after it.

    ``recorded``: compare with this one instead. Raises CodecError naming both.
    """
    if payload.nbytes < CRC_NBYTES:
        raise CodecError(f"{payload.nbytes} bytes are too few for a chunk")
    stored = int.from_bytes(payload[-CRC_NBYTES:].tobytes(), "little") if recorded is None else recorded
    found = crc32c((payload[:-CRC_NBYTES] if body is None else body).data)
    if found != stored:
        raise CodecError(f"crc32c {found:#010x} where {stored:#010x} is stored")
