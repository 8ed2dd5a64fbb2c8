"""Interpolation from a mesh to points as one sparse matrix, for all fields and all times alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from parbake.errors import MeshError
from parbake.producers.meshes.elements import ELEMENTS, jacobians
from parbake.producers.meshes.geometry import Mesh, checked_points, flattened
from parbake.producers.meshes.locate import COINCIDENT, Placement, Rows, joined_rows, place
from parbake.producers.meshes.neighbours import idw_rows, nearest_rows, rbf_rows

if TYPE_CHECKING:
    import scipy.sparse

Method = Literal["linear", "nearest", "idw", "rbf"]
Outside = Literal["project", "nearest", "nan", "error"]

_NEGLIGIBLE = 1e-13  # a weight below is round-off of zero
_COLUMNS_NBYTES = 128  # of a product's row; narrower ones waste its loops, wider ones leave the cache
_SLIVER = 1e-12  # a simplex's volume over its longest side to the power of its dimension

Reals = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Operator:
    """The matrix that interpolates from a mesh's nodes to target points.

    ``matrix``: CSR [target node, source node], float32 or float64; an empty row stands for NaN. ``valid``
    [target node]: inside the source mesh. ``distance`` [target node]: to the source mesh, in the unit of the
    coordinates; 0 inside. ``notices``: what to know about it, for people.
    """

    matrix: scipy.sparse.csr_array
    valid: NDArray[np.bool_]
    distance: Reals
    notices: tuple[str, ...]

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """``values`` [time, source node, channel] at the target nodes [time, target node, channel].

        Floating point of any precision, which is kept; sums are formed in the wider of it and the matrix's.
        A NaN reaches the targets whose rows hold its node, no others. Raises MeshError for another shape or
        dtype.
        """
        targets, sources = self.matrix.shape
        if values.ndim != 3 or values.shape[1] != sources or values.dtype.kind != "f":
            raise MeshError(
                f"values: {values.dtype} {values.shape} where floating point [time, {sources} nodes, "
                "channel] is needed: the fields of the mesh that the operator was built for"
            )
        steps, _, channels = values.shape
        kind = values.dtype.newbyteorder("=")
        found = np.empty((steps, targets, channels), kind)
        width = max(1, _COLUMNS_NBYTES // max(1, channels * self.matrix.dtype.itemsize))
        for start in range(0, steps if channels else 0, width):
            part = slice(start, start + width)
            columns = _transposed(np.ascontiguousarray(values[part], kind))
            product = self.matrix @ columns.reshape(sources, -1)
            found[part] = _transposed(product.astype(kind, copy=False).reshape(targets, -1, channels))
        found[:, np.diff(self.matrix.indptr) == 0] = np.nan
        return found


def _transposed(values: NDArray[Any]) -> NDArray[Any]:
    """Contiguous ``values`` [a, b, channel] as [b, a, channel], contiguous.

    The channels move as one item: NumPy copies so short an axis value by value, five times as slowly.
    """
    item = np.dtype((np.void, values.shape[2] * values.itemsize))
    turned = np.ascontiguousarray(values.view(item)[:, :, 0].T)
    return turned.view(values.dtype).reshape(turned.shape + values.shape[2:])


def build_operator(
    source: Mesh,
    target_points: NDArray[Any],
    *,
    method: Method = "linear",
    outside: Outside = "project",
    max_distance: float,
    dtype: Literal["float32", "float64"] = "float64",
) -> Operator:
    """The operator from ``source``'s nodes to ``target_points`` [target node, dim].

    ``method``: "linear" (shape functions of the cells; of a Delaunay triangulation where there are none),
    "nearest", "idw" (inverse squared distances), "rbf" (local thin-plate splines). ``outside``: what a target
    node outside the mesh gets: the value at the closest boundary point ("project"), that of the "nearest"
    node, "nan", or an "error". ``max_distance``: how far out a node may lie where it gets a value, as a
    fraction of the diagonal of the source's bounding box; infinity allows any. ``dtype`` of the matrix;
    weights are computed in float64. Raises MeshError for targets that are not finite or of another
    dimension, that lie too far out, or that do not meet the source at all.
    """
    _check_choices(method, outside, max_distance, dtype)
    joined = _joined(source)
    targets, flat = _targets(target_points, source.dim)
    limit = max_distance if outside in ("project", "nearest") else np.inf
    _check_boxes(joined.points, targets, outside, limit)
    cells, cloud = (joined.cells, ()) if joined.cells else _triangulated(joined.points)
    placement = place(targets, joined.points, cells)
    _check_outside(placement, targets, outside, limit, _diagonal(joined.points))
    rows = placement.rows if method == "linear" else _METHODS[method](placement.feet, joined.points)
    if outside == "nan":
        rows = rows.of(placement.inside)
    elif outside == "nearest":
        rows = joined_rows(
            [rows.of(placement.inside), nearest_rows(targets, joined.points).of(~placement.inside)]
        )
    far = _outside_notice(placement, outside, _diagonal(joined.points))
    return Operator(
        _matrix(rows, len(targets), joined.spread).astype(dtype),
        placement.inside,
        placement.distance,
        (*joined.notices, *flat, *cloud, *far),
    )


_METHODS: Mapping[str, Callable[[Reals, Reals], Rows]] = {
    "nearest": nearest_rows,
    "idw": idw_rows,
    "rbf": rbf_rows,
}


def _check_choices(method: str, outside: str, max_distance: float, dtype: str) -> None:
    for name, given, known in (
        ("method", method, get_args(Method)),
        ("outside", outside, get_args(Outside)),
        ("dtype", dtype, ("float32", "float64")),
    ):
        if given not in known:
            raise MeshError(f"{name}: {given!r} is not one of {', '.join(known)}")
    if not max_distance >= 0:
        raise MeshError(f"max_distance: {max_distance} is not a fraction of the source mesh; give 0 or more")


def _targets(target_points: NDArray[Any], dim: int) -> tuple[Reals, tuple[str, ...]]:
    """Target points in the source's dimensions."""
    targets = checked_points(target_points, "target points")
    if targets.shape[1] == dim:
        return targets, ()
    if dim == 2 and (flat := flattened(targets)) is not None:
        return flat[0], (f"target: {flat[1][0]}",)
    raise MeshError(
        f"target points are in {targets.shape[1]}-D where the source mesh is in {dim}-D; give both alike"
    )


@dataclass(frozen=True, eq=False)
class _Joined:
    """A source mesh whose coincident nodes are one and whose unused ones are gone.

    ``spread``: CSR [joined node, source node], which averages the values of the nodes that were joined.
    """

    points: Reals
    cells: Mapping[str, Indices]
    spread: scipy.sparse.csr_array
    notices: tuple[str, ...]


def _joined(source: Mesh) -> _Joined:
    import scipy.sparse
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    total = len(source.points)
    used = np.unique(np.concatenate([nodes.ravel() for nodes in source.cells.values()] or [np.arange(total)]))
    points = source.points[used]
    pairs = cKDTree(points).query_pairs(COINCIDENT * _diagonal(points), output_type="ndarray")
    graph = scipy.sparse.coo_array(
        (np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(len(used), len(used))
    )
    count, group = connected_components(graph, directed=False)
    shares = 1 / np.bincount(group, minlength=count)[group]
    spread = scipy.sparse.csr_array((shares, (group, used)), shape=(count, total))
    notices = []
    if len(used) < total:
        notices.append(f"source: {total - len(used):,} of {total:,} nodes belong to no cell; left out")
    if count < len(used):
        together = int(np.count_nonzero(shares < 1))
        notices.append(
            f"source: {together:,} of {total:,} nodes coincide with others; their values are averaged"
        )
    new_number = np.full(total, -1)
    new_number[used] = group
    cells = {kind: new_number[nodes] for kind, nodes in source.cells.items()}
    for kind, nodes in cells.items():
        ordered = np.sort(nodes, axis=1)
        if (bad := (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)).any():
            raise MeshError(
                f"source mesh: {kind} {int(np.argmax(bad))} has two nodes at one place; repair the mesh, "
                "or give its points without cells"
            )
    return _Joined(spread @ source.points, cells, spread, tuple(notices))


def _triangulated(points: Reals) -> tuple[Mapping[str, Indices], tuple[str, ...]]:
    """Delaunay's simplices of a cloud, without those that have no volume, and a notice."""
    from scipy.spatial import Delaunay, QhullError

    dim = points.shape[1]
    try:
        simplices = Delaunay(points).simplices.astype(np.int64)
    except (QhullError, ValueError):  # ValueError: too few points
        raise MeshError(
            f"source mesh: {len(points):,} points without cells that do not span {dim} dimensions cannot be "
            "triangulated; give more points, or the mesh's cells"
        ) from None
    kind = "triangle" if dim == 2 else "tetra"
    corners = points[simplices]
    volumes = np.abs(jacobians(ELEMENTS[kind], corners)[:, 0])
    whole = volumes > _SLIVER * np.ptp(corners, axis=1).max(axis=1) ** dim
    notice = (
        f"source: no cells; its {len(points):,} points are triangulated (Delaunay): holes and concave "
        "outlines are not seen"
    )
    return {kind: simplices[whole]}, (notice,)


def _diagonal(points: Reals) -> float:
    return float(np.linalg.norm(np.ptp(points, axis=0)))


def _check_boxes(points: Reals, targets: Reals, outside: Outside, limit: float) -> None:
    """Raise MeshError where the bounding boxes alone tell that targets are too far out, before any search."""
    low, high = points.min(axis=0), points.max(axis=0)
    apart = np.linalg.norm(np.maximum(np.maximum(low - targets, targets - high), 0), axis=1)
    apart[apart <= COINCIDENT * _diagonal(points)] = 0
    too_far = bool(apart.max() > limit * _diagonal(points))
    if apart.all() and (too_far or outside in ("nan", "error")):
        raise MeshError(
            f"the meshes do not overlap: source {_box(low, high)}, target "
            f"{_box(targets.min(axis=0), targets.max(axis=0))}; give both in the same unit and origin"
        )
    if too_far:
        raise _too_far(int(np.argmax(apart)), targets, float(apart.max()), _diagonal(points), limit)


def _box(low: Reals, high: Reals) -> str:
    return " x ".join(f"{a:g}..{b:g}" for a, b in zip(low.tolist(), high.tolist(), strict=True))


def _check_outside(
    placement: Placement, targets: Reals, outside: Outside, limit: float, diagonal: float
) -> None:
    if not placement.inside.any() and outside == "nan":
        raise MeshError(
            "the meshes do not overlap: no target node lies in the source mesh; give both in the same unit "
            "and origin"
        )
    farthest = int(np.argmax(placement.distance))
    distance = float(placement.distance[farthest])
    count = int(np.count_nonzero(~placement.inside))
    if outside == "error" and count:
        raise MeshError(
            f"{count:,} of {len(targets):,} target nodes lie outside the source mesh, the farthest, "
            f"{_place(farthest, targets)}, by {distance:g}; use outside='project', 'nearest' or 'nan'"
        )
    if distance > limit * diagonal:
        raise _too_far(farthest, targets, distance, diagonal, limit)


def _too_far(node: int, targets: Reals, distance: float, diagonal: float, limit: float) -> MeshError:
    return MeshError(
        f"target {_place(node, targets)} lies {distance:g} outside the source mesh, "
        f"{distance / diagonal:.3g} of its diagonal where max_distance is {limit:g}; give both meshes in one "
        "unit and origin, or raise max_distance"
    )


def _place(node: int, targets: Reals) -> str:
    return f"node {node} at ({', '.join(f'{x:g}' for x in targets[node].tolist())})"


def _outside_notice(placement: Placement, outside: Outside, diagonal: float) -> tuple[str, ...]:
    count = int(np.count_nonzero(~placement.inside))
    if not count:
        return ()
    done = {
        "project": "they get the value at the closest boundary point",
        "nearest": "they get the value of the nearest node",
        "nan": "they get NaN",
    }[outside]
    distance = float(placement.distance.max())
    return (
        f"{count:,} of {len(placement.inside):,} target nodes lie outside the source mesh, at most "
        f"{distance:.3g} ({100 * distance / diagonal:.2g} % of its diagonal); {done}",
    )


def _matrix(rows: Rows, targets: int, spread: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Rows over joined nodes as a matrix over all source nodes, without round-off of zero weights."""
    import scipy.sparse

    kept = np.abs(rows.weight) > _NEGLIGIBLE
    target, source, weight = rows.target[kept], rows.source[kept], rows.weight[kept]
    weight = weight / np.bincount(target, weight, minlength=targets)[target]  # their sum is 1 again
    matrix = scipy.sparse.csr_array((weight, (target, source)), shape=(targets, spread.shape[0]))
    whole = matrix @ spread
    whole.sort_indices()
    return whole
