"""Two networks that correct an interpolated field: one sees a node at a time, the other its neighbours too.

Both take the interpolated values [batch, node, channel], normalised, and give what is to be added to them,
in the same shape. Mesh and positions belong to the network: it is trained for one target mesh.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# of each kind of cell, the pairs of corners that an edge joins
_EDGES = {
    "triangle": ((0, 1), (1, 2), (2, 0)),
    "quad": ((0, 1), (1, 2), (2, 3), (3, 0)),
    "tetra": ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)),
    "wedge": ((0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3), (0, 3), (1, 4), (2, 5)),
    "hexahedron": tuple((i, i ^ bit) for bit in (1, 2, 4) for i in range(8) if not i & bit),
}
_VTK_HEXAHEDRON = (0, 1, 3, 2, 4, 5, 7, 6)  # VTK goes round each face; bits count corners along the axes


class MLP(nn.Module):
    """The same small network at every node: its values and its place."""

    places: Tensor

    def __init__(self, points: NDArray[np.float64], channels: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.register_buffer("places", place_features(points))
        inner = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.SiLU())]
        first = nn.Linear(channels + self.places.shape[1], width)
        self.layers = nn.Sequential(first, nn.SiLU(), *inner, silent(nn.Linear(width, channels)))

    def forward(self, values: Tensor) -> Tensor:
        places = self.places.expand(len(values), -1, -1)
        corrected: Tensor = self.layers(torch.cat([values, places], dim=2))
        return corrected


class MessagePassing(nn.Module):
    """Encode, pass messages along the mesh's edges ``layers`` times, decode.

    A message reaches as many edges far as there are layers. What the flow as a whole is doing - the phase of
    a vortex street - a node learns from the mean over all nodes, which each layer hands out.
    """

    places: Tensor
    edge_features: Tensor

    def __init__(
        self,
        points: NDArray[np.float64],
        cells: Mapping[str, NDArray[np.int64]],
        channels: int,
        *,
        width: int,
        layers: int,
    ) -> None:
        super().__init__()
        edges = edges_of(cells)
        self.register_buffer("places", place_features(points))
        self.register_buffer("edge_features", _edge_features(points, edges))
        self.encode = nn.Linear(channels + self.places.shape[1], width)
        self.layers = nn.ModuleList(
            _Layer(width, self.edge_features.shape[1], torch.from_numpy(edges), len(points))
            for _ in range(layers)
        )
        self.decode = nn.Sequential(nn.SiLU(), silent(nn.Linear(width, channels)))

    def forward(self, values: Tensor) -> Tensor:
        places = self.places.expand(len(values), -1, -1)
        # nodes first: gathering and adding up along the edges then moves whole rows [batch x width]
        state = self.encode(torch.cat([values, places], dim=2)).transpose(0, 1).contiguous()
        for layer in self.layers:
            state = state + layer(state, self.edge_features)
        decoded: Tensor = self.decode(state)
        return decoded.transpose(0, 1)


class _Layer(nn.Module):
    """The change of every node's state [node, batch, width] by the mean of its neighbours' messages."""

    edges: Tensor
    share: Tensor

    def __init__(self, width: int, edge_features: int, edges: Tensor, nodes: int) -> None:
        super().__init__()
        self.register_buffer("edges", edges, persistent=False)
        neighbours = torch.bincount(edges[1], minlength=nodes).clamp(min=1)
        self.register_buffer("share", (1 / neighbours)[:, None, None], persistent=False)
        self.norm = nn.LayerNorm(width)
        self.sent, self.received = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.along = nn.Linear(edge_features, width, bias=False)
        self.kept, self.gathered = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.overall = nn.Linear(width, width, bias=False)
        self.out = silent(nn.Linear(width, width))

    def forward(self, state: Tensor, edge_features: Tensor) -> Tensor:
        state = self.norm(state)
        source, target = self.edges
        # linear maps at the nodes, of which there are fewer than edges
        messages = self.sent(state)[source] + self.received(state)[target]
        messages = nn.functional.silu(messages + self.along(edge_features)[:, None])
        arrived = torch.zeros_like(state).index_add_(0, target, messages) * self.share
        overall = self.overall(state.mean(dim=0, keepdim=True))
        changed: Tensor = self.out(nn.functional.silu(self.kept(state) + self.gathered(arrived) + overall))
        return changed


def silent(last: nn.Linear) -> nn.Linear:
    """``last`` with an output of zero: an untrained network changes nothing."""
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return last


def place_features(points: NDArray[np.float64], octaves: int = 4) -> Tensor:
    """Position [node, dim] and waves of it, ever shorter ones, float32 [node, dim + 2 dim octaves]."""
    extent = np.ptp(points, axis=0).max()
    placed = 2 * (points - points.min(axis=0)) / extent - 1  # along the longest side from -1 to 1
    waves = [np.pi * 2.0**octave * placed for octave in range(octaves)]
    features = [placed, *(wave(w) for w in waves for wave in (np.sin, np.cos))]
    return torch.from_numpy(np.concatenate(features, axis=1).astype(np.float32))


def edges_of(cells: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Every edge of the cells once in each direction, [2, edge]: from, to. VTK's order of corners."""
    pairs = []
    for kind, corners in cells.items():
        ordered = corners[:, _VTK_HEXAHEDRON] if kind == "hexahedron" else corners
        pairs += [ordered[:, pair] for pair in _EDGES[kind]]
    one_way = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
    return np.ascontiguousarray(np.concatenate([one_way, one_way[:, ::-1]]).T)


def _edge_features(points: NDArray[np.float64], edges: NDArray[np.int64]) -> Tensor:
    """Direction and length of each edge in mean lengths, float32 [edge, dim + 1]."""
    along = points[edges[1]] - points[edges[0]]
    length = np.linalg.norm(along, axis=1, keepdims=True)
    return torch.from_numpy((np.concatenate([along, length], axis=1) / length.mean()).astype(np.float32))
