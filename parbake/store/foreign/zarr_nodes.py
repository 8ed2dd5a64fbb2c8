"""Metadata of Zarr arrays, version 2 and 3, as others wrote it: chunks, codecs, fill values. Pure.

Zarr v3 core specification, sharding codec and chunk key encodings; Zarr v2 specification.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from parbake.store.chunkmap import MISSING, ByteSource, ChunkIndex
from parbake.store.codecs import CRC_NBYTES, CodecError
from parbake.store.foreign.arrays import FILLING, PACKING, ForeignArray, attribute_texts, text_of
from parbake.store.foreign.codecs import ForeignChain, Uncovered, zarr_v2_chain, zarr_v3_chain
from parbake.store.layout import DTYPES

SHARD_CHUNKS_MAX = 1 << 20  # in one shard: their index is read as a whole
_AXES_MAX = 32
_ABSENT = np.uint64(2**64 - 1)
_ENTRY_NBYTES = 16
_V2_DTYPE = re.compile(r"[<>|=][biufc][0-9]{1,2}")
_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_V3_MEMBERS = {
    *("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value"),
    *("codecs", "attributes", "dimension_names", "storage_transformers", "consolidated_metadata"),
}


@dataclass(frozen=True)
class Keys:
    """Names of chunk files below the array's folder. ``prefix``: of the default encoding of version 3."""

    separator: str
    prefix: bool

    def file(self, array: str, place: Sequence[int]) -> str:
        """The file of the chunk, or shard, at a place in the grid; ``array``: its folder, "" for the root."""
        parts = [*(["c"] if self.prefix else []), *map(str, place)]
        return "/".join(filter(None, (array, self.separator.join(parts))))


@dataclass(frozen=True)
class Sharding:
    """How the index of a shard is stored. ``counts``: of inner chunks along each axis."""

    counts: tuple[int, ...]
    at_end: bool
    endian: str  # "<" or ">"
    checked: bool

    def scan(self, source: ByteSource, place: tuple[int, ...]) -> ChunkIndex:
        """Where the inner chunks lie that have ``place`` along all axes but the first. Raises CodecError.

        Zarr v3 sharding codec, section "Binary shard format".
        """
        nbytes = math.prod(self.counts) * _ENTRY_NBYTES
        whole = nbytes + (CRC_NBYTES if self.checked else 0)
        if source.nbytes < whole:
            raise CodecError(f"{source.nbytes} bytes are too few for the index of a shard")
        start = source.nbytes - whole if self.at_end else 0
        table = source.get(start, start + whole)
        if self.checked:
            found, stored = crc32c(table[:nbytes].data), int.from_bytes(table[nbytes:].tobytes(), "little")
            if found != stored:
                raise CodecError(f"index crc32c {found:#010x} where {stored:#010x} is stored")
        grid: NDArray[Any] = table[:nbytes].copy().view(f"{self.endian}u8").reshape(*self.counts, 2)
        within: tuple[Any, ...] = (slice(None), *place)
        entries = grid[within].astype(np.uint64)
        absent = (entries == _ABSENT).all(axis=1)
        offset, size = entries[:, 0], entries[:, 1]
        limit = np.uint64(source.nbytes)
        inside = (offset <= limit) & (size <= limit - np.minimum(offset, limit))
        if not (inside | absent).all():
            raise CodecError(f"index of chunk {int(np.argmin(inside | absent))} points outside of the shard")
        missing = np.int64(MISSING)
        return ChunkIndex(
            np.where(absent, missing, offset.astype(np.int64)),
            np.where(absent, missing, size.astype(np.int64)),
        )


@dataclass(frozen=True)
class ZarrArray:
    """One array. ``chain``: None where zarr-python is to read it, for ``reason``. ``path``: its folder."""

    foreign: ForeignArray
    path: str
    version: int
    fill: NDArray[Any] | None = None
    keys: Keys | None = None
    chain: ForeignChain | None = None
    sharding: Sharding | None = None
    reason: str = ""


def parsed(name: str, path: str, node: Any, attributes: Any, inherited: Sequence[str] = ()) -> ZarrArray:
    """The array that ``.zarray`` or an array's ``zarr.json`` describes; what it lacks makes it unfit.

    ``attributes``: of ``.zattrs``. ``inherited``: the CF ``coordinates`` of its group.
    """
    version = 3 if isinstance(node, dict) and node.get("zarr_format") == 3 else 2
    bare = ForeignArray(name, (), np.dtype("V"), (), unfit="metadata that is none of Zarr's")
    try:
        return (
            _v3(bare, path, node, inherited) if version == 3 else _v2(bare, path, node, attributes, inherited)
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        why = f"metadata that is none of Zarr's: {text_of(str(error)[:200])}"
        return ZarrArray(replace(bare, unfit=why), path, version)


# ---- version 3


def _v3(bare: ForeignArray, path: str, node: dict[str, Any], inherited: Sequence[str]) -> ZarrArray:
    shape = _shape(node["shape"])
    names = node.get("dimension_names")
    attributes = node.get("attributes")
    array = _described(bare, shape, names, attributes, inherited)
    codecs = node["codecs"]
    if not isinstance(codecs, list) or not codecs:
        raise ValueError("no codecs")
    data_type = node["data_type"]
    if data_type not in DTYPES if isinstance(data_type, str) else True:
        return ZarrArray(replace(array, unfit=f"data type {_name_of(data_type)!r}"), path, 3)
    dtype = np.dtype(data_type)
    array = replace(array, dtype=dtype, unfit=_unpickled(codecs))
    fill = _v3_fill(node["fill_value"], dtype)
    try:
        _check_members(node)
        keys = _v3_keys(node.get("chunk_key_encoding"))
        grid = _lengths(_config(node["chunk_grid"], "chunk grid", "regular")["chunk_shape"], shape)
    except Uncovered as why:
        return ZarrArray(replace(array, codec="?"), path, 3, fill, reason=str(why))
    sharding, chunk, inner = None, grid, codecs
    try:
        if len(codecs) == 1 and _name_of(codecs[0]) == "sharding_indexed":
            config = _config(codecs[0], "codec", "sharding_indexed")
            chunk, inner = _lengths(config["chunk_shape"], shape), config["codecs"]
            array = replace(array, chunk_shape=chunk, unfit=array.unfit or _unfit_shard(grid, chunk))
            if array.unfit is not None:
                return ZarrArray(array, path, 3)
            sharding = _sharding(tuple(g // c for g, c in zip(grid, chunk, strict=True)), config)
        chain = zarr_v3_chain(inner, data_type, chunk)
    except Uncovered as why:
        array = replace(array, chunk_shape=chunk, codec=", ".join(_name_of(codec) for codec in codecs))
        return ZarrArray(array, path, 3, fill, reason=str(why))
    array = replace(array, chunk_shape=chunk, codec=chain.name, dtype=chain.dtype)
    return ZarrArray(array, path, 3, fill, keys, chain, sharding)


def _check_members(node: Mapping[str, Any]) -> None:
    if node.get("storage_transformers"):
        raise Uncovered("storage transformers are read through zarr-python")
    for name in node.keys() - _V3_MEMBERS:
        if not (isinstance(node[name], dict) and node[name].get("must_understand") is False):
            raise Uncovered(f"the extension {name[:80]!r} is read through zarr-python")


def _v3_keys(encoding: Any) -> Keys:
    name, config = _name_of(encoding), encoding.get("configuration") if isinstance(encoding, dict) else None
    if name not in ("default", "v2"):
        raise Uncovered(f"chunk keys {name!r} are read through zarr-python")
    separator = (config or {}).get("separator", "/" if name == "default" else ".")
    return Keys(_separator(separator), name == "default")


def _separator(found: Any) -> str:
    if found not in ("/", "."):
        raise ValueError(f"separator {found!r}")
    return str(found)


def _config(found: Any, what: str, name: str) -> Mapping[str, Any]:
    """The configuration of a thing that must be ``name``. Raises Uncovered, ValueError."""
    if _name_of(found) != name:
        raise Uncovered(f"the {what} {_name_of(found)!r} is read through zarr-python")
    if not isinstance(found, dict) or not isinstance(found.get("configuration"), dict):
        raise ValueError(f"{what} without a configuration")
    return dict(found["configuration"])


def _name_of(found: Any) -> str:
    return str(found.get("name") if isinstance(found, dict) else found)[:80]


def _unfit_shard(shard: Sequence[int], chunk: Sequence[int]) -> str | None:
    if any(s % c for s, c in zip(shard, chunk, strict=True)):
        return f"shards of shape {tuple(shard)} that chunks of {tuple(chunk)} do not divide"
    count = math.prod(s // c for s, c in zip(shard, chunk, strict=True))
    return f"shards of {count:,} chunks" if count > SHARD_CHUNKS_MAX else None


def _sharding(counts: tuple[int, ...], config: Mapping[str, Any]) -> Sharding:
    location, codecs = config.get("index_location", "end"), config["index_codecs"]
    if location not in ("start", "end"):
        raise ValueError(f"index location {location!r}")
    names = [_name_of(codec) for codec in codecs]
    endian = (codecs[0].get("configuration") or {}).get("endian") if isinstance(codecs[0], dict) else None
    if names not in (["bytes"], ["bytes", "crc32c"]) or endian not in ("little", "big"):
        raise Uncovered(f"shards with an index of codecs {names} are read through zarr-python")
    return Sharding(counts, location == "end", "<" if endian == "little" else ">", len(names) == 2)


def _v3_fill(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "c":
        real, imaginary = value
        part = np.dtype(f"f{dtype.itemsize // 2}")
        return np.array([_float(real, part), _float(imaginary, part)], part).view(dtype).reshape(())
    return _number(value, dtype)


def _number(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A fill value that is a bool, an integer or a float. Raises ValueError, TypeError, OverflowError."""
    if dtype.kind == "f":
        return _float(value, dtype)
    if isinstance(value, str) or (dtype.kind == "b" and value not in (0, 1)) or int(value) != value:
        raise ValueError(f"fill value {value!r} of dtype {dtype}")
    return np.array(int(value), dtype)  # raises OverflowError


def _float(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(value, str) and value.startswith("0x"):
        return np.frombuffer(bytes.fromhex(value[2:]), dtype.newbyteorder(">")).astype(dtype).reshape(())
    with np.errstate(over="ignore"):
        return np.array(float(_FLOATS[value] if isinstance(value, str) else value)).astype(dtype)


# ---- version 2


def _v2(
    bare: ForeignArray, path: str, node: dict[str, Any], attributes: Any, inherited: Sequence[str]
) -> ZarrArray:
    if node["zarr_format"] != 2:
        raise ValueError(f"zarr_format {node['zarr_format']!r}")
    shape = _shape(node["shape"])
    named = attributes.get("_ARRAY_DIMENSIONS") if isinstance(attributes, dict) else None
    array = _described(bare, shape, named, attributes, inherited)
    found = node["dtype"]
    if not isinstance(found, str) or not _V2_DTYPE.fullmatch(found):
        return ZarrArray(replace(array, unfit=f"dtype {str(found)[:80]!r}"), path, 2)
    dtype = np.dtype(found)
    filters, compressor = node.get("filters"), node.get("compressor")
    array = replace(array, dtype=dtype, chunk_shape=_lengths(node["chunks"], shape))
    array = replace(array, unfit=_unpickled([filters, compressor]))
    keys = Keys(_separator(node.get("dimension_separator", ".")), prefix=False)
    fill = _v2_fill(node.get("fill_value"), dtype)
    try:
        if dtype.name not in DTYPES:
            raise Uncovered("unread")  # the dtype is refused where fields are chosen
        chain = zarr_v2_chain(compressor, filters, dtype, node.get("order", "C"), array.chunk_shape or ())
    except Uncovered as why:
        names = [str(codec.get("id"))[:80] for codec in (*(filters or ()), compressor) if codec is not None]
        return ZarrArray(replace(array, codec=", ".join(names)), path, 2, fill, reason=str(why))
    return ZarrArray(replace(array, codec=chain.name), path, 2, fill, keys, chain)


def _v2_fill(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    if value is None:  # nothing is promised; zeros as zarr-python reads
        return np.zeros((), dtype)
    if dtype.kind != "c":
        return _number(value, dtype)
    return _v3_fill(value if isinstance(value, list) else [value, 0], dtype.newbyteorder("=")).astype(dtype)


# ---- both


def _shape(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list) or len(found) > _AXES_MAX or any(type(n) is not int for n in found):
        raise ValueError(f"shape {found!r}")
    return tuple(found)


def _lengths(found: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a chunk. Raises ValueError; Uncovered where it is none that this module knows."""
    if isinstance(found, list) and any(isinstance(n, list) for n in found):
        raise Uncovered("chunks of several lengths are read through zarr-python")
    lengths = _shape(found)
    if len(lengths) != len(shape) or any(not 0 < n < 2**62 for n in lengths):
        raise ValueError(f"chunks of shape {lengths}")
    return lengths


def _described(
    bare: ForeignArray, shape: tuple[int, ...], dims: Any, attributes: Any, inherited: Sequence[str]
) -> ForeignArray:
    names: tuple[str | None, ...] = (None,) * len(shape)
    if isinstance(dims, list) and len(dims) == len(shape):
        names = tuple(text_of(dim) for dim in dims)
    units, description, coordinates = attribute_texts(attributes if isinstance(attributes, dict) else {})
    return replace(
        bare,
        shape=shape,
        dims=names,
        units=units,
        description=description,
        coordinates=(*coordinates, *inherited),
        unfit=None,
        coded=_coded(attributes) if isinstance(attributes, dict) else (),
    )


def _coded(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """CF attributes that say that values stand for others, or for none: NaN says nothing new."""
    packing = tuple(name for name in PACKING if name in attributes)
    return packing + tuple(name for name in FILLING if name in attributes and not _is_nan(attributes[name]))


def _is_nan(value: Any) -> bool:
    if isinstance(value, str):  # xarray has numbers in base64
        with contextlib.suppress(ValueError):
            number = np.frombuffer(base64.b64decode(value, validate=True), "<f8")
            return number.size == 1 and bool(np.isnan(number[0]))
    return value in ("NaN", "nan") or (isinstance(value, float) and math.isnan(value))


def _unpickled(codecs: Any) -> str | None:
    """Why codecs are not to be given to any library: unpickling runs what a file says."""
    return "pickled objects" if any("pickle" in text.lower() for text in _texts(codecs)) else None


def _texts(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):
        yield from itertools.chain.from_iterable(map(_texts, found.values()))
    elif isinstance(found, list):
        yield from itertools.chain.from_iterable(map(_texts, found))
