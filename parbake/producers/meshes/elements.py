"""The kinds of cells: their faces, shape functions, and where in a cell a point lies.

Corners are in VTK's order (VTK file formats, "Linear cell types"). Local coordinates run from 0 to 1; those
of triangles, of tetrahedra and of a wedge's triangle also sum to at most 1. All functions take many cells of
one kind at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

_NEWTON_STEPS_MAX = 24
_NEWTON_STEP_MAX = 0.5  # local coordinates; longer ones are often astray
_NEWTON_DONE = 1e-13  # length of a step; they shrink quadratically, so what is left is round-off
_NEWTON_STALLED = 1e-8  # where round-off keeps the steps of a very thin cell from shrinking further
_NEWTON_FAR = 4.0  # local coordinates; an iterate beyond has left a cell of 0..1


@dataclass(frozen=True, eq=False)
class Element:
    """One kind of cell.

    ``corners``: local coordinates [corner, dim]. ``faces``: corners of each face; seen from outside,
    counter-clockwise, in a cell whose Jacobian is positive. ``values``: local [n, dim] -> shape
    functions [n, corner]; ``slopes``: -> their derivatives [n, corner, dim]. ``simplex``: the map from
    local to global coordinates is affine.
    """

    corners: Reals
    faces: tuple[tuple[int, ...], ...]
    values: Callable[[Reals], Reals]
    slopes: Callable[[Reals], Reals]
    simplex: bool

    @property
    def dim(self) -> int:
        return int(self.corners.shape[1])

    @property
    def probes(self) -> Reals:
        """Local coordinates [n, dim] of corners and of the centres of edges, faces and cell."""
        steps = np.array(list(product((0.0, 0.5, 1.0), repeat=self.dim)))
        return steps[self.margins(steps) >= 0]

    def margins(self, local: Reals) -> Reals:
        """How far inside the cell each local coordinate [n, dim] lies: 0 on a face, negative outside."""
        sides = [local.min(axis=1)]
        sums = {True: local.shape[1], False: 2 if len(self.corners) == 6 else 0}[self.simplex]
        if sums:
            sides.append(1 - local[:, :sums].sum(axis=1))
        if sums < local.shape[1]:
            sides.append((1 - local[:, sums:]).min(axis=1))
        return np.asarray(np.min(sides, axis=0))


def _simplex_values(local: Reals) -> Reals:
    return np.concatenate([1 - local.sum(axis=1, keepdims=True), local], axis=1)


def _simplex_slopes(local: Reals) -> Reals:
    dim = local.shape[1]
    slopes = np.concatenate([np.full((1, dim), -1.0), np.eye(dim)])
    return np.broadcast_to(slopes, (len(local), dim + 1, dim))


def _box_values(corners: Reals) -> Callable[[Reals], Reals]:
    """Products of 1 - x or x along each axis: bilinear, trilinear."""

    def values(local: Reals) -> Reals:
        return np.asarray(np.where(corners > 0, local[:, None], 1 - local[:, None]).prod(axis=2))

    return values


def _box_slopes(corners: Reals) -> Callable[[Reals], Reals]:
    def slopes(local: Reals) -> Reals:
        factors = np.where(corners > 0, local[:, None], 1 - local[:, None])
        return np.stack(
            [
                np.delete(factors, axis, axis=2).prod(axis=2) * np.where(corners[:, axis] > 0, 1.0, -1.0)
                for axis in range(corners.shape[1])
            ],
            axis=2,
        )

    return slopes


def _wedge_values(local: Reals) -> Reals:
    base, height = _simplex_values(local[:, :2]), local[:, 2:]
    return np.concatenate([base * (1 - height), base * height], axis=1)


def _wedge_slopes(local: Reals) -> Reals:
    base, height = _simplex_values(local[:, :2]), local[:, 2:, None]
    across = _simplex_slopes(local[:, :2])
    lower = np.concatenate([across * (1 - height), -base[:, :, None]], axis=2)
    upper = np.concatenate([across * height, base[:, :, None]], axis=2)
    return np.concatenate([lower, upper], axis=1)


def _simplex(dim: int, faces: tuple[tuple[int, ...], ...]) -> Element:
    corners = np.concatenate([np.zeros((1, dim)), np.eye(dim)])
    return Element(corners, faces, _simplex_values, _simplex_slopes, simplex=True)


def _box(corners: list[tuple[int, ...]], faces: tuple[tuple[int, ...], ...]) -> Element:
    at = np.array(corners, np.float64)
    return Element(at, faces, _box_values(at), _box_slopes(at), simplex=False)


_SQUARE = [(0, 0), (1, 0), (1, 1), (0, 1)]
ELEMENTS: Mapping[str, Element] = MappingProxyType(
    {
        "triangle": _simplex(2, ((0, 1), (1, 2), (2, 0))),
        "quad": _box([*_SQUARE], ((0, 1), (1, 2), (2, 3), (3, 0))),
        "tetra": _simplex(3, ((0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2))),
        "hexahedron": _box(
            [(*corner, height) for height in (0, 1) for corner in _SQUARE],
            ((0, 3, 2, 1), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)),
        ),
        "wedge": Element(
            np.array([(x, y, z) for z in (0, 1) for x, y in ((0, 0), (1, 0), (0, 1))], np.float64),
            ((0, 2, 1), (3, 4, 5), (0, 1, 4, 3), (1, 2, 5, 4), (2, 0, 3, 5)),
            _wedge_values,
            _wedge_slopes,
            simplex=False,
        ),
    }
)


def jacobians(element: Element, corners: Reals) -> Reals:
    """Determinant of d(global)/d(local) at each probe of each cell [cell, probe].

    ``corners`` [cell, corner, dim]. Simplices have the same one everywhere, so one probe does.
    """
    probes = element.probes[:1] if element.simplex else element.probes
    found = [
        determinants(_maps(corners, np.broadcast_to(slope, (len(corners), *slope.shape))))
        for slope in element.slopes(probes)
    ]
    return np.stack(found, axis=1)


def invert(element: Element, corners: Reals, points: Reals) -> Reals:
    """Local coordinates [n, dim] of ``points`` [n, dim], each in its own cell ``corners`` [n, corner, dim].

    Outside the cell they are those of the map continued beyond it; NaN where Newton's method found none
    from the centre nor from any corner's surroundings.
    """
    if element.simplex:
        maps = np.swapaxes(corners[:, 1:] - corners[:, :1], 1, 2)
        return solve(maps, points - corners[:, 0])
    centre = element.corners.mean(axis=0)
    local = _newton(element, corners, points, centre)
    for corner in element.corners:
        lost = np.flatnonzero(np.isnan(local[:, 0]))
        if not lost.size:
            break
        local[lost] = _newton(element, corners[lost], points[lost], 0.25 * centre + 0.75 * corner)
    return local


def _newton(element: Element, corners: Reals, points: Reals, start: Reals) -> Reals:
    found = np.full(points.shape, np.nan)
    going = np.arange(len(points))
    local = np.tile(start, (len(points), 1))
    size = np.full(len(points), np.inf)
    for _ in range(_NEWTON_STEPS_MAX):
        if not going.size:
            break
        here = corners[going] - points[going, None]  # so no digits are lost to where the mesh lies
        at = np.einsum("nc,ncd->nd", element.values(local), here)
        step = solve(_maps(here, element.slopes(local)), -at)
        size = np.abs(step).max(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            local = local + step * np.minimum(1, _NEWTON_STEP_MAX / size)[:, None]
        reach = np.maximum(1, np.abs(local).max(axis=1))
        done = size < _NEWTON_DONE * reach
        found[going[done]] = local[done]
        more = ~done & (reach < _NEWTON_FAR)  # False for NaN: a singular map
        going, local, size = going[more], local[more], size[more]
    stalled = size < _NEWTON_STALLED
    found[going[stalled]] = local[stalled]
    return found


def _maps(corners: Reals, slopes: Reals) -> Reals:
    """d(global)/d(local) [n, dim, dim]."""
    maps: Reals = np.matmul(np.swapaxes(corners, 1, 2), slopes)
    return maps


def determinants(maps: Reals) -> Reals:
    """Of each 2 x 2 or 3 x 3 matrix [n, dim, dim]."""
    columns = [maps[:, :, axis] for axis in range(maps.shape[2])]
    if len(columns) == 2:
        return np.asarray(columns[0][:, 0] * columns[1][:, 1] - columns[0][:, 1] * columns[1][:, 0])
    return np.asarray((columns[0] * cross(columns[1], columns[2])).sum(axis=1))


def solve(maps: Reals, right: Reals) -> Reals:
    """Solutions [n, dim] of ``maps`` [n, dim, dim] x = ``right`` [n, dim] by Cramer's rule, one refinement.

    Not finite where a matrix is singular. ``numpy.linalg.solve`` takes longer for so small ones.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        first = _cramer(maps, right)
        return first + _cramer(maps, right - np.einsum("nij,nj->ni", maps, first))


def _cramer(maps: Reals, right: Reals) -> Reals:
    scale = 1 / determinants(maps)
    columns = [maps[:, :, axis] for axis in range(maps.shape[2])]
    if len(columns) == 2:
        (a, b), r = columns, right
        found = [r[:, 0] * b[:, 1] - r[:, 1] * b[:, 0], a[:, 0] * r[:, 1] - a[:, 1] * r[:, 0]]
        return np.stack([one * scale for one in found], axis=1)
    a, b, c = columns
    normal = cross(b, c)
    across = cross(a, right)
    found = [(right * normal).sum(axis=1), (across * c).sum(axis=1), -(across * b).sum(axis=1)]
    return np.stack([one * scale for one in found], axis=1)


def cross(a: Reals, b: Reals) -> Reals:
    """Vector products [n, 3]; several times as fast as ``numpy.cross``."""
    return np.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        axis=1,
    )
