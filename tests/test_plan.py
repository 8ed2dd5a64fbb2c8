"""The plan of a bake: every sample once, on a grid that can be walked again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.producers.plan import (
    FieldSource,
    Segment,
    SlabPlan,
    Step,
    clipped,
    merge_segments,
    plan_slabs,
    steps,
)
from parbake.store.layout import FieldLayout, Layout

SLAB = 32
FIELDS = ("x", "y", "f0")
LAYOUT = Layout(
    SLAB,
    {
        "x": FieldLayout("x", "<f4", (100,), 4, SLAB, "lz4"),
        "y": FieldLayout("y", "<f4", (100,), 4, SLAB, "lz4"),
        "f0": FieldLayout("f0", "<f4", (), 128, 512, "raw"),
    },
)
samples_ = st.integers(1, 150)
batch_sizes = st.integers(1, 70)


def segment(start: int, stop: int, batch_size: int, *fields: str, where: str = "here") -> Segment:
    return Segment(fields or ("x",), start, stop, batch_size, {"device": where})


@st.composite
def slab_plans(draw: st.DrawFn) -> SlabPlan:
    slab = draw(st.integers(0, 3))
    start = slab * SLAB
    stop = start + draw(st.integers(1, SLAB))
    sources = {}
    for name in FIELDS:
        until = draw(st.integers(start, stop))
        sources[name] = FieldSource(linked=until == stop and draw(st.booleans()), kept_until=until)
    return SlabPlan(slab, start, stop, sources)


@settings(deadline=None)
@given(slab_plans(), batch_sizes)
def test_steps_give_every_sample_of_every_field_once_and_in_order(plan: SlabPlan, batch_size: int) -> None:
    for name, source in plan.sources.items():
        walked = [
            i for s in steps(plan, batch_size) if name in s.produced + s.kept for i in range(s.start, s.stop)
        ]
        assert walked == ([] if source.linked else list(range(plan.start, plan.stop)))
        produced = [i for s in steps(plan, batch_size) if name in s.produced for i in range(s.start, s.stop)]
        assert produced == ([] if source.linked else list(range(source.kept_until, plan.stop)))


@settings(deadline=None)
@given(slab_plans(), batch_sizes)
def test_steps_end_at_multiples_of_the_batch_size_and_at_cuts_only(plan: SlabPlan, batch_size: int) -> None:
    cuts = {plan.stop, *(source.kept_until for source in plan.sources.values())}
    for step in steps(plan, batch_size):
        assert 0 < step.stop - step.start <= batch_size
        assert step.stop % batch_size == 0 or step.stop in cuts
        assert step.start // batch_size == (step.stop - 1) // batch_size
        assert not any(step.start < cut < step.stop for cut in cuts)


def test_grid_is_absolute_and_cut_at_slab_edges() -> None:
    plans = plan_slabs(LAYOUT, 70, 0, lambda name, slab: False)
    walked = [(s.start, s.stop) for plan in plans for s in steps(plan, 20)]
    assert walked == [(0, 20), (20, 32), (32, 40), (40, 60), (60, 64), (64, 70)]


def test_growth_links_whole_slabs_and_reads_back_the_partial_one() -> None:
    plans = plan_slabs(LAYOUT, 100, 40, lambda name, slab: True)
    assert [plan.sources["x"] for plan in plans] == [
        FieldSource(True, 32),
        FieldSource(False, 40),
        FieldSource(False, 64),
        FieldSource(False, 96),
    ]
    assert plans[0].sources["f0"] == FieldSource(False, 32)  # shards of scalars span slabs
    assert [plan.missing for plan in plans] == [0, 24, 32, 4]
    unlinkable = plan_slabs(LAYOUT, 100, 40, lambda name, slab: True, linkable=False)
    assert not any(source.linked for plan in unlinkable for source in plan.sources.values())


@settings(deadline=None)
@given(samples_, samples_, st.sets(st.tuples(st.sampled_from(FIELDS), st.integers(0, 5))))
def test_plan_keeps_only_what_is_still_right(samples: int, old: int, wrong: set[tuple[str, int]]) -> None:
    plans = plan_slabs(LAYOUT, samples, old, lambda name, slab: (name, slab) not in wrong)
    assert [plan.start for plan in plans] == list(range(0, samples, SLAB))
    assert [plan.stop for plan in plans] == [*range(SLAB, samples, SLAB), samples]
    for plan in plans:
        for name, source in plan.sources.items():
            kept = 0 if (name, plan.slab) in wrong else max(0, min(plan.stop, old) - plan.start)
            assert source.kept_until - plan.start == kept
            if source.linked:  # the old shard must hold exactly these samples
                assert source.kept_until == plan.stop == min((plan.slab + 1) * SLAB, old)


# ---- segments


def covered(segments: list[Segment]) -> dict[tuple[str, int], tuple[int, str]]:
    """How each sample of each field was produced; fails where two segments claim one."""
    found: dict[tuple[str, int], tuple[int, str]] = {}
    for s in segments:
        for name in s.fields:
            for i in range(s.start, s.stop):
                assert (name, i) not in found
                found[name, i] = (s.batch_size, s.environment["device"])
    return found


def alike(segments: Iterable[Segment]) -> list[str]:
    """Segments whatever the order of their fields."""
    return sorted(str(replace(s, fields=tuple(sorted(s.fields)))) for s in segments)


@st.composite
def segment_lists(draw: st.DrawFn) -> list[Segment]:
    segments = []
    for name in FIELDS:
        edges = sorted(draw(st.sets(st.integers(0, 120), min_size=2, max_size=6)))
        for start, stop in pairwise(edges):
            if draw(st.booleans()):
                size, where = draw(st.sampled_from([(4, "a"), (4, "b"), (8, "a")]))
                segments.append(segment(start, stop, size, name, where=where))
    return draw(st.permutations(segments))


@settings(deadline=None)
@given(segment_lists())
def test_merged_segments_tell_of_each_sample_what_the_parts_told(segments: list[Segment]) -> None:
    merged = merge_segments(segments, SLAB)
    assert covered(merged) == covered(segments)
    assert alike(merge_segments(merged, SLAB)) == alike(merged)


@settings(deadline=None)
@given(segment_lists(), st.integers(0, 120), st.integers(0, 120))
def test_clipped_segments_tell_of_the_range_what_the_whole_told(
    segments: list[Segment], start: int, stop: int
) -> None:
    for name in FIELDS:
        part = {k: v for k, v in covered(segments).items() if k[0] == name and start <= k[1] < stop}
        assert covered(clipped(segments, name, start, stop)) == part


def test_segments_are_joined_only_where_the_grid_runs_on() -> None:
    assert merge_segments([segment(0, 16, 8), segment(16, 40, 8)], SLAB) == [segment(0, 40, 8)]
    assert merge_segments([segment(0, 32, 20), segment(32, 50, 20)], SLAB) == [segment(0, 50, 20)]
    cut = [segment(0, 20, 8), segment(20, 40, 8)]  # at 20 a batch of [16, 24) was cut in two
    assert merge_segments(cut, SLAB) == cut
    moved = [segment(0, 16, 8), segment(16, 40, 8, where="there")]
    assert merge_segments(moved, SLAB) == moved
    both = merge_segments([segment(0, 40, 8, "x"), segment(0, 40, 8, "y")], SLAB)
    assert both == [segment(0, 40, 8, "x", "y")]


def test_segment_survives_json() -> None:
    one = segment(0, 40, 8, "x", "y")
    assert Segment.from_json(one.as_json()) == one


# ---- replay: what repair relies on


@dataclass
class Baked:
    """A store as its plan sees it: per field the batch in which each sample was computed."""

    samples: int = 0
    segments: tuple[Segment, ...] = ()
    batches: Mapping[tuple[str, int], tuple[int, int]] = None  # type: ignore[assignment]

    def bake(self, samples: int, batch_size: int, changed: frozenset[str]) -> Baked:
        plans = plan_slabs(LAYOUT, samples, self.samples, lambda name, slab: name not in changed)
        batches = dict(self.batches or {})
        kept, made = [], []
        for plan in plans:
            for name, source in plan.sources.items():
                kept += clipped(self.segments, name, plan.start, source.kept_until)
            for step in steps(plan, batch_size):
                batches |= batches_of(step)
                if step.produced:
                    made.append(segment(step.start, step.stop, step.batch_size, *step.produced))
        return Baked(samples, tuple(merge_segments([*kept, *made], SLAB)), batches)


def batches_of(step: Step) -> dict[tuple[str, int], tuple[int, int]]:
    return {(n, i): (step.start, step.stop) for n in step.produced for i in range(step.start, step.stop)}


bakes = st.lists(
    st.tuples(st.integers(0, 60), batch_sizes, st.frozensets(st.sampled_from(FIELDS), max_size=2)),
    min_size=1,
    max_size=5,
)


def baked(history: list[tuple[int, int, frozenset[str]]]) -> Baked:
    store = Baked()
    for more, batch_size, changed in history:
        store = store.bake(max(1, store.samples + more), batch_size, changed)
    return store


@settings(deadline=None)
@given(bakes)
def test_any_growth_and_rebake_covers_every_sample_once(
    history: list[tuple[int, int, frozenset[str]]],
) -> None:
    store = baked(history)
    assert set(covered(list(store.segments))) == {(n, i) for n in FIELDS for i in range(store.samples)}


@settings(deadline=None, max_examples=300)
@given(bakes, st.sets(st.tuples(st.sampled_from(FIELDS), st.integers(0, 9)), min_size=1))
def test_recorded_segments_replay_the_batches_that_were_run(
    history: list[tuple[int, int, frozenset[str]]], damaged: set[tuple[str, int]]
) -> None:
    store = baked(history)
    plans = plan_slabs(LAYOUT, store.samples, store.samples, lambda name, slab: (name, slab) not in damaged)
    replayed: dict[tuple[str, int], tuple[int, int]] = {}
    for plan in plans:
        for step in steps(plan, 17, store.segments):
            for key, batch in batches_of(step).items():
                assert key not in replayed
                replayed[key] = batch
    wanted = {(n, i): b for (n, i), b in store.batches.items() if (n, i // SLAB) in damaged}
    assert replayed == wanted


@settings(deadline=None)
@given(bakes)
def test_repair_records_what_was_recorded_before(history: list[tuple[int, int, frozenset[str]]]) -> None:
    store = baked(history)
    plans = plan_slabs(LAYOUT, store.samples, store.samples, lambda name, slab: slab != 0)
    again = [
        segment(step.start, step.stop, step.batch_size, *step.produced)
        for plan in plans
        for step in steps(plan, 17, store.segments)
        if step.produced
    ]
    kept = [
        piece
        for plan in plans
        for name, source in plan.sources.items()
        for piece in clipped(store.segments, name, plan.start, source.kept_until)
    ]
    assert alike(merge_segments([*again, *kept], SLAB)) == alike(store.segments)


def test_plans_are_values() -> None:
    plan = plan_slabs(LAYOUT, 10, 0, lambda name, slab: False)[0]
    assert plan == replace(plan)
    with pytest.raises(AttributeError):
        plan.start = 3  # type: ignore[misc]
