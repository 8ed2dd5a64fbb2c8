"""What a bake has to do: slabs, what enters them from an older store, and the batch grid. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from parbake.store.keys import JSON, canonical
from parbake.store.layout import Layout


@dataclass(frozen=True)
class Segment:
    """A range of samples of some fields that was produced in one way: on one batch grid, in one place.

    ``environment``: device and versions, as JSON.
    """

    fields: tuple[str, ...]
    start: int
    stop: int
    batch_size: int
    environment: Mapping[str, JSON]

    def as_json(self) -> dict[str, JSON]:
        return {**vars(self), "fields": list(self.fields), "environment": dict(self.environment)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Segment:
        return cls(**{**value, "fields": tuple(value["fields"])})


@dataclass(frozen=True)
class FieldSource:
    """Where one field's samples of a slab come from.

    ``linked``: the whole shard enters as a file. Else samples below ``kept_until`` are read from the old
    store and the rest is produced.
    """

    linked: bool
    kept_until: int


@dataclass(frozen=True)
class SlabPlan:
    """One slab: samples [start, stop) and where each field comes from."""

    slab: int
    start: int
    stop: int
    sources: Mapping[str, FieldSource]

    def produced(self, start: int) -> tuple[str, ...]:
        """The fields that are produced at sample ``start``."""
        return tuple(n for n, s in self.sources.items() if not s.linked and s.kept_until <= start)

    def kept(self, start: int) -> tuple[str, ...]:
        """The fields that are read from the old store at sample ``start``."""
        return tuple(n for n, s in self.sources.items() if not s.linked and s.kept_until > start)

    @property
    def missing(self) -> int:
        """Samples of which at least one field is produced."""
        return self.stop - min((s.kept_until for s in self.sources.values()), default=self.stop)

    @property
    def work(self) -> int:
        """Samples that progress counts: the missing ones, or all where none is and no shard is kept."""
        encoded_again = not any(source.linked for source in self.sources.values())
        return self.missing or (self.stop - self.start if encoded_again else 0)


@dataclass(frozen=True)
class Step:
    """One batch: samples [start, stop), which fields are produced and which read from the old store.

    ``batch_size``: of the grid that it lies on.
    """

    start: int
    stop: int
    produced: tuple[str, ...]
    kept: tuple[str, ...]
    batch_size: int


def plan_slabs(
    layout: Layout,
    samples: int,
    old_samples: int,
    kept: Callable[[str, int], bool],
    *,
    linkable: bool = True,
) -> list[SlabPlan]:
    """All slabs of a store of ``samples``, given an old one of ``old_samples`` (0 for none).

    ``kept(field, slab)``: whether the old store's samples of this field and slab are still right.
    ``linkable``: its shards are cut as these are, so that whole ones can enter as files.
    """
    plans = []
    for slab in range(layout.slab_count(samples)):
        start, stop = layout.slab_range(slab, samples)
        _, old_stop = layout.slab_range(slab, old_samples)
        sources = {}
        for name, field in layout.fields.items():
            until = min(stop, max(start, old_stop)) if kept(name, slab) else start
            whole = linkable and start < until == stop == old_stop and not field.is_scalar
            sources[name] = FieldSource(linked=whole, kept_until=until)
        plans.append(SlabPlan(slab, start, stop, sources))
    return plans


def steps(slab: SlabPlan, batch_size: int, recorded: Sequence[Segment] = ()) -> Iterator[Step]:
    """The batches of a slab on the absolute grid: multiples of the batch size and the slab's own cuts.

    ``recorded``: segments whose own grid counts instead, where the same bytes are wanted again; fields
    that were produced on different grids then come one after the other.
    """
    grids: dict[tuple[tuple[int, int, int], ...], list[str]] = {}
    for name in slab.sources:
        pieces = clipped(recorded, name, slab.start, slab.stop)
        grids.setdefault(tuple((s.start, s.stop, s.batch_size) for s in pieces), []).append(name)
    for grid, names in grids.items():
        yield from _steps_on(grid, frozenset(names), slab, batch_size)


def _steps_on(
    grid: Sequence[tuple[int, int, int]], names: frozenset[str], slab: SlabPlan, batch_size: int
) -> Iterator[Step]:
    cuts = {slab.start, slab.stop}
    cuts |= {source.kept_until for source in slab.sources.values()}
    cuts |= {edge for start, stop, _ in grid for edge in (start, stop)}
    edges = sorted(edge for edge in cuts if slab.start <= edge <= slab.stop)
    for low, high in pairwise(edges):
        size = next((size for start, stop, size in grid if start <= low < stop), batch_size)
        produced = tuple(name for name in slab.produced(low) if name in names)
        kept = tuple(name for name in slab.kept(low) if name in names)
        start = low
        while start < high and (produced or kept):
            stop = min((start // size + 1) * size, high)
            yield Step(start, stop, produced, kept, size)
            start = stop


def merge_segments(segments: Iterable[Segment], slab_samples: int) -> list[Segment]:
    """Segments with neighbours joined where the grid runs on, and equal ranges of several fields as one."""
    by_field: dict[str, list[Segment]] = {}
    for segment in segments:
        for name in segment.fields:
            by_field.setdefault(name, []).append(
                Segment((name,), segment.start, segment.stop, segment.batch_size, segment.environment)
            )
    grouped: dict[str, Segment] = {}
    for pieces in by_field.values():
        for piece in _joined(sorted(pieces, key=lambda s: s.start), slab_samples):
            key = canonical({**piece.as_json(), "fields": []})
            known = grouped.get(key)
            fields = (*known.fields, *piece.fields) if known else piece.fields
            grouped[key] = Segment(fields, piece.start, piece.stop, piece.batch_size, piece.environment)
    return sorted(grouped.values(), key=lambda s: (s.start, s.fields))


def _joined(pieces: Sequence[Segment], slab_samples: int) -> list[Segment]:
    joined: list[Segment] = []
    for piece in pieces:
        if joined:
            last = joined[-1]
            on_grid = piece.start % slab_samples == 0 or piece.start % piece.batch_size == 0
            same = (last.batch_size, last.environment) == (piece.batch_size, piece.environment)
            if last.stop == piece.start and same and on_grid:
                joined[-1] = Segment(last.fields, last.start, piece.stop, last.batch_size, last.environment)
                continue
        joined.append(piece)
    return joined


def clipped(segments: Iterable[Segment], field: str, start: int, stop: int) -> list[Segment]:
    """The parts of ``segments`` that tell how samples [start, stop) of one field were produced."""
    return [
        Segment((field,), max(s.start, start), min(s.stop, stop), s.batch_size, s.environment)
        for s in segments
        if field in s.fields and max(s.start, start) < min(s.stop, stop)
    ]
