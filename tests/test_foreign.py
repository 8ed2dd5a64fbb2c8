"""Which arrays of a foreign file become fields, along which axis, and what is said of the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.errors import DamagedStoreError, NotAStoreError, RecipeError
from parbake.store.chunkmap import ByteSource, ChunkIndex, FieldMap, TiledMap
from parbake.store.codecs import Chain
from parbake.store.contents import Contents
from parbake.store.foreign.arrays import (
    ForeignArray,
    Plan,
    attribute_texts,
    contents_of,
    planned,
    structure_digest,
    text_of,
)
from parbake.store.foreign.maps import Column, Grid, fetched_map, grid_maps
from parbake.store.opened import FileSpan


def array(name: str, *axes: int | tuple[str, int], dtype: str = "<f4", **other: Any) -> ForeignArray:
    """An array with axes given as a length, or as a name and a length."""
    pairs = [(None, axis) if isinstance(axis, int) else axis for axis in axes]
    dims: tuple[str | None, ...] = tuple(name for name, _ in pairs)
    return ForeignArray(name, tuple(n for _, n in pairs), np.dtype(dtype), dims, **other)


def plan(*arrays: ForeignArray, sample_dim: str | None = None) -> Plan:
    return planned("file", arrays, sample_dim)


T, LAT, NODE = ("time", 10), ("lat", 3), ("node", 4)


# ---- the sample axis


def test_arrays_without_names_share_a_length() -> None:
    found = plan(array("x", 10, 4), array("small", 3, 2), array("y", 10), array("other", 3))
    assert dict(found.axes) == {"x": 0, "y": 0}
    assert found.samples == 10


def test_the_most_bytes_win_and_not_the_most_arrays() -> None:
    found = plan(array("a", 5), array("b", 5), array("c", 5), array("x", 7, 9))
    assert list(found.axes) == ["x"]


def test_names_tell_equal_lengths_apart() -> None:
    found = plan(array("u", ("time", 4), ("lat", 4)), array("lat", ("lat", 4)), array("s", ("time", 4)))
    assert dict(found.axes) == {"u": 0, "s": 0}
    assert dict(found.coords) == {"lat": "lat"}


def test_a_dimension_called_sample_wins() -> None:
    found = plan(array("big", ("time", 100), 50), array("x", ("sample", 3)))
    assert list(found.axes) == ["x"]


def test_axes_without_a_name_join_a_named_one_of_their_length() -> None:
    found = plan(array("x", T, 5), array("y", 10, 7), array("z", 11))
    assert list(found.axes) == ["x", "y"]


def test_a_dimension_that_is_asked_for_is_found_on_any_axis() -> None:
    found = plan(array("u", T, LAT), array("v", LAT), array("w", T, NODE, LAT), sample_dim="lat")
    assert dict(found.axes) == {"u": 1, "v": 0, "w": 2}
    assert found.samples == 3
    assert {name: found.sample_shape(name) for name in found.axes} == {"u": (10,), "v": (), "w": (10, 4)}
    assert dict(found.dims) == {"u": ("time",), "v": (), "w": ("time", "node")}


def test_an_unknown_dimension_is_answered_with_those_that_are_there() -> None:
    with pytest.raises(RecipeError, match=r"^file: .*'lon'.*; its dimensions are 'lat', 'time'; it holds u"):
        plan(array("u", T, LAT), sample_dim="lon")
    with pytest.raises(RecipeError, match="its dimensions have no names"):
        plan(array("u", 10), sample_dim="lon")


def test_an_array_picks_those_that_share_its_first_axis() -> None:
    arrays = (array("test/x", 5), array("test/y", 5, 2), array("train/x", 50), array("train/y", 50, 2))
    found = plan(*arrays)
    assert list(found.axes) == ["train/x", "train/y"]
    assert "sample_dim='test/y' picks others" in found.notices[0]
    assert list(plan(*arrays, sample_dim="test/x").axes) == ["test/x", "test/y"]
    two = (array("a/u", ("t", 5), 9), array("b/u", ("t", 5), 3), array("c/u", ("t", 6)))
    of_two_lengths = plan(*two, sample_dim="c/u")
    assert list(of_two_lengths.axes) == ["c/u"]
    named = plan(array("time", T), array("u", LAT, T), sample_dim="time")  # a dimension's name comes first
    assert named.axes == {"time": 0, "u": 1}


def test_many_left_out_for_one_reason_are_told_together() -> None:
    found = plan(array("x", 10, 100), *(array(f"s{i}") for i in range(30)), array("t", 10, unfit="texts"))
    assert found.notices[0] == (
        "left out: s0 () float32, s1 () float32, s2 () float32, s3 () float32, s4 () float32, 25 more "
        "(a single value), t (10,) float32 (texts)"
    )


def test_an_array_for_each_sample_is_answered_with_what_to_do() -> None:
    found = plan(*(array(f"{i:03d}/x", 16) for i in range(20)))
    assert "20 arrays such as '000/x' are alike" in found.notices[-1]
    assert not plan(*(array(f"{i:03d}/x", 16) for i in range(15))).notices


def test_values_that_stand_for_others_and_times_are_told() -> None:
    found = plan(
        array("t2m", T, LAT, coded=("scale_factor",)), array("time", T, units="hours since 1900-01-01")
    )
    assert found.notices == (
        "values as stored; not applied: 't2m' (scale_factor); "
        "times are numbers: 'time' (hours since 1900-01-01)",
    )


def test_packed_numbers_do_not_bear_the_units_of_what_they_stand_for() -> None:
    found = plan(
        array("t2m", T, LAT, units="K", description="2 m temperature", coded=("scale_factor", "_FillValue")),
        array("sst", T, LAT, units="K", coded=("_FillValue",)),
    )
    fields = contents(found).document.fields
    assert fields["t2m"].units is None
    assert fields["t2m"].description == "2 m temperature; packed: scale_factor not applied"
    assert (fields["sst"].units, fields["sst"].description) == ("K", None)


def test_coordinates_of_groups_without_fields_are_none() -> None:
    found = plan(array("a/u", T, NODE), array("b/node", NODE), array("a/node", NODE))
    assert dict(found.coords) == {"a/node": "node"}
    assert list(contents(found).coords()) == ["node"]


def test_a_name_of_two_lengths_is_the_one_of_more_bytes() -> None:
    found = plan(array("a/u", ("t", 5)), array("b/u", ("t", 6)), sample_dim="t")
    assert list(found.axes) == ["b/u"]
    assert "a/u (5,) float32 [t] (not along dimension 't' of 6)" in found.notices[0]


# ---- what is left out


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (array("odd", dtype="<f4"), "a single value"),
        (array("odd", 10, 0), "empty"),
        (array("odd", 10, dtype="<U3"), "not a number"),
        (array("odd", 10, dtype="<M8[s]"), "not a number"),
        (array("odd", 10, unfit="texts"), "texts"),
        (array("odd", 10, 2**29), "samples over the limit of 1 GiB"),
        (array("odd", 10, -1), "a shape that cannot be"),
        (array("odd", 10, chunk_shape=(0,)), "chunks of shape (0,)"),
        (array("odd", 10, chunk_shape=(1, 1)), "chunks of shape (1, 1)"),
        (array("odd", 10, chunk_shape=(2**40,)), "over the limit of 1 GiB"),
        (array("odd", 2**40, chunk_shape=(1,)), "1,099,511,627,776 chunks along one axis"),
        (array("odd", 2**60), "bytes"),
        (array("odd", 11), "not along a first axis of 10"),
    ],
)
def test_what_cannot_be_a_field_is_named_with_the_reason(odd: ForeignArray, reason: str) -> None:
    found = plan(odd, array("x", 10, 100))
    assert list(found.axes) == ["x"]
    [notice] = found.notices
    assert notice.startswith("left out: odd ")
    assert f"{reason})" in notice


def test_a_file_without_a_field_says_what_it_holds() -> None:
    with pytest.raises(NotAStoreError, match=r"file: .*it holds s \(\) float32: a single value$"):
        plan(array("s"))
    with pytest.raises(NotAStoreError, match=r"it holds s \(1, 1073741824\) float32.*; --sample-dim picks"):
        plan(array("s", 1, 1 << 30))
    with pytest.raises(NotAStoreError, match="it holds no arrays"):
        plan()
    many = [array(f"s{i}", unfit="a\ntext") for i in range(100)]
    with pytest.raises(NotAStoreError, match="80 more") as raised:
        plan(*many)
    assert "\n" not in str(raised.value)


# ---- dimensions and coordinates


def test_coordinates_lie_along_dimensions_of_fields() -> None:
    found = plan(
        array("u", T, NODE, coordinates=("area", "time")),
        array("node", NODE),
        array("area", NODE),
        array("unasked", NODE),
        array("time", T),
        array("lat", LAT),
        array("mask", NODE, NODE),
    )
    assert dict(found.coords) == {"node": "node", "area": "node"}
    assert list(found.axes) == ["u", "time"]
    assert all(name in found.notices[0] for name in ("unasked", "lat", "mask"))


def test_coordinates_are_looked_for_in_the_groups_above() -> None:
    found = plan(array("a/b/u", T, NODE, coordinates=("area",)), array("area", NODE), array("a/c/area", NODE))
    assert dict(found.coords) == {"area": "node"}


def test_a_name_has_one_length() -> None:
    found = plan(
        array("u", T, ("x", 5)),
        array("b/u", T, ("x", 7)),
        array("b/x", ("x", 7)),
        array("b/v", T, ("x", 9)),
        array("w", T, ("x", 5), ("x", 5)),
    )
    assert found.dims["u"] == ("x",)
    assert found.dims["b/u"] == ("b_x",)
    assert found.dims["b/v"] == ("b_v_1",)
    assert found.dims["w"] == ("x", "w_2")
    assert dict(found.coords) == {"b/x": "b_x"}


def test_names_that_are_made_up_give_way() -> None:
    found = plan(array("u", 10, 3), array("v", T, ("u_1", 4)))
    assert (found.dims["v"], found.dims["u"]) == (("u_1",), ("u_1_0",))


names = st.sampled_from(["x", "y", "g/x", "g/h/y", "time", "g/time"])
lengths = st.integers(0, 4)
axes = st.tuples(st.none() | st.sampled_from(["time", "x", "x_1", "sample"]), lengths)


@st.composite
def files(draw: st.DrawFn) -> list[ForeignArray]:
    found = draw(st.lists(st.tuples(names, st.lists(axes, max_size=3)), unique_by=lambda one: one[0]))
    coordinates = draw(st.lists(st.sampled_from(["x", "y", "time"]), max_size=2))
    return [
        ForeignArray(
            name, tuple(n for _, n in pairs), np.dtype("f4"), tuple(d for d, _ in pairs), None, None,
            tuple(coordinates),
        )
        for name, pairs in found
    ]  # fmt: skip


def is_told(one: ForeignArray, told: str) -> bool:
    return re.search(rf"(: |, ){re.escape(str(one))}( \(|, )", told) is not None


@given(files(), st.none() | st.sampled_from(["time", "x"]))
def test_every_array_is_a_field_or_a_coordinate_or_named(
    arrays: list[ForeignArray], sample_dim: str | None
) -> None:
    try:
        found = planned("file", arrays, sample_dim)
    except (NotAStoreError, RecipeError):
        axes = [axis for one in arrays if min(one.shape, default=0) > 0 for axis in one.axes]
        assert sample_dim not in {name for name, _ in axes}
        assert sample_dim is not None or not axes
        return
    by_name = {one.name: one for one in arrays}
    lengths: dict[str, int] = {}
    for name, axis in found.axes.items():
        assert by_name[name].shape[axis] == found.samples > 0
        assert len(set(found.dims[name])) == len(found.dims[name]) == len(by_name[name].shape) - 1
        for dim, length in zip(found.dims[name], found.sample_shape(name), strict=True):
            assert lengths.setdefault(dim, length) == length
    for name, dim in found.coords.items():
        assert by_name[name].shape == (lengths[dim],)
    assert [*found.axes] == [one.name for one in arrays if one.name in found.axes]
    told = "".join(found.notices)
    for one in arrays:
        ways = (one.name in found.axes, one.name in found.coords, is_told(one, told))
        assert sum(ways) == 1


# ---- attributes


def test_attributes_of_any_writer() -> None:
    assert attribute_texts({"units": "m", "standard_name": "s", "coordinates": "lat  lon"}) == (
        *("m", "s"),
        ("lat", "lon"),
    )
    assert attribute_texts({"units": 7, "description": b"d", "long_name": np.array(["l"])})[:2] == (None, "l")
    assert text_of("two\nlines") == "two lines"
    assert text_of("") is None
    assert text_of(np.array(["a", "b"])) is None
    assert len(text_of("a" * 10_000) or "") == 1_000


# ---- contents and maps


class NoFiles:
    path = Path("file")

    def open(self, name: str) -> FileSpan:
        raise FileNotFoundError(name)

    def close(self) -> None:
        return


def no_scan(source: ByteSource, shard: int) -> ChunkIndex:
    raise AssertionError("nothing is scanned at opening")


def contents(found: Plan, reason: str = "of a reason") -> Contents:
    maps = {
        name: fetched_map("file", found, name, lambda start, stop: np.zeros(0), reason) for name in found.axes
    }
    return contents_of(
        NoFiles(),
        found,
        maps,
        read_coord=lambda name: np.arange(found.arrays[name].shape[0]),
        nbytes_stored=lambda name: 7,
        version="v",
    )


def test_contents_tell_what_is_known() -> None:
    found = plan(
        array("u", T, NODE, units="K", description="warmth", coordinates=("area",)),
        array("area", NODE, units="m2"),
        array("s"),
    )
    made = contents(found)
    assert made.sealed is None
    assert made.document.samples == 10
    field = made.document.fields["u"]
    assert (field.shape, field.dims, field.units, field.description) == ((4,), ("node",), "K", "warmth")
    [(name, coord)] = made.coords().items()
    assert (name, coord.units, coord.dim, coord.values.tolist()) == ("area", "m2", "node", [0, 1, 2, 3])
    slow = "field 'u' is not read through a chunk map, so slowly: of a reason"
    assert made.notices == ("left out: s () float32 (a single value)", slow)


def test_the_digest_tells_other_shapes_apart() -> None:
    def of(*arrays: ForeignArray) -> str:
        return structure_digest(contents(plan(*arrays)).document)

    one = of(array("x", 10, 3))
    assert one == of(array("x", 10, 3, units="m", dtype=">f4"))
    others = [array("y", 10, 3), array("x", 11, 3), array("x", 10, 4), array("x", 10, 3, dtype="<f8")]
    assert len({one, *map(of, others)}) == 5


@given(st.data())
def test_tiles_cover_each_sample_once(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    chunk = tuple(data.draw(st.integers(1, n + 2)) for n in shape)
    places: list[tuple[int, ...]] = []

    def column(place: tuple[int, ...]) -> Column:
        places.append(place)
        return Column(lambda shard: f"{shard}-{place}", no_scan)

    one = array("x", *shape, chunk_shape=chunk)
    grid = Grid(one, chunk, 3, Chain("raw", np.dtype("<f4")), None, column)
    found = grid_maps(grid, fetched=lambda reason: pytest.fail(reason))
    assert found.layout.sample_shape == shape[1:]
    assert (found.samples, found.layout.chunk_samples) == (shape[0], chunk[0])
    assert found.layout.shard_samples == 3 * chunk[0]
    if isinstance(found, FieldMap):
        assert chunk[1:] == shape[1:]
        assert places == [(0,) * len(chunk[1:])]
        return
    assert isinstance(found, TiledMap)
    hits = np.zeros(shape[1:], int)
    for tile, place in zip(found.tiles, places, strict=True):
        hits[tile.region] += 1
        assert tile.map.layout.sample_shape == chunk[1:]
        assert all(s.start == p * c for s, p, c in zip(tile.region, place, chunk[1:], strict=True))
    assert (hits == 1).all()


def fetch_of(read: Any, **other: Any) -> Any:
    found = plan(array("x", 6, ("n", 4), dtype=">i4", **other), sample_dim="n")
    return fetched_map("file", found, "x", read, "why")


def test_a_fetched_field_has_its_samples_first_and_native() -> None:
    whole = np.arange(24, dtype=">i4").reshape(6, 4)
    found = fetch_of(lambda start, stop: whole[:, start:stop])
    assert found.fetch(1, 3).dtype == np.dtype("=i4")
    assert (found.fetch(1, 3) == whole.T[1:3]).all()
    assert found.layout.chunk_samples == 4  # as many as there are
    assert fetch_of(None, chunk_shape=(6, 2)).layout.chunk_samples == 2


@pytest.mark.parametrize("given_shape", [(6, 1), (2, 6), (), (6, 2, 1)])
def test_a_fetch_of_another_shape_is_damage(given_shape: tuple[int, ...]) -> None:
    found = fetch_of(lambda start, stop: np.zeros(given_shape))
    with pytest.raises(DamagedStoreError, match=r"^file: field 'x', samples 1-2: "):
        found.fetch(1, 3)


def test_what_a_library_raises_ends_in_a_line() -> None:
    def read(start: int, stop: int) -> Mapping[str, int]:
        raise KeyError("two\nlines")

    with pytest.raises(DamagedStoreError, match="KeyError") as raised:
        fetch_of(read).fetch(0, 1)
    assert "\n" not in str(raised.value)
