"""Distributions of scalars, images, and what is neither line, image nor mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parbake.browse import figures
from parbake.browse.kinds import are_colours
from parbake.browse.spectrum import columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

Reals = NDArray[np.float64]

SCALARS_A_ROW = 3
ROW_HEIGHT_IN = 2.2
_BARS_MAX = 12  # different values that get a bar each
_BINS = (8, 48)
_DECADES = 1.5  # frequencies that span more are seen on a logarithmic axis
_PIXELS_MAX = 1500  # along a side; an image of more is thinned out
_TO_SCALE_MAX = 8  # height over width, or width over height, of an image whose axes share a scale
_CHANNELS_MAX = 4
_POINTS_MAX = 1600


@dataclass(frozen=True, eq=False)
class Scalar:
    """Values [n] of a scalar, and those of them that a sample has (``marked``)."""

    name: str
    units: str | None
    values: NDArray[Any]
    marked: float | None = None


def draw_scalars(shown: FigureBase, scalars: Sequence[Scalar], what: str) -> None:
    """A distribution of each scalar; ``what`` is counted, such as ``samples``."""
    across = min(len(scalars), SCALARS_A_ROW)
    grid = shown.subplots(scalar_rows(len(scalars)), across, squeeze=False)
    for axes in grid.flat[len(scalars) :]:
        axes.set_axis_off()
    for axes, scalar in zip(grid.flat, scalars, strict=False):
        draw_distribution(axes, scalar)
    for row in grid:
        row[0].set_ylabel(what)


def scalar_rows(count: int) -> int:
    return -(-count // SCALARS_A_ROW)


def draw_distribution(axes: Axes, scalar: Scalar) -> None:
    """A histogram, or a bar for each of few values; what is not finite is counted in the title."""
    values = np.asarray(scalar.values)
    if values.dtype.kind not in "biuf":
        figures.note(axes, f"{figures.plain(scalar.name)}: {values.dtype} has no distribution")
        return
    finite = values[np.isfinite(values)]
    lost = len(values) - len(finite)
    title = f"{lost:,} not finite" if lost else ""
    label = figures.with_units(scalar.name, scalar.units)
    if not len(finite):
        figures.note(axes, f"{label}: no value is finite")
        return
    different = np.unique(finite)
    if len(different) <= _BARS_MAX and (len(different) < len(finite) or len(different) == 1):
        counts = [int((finite == value).sum()) for value in different]
        bars = axes.bar(np.arange(len(different)), counts, 0.7, color=figures.BLUE)
        if scalar.marked is not None and scalar.marked in different:
            bars[int(np.searchsorted(different, scalar.marked))].set_color(figures.VERMILION)
        turned = 45 if len(different) > 6 else 0
        axes.set_xticks(np.arange(len(different)), told_apart(different), rotation=turned)
    else:
        edges, logarithmic = bin_edges(finite.astype(np.float64), scalar.units)
        axes.hist(finite, edges.tolist(), color=figures.BLUE, edgecolor="white", linewidth=0.4)
        if logarithmic:
            axes.set_xscale("log")
        if scalar.marked is not None and np.isfinite(scalar.marked):
            axes.axvline(scalar.marked, color=figures.VERMILION, linewidth=1.4)
    figures.styled(axes, title, label, "")
    axes.locator_params(axis="y", integer=True)


def told_apart(different: NDArray[Any]) -> list[str]:
    """Different numbers as texts: of four digits where that tells them apart, else in full."""
    short = [f"{value:.4g}" for value in different.tolist()]
    if different.dtype.kind in "iu" or len(set(short)) < len(short):
        return [str(value) for value in different]
    return short


def bin_edges(values: Reals, units: str | None) -> tuple[Reals, bool]:
    """Edges of bins, and whether they are spaced by ratio: of frequencies over more than 1.5 decades.

    About the square root of the number of values, from 8 to 48 bins.
    """
    low, high = float(values.min()), float(values.max())
    count = int(np.clip(round(len(values) ** 0.5 * 1.2), *_BINS))
    if units == "Hz" and low > 0 and np.log10(high / low) > _DECADES:
        return np.geomspace(low, high, count + 1), True
    if not high > low:
        half = abs(low) * 0.5 or 0.5
        low, high = low - half, high + half
    if high - low >= count and (values == np.round(values)).all():  # else some bins hold more whole numbers
        width = np.ceil((high - low + 1) / count)
        return np.arange(low - 0.5, high + width, width), False
    return np.linspace(low, high, count + 1), False


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels [row, column, channel]. ``axes``: labels of x and y; ``extent``: what they span, if known."""

    name: str
    pixels: NDArray[Any]
    axes: tuple[str, str]
    units: str | None = None
    extent: tuple[float, float, float, float] | None = None
    channels: tuple[str, ...] = ()


def image_height_in(image: Image) -> float:
    rows, across = image.pixels.shape[:2]
    panels = 1 if is_coloured(image) else image.pixels.shape[2]
    aspect = rows / across
    return float(np.clip((figures.WIDTH_IN - 1.0) / min(panels, _CHANNELS_MAX) * aspect + 0.8, 2.0, 4.4))


def is_coloured(image: Image) -> bool:
    """Whether the channels are red, green and blue, as far as their number and values tell."""
    pixels = image.pixels
    if not are_colours(pixels.shape[2], image.channels):
        return False
    if pixels.dtype == np.uint8:
        return True
    return pixels.dtype.kind == "f" and bool(((pixels >= 0) & (pixels <= 1)).all())


def draw_image(shown: FigureBase, image: Image) -> None:
    """The image as it is where its channels are colours; else a map of each channel."""
    step = -(-max(image.pixels.shape[:2]) // _PIXELS_MAX)
    pixels = image.pixels[::step, ::step]
    upright: dict[str, Any] = {
        "origin": "lower" if image.extent else "upper",
        "extent": image.extent,
        "aspect": "equal" if _is_drawn_to_scale(image) else "auto",
    }
    if is_coloured(image):
        axes = shown.subplots()
        seen = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float64)
        axes.imshow(seen, **upright)
        _ascending(axes, image)
        figures.styled(axes, figures.plain(image.name), *image.axes)
        return
    count = min(pixels.shape[2], _CHANNELS_MAX)
    for channel, axes in enumerate(np.atleast_1d(shown.subplots(1, count, sharey=True))):
        painted = axes.imshow(figures.real(pixels[..., channel]), cmap=figures.SEQUENTIAL, **upright)
        _ascending(axes, image)
        named = image.channels[channel] if image.channels else f"{channel}" if count > 1 else ""
        shown_of = figures.magnitude(figures.plain(image.name), pixels.dtype)
        title = ", ".join(part for part in (shown_of, figures.plain(named)) if part)
        figures.styled(axes, title, *image.axes)
        axes.label_outer()
        label = figures.plain(image.units) if image.units not in (None, "1") else ""
        figures.colour_bar(shown, painted, axes, location="bottom" if count > 1 else "right", label=label)


def _is_drawn_to_scale(image: Image) -> bool:
    """Whether both axes can share a scale: over 1 s and 20,000 Hz the picture would be a line."""
    if image.extent is None:
        return True
    left, right, bottom, top = image.extent
    return 1 / _TO_SCALE_MAX <= abs((top - bottom) / (right - left)) <= _TO_SCALE_MAX


def _ascending(axes: Axes, image: Image) -> None:
    """Coordinates grow to the right and upwards, be they stored falling, as latitudes often are."""
    if image.extent:
        left, right, bottom, top = image.extent
        axes.set(xlim=sorted((left, right)), ylim=sorted((bottom, top)))


def draw_flat(
    axes: Axes, name: str, values: NDArray[Any], dims: Mapping[str, int], units: str | None
) -> None:
    """All values of a sample one after another."""
    shape = " x ".join(f"{figures.plain(dim)} {length:,}" for dim, length in dims.items())
    if values.dtype.kind not in "biufc":
        figures.note(axes, f"{figures.plain(name)} ({shape}): {values.dtype}, not drawn")
        return
    flat = figures.real(values).ravel()
    flat = np.where(np.isfinite(flat), flat, np.nan)
    index = np.arange(len(flat), dtype=np.float64)
    if len(flat) > _POINTS_MAX:
        where, low, high = columns(index, flat, _POINTS_MAX // 2)
        axes.fill_between(where, low, high, color=figures.BLUE, alpha=0.8, linewidth=0.6)
    else:
        axes.plot(index, flat, color=figures.BLUE, linewidth=1.2, marker="o" if len(flat) < 32 else "")
    what = figures.magnitude("values", values.dtype)
    figures.styled(axes, f"{what} in the order of {shape}", "index", figures.with_units(name, units))
    axes.margins(x=0.01)
