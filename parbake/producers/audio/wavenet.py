"""WaveNet of the Neural Amp Modeler, and the torch module that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parbake.producers.audio.torch_settings import teacher_settings

if TYPE_CHECKING:
    import torch

    _Pasts = Sequence[torch.Tensor | None]  # one for each layer of an array

ACTIVATIONS = ("Tanh", "Hardtanh", "ReLU", "LeakyReLU", "Sigmoid", "SiLU", "Hardswish")

# Measured: a block's numbers then stay in the second-level cache (16 channels of float64 are 1 MB), and
# calls into torch are long enough. Other sizes lost up to a fifth; more rows at once carry a longer past
# along for the same columns.
_GROUP_ROWS = 8
_BLOCK_COLUMNS = 8192  # rows x time steps


@dataclass(frozen=True, eq=False)
class Layer:
    """A dilated convolution, an activation, and a 1x1 convolution beside which the input goes on.

    Float64 weights: conv [mid, channels, kernel], conv_bias [mid], mixin [mid, 1], out
    [channels, channels], out_bias [channels]; mid is channels, or twice as many where it is gated.
    """

    dilation: int
    conv: NDArray[np.float64]
    conv_bias: NDArray[np.float64]
    mixin: NDArray[np.float64]
    out: NDArray[np.float64]
    out_bias: NDArray[np.float64]

    @property
    def past_steps(self) -> int:
        """How far back the convolution looks."""
        return int(self.conv.shape[2] - 1) * self.dilation


@dataclass(frozen=True, eq=False)
class LayerArray:
    """Layers of equal width. Float64 weights: rechannel [channels, inputs], head [head_size, channels].

    ``activation``: one of ACTIVATIONS. ``gated``: the second half of the convolution's channels, through
    a sigmoid, scales the first. ``head_bias``: [head_size], zeros where the file has none.
    """

    activation: str
    gated: bool
    rechannel: NDArray[np.float64]
    layers: tuple[Layer, ...]
    head: NDArray[np.float64]
    head_bias: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class WaveNetModel:
    """Arrays of layers; each hands the next its last layer's output and what its layers sent to the head.

    Formulas: wavenet.cpp of NeuralAmpModelerCore, and wavenet.py of neural-amp-modeler, up to 0.5.
    """

    arrays: tuple[LayerArray, ...]
    head_scale: float
    sha256: str
    sample_rate: float | None

    @property
    def kind(self) -> str:
        return "WaveNet " + "+".join(str(len(array.rechannel)) for array in self.arrays)

    def module(self, dtype: str, device: str) -> torch.nn.Module:
        """See AmpModel. No gradients: it is a teacher.

        Before its first sample the input is taken to have been zero for ever. That is what a player
        that warms its buffers up does, and what neural-amp-modeler computes when it puts as many zeros
        before the input as the model looks back. It is not the same as zeros in each layer's past,
        which biases would soon leave.
        """
        return _wavenet_module(self, dtype, device)


def _activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of that name, in place."""
    import torch
    from torch.nn import functional

    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "Tanh": torch.tanh_,
        "Hardtanh": functional.hardtanh_,
        "ReLU": torch.relu_,
        "LeakyReLU": functional.leaky_relu_,
        "Sigmoid": torch.sigmoid_,
        "SiLU": partial(functional.silu, inplace=True),
        "Hardswish": partial(functional.hardswish, inplace=True),
    }
    return functions[name]


def _wavenet_module(model: WaveNetModel, dtype: str, device: str) -> torch.nn.Module:
    """The module of ``model``.

    Its tensors are [channels, columns], a column being one row at one time, rows next to each other:
    so each tap of a dilated convolution is one matrix product over a shifted view. Measured against
    conv1d, on one thread: four times as fast in float64, five in float32.
    """
    import torch

    def weight(array: NDArray[np.float64]) -> torch.nn.Parameter:
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device, getattr(torch, dtype))
        return torch.nn.Parameter(tensor, requires_grad=False)

    class Residual(torch.nn.Module):
        def __init__(self, layer: Layer, activation: str, gated: bool) -> None:
            super().__init__()
            self.activation, self.gated = _activation(activation), gated
            self.dilation, self.past_steps = layer.dilation, layer.past_steps
            self.taps = torch.nn.ParameterList(map(weight, np.moveaxis(layer.conv, 2, 0)))
            self.conv_bias, self.mixin = weight(layer.conv_bias[:, None]), weight(layer.mixin)
            self.out, self.out_bias = weight(layer.out), weight(layer.out_bias[:, None])

        def forward(
            self, y: torch.Tensor, x: torch.Tensor, rows: int, past: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """What goes to the head, what goes to the next layer, and the past of the next block.

            y [channels, columns], x [1, columns], past [channels, past_steps, rows]; None: y's first step
            has been there for ever.
            """
            channels, steps = y.shape[0], y.shape[1] // rows
            now = y.view(channels, steps, rows)
            if past is None:
                past = now[:, :1].expand(-1, self.past_steps, -1)
            window = torch.cat((past, now), dim=1)
            z = torch.addmm(self.conv_bias, self.mixin, x)
            for number, tap in enumerate(self.taps):
                first = number * self.dilation
                z.addmm_(tap, window[:, first : first + steps].flatten(1))
            a = self.activation(z[:channels])
            if self.gated:
                a.mul_(z[channels:].sigmoid_())
            # a copy of the past: a view would keep the whole window
            return a, torch.addmm(self.out_bias, self.out, a).add_(y), window[:, steps:].clone()

    class Array(torch.nn.Module):
        def __init__(self, array: LayerArray) -> None:
            super().__init__()
            self.rechannel = weight(array.rechannel)
            self.residuals = torch.nn.ModuleList(
                Residual(layer, array.activation, array.gated) for layer in array.layers
            )
            self.head, self.head_bias = weight(array.head), weight(array.head_bias[:, None])

        def forward(
            self, y: torch.Tensor, x: torch.Tensor, head: torch.Tensor | None, rows: int, pasts: _Pasts
        ) -> tuple[torch.Tensor, torch.Tensor, _Pasts]:
            """What goes to the next array's head, to its layers, and the pasts of the next block."""
            y, after = self.rechannel @ y, []
            for residual, past in zip(self.residuals, pasts, strict=True):
                term, y, past = residual(y, x, rows, past)
                head = term if head is None else head.add_(term)
                after.append(past)
            assert head is not None  # an array has layers
            return torch.addmm(self.head_bias, self.head, head), y, after

    class WaveNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.arrays = torch.nn.ModuleList(map(Array, model.arrays))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.empty_like(x)
            with teacher_settings(x.is_cuda), torch.no_grad():
                for row in range(0, len(x), _GROUP_ROWS):
                    group = slice(row, row + _GROUP_ROWS)
                    self.run(x[group, :, 0], y[group, :, 0])
            return y

        def run(self, x: torch.Tensor, y: torch.Tensor) -> None:
            """Fills y [rows, time] block by block of time, so that memory does not grow with it."""
            rows = len(x)
            _, pasts = self.block(x.new_zeros(1, rows), rows, [[None] * len(a.layers) for a in model.arrays])
            steps = _BLOCK_COLUMNS // rows
            for start in range(0, x.shape[1], steps):
                block = slice(start, start + steps)
                out, pasts = self.block(x[:, block].t().reshape(1, -1), rows, pasts)
                y[:, block] = out.view(-1, rows).t()

        def block(
            self, x: torch.Tensor, rows: int, pasts: Sequence[_Pasts]
        ) -> tuple[torch.Tensor, Sequence[_Pasts]]:
            """For x [1, columns]: the output [1, columns], and the pasts of the next block."""
            y, head, after = x, None, []
            for array, past in zip(self.arrays, pasts, strict=True):
                head, y, past = array(y, x, head, rows, past)
                after.append(past)
            assert head is not None  # a model has arrays
            return head * model.head_scale, after

    return WaveNet().eval()
