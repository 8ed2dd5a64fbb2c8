"""``parbake inspect``: all that a store says about itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parbake import human
from parbake.browse import facts
from parbake.cli_output import (
    bakes_json,
    pairs,
    print_json,
    print_parts,
    ratio_of,
    table,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

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
    raw, stored = facts.raw_nbytes(store), facts.stored_nbytes(store)
    producer = facts.producer(store)
    origin = f" of {producer}" if producer is not None else ""
    click.echo(
        f"{path}: {human.count(store.samples, 'sample')}{origin}, {human.size(stored)} "
        f"(ratio {human.ratio(raw, stored)}), {_STATES[facts.state(store)]}"
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
        sections.append(("Coordinates", pairs([(n, facts.coord_text(c)) for n, c in store.coords.items()])))
    if not store.is_foreign:
        sections.append(("Keys", pairs([("digest", store.digest), *facts.flat_keys(store)])))
        sections.append(("Provenance", pairs(facts.provenance_lines(store.provenance))))
    for title, content in sections:
        print_parts("", f"[bold]{title}[/bold]", content)


def _described(path: Path, store: Store, unfinished: Sequence[Unfinished]) -> dict[str, Any]:
    raw, stored = facts.raw_nbytes(store), facts.stored_nbytes(store)
    keys = store.invalidation_keys
    return {
        "path": str(path),
        "state": facts.state(store),
        "unfinished": bakes_json(unfinished),
        "producer": facts.producer(store),
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
    rows = [
        (name, ", ".join(facts.dims(f, store.samples)), str(f.dtype), f.units or "")
        for name, f in store.fields.items()
    ]
    return table(("field", "dimensions", "dtype", "units"), rows, wrapped=1)


def _chunks_table(store: Store) -> RenderableType:
    rows = [(name, *facts.chunk_row(store, f)) for name, f in store.fields.items()]
    header = ("field", "chunk samples", "bytes", "shard samples", "codec", "stored", "ratio")
    return table(header, rows, right=(1, 2, 3, 5, 6))


def _statistics_table(store: Store) -> RenderableType:
    rows = [
        (f"  {row.name}" if row.channel else row.name, *row.numbers, row.nonfinite)
        for name, field in store.fields.items()
        for row in facts.statistics_rows(store.coords, field, store.statistics.get(name))
    ]
    header = ["field", *facts.STATISTICS]
    if any(row[-1] for row in rows):
        header.append("not finite")
    cells = [row[: len(header)] for row in rows]
    return table(header, cells, right=tuple(range(1, len(header))))


def _values(coord: Coord) -> list[Any]:
    return coord.values.tolist() if coord.labels is None else list(coord.labels)
