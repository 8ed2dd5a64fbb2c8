"""Where points lie in a mesh: in which cell, or at which point of the boundary.

A point counts as inside a cell where its local coordinates are at most 1e-9 beyond it, so that none is lost
between two cells. Of several cells the one in which it lies deepest is taken, of equals the first. Outside,
the closest point of the boundary is found exactly on edges and triangles: all faces that can hold it are
compared. A quadrilateral is taken as the bilinear surface that its cell has there, plane or warped; on it the
closest point is found by Newton's method from the closest point of its two triangles, and compared with its
(straight) edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parbake.producers.meshes.boxes import box_tree, near
from parbake.producers.meshes.elements import ELEMENTS, Element, cross, invert, solve
from parbake.producers.meshes.geometry import boundary_faces

Reals = NDArray[np.float64]
Indices = NDArray[np.int64]

INSIDE = 1e-9  # local coordinates
COINCIDENT = 1e-12  # of the mesh's diagonal

_SURFACE_STEPS = 30
_SQUARE: Element = ELEMENTS["quad"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Entries of a sparse matrix [target, source]: three arrays of equal length."""

    target: Indices
    source: Indices
    weight: Reals

    def of(self, targets: NDArray[np.bool_]) -> Rows:
        """The entries whose target is in a mask [target]."""
        kept = targets[self.target]
        return Rows(self.target[kept], self.source[kept], self.weight[kept])


@dataclass(frozen=True, eq=False)
class Placement:
    """Points in a mesh.

    ``inside`` [point]. ``feet`` [point, dim]: the point itself inside, else the closest point of the
    boundary; ``distance`` [point]: to it. ``rows``: the shape functions there, of the cell or of the
    boundary's face.
    """

    inside: NDArray[np.bool_]
    feet: Reals
    distance: Reals
    rows: Rows


def joined_rows(parts: list[Rows]) -> Rows:
    return Rows(
        np.concatenate([part.target for part in parts]),
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.weight for part in parts]),
    )


def place(points: Reals, nodes: Reals, cells: Mapping[str, Indices]) -> Placement:
    """Where ``points`` [point, dim] lie in the mesh of ``cells`` over ``nodes`` [node, dim]."""
    coincident = COINCIDENT * float(np.linalg.norm(np.ptp(nodes, axis=0)))
    inside = np.zeros(len(points), np.bool_)
    parts = []
    for kind, corners in cells.items():
        wanted = np.flatnonzero(~inside)
        for point, cell, weights in _in_cells(ELEMENTS[kind], wanted, points, nodes, corners):
            inside[point] = True
            parts.append(_entries(point, corners[cell], weights, points[point], nodes, coincident))
    feet, distance = points.copy(), np.zeros(len(points))
    outside = np.flatnonzero(~inside)
    if outside.size:
        closest = _on_faces(points[outside], nodes, boundary_faces(nodes, cells))
        feet[outside], distance[outside] = closest.feet, closest.distance
        for of, corners, weights in closest.parts:
            parts.append(_entries(outside[of], corners, weights, closest.feet[of], nodes, coincident))
    touching = ~inside & (distance <= coincident)  # only round-off lies between
    distance[touching] = 0
    return Placement(inside | touching, feet, distance, joined_rows(parts))


def _entries(
    targets: Indices, corners: Indices, weights: Reals, at: Reals, nodes: Reals, coincident: float
) -> Rows:
    """Rows of weights [target, corner]; where a corner lies at the target (``at``), it alone has weight 1."""
    apart = np.linalg.norm(nodes[corners] - at[:, None], axis=2)
    on_node = apart.min(axis=1) <= coincident
    weights = np.where(
        on_node[:, None], np.arange(weights.shape[1]) == apart.argmin(axis=1)[:, None], weights
    )
    return Rows(np.repeat(targets, corners.shape[1]), corners.ravel(), weights.ravel())


def _in_cells(
    element: Element, wanted: Indices, points: Reals, nodes: Reals, cells: Indices
) -> Iterator[tuple[Indices, Indices, Reals]]:
    """(points, cell of each, its shape functions there) for those ``wanted`` that lie in a cell."""
    corners = nodes[cells]
    low, high = corners.min(axis=1), corners.max(axis=1)
    room = 2 * INSIDE * (high - low).max(axis=1, keepdims=True)
    tree = box_tree(low - room, high + room)
    for index, cell in near(tree, points[wanted], np.zeros(len(wanted))):
        point = wanted[index]
        local = invert(element, corners[cell], points[point])
        margin = np.nan_to_num(element.margins(local), nan=-np.inf)
        first = _best(point, -margin)
        first = first[margin[first] >= -INSIDE]
        yield point[first], cell[first], element.values(local[first])


def _best(point: Indices, cost: Reals) -> Indices:
    """Of each point's entries (``point`` ascends) the first one of least cost."""
    order = np.lexsort((cost, point))
    if not order.size:
        return order
    new = np.concatenate([[True], point[order[1:]] != point[order[:-1]]])
    return np.asarray(order[new])


@dataclass(frozen=True, eq=False)
class _Closest:
    """On a boundary: ``feet``, ``distance`` as above; (points, corners, weights) by size of face."""

    feet: Reals
    distance: Reals
    parts: list[tuple[Indices, Indices, Reals]]


def _on_faces(points: Reals, nodes: Reals, boundary: Mapping[int, Indices]) -> _Closest:
    from scipy.spatial import cKDTree

    rim = np.unique(np.concatenate([faces.ravel() for faces in boundary.values()]))
    bound, _ = cKDTree(nodes[rim]).query(points)  # the boundary is at most as far as its closest node
    distance = np.full(len(points), np.inf)
    feet = np.empty_like(points)
    size_of = np.zeros(len(points), np.int64)
    found: dict[int, tuple[Indices, Reals]] = {}
    for size, faces in boundary.items():
        face_of, weights = np.zeros(len(points), np.int64), np.zeros((len(points), size))
        found[size] = face_of, weights
        corners = nodes[faces]
        tree = box_tree(corners.min(axis=1), corners.max(axis=1))
        for point, face in near(tree, points, bound * (1 + 1e-9)):
            there = _CLOSEST[size](points[point], corners[face])
            foot = np.einsum("nc,ncd->nd", there, corners[face])
            apart = np.linalg.norm(points[point] - foot, axis=1)
            first = _best(point, apart)
            first = first[apart[first] < distance[point[first]]]
            at = point[first]
            distance[at], feet[at], size_of[at] = apart[first], foot[first], size
            face_of[at], weights[at] = face[first], there[first]
    parts = []
    for size, (face_of, weights) in found.items():
        of = np.flatnonzero(size_of == size)
        parts.append((of, boundary[size][face_of[of]], weights[of]))
    return _Closest(feet, distance, parts)


def _closest_on_edge(points: Reals, corners: Reals) -> Reals:
    """Weights [n, 2] of the ends at the closest point of each segment ``corners`` [n, 2, dim]."""
    along = corners[:, 1] - corners[:, 0]
    t = ((points - corners[:, 0]) * along).sum(axis=1) / (along * along).sum(axis=1)
    t = np.clip(t, 0, 1)
    return np.stack([1 - t, t], axis=1)


def _closest_on_rim(points: Reals, corners: Reals) -> tuple[Reals, Reals]:
    """Weights [n, corner] at, and distance [n] of, the closest point of each polygon's edges."""
    count = corners.shape[1]
    best, distance = np.zeros((len(points), count)), np.full(len(points), np.inf)
    for first in range(count):
        ends = [first, (first + 1) % count]
        weights = _closest_on_edge(points, corners[:, ends])
        apart = np.linalg.norm(np.einsum("nc,ncd->nd", weights, corners[:, ends]) - points, axis=1)
        closer = apart < distance
        distance[closer] = apart[closer]
        best[closer] = 0
        best[np.ix_(closer, ends)] = weights[closer]
    return best, distance


def _closest_on_triangle(points: Reals, corners: Reals) -> Reals:
    """Weights [n, 3] at the closest point of each triangle ``corners`` [n, 3, 3]: inside, or on its rim."""
    best, _ = _closest_on_rim(points, corners)
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    local = solve(np.stack([a, b, cross(a, b)], axis=2), points - corners[:, 0])[:, :2]
    within = (local >= 0).all(axis=1) & (local.sum(axis=1) <= 1)
    best[within] = ELEMENTS["triangle"].values(local[within])
    return best


def _closest_on_patch(points: Reals, corners: Reals) -> Reals:
    """Weights [n, 4] at the closest point of each bilinear surface ``corners`` [n, 4, 3]."""
    rim, rim_distance = _closest_on_rim(points, corners)
    local = _start_on_patch(points, corners)
    twist = corners[:, 0] - corners[:, 1] + corners[:, 2] - corners[:, 3]
    for _ in range(_SURFACE_STEPS):
        apart = points - np.einsum("nc,ncd->nd", _SQUARE.values(local), corners)
        tangents = np.matmul(np.swapaxes(corners, 1, 2), _SQUARE.slopes(local))  # [n, 3, 2]
        slope = np.einsum("ni,nij->nj", apart, tangents)
        gram = np.matmul(np.swapaxes(tangents, 1, 2), tangents)
        curved = gram.copy()
        curved[:, 0, 1] -= (apart * twist).sum(axis=1)
        curved[:, 1, 0] = curved[:, 0, 1]
        descent = curved[:, 0, 0] * curved[:, 1, 1] > curved[:, 0, 1] ** 2
        step = solve(np.where(descent[:, None, None], curved, gram), slope)
        ahead = np.clip(local + np.nan_to_num(step, posinf=0, neginf=0), 0, 1)
        moved = np.abs(ahead - local).max(initial=0)
        local = ahead
        if moved < 1e-14:
            break
    weights = _SQUARE.values(local)
    distance = np.linalg.norm(points - np.einsum("nc,ncd->nd", weights, corners), axis=1)
    return np.where((distance < rim_distance)[:, None], weights, rim)


def _start_on_patch(points: Reals, corners: Reals) -> Reals:
    """Local coordinates [n, 2] of the closest point of the two triangles along a quadrilateral's diagonal."""
    best, distance = np.zeros((len(points), 2)), np.full(len(points), np.inf)
    for part in ([0, 1, 2], [0, 2, 3]):
        weights = _closest_on_triangle(points, corners[:, part])
        apart = np.linalg.norm(np.einsum("nc,ncd->nd", weights, corners[:, part]) - points, axis=1)
        closer = apart < distance
        best[closer], distance[closer] = weights[closer] @ _SQUARE.corners[part], apart[closer]
    return best


_CLOSEST = {2: _closest_on_edge, 3: _closest_on_triangle, 4: _closest_on_patch}
