"""Students: trainable float32 copies of the amp models that teach, and the files that they are saved to.

Every student is called as ``y, state = student(x, state)``: x and y [tone, step, 1], of equal length. The
state is what the next call needs of the steps before (None: the tone begins); pass it on after
``detached(state)`` and a long tone trains in short windows (truncated back-propagation through time).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parbake.producers.audio.amp_models import load_amp_model
from parbake.producers.audio.recurrent import RecurrentModel
from parbake.producers.audio.wavenet import Layer, LayerArray, WaveNetModel

State = tuple[Tensor, ...]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Tanh": torch.tanh,
    "Hardtanh": nn.functional.hardtanh,
    "ReLU": torch.relu,
    "LeakyReLU": nn.functional.leaky_relu,
    "Sigmoid": torch.sigmoid,
    "SiLU": nn.functional.silu,
    "Hardswish": nn.functional.hardswish,
}


class Student(nn.Module):
    """A network that takes a state and gives one back. ``kind`` is for people, such as "LSTM 40"."""

    kind: str

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        raise NotImplementedError

    def file_of(self, teacher: dict[str, Any]) -> dict[str, Any]:
        """The teacher's parsed file with this student's weights in place of its own."""
        raise NotImplementedError


def student_of(teacher: Path) -> Student:
    """The student that starts as the model in the file ``teacher``; raises TeacherFileError."""
    model = load_amp_model(teacher)
    if isinstance(model, RecurrentModel):
        return Recurrent(model)
    assert isinstance(model, WaveNetModel)
    return WaveNet(model)


def save_student(student: Student, teacher: Path, path: Path) -> None:
    """Writes a model file of the teacher's format, which can be a teacher (or a plug-in's model) itself."""
    path.write_text(json.dumps(student.file_of(json.loads(teacher.read_text()))))


def detached(state: State) -> State:
    """The state as numbers alone: gradients end there."""
    return tuple(part.detach() for part in state)


def _weight(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(array.astype(np.float32)))


class Recurrent(Student):
    """LSTM or GRU layers, a linear layer, and the input added where the model does so."""

    def __init__(self, model: RecurrentModel) -> None:
        super().__init__()
        self.kind, self.skip = model.kind, model.skip
        layers = nn.LSTM if model.unit_type == "LSTM" else nn.GRU
        self.rec = layers(1, model.hidden_size, model.num_layers, batch_first=True)
        self.lin = nn.Linear(model.hidden_size, 1, bias=model.linear_bias)
        self.load_state_dict({name: torch.from_numpy(w).float() for name, w in model.weights.items()})
        for number, start in enumerate(model.initial or ()):  # of a .nam file; it stays as it is
            self.register_buffer(f"initial{number}", torch.from_numpy(start).float(), persistent=False)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if state is None and hasattr(self, "initial0"):
            starts = (self.get_buffer(f"initial{number}") for number in range(2))
            state = tuple(start[:, None].repeat(1, len(x), 1) for start in starts)
        is_lstm = isinstance(self.rec, nn.LSTM)
        hidden, after = self.rec(x, state[0] if state is not None and not is_lstm else state)
        y = self.lin(hidden)
        return y + x if self.skip else y, after if is_lstm else (after,)

    def file_of(self, teacher: dict[str, Any]) -> dict[str, Any]:
        weights = {name: tensor.detach().cpu() for name, tensor in self.named_parameters()}
        if "state_dict" in teacher:  # Proteus
            return teacher | {"state_dict": {name: tensor.tolist() for name, tensor in weights.items()}}
        parts = []  # .nam: of each layer one matrix, the sum of torch's two biases, and the states
        for layer in range(self.rec.num_layers):
            parts.append(
                torch.cat([weights[f"rec.weight_ih_l{layer}"], weights[f"rec.weight_hh_l{layer}"]], 1)
            )
            parts.append(weights[f"rec.bias_ih_l{layer}"] + weights[f"rec.bias_hh_l{layer}"])
            parts += [self.get_buffer(f"initial{number}")[layer] for number in range(2)]
        return teacher | {"weights": _flat([*parts, weights["lin.weight"], weights["lin.bias"]])}


class WaveNet(Student):
    """The Neural Amp Modeler's WaveNet. Its state: what each layer's convolution looks back on."""

    def __init__(self, model: WaveNetModel) -> None:
        super().__init__()
        self.kind, self.head_scale = model.kind, model.head_scale
        self.arrays = nn.ModuleList(_Array(array) for array in model.arrays)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        condition = x.transpose(1, 2)
        if state is None:  # before its first step the input was zero for ever
            state = self._after(torch.zeros_like(condition[:, :, :1]), None)[1]
        y, after = self._after(condition, state)
        return y.transpose(1, 2), after

    def _after(self, condition: Tensor, state: State | None) -> tuple[Tensor, State]:
        pasts = iter(state) if state is not None else None
        y, head, after = condition, None, list[Tensor]()
        for array in self.arrays:
            head, y, seen = array(y, condition, head, pasts)
            after += seen
        assert head is not None  # a model has arrays
        return head * self.head_scale, tuple(after)

    def file_of(self, teacher: dict[str, Any]) -> dict[str, Any]:
        parts: list[Tensor] = []
        for array, config in zip(self.arrays, teacher["config"]["layers"], strict=True):
            weights = list(array.parameters())  # in the file's order: as _Array and _Residual make them
            parts += weights if config["head_bias"] else weights[:-1]
        return teacher | {"weights": [*_flat(parts), self.head_scale]}


class _Array(nn.Module):
    def __init__(self, array: LayerArray) -> None:
        super().__init__()
        self.rechannel = _conv(array.rechannel[:, :, None])
        self.residuals = nn.ModuleList(
            _Residual(layer, array.activation, array.gated) for layer in array.layers
        )
        self.head = _conv(array.head[:, :, None], array.head_bias)
        # zero where the file has none: then it has no place for one either
        if not np.any(array.head_bias):
            self.head.requires_grad_(False).weight.requires_grad_(True)

    def forward(
        self, y: Tensor, condition: Tensor, head: Tensor | None, pasts: Iterator[Tensor] | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What goes to the next array's head, to its layers, and the pasts of the next call."""
        y, after = self.rechannel(y), []
        for residual in self.residuals:
            term, y, past = residual(y, condition, next(pasts) if pasts else None)
            head = term if head is None else head + term
            after.append(past)
        return self.head(head), y, after


class _Residual(nn.Module):
    def __init__(self, layer: Layer, activation: str, gated: bool) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.gated, self.past_steps = gated, layer.past_steps
        self.conv = _conv(layer.conv, layer.conv_bias, layer.dilation)
        self.mixin = _conv(layer.mixin[:, :, None])
        self.out = _conv(layer.out[:, :, None], layer.out_bias)

    def forward(self, y: Tensor, condition: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What goes to the head, what goes to the next layer, and the past of the next call."""
        if past is None:
            past = y[:, :, :1].expand(-1, -1, self.past_steps)
        window = torch.cat((past, y), dim=2)
        z = self.conv(window) + self.mixin(condition)
        if self.gated:
            a, gate = z.chunk(2, dim=1)
            a = self.activation(a) * torch.sigmoid(gate)
        else:
            a = self.activation(z)
        return a, self.out(a) + y, window[:, :, window.shape[2] - self.past_steps :]


def _conv(weight: np.ndarray, bias: np.ndarray | None = None, dilation: int = 1) -> nn.Conv1d:
    outputs, inputs, kernel = weight.shape
    made = nn.Conv1d(inputs, outputs, kernel, dilation=dilation, bias=bias is not None)
    made.weight = _weight(weight)
    if bias is not None:
        made.bias = _weight(bias)
    return made


def _flat(parts: list[Tensor]) -> list[float]:
    return torch.cat([part.detach().cpu().flatten() for part in parts]).tolist()
