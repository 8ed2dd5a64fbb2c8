"""compare_stores: what counts as a difference between two stores, and what does not."""

from __future__ import annotations

import dataclasses
import functools
import json
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bakery
import numpy as np
import pytest
from bakery import Loaf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from parbake.producers.bake import bake
from parbake.producers.computed import ComputedStore
from parbake.producers.function import from_function
from parbake.store import differences, keys
from parbake.store.concatenated import concatenated
from parbake.store.differences import SampleDifferences, compare_stores
from parbake.store.keys import Change
from parbake.store.layout import Coord, Field
from parbake.store.samples import Samples
from parbake.store.store import Store


@pytest.fixture(autouse=True)
def without_source(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """To capture the source of the producers here takes longer than all else."""
    bakery._keys.cache_clear()  # which hold the source
    monkeypatch.setattr(keys, "is_foreign", lambda producer: False)
    yield
    bakery._keys.cache_clear()


def computed(values: Mapping[str, NDArray[Any]]) -> Samples:
    """Samples with these values, [sample, *shape], and one set of keys whatever they are."""
    schema = {
        name: Field(array.shape[1:], array.dtype, tuple(f"{name}_{i}" for i in range(1, array.ndim)))
        for name, array in values.items()
    }
    schema = {name: dataclasses.replace(field, allow_nan=True) for name, field in schema.items()}
    return ComputedStore(Given(values, schema, len(next(iter(values.values())))))


@dataclasses.dataclass(frozen=True)
class Given:
    """A producer of given values, which are not its keys."""

    values: Mapping[str, NDArray[Any]]
    fields: Mapping[str, Field]
    samples: int
    name: str = "given"
    version: int = 1

    def schema(self) -> Mapping[str, Field]:
        return self.fields

    def invalidation_keys(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        return self.samples

    def produce(self, start: int, stop: int, fields: Any) -> dict[str, NDArray[Any]]:
        return {name: self.values[name][start:stop] for name in fields}


def baked(folder: Path, name: str, loaf: Loaf, **options: Any) -> Store:
    return bake(loaf, folder / f"{name}.zarr", progress=False, **options)


def test_codec_and_place_are_no_difference(tmp_path: Path, tiny: None) -> None:
    with baked(tmp_path, "a", Loaf()) as a, baked(tmp_path, "b", Loaf(), codec="raw") as b:
        found = compare_stores(a, b)
        assert found
        assert found.all == ()
        assert str(found) == "equal"
        assert compare_stores(a, ComputedStore(Loaf()))


def test_byte_order_is_no_difference() -> None:
    values = np.arange(12.0).reshape(4, 3)
    assert compare_stores(computed({"x": values}), computed({"x": values.astype(">f8")}))
    other = computed({"x": (values + 1).astype(">f8")})
    assert compare_stores(computed({"x": values}), other).samples[0].differing == 4


def test_a_changed_key_is_told_with_both_values(tmp_path: Path, tiny: None) -> None:
    with baked(tmp_path, "a", Loaf()) as a, baked(tmp_path, "b", Loaf(seed=3, gain=2)) as b:
        found = compare_stores(a, b)
        assert not found
        assert found.keys == (Change(None, "seed", 0, 3), Change("count", "gain", 1, 2))
        assert found.form == ()
        assert {one.field for one in found.samples} == {"wave", "count", "f0", "level"}
        assert json.loads(json.dumps(dataclasses.asdict(found)))["samples"][2]["largest"] == 3.0
        assert "seed: 0 -> 3" in str(found)
        assert "\n" not in str(found)


def test_drift_that_no_key_tells_is_found_in_the_samples(tmp_path: Path, tiny: None) -> None:
    with baked(tmp_path, "a", Loaf()) as a, baked(tmp_path, "b", Loaf(drift=0.25)) as b:
        found = compare_stores(a, b)
        assert (found.keys, found.form) == ((), ())
        assert [one.field for one in found.samples] == ["wave", "f0"]
        assert found.samples[1] == SampleDifferences("f0", 30, 30, (0, 1, 2, 3, 4), 0.25)
        assert (
            str(found.samples[1])
            == "field 'f0': 30 of 30 samples differ (0, 1, 2, 3, 4, ...), by at most 0.25"
        )


def test_fields_of_one_store_alone_and_numbers_of_samples_are_told(tmp_path: Path, tiny: None) -> None:
    with (
        baked(tmp_path, "a", Loaf(only=("wave", "f0"))) as a,
        baked(tmp_path, "b", Loaf(20, only=("f0", "level"))) as b,
    ):
        found = compare_stores(a, b)
        assert [str(change) for change in found.form] == [
            "samples: 30 -> 20",
            "field 'wave': field: (there) -> (absent)",
            "field 'level': field: (absent) -> (there)",
            "coords.time: (there) -> (absent)",
        ]
        assert found.samples == ()
        assert found.keys == ()


@pytest.mark.parametrize(
    ("second", "wanted"),
    [
        (Field((3,), "float32", ("t",), units="V"), "field 'x': units: null -> V"),
        (Field((3,), "float32", ("bin",)), 'field \'x\': dims: ["t"] -> ["bin"]'),
        (Field((3,), "float64", ("t",)), "field 'x': dtype: float32 -> float64"),
        (Field((1, 3), "float32", ("c_1", "t")), "field 'x': shape: [3] -> [1,3]"),
        (
            Field((3,), "float32", ("t",), coords={"t": Coord([0, 1, 2.5], "s")}),
            "coords.t: (absent) -> (there)",
        ),
    ],
)
def test_each_part_of_a_fields_form_is_told_once(second: Field, wanted: str) -> None:
    one = Field((3,), "float32", ("t",))
    first, other = (
        ComputedStore(Given({"x": np.zeros((4, *f.shape), f.dtype)}, {"x": f}, 4)) for f in (one, second)
    )
    found = compare_stores(first, other)
    assert not found
    lines = [str(change) for change in found.all]
    assert lines[0] == wanted
    assert len(lines) == 1 + wanted.startswith("field 'x': shape")  # which has another number of dims


@pytest.mark.parametrize(
    ("second", "wanted"),
    [
        (Coord([0, 1, 2.5], "s"), "coords.t.values[2]: 2.0 -> 2.5"),
        (Coord([0, 1, 2.0], "ms"), "coords.t.units: s -> ms"),
        (Coord(np.array([0, 1, 2], "float32"), "s"), "coords.t.dtype: float64 -> float32"),
    ],
)
def test_coordinates_that_differ_are_told(second: Coord, wanted: str) -> None:
    fields = [Field((3,), "float32", ("t",), coords={"t": c}) for c in (Coord([0, 1, 2.0], "s"), second)]
    first, other = (ComputedStore(Given({"x": np.zeros((4, 3), "f4")}, {"x": f}, 4)) for f in fields)
    assert [str(change) for change in compare_stores(first, other).all] == [wanted]
    assert compare_stores(first, first)


def test_nan_equals_nan_of_the_same_bits_and_zeros_have_signs() -> None:
    quiet, other = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    one = np.array([quiet, quiet, 0.0, np.inf, 1.0], np.float32)
    two = np.array([quiet, other, -0.0, 1.0, 1.0], np.float32)
    [found] = compare_stores(computed({"x": one}), computed({"x": two})).samples
    assert found == SampleDifferences("x", 3, 5, (1, 2, 3), None)
    assert "in NaN, infinity or the sign of 0 alone" in str(found)


@pytest.mark.parametrize(
    ("one", "two", "largest"),
    [
        (np.array([-(2**63)]), np.array([2**63 - 1]), 2**64 - 1),
        (np.array([0], np.uint8), np.array([255], np.uint8), 255),
        (np.array([-128], np.int8), np.array([127], np.int8), 255),
        (np.array([True]), np.array([False]), 1),
        (np.array([3 + 4j]), np.array([0j]), 5.0),
        (np.array([-1.7e308]), np.array([1.7e308]), np.finfo(float).max),
    ],
)
def test_the_largest_difference_is_that_of_the_numbers(
    one: NDArray[Any], two: NDArray[Any], largest: float
) -> None:
    for first, second in ((one, two), (two, one)):
        [found] = compare_stores(computed({"x": first}), computed({"x": second})).samples
        assert found.largest == largest
        json.dumps(dataclasses.asdict(found), allow_nan=False)


@functools.cache
def pair_of_stores() -> tuple[Any, Any]:
    """Two stores whose arrays may be filled anew: capturing a producer's source takes long."""
    one, two = (computed({"x": np.zeros((23, 2), np.int16)}) for _ in range(2))
    return one, two


@settings(max_examples=40, deadline=None)
@given(
    one=hnp.arrays(np.int16, (23, 2), elements=st.integers(-3, 3)),
    two=hnp.arrays(np.int16, (23, 2), elements=st.integers(-3, 3)),
    block=st.integers(1, 30),
)
def test_blocks_find_what_numpy_finds_at_once(one: NDArray[Any], two: NDArray[Any], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(differences, "_block_samples", lambda fields: block)
        seen: list[int] = []
        first, second = pair_of_stores()
        first.producer.values["x"][:], second.producer.values["x"][:] = one, two
        found = compare_stores(first, second, progress=seen.append)
    rows = np.flatnonzero((one != two).any(axis=1))
    if not len(rows):
        assert found
        return
    largest = int(np.abs(one.astype(int) - two).max())
    assert found.samples == (SampleDifferences("x", len(rows), 23, tuple(rows[:5].tolist()), largest),)
    assert seen == [*range(block, 23, block), 23]


def test_memory_is_a_few_blocks() -> None:
    wave = np.zeros((64, 1 << 20), np.uint8)  # 64 MiB
    changed = wave.copy()
    changed[63, 5] = 2
    one, two = computed({"x": wave}), computed({"x": changed})
    tracemalloc.start()
    try:
        [found] = compare_stores(one, two).samples
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == SampleDifferences("x", 1, 64, (63,), 2)
    assert peak < 24 * 1024**2


def test_stores_without_keys_are_compared_by_what_they_hold(tmp_path: Path, tiny: None) -> None:
    with baked(tmp_path, "a", Loaf(10)) as a, baked(tmp_path, "b", Loaf(20)) as b:
        whole, again = concatenated([a, b]), concatenated([a, b])
        assert compare_stores(whole, again)
        found = compare_stores(a, concatenated([a]))
        assert found
        assert (found.keys_unknown, compare_stores(whole, a).keys_unknown) == ((1,), (0,))
        assert compare_stores(a, a).keys_unknown == ()
        assert not compare_stores(whole, b)
        [found] = compare_stores(whole, concatenated([b, a]), progress=None).samples[:1]
        assert found.first[0] == 10


def test_from_function_of_other_source_differs_in_keys_alone() -> None:
    one, two = (
        ComputedStore(from_function(lambda i: float(i), 3, invalidation_keys={"take": take}))
        for take in (1, 2)
    )
    found = compare_stores(one, two)
    assert (found.form, found.samples) == ((), ())
    assert any(change.path == "take" for change in found.keys)
