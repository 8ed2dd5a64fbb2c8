"""Tiny pictures of fields: what they show, that any reader takes them, that they stay small."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from parbake.browse import sketch
from parbake.browse.png import COLOURS, TRANSPARENT, VIRIDIS, coloured, png
from parbake.browse.sketch import Sketch, Sketches
from parbake.store.document import StoredField
from parbake.store.keys import Freshness, Producer
from parbake.store.layout import Coord, Field, plan_layout
from parbake.store.samples import Samples


class Held(Samples):
    """One field ``y`` of values in memory."""

    path = "memory"
    digest = ""
    statistics: Mapping[str, Any] = {}

    def __init__(self, field: Field, values: NDArray[Any]) -> None:
        layout = plan_layout({"y": field}, "raw").fields["y"]
        self._fields = {"y": StoredField.of("y", field, layout)}
        self._values = values
        self.reads = 0

    @property
    def samples(self) -> int:
        return len(self._values)

    @property
    def fields(self) -> Mapping[str, StoredField]:
        return self._fields

    def _fill(self, arrays: Any, numbers: NDArray[np.int64], windows: Any, threads: int) -> None:
        self.reads += 1
        arrays["y"][...] = self._values[numbers]

    def first(self, samples: int) -> Self:
        raise NotImplementedError

    def freshness(self, producer: Producer, *, rehash: bool = False) -> Freshness:
        raise NotImplementedError


def drawn(field: Field, values: NDArray[Any], sample: int = 0) -> Sketch | None:
    """A picture of ``values`` [sample, *field.shape]."""
    return Sketches(Held(field, values), field.coords).of("y", sample)


def some(found: Sketch | None) -> Sketch:
    assert found is not None
    return found


def decoded(html: str) -> NDArray[np.uint8]:
    """RGBA [rows, columns, 4] by another reader."""
    image = pytest.importorskip("PIL.Image")
    content = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert content is not None
    return np.asarray(image.open(io.BytesIO(base64.b64decode(content[1]))).convert("RGBA"))


def field_of(shape: tuple[int, ...], coords: Mapping[str, Coord] | None = None, dtype: str = "f8") -> Field:
    return Field(shape, dtype, ("a", "b", "channel")[: len(shape)], coords=coords)


def points(html: str) -> NDArray[np.float64]:
    """All points of the paths of a line's picture."""
    paths = [element.get("d", "") for element in ElementTree.fromstring(html).iter("path")]
    return np.array(
        [[float(x), float(y)] for path in paths for x, y in re.findall(r"([\d.e-]+),([\d.e-]+)", path)]
    )


# ---- PNG and colours


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([3, 4]))))
def test_another_reader_finds_the_pixels_of_a_png(pixels: NDArray[np.uint8]) -> None:
    image = pytest.importorskip("PIL.Image")
    assert np.array_equal(np.asarray(image.open(io.BytesIO(png(pixels)))), pixels)


def test_another_reader_finds_the_colours_of_indices() -> None:
    image = pytest.importorskip("PIL.Image")
    indices = np.arange(256, dtype=np.uint8).reshape(2, 128)
    found = np.asarray(image.open(io.BytesIO(png(indices))).convert("RGBA")).reshape(256, 4)
    assert np.array_equal(found[:COLOURS, :3], VIRIDIS)
    assert found[:, 3].tolist() == [255] * COLOURS + [0]


def test_colours_are_viridis() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    wanted = matplotlib.colormaps["viridis"](np.linspace(0, 1, COLOURS))[:, :3] * 255
    assert np.abs(VIRIDIS - wanted).max() < 8


@given(hnp.arrays(np.float64, (5, 7)))
def test_any_values_have_colours(values: NDArray[np.float64]) -> None:
    indices = coloured(values)
    assert ((indices == TRANSPARENT) == ~np.isfinite(values)).all()
    finite = np.isfinite(values)
    order = np.argsort(values[finite])
    assert (np.diff(indices[finite][order].astype(int)) >= 0).all()


# ---- lines


def test_a_line_shows_the_extremes_of_each_column() -> None:
    values = np.zeros((1, 5_000))
    values[0, 2_500] = 1
    values[0, 1_250] = -1
    found = points(some(drawn(field_of((5_000,)), values)).html)
    peak, trough = found[found[:, 1].argmin()], found[found[:, 1].argmax()]
    assert peak[0] == pytest.approx(sketch.WIDTH / 2, abs=2)
    assert trough[0] == pytest.approx(sketch.WIDTH / 4, abs=2)
    assert (peak[1], trough[1]) == (2, sketch.LINE_HEIGHT - 2)


@given(hnp.arrays(np.float64, st.integers(16, 2_000)))
def test_an_envelope_holds_the_finite_values(values: NDArray[np.float64]) -> None:
    low, high = sketch.envelope(values)
    finite = values[np.isfinite(values)]
    assert len(low) == len(high) <= sketch.WIDTH
    if len(finite):
        assert (np.nanmin(low), np.nanmax(high)) == (finite.min(), finite.max())
    else:
        assert np.isnan(low).all()
        assert np.isnan(high).all()


def test_of_an_oscillation_a_few_periods_are_shown_and_how_long_they_take() -> None:
    time = np.arange(44_100) / 44_100
    field = Field((44_100,), "f8", ("time",), coords={"time": Coord(time, "s")})
    found = some(drawn(field, np.sin(2 * np.pi * 100 * time)[None]))
    assert found.caption == "0.06 of 1 s, sample 0"
    start, stop = sketch.excerpt(np.sin(2 * np.pi * 100 * time))
    assert stop - start == pytest.approx(6 * 441, rel=0.02)
    assert start + stop == pytest.approx(44_100, abs=2)


def test_a_slow_line_is_shown_whole() -> None:
    assert sketch.excerpt(np.linspace(0, 1, 44_100)) == (0, 44_100)
    assert sketch.excerpt(np.full(44_100, np.nan)) == (0, 44_100)


def test_a_gap_in_a_line_stays_one() -> None:
    values = np.linspace(0, 1, 160)[None].copy()
    values[0, 60:100] = np.nan
    found = some(drawn(field_of((160,)), values))
    assert found.html.count("M") == 2
    x = points(found.html)[:, 0]
    assert not ((x > 62) & (x < 98)).any()


def test_channels_are_named_and_the_rest_counted() -> None:
    named = field_of((50, 1, 2), {"channel": Coord(["left", "<right>"])})
    assert some(drawn(named, np.ones((1, 50, 1, 2)))).caption == "left, &lt;right&gt;, sample 0"
    assert some(drawn(field_of((50, 4)), np.ones((3, 50, 4)), 2)).caption == "3 of 4 channels, sample 2"


# ---- distributions


def test_a_distribution_counts_as_numpy_does() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    found = sketch.histogram(np.append(values, [np.nan, np.inf]))
    assert found is not None
    assert np.array_equal(found, np.histogram(values, bins=sketch.BARS)[0])


def test_the_tallest_bar_is_where_most_values_are() -> None:
    html = some(drawn(field_of(()), np.array([0.0] * 9 + [1.0] * 3))).html
    bars = [bar for bar in ElementTree.fromstring(html).iter("rect") if bar.get("x")]
    heights = [float(bar.get("height", 0)) for bar in bars]
    assert heights == pytest.approx([41, 41 / 3], rel=0.01)


def test_evenly_spaced_values_show_no_peaks() -> None:
    for count in (20, 40, 1000):
        found = sketch.histogram(np.arange(float(count)))
        assert found is not None
        assert found.max() - found.min() <= 1


@pytest.mark.parametrize(
    ("samples", "chunk_samples", "nbytes", "chunks_max"),
    [(1, 8192, 65_536, 1), (10, 8192, 65_536, 1), (10_000_000, 8192, 65_536, 16), (10**12, 1, 8, 16)],
)
def test_values_of_a_distribution_lie_from_end_to_end_in_few_chunks(
    samples: int, chunk_samples: int, nbytes: int, chunks_max: int
) -> None:
    numbers = sketch.spread(samples, chunk_samples, nbytes)
    assert (np.diff(numbers) > 0).all()
    assert numbers[0] == 0
    assert numbers[-1] == samples - 1
    assert len(numbers) <= sketch.VALUES_MAX
    assert len(set((numbers // chunk_samples).tolist())) <= chunks_max
    if samples < chunk_samples:
        assert len(numbers) == samples


# ---- images and meshes


def test_an_image_stands_as_its_rows_do() -> None:
    rows = np.repeat(np.arange(16.0), 32).reshape(1, 16, 32)
    found = decoded(some(drawn(field_of((16, 32)), rows)).html)
    assert found.shape == (16, 32, 4)
    assert np.array_equal(found[0, 0, :3], VIRIDIS[0])
    assert np.array_equal(found[-1, -1, :3], VIRIDIS[-1])


def test_an_image_of_colours_keeps_them() -> None:
    values = np.random.default_rng(0).integers(0, 256, (1, 20, 20, 3), np.uint8)
    found = decoded(some(drawn(field_of((20, 20, 3), dtype="u1"), values)).html)
    assert np.array_equal(found[..., :3], values[0])


def test_a_large_image_is_shrunk_to_means() -> None:
    image = np.arange(12.0).reshape(3, 4)
    image[0, 0] = np.nan
    assert np.array_equal(sketch.shrink(image, 2, 2), [[(1 + 4 + 5) / 3, 4.5], [8.5, 10.5]])
    assert sketch.shrink(np.zeros((1000, 3000)), 100, 160).shape == (53, 158)


def ring() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes of a disc with a hole, finer at the hole."""
    radius, angle = np.meshgrid(np.geomspace(0.3, 1, 20), np.linspace(0, 2 * np.pi, 80, endpoint=False))
    return (radius * np.cos(angle)).ravel(), (radius * np.sin(angle)).ravel()


def test_a_mesh_is_shown_within_its_bounds_with_y_upwards() -> None:
    x, y = ring()
    coords = {"y": Coord(y, dim="a"), "x": Coord(x, dim="a")}
    found = decoded(some(drawn(field_of((len(x),), coords), y[None])).html)
    assert found.shape == (100, 100, 4)
    rows, columns = np.mgrid[0:100, 0:100]
    radius = np.hypot(columns - 49.5, rows - 49.5) / 49.5
    opaque = found[..., 3] == 255
    assert opaque[(radius > 0.32) & (radius < 0.95)].all()
    assert not opaque[(radius < 0.2) | (radius > 1.2)].any()
    top, bottom = found[5, 50, :3].astype(int), found[94, 50, :3].astype(int)
    assert np.abs(top - VIRIDIS[-1]).max() < 40
    assert np.abs(bottom - VIRIDIS[0]).max() < 40


def test_a_mesh_in_three_dimensions_and_one_of_a_line_have_pictures() -> None:
    x, y = ring()
    for coords in (
        {"x": Coord(x, dim="a"), "y": Coord(y, dim="a"), "z": Coord(x * y, dim="a")},
        {"x": Coord(x, dim="a"), "y": Coord(0 * y, dim="a")},
    ):
        assert decoded(some(drawn(field_of((len(x),), coords), y[None])).html)[..., 3].any()


def test_nodes_that_lie_nowhere_are_left_out() -> None:
    x, y = ring()
    x[:10], values = np.nan, y.copy()
    values[10:20] = np.inf
    coords = {"x": Coord(x, dim="a"), "y": Coord(y, dim="a")}
    assert decoded(some(drawn(field_of((len(x),), coords), values[None])).html)[..., 3].any()
    nowhere = {"x": Coord(np.full(len(x), np.nan), dim="a"), "y": Coord(y, dim="a")}
    assert drawn(field_of((len(x),), nowhere), values[None]) is None


# ---- of any field


@pytest.mark.parametrize("shape", [(), (100,), (1, 700), (30, 40), (30, 40, 3), (5_000, 2)])
@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324])
def test_no_value_breaks_a_picture(shape: tuple[int, ...], value: float) -> None:
    values = np.zeros((2, *shape))
    values[0] = value
    found = drawn(field_of(shape), values)
    assert found is None or "nan" not in found.html.partition("base64,")[0]


@pytest.mark.parametrize("dtype", ["?", "i1", "u8", "f2", ">f4", "c8", "c16"])
@pytest.mark.parametrize("shape", [(), (100,), (30, 40)])
def test_every_dtype_has_a_picture(shape: tuple[int, ...], dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, (4, *shape)).astype(dtype)
    assert drawn(field_of(shape, dtype=dtype), values) is not None


def test_every_picture_says_what_it_is() -> None:
    for shape in ((), (100,), (30, 40)):
        html = some(drawn(field_of(shape), np.random.default_rng(0).normal(size=(2, *shape)))).html
        element = ElementTree.fromstring(html.replace('">', '"/>') if html.startswith("<img") else html)
        assert (element.get("alt") or element.get("aria-label") or "").startswith("y")


def test_noise_of_any_size_stays_small() -> None:
    noise = np.random.default_rng(0)
    for shape in ((100_000,), (1000, 1000), (300, 300, 3)):
        assert len(some(drawn(field_of(shape), noise.normal(size=(1, *shape)))).html) < 30_000


def test_what_is_too_large_is_not_read() -> None:
    length = sketch.READ_NBYTES_MAX // 8
    values = np.broadcast_to(np.float64(1), (2, length + 1))
    held = Held(field_of((length + 1,)), values)
    assert Sketches(held, {}).of("y", 0) is None
    assert held.reads == 0
    assert drawn(field_of((length,)), values[:, 1:]) is not None


@pytest.mark.parametrize(("up", "right"), [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_an_image_over_coordinates_grows_to_the_right_and_upwards(up: int, right: int) -> None:
    """As a figure of it does; an image without coordinates begins at the top."""
    coords = {"row": Coord(np.arange(20.0)[::up]), "column": Coord(np.arange(30.0)[::right])}
    values = np.zeros((1, 20, 30))
    values[0, 0, 0] = 1  # the lowest, or the highest, of each
    found = some(drawn(Field((20, 30), "f8", ("row", "column"), coords=coords), values))
    pixels = decoded(found.html)[..., 0].astype(int)
    brightest = np.unravel_index(np.abs(pixels - np.median(pixels)).argmax(), pixels.shape)
    assert brightest == (19 if up == 1 else 0, 0 if right == 1 else 29)
    plain = decoded(some(drawn(field_of((20, 30)), values)).html)[..., 0].astype(int)
    assert np.unravel_index(np.abs(plain - np.median(plain)).argmax(), plain.shape) == (0, 0)
