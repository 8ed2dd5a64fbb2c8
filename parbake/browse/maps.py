"""Fields on meshes as coloured maps; of a coarse and a fine solution their difference beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parbake.browse import figures
from parbake.browse.meshmap import Plane, plane_of, triangles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import FigureBase

Reals = NDArray[np.float64]

CHANNELS_MAX = 2  # of a comparison
CHANNELS_ALONE_MAX = 4  # of one field
_WIDE = 1.6  # width over height, from which maps stand one above another
_OUTLIERS = 99.5  # percent of the differences that the colours tell apart


@dataclass(frozen=True, eq=False)
class Map:
    """Values [node, channel] at positions [node, 2 or 3], whose axes are named."""

    title: str
    values: Reals
    points: Reals
    axes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps to be compared: they share colours. ``difference``: another one, which has its own.

    ``channels``: their names, one for each channel shown. ``units``: of all values;
    ``axis_units``: of each axis, by name.
    """

    alike: tuple[Map, ...]
    channels: tuple[str, ...]
    difference: Map | None = None
    units: str | None = None
    axis_units: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def all(self) -> tuple[Map, ...]:
        return self.alike if self.difference is None else (*self.alike, self.difference)


@dataclass(frozen=True)
class Arrangement:
    """``stacked``: the maps are rows and the channels columns; else the other way round."""

    rows: int
    columns: int
    stacked: bool
    height_in: float
    width_in: float


def arrangement(maps: Maps) -> Arrangement:
    """How the maps fill a page, by the shape of the mesh."""
    low = np.min([np.nanmin(m.points, axis=0) for m in maps.all if len(m.points)], axis=0)
    high = np.max([np.nanmax(m.points, axis=0) for m in maps.all if len(m.points)], axis=0)
    tall, wide = np.sort(high - low)[-2:]
    horizontal = float(high[0] - low[0]) >= float(high[1] - low[1]) or len(low) == 3
    aspect = float(wide / tall) if tall > 0 else 1.0
    aspect = min(max(aspect if horizontal else 1 / aspect, 0.25), 8.0)
    count, channels = len(maps.all), len(maps.channels)
    if aspect > _WIDE:
        width = 10.0 if channels > 1 else figures.WIDTH_IN
        each = (width - 0.7) / channels - 0.9
        return Arrangement(count, channels, True, count * (each / aspect + 0.3) + 0.4, width)
    width = figures.WIDTH_IN if count < 4 else 10.0
    each = min((width - 0.6) / count - 0.25, 3.4)
    return Arrangement(channels, count, False, channels * (each / aspect + 0.8) + 0.2, width)


def draw_maps(shown: FigureBase, maps: Maps) -> None:
    """A map of each channel and stage; one colour scale for what is alike, another about zero."""
    plan = arrangement(maps)
    grid = shown.subplots(plan.rows, plan.columns, squeeze=False, sharex=True, sharey=True)
    lanes = grid.T if plan.stacked else grid  # [channel][map]
    where = "right" if plan.stacked else "bottom"
    meshes = [_Mesh.of(m) for m in maps.all]
    for channel, (name, lane) in enumerate(zip(maps.channels, lanes, strict=True)):
        values = [m.values[mesh.plane.nodes, channel] for m, mesh in zip(maps.all, meshes, strict=True)]
        count = len(maps.alike)
        scale = _shared_scale(values[:count])
        for m, mesh, axes, shades in zip(maps.alike, meshes, lane, values, strict=False):
            painted = _painted(axes, mesh, shades, scale, figures.SEQUENTIAL)
            _finish(axes, _title(name, m.title, mesh.plane.note), mesh.plane, maps.axis_units, plan)
        label = figures.with_units(name, maps.units) if maps.units not in (None, "", "1") else ""
        # a bar for three maps need not be as long as they are together
        figures.colour_bar(shown, painted, list(lane[:count]), location=where, label=label)
        if maps.difference is not None:
            scale, text = _scale_about_zero(values[-1])
            painted = _painted(lane[-1], meshes[-1], values[-1], scale, figures.DIVERGING)
            title = _title(name, maps.difference.title, text)
            _finish(lane[-1], title, meshes[-1].plane, maps.axis_units, plan)
            options = {"aspect": 22 / count} if plan.stacked else {}
            figures.colour_bar(shown, painted, [lane[-1]], location=where, extend="both", **options)


def _title(channel: str, stage: str, note: str) -> str:
    parts = [figures.plain(part) for part in (channel, stage) if part]
    return ", ".join([*parts, *([figures.plain(note)] if note else [])])


def _finish(axes: Axes, title: str, plane: Plane, units: Mapping[str, str | None], plan: Arrangement) -> None:
    across, up = (figures.with_units(name, units.get(name)) for name in plane.axes)
    figures.styled(axes, title, across, up)
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.margins(0.01)
    for painted in axes.collections:  # within the axes; the layout would measure every triangle
        painted.set_in_layout(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.label_outer()
    if plan.stacked:
        axes.locator_params(axis="y", nbins=3)


@dataclass(frozen=True, eq=False)
class _Mesh:
    plane: Plane
    triangles: NDArray[np.int32]

    @classmethod
    def of(cls, m: Map) -> _Mesh:
        plane = plane_of(m.points, m.axes)
        empty = np.empty((0, 3), np.int32)
        return cls(plane, triangles_of(plane.points) if plane.flat else empty)


def _painted(axes: Axes, mesh: _Mesh, values: Reals, scale: Normalize, colours: str) -> Any:
    """Shaded triangles; points where there are none. Nodes without a value stay empty."""
    known = np.isfinite(values)
    x, y = mesh.plane.points.T
    triangles = mesh.triangles[known[mesh.triangles].all(axis=1)]
    if not len(triangles):
        size = min(max(3e4 / max(len(x), 1), 0.6), 30)
        return axes.scatter(
            x[known],
            y[known],
            c=values[known],
            s=size,
            cmap=colours,
            norm=scale,
            lw=0,
            clip_on=False,
            rasterized=True,
        )
    # a value that is not finite belongs to no triangle, but colours are sought for all
    shades = np.where(known, values, 0.0)
    drawn = axes.tripcolor(x, y, shades, triangles=triangles, shading="gouraud", cmap=colours, norm=scale)
    drawn.set_rasterized(True)  # as vectors they would be megabytes
    return drawn


def _shared_scale(values: Sequence[Reals]) -> Normalize:
    from matplotlib.colors import Normalize

    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    if not len(finite):
        return Normalize(0, 1)
    low, high = float(finite.min()), float(finite.max())
    return Normalize(low, high if high > low else low + (abs(low) or 1.0) * 1e-6)


def _scale_about_zero(values: Reals) -> tuple[Normalize, str]:
    """A scale on which zero is the neutral colour, and the size of the differences in words."""
    from matplotlib.colors import Normalize

    finite = np.abs(values[np.isfinite(values)])
    if not len(finite):
        return Normalize(-1, 1), "no value is finite"
    limit = float(np.percentile(finite, _OUTLIERS)) or float(finite.max()) or 1.0
    return Normalize(-limit, limit), f"rms {np.sqrt(np.mean(finite**2)):.3g}"
