"""Meshes of every kind of cell for tests and benchmarks: a box, warped, and a ring with a hole."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

KINDS = ("triangle", "quad", "tetra", "hexahedron", "wedge")


def box_cells(kind: str, steps: tuple[int, ...]) -> NDArray[np.int64]:
    """Cells of one kind between the nodes of a grid of ``steps`` intervals an axis, the last fastest."""
    shape = tuple(step + 1 for step in steps)
    number = np.arange(np.prod(shape)).reshape(shape)

    def at(*offset: int) -> NDArray[np.int64]:
        return number[tuple(slice(o, o + n) for o, n in zip(offset, steps, strict=True))].ravel()

    square = [(0, 0), (1, 0), (1, 1), (0, 1)]
    prism = {"wedge": ([0, 1, 2], [0, 2, 3]), "hexahedron": ([0, 1, 2, 3],)}
    if kind == "quad":
        listed = [[at(*corner) for corner in square]]
    elif kind == "triangle":
        listed = [[at(*square[i]) for i in part] for part in ([0, 1, 2], [0, 2, 3])]
    elif kind == "tetra":  # Kuhn's six paths along the axes from one corner to the opposite one
        paths = [
            np.cumsum([[0, 0, 0], *np.eye(3, dtype=int)[list(p)]], axis=0) for p in permutations(range(3))
        ]
        listed = [[at(*corner) for corner in path] for path in paths]
    else:
        listed = [[at(*square[i], z) for z in (0, 1) for i in part] for part in prism[kind]]
    return np.concatenate([np.stack(corners, axis=1) for corners in listed])


def box(
    kind: str, steps: int = 4, warp: float = 0.0
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
    """Points and cells of the unit square or cube; ``warp`` bends it, so that no cell is a parallelogram."""
    dim = 2 if kind in ("triangle", "quad") else 3
    axes = np.meshgrid(*[np.linspace(0, 1, steps + 1)] * dim, indexing="ij")
    return warped(np.stack([axis.ravel() for axis in axes], axis=1), warp), {
        kind: box_cells(kind, (steps,) * dim)
    }


def warped(points: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    turned = np.roll(points, 1, axis=1)
    return points + by * np.sin(3 * turned + points) * np.cos(2 * points.sum(axis=1, keepdims=True))


def ring(
    around: int, across: int, kind: str = "triangle", inner: float = 0.3
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
    """A ring of radius 1 around a hole of radius ``inner``, its seam closed."""
    angle = np.linspace(0, 2 * np.pi, around + 1)[:-1]
    radius = np.linspace(inner, 1, across + 1)
    angles, radii = np.meshgrid(angle, radius, indexing="ij")
    points = np.stack([(radii * np.cos(angles)).ravel(), (radii * np.sin(angles)).ravel()], axis=1)
    cells = box_cells(kind, (around, across))
    return points, {kind: cells % len(points)}  # the last row of nodes is the first again
