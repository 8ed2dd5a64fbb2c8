"""Students: trainable float32 copies of the amp models that teach, and the files that they are saved to.

Every student is called as ``y, state = student(x, state)``: x and y [tone, step, 1], of equal length. The
state is what the next call needs of the steps before (None: the tone begins); pass it on after
``detached(state)`` and a long tone trains in short windows (truncated back-propagation through time).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parbake.producers.audio.amp_models import load_amp_model
from parbake.producers.audio.recurrent import RecurrentModel
from parbake.producers.audio.wavenet import Layer, LayerArray, WaveNetModel

State = tuple[Tensor, ...]

_BLOCK_STEPS = 4096  # at once, without gradients: megabytes

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

    def settled(self, x: Tensor) -> State:
        """The state after ``x`` from a tone's beginning, without gradients."""
        state: State | None = None
        with torch.no_grad():
            for block in torch.split(x, _BLOCK_STEPS, dim=1):
                _, state = self(block, state)
        assert state is not None  # x has steps
        return state

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
    """The Neural Amp Modeler's WaveNet. Its state: the input that it looks back on.

    It runs over that input in every call again, so gradients are whole: cut off at a window's beginning,
    they lack what the long dilations bring, and a student that is taught with them drifts.
    """

    def __init__(self, model: WaveNetModel) -> None:
        super().__init__()
        self.kind, self.head_scale = model.kind, model.head_scale
        self.arrays = nn.ModuleList(_Array(array) for array in model.arrays)
        self.past_steps = sum(layer.past_steps for array in model.arrays for layer in array.layers)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        window = self._window(x, state)
        # [1, columns], as the teacher's: a column is one tone at one time, tones next to each other
        columns = window[:, :, 0].t().reshape(1, -1)
        y, head = columns, None
        for array in self.arrays:
            head, y = array(y, columns, head, len(x))
        assert head is not None  # a model has arrays
        return (head * self.head_scale).view(-1, len(x)).t()[:, :, None], self._tail(window)

    def settled(self, x: Tensor) -> State:
        return self._tail(self._window(x, None))

    def _window(self, x: Tensor, state: State | None) -> Tensor:
        """x behind what came before it; before a tone begins the input was zero for ever."""
        past = x.new_zeros(len(x), self.past_steps, 1) if state is None else state[0]
        return torch.cat((past, x), dim=1)

    def _tail(self, window: Tensor) -> State:
        return (window[:, window.shape[1] - self.past_steps :],)

    def file_of(self, teacher: dict[str, Any]) -> dict[str, Any]:
        parts: list[Tensor] = []
        for array, config in zip(self.arrays, teacher["config"]["layers"], strict=True):
            assert isinstance(array, _Array)
            parts += [array.rechannel, *array.residuals.parameters(), array.head]
            parts += [array.head_bias] if config["head_bias"] else []
        return teacher | {"weights": [*_flat(parts), self.head_scale]}


class _Array(nn.Module):
    def __init__(self, array: LayerArray) -> None:
        super().__init__()
        self.rechannel = _weight(array.rechannel)
        self.residuals = nn.ModuleList(
            _Residual(layer, array.activation, array.gated) for layer in array.layers
        )
        self.head, self.head_bias = _weight(array.head), _weight(array.head_bias)
        # zero where the file has none: then it has no place for one either
        self.head_bias.requires_grad_(bool(np.any(array.head_bias)))

    def forward(self, y: Tensor, x: Tensor, head: Tensor | None, tones: int) -> tuple[Tensor, Tensor]:
        """To the next array's head, and to its layers; both begin later than y [channel, column]."""
        y = self.rechannel @ y
        for residual in self.residuals:
            term, y = residual(y, x, tones)
            head = term if head is None else head[:, -term.shape[1] :] + term
        assert head is not None  # an array has layers
        return torch.addmm(self.head_bias[:, None], self.head, head), y


class _Residual(nn.Module):
    def __init__(self, layer: Layer, activation: str, gated: bool) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.gated, self.dilation, self.past_steps = gated, layer.dilation, layer.past_steps
        # in the order of the file
        self.conv, self.conv_bias = _weight(layer.conv), _weight(layer.conv_bias)
        self.mixin = _weight(layer.mixin)
        self.out, self.out_bias = _weight(layer.out), _weight(layer.out_bias)

    def forward(self, y: Tensor, x: Tensor, tones: int) -> tuple[Tensor, Tensor]:
        """What goes to the head, and to the next layer: both begin ``past_steps`` later than y."""
        columns = y.shape[1] - self.past_steps * tones
        z = torch.addmm(self.conv_bias[:, None], self.mixin, x[:, -columns:])
        for number in range(self.conv.shape[2]):
            first = number * self.dilation * tones
            z = torch.addmm(z, self.conv[:, :, number], y[:, first : first + columns])
        if self.gated:
            a, gate = z.chunk(2)
            a = self.activation(a) * torch.sigmoid(gate)
        else:
            a = self.activation(z)
        return a, torch.addmm(self.out_bias[:, None], self.out, a) + y[:, -columns:]


def _flat(parts: list[Tensor]) -> list[float]:
    return torch.cat([part.detach().cpu().flatten() for part in parts]).tolist()
