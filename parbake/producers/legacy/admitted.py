"""What NumPy's arrays, scalars and dtypes are made of in a pickle, acted out instead of called."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import LegacyFileError

_NUMBERS = re.compile(r"[<>=|]?(?:[?bBhHiIlLqQefdFD]|[biufc]\d{1,2})")
_SHOWN_CHARS = 80
_NDIM_MAX = 64
_KEYS = (str, int, float, bytes, type(None))  # of a dict: nothing whose hash could go deep
_ARRAY = "numpy.ndarray"


@dataclass(frozen=True)
class Opaque:
    """What stands in a file where no number stands, in words."""

    words: str


@dataclass(frozen=True)
class Global:
    """One of what is admitted, by its full name."""

    name: str


@dataclass(eq=False)
class Unbuilt:
    """An array or dtype between REDUCE and BUILD; ``memo``: where it was noted down by then."""

    build: Callable[[Any], Any]
    value: Any  # where no BUILD follows
    memo: list[int] = field(default_factory=list)


def checked_key(key: Any) -> Any:
    """A key of a dict. Raises LegacyFileError for one that could not name an entry."""
    if type(key) is memoryview:
        key = bytes(key)
    if not isinstance(key, _KEYS):
        raise LegacyFileError(f"holds a dict with a key of type {type(key).__name__}; name entries by texts")
    return key


def admitted(module: str, name: str) -> Global:
    """The global as NumPy 2 names it. Raises LegacyFileError for all but what arrays are made of."""
    place = module.replace("numpy.core.", "numpy._core.", 1) if module.startswith("numpy.core.") else module
    place = {"__builtin__": "builtins"}.get(place, place)
    if (full := f"{place}.{name}") in MAKERS or full == _ARRAY:
        return Global(full)
    raise LegacyFileError(refusal(f"{module}.{name}"))


def refusal(name: str) -> str:
    """Why the global ``name``, which may be anything, is not admitted."""
    shown = name if name.isprintable() else ascii(name)
    shown = shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}..."
    kind = "a set, no sequence of samples" if name in _SETS else "code, not data"
    return (
        f"holds {shown}, which is {kind}; only containers, numbers and NumPy arrays are read: where you "
        "trust the file, load it yourself and save its samples as a list of dicts of arrays"
    )


# ---- what the admitted globals stand for


def _plain_bytes(data: Any) -> bytes | memoryview:
    """The bytes of an array or scalar; Python 2 wrote them as text."""
    if isinstance(data, str):
        return data.encode("latin-1")
    if isinstance(data, bytes | memoryview):
        return data
    raise TypeError("no bytes")


def _dtype(code: Any, *_: Any) -> Unbuilt:
    """A dtype: of numbers itself, any other as Opaque."""
    code = str(code, "ascii") if isinstance(code, memoryview) else code
    if not isinstance(code, str):
        raise TypeError("no dtype")

    def build(state: Any) -> Any:
        order, subdtype, names = state[1], state[2], state[3]
        if not isinstance(dtype, np.dtype) or subdtype is not None or names is not None:
            return dtype if isinstance(dtype, Opaque) else Opaque("an array of records")
        return dtype.newbyteorder(order if order in ("<", ">") else "=")

    dtype: np.dtype[Any] | Opaque
    if _NUMBERS.fullmatch(code):
        dtype = np.dtype(code)
    else:
        kinds = {"O": "objects", "U": "texts", "S": "byte strings", "M": "dates", "m": "time spans"}
        dtype = Opaque(f"an array of {kinds.get(code.lstrip('<>|=')[:1], 'records')}")
    return Unbuilt(build, dtype)


def _as_dtype(value: Any) -> np.dtype[Any] | Opaque:
    value = value.value if isinstance(value, Unbuilt) else value
    if not isinstance(value, np.dtype | Opaque):
        raise TypeError("no dtype")
    return value


def _array(data: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any] | Opaque:
    """An array over ``data``, which must be exactly as long as shape and dtype say: nothing is allocated."""
    dtype = _as_dtype(dtype)
    if isinstance(dtype, Opaque):
        return dtype
    shape = shape if isinstance(shape, tuple) else (shape,)
    if len(shape) > _NDIM_MAX or not all(type(n) is int and n >= 0 for n in shape):
        raise TypeError("no shape")
    data = _plain_bytes(data)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise LegacyFileError(
            f"holds an array that claims {dtype.name} {list(shape)}, with {len(data):,} bytes; write it again"
        )
    flat = np.frombuffer(data, dtype) if len(data) else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _reconstructed(kind: Any, *_: Any) -> Unbuilt:
    if kind != Global(_ARRAY):
        raise LegacyFileError("holds an array of a class of its own; save plain arrays (np.asarray)")

    def build(state: Any) -> Any:
        shape, dtype, fortran, data = state[-4:]  # before these, the version
        return _array(data, dtype, shape, "F" if fortran else "C")

    return Unbuilt(build, Opaque("an array without content"))


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    return _array(data, dtype, shape, order)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    array = _array(data, dtype, (), "C")
    return array if isinstance(array, Opaque) else array[()]


def _encoded(text: str, encoding: str = "latin-1") -> bytes:
    if encoding.lower() not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise ValueError("no encoding of bytes")
    return text.encode(encoding)


def _made_bytes(data: Any = b"", encoding: str = "latin-1") -> Any:
    return _encoded(data, encoding) if isinstance(data, str) else _plain_bytes(data)


def _complex(real: float, imaginary: float) -> complex:
    return complex(float(real), float(imaginary))


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    return {checked_key(key): value for key, value in items}


MAKERS: Mapping[str, Callable[..., Any]] = {
    "numpy._core.multiarray._reconstruct": _reconstructed,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encoded,
    "builtins.bytes": _made_bytes,
    "builtins.bytearray": _made_bytes,
    "builtins.complex": _complex,
    "collections.OrderedDict": _ordered_dict,
}
_SETS = ("builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset")
