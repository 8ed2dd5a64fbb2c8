"""LSTM and GRU amp models, whatever file they came from, and the torch module that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from parbake.producers.audio.torch_settings import teacher_settings

if TYPE_CHECKING:
    import torch

_BLOCK_STEPS = 128  # time steps a call into torch; its gates are 10 MB for 40 units and 64 rows
GATES = {"LSTM": 4, "GRU": 3}


@dataclass(frozen=True, eq=False)
class RecurrentModel:
    """LSTM or GRU layers and a linear layer after them.

    ``weights``: float64, by torch's names with "rec." before those of the recurrent layers and "lin."
    before those of the linear one. ``skip``: the input is added to the output. ``linear_bias``: the
    linear layer has one; the recurrent layers always do. ``initial``: hidden and cell state at the
    start of each call, [num_layers, hidden_size] each; None: zero.
    """

    unit_type: Literal["LSTM", "GRU"]
    hidden_size: int
    num_layers: int
    skip: bool
    linear_bias: bool
    weights: Mapping[str, NDArray[np.float64]]
    initial: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    sha256: str
    sample_rate: float | None

    @property
    def kind(self) -> str:
        layers = f"{self.num_layers} x " if self.num_layers > 1 else ""
        return f"{self.unit_type} {layers}{self.hidden_size}"

    def module(self, dtype: str, device: str) -> torch.nn.Module:
        """See AmpModel."""
        return _recurrent_module(self, dtype, device)


def weight_shapes(gates: int, hidden: int, layers: int, linear_bias: bool) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by torch's names (torch.nn.LSTM, section "Variables")."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        shapes[f"rec.weight_ih_l{layer}"] = (gates * hidden, hidden if layer else 1)
        shapes[f"rec.weight_hh_l{layer}"] = (gates * hidden, hidden)
        shapes[f"rec.bias_ih_l{layer}"] = (gates * hidden,)
        shapes[f"rec.bias_hh_l{layer}"] = (gates * hidden,)
    shapes["lin.weight"] = (1, hidden)
    if linear_bias:
        shapes["lin.bias"] = (1,)
    return shapes


def _recurrent_module(model: RecurrentModel, dtype: str, device: str) -> torch.nn.Module:
    import torch

    layer_class = torch.nn.LSTM if model.unit_type == "LSTM" else torch.nn.GRU
    kind = getattr(torch, dtype)

    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # made without memory: filling it would draw from the caller's random state
            self.rec = layer_class(
                1, model.hidden_size, model.num_layers, batch_first=True, device="meta", dtype=kind
            )
            self.lin = torch.nn.Linear(
                model.hidden_size, 1, bias=model.linear_bias, device="meta", dtype=kind
            )
            for number, start in enumerate(model.initial or ()):
                self.register_buffer(f"initial{number}", torch.from_numpy(start).to(device, kind))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with teacher_settings(x.is_cuda):
                y = torch.empty_like(x)
                state = self.start(x.shape[0])
                # a call over all of x would hold every gate of every step at once, gigabytes for long tones
                for start in range(0, x.shape[1], _BLOCK_STEPS):
                    block = x[:, start : start + _BLOCK_STEPS]
                    hidden, state = self.rec(block, state)
                    out = self.lin(hidden)
                    y[:, start : start + _BLOCK_STEPS] = out + block if model.skip else out
                return y

        def start(self, rows: int) -> tuple[torch.Tensor, ...] | None:
            if model.initial is None:
                return None  # zero
            states = (self.get_buffer(f"initial{number}") for number in range(2))
            return tuple(state[:, None].repeat(1, rows, 1) for state in states)

    module = Recurrent()
    tensors = {name: torch.from_numpy(w).to(device, kind) for name, w in model.weights.items()}
    module.load_state_dict(tensors | dict(module.named_buffers()), assign=True)
    if device.startswith("cuda"):
        module.rec.flatten_parameters()
    return module.eval().requires_grad_(False)
