"""Weights from the closest nodes alone: nearest, inverse distances, local thin-plate splines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parbake.errors import MeshError
from parbake.producers.meshes.locate import COINCIDENT, Rows

Reals = NDArray[np.float64]
Indices = NDArray[np.int64]

IDW_NEIGHBOURS = 8
IDW_POWER = 2
RBF_NEIGHBOURS = 20

_SYSTEMS_AT_ONCE = 4096
_SPANNING = 1e-6  # error in a target's place as its weights give it, in distances to its last neighbour


def nearest_rows(at: Reals, nodes: Reals) -> Rows:
    """Weight 1 for the closest of ``nodes`` [node, dim] to each target ``at`` [target, dim]."""
    _, node = _closest(at, nodes, 1)
    return Rows(np.arange(len(at)), node[:, 0], np.ones(len(at)))


def idw_rows(at: Reals, nodes: Reals) -> Rows:
    """Weights by 1 / distance ** IDW_POWER of the IDW_NEIGHBOURS closest nodes; 1 at a node itself."""
    apart, node = _closest(at, nodes, min(IDW_NEIGHBOURS, len(nodes)))
    on_node = apart[:, 0] <= _coincident(nodes)
    apart[on_node] = [0, *[1] * (apart.shape[1] - 1)]  # any: replaced below
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = (apart[:, :1] / apart) ** IDW_POWER
    weights /= weights.sum(axis=1, keepdims=True)
    return _rows(node, _alone(weights, on_node))


def rbf_rows(at: Reals, nodes: Reals) -> Rows:
    """Weights of thin-plate splines with a linear part, through the RBF_NEIGHBOURS nodes closest to a target.

    The same function as SciPy's ``RBFInterpolator(neighbors=RBF_NEIGHBOURS, kernel="thin_plate_spline",
    degree=1)``. Its value is b A^-1 (f, 0), where A holds the kernel between the neighbours bordered by the
    linear terms, and b kernel and terms at the target; A is symmetric, so the weights are the first entries
    of A^-1 b, whatever f. Raises MeshError where a target's neighbours lie on one line or plane.
    """
    count = min(RBF_NEIGHBOURS, len(nodes))
    apart, node = _closest(at, nodes, count)
    weights = np.empty(apart.shape)
    for start in range(0, len(at), _SYSTEMS_AT_ONCE):
        part = slice(start, start + _SYSTEMS_AT_ONCE)
        # in distances to the farthest neighbour: the spline is the same, its system better conditioned
        local = (nodes[node[part]] - at[part, None]) / apart[part, -1, None, None]
        weights[part] = _spline_weights(local, first_target=start)
    return _rows(node, _alone(weights, apart[:, 0] <= _coincident(nodes)))


def _spline_weights(local: Reals, first_target: int) -> Reals:
    """Weights [target, neighbour] at the origin, of neighbours at ``local`` [target, neighbour, dim]."""
    targets, count, dim = local.shape
    system = np.zeros((targets, count + dim + 1, count + dim + 1))
    system[:, :count, :count] = _kernel(((local[:, :, None] - local[:, None]) ** 2).sum(axis=3))
    system[:, :count, count] = system[:, count, :count] = 1
    system[:, :count, count + 1 :] = local
    system[:, count + 1 :, :count] = np.swapaxes(local, 1, 2)
    right = np.zeros((targets, count + dim + 1, 1))
    right[:, :count, 0] = _kernel((local**2).sum(axis=2))
    right[:, count] = 1
    try:
        weights = np.linalg.solve(system, right)[:, :count, 0]
    except np.linalg.LinAlgError:
        weights = np.zeros((targets, count))
        for target in range(targets):  # one singular system refuses all: which one is it?
            try:
                weights[target] = np.linalg.solve(system[target], right[target])[:count, 0]
            except np.linalg.LinAlgError:
                weights[target] = np.nan
    error = np.abs(np.einsum("nk,nkd->nd", weights, local)).max(axis=1) + np.abs(weights.sum(axis=1) - 1)
    if not (error < _SPANNING).all():
        bad = first_target + int(np.argmin(error < _SPANNING))
        raise MeshError(
            f"target node {bad}: its {count} nearest source nodes do not span {dim} dimensions, so no spline "
            "goes through them; use method 'linear' or 'idw' on this mesh"
        )
    return weights


def _kernel(squares: Reals) -> Reals:
    """r^2 log r of squared distances."""
    positive = squares > 0
    return np.asarray(0.5 * squares * np.log(squares, where=positive, out=np.zeros_like(squares)))


def _closest(at: Reals, nodes: Reals, count: int) -> tuple[Reals, Indices]:
    """Distances and numbers [target, count] of the closest nodes, closest first."""
    from scipy.spatial import cKDTree

    apart, node = cKDTree(nodes).query(at, np.arange(1, count + 1))
    return apart, node.astype(np.int64)


def _coincident(nodes: Reals) -> float:
    return COINCIDENT * float(np.linalg.norm(np.ptp(nodes, axis=0)))


def _alone(weights: Reals, on_node: NDArray[np.bool_]) -> Reals:
    """``weights`` with 1 for the closest neighbour where a target is a node."""
    weights[on_node] = 0
    weights[on_node, 0] = 1
    return weights


def _rows(node: Indices, weights: Reals) -> Rows:
    return Rows(np.repeat(np.arange(len(node)), node.shape[1]), node.ravel(), weights.ravel())
