"""A mesh: points and cells, checked when it is made. (Stands in for the module of this name.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from parbake.errors import MeshError

CORNERS: Mapping[str, int] = {"triangle": 3, "quad": 4, "tetra": 4, "hexahedron": 8, "wedge": 6}


@dataclass(frozen=True, eq=False)
class Mesh:
    """Points [node, dim] and cells by kind [cell, corner]; raises MeshError."""

    points: NDArray[np.float64]
    cells: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        points = np.ascontiguousarray(self.points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] not in (2, 3) or not len(points):
            raise MeshError(f"mesh points: shape {points.shape}; give points [node, 2] or [node, 3]")
        if not np.isfinite(points).all():
            raise MeshError("mesh points: NaN or infinite coordinates")
        for kind, nodes in self.cells.items():
            if kind not in CORNERS or nodes.shape[1] != CORNERS[kind]:
                raise MeshError(f"mesh cells: {kind} {nodes.shape}")
            if nodes.size and (nodes.min() < 0 or nodes.max() >= len(points)):
                raise MeshError(
                    f"mesh cells: {kind}: node {nodes.max()} where nodes are 0 to {len(points) - 1}"
                )
        solid = self.cells.keys() & {"tetra", "hexahedron", "wedge"}
        if points.shape[1] == 3 and not solid and np.ptp(points[:, 2]) <= 1e-9 * np.ptp(points, axis=0).max():
            notice = f"the third coordinate is {points[0, 2]:g} at all {len(points):,} nodes; dropped"
            object.__setattr__(self, "notices", (*self.notices, notice))
            points = np.ascontiguousarray(points[:, :2])
        object.__setattr__(self, "points", points)
