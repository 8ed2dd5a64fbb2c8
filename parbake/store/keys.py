"""Invalidation keys: canonical JSON of everything that values depend on, its digest, differences."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

from parbake.errors import KeysError, SchemaError
from parbake.store.capture import Captured, capture
from parbake.store.layout import Field, check_schema
from parbake.store.source import is_foreign

JSON: TypeAlias = Any  # what json.dumps takes, without NaN and infinities
ABSENT = "(absent)"


@runtime_checkable
class Producer(Protocol):
    """Computes fields for a range of samples; knows what its values depend on.

    ``produce(start, stop, fields)`` gives ``{field: array [stop - start, *shape]}`` for at least the
    named fields, in NumPy or torch on any device, from the recipe and the sample index alone.
    """

    @property
    def name(self) -> str:
        """What it is called, in keys, names of stores and messages."""

    @property
    def version(self) -> int:
        """To be raised when the code gives other values; makes stores baked before stale."""

    def schema(self) -> Mapping[str, Field]:
        """The fields by name: shapes and dims without the sample axis, dtypes, units, coordinates."""

    def invalidation_keys(self) -> Mapping[str, JSON]:
        """What values depend on: plain values, or arrays, paths, modules and callables, taken by content."""

    def __len__(self) -> int:
        """Number of samples; no key: more of them make a store grow."""

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> Mapping[str, Any]:
        """Samples [start, stop) as ``{field: array [stop - start, *shape]}``, of ``fields`` at least."""


def canonical(value: JSON) -> str:
    """``value`` as the one JSON text that equal values have.

    Takes None, bool, int, finite float, str, and lists and dicts (string keys) of them; NumPy scalars
    by ``.item()``. Raises KeysError with the path of anything else.
    """
    return json.dumps(
        _plain(value, ""), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )


def _plain(value: Any, path: str) -> JSON:
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is str:
        return _text(value, path)
    if type(value) is float:
        if not math.isfinite(value):
            raise KeysError(f"{path or 'value'}: {value} cannot be an invalidation key; name it in words")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise KeysError(f"{path or 'value'}: key {key!r} is not a string")
        return {
            _text(str(key), path): _plain(item, f"{path}.{key}" if path else key)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise KeysError(f"{path or 'value'}: {type(value).__name__} cannot be an invalidation key")


def _text(value: str, path: str) -> str:
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise KeysError(f"{path or 'value'}: {value!r} is no Unicode text")
    return value


def digest(value: JSON) -> str:
    """SHA-256 of ``canonical(value)``, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Keys:
    """The keys of a store or a producer: the shared ones and each field's own, as plain JSON."""

    shared: Mapping[str, JSON]
    fields: Mapping[str, Mapping[str, JSON]]

    @property
    def digest(self) -> str:
        """Digest of the shared keys."""
        return hashlib.sha256(self._shared_text.encode()).hexdigest()

    def field_digest(self, field: str) -> str:
        """Digest of everything one field's values depend on, its storage form included."""
        text = f'{{"field":{canonical(self.fields[field])},"shared":{self._shared_text}}}'
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _shared_text(self) -> str:  # made once: a thousand fields may share ten thousand keys
        return canonical(self.shared)


@dataclass(frozen=True)
class Change:
    """One invalidation key that differs. ``field`` is None for a shared key."""

    field: str | None
    path: str
    stored: JSON
    wanted: JSON

    @property
    def follows(self) -> bool:
        """Whether it is a field's form, which mostly follows from a change of parameters."""
        return self.field is not None and self.path.partition(".")[0].partition("[")[0] in _FORM

    def __str__(self) -> str:
        where = f"field {self.field!r}: {self.path}" if self.field else self.path
        return f"{where}: {_shown(self.stored)} -> {_shown(self.wanted)}"


@dataclass(frozen=True)
class Freshness:
    """Whether stored keys equal the wanted ones; true when fresh, else ``changes`` says why not."""

    changes: tuple[Change, ...] = ()

    def __bool__(self) -> bool:
        return not self.changes

    def __str__(self) -> str:
        """A few of the changes in one line, causes before what follows from them."""
        if not self.changes:
            return "fresh"
        causes = [change for change in self.changes if not change.follows] or self.changes
        more = len(self.changes) - len(causes[:_TOLD_MAX])
        told = "; ".join(map(str, causes[:_TOLD_MAX]))
        return f"{told}; and {more} more" if more else told

    def __repr__(self) -> str:
        return f"<parbake.Freshness: {self if self else f'stale: {self}'}>"

    def _repr_html_(self) -> str:
        """For notebooks: fresh, or a table of what differs."""
        from parbake.browse.verdicts import freshness_html

        return freshness_html(self)


CONVERTED = "converted"  # the producer of values that others made, on what nobody knows
_TOLD_MAX = 5  # changes in one line; 'check' prints all
_FORM = ("shape", "coords", "dims", "field")


def producer_keys(producer: Producer, *, rehash: bool = False) -> tuple[Keys, dict[str, Field]]:
    """The keys and the checked schema of a producer.

    What the producer says is captured (arrays, files, modules and callables by content, see
    ``capture``), then its name, version and source are added, and to each field its shape, dtype,
    dims, units and coordinates. Producers that parbake ships have ``version`` instead of source.
    ``rehash``: do not trust remembered hashes of files. Raises KeysError, SchemaError.
    """
    schema = check_schema(producer.schema())
    captured = Captured(rehash=rehash)
    shared: dict[str, JSON] = {
        "producer": str(producer.name),
        "version": int(producer.version),
        "keys": capture(dict(producer.invalidation_keys()), captured),
    }
    fields = {name: _field_keys(name, f, captured) for name, f in schema.items()}
    if is_foreign(type(producer)):
        captured.add_producer(type(producer))
    if captured.source:
        shared["source"] = dict(captured.source)
    if captured.bound:
        shared["globals"] = dict(captured.bound)
    keys = Keys(shared, fields)
    canonical({"shared": shared, "fields": fields})  # raises on whatever slipped through
    return keys, schema


def _field_keys(name: str, f: Field, captured: Captured) -> dict[str, JSON]:
    coords = {
        name: {"units": coord.units, "values": capture(coord.values, captured)}
        | ({} if coord.dim is None else {"dim": coord.dim})
        | ({} if coord.labels is None else {"labels": list(coord.labels)})
        for name, coord in sorted(f.coords.items())
    }
    keys: dict[str, JSON] = {
        "shape": list(f.shape),
        "dtype": f.dtype.str,
        "dims": list(f.dims),
        "units": f.units,
        "allow_nan": f.allow_nan,
        "coords": coords,
    }
    if clash := keys.keys() & f.keys.keys():
        raise SchemaError(f"field {name!r}: keys {sorted(clash)} are parbake's own; rename them")
    keys.update(capture(dict(f.keys), captured, f"field {name!r}"))
    return keys


def compare(stored: Keys, wanted: Keys, *, fields: Sequence[str] | None = None) -> Freshness:
    """What differs between stored and wanted keys, shared ones first.

    ``fields`` limits the comparison of fields to those named; a field on one side only is a change.
    """
    changes = [
        Change(None, _short(path), old, new) for path, old, new in _differences(stored.shared, wanted.shared)
    ]
    names = fields if fields is not None else [*stored.fields, *(wanted.fields.keys() - stored.fields.keys())]
    for name in names:
        if name not in stored.fields or name not in wanted.fields:
            sides = ["baked" if name in side.fields else ABSENT for side in (stored, wanted)]
            changes.append(Change(name, "field", *sides))
            continue
        changes += [
            Change(name, path, old, new)
            for path, old, new in _differences(stored.fields[name], wanted.fields[name])
        ]
    return Freshness(tuple(changes))


def without_source(keys: Keys) -> Keys:
    """``keys`` less the source of foreign definitions: what ``accept_source`` compares."""
    return Keys({k: v for k, v in keys.shared.items() if k != "source"}, keys.fields)


def _short(path: str) -> str:
    return path.removeprefix("keys.")


def _differences(stored: JSON, wanted: JSON, path: str = "") -> Iterator[tuple[str, JSON, JSON]]:
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        for key in sorted(stored.keys() | wanted.keys()):
            inner = f"{path}.{key}" if path else key
            if key in stored and key in wanted:
                yield from _differences(stored[key], wanted[key], inner)
            else:
                yield inner, stored.get(key, ABSENT), wanted.get(key, ABSENT)
    elif isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        for i, (old, new) in enumerate(zip(stored, wanted, strict=True)):
            yield from _differences(old, new, f"{path}[{i}]")
    elif canonical(stored) != canonical(wanted):
        yield path, stored, wanted


def _shown(value: JSON) -> str:
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else value
    if isinstance(value, Mapping) and "sha256" in value:
        return cast(str, value["sha256"])[:12]
    text = canonical(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
