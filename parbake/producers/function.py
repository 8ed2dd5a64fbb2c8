"""Any function of a sample number as a producer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import KeysError, ProducerError, SchemaError
from parbake.producers.batches import to_host
from parbake.store.capture import Captured, capture
from parbake.store.keys import JSON, Producer
from parbake.store.layout import Field
from parbake.store.source import qualname

VALUE = "value"  # the field of a function that gives one bare array
FUNCTION = "function"  # the key under which the function itself enters


def from_function(
    fn: Callable[[int], Any],
    n: int,
    *,
    schema: Mapping[str, Field] | None = None,
    invalidation_keys: Mapping[str, JSON] | None = None,
) -> Producer:
    """A producer of ``n`` samples from ``fn(index)``, called once a sample.

    ``fn`` gives ``{field: array}`` or one bare array, which becomes the field ``"value"`` (or the only
    field of ``schema``). ``schema``: the fields; without it they are read off ``fn(0)``.
    ``invalidation_keys``: whatever else the values depend on; arrays, ``pathlib.Path`` files and torch
    modules enter by content. The function itself enters by name, source and bound values, with the
    functions and constants of yours that it refers to.

    Raises KeysError where the function's source or bound values cannot be seen and no
    ``invalidation_keys`` are given to vouch for them; SchemaError where the fields cannot be read off.
    """
    keys = dict(invalidation_keys or {})
    if FUNCTION in keys:
        raise KeysError(f"invalidation_keys: {FUNCTION!r} is the function itself; rename that key")
    if schema is None:
        schema = {name: _inferred(name, array) for name, array in _named(fn(0), None, 0).items()}
    producer = FunctionProducer(fn, int(n), dict(schema), keys, visible=True)
    try:
        capture(fn, Captured(), "function")
    except KeysError as error:
        if not keys:
            raise KeysError(f"{error}; or pass invalidation_keys=") from None
        return FunctionProducer(fn, int(n), dict(schema), keys, visible=False)
    return producer


@dataclass(frozen=True)
class FunctionProducer:
    """What ``from_function`` makes. ``visible``: the function's source and bound values are keys."""

    fn: Callable[[int], Any]
    samples: int
    fields: Mapping[str, Field]
    keys: Mapping[str, JSON]
    visible: bool
    batch_size = 1  # samples are computed one by one, so nothing is lost by keeping each as it comes
    version = 1

    @property
    def name(self) -> str:
        return FUNCTION

    def __len__(self) -> int:
        return self.samples

    def schema(self) -> Mapping[str, Field]:
        return self.fields

    def invalidation_keys(self) -> Mapping[str, JSON]:
        function = self.fn if self.visible else {"function": _name_of(self.fn), "vouched": True}
        return {**self.keys, FUNCTION: function}

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        samples = [_named(self.fn(index), self.fields, index) for index in range(start, stop)]
        return {name: np.stack([sample[name] for sample in samples]) for name in fields}


def _name_of(fn: Callable[[int], Any]) -> str:
    return qualname(fn) if hasattr(fn, "__qualname__") else qualname(type(fn))


def _named(result: Any, schema: Mapping[str, Field] | None, index: int) -> dict[str, NDArray[Any]]:
    """One sample as arrays by field; Python numbers take the field's dtype. Raises ProducerError."""
    if not isinstance(result, Mapping):
        only = next(iter(schema)) if schema is not None and len(schema) == 1 else VALUE
        result = {only: result}
    arrays = {}
    for name, value in result.items():
        field = schema.get(name) if schema is not None else None
        if field is not None and isinstance(value, bool | int | float | complex):
            arrays[name] = _number(value, field.dtype, f"{FUNCTION}: sample {index}: field {name!r}")
            continue
        array, wait = to_host(value, f"{FUNCTION}: sample {index}", name)
        if wait is not None:
            wait()
        if field is not None and array.shape != field.shape:
            raise ProducerError(_misshapen(name, array.shape, field.shape, index))
        arrays[name] = array
    return arrays


def _number(value: complex, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """A Python number in its field's dtype; only rounding to fewer digits may change it."""
    kind = next(i for i, t in enumerate((bool, int, float, complex)) if isinstance(value, t))
    fits = kind <= "bifc".index(dtype.kind.replace("u", "i"))
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (0, 0)
    if not fits or (dtype.kind in "iu" and not low <= int(value.real) <= high):
        raise ProducerError(f"{where} gives {value!r}, which {dtype.name} cannot hold; declare another dtype")
    return np.asarray(value).astype(dtype)


def _misshapen(name: str, found: tuple[int, ...], wanted: tuple[int, ...], index: int) -> str:
    text = (
        f"{FUNCTION}: sample {index}: field {name!r} has shape {list(found)} where {list(wanted)} is needed"
    )
    if len(found) != len(wanted) or not found:
        return text
    return (
        f"{text}; ragged outputs must be padded and their lengths kept as a field: "
        f"length = len({name}); {name} = np.pad({name}, (0, longest - length))"
    )


def _inferred(name: str, array: NDArray[Any]) -> Field:
    if array.dtype.hasobject or array.dtype.kind in "US":
        raise SchemaError(f"field {name!r}: fn(0) gives {array.dtype}, not numbers; pass schema=")
    return Field(array.shape, array.dtype, tuple(f"{name}_{axis}" for axis in range(array.ndim)))
