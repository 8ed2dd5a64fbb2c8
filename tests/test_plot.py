"""Figures of samples: which lines, marks and triangles they hold, in which axes; and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import TriMesh
from matplotlib.figure import Figure
from mesh_results import plane
from scipy.signal import find_peaks
from scipy.signal.windows import flattop

import parbake
from parbake.browse import figures, maps, meshmap, plot, spectrum
from parbake.browse.charts import bin_edges, told_apart
from parbake.errors import DamagedStoreError, RecipeError
from parbake.producers.bake import bake
from parbake.producers.function import from_function
from parbake.producers.meshes.pair import MeshPair
from parbake.producers.meshes.series import MeshSeries
from parbake.store.keys import producer_keys
from parbake.store.layout import Coord, Field
from parbake.store.store import Store, open_store

RATE = 8000
TIME = Coord(np.arange(2 * RATE) / RATE, "s")
F0 = (440.0, 1234.5, 2210.0)
MULTIPLES = (1, 2, 3, 5, 7)  # of f0 in y, each at a tenth of the one before
CYLINDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "cylinder"


def tone(sample: int) -> dict[str, Any]:
    t = TIME.values
    f0 = F0[sample % len(F0)]
    y = sum(10.0**-i * np.sin(2 * np.pi * k * f0 * t + i) for i, k in enumerate(MULTIPLES))
    x = 0.5 * np.sin(2 * np.pi * f0 * t)
    return {"x": x[:, None], "y": np.asarray(y)[:, None], "f0": np.float64(f0), "dB": np.float64(-6)}


def baked(
    path: Path,
    fn: Callable[[int], dict[str, Any]],
    samples: int,
    schema: dict[str, Field],
    codec: str = "lz4",
) -> Store:
    producer = from_function(fn, samples, schema=schema, invalidation_keys={"v": 1})
    return bake(producer, path, progress=False, codec=codec)


def signal(name: str) -> Field:
    return Field(
        (2 * RATE, 1), "float64", ("time", "channel"), units="1", description=name, coords={"time": TIME}
    )


SCHEMA = {
    "x": signal("input"),
    "y": signal("output"),
    "f0": Field((), "float64", (), units="Hz"),
    "dB": Field((), "float64", (), units="dB"),
}


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return baked(tmp_path_factory.mktemp("tones") / "tones.zarr", tone, 3, SCHEMA)


def series(side: int, hole: float = 0.0, wide: float = 1.0) -> MeshSeries:
    """A grid over [0, wide] x [0, 1] less a disc about its middle; a scalar and a vector at two times."""
    across = np.linspace(0, wide, round(side * wide))
    points = np.stack(np.meshgrid(across, np.linspace(0, 1, side)), axis=-1).reshape(-1, 2)
    points = points[np.hypot(*(points - (wide / 2, 0.5)).T) >= hole]
    if hole:
        angles = np.linspace(0, 2 * np.pi, round(2 * np.pi * hole * side), endpoint=False)
        points = np.concatenate(
            [points, np.stack([np.cos(angles), np.sin(angles)], 1) * hole + (wide / 2, 0.5)]
        )
    cells = {"triangle": meshmap.triangles_of(points)}
    p = np.stack([np.sin(3 * points[:, 0] + step) * points[:, 1] for step in range(2)])
    return MeshSeries.from_arrays(points, np.array([0.5, 0.75]), {"p": p, "q": 2 * p, "r": -p}, cells)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("pair")
    producer = MeshPair(series(8, 0.2), series(20, 0.2), keep_coarse=True, residual=True, operators=folder)
    return bake(producer, folder / "pair.zarr", progress=False)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def headline(figure: Figure) -> str:
    return figure.get_suptitle()


# ---- tones


def test_a_tone_shows_its_last_periods_and_its_spectrum_with_input_and_output_overlaid(tones: Store) -> None:
    figure = tones.plot(1)
    above, below = figure.axes
    assert len(above.lines) == 3  # x, y and the zero line
    x, y = above.lines[0], above.lines[1]
    periods = (np.ptp(np.asarray(y.get_xdata())) / 1e3 + 1 / RATE) * F0[1]
    assert periods == pytest.approx(4, abs=0.4)
    assert np.abs(np.asarray(x.get_ydata())).max() == pytest.approx(0.5, abs=0.01)
    assert (above.get_xlabel(), below.get_xlabel()) == ("time (ms)", "frequency (Hz)")
    assert "amplitude 1 is 0 dB" in below.get_ylabel()
    legend = below.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "x",
        "y",
        "harmonics k · 1234.5 Hz",
        "aliases, folded at 4,000 Hz",
    ]
    assert headline(figure) == "tones.zarr, sample 1 of 3: f0 1234 Hz, \N{MINUS SIGN}6 dB"


@pytest.mark.parametrize("sample", range(3))
def test_marks_lie_at_multiples_of_f0_and_where_sampling_folds_them(tones: Store, sample: int) -> None:
    f0 = F0[sample]
    marked = [np.asarray(line.get_xdata()) for line in tones.plot(sample).axes[1].lines[2:]]
    true = np.array(MULTIPLES) * f0
    np.testing.assert_allclose(marked[0], true[true < RATE / 2])
    folded = true[true >= RATE / 2]
    mirrored = np.where(folded % RATE < RATE / 2, folded % RATE, RATE - folded % RATE)
    np.testing.assert_allclose(np.sort(marked[1]) if len(folded) else [], np.sort(mirrored))


@given(
    st.floats(100, 3900),
    st.floats(1e-3, 10),
    st.floats(0, 6.28),
    st.sampled_from([RATE, RATE + 1]),
)
def test_a_sine_of_amplitude_a_stands_at_20_log_a_between_bins_too(
    frequency: float, amplitude: float, phase: float, steps: int
) -> None:
    sine = amplitude * np.sin(2 * np.pi * frequency / RATE * np.arange(steps) + phase)
    found = spectrum.spectrum_of(sine, RATE)
    assert found.level_db.max() == pytest.approx(20 * np.log10(amplitude), abs=0.003)
    assert found.frequency_hz[found.level_db.argmax()] == pytest.approx(frequency, abs=0.51 * RATE / steps)
    away = np.abs(found.frequency_hz - frequency) > 9 * RATE / steps
    assert found.level_db[away].max() < 20 * np.log10(amplitude) - 135


def test_peaks_are_where_scipy_finds_them() -> None:
    y = tone(1)["y"][-RATE:, 0]
    ours = spectrum.spectrum_of(y, RATE)
    theirs = 20 * np.log10(
        np.abs(np.fft.rfft(y * flattop(RATE, sym=False))) / (flattop(RATE).sum() / 2) + 1e-30
    )
    peaks = find_peaks(theirs, height=-70)[0]
    assert len(peaks) == 4  # the fifth is at -80 dB, under that window's side lobes
    np.testing.assert_allclose(ours.level_db[peaks], theirs[peaks], atol=0.05)


@given(st.floats(0, 1e6), st.floats(1, 1e5))
def test_folding_is_what_sampling_does(frequency: float, rate: float) -> None:
    folded = float(spectrum.folded_hz(np.array([frequency]), rate)[0])
    assert 0 <= folded <= rate / 2 * (1 + 1e-12)
    turns = np.arange(5) / rate
    np.testing.assert_allclose(
        np.cos(2 * np.pi * folded * turns), np.cos(2 * np.pi * frequency * turns), atol=1e-4
    )


def test_of_a_harmonic_task_nothing_is_called_an_alias(tmp_path: Path) -> None:
    store = baked(tmp_path / "s.zarr", lambda i: tone(i) | {"y": tone(i)["x"]}, 1, SCHEMA)
    legend = store.plot().axes[1].get_legend()
    assert legend is not None
    assert not any("alias" in text.get_text() for text in legend.get_texts())


def test_input_and_output_may_have_rates_of_their_own(tmp_path: Path) -> None:
    over = Coord(np.arange(4 * RATE) / (4 * RATE), "s")
    t, f0 = np.arange(RATE) / RATE, 441.0
    values = {
        "x": np.sin(2 * np.pi * f0 * over.values),
        "y": np.sin(2 * np.pi * f0 * t) + 0.1 * np.sin(2 * np.pi * 11 * f0 * t),
        "f0": np.float64(f0),
    }
    schema = {
        "x": Field((4 * RATE,), "float64", ("time_over",), coords={"time_over": over}),
        "y": Field((RATE,), "float64", ("time",), coords={"time": Coord(t, "s")}),
        "f0": SCHEMA["f0"],
    }
    below = baked(tmp_path / "rates.zarr", lambda i: values, 1, schema).plot().axes[1]
    marks = {line.get_marker(): line.get_xdata().tolist() for line in below.lines}
    assert marks["v"] == [RATE - 11 * f0]
    assert f"aliases, folded at {RATE / 2:,.0f} Hz" in [t.get_text() for t in below.get_legend().get_texts()]


def test_a_fundamental_counts_wherever_it_stands_among_scalars(tmp_path: Path) -> None:
    knobs = {f"knob{i}": Field((), "float64", ()) for i in range(6)}
    store = baked(
        tmp_path / "knobs.zarr",
        lambda i: {**tone(i), **dict.fromkeys(knobs, np.float64(i))},
        2,
        {"y": SCHEMA["y"], "dB": SCHEMA["dB"], **knobs, "f0": SCHEMA["f0"]},
    )
    assert titles(store.plot(1))[0] == "waveform, last 4 periods"


@pytest.mark.parametrize("begin", [0.0, 1.7e9])
def test_uneven_steps_have_no_spectrum_wherever_time_begins(tmp_path: Path, begin: float) -> None:
    even = begin + np.arange(400) / 8
    uneven = even + np.random.default_rng(0).uniform(0, 0.1, 400)
    for i, (values, axes) in enumerate(((even, 2), (uneven, 1))):
        schema = {"x": Field((400,), "float32", ("time",), coords={"time": Coord(values, "s")})}
        store = baked(tmp_path / f"{i}.zarr", lambda i: {"x": np.ones(400, np.float32)}, 1, schema)
        assert len(store.plot().axes) == axes


@pytest.mark.parametrize(
    "position",
    [
        np.full(400, np.nan),
        np.r_[np.inf, np.arange(399)],
        np.zeros(400),
        np.arange(400) * 1j,
        np.arange(400) % 2 == 0,
        (np.arange(400) - 200) * 8e305,
    ],
    ids=["NaN", "infinite", "all the same", "complex", "truth values", "too far"],
)
@pytest.mark.filterwarnings(
    "error::RuntimeWarning", "error::UserWarning", "ignore::parbake.errors.StoreWarning"
)
def test_a_coordinate_that_says_nothing_is_no_axis(tmp_path: Path, position: Any) -> None:
    with h5py.File(tmp_path / "others.h5", "w") as file:
        file["line"], file["image"] = np.ones((3, 400)), np.ones((3, 400, 400))
        file["time"] = position
        file["time"].make_scale("time")
        file["time"].attrs["units"] = "s"
        file["line"].dims[1].attach_scale(file["time"])
        file["image"].dims[2].attach_scale(file["time"])
    store = open_store(tmp_path / "others.h5")
    assert "time" in store.coords
    [line] = store.plot(field="line").axes
    assert line.get_xlabel() == "time"
    assert line.lines[0].get_xdata().tolist() == list(range(400))
    figures.rendered(store.plot(field="image"))


def test_pixels_lie_where_unsigned_coordinates_say(tmp_path: Path) -> None:
    coords = {
        "row": Coord(np.arange(240, 40, -10, dtype=np.uint8)),
        "column": Coord(np.linspace(-120, 120, 25).astype(np.int8)),
    }
    schema = {"image": Field((20, 25), "float32", ("row", "column"), coords=coords)}
    store = baked(tmp_path / "image.zarr", lambda i: {"image": np.ones((20, 25), np.float32)}, 1, schema)
    assert store.plot().axes[0].images[0].get_extent() == [-125, 125, 245, 45]


@pytest.mark.parametrize("f0", [1e-40, 1e-9, 5.0])
def test_of_a_low_tone_so_much_is_taken_that_its_lines_stand_apart(tmp_path: Path, f0: float) -> None:
    t = np.arange(4 * RATE) / RATE
    y = np.sin(2 * np.pi * f0 * t) + 0.1 * np.sin(4 * np.pi * f0 * t)
    schema = {
        "y": Field((4 * RATE,), "float64", ("time",), coords={"time": Coord(t, "s")}),
        "f0": SCHEMA["f0"],
    }
    figure = baked(tmp_path / "low.zarr", lambda i: {"y": y, "f0": np.float64(f0)}, 1, schema).plot()
    marks = {line.get_marker(): line for line in figure.axes[1].lines}
    if f0 < 1:  # there is no period of it to be seen
        assert titles(figure) == ["waveform, lowest to highest", f"spectrum, last {4 * RATE:,} steps"]
        assert "o" not in marks
    else:
        assert marks["o"].get_xdata().tolist() == [5.0, 10.0]
        np.testing.assert_allclose(marks["o"].get_ydata(), [0, -20], atol=0.1)


def test_of_complex_values_the_magnitude_is_shown_and_named(tmp_path: Path) -> None:
    node = {axis: Coord(np.random.default_rng(0).random(30), dim="node") for axis in "xy"}
    schema = {
        "image": Field((20, 30), "complex64", ("row", "column")),
        "nodes": Field((30,), "complex128", ("node",), coords=node),
    }
    values = {name: np.full(field.shape, 3 + 4j, field.dtype) for name, field in schema.items()}
    store = baked(tmp_path / "complex.zarr", lambda i: values, 1, schema)
    assert titles(store.plot(field="image")) == ["magnitude of image"]
    assert titles(store.plot(field="nodes")) == ["magnitude of nodes"]
    assert store._repr_html_().count("magnitude, sample 0") == 2


@pytest.mark.filterwarnings("error::UserWarning")  # of a layout in which axes have no room
def test_long_names_leave_the_curves_their_room(tmp_path: Path) -> None:
    names = np.array([f"a channel with a name of its own {i}" for i in range(6)])
    coords = {"time": TIME, "channel": Coord(names)}
    schema = {"x": Field((2 * RATE, 6), "float32", ("time", "channel"), coords=coords)}
    figure = baked(
        tmp_path / "long.zarr", lambda i: {"x": np.zeros((2 * RATE, 6), np.float32)}, 1, schema
    ).plot()
    figures.rendered(figure)  # lays out
    for axes in figure.axes:
        assert axes.get_position().width > 0.8
        assert axes.get_position().height > 0.1
        legend, title = axes.get_legend().get_window_extent(), axes._left_title.get_window_extent()  # type: ignore[attr-defined]
        assert legend.x0 >= 0
        assert not legend.overlaps(title)


def test_a_long_line_is_an_envelope_of_its_lowest_and_highest(tmp_path: Path) -> None:
    store = baked(
        tmp_path / "s.zarr",
        lambda i: {"x": np.where(np.arange(2 * RATE) == 777, 5.0, 0.0)[:, None]},
        1,
        {"x": SCHEMA["x"]},
    )
    above, below = store.plot().axes
    assert len(above.lines) == 1
    (band,) = above.collections
    assert band.get_paths()[0].vertices[:, 1].max() == 5  # one step of 16,000 is not lost
    assert above.get_xlabel() == "time (s)"
    assert len(np.asarray(below.lines[0].get_xdata())) < 4000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_leave_a_gap_and_a_word(tmp_path: Path, bad: float) -> None:
    def fn(_: int) -> dict[str, Any]:
        return {"x": np.where(np.arange(2 * RATE) % 100 == 3, bad, 1.0)[:, None]}

    field = Field((2 * RATE, 1), "f8", ("time", "channel"), coords={"time": TIME}, allow_nan=True)
    figure = baked(tmp_path / "s.zarr", fn, 1, {"x": field}).plot()
    assert "not finite" in figure.axes[1].texts[0].get_text()
    assert figures.rendered(figure)[:4] == b"\x89PNG"


# ---- meshes


def test_triangles_leave_the_hole_open() -> None:
    mesh = series(24, 0.2).mesh
    triangles = meshmap.triangles_of(mesh.points)
    wanted = 1 - np.pi * 0.2**2
    assert meshmap.areas(mesh.points, triangles).sum() == pytest.approx(wanted, rel=0.02)
    middles = mesh.points[triangles].mean(axis=1)
    assert (np.hypot(*(middles - 0.5).T) > 0.19).all()


@pytest.mark.parametrize("name", ["coarse", "medium", "fine", "finest"])
def test_triangles_of_a_real_mesh_cover_its_area_and_no_more(name: str) -> None:
    file = CYLINDER / f"{name}.npz"
    if not file.exists():
        pytest.skip("needs the cylinder's meshes, which are not part of the repository")
    with np.load(file) as mesh:
        points, cells = mesh["points"], mesh["cells"]
    found = meshmap.areas(points, meshmap.triangles_of(points)).sum()
    assert found == pytest.approx(meshmap.areas(points, cells).sum(), rel=1e-9)


def test_a_bay_stays_open_and_scattered_nodes_stay_whole() -> None:
    grid = np.stack(np.meshgrid(np.arange(30.0), np.arange(30.0)), axis=-1).reshape(-1, 2)
    bay = grid[(grid[:, 0] < 10) | (grid[:, 1] < 10)]
    assert meshmap.areas(bay, meshmap.triangles_of(bay)).sum() == pytest.approx(29 * 29 - 20 * 20, rel=0.03)
    scattered = np.random.default_rng(0).random((3000, 2))
    assert meshmap.areas(scattered, meshmap.triangles_of(scattered)).sum() > 0.9


@pytest.mark.parametrize("nodes", [0, 1, 2, 5])
def test_nodes_on_a_line_make_no_triangle(nodes: int) -> None:
    line = np.stack([np.arange(nodes), np.arange(nodes) * 2.0], axis=1)
    assert len(meshmap.triangles_of(line)) == 0
    assert len(meshmap.triangles_of(line * (1, 0))) == 0


def test_a_pair_shows_coarse_interpolated_fine_and_their_difference(pair: Store) -> None:
    figure = pair.plot(1)
    stages = ["coarse", "interpolated", "fine", "fine \N{MINUS SIGN} interpolated"]
    shown = [title.partition(", rms")[0] for title in titles(figure)]
    assert shown == [f"{channel}, {stage}" for channel in ("p", "q") for stage in stages]
    lanes = figure.axes[:4], figure.axes[4:8]
    read = pair.read([1])
    for channel, lane in enumerate(lanes):
        meshes = [axes.collections[0] for axes in lane]
        assert all(isinstance(mesh, TriMesh) for mesh in meshes)
        alike = {mesh.get_clim() for mesh in meshes[:3]}
        assert len(alike) == 1  # one scale for the three
        values = [read[name][0, :, channel] for name in ("coarse_features", "coarse_interp", "fine_features")]
        assert alike == {(min(v.min() for v in values), max(v.max() for v in values))}
        low, high = meshes[3].get_clim()
        assert low == -high < 0
        np.testing.assert_allclose(np.asarray(meshes[3].get_array()), values[2] - values[1], atol=1e-7)
        assert all(axes.get_aspect() == 1 for axes in lane)
    assert headline(figure) == "pair.zarr, sample 1 of 2: time 0.75 s, 2 of 3 channels"


def test_without_the_coarse_field_three_maps_are_shown(tmp_path: Path) -> None:
    producer = MeshPair(series(6, wide=3), series(9, wide=3), operators=tmp_path, channels=("p",))
    with bake(producer, tmp_path / "s.zarr", progress=False) as store:
        figure = store.plot()
        assert [t.partition(", rms")[0] for t in titles(figure)][:2] == ["p, interpolated", "p, fine"]
        tops = [axes.get_position().y1 for axes in figure.axes[:3]]
        figure.draw_without_rendering()
        tops = [axes.get_position().y1 for axes in figure.axes[:3]]
        assert tops[0] > tops[1] > tops[2]  # a wide mesh: one above another
        assert titles(store.plot(field="fine_features")) == ["p"]


@pytest.mark.parametrize(
    ("nodes", "dims", "channels", "compared"),
    [
        ((30, 40, 50), (2, 2, 2), 2, False),
        ((30, 40, 40), (3, 2, 2), 2, True),
        ((30, 40, 40), (2, 2, 2), 1, True),
    ],
    ids=["other nodes", "other dimensions", "other channels"],
)
def test_fields_that_only_have_the_names_of_a_pair_are_not_compared(
    tmp_path: Path,
    nodes: tuple[int, int, int],
    dims: tuple[int, int, int],
    channels: int,
    compared: bool,
) -> None:
    rng = np.random.default_rng(0)
    axes = [
        {f"{dim}{axis}": Coord(rng.random(count), dim=f"{dim}node") for axis in "xyz"[:size]}
        for dim, count, size in zip(("coarse_", "", "fine_"), nodes, dims, strict=True)
    ]
    if nodes[1] == nodes[2]:
        axes[2] = axes[1]
    names = (plot.COARSE, plot.INTERPOLATED, plot.FINE)
    schema = {}
    for name, count, coords in zip(names, nodes, axes, strict=True):
        form = (count, channels if name == plot.COARSE else 2)
        dim = next(iter(coords.values())).dim or ""
        schema[name] = Field(form, "float32", (dim, f"of{form[1]}"), coords=coords)
    values = {name: rng.random(field.shape).astype(np.float32) for name, field in schema.items()}
    store = baked(tmp_path / "no_pair.zarr", lambda i: values, 1, schema)
    found = titles(store.plot())
    assert (
        sum("interpolated" in title for title in found) == 4 * compared
    )  # two channels, and the differences
    assert not any("coarse" in title for title in found)
    figures.rendered(store.plot())


def test_keep_coarse_keeps_the_source_as_it_is_and_no_shared_key(tmp_path: Path) -> None:
    source, target = series(4), series(6)
    plain = MeshPair(source, target, operators=tmp_path)
    keeping = MeshPair(source, target, operators=tmp_path, keep_coarse=True)
    assert producer_keys(keeping)[0].shared == producer_keys(plain)[0].shared
    assert list(plain.schema()) == ["coarse_interp", "fine_features", "time"]
    with bake(keeping, tmp_path / "s.zarr", progress=False) as store:
        wanted = source.read([0, 1], keeping.used_channels).astype(np.float32)
        np.testing.assert_array_equal(store["coarse_features"][:], wanted)
        points = np.stack([store.coords["coarse_x"].values, store.coords["coarse_y"].values], axis=1)
        np.testing.assert_array_equal(points, source.mesh.points)
        assert store.freshness(keeping)
        both, _ = producer_keys(keeping)
        assert both.fields["fine_features"] == store.invalidation_keys.fields["fine_features"]


def test_each_axis_of_a_map_has_its_own_units(tmp_path: Path) -> None:
    places = np.random.default_rng(0).random((2, 50))
    coords = {
        "distance": Coord(places[0], "km", dim="node"),
        "height": Coord(places[1], "m", dim="node"),
    }
    schema = {"T": Field((50,), "f8", ("node",), coords=coords)}
    axes = baked(tmp_path / "s.zarr", lambda i: {"T": places[0]}, 1, schema).plot().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("distance (km)", "height (m)")


def test_nodes_without_a_value_stay_empty(tmp_path: Path) -> None:
    mesh = series(6)
    p = np.array(mesh.read([0, 1], ("p",)))[..., 0]
    p[:, 7] = np.nan
    cells = {"triangle": meshmap.triangles_of(mesh.mesh.points)}
    holed = MeshSeries.from_arrays(mesh.mesh.points, mesh.times, {"p": p}, cells)
    producer = MeshPair(series(5), holed, channels=("p",), allow_nan=True, operators=tmp_path)
    with bake(producer, tmp_path / "s.zarr", progress=False) as store:
        figure = store.plot(field="fine_features")
        (drawn,) = figure.axes[0].collections
        assert isinstance(drawn, TriMesh)
        assert 7 not in drawn._triangulation.triangles
        assert figures.rendered(figure)[:4] == b"\x89PNG"


def test_a_large_mesh_is_thinned_out_and_a_solid_is_sliced() -> None:
    rng = np.random.default_rng(0)
    many = meshmap.plane_of(rng.random((200_000, 2)) * (3, 1), ("x", "y"))
    assert 20_000 < len(many.nodes) < 60_000
    assert many.note == f"{len(many.nodes):,} of 200,000 nodes"
    assert meshmap.areas(many.points, meshmap.triangles_of(many.points)).sum() == pytest.approx(3, rel=0.02)
    solid = meshmap.plane_of(rng.random((8000, 3)) * (2, 3, 1), ("x", "y", "z"))
    assert solid.note.startswith("slice at z = 0.5")
    assert solid.axes == ("x", "y")
    ball = rng.standard_normal((4000, 3))
    ball /= np.linalg.norm(ball, axis=1)[:, None]
    assert meshmap.plane_of(ball * (1, 1, 0.9), ("x", "y", "z")).note == "seen along z"
    flat = np.c_[rng.random((100, 2)), np.full(100, 0.25)]
    assert meshmap.plane_of(flat, ("x", "y", "z")).flat


def test_a_small_result_in_space_is_drawn(tmp_path: Path) -> None:
    result = plane()
    points = np.c_[result.points, np.arange(6.0)]
    one = MeshSeries.from_arrays(points, result.times, result.fields)
    shown = maps.Maps(
        (maps.Map("", np.asarray(one.read([0], ("p",))[0], float), points, ("x", "y", "z")),), ("p",)
    )
    figure = figures.figure(3)
    maps.draw_maps(figure, shown)
    assert len(figure.axes[0].collections) == 1


# ---- images, scalars, what else there is


def pixels(sample: int) -> dict[str, Any]:
    rng = np.random.default_rng(sample)
    return {
        "photo": rng.integers(0, 255, (12, 20, 3), dtype=np.uint8),
        "depth": np.add.outer(np.arange(10.0), np.arange(14.0)),
        "table": rng.random((3, 4, 5, 2)),
    }


def test_images_are_upright_and_have_their_coordinates(tmp_path: Path) -> None:
    coords = {"y": Coord(np.arange(10) * 0.5, "m"), "x": Coord(np.arange(14) * 2.0, "m")}
    schema = {
        "photo": Field((12, 20, 3), "u1", ("row", "col", "channel")),
        "depth": Field((10, 14), "f8", ("y", "x"), coords=coords),
        "table": Field((3, 4, 5, 2), "f8", ("a", "b", "e", "d")),
    }
    store = baked(tmp_path / "s.zarr", pixels, 2, schema)
    photo = store.plot(0, "photo").axes[0]
    np.testing.assert_array_equal(np.asarray(photo.images[0].get_array()), pixels(0)["photo"])
    assert (photo.get_xlabel(), photo.get_ylabel()) == ("col", "row")
    assert photo.get_ylim()[0] > photo.get_ylim()[1]  # row 0 at the top
    depth = store.plot(0, "depth").axes[0]
    assert (depth.get_xlabel(), depth.get_ylabel()) == ("x (m)", "y (m)")
    assert depth.get_xlim() == (-1, 27)
    assert depth.get_ylim() == (-0.25, 4.75)
    table = store.plot(1, "table").axes[0]
    np.testing.assert_array_equal(np.asarray(table.lines[0].get_ydata()), pixels(1)["table"].ravel())
    assert "a 3 x b 4 x e 5 x d 2" in table.get_title(loc="left")
    assert len(store.plot().subfigs) == 3


def test_falling_coordinates_grow_upwards_and_to_the_right(tmp_path: Path) -> None:
    coords = {"lat": Coord(np.linspace(90, -90, 10)), "lon": Coord(np.linspace(300, 0, 16))}
    values = np.add.outer(coords["lat"].values, coords["lon"].values)
    schema = {"sst": Field((10, 16), "f8", ("lat", "lon"), coords=coords)}
    store = baked(tmp_path / "s.zarr", lambda i: {"sst": values}, 1, schema)
    axes = store.plot().axes[0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-10, 310), (-100, 100))
    shown = axes.images[0]
    assert tuple(shown.get_extent()) == (310, -10, 100, -100)  # row 0 at 90, column 0 at 300
    assert shown.origin == "lower"


def test_a_spectrogram_fills_its_panel(tmp_path: Path) -> None:
    coords = {"frequency": Coord(np.linspace(0, 22050, 129), "Hz"), "time": Coord(np.arange(200) / 160, "s")}
    schema = {"S": Field((129, 200), "f4", ("frequency", "time"), coords=coords)}
    store = baked(tmp_path / "s.zarr", lambda i: {"S": np.ones((129, 200), np.float32)}, 1, schema)
    figure = store.plot()
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    assert box.width > 0.5 * figure.bbox.width
    assert box.height > 0.5 * figure.bbox.height


def numbers(sample: int) -> dict[str, Any]:
    return {
        "f0": np.float64(20 * 2 ** (sample / 20)),
        "kind": np.int32(sample % 4),
        "gap": np.float64(np.nan if sample % 2 else sample),
    }


SCALARS = {
    "f0": Field((), "f8", (), units="Hz"),
    "kind": Field((), "i4", ()),
    "gap": Field((), "f8", (), allow_nan=True),
}


def test_channels_with_names_of_their_own_are_no_colours(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((20, 30, 3)).astype(np.float32)
    for names, shown in (
        (("red", "green", "blue"), ["image"]),
        (("u", "v", "p"), ["image, u", "image, v", "image, p"]),
    ):
        coords = {"channel": Coord(np.array(names))}
        schema = {"image": Field((20, 30, 3), "float32", ("row", "column", "channel"), coords=coords)}
        store = baked(tmp_path / f"{names[0]}.zarr", lambda i: {"image": values}, 1, schema)
        assert titles(store.plot()) == shown
        assert ("u, sample 0" in store._repr_html_()) == (names[0] == "u")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (np.repeat([10_001, 10_002], 3), ["10001", "10002"]),
        (np.repeat([44_100.1, 44_100.2], 3), ["44100.1", "44100.2"]),
        (np.repeat(np.float32([0.1, 0.3]), 3), ["0.1", "0.3"]),
        (np.repeat([False, True], 3), ["0", "1"]),
    ],
)
def test_bars_of_different_values_have_different_names(values: Any, texts: list[str]) -> None:
    assert told_apart(np.unique(values)) == texts


def test_scalars_are_distributions_over_all_samples(tmp_path: Path) -> None:
    store = baked(tmp_path / "s.zarr", numbers, 200, SCALARS)
    f0, kind, gap = store.plot(4).axes
    assert f0.get_xscale() == "log"
    assert sum(bar.get_height() for bar in f0.patches) == 200
    assert f0.lines[0].get_xdata()[0] == numbers(4)["f0"]
    assert [bar.get_height() for bar in kind.patches] == [50] * 4
    assert gap.get_title(loc="left") == "100 not finite"
    assert sum(bar.get_height() for bar in gap.patches) == 100
    assert headline(store.plot()) == "s.zarr, 200 samples"
    assert len(store.plot(field="kind").axes) == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_every_value_falls_into_a_bin(values: list[float]) -> None:
    edges, _ = bin_edges(np.array(values), None)
    assert np.histogram(values, edges)[0].sum() == len(values)
    assert (np.diff(edges) > 0).all()


@given(st.integers(1, 10**9))
def test_samples_for_a_distribution_are_spread_and_bounded(samples: int) -> None:
    index = plot.spread(samples)
    assert len(index) <= 64 * 4096
    assert index[0] == 0
    assert index[-1] == samples - 1
    assert (np.diff(index) > 0).all()


def test_one_sample_is_enough(tmp_path: Path) -> None:
    store = baked(tmp_path / "s.zarr", numbers, 1, SCALARS)
    assert figures.rendered(store.plot())[:4] == b"\x89PNG"
    assert headline(baked(tmp_path / "t.zarr", tone, 1, SCHEMA).plot()).startswith("t.zarr, sample 0 of 1")


# ---- containers, names, refusals


@pytest.mark.parametrize("suffix", ["zip", "h5"])
def test_every_container_is_shown_alike(tones: Store, tmp_path: Path, suffix: str) -> None:
    store = baked(tmp_path / f"tones.{suffix}", tone, 3, SCHEMA)
    ours, theirs = (shown.plot(2).axes[1].lines for shown in (tones, store))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())


def test_a_file_of_others_is_shown(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["waves"] = np.random.default_rng(0).standard_normal((5, 400))
    with open_store(tmp_path / "theirs.h5") as store:
        line = store.plot(3).axes[0].lines[0]
        np.testing.assert_array_equal(np.asarray(line.get_ydata()), store["waves"][3])


def test_lines_over_unlike_axes_of_one_unit_are_drawn_apart(tmp_path: Path) -> None:
    coords = {"depth": Coord(np.arange(40.0), "m"), "wave": Coord(np.arange(50) * 1e-8, "m")}
    schema = {dim: Field((len(c.values),), "f8", (dim,), coords={dim: c}) for dim, c in coords.items()}
    schema = {f"over_{dim}": field for dim, field in schema.items()}
    store = baked(tmp_path / "s.zarr", lambda i: {n: np.ones(f.shape) for n, f in schema.items()}, 1, schema)
    assert [axes.get_xlabel() for axes in store.plot().axes] == ["depth (m)", "wave (m)"]


def test_of_complex_signals_both_parts_are_drawn_and_their_tone_found(tmp_path: Path) -> None:
    values = np.exp(2j * np.pi * 1000 * TIME.values)
    schema = {"iq": Field((2 * RATE,), "c16", ("time",), coords={"time": TIME})}
    store = baked(tmp_path / "s.zarr", lambda i: {"iq": values}, 1, schema)
    waveform, levels = store.plot().axes
    legend = levels.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["iq real", "iq imaginary"]
    assert waveform.get_ylabel() == "iq"
    for line in levels.lines:
        frequency, level = np.asarray(line.get_data())
        assert frequency[level.argmax()] == pytest.approx(1000, abs=10)
        assert level.max() == pytest.approx(0, abs=0.01)


def test_texts_of_a_store_are_no_formulae(tmp_path: Path) -> None:
    field = Field(
        (40,), "f8", ("t",), units="$\\frac{1$", description="$x_{$", coords={"t": Coord(np.arange(40.0))}
    )
    store = baked(tmp_path / "a$b_{$.zarr", lambda i: {"x": np.arange(40.0)}, 1, {"x": field})
    figure = store.plot()
    figure.draw_without_rendering()  # mathtext would raise
    assert headline(figure).replace("\\$", "$").startswith("a$b_{$.zarr")


def test_what_is_not_there_is_refused(tones: Store) -> None:
    with pytest.raises(IndexError):
        tones.plot(3)
    with pytest.raises(RecipeError, match="no field 'z'"):
        tones.plot(field="z")
    assert headline(tones.plot(-1)) == headline(tones.plot(2))


def test_a_damaged_sample_is_not_drawn_and_none_shown_instead(tmp_path: Path) -> None:
    store = baked(tmp_path / "s.zarr", tone, 3, SCHEMA, codec="raw")
    store.close()
    flip(store.path, "y", 1)
    with open_store(store.path) as again:
        for sample in (None, 1):
            with pytest.raises(DamagedStoreError):
                again.plot(sample)
        assert "sample 0 of 3" in headline(again.plot(0))
        with pytest.raises(RecipeError, match=r"plot\(field='y'\)"):
            again.plot("y")  # type: ignore[arg-type]


def flip(path: Path, field: str, sample: int) -> None:
    """Change a byte of a sample of a store that is not compressed."""
    with open_store(path, checksums="never") as store:
        inside = store[field][sample].tobytes()[100:200]
    (shard,) = [
        file for file in (path / field / "c").rglob("*") if file.is_file() and inside in file.read_bytes()
    ]
    content = bytearray(shard.read_bytes())
    content[content.index(inside)] ^= 1
    shard.write_bytes(content)


def test_no_window_no_pyplot_no_torch(tones: Store, tmp_path: Path) -> None:
    code = (
        "import sys, parbake; figure = parbake.open_store(sys.argv[1]).plot(0)\n"
        "png, size = figure._repr_png_()\n"
        "assert png[:4] == b'\\x89PNG' and size == {'width': 800, 'height': 500}, size\n"
        "assert not {'matplotlib.pyplot', 'torch', 'zarr', 'xarray'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tones.path)], check=True, cwd=Path(parbake.__file__).parents[1]
    )


def test_without_matplotlib_the_extra_is_named(tones: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    figures._picture_class.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RecipeError, match=r"pip install 'parbake\[plot\]'"):
        tones.plot()
    figures._picture_class.cache_clear()


def test_sides_of_uneven_steps_are_counted_and_say_so(tmp_path: Path) -> None:
    coords = {"z": Coord(np.geomspace(1, 1000, 20), "m"), "x": Coord(np.arange(30.0), "m")}
    schema = {"T": Field((20, 30), "f8", ("z", "x"), coords=coords)}
    axes = baked(tmp_path / "s.zarr", lambda i: {"T": np.zeros((20, 30))}, 1, schema).plot().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x, by number", "z, by number")
