"""Any function of a sample number as a producer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import KeysError, SchemaError
from parbake.producers.batches import to_host
from parbake.store.capture import Captured, capture
from parbake.store.keys import JSON, Producer
from parbake.store.layout import Field
from parbake.store.source import qualname

VALUE = "value"  # the field of a function that gives one bare array


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
        return "function"

    def __len__(self) -> int:
        return self.samples

    def schema(self) -> Mapping[str, Field]:
        return self.fields

    def invalidation_keys(self) -> Mapping[str, JSON]:
        function = self.fn if self.visible else {"function": _name_of(self.fn), "vouched": True}
        return {**self.keys, "function": function}

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        samples = [_named(self.fn(index), self.fields, index) for index in range(start, stop)]
        return {name: np.stack([sample[name] for sample in samples]) for name in fields}


def _name_of(fn: Callable[[int], Any]) -> str:
    return qualname(fn) if hasattr(fn, "__qualname__") else qualname(type(fn))


def _named(result: Any, schema: Mapping[str, Field] | None, index: int) -> dict[str, NDArray[Any]]:
    """One sample as arrays by field; Python numbers take the field's dtype."""
    if not isinstance(result, Mapping):
        only = next(iter(schema)) if schema is not None and len(schema) == 1 else VALUE
        result = {only: result}
    arrays = {}
    for name, value in result.items():
        array, wait = to_host(value, f"sample {index}", name)
        if wait is not None:
            wait()
        if isinstance(value, bool | int | float) and schema is not None and name in schema:
            array = array.astype(schema[name].dtype, casting="same_kind")
        arrays[name] = array
    return arrays


def _inferred(name: str, array: NDArray[Any]) -> Field:
    if array.dtype.hasobject or array.dtype.kind in "US":
        raise SchemaError(f"field {name!r}: fn(0) gives {array.dtype}, not numbers; pass schema=")
    return Field(array.shape, array.dtype, tuple(f"{name}_{axis}" for axis in range(array.ndim)))
