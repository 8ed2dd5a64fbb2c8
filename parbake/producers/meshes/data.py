"""What every reader of mesh results gives, whatever the file: one mesh, times, and nodal values by step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.errors import MeshError
from parbake.producers.meshes.geometry import Mesh

Values: TypeAlias = NDArray[np.floating[Any]]
Fill: TypeAlias = Callable[[Values, int, Sequence[str]], None]

DTYPES = ("<f4", "<f8")
_AXES = {2: "xy", 3: "xyz"}
_HASH_NBYTES = 32 * 1024**2  # of values held at once while they are hashed


@dataclass(frozen=True, eq=False)
class MeshData:
    """The content of one result, values read as they are asked for.

    ``times``: float64 [time], seconds, strictly increasing. ``dtypes``: "<f4" or "<f8" by channel, in the
    order of the file. ``units``: by channel, of those that have any. ``notices``: what was left out or
    converted, for people. ``fill(out, start, channels)`` writes the values of the steps from ``start`` on
    to ``out`` [step, node, channel].

    Raises MeshError for times that do not increase, and where there is nothing to read.
    """

    mesh: Mesh
    times: NDArray[np.float64]
    dtypes: Mapping[str, str]
    units: Mapping[str, str]
    notices: tuple[str, ...]
    fill: Fill

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", checked_times(self.times))
        if not self.dtypes:
            raise MeshError("no field has values at the nodes; give at least one")

    def read(self, start: int, stop: int, channels: Sequence[str]) -> Values:
        """Values [step, node, channel] of the steps ``start`` to ``stop``."""
        dtype = np.result_type(*(self.dtypes[channel] for channel in channels))
        out = np.empty((stop - start, len(self.mesh.points), len(channels)), dtype)
        self.fill(out, start, channels)
        return out


def channel_names(field: str, components: int | None) -> tuple[str, ...]:
    """The channels of a field: its own name for a scalar, U_x, U_y(, U_z) for a vector, else U_0, U_1, ..."""
    if components is None or components == 1:
        return (field,)
    return tuple(f"{field}_{axis}" for axis in _AXES.get(components, range(components)))


def checked_times(times: Any) -> NDArray[np.float64]:
    """``times`` as float64 [time]; raises MeshError unless finite and strictly increasing."""
    try:
        array = np.ascontiguousarray(times, dtype=np.float64)
    except (TypeError, ValueError):
        raise MeshError("times: not an array of numbers; give seconds [time]") from None
    if array.ndim != 1 or not len(array):
        raise MeshError(f"times: shape {array.shape}; give seconds [time], at least one")
    if not np.isfinite(array).all():
        raise MeshError(f"times: {array[~np.isfinite(array)][0]} at step {np.argmin(np.isfinite(array))}")
    if (late := np.flatnonzero(np.diff(array) <= 0)).size:
        step = int(late[0]) + 1
        raise MeshError(
            f"times: {array[step]:g} at step {step} follows {array[step - 1]:g}; they must increase strictly"
        )
    return array


def mesh_sha256(mesh: Mesh) -> str:
    """SHA-256 of points (float64) and cells (int64, by kind) with their shapes."""
    cells = {kind: nodes for kind, nodes in sorted(mesh.cells.items()) if len(nodes)}
    shapes = {kind: list(nodes.shape) for kind, nodes in cells.items()}
    head = json.dumps({"points": list(mesh.points.shape), "cells": shapes}, sort_keys=True)
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(mesh.points, "<f8").data)
    for nodes in cells.values():
        digest.update(np.ascontiguousarray(nodes, "<i8").data)
    return digest.hexdigest()


def channel_sha256(data: MeshData, channels: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each channel's values [time, node] in its own dtype, with shape; one pass of the steps."""
    if not channels:
        return {}
    steps, nodes = len(data.times), len(data.mesh.points)
    digests = {
        channel: hashlib.sha256(json.dumps([data.dtypes[channel], steps, nodes]).encode())
        for channel in channels
    }
    width = max(1, _HASH_NBYTES // (8 * nodes * len(channels)))
    for start in range(0, steps, width):
        values = data.read(start, min(steps, start + width), channels)
        for i, (channel, digest) in enumerate(digests.items()):
            digest.update(np.ascontiguousarray(values[..., i], data.dtypes[channel]).data)
    return {channel: digest.hexdigest() for channel, digest in digests.items()}
