"""``parbake inspect``: all that a store says about itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parbake import human
from parbake.cli_output import (
    bakes_json,
    pairs,
    print_json,
    print_parts,
    ratio_of,
    raw_nbytes,
    stored_nbytes,
    table,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from parbake.store.document import StoredField
    from parbake.store.layout import Coord
    from parbake.store.publish import Unfinished
    from parbake.store.store import Store

_STATES = {
    "foreign": "not baked by parbake, keys unknown",
    "edited": "edited since the bake",
    "complete": "complete",
}


def show_store(path: Path, store: Store, unfinished: Sequence[Unfinished], as_json: bool) -> None:
    """All that a store says about itself."""
    if as_json:
        print_json(**_described(path, store, unfinished))
        return
    raw, stored = raw_nbytes(store), stored_nbytes(store)
    producer = _producer(store)
    origin = f" of {producer}" if producer is not None else ""
    click.echo(
        f"{path}: {human.count(store.samples, 'sample')}{origin}, {human.size(stored)} "
        f"(ratio {human.ratio(raw, stored)}), {_STATES[_state(store)]}"
    )
    for bake in unfinished:
        click.echo(f"beside it, an {bake}")
    described = [(name, f.description) for name, f in store.fields.items() if f.description]
    sections: list[tuple[str, RenderableType]] = [
        ("Fields", _fields_table(store)),
        ("Chunks", _chunks_table(store)),
    ]
    if not store.is_foreign:  # of a foreign file they would have to be computed
        sections.append(("Statistics", _statistics_table(store)))
    if described:
        sections.insert(1, ("Descriptions", pairs(described)))
    if store.coords:
        sections.append(("Coordinates", pairs([(n, _coord(c)) for n, c in store.coords.items()])))
    if not store.is_foreign:
        sections.append(("Keys", pairs([("digest", store.digest), *_flat_keys(store)])))
        sections.append(("Provenance", pairs(_provenance(store.provenance))))
    for title, content in sections:
        print_parts("", f"[bold]{title}[/bold]", content)


def _producer(store: Store) -> Any:
    return store.invalidation_keys.shared.get("producer")


def _state(store: Store) -> str:
    if store.is_foreign:
        return "foreign"
    return "edited" if store.edited else "complete"


def _described(path: Path, store: Store, unfinished: Sequence[Unfinished]) -> dict[str, Any]:
    raw, stored = raw_nbytes(store), stored_nbytes(store)
    keys = store.invalidation_keys
    return {
        "path": str(path),
        "state": _state(store),
        "unfinished": bakes_json(unfinished),
        "producer": _producer(store),
        "samples": store.samples,
        "slab_samples": store.layout.slab_samples,
        "nbytes_raw": raw,
        "nbytes_stored": stored,
        "ratio": ratio_of(raw, stored),
        "digest": store.digest,
        "fields": {
            name: {
                "dtype": str(f.dtype),
                "shape": list(f.shape),
                "dims": list(f.dims),
                "units": f.units,
                "description": f.description,
                "codec": f.layout.codec,
                "chunk_samples": f.layout.chunk_samples,
                "shard_samples": f.layout.shard_samples,
                "nbytes_stored": store.nbytes_stored(name),
                "allow_nan": f.allow_nan,
            }
            for name, f in store.fields.items()
        },
        "coords": {
            name: {"units": coord.units, "dim": coord.dim or name, "values": _values(coord)}
            for name, coord in store.coords.items()
        },
        "keys": {"shared": keys.shared, "fields": keys.fields},
        "statistics": None if store.is_foreign else store.statistics,
        "provenance": store.provenance,
    }


def _fields_table(store: Store) -> RenderableType:
    rows = []
    for name, f in store.fields.items():
        lengths = [f"{dim} {length:,}" for dim, length in zip(f.dims, f.shape, strict=True)]
        dims = ", ".join([f"sample {store.samples:,}", *lengths])
        rows.append((name, dims, str(f.dtype), f.units or ""))
    return table(("field", "dimensions", "dtype", "units"), rows, wrapped=1)


def _chunks_table(store: Store) -> RenderableType:
    rows = []
    for name, f in store.fields.items():
        raw = store.samples * f.layout.sample_nbytes
        rows.append(
            (
                name,
                f"{f.layout.chunk_samples:,}",
                human.size(f.layout.chunk_nbytes),
                f"{f.layout.shard_samples:,}",
                f.layout.codec,
                human.size(store.nbytes_stored(name)),
                human.ratio(raw, store.nbytes_stored(name)),
            )
        )
    header = ("field", "chunk samples", "bytes", "shard samples", "codec", "stored", "ratio")
    return table(header, rows, right=(1, 2, 3, 5, 6))


def _statistics_table(store: Store) -> RenderableType:
    rows = []
    for name, field in store.fields.items():
        found = store.statistics.get(name) or {}
        rows.append(_statistics_row(name, found))
        for i, label in enumerate(_channels(store, field) if "channels" in found else ()):
            rows.append(_statistics_row(f"  {label}", {k: v[i] for k, v in found["channels"].items()}))
    header = ["field", "min", "max", "mean", "std"]
    if any(row[-1] for row in rows):
        header.append("not finite")
    cells = [row[: len(header)] for row in rows]
    return table(header, cells, right=tuple(range(1, len(header))))


def _channels(store: Store, field: StoredField) -> tuple[str, ...]:
    """Names of the channels that have statistics of their own, where they have names."""
    axis = field.channel_axis
    coord = store.coords.get(field.dims[axis]) if axis is not None else None
    return coord.labels or () if coord is not None else ()


def _statistics_row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = [human.number(found.get(what)) for what in ("min", "max", "mean", "std")]
    nonfinite = found.get("nonfinite")
    return name, *numbers, f"{nonfinite:,}" if nonfinite else ""


def _coord(coord: Coord) -> str:
    if coord.labels is not None:
        return ", ".join(coord.labels)
    values, units = coord.values, f" {coord.units}" if coord.units else ""
    if len(values) == 1:
        return f"{values[0]}{units}"
    return f"{values.min():.6g} to {values.max():.6g}{units}, {len(values):,} values"


def _values(coord: Coord) -> list[Any]:
    return coord.values.tolist() if coord.labels is None else list(coord.labels)


def _flat_keys(store: Store) -> Iterator[tuple[str, str]]:
    """Keys as a change of them is named, without what the tables above show."""
    shared = dict(store.invalidation_keys.shared)
    yield from _flat(shared.pop("keys", {}))
    yield from _flat(shared)
    shown = {"shape", "dtype", "dims", "units", "allow_nan", "coords"}
    for field, keys in store.invalidation_keys.fields.items():
        own = {key: value for key, value in keys.items() if key not in shown}
        yield from ((f"field {field!r}: {path}", value) for path, value in _flat(own))


def _provenance(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Who made it: a line for each bake and each range of samples made alike, then the recipe."""
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
        made = ", ".join([*(f"{name} {value}" for name, value in environment.items()), *versions])
        samples = f"samples {segment['start']:,}-{segment['stop'] - 1:,}"
        yield f"{', '.join(segment['fields'])}", f"{samples}, batches of {segment['batch_size']}, {made}"
    yield from ((path, value) for path, value in _flat(rest) if value not in ("null", "[]"))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, item in enumerate(value):
            yield from _flat(item, f"{path}[{position}]")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
