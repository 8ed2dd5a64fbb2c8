"""Codec chains of files that others wrote: from metadata as it stands there to decoded chunks.

A chain is made from the codecs of Zarr v2 and v3 and the filters of HDF5 that are known here by name;
no name from a file is ever imported. What is not known raises Uncovered, and zarr-python or h5py reads it.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from parbake.store.codecs import CodecError
from parbake.store.foreign import steps as steps_of
from parbake.store.foreign.steps import CHECKSUM_NBYTES, U8, Checksum, Room, Step, fletcher32
from parbake.store.layout import DTYPES

__all__ = [
    "ForeignChain",
    "Uncovered",
    "filter_name",
    "fletcher32",
    "hdf5_chain",
    "zarr_v2_chain",
    "zarr_v3_chain",
]

_BLOSC_NAMES = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")  # HDF5 filter 32001, value 6
_SELF_CHECKED = ("gzip", "zlib", "bz2")  # compressors whose format ends with a checksum of what was in it
_SPARE_NBYTES = 65_536
_WIDEST = 16  # bytes of an element, after any filter, for one in the chunk: complex128 for uint8
_STEPS_MAX = 32  # as in HDF5


class Uncovered(Exception):  # noqa: N818 - not an error: another library reads this
    """A chain that is not decoded here; the text says which part, and who reads it."""


@dataclass(frozen=True)
class ForeignChain:
    """One chain for chunks of ``dtype`` (byte order as on disk) and ``nbytes``; steps in order of writing.

    ``name``: for tables, without checksums, what is decoded first stands first; "raw": samples as they are.
    """

    name: str
    dtype: np.dtype[Any]
    chunk_shape: tuple[int, ...]
    steps: tuple[Step, ...] = field(repr=False)
    filters: tuple[tuple[int, tuple[int, ...]], ...] | None = field(default=None, repr=False)  # of HDF5

    @cached_property
    def nbytes(self) -> int:  # of a chunk, decoded
        return math.prod(self.chunk_shape) * self.dtype.itemsize

    @cached_property
    def _outer(self) -> tuple[Checksum, ...]:
        """Checksums that can be checked without decoding, the outermost first."""
        found = []
        for step in reversed(self.steps):
            if step.checksum is None:
                break
            found.append(step.checksum)
        return tuple(found)

    @cached_property
    def _inner(self) -> tuple[tuple[Step, int, bool], ...]:
        """The other steps in order of decoding, each with the bytes it decodes to: exactly, or at most."""
        nbytes, exact, stages = self.nbytes, True, []
        for step in self.steps[: len(self.steps) - len(self._outer)]:
            stages.append((step, nbytes, exact))
            encoded = step.encoded_nbytes(nbytes)
            if encoded is None:  # no compressor adds more than this
                encoded, exact = nbytes + nbytes // 8 + _SPARE_NBYTES, False
            nbytes = encoded
        return tuple(reversed(stages))

    @property
    def has_checksum(self) -> bool:
        """Whether changed bytes show, in ``check`` or in decoding."""
        return any(step.checksum is not None or step.name in _SELF_CHECKED for step in self.steps)

    @cached_property
    def is_raw(self) -> bool:
        """Whether a payload begins with the chunk's samples as they are, in C order."""
        return not self._inner and not any(checksum.at_start for checksum in self._outer)

    def check(self, payload: U8, body: U8 | None = None) -> None:
        """Compare the outermost checksums. Raises CodecError.

        ``body``: a copy of what lies within all of them, to be checked instead.
        """
        if body is not None and len(self._outer) > 1:
            payload = payload.copy()
            within = self._body(payload)
            if within.nbytes != body.nbytes:
                raise CodecError(f"{within.nbytes} bytes where {body.nbytes} are expected")
            within[:] = body
            body = None
        for checksum in self._outer:
            checksum.check(payload, body)
            payload = checksum.body(payload)

    def _body(self, payload: U8) -> U8:
        for checksum in self._outer:
            payload = checksum.body(payload)
        return payload

    def raw_body(self, payload: U8, nbytes: int) -> U8:
        """The samples' bytes inside the payload of a raw chain, a view. Raises CodecError."""
        expected = nbytes + CHECKSUM_NBYTES * len(self._outer)
        if payload.nbytes != expected:
            raise CodecError(f"{payload.nbytes} bytes where {expected} are expected")
        return payload[:nbytes]

    def decode(self, payload: U8, out: U8) -> None:
        """Decode a payload into ``out``, bytes [chunk_nbytes], C order, byte order as on disk.

        Sizes and inner checksums are checked, outermost checksums are not. Raises CodecError.
        """
        if out.nbytes != self.nbytes:
            raise CodecError(f"a chunk has {self.nbytes} bytes, not {out.nbytes}")
        if self.nbytes == 0:
            return
        data = self._body(payload)
        last = len(self._inner) - 1
        for i, (step, nbytes, exact) in enumerate(self._inner):
            room = Room(nbytes, exact, out if i == last else None)
            try:
                data = step.decode(data, room)
                room.check(data.nbytes)
            except CodecError as error:
                raise CodecError(f"{step.name}: {error}") from None
            except (ValueError, RuntimeError, ArithmeticError, LookupError, EOFError, OSError) as error:
                raise CodecError(f"{step.name}: {' '.join(str(error).split())}") from None
            except (zlib.error, lzma.LZMAError) as error:
                raise CodecError(f"{step.name}: {error}") from None
        if data is not out:
            Room(out.nbytes, exact=True).check(data.nbytes)
            np.copyto(out, data)

    def without(self, mask: int) -> ForeignChain:
        """The chain of a chunk for which HDF5 skipped the filters whose bits are set; bit 0: the first."""
        kept = tuple(f for i, f in enumerate(self.filters or ()) if not mask >> i & 1)
        if kept == (self.filters or ()):
            return self
        return _hdf5_chain(kept, self.dtype, self.chunk_shape)


def _chain(dtype: np.dtype[Any], shape: tuple[int, ...], steps: Sequence[Step]) -> ForeignChain:
    if len(steps) > _STEPS_MAX:
        raise Uncovered(f"a chain of {len(steps)} codecs is not read")
    names = [step.name for step in reversed(steps) if step.checksum is None]
    return ForeignChain(", ".join(names) or "raw", dtype, shape, tuple(steps))


# ---- numcodecs: the same names in Zarr v2 ("id") and, after "numcodecs.", in v3


def _shuffle(config: Mapping[str, Any], dtype: np.dtype[Any]) -> list[Step]:
    size = config.get("elementsize", 4)
    return _shuffle_of(dtype.itemsize if size is None else _positive(size))


def _shuffle_of(size: int) -> list[Step]:
    return [] if size == 1 else [Step("shuffle", partial(steps_of.unshuffle, size))]


def _positive(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a positive number")
    return value


def _blosc(config: Mapping[str, Any], dtype: np.dtype[Any]) -> list[Step]:
    name = config.get("cname", "lz4")
    if name not in _BLOSC_NAMES:
        raise ValueError(f"compressor {name!r}")
    return [steps_of.compressor(f"blosc({name})", steps_of.blosc_chunk)]


def _lzma(config: Mapping[str, Any], dtype: np.dtype[Any]) -> list[Step]:
    kind, filters = config.get("format", lzma.FORMAT_XZ), config.get("filters")
    for one in filters or ():
        if one.get("dict_size", 0) > steps_of.LZMA_DICT_NBYTES_MAX:
            raise ValueError(f"a dictionary of {one['dict_size']} bytes")
    steps_of.lzma_stream(kind, filters)
    return [steps_of.compressor("lzma", partial(steps_of.decode_lzma, kind, filters))]


def _compressed(name: str, decode: Callable[[U8, Room], U8]) -> Callable[..., list[Step]]:
    return lambda config, dtype: [steps_of.compressor(name, decode)]


def _checksum(checksum: Checksum) -> Callable[..., list[Step]]:
    def make(config: Mapping[str, Any], dtype: np.dtype[Any]) -> list[Step]:
        at_start = {None: checksum.at_start, "start": True, "end": False}[config.get("location")]
        return [steps_of.checked(Checksum(checksum.name, checksum.compute, at_start, checksum.also))]

    return make


def _jenkins(config: Mapping[str, Any], dtype: np.dtype[Any]) -> list[Step]:
    if config.get("prefix") is not None:
        raise ValueError("a prefix")
    initval = config.get("initval", 0)
    if initval not in range(1 << 32):
        raise ValueError(f"initval {initval!r}")
    return [steps_of.checked(Checksum("jenkins_lookup3", lambda data: steps_of.jenkins(data, initval)))]


_BYTES_TO_BYTES: Mapping[str, Callable[..., list[Step]]] = {
    "blosc": _blosc,
    "zlib": _compressed("zlib", partial(steps_of.inflate, steps_of.ZLIB)),
    "gzip": _compressed("gzip", partial(steps_of.inflate, steps_of.GZIP)),
    "bz2": _compressed("bz2", steps_of.decode_bz2),
    "lzma": _lzma,
    "zstd": _compressed("zstd", steps_of.decode_zstd),
    "lz4": _compressed("lz4", steps_of.decode_lz4),
    "shuffle": _shuffle,
    "crc32": _checksum(steps_of.CRC32),
    "crc32c": _checksum(steps_of.CRC32C),
    "adler32": _checksum(steps_of.ADLER32),
    "fletcher32": _checksum(steps_of.FLETCHER32),
    "jenkins_lookup3": _jenkins,
}
_ELEMENTWISE = ("delta", "fixedscaleoffset", "quantize", "bitround", "packbits", "astype")


def _numeric(name: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(name)
    if dtype.name not in DTYPES:
        raise Uncovered(f"dtype {dtype} is read through zarr-python")
    return dtype


def _filter(
    name: str, config: Mapping[str, Any], dtype: np.dtype[Any]
) -> tuple[list[Step], np.dtype[Any], np.dtype[Any]]:
    """The steps of a filter over elements, and the dtypes that it decodes to and from."""
    if name == "bitround":  # nothing is to be undone
        return [], dtype, dtype
    if name == "packbits":
        from numcodecs.packbits import PackBits

        packed = Step(name, partial(steps_of.elementwise, PackBits()), lambda nbytes: 1 + -(-nbytes // 8))
        return [packed], np.dtype(bool), np.dtype(np.uint8)
    if name == "astype":
        decoded, encoded = _numeric(config.get("decode_dtype") or dtype), _numeric(config["encode_dtype"])
    else:
        decoded = _numeric(config.get("dtype") or dtype)
        encoded = _numeric(config.get("astype") or decoded)
    codec = _numcodec(name, config, decoded, encoded)
    factor, divisor = encoded.itemsize, decoded.itemsize
    step = Step(name, partial(steps_of.elementwise, codec), lambda nbytes: nbytes // divisor * factor)
    return [step], decoded, encoded


def _numcodec(name: str, config: Mapping[str, Any], decoded: np.dtype[Any], encoded: np.dtype[Any]) -> Any:
    if name == "astype":
        from numcodecs.astype import AsType

        return AsType(encoded, decoded)
    if name == "delta":
        from numcodecs.delta import Delta

        return Delta(decoded, encoded)
    if name == "quantize":
        from numcodecs.quantize import Quantize

        return Quantize(int(config["digits"]), decoded, encoded)
    from numcodecs.fixedscaleoffset import FixedScaleOffset

    scale, offset = config["scale"], config["offset"]
    if not (isinstance(scale, int | float) and isinstance(offset, int | float)):
        raise ValueError("scale and offset are numbers")
    return FixedScaleOffset(offset, scale, decoded, encoded)


# ---- Zarr


def _uncovered(name: object) -> Uncovered:
    return Uncovered(f"codec {str(name)[:80]!r} is read through zarr-python")


def zarr_v2_chain(
    compressor: Mapping[str, Any] | None,
    filters: Iterable[Mapping[str, Any]] | None,
    dtype: np.dtype[Any],
    order: str,
    chunk_shape: Iterable[int],
) -> ForeignChain:
    """The chain of a Zarr v2 array, from ``.zarray``; ``dtype`` has its byte order. Raises Uncovered."""
    dtype, shape = _numeric(dtype), tuple(int(n) for n in chunk_shape)
    if order not in ("C", "F"):
        raise Uncovered(f"order {order!r} is read through zarr-python")
    axes = range(len(shape)) if order == "C" else range(len(shape))[::-1]
    steps = steps_of.transpose(shape, tuple(axes), dtype, "order F")
    chunk_nbytes = math.prod(shape) * dtype.itemsize
    nbytes: int | None = chunk_nbytes
    if not isinstance(filters or [], list | tuple):
        raise Uncovered("filters that are no list are read through zarr-python")
    for config in (*(filters or ()), *([compressor] if compressor is not None else [])):
        name = config.get("id") if isinstance(config, Mapping) else config
        try:
            if name in _ELEMENTWISE:
                made, decoded, _ = _filter(str(name), config, dtype)
                if name != "bitround" and (nbytes is None or nbytes % decoded.itemsize):
                    raise _uncovered(name)
            else:
                made = _BYTES_TO_BYTES[str(name)](config, dtype)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, lzma.LZMAError):
            raise _uncovered(name) from None
        steps += made
        for step in made:
            nbytes = None if nbytes is None else step.encoded_nbytes(nbytes)
        if nbytes is not None and nbytes > _WIDEST * chunk_nbytes + _SPARE_NBYTES:
            raise _uncovered(name)  # each of many filters may widen: a bomb of metadata
    return _chain(dtype, shape, steps)


def zarr_v3_chain(codecs: Iterable[Any], dtype_name: str, chunk_shape: Iterable[int]) -> ForeignChain:
    """The chain of Zarr v3 ``codecs``, within a shard the inner ones. Raises Uncovered."""
    if dtype_name not in DTYPES:
        raise Uncovered(f"data type {str(dtype_name)[:80]!r} is read through zarr-python")
    dtype, shape = np.dtype(dtype_name).newbyteorder("<"), tuple(int(n) for n in chunk_shape)
    if not isinstance(codecs, list | tuple):
        raise _uncovered(codecs)
    before: list[Step] = []  # over elements
    after: list[Step] = []  # over bytes
    axes, element, endian = tuple(range(len(shape))), dtype, None
    for codec in codecs:
        name = codec.get("name") if isinstance(codec, Mapping) else codec
        config = (codec.get("configuration") or {}) if isinstance(codec, Mapping) else {}
        plain = str(name).removeprefix("numcodecs.")
        try:
            if endian is not None:  # after "bytes"
                if plain == name and name not in ("gzip", "zstd", "blosc", "crc32c"):
                    raise _uncovered(name)
                after += _BYTES_TO_BYTES[plain]({"elementsize": None} | config, element)
            elif name == "bytes":
                endian = config["endian"] if element.itemsize > 1 else "little"
                if endian not in ("little", "big") or (endian == "big" and before):
                    raise _uncovered(name)
            elif name == "transpose" and not before:
                order = tuple(config["order"])
                if sorted(order) != list(range(len(shape))):
                    raise _uncovered(name)
                axes = tuple(axes[axis] for axis in order)
            elif plain != name and plain in _ELEMENTWISE and axes == tuple(range(len(shape))):
                # zarr-python itself has these wrong beside "transpose" and in big-endian
                made, decoded, encoded = _filter(plain, config, element)
                if decoded != element:
                    raise _uncovered(name)
                before, element = before + made, encoded
            else:
                raise _uncovered(name)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, lzma.LZMAError):
            raise _uncovered(name) from None
    if endian is None:
        raise Uncovered("codecs without 'bytes' are read through zarr-python")
    if endian == "big":
        dtype = dtype.newbyteorder(">")
    return _chain(dtype, shape, [*steps_of.transpose(shape, axes, dtype, "transpose"), *before, *after])


# ---- HDF5

_HDF5_NAMES = {  # registered with the HDF Group
    **{4: "szip", 5: "nbit", 6: "scaleoffset", 307: "bzip2", 32000: "lzf", 32004: "lz4", 32008: "bitshuffle"},
    **{32013: "zfp", 32017: "sz", 32024: "sz3", 32026: "blosc2"},
}


def filter_name(number: int) -> str:
    """A filter of HDF5 as messages name it."""
    return f"{_HDF5_NAMES[number]!r} ({number})" if number in _HDF5_NAMES else str(number)


def hdf5_chain(
    filters: Iterable[tuple[int, int, Sequence[int]]], dtype: np.dtype[Any], chunk_shape: Iterable[int]
) -> ForeignChain:
    """The chain of an HDF5 dataset: id, flags, values of its filters, as written. Raises Uncovered."""
    kept = tuple((int(number), tuple(int(v) for v in values)) for number, _, values in filters)
    if dtype.name not in DTYPES:
        raise Uncovered(f"dtype {dtype} is read through h5py")
    return _hdf5_chain(kept, dtype, tuple(int(n) for n in chunk_shape))


@lru_cache(64)
def _hdf5_chain(
    filters: tuple[tuple[int, tuple[int, ...]], ...], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> ForeignChain:
    steps = [step for number, values in filters for step in _hdf5_steps(number, values)]
    chain = _chain(dtype, shape, steps)
    return ForeignChain(chain.name, dtype, shape, chain.steps, filters)


def _hdf5_steps(number: int, values: tuple[int, ...]) -> list[Step]:
    if number == 1:
        return [steps_of.compressor("gzip", partial(steps_of.inflate, steps_of.ZLIB))]
    if number == 2 and values and values[0] > 0:
        return _shuffle_of(values[0])
    if number == 3:
        return [steps_of.checked(steps_of.FLETCHER32)]
    if number == 32000 and steps_of.liblzf() is not None:
        return [steps_of.compressor("lzf", steps_of.decode_lzf)]
    if number == 32001:
        code = values[6] if len(values) > 6 else 0
        name = _BLOSC_NAMES[code] if code < len(_BLOSC_NAMES) else str(code)  # the chunk itself says it too
        return [steps_of.compressor(f"blosc({name})", steps_of.blosc_chunk)]
    if number == 32015:
        return [steps_of.compressor("zstd", steps_of.decode_zstd)]
    faster = "; faster with the package python-neo-lzf" if number == 32000 else ""
    raise Uncovered(f"filter {filter_name(number)} is read through h5py{faster}")
