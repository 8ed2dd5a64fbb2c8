"""A mesh: points and cells, checked when it is made.

What the checks let through can be interpolated on: every cell's map from local to global coordinates is one
to one as far as its probes tell, and no two cells that share a face lie on the same side of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import MeshError
from parbake.producers.meshes.elements import ELEMENTS, jacobians

CORNERS: Mapping[str, int] = {kind: len(element.corners) for kind, element in ELEMENTS.items()}

_FLAT = 1e-9  # of the mesh's extent: a third coordinate that varies less is none
_DEGENERATE = 1e-12  # a cell's volume over its longest side to the power of its dimension

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Mesh:
    """Points and the cells between them; without cells, a cloud of points.

    ``points``: float64 [node, dim], dim 2 or 3. ``cells``: kind (a name of CORNERS) -> int64
    [cell, corner], VTK's order of corners; either orientation will do. ``notices``: what was changed on the
    way in, for people: a third coordinate that is the same everywhere is dropped where the cells are
    two-dimensional or there are none, and two-dimensional cells beside three-dimensional ones (their
    surfaces) are left out.

    Raises MeshError for points that are not finite, indices out of range, degenerate, folded or inverted
    cells, and two-dimensional cells that do not lie flat.
    """

    points: NDArray[np.float64]
    cells: Mapping[str, Indices] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        points = _checked_points(self.points)
        cells, surfaces = _checked_cells(self.cells, len(points))
        points, flat = _without_flat(points, cells)
        _check_volumes(points, cells)
        _check_neighbours(points, cells)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "cells", cells)
        object.__setattr__(self, "notices", (*self.notices, *surfaces, *flat))

    @property
    def dim(self) -> int:
        return int(self.points.shape[1])

    @property
    def diagonal(self) -> float:
        """Length of the bounding box's diagonal."""
        return float(np.linalg.norm(np.ptp(self.points, axis=0)))


def flattened(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[str, ...]] | None:
    """Points [node, 3] without a third coordinate that is the same everywhere, and a notice; else None."""
    spans = np.ptp(points, axis=0)
    if spans[2] > _FLAT * spans.max():
        return None
    notice = f"the third coordinate is {points[0, 2]:g} at all {len(points):,} nodes; dropped"
    return np.ascontiguousarray(points[:, :2]), (notice,)


def checked_points(points: Any, what: str) -> NDArray[np.float64]:
    """``points`` as float64 [node, dim]; raises MeshError, beginning with ``what``, for anything else."""
    try:
        array = np.ascontiguousarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        raise MeshError(f"{what}: not an array of numbers; give points [node, 2] or [node, 3]") from None
    if array.ndim != 2 or array.shape[1] not in (2, 3) or not len(array):
        raise MeshError(f"{what}: shape {array.shape}; give points [node, 2] or [node, 3], at least one")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise MeshError(
            f"{what}: {len(bad):,} of {len(array):,} nodes have NaN or infinite coordinates, the first is "
            f"node {bad[0]}; leave them out, or repair the file"
        )
    return array


def _checked_points(points: Any) -> NDArray[np.float64]:
    return checked_points(points, "mesh points")


def _checked_cells(cells: Mapping[str, Any], nodes: int) -> tuple[dict[str, Indices], tuple[str, ...]]:
    checked = {}
    for kind, given in cells.items():
        if kind not in CORNERS:
            raise MeshError(f"mesh cells: {kind!r} is not supported; {', '.join(CORNERS)} are")
        array = np.asarray(given)
        if array.size == 0:
            continue
        if array.ndim != 2 or array.shape[1] != CORNERS[kind] or array.dtype.kind not in "iu":
            raise MeshError(
                f"mesh cells: {kind}: {array.dtype} {array.shape}; give integers [cell, {CORNERS[kind]}]"
            )
        if (low := int(array.min())) < 0 or (high := int(array.max())) >= nodes:
            found = low if low < 0 else high
            raise MeshError(
                f"mesh cells: {kind}: node {found} where nodes are 0 to {nodes - 1}; count from 0, "
                "and give the points that the cells were made for"
            )
        checked[kind] = np.ascontiguousarray(array, dtype=np.int64)
    if len({ELEMENTS[kind].dim for kind in checked}) < 2:
        return checked, ()
    surfaces = [f"{len(checked[kind]):,} {kind} cells" for kind in checked if ELEMENTS[kind].dim == 2]
    notice = f"{' and '.join(surfaces)} beside three-dimensional ones (surfaces); left out"
    return {kind: array for kind, array in checked.items() if ELEMENTS[kind].dim == 3}, (notice,)


def _without_flat(
    points: NDArray[np.float64], cells: Mapping[str, Indices]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Points in as many dimensions as the cells have."""
    kinds = ", ".join(cells)
    if any(ELEMENTS[kind].dim == 3 for kind in cells):
        if points.shape[1] == 2:
            raise MeshError(f"mesh: {kinds} cells on points in 2-D; give points [node, 3]")
        return points, ()
    if points.shape[1] == 2 or (len(points) == 1 and not cells):
        return points, ()
    if (flat := flattened(points)) is not None:
        return flat
    if not cells:
        return points, ()
    spans = " x ".join(f"{span:g}" for span in np.ptp(points, axis=0))
    raise MeshError(
        f"mesh: {kinds} cells on points in 3-D that do not lie flat (they span {spans}); give the points in "
        "the plane of the mesh, [node, 2], or three-dimensional cells"
    )


def _check_volumes(points: NDArray[np.float64], cells: Mapping[str, Indices]) -> None:
    """Raise MeshError for a cell that repeats a node, has no volume, or whose Jacobian changes sign."""
    for kind, nodes in cells.items():
        corners = points[nodes]
        side = np.ptp(corners, axis=1).max(axis=1)
        volumes = jacobians(ELEMENTS[kind], corners)
        small = _DEGENERATE * side[:, None] ** points.shape[1]
        folded = (volumes > small).any(axis=1) & (volumes < -small).any(axis=1)
        for bad, why in (
            (folded, "folded (the Jacobian changes sign)"),
            ((np.abs(volumes) <= small).any(axis=1), "degenerate (no volume, or none at a corner)"),
        ):
            if count := int(np.count_nonzero(bad)):
                first = int(np.argmax(bad))
                raise MeshError(
                    f"mesh: {count:,} of {len(nodes):,} {kind} cells are {why}, the first is {kind} {first} "
                    f"(nodes {_listed(nodes[first])}); repair the mesh, or give its points without cells"
                )


def _check_neighbours(points: NDArray[np.float64], cells: Mapping[str, Indices]) -> None:
    """Raise MeshError where two cells lie on the same side of a face they share: one of them is inverted.

    The order of a cell's corners does not matter, only where they lie: files come in either
    orientation, and some in both.
    """
    for size, faces in all_faces(points, cells).items():
        order, starts = _same_faces(faces)
        counts = np.diff(np.append(starts, len(order)))
        firsts = starts[counts == 2]
        one, other = faces[order[firsts]], faces[order[firsts + 1]]
        overlap = _turns(one) == _turns(other)
        name = "edge" if size == 2 else "face"
        if overlap.any():
            raise MeshError(
                f"mesh: {np.count_nonzero(overlap):,} pairs of cells lie on the same side of the {name} they "
                f"share, the first at nodes {_listed(one[np.argmax(overlap)])}: one of them is inverted, "
                "or given twice; repair the mesh, or give its points without cells"
            )
        if counts.max() > 2:
            first = faces[order[starts[np.argmax(counts)]]]
            raise MeshError(
                f"mesh: {counts.max()} cells share the {name} of nodes {_listed(first)}, where at most two "
                "can; repair the mesh, or give its points without cells"
            )


def _turns(faces: Indices) -> NDArray[np.bool_]:
    """Which of the two ways round each face's nodes are listed."""
    if faces.shape[1] == 2:
        return np.asarray(faces[:, 0] < faces[:, 1])
    rows, first = np.arange(len(faces)), faces.argmin(axis=1)
    after, before = (first + 1) % faces.shape[1], (first - 1) % faces.shape[1]
    return np.asarray(faces[rows, after] < faces[rows, before])


def all_faces(points: NDArray[np.float64], cells: Mapping[str, Indices]) -> dict[int, Indices]:
    """All cells' faces by their number of corners: nodes [face, corner], counter-clockwise from outside."""
    found: dict[int, list[Indices]] = {}
    for kind, nodes in cells.items():
        element = ELEMENTS[kind]
        mirrored = jacobians(element, points[nodes])[:, 0] < 0
        for face in element.faces:
            listed = nodes[:, face]
            found.setdefault(len(face), []).append(np.where(mirrored[:, None], listed[:, ::-1], listed))
    return {size: np.concatenate(parts) for size, parts in found.items()}


def boundary_faces(points: NDArray[np.float64], cells: Mapping[str, Indices]) -> dict[int, Indices]:
    """The faces that belong to one cell alone, by their number of corners [face, corner]."""
    found = {}
    for size, faces in all_faces(points, cells).items():
        order, starts = _same_faces(faces)
        alone = np.diff(np.append(starts, len(order))) == 1
        if alone.any():
            found[size] = faces[np.sort(order[starts[alone]])]
    return found


def _same_faces(faces: Indices) -> tuple[Indices, Indices]:
    """An order that brings faces of the same nodes together, and where in it each such group starts."""
    nodes = np.sort(faces, axis=1)
    base = int(nodes.max()) + 1
    if base ** nodes.shape[1] < 2**63:  # one number a face sorts several times as fast
        key = nodes[:, 0]
        for column in nodes.T[1:]:
            key = key * base + column
        order = np.argsort(key, kind="stable")
        changes = key[order[1:]] != key[order[:-1]]
    else:
        order = np.lexsort(nodes.T)
        changes = (nodes[order[1:]] != nodes[order[:-1]]).any(axis=1)
    return order, np.concatenate([[0], np.flatnonzero(changes) + 1])


def _listed(nodes: Indices) -> str:
    return ", ".join(str(node) for node in nodes.tolist())
