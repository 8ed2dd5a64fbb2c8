"""Fields and how their samples are cut into chunks, shards and slabs. Pure: no files here."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from parbake.errors import SchemaError

SAMPLE_DIM = "sample"
MANIFEST = "manifest"

SCALAR_NBYTES = 64  # a field of at most this many bytes a sample is a scalar
CHUNK_NBYTES = 64 * 1024  # target before compression: a random sample costs one small decode
SHARD_NBYTES = 64 * 1024 * 1024  # target of a slab's largest shard before compression
SAMPLE_NBYTES_MAX = 1024**3
SCALAR_CHUNK_SAMPLES = 8_192  # 64 KiB of float64: what a store of few samples is padded to
SCALAR_SHARD_SAMPLES = 128 * SCALAR_CHUNK_SAMPLES
SLAB_SAMPLES_MAX = 65_536  # so that tiny samples still make several slabs

CODECS = ("raw", "lz4", "zstd")
DTYPES = frozenset(
    (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_RESERVED = {MANIFEST, SAMPLE_DIM, "c"}


@dataclass(frozen=True, eq=False)
class Coord:
    """Values along one dimension, in ``units`` (a CF unit string such as ``"s"``).

    ``dim``: the dimension where the coordinate has another name, as the positions x and y of nodes do.
    Texts become ``labels``, such as names of channels; the values then number them.
    """

    values: NDArray[Any]
    units: str | None = None
    dim: str | None = None
    labels: tuple[str, ...] | None = None

    def __init__(self, values: ArrayLike, units: str | None = None, *, dim: str | None = None) -> None:
        """Raises SchemaError for anything but one number or text per position."""
        array, labels = np.asarray(values), None
        if array.dtype.kind == "U" and array.ndim == 1:
            labels = tuple(array.tolist())
            array = np.arange(len(labels))
        if array.ndim != 1 or array.dtype.name not in DTYPES:
            raise SchemaError(
                f"coordinate of shape {array.shape} and dtype {array.dtype}: "
                "give one number or text per position, as a 1-D array"
            )
        object.__setattr__(self, "values", array)
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "dim", dim)
        object.__setattr__(self, "labels", labels)

    def same_as(self, other: Coord) -> bool:
        """Whether both say the same of the same dimension."""
        said = [(c.units, c.dim, c.labels, c.values.dtype, c.values.tobytes()) for c in (self, other)]
        return said[0] == said[1]


def plain_name(name: str) -> str:
    """A name that a field, dimension or coordinate may have, as near as can be to another file's."""
    plain = re.sub(r"^__+", "_", re.sub(r"[^A-Za-z0-9_\-]", "_", name))
    if not _NAME.fullmatch(plain):  # it begins with a digit, say
        plain = f"_{plain}"
    return f"{plain}_" if plain in _RESERVED else plain


@dataclass(frozen=True, eq=False)
class Field:
    """One named array of a store, without its sample axis (axis 0).

    ``shape``: of one sample. ``dtype``: as stored; its byte order is kept on disk. ``dims``: one name per
    axis of ``shape``, so none of a scalar. ``coords``: values along some of ``dims``, by name. ``keys``:
    invalidation keys of this field alone, beside the producer's. ``allow_nan``: NaN is data here, not a
    fault.

    Raises SchemaError for anything that cannot be stored.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...] = ()
    _: KW_ONLY
    units: str | None = None
    description: str | None = None
    coords: Mapping[str, Coord] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    allow_nan: bool = False

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        dims: tuple[str, ...] = (),
        *,
        units: str | None = None,
        description: str | None = None,
        coords: Mapping[str, Coord] | None = None,
        keys: Mapping[str, Any] | None = None,
        allow_nan: bool = False,
    ) -> None:
        values = {
            "shape": tuple(int(n) for n in shape),
            "dtype": _checked_dtype(dtype),
            "dims": tuple(dims),
            "units": units,
            "description": description,
            "coords": dict(coords or {}),
            "keys": dict(keys or {}),
            "allow_nan": allow_nan,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        _check_field(self)

    @property
    def sample_nbytes(self) -> int:
        """Size of one sample before compression, in bytes; at most 1 GiB."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_scalar(self) -> bool:
        """Whether a sample takes at most 64 bytes: such fields are stored raw and shown as coordinates."""
        return self.sample_nbytes <= SCALAR_NBYTES

    @property
    def channel_axis(self) -> int | None:
        """Axis of one sample named ``channel``, along which statistics are kept apart."""
        return self.dims.index("channel") if "channel" in self.dims else None


def _checked_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        checked = np.dtype(dtype)
    except TypeError:
        raise SchemaError(f"dtype {dtype!r} is not a NumPy dtype (bfloat16 is stored as float32)") from None
    if checked.name not in DTYPES:
        raise SchemaError(
            f"dtype {checked} cannot be stored in Zarr; use one of {', '.join(sorted(DTYPES))} "
            "(bfloat16 is stored as float32)"
        )
    return checked


def _check_field(f: Field) -> None:
    if len(f.dims) != len(f.shape):
        raise SchemaError(
            f"shape {f.shape} has {len(f.shape)} axes but dims {f.dims} names {len(f.dims)} "
            "(both are without the sample axis)"
        )
    if len(set(f.dims)) != len(f.dims):
        raise SchemaError(f"dims {f.dims} repeat a name")
    for dim in f.dims:
        if not _NAME.fullmatch(dim) or dim in _RESERVED:
            raise SchemaError(f"dimension name {dim!r} is not allowed")
    if any(n < 1 for n in f.shape):
        raise SchemaError(f"shape {f.shape} has an empty axis")
    if f.sample_nbytes > SAMPLE_NBYTES_MAX:
        raise SchemaError(
            f"a sample of {f.sample_nbytes:,} bytes is over the limit of 1 GiB; "
            "split the field or bake parts of it as samples"
        )
    lengths = dict(zip(f.dims, f.shape, strict=True))
    for name, coord in f.coords.items():
        if lengths.get(coord.dim or name) != len(coord.values):
            raise SchemaError(
                f"coordinate {name!r} has {len(coord.values)} values; the field's dimensions are {lengths}"
            )
        if not _NAME.fullmatch(name) or name in _RESERVED or (coord.dim is not None and name in lengths):
            raise SchemaError(f"coordinate name {name!r} is not allowed, or is a dimension's")


def check_schema(schema: Mapping[str, Field]) -> dict[str, Field]:
    """``schema`` as a dict, its names and shared dimensions checked; raises SchemaError."""
    if not schema:
        raise SchemaError("a producer needs at least one field")
    lengths: dict[str, tuple[str, int]] = {}
    coords: dict[str, Coord] = {}
    for name, f in schema.items():
        if not isinstance(f, Field):
            raise SchemaError(f"field {name!r}: schema() gives {type(f).__name__}, not parbake.Field")
        if not _NAME.fullmatch(name) or name in _RESERVED or name.startswith("__"):
            raise SchemaError(
                f"field name {name!r} is not allowed: letters, digits, '_' and '-', "
                f"and not one of {', '.join(sorted(_RESERVED))}"
            )
        for dim, length in zip(f.dims, f.shape, strict=True):
            if dim in schema:
                raise SchemaError(f"{dim!r} names both a field and a dimension of field {name!r}")
            other, known = lengths.setdefault(dim, (name, length))
            if known != length:
                raise SchemaError(
                    f"dimension {dim!r} is {known} long in field {other!r} and {length} in "
                    f"{name!r}; give them different names"
                )
        for coord_name, coord in f.coords.items():
            if coord_name in schema:
                raise SchemaError(f"{coord_name!r} names both a field and a coordinate of field {name!r}")
            if not coords.setdefault(coord_name, coord).same_as(coord):
                raise SchemaError(f"fields disagree about the coordinate {coord_name!r}")
    return dict(schema)


def merged_coords(schema: Mapping[str, Field]) -> dict[str, Coord]:
    """The coordinates of all fields."""
    return {name: coord for f in schema.values() for name, coord in f.coords.items()}


@dataclass(frozen=True)
class FieldLayout:
    """How one field lies on disk. ``codec`` is one of CODECS; shapes exclude the sample axis."""

    name: str
    dtype: str  # NumPy's "<f4" form; byte order as on disk
    sample_shape: tuple[int, ...]
    chunk_samples: int
    shard_samples: int
    codec: str

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)

    @cached_property
    def sample_nbytes(self) -> int:
        return math.prod(self.sample_shape) * self.numpy_dtype.itemsize

    @property
    def chunk_nbytes(self) -> int:  # before compression
        return self.chunk_samples * self.sample_nbytes

    @property
    def chunks_per_shard(self) -> int:
        return self.shard_samples // self.chunk_samples

    @property
    def is_scalar(self) -> bool:
        return self.sample_nbytes <= SCALAR_NBYTES

    @cached_property
    def digest(self) -> bytes:
        """Eight bytes that differ when two layouts would put the same samples differently."""
        text = f"{self.dtype}|{self.sample_shape}|{self.chunk_samples}|{self.shard_samples}|{self.codec}"
        return hashlib.sha256(text.encode()).digest()[:8]

    def shard_count(self, samples: int) -> int:
        return -(-samples // self.shard_samples)


@dataclass(frozen=True)
class Layout:
    """The layout of a store: slabs of ``slab_samples``, and each field's own."""

    slab_samples: int
    fields: Mapping[str, FieldLayout]

    def slab_count(self, samples: int) -> int:
        return -(-samples // self.slab_samples)

    def slab_range(self, slab: int, samples: int) -> tuple[int, int]:
        """Samples [start, stop) of a slab in a store of ``samples``."""
        start = slab * self.slab_samples
        return start, min(start + self.slab_samples, samples)


def plan_layout(schema: Mapping[str, Field], codec: str) -> Layout:
    """Cut each field into chunks of about 64 KiB and slabs of about 64 MiB.

    Depends on the schema and the codec alone, never on the number of samples, so that a store can
    grow. Scalars are always stored raw: a random read of one then costs a copy out of the map.
    """
    if codec not in CODECS:
        raise SchemaError(f"unknown codec {codec!r}; one of {', '.join(CODECS)}")
    largest = max(f.sample_nbytes for f in schema.values())
    slab_samples = min(_power_of_two(SHARD_NBYTES / largest), SLAB_SAMPLES_MAX)
    return Layout(
        slab_samples, {name: _field_layout(name, f, codec, slab_samples) for name, f in schema.items()}
    )


def _field_layout(name: str, f: Field, codec: str, slab_samples: int) -> FieldLayout:
    dtype = f.dtype.str
    if f.is_scalar:
        return FieldLayout(name, dtype, f.shape, SCALAR_CHUNK_SAMPLES, SCALAR_SHARD_SAMPLES, "raw")
    chunk = min(_power_of_two(CHUNK_NBYTES / f.sample_nbytes), slab_samples)
    return FieldLayout(name, dtype, f.shape, chunk, slab_samples, codec)


def _power_of_two(limit: float) -> int:
    """The largest power of two that is at most ``limit``, and at least one."""
    return 1 << max(int(limit).bit_length() - 1, 0)
