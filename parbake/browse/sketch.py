"""Tiny pictures of fields for tables: SVG for lines and distributions, PNG for images and meshes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.browse.kinds import Form, Kind, are_colours, axis_of, even_sides, form_of, node_axes
from parbake.browse.markup import escaped
from parbake.browse.png import coloured, data_uri, png
from parbake.store.document import StoredField
from parbake.store.layout import Coord
from parbake.store.samples import Samples

READ_NBYTES_MAX = 16 * 1024**2  # decoded, to draw one picture
WIDTH, HEIGHT = 160, 100  # pixels, at most
LINE_HEIGHT = 44
COLOUR_WIDTH, COLOUR_HEIGHT = 96, 60  # of pictures with channels of colours, which compress badly
BARS = 32  # at most
VALUES_MAX = 4_096  # of a distribution
RUNS_MAX = 16  # chunks that they come from
NODES_MAX = 20_000
CHANNELS_DRAWN = 3
_PERIODS = 6  # of an oscillation that the picture has no room for

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sketch:
    """A picture, as HTML that stands for itself, and what it shows, as HTML text."""

    html: str
    caption: str


class Sketches:
    """Draws fields of one store; where the nodes of its meshes are is found once."""

    def __init__(self, samples: Samples, coords: Mapping[str, Coord]) -> None:
        self._samples = samples
        self._coords = coords
        self._rasters: dict[tuple[str, ...], _Raster | None] = {}

    def of(self, name: str, sample: int) -> Sketch | None:
        """A picture of a field: of one sample, of scalars the distribution; None where there is none.

        Reads one chunk of at most READ_NBYTES_MAX, of scalars some. Raises DamagedStoreError.
        """
        field = self._samples.fields[name]
        form = form_of(field, self._coords)
        if field.layout.chunk_nbytes > READ_NBYTES_MAX or form.kind is Kind.OTHER:
            return None
        sketch = self._drawn(name, field, form, sample)
        if sketch is not None and field.dtype.kind == "c":
            return replace(sketch, caption=f"magnitude, {sketch.caption}")
        return sketch

    def _drawn(self, name: str, field: StoredField, form: Form, sample: int) -> Sketch | None:
        if form.kind is Kind.SCALAR:
            numbers = spread(self._samples.samples, field.layout.chunk_samples, field.layout.chunk_nbytes)
            return _distribution(field, self._read(name, numbers).reshape(-1), self._samples.samples)
        values = self._read(name, np.array([sample]))[0]
        channels = _by_channel(values, field, form)
        if form.kind is Kind.LINE:
            return _line(field, form, channels, sample, self._coords)
        if form.kind is Kind.IMAGE:
            if (sides := even_sides(field, form, self._coords)) is not None:  # to the right and upwards
                up, right = (1 if side.values[0] < side.values[-1] else -1 for side in sides)
                channels = channels[:, ::-up, ::right]
            return _image(field, form, channels, sample, _labels(field, form, self._coords))
        return self._mesh(field, form, channels[0], sample)

    def _read(self, name: str, numbers: NDArray[np.int64]) -> Array:
        values = self._samples.read(numbers, (name,))[name]
        with np.errstate(over="ignore", invalid="ignore"):
            return (np.abs(values) if values.dtype.kind == "c" else values).astype(np.float64)

    def _mesh(self, field: StoredField, form: Form, values: Array, sample: int) -> Sketch | None:
        names = node_axes(field, self._coords)
        if names not in self._rasters:
            self._rasters[names] = _raster([self._coords[name].values for name in names[:2]])
        raster = self._rasters[names]
        if raster is None:
            return None
        pixels = np.where(raster.inside, values[raster.nodes], np.nan)
        channel = _labels(field, form, self._coords)[:1]
        shown = ", ".join([*map(escaped, channel), f"sample {sample:,}"])
        across = " over ".join(map(escaped, names[1::-1]))
        return Sketch(_img(png(coloured(pixels)), f"{escaped(field.name)} on its mesh: {across}"), shown)


def spread(samples: int, chunk_samples: int, chunk_nbytes: int) -> NDArray[np.int64]:
    """Numbers of at most VALUES_MAX samples from end to end, ascending, that lie in few chunks."""
    chunks = -(-samples // chunk_samples)
    runs = int(np.clip(READ_NBYTES_MAX // 4 // chunk_nbytes, 1, min(RUNS_MAX, chunks)))
    starts = np.linspace(0, chunks - 1, runs).astype(np.int64) * chunk_samples
    stops = np.minimum(starts + chunk_samples, samples)
    return _once(np.linspace(starts, stops - 1, VALUES_MAX // runs, axis=1).astype(np.int64).reshape(-1))


def _once(ascending: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each number once; ``np.unique`` would import half of NumPy first."""
    once: NDArray[np.int64] = ascending[np.diff(ascending, prepend=ascending[0] - 1) != 0]
    return once


def _by_channel(values: NDArray[Any], field: StoredField, form: Form) -> Array:
    """[channel, *axes that are drawn]."""
    axes = (*(() if form.channel is None else (form.channel,)), *form.axes)
    rest = tuple(axis for axis in range(len(field.shape)) if axis not in axes)
    ordered: Array = np.transpose(values, (*rest, *axes))
    count = 1 if form.channel is None else field.shape[form.channel]
    return ordered.reshape(count, *(field.shape[axis] for axis in form.axes))


def _labels(field: StoredField, form: Form, coords: Mapping[str, Coord]) -> tuple[str, ...]:
    coord = coords.get(field.dims[form.channel]) if form.channel is not None else None
    return (coord.labels or ()) if coord is not None else ()


# ---- lines


def _line(
    field: StoredField, form: Form, channels: Array, sample: int, coords: Mapping[str, Coord]
) -> Sketch | None:
    length, drawn = channels.shape[1], channels[:CHANNELS_DRAWN]
    start, stop = excerpt(drawn[0])
    envelopes = [envelope(line[start:stop]) for line in drawn]
    ends = np.concatenate([end for one in envelopes for end in one])
    if not np.isfinite(ends).any():
        return None
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    opacities = (0.9, 0.5, 0.3)
    paths = "".join(
        f'<path d="{path}" opacity="{opacity}"/>'
        for one, opacity in zip(envelopes, opacities, strict=False)
        if (path := _path(*(_height(end, low, high) for end in one)))
    )
    labels = _labels(field, form, coords)[: len(drawn)]
    many = f"{len(drawn)} of {len(channels)} channels" if len(channels) > len(drawn) else ""
    which = ", ".join(map(escaped, labels)) if len(channels) > 1 and labels else many
    part = (
        _part(start, stop, length, axis_of(field.dims[form.axes[0]], coords)) if stop - start < length else ""
    )
    caption = ", ".join(text for text in (which, part, f"sample {sample:,}") if text)
    drawing = f'<g fill="currentColor" stroke="currentColor" stroke-linejoin="round">{paths}</g>'
    return Sketch(_svg(drawing, f"{escaped(field.name)}: {caption}"), caption)


def excerpt(values: Array) -> tuple[int, int]:
    """Half-open: all of a line, or a few periods from its middle where all of them would be a blot."""
    low, high = envelope(values)
    if len(values) <= 4 * WIDTH or not np.isfinite(low).any():
        return 0, len(values)
    span = np.nanmax(high) / 2 - np.nanmin(low) / 2  # halves, since a difference of large numbers overflows
    if not np.nanmean(high / 2 - low / 2) > 0.4 * span > 0:
        return 0, len(values)
    above = values > np.nanmean(np.concatenate([low, high]) / 2) * 2
    crossings = int(np.count_nonzero(above[1:] != above[:-1]))
    length = int(np.clip(2 * _PERIODS * len(values) / max(crossings, 1), WIDTH, len(values)))
    start = (len(values) - length) // 2
    return start, start + length


def envelope(values: Array) -> tuple[Array, Array]:
    """Least and greatest finite value of each column of pixels; NaN where there is none."""
    finite = np.isfinite(values)
    starts = _once(np.linspace(0, len(values), WIDTH, endpoint=False).astype(np.int64))
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    some = np.isfinite(low)
    return np.where(some, low, np.nan), np.where(some, high, np.nan)


def _height(values: Array, low: float, high: float) -> Array:
    """From the top, in pixels; halves, since a difference of large numbers overflows."""
    scale = high / 2 - low / 2
    place = (values / 2 - low / 2) / scale if scale > 0 else np.where(np.isfinite(values), 0.5, np.nan)
    return 2 + (1 - place) * (LINE_HEIGHT - 4)


def _path(bottom: Array, top: Array) -> str:
    """There along the top and back along the bottom, for each stretch of columns that have values."""
    x = np.linspace(1, WIDTH - 1, len(top)) if len(top) > 1 else np.array([WIDTH / 2])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], np.isfinite(top), [False]])))
    stretches = []
    for start, stop in edges.reshape(-1, 2):
        there = [f"{a:.4g},{b:.3g}" for a, b in zip(x[start:stop], top[start:stop], strict=True)]
        back = [f"{a:.4g},{b:.3g}" for a, b in zip(x[start:stop], bottom[start:stop], strict=True)]
        stretches.append(f"M{'L'.join(there + back[::-1])}Z")
    return "".join(stretches)


def _part(start: int, stop: int, length: int, coord: Coord | None) -> str:
    if coord is None:
        return f"{stop - start:,} of {length:,} values"
    ends = coord.values.astype(np.float64)
    units = f" {escaped(coord.units)}" if coord.units else ""
    return f"{abs(ends[stop - 1] - ends[start]):.3g} of {abs(ends[-1] - ends[0]):.3g}{units}"


# ---- distributions


def _distribution(field: StoredField, values: Array, samples: int) -> Sketch | None:
    heights = histogram(values)
    if heights is None:
        return None
    width = WIDTH / len(heights)
    bars = "".join(
        f'<rect x="{i * width + 0.5:.4g}" y="{LINE_HEIGHT - tall:.3g}" width="{width - 1:.3g}" '
        f'height="{tall:.3g}"/>'
        for i, tall in enumerate(heights / heights.max() * (LINE_HEIGHT - 3))
        if tall > 0
    )
    of = f"{len(values):,} of {samples:,} samples" if len(values) < samples else f"{samples:,} samples"
    axis = f'<rect y="{LINE_HEIGHT - 1}" width="{WIDTH}" height="1" opacity="0.35"/>'
    drawing = f'<g fill="currentColor"><g opacity="0.75">{bars}</g>{axis}</g>'
    caption = f"distribution, {of}"
    return Sketch(_svg(drawing, f"{escaped(field.name)}: {caption}"), caption)


def histogram(values: Array) -> NDArray[np.int64] | None:
    """How many finite values lie in each equal part of their range; None where there are none.

    Few values have few parts, else evenly spaced ones would show peaks.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    scale = high / 2 - low / 2
    place = (finite / 2 - low / 2) / scale if scale > 0 else np.full(len(finite), 0.5)
    bars = min(BARS, math.isqrt(2 * len(finite)) + 1)
    return np.bincount(np.minimum((place * bars).astype(np.int64), bars - 1), minlength=bars)


# ---- images and meshes


def _image(field: StoredField, form: Form, channels: Array, sample: int, labels: tuple[str, ...]) -> Sketch:
    colours = are_colours(len(channels), labels)
    width, height = (COLOUR_WIDTH, COLOUR_HEIGHT) if colours else (WIDTH, HEIGHT)
    shrunk = [shrink(one, height, width) for one in (channels if colours else channels[:1])]
    pixels = _rgb(np.stack(shrunk, axis=-1), field.dtype) if colours else coloured(shrunk[0])
    across = " over ".join(escaped(field.dims[axis]) for axis in form.axes)
    which = "" if colours or not labels else f"{escaped(labels[0])}, "
    return Sketch(_img(png(pixels), f"{escaped(field.name)}: {across}"), f"{which}sample {sample:,}")


def shrink(image: Array, rows_max: int, columns_max: int) -> Array:
    """Means of the finite values in square blocks, [rows, columns] of at most so many; NaN of none."""
    block = max(-(-image.shape[0] // rows_max), -(-image.shape[1] // columns_max))
    finite = np.isfinite(image)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        total, count = np.where(finite, image, 0), finite.astype(np.float64)
        for axis in (0, 1):
            starts = np.arange(0, image.shape[axis], block)
            total, count = (np.add.reduceat(part, starts, axis=axis) for part in (total, count))
        return np.asarray(total / count)


def _rgb(values: Array, dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    """Bytes as they are; other numbers between their least and greatest, [0, 1] where they lie in it."""
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
    if dtype == np.uint8:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scale = max(high / 2 - low / 2, np.finfo(np.float64).tiny)
    place = np.where(finite, values, low) / 2 - low / 2
    return np.round(np.clip(place / scale, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class _Raster:
    """For each pixel [rows, columns] the node that it shows, and whether it lies in the mesh."""

    nodes: NDArray[np.int64]
    inside: NDArray[np.bool_]


def _raster(positions: list[NDArray[Any]]) -> _Raster | None:
    """The nearest node of each pixel; none where it is farther off than that node's neighbours are."""
    from scipy.spatial import cKDTree

    x, y = (position.astype(np.float64) for position in positions)
    with np.errstate(over="ignore", invalid="ignore"):
        usable = np.flatnonzero(np.isfinite(x + y))
        kept = usable[:: max(1, -(-len(usable) // NODES_MAX))]
        if len(kept) < 3:
            return None
        low = np.array([x[kept].min(), y[kept].min()])
        span = np.array([x[kept].max(), y[kept].max()]) - low
    if not np.isfinite(span).all() or not span.any():
        return None
    fit = float(np.min(np.array([WIDTH, HEIGHT]) / np.maximum(span, 1e-9 * span.max())))
    columns, rows = (max(16, round(length * fit)) for length in span.tolist())
    scale = np.array([columns - 1, rows - 1]) / np.where(span > 0, span, 1)
    nodes = (np.stack([x[kept], y[kept]], axis=1) - low) * scale  # in pixels
    tree = cKDTree(nodes)
    down, across = np.mgrid[rows - 1 : -1 : -1, 0:columns]  # y points up
    distance, nearest = tree.query(np.stack([across, down], axis=-1))
    neighbours = min(6, len(kept))
    spacing = tree.query(nodes, k=[neighbours])[0][:, 0]
    return _Raster(kept[nearest], distance <= np.maximum(spacing, 0.75)[nearest])


# ---- as HTML


def _svg(drawing: str, text: str) -> str:
    return (
        f'<svg class="parbake-picture" role="img" aria-label="{text}" width="{WIDTH}" height="{LINE_HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {LINE_HEIGHT}">{drawing}</svg>'
    )


def _img(content: bytes, text: str) -> str:
    return f'<img class="parbake-picture" alt="{text}" src="{data_uri(content)}">'
