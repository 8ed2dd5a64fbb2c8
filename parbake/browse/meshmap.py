"""Triangles among the nodes of a mesh whose cells are not stored; what to show of a large or solid one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

NODES_MAX = 40_000  # more than a picture has room for
_PIXELS = 400  # along the longer side, when nodes are thinned out
_BRIDGE = 2.5  # circumradii beside the local one; the smallest hole of eight nodes has 2.2, good meshes 2.0
_UNEVEN = 1.8  # times what three of four triangles stay below: scattered nodes are no mesh with holes
_SOLID_DIM = 2.25  # local dimension between that of a surface and that of a volume, boundaries lowering both
_PROBED = 500  # nodes from which the local dimension is told


@dataclass(frozen=True, eq=False)
class Plane:
    """Nodes as they lie in a picture: which ones [n], where [n, 2], names of both axes, what was done.

    ``flat``: the nodes lie in one plane, so that triangles between them are the mesh's.
    """

    nodes: NDArray[np.int64]
    points: Reals
    axes: tuple[str, str]
    note: str
    flat: bool


def plane_of(points: Reals, axes: tuple[str, ...]) -> Plane:
    """What to show of nodes [node, 2 or 3]: all in a plane, of a surface its view, of a volume its middle.

    At most about NODES_MAX nodes, one in each place of a fine grid. Nodes that lie nowhere (NaN) are out.
    """
    nodes = np.flatnonzero(np.isfinite(points).all(axis=1))
    extent = np.ptp(points[nodes], axis=0) if len(nodes) else np.zeros(points.shape[1])
    seen = sorted(np.argsort(-extent, kind="stable")[:2].tolist())
    names = (axes[seen[0]], axes[seen[1]])
    note, flat = "", True
    if points.shape[1] == 3 and extent.min() > 1e-6 * extent.max():
        across = int(np.argmin(extent))
        nodes, note = _through_depth(points, nodes, across, axes[across])
        flat = False
    thinned = nodes[_one_a_place(points[nodes][:, seen])] if len(nodes) > NODES_MAX else nodes
    if len(thinned) < len(nodes):
        note = f"{note + ', ' if note else ''}{len(thinned):,} of {len(nodes):,} nodes"
    return Plane(thinned, points[thinned][:, seen].astype(np.float64), names, note, flat)


def _through_depth(
    points: Reals, nodes: NDArray[np.int64], across: int, axis: str
) -> tuple[NDArray[np.int64], str]:
    """The nodes to show of a body in space: of a solid the slice through its middle, of a surface all."""
    depth = points[nodes, across]
    if local_dimension(points[nodes]) < _SOLID_DIM:
        return nodes[np.argsort(depth, kind="stable")], f"seen along {axis}"  # the near ones are drawn last
    volume = float(np.prod(np.ptp(points[nodes], axis=0)))
    spacing = (volume / len(nodes)) ** (1 / 3)
    middle = (depth.min() + depth.max()) / 2
    near = np.abs(depth - middle) <= spacing
    return nodes[near], f"slice at {axis} = {middle:.4g}"


def local_dimension(points: Reals) -> float:
    """About 1, 2 or 3: how the number of neighbours grows with distance, in the middle of some nodes."""
    from scipy.spatial import KDTree

    if len(points) < 3 * _PROBED // 2:
        return 3.0 if len(points) < 64 else _growth(KDTree(points), points, 8, 32)
    probed = points[np.linspace(0, len(points) - 1, _PROBED).astype(np.int64)]
    return _growth(KDTree(points), probed, 8, 64)


def _growth(tree: object, points: Reals, few: int, many: int) -> float:
    distances, _ = tree.query(points, k=[few, many])  # type: ignore[attr-defined]
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = np.log(many / few) / np.log(distances[:, 1] / distances[:, 0])
    return float(np.nanmedian(grown))


def _one_a_place(points: Reals) -> NDArray[np.int64]:
    """Positions of the nodes to keep, ascending: one in each square of a grid as fine as a picture."""
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    side = extent.max() / _PIXELS or 1.0
    # a grid of a square picture; the nodes of a long one fill fewer squares, which may then be smaller
    side *= np.sqrt(max(1.0, np.prod(extent / side) / NODES_MAX)) if extent.min() > 0 else 1.0
    column, row = np.floor((points - low) / side).astype(np.int64).T
    return np.sort(np.unique(row * (int(column.max()) + 1) + column, return_index=True)[1])


def triangles_of(points: Reals) -> NDArray[np.int32]:
    """Delaunay triangles [triangle, 3] of nodes [node, 2], less those that bridge holes and bays.

    A triangle bridges where its circumscribed circle is large beside those around: the empty circle
    through the nodes of a hole's rim is the hole. What is large is told from the neighbourhood, since
    meshes are graded. Gives none for fewer than three nodes, or where all lie on a line.
    """
    from scipy.spatial import Delaunay, QhullError

    if len(points) < 3:
        return np.empty((0, 3), np.int32)
    extent = np.ptp(points, axis=0)
    if not extent.min() > 0:
        return np.empty((0, 3), np.int32)
    try:
        triangles = Delaunay(points).simplices
    except QhullError:
        return np.empty((0, 3), np.int32)
    radius = circumradii(points, triangles)
    around = _lower_quartile(radius, triangles, len(points))[triangles].min(axis=1)
    ratio = radius / around
    finite = ratio[np.isfinite(ratio)]
    limit = max(_BRIDGE, _UNEVEN * float(np.quantile(finite, 0.75))) if len(finite) else np.inf
    return np.asarray(triangles[ratio <= limit], np.int32)


def areas(points: Reals, triangles: NDArray[np.int32]) -> Reals:
    """Area of each triangle."""
    a, b, c = (points[triangles[:, corner]] for corner in range(3))
    return np.asarray(np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2)


def circumradii(points: Reals, triangles: NDArray[np.int32]) -> Reals:
    """Radius of the circle through each triangle's corners; infinite for a triangle without area."""
    a, b, c = (points[triangles[:, corner]] for corner in range(3))
    sides = [np.hypot(*(one - other).T) for one, other in ((b, c), (c, a), (a, b))]
    with np.errstate(divide="ignore", invalid="ignore"):
        radius = sides[0] * sides[1] * sides[2] / (4 * areas(points, triangles))
    return np.asarray(np.where(np.isfinite(radius), radius, np.inf))


def _lower_quartile(values: Reals, triangles: NDArray[np.int32], nodes: int) -> Reals:
    """Per node the lower quartile of the values of its triangles: at a rim most of them may bridge."""
    node, value = triangles.ravel(), np.repeat(values, 3)
    order = np.lexsort((value, node))
    counts = np.bincount(node, minlength=nodes)
    first = np.cumsum(counts) - counts
    picked = np.minimum(first + np.maximum(counts - 1, 0) // 4, len(order) - 1)
    return np.asarray(value[order][picked])
