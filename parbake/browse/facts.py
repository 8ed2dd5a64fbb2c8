"""What a store says about itself, as the rows that terminal, notebook and report show alike."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parbake import human

if TYPE_CHECKING:
    from parbake.store.document import StoredField
    from parbake.store.keys import JSON
    from parbake.store.layout import Coord
    from parbake.store.store import Store

STATISTICS = ("min", "max", "mean", "std")
FIELD_KEYS = frozenset(("shape", "dtype", "dims", "units", "allow_nan", "coords"))  # that tables show


@dataclass(frozen=True)
class StatisticsRow:
    """Of a field, or of one of its channels: min, max, mean and std, and how many values are not finite."""

    name: str
    channel: bool
    numbers: tuple[str, ...]
    nonfinite: str


def state(store: Store) -> str:
    """``foreign``, ``edited`` since the bake, or ``complete``."""
    if store.is_foreign:
        return "foreign"
    return "edited" if store.edited else "complete"


def producer(store: Store) -> Any:
    """The name of the producer; None where it is unknown."""
    return store.invalidation_keys.shared.get("producer")


def raw_nbytes(store: Store) -> int:
    """Of all samples as arrays, in bytes."""
    return sum(store.samples * int(f.layout.sample_nbytes) for f in store.fields.values())


def stored_nbytes(store: Store) -> int:
    """Of all chunks as they are stored. Raises DamagedStoreError."""
    return sum(map(store.nbytes_stored, store.fields))


def dims(field: StoredField, samples: int) -> tuple[str, ...]:
    """``sample 1,000``, ``time 52,920``: each axis with its length."""
    axes = zip(("sample", *field.dims), (samples, *field.shape), strict=True)
    return tuple(f"{name} {length:,}" for name, length in axes)


def chunk_row(store: Store, field: StoredField) -> tuple[str, ...]:
    """Samples of a chunk, its bytes, samples of a shard, codec, bytes stored, ratio.

    Raises DamagedStoreError.
    """
    layout, stored = field.layout, store.nbytes_stored(field.name)
    return (
        f"{layout.chunk_samples:,}",
        human.size(layout.chunk_nbytes),
        f"{layout.shard_samples:,}",
        layout.codec,
        human.size(stored),
        # a chunk that is not full says nothing of compression
        human.ratio(store.samples * layout.sample_nbytes, stored)
        if store.samples >= layout.chunk_samples
        else "-",
    )


def statistics_rows(coords: Mapping[str, Coord], field: StoredField, found: JSON) -> Iterator[StatisticsRow]:
    """Of the field, then of each channel that has a name; ``found``: its statistics, None of no values."""
    found = found or {}
    yield _statistics_row(field.name, False, found)
    for i, label in enumerate(channel_labels(coords, field) if "channels" in found else ()):
        yield _statistics_row(label, True, {name: values[i] for name, values in found["channels"].items()})


def _statistics_row(name: str, channel: bool, found: Mapping[str, Any]) -> StatisticsRow:
    nonfinite = found.get("nonfinite")
    numbers = tuple(human.number(found.get(what)) for what in STATISTICS)
    return StatisticsRow(name, channel, numbers, f"{nonfinite:,}" if nonfinite else "")


def channel_labels(coords: Mapping[str, Coord], field: StoredField) -> tuple[str, ...]:
    """Names of the channels that have statistics of their own, where they have names."""
    axis = field.channel_axis
    coord = coords.get(field.dims[axis]) if axis is not None else None
    return coord.labels or () if coord is not None else ()


def coord_text(coord: Coord) -> str:
    """The labels, or the range and number of the values."""
    if coord.labels is not None:
        return ", ".join(coord.labels)
    values, units = coord.values, f" {coord.units}" if coord.units else ""
    if len(values) == 1:
        return f"{values[0]}{units}"
    return f"{values.min():.6g} to {values.max():.6g}{units}, {len(values):,} values"


def flat_keys(store: Store) -> Iterator[tuple[str, str]]:
    """Keys as a change of them is named, without what the tables show and which name stands for a module."""
    shared = dict(store.invalidation_keys.shared)
    if isinstance(names := shared.get("globals"), Mapping):
        shared["globals"] = {name: value for name, value in names.items() if not _is_module(value)}
    yield from flat(shared.pop("keys", {}))
    yield from flat(shared)
    for field, keys in store.invalidation_keys.fields.items():
        own = {key: value for key, value in keys.items() if key not in FIELD_KEYS}
        yield from ((f"field {field!r}: {path}", value) for path, value in flat(own))


def _is_module(value: JSON) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"module"}


def provenance_lines(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who made it: a line for each bake and each range of samples made alike, then the recipe.

    What is not as parbake writes it is listed as it is.
    """
    try:
        return list(_provenance_lines(provenance))
    except (TypeError, ValueError, KeyError, AttributeError):
        return [(name, json.dumps(value, ensure_ascii=False)) for name, value in provenance.items()]


def _provenance_lines(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    rest = dict(provenance)
    for bake in rest.pop("bakes", []):
        commit = f", commit {bake['git_commit'][:12]}" if bake.get("git_commit") else ""
        samples, seconds = human.count(bake["samples"], "sample"), human.duration(bake["seconds"])
        yield "baked", f"{bake['ended']}, {samples} in {seconds} on {bake['host']}{commit}"
        if bake.get("command"):
            yield "command", bake["command"]
        if isinstance(origin := bake.get("converted"), Mapping):
            vouched = ", keys vouched for by who converted" if origin.get("keys_vouched") else ""
            yield "converted", f"from {origin.get('file')}{vouched}"
            yield from (("noticed", str(notice)) for notice in origin.get("notices") or ())
    for segment in rest.pop("segments", []):
        environment = dict(segment["environment"])
        versions = [f"{name} {version}" for name, version in environment.pop("versions", {}).items()]
        made = [f"{name} {value}" for name, value in environment.items() if value is not None]
        samples = f"samples {segment['start']:,}-{segment['stop'] - 1:,}"
        yield (
            f"{', '.join(segment['fields'])}",
            f"{samples}, batches of {segment['batch_size']}, {', '.join([*made, *versions])}",
        )
    yield from ((path, value) for path, value in flat(rest) if value not in ("null", "[]"))


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """JSON as lines of path and value."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, item in enumerate(value):
            yield from flat(item, f"{path}[{position}]")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
