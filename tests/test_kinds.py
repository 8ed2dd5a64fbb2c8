"""What a field is to the eye, by its dims, shape and coordinates alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.browse.kinds import Form, Kind, form_of, kind_of, node_axes
from parbake.store.document import StoredField
from parbake.store.layout import Coord, Field, plan_layout


def stored(shape: tuple[int, ...], dims: tuple[str, ...], dtype: str = "float32") -> StoredField:
    field = Field(shape, dtype, dims)
    return StoredField.of("y", field, plan_layout({"y": field}, "raw").fields["y"])


def along(dim: str, length: int) -> Coord:
    return Coord(np.arange(length, dtype=np.float64), dim=dim)


TIME = {"time": Coord(np.arange(100) / 44_100, "s")}
NODES = {"y": along("node", 50), "z": along("node", 50), "x": along("node", 50)}
CHANNELS = {"channel": Coord(["vx", "vy", "p", "T"])}


@pytest.mark.parametrize(
    ("shape", "dims", "coords", "form"),
    [
        ((), (), {}, Form(Kind.SCALAR)),
        ((1, 1), ("a", "b"), {}, Form(Kind.SCALAR)),
        ((100, 1), ("time", "channel"), TIME, Form(Kind.LINE, (0,), 1)),
        ((100,), ("time",), TIME, Form(Kind.LINE, (0,))),
        ((2, 100), ("side", "time"), TIME, Form(Kind.LINE, (1,), 0)),
        ((100, 64), ("time", "band"), TIME, Form(Kind.LINE, (0,), 1)),
        ((100, 65), ("time", "band"), TIME, Form(Kind.IMAGE, (0, 1))),
        ((16,), ("index",), {}, Form(Kind.LINE, (0,))),
        ((3,), ("entry",), {}, Form(Kind.OTHER)),
        ((3,), ("time",), {"time": Coord([1.0, 2.0, 4.0])}, Form(Kind.LINE, (0,))),
        ((4,), ("channel",), CHANNELS, Form(Kind.OTHER)),
        ((1, 20), ("time", "channel"), {}, Form(Kind.LINE, (1,))),
        ((50, 1), ("channel", "a"), {n: along("channel", 50) for n in "xy"}, Form(Kind.MESH, (0,))),
        ((300, 4), ("a", "b"), {}, Form(Kind.LINE, (0,), 1)),
        ((300, 4), ("a", "channel"), CHANNELS, Form(Kind.LINE, (0,), 1)),
        ((28, 28), ("row", "column"), {}, Form(Kind.IMAGE, (0, 1))),
        ((28, 28, 1), ("row", "column", "channel"), {}, Form(Kind.IMAGE, (0, 1))),
        ((28, 30, 3), ("row", "column", "channel"), {}, Form(Kind.IMAGE, (0, 1), 2)),
        ((4, 28, 30), ("c1", "row", "column"), {}, Form(Kind.IMAGE, (1, 2), 0)),
        ((28, 30, 5), ("row", "column", "channel"), {}, Form(Kind.OTHER)),
        ((5, 28, 30, 3), ("t", "row", "column", "channel"), {}, Form(Kind.OTHER)),
        ((50, 4), ("node", "channel"), NODES | CHANNELS, Form(Kind.MESH, (0,), 1)),
        ((50,), ("node",), NODES, Form(Kind.MESH, (0,))),
        ((50, 65), ("node", "band"), NODES, Form(Kind.OTHER)),
        ((50, 4), ("node", "channel"), {"x": NODES["x"]} | CHANNELS, Form(Kind.LINE, (0,), 1)),
    ],
)
def test_a_field_is_what_its_form_says(
    shape: tuple[int, ...], dims: tuple[str, ...], coords: dict[str, Coord], form: Form
) -> None:
    assert form_of(stored(shape, dims), coords) == form
    assert kind_of(stored(shape, dims), coords) is form.kind


def test_nodes_lie_along_x_before_y_before_z() -> None:
    field = stored((50, 4), ("node", "channel"))
    assert node_axes(field, NODES) == ("x", "y", "z")
    assert node_axes(field, {name: NODES[name] for name in "yx"}) == ("x", "y")
    latitudes = {"lon": along("node", 50), "lat": along("node", 50)}
    assert node_axes(field, latitudes) == ("lon", "lat")
    assert node_axes(field, {"x": NODES["x"], "name": Coord([str(i) for i in range(50)], dim="node")}) == ()
    assert node_axes(stored((100,), ("time",)), NODES) == ()


@given(
    st.lists(st.sampled_from([1, 2, 3, 4, 8, 16, 65, 100]), max_size=4),
    st.sets(st.sampled_from(["time", "channel", "row", "node"])),
)
def test_every_form_names_axes_of_the_sample_once(shape: list[int], named: set[str]) -> None:
    dims = ("time", "channel", "row", "node")[: len(shape)]
    coords = {d: Coord(np.arange(n)) for d, n in zip(dims, shape, strict=True) if d in named}
    form = form_of(stored(tuple(shape), dims), coords)
    used = [*form.axes, *([] if form.channel is None else [form.channel])]
    assert len(set(used)) == len(used)
    if form.kind in (Kind.LINE, Kind.IMAGE, Kind.MESH):
        assert len(form.axes) == (2 if form.kind is Kind.IMAGE else 1)
        assert all(shape[axis] == 1 for axis in range(len(shape)) if axis not in used)


def test_two_scales_of_one_axis_are_no_positions() -> None:
    coords = {"frequency": along("bin", 50), "mel": along("bin", 50)}
    assert kind_of(stored((50,), ("bin",)), coords) is Kind.LINE
    assert node_axes(stored((50,), ("bin",)), coords) == ()


@pytest.mark.parametrize(
    ("dim", "names", "ordered"),
    [
        ("place", ("lat", "lon"), ("lon", "lat")),
        ("node", ("b", "a"), ("b", "a")),  # nodes may have any names
        ("coarse_node", ("coarse_z", "coarse_y", "coarse_x"), ("coarse_x", "coarse_y", "coarse_z")),
    ],
)
def test_what_goes_across_comes_before_what_goes_up(
    dim: str, names: tuple[str, ...], ordered: tuple[str, ...]
) -> None:
    assert node_axes(stored((50,), (dim,)), {name: along(dim, 50) for name in names}) == ordered
