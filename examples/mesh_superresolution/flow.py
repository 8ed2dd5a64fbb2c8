"""A flow to try the example on without any data: vortices shed by a round obstacle, on meshes of four sizes.

No simulation: vortices are born behind the obstacle, alternate sides, drift downstream and spread. A coarse
solver smears and slows what it carries; so do these, by how wide the mesh's cells are. That makes coarse
"solutions" that interpolation alone cannot mend, and a network can.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay

from parbake.producers import MeshSeries

Reals = NDArray[np.float64]

SPACING_M = {"coarse": 0.16, "medium": 0.085, "fine": 0.045, "finest": 0.025}  # between nodes
_LENGTH_M, _HEIGHT_M = 4.0, 1.6
_CENTRE_M, _RADIUS_M = np.array([0.8, 0.8]), 0.2
_TIMES_S = np.arange(40) / 40
_SHED_EVERY_S = 0.16  # of one sign and the other in turn: a period is twice that
_SPEED_M_S = 3.0
_CIRCULATION_M2_S = 1.5
_HOT_K = 10.0


def generated(resolution: str) -> MeshSeries:
    """The flow on one of the meshes of SPACING_M: velocity vx, vy and temperature T at 40 steps."""
    spacing_m = SPACING_M[resolution]
    points = _nodes(spacing_m)
    vx, vy, hot = np.moveaxis(np.stack([_state(points, t, spacing_m) for t in _TIMES_S]), 2, 0)
    fields = {"vx": vx, "vy": vy, "T": 300 + hot}
    return MeshSeries.from_arrays(
        points,
        _TIMES_S,
        {name: values.astype(np.float32) for name, values in fields.items()},
        cells=_triangles(points),
        units={"vx": "m/s", "vy": "m/s", "T": "K"},
    )


def _state(points: Reals, time_s: float, spacing_m: float) -> Reals:
    """vx, vy and temperature above the surroundings, [node, 3]."""
    from_centre = points - _CENTRE_M
    angle = np.arctan2(from_centre[:, 1], from_centre[:, 0])
    inwards = (_RADIUS_M / np.linalg.norm(from_centre, axis=1)) ** 2
    # potential flow round a cylinder: Batchelor, "An Introduction to Fluid Dynamics", section 6.6
    vx = _SPEED_M_S * (1 - inwards * np.cos(2 * angle))
    vy = -_SPEED_M_S * inwards * np.sin(2 * angle)
    hot = np.zeros(len(points))
    speed = 0.7 * _SPEED_M_S * (1 - 0.4 * spacing_m)  # a coarse solver's waves lag
    smear_m2 = (0.5 * spacing_m) ** 2
    first = int(np.ceil((time_s - _LENGTH_M / speed) / _SHED_EVERY_S)) - 1
    for number in range(first, int(np.floor(time_s / _SHED_EVERY_S)) + 1):
        age_s = time_s - number * _SHED_EVERY_S
        side = 1 if number % 2 else -1
        place = _CENTRE_M + np.array([_RADIUS_M + speed * age_s, side * 0.6 * _RADIUS_M])
        core_m2 = 0.09**2 + 0.004 * age_s + smear_m2
        away = points - place
        squared = (away**2).sum(axis=1)
        grown = 1 - np.exp(-age_s / 0.1)
        # Lamb-Oseen: solid rotation within the core, potential flow outside
        turning = -np.expm1(-squared / core_m2) / np.maximum(squared, 1e-12)
        turning *= side * -grown * _CIRCULATION_M2_S / (2 * np.pi)
        vx = vx - turning * away[:, 1]
        vy = vy + turning * away[:, 0]
        hot += _HOT_K * grown * 0.09**2 / core_m2 * np.exp(-squared / core_m2)
    return np.stack([vx, vy, hot], axis=1)


def _nodes(spacing_m: float) -> Reals:
    """Nodes in rows, each second row shifted, with the walls and the obstacle as lines of nodes."""
    columns, rows = round(_LENGTH_M / spacing_m), round(_HEIGHT_M / (0.87 * spacing_m))
    x, y = np.linspace(0, _LENGTH_M, columns + 1), np.linspace(0, _HEIGHT_M, rows + 1)
    grid = np.stack(np.meshgrid(x, y), axis=2)
    grid[1:-1:2, 1:-1, 0] += 0.5 * _LENGTH_M / columns
    inside = grid.reshape(-1, 2)
    inside = inside[np.linalg.norm(inside - _CENTRE_M, axis=1) > _RADIUS_M + 0.6 * spacing_m]
    return np.concatenate([_obstacle(spacing_m), inside])


def _obstacle(spacing_m: float) -> Reals:
    angles = np.linspace(0, 2 * np.pi, max(12, round(2 * np.pi * _RADIUS_M / spacing_m)), endpoint=False)
    return _CENTRE_M + _RADIUS_M * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _triangles(points: Reals) -> NDArray[np.int64]:
    """Delaunay's, without those in the obstacle and slivers along the walls, [triangle, 3]."""
    found: NDArray[np.int64] = Delaunay(points).simplices.astype(np.int64)
    a, b, c = (points[found[:, corner]] for corner in range(3))
    area = np.abs(_cross(b - a, c - a)) / 2
    in_obstacle = np.linalg.norm((a + b + c) / 3 - _CENTRE_M, axis=1) < 0.99 * _RADIUS_M
    kept: NDArray[np.int64] = found[~in_obstacle & (area > 1e-9)]
    return kept


def _cross(a: Reals, b: Reals) -> Reals:
    return np.asarray(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])


def resolutions() -> Sequence[str]:
    """Names of the meshes, the coarsest first."""
    return tuple(SPACING_M)
