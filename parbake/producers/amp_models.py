"""Reads trained amp models from their files, and makes torch modules of them when they are to run.

A file is parsed and checked in full without torch, so that a wrong one is refused at once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from parbake.errors import TeacherFileError

if TYPE_CHECKING:
    import torch

_FILE_NBYTES_MAX = 256 * 1024**2  # models of this kind are below 10 MB; a data set given by mistake is not
_BLOCK_STEPS = 128  # time steps a call into torch; its gates are 10 MB for 40 units and 64 rows
_GATES = {"LSTM": 4, "GRU": 3}


class AmpModel(Protocol):
    """A model file that was read and found complete.

    ``kind``: for people, such as "LSTM 40". ``sha256``: of the file's bytes. ``sample_rate``: the one
    that the file says it was made for (Hz), None where it says nothing.
    """

    @property
    def kind(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def sample_rate(self) -> float | None: ...
    def module(self, dtype: str, device: str) -> torch.nn.Module:
        """A torch module in ``dtype`` ("float64" or "float32") on ``device``, in eval mode.

        forward(x [batch, time, 1]) -> y of the same shape; state is zero at the start of each call.
        """
        ...


def load_amp_model(path: Path) -> AmpModel:
    """The model in the file at ``path``. Does not import torch.

    Kinds: LSTM and GRU in the JSON of Proteus and GuitarML. Raises TeacherFileError for a file that is
    absent, of another kind, or whose weights are missing, misshapen or not finite.
    """
    content = _content(path)
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
        raise TeacherFileError(f"{path}: not JSON ({_first_words(error)}); {_WANTED}") from None
    if not isinstance(parsed, dict):
        raise TeacherFileError(f"{path}: not a model but a JSON {type(parsed).__name__}; {_WANTED}")
    for keys, read in _READERS.items():
        if keys <= parsed.keys():
            return read(path, parsed, hashlib.sha256(content).hexdigest())
    names = ", ".join(map(_shown, list(parsed)[:5])) or "nothing"
    raise TeacherFileError(f"{path}: not a model file of a known kind (it holds {names}); {_WANTED}")


@functools.lru_cache(maxsize=4)
def amp_module(path: Path, sha256: str, dtype: str, device: str) -> torch.nn.Module:
    """The module of the model at ``path``, made once in a process.

    Raises TeacherFileError where the file's content is no longer ``sha256``: what is baked must have
    come from the weights that the keys name.
    """
    model = load_amp_model(path)
    if model.sha256 != sha256:
        raise TeacherFileError(
            f"{path}: changed since the producer was made ({sha256[:12]} -> {model.sha256[:12]}); "
            "make the producer again"
        )
    return model.module(dtype, device)


_WANTED = "give an LSTM or GRU model in Proteus/GuitarML JSON (model_data, state_dict)"


def _content(path: Path) -> bytes:
    try:
        if (nbytes := path.stat().st_size) > _FILE_NBYTES_MAX:
            raise TeacherFileError(f"{path}: {nbytes:,} bytes are too many for a model file; {_WANTED}")
        return path.read_bytes()
    except FileNotFoundError:
        raise TeacherFileError(f"{path}: no such teacher file") from None
    except OSError as error:
        raise TeacherFileError(f"{path}: the teacher file cannot be read: {error.strerror}") from None


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:80]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- NAM


def _read_nam(path: Path, parsed: Mapping[str, Any], sha256: str) -> AmpModel:
    architecture = _shown(parsed["architecture"])
    raise TeacherFileError(
        f"{path}: a NAM file of architecture {architecture}, which is not supported yet; {_WANTED}"
    )


# ---- Proteus, GuitarML


@dataclass(frozen=True, eq=False)
class RecurrentModel:
    """LSTM or GRU layers and a linear layer after them: SimpleRNN of GuitarML's training code.

    ``weights``: float64 by the names of its state_dict. ``skip``: the input is added to the output.
    ``linear_bias``: the linear layer has one; the recurrent layers always do ("bias_fl" in the file
    means the linear layer alone).
    """

    unit_type: Literal["LSTM", "GRU"]
    hidden_size: int
    num_layers: int
    skip: bool
    linear_bias: bool
    weights: Mapping[str, NDArray[np.float64]]
    sha256: str
    sample_rate: float | None

    @property
    def kind(self) -> str:
        layers = f"{self.num_layers} x " if self.num_layers > 1 else ""
        return f"{self.unit_type} {layers}{self.hidden_size}"

    def module(self, dtype: str, device: str) -> torch.nn.Module:
        """See AmpModel."""
        return _recurrent_module(self, dtype, device)


def _read_proteus(path: Path, parsed: Mapping[str, Any], sha256: str) -> AmpModel:
    settings, state = parsed["model_data"], parsed["state_dict"]
    if not isinstance(settings, dict) or not isinstance(state, dict):
        raise TeacherFileError(f"{path}: model_data and state_dict are not tables of names; {_WANTED}")
    if (model := settings.get("model")) != "SimpleRNN":
        raise TeacherFileError(f"{path}: model_data.model: {_shown(model)} is not supported ('SimpleRNN' is)")
    unit_type = settings.get("unit_type")
    if not isinstance(unit_type, str) or unit_type not in _GATES:
        raise TeacherFileError(
            f"{path}: model_data.unit_type: {_shown(unit_type)} is not supported ('LSTM' and 'GRU' are)"
        )
    for name in ("input_size", "output_size"):
        if (size := settings.get(name, 1)) != 1:
            raise TeacherFileError(
                f"{path}: model_data.{name}: {_shown(size)} where 1 is needed (one channel, no knobs)"
            )
    hidden_size = _count(path, settings, "hidden_size", None)
    num_layers = _count(path, settings, "num_layers", 1)
    linear_bias = _flag(path, settings, "bias_fl", True)
    shapes = _shapes(_GATES[unit_type], hidden_size, num_layers, linear_bias)
    return RecurrentModel(
        unit_type=cast(Literal["LSTM", "GRU"], unit_type),
        hidden_size=hidden_size,
        num_layers=num_layers,
        skip=_flag(path, settings, "skip", True),
        linear_bias=linear_bias,
        weights=_weights(path, state, shapes),
        sha256=sha256,
        sample_rate=_sample_rate(path, parsed, settings),
    )


def _count(path: Path, settings: Mapping[str, Any], name: str, default: int | None) -> int:
    count = settings.get(name, default)
    if type(count) is not int or not 1 <= count <= 4096:
        raise TeacherFileError(
            f"{path}: model_data.{name}: {_shown(count)} is not a whole number from 1 to 4096"
        )
    return count


def _flag(path: Path, settings: Mapping[str, Any], name: str, default: bool) -> bool:
    flag = settings.get(name, default)
    if flag not in (0, 1):
        raise TeacherFileError(f"{path}: model_data.{name}: {_shown(flag)} is neither 0 nor 1")
    return bool(flag)


def _sample_rate(path: Path, parsed: Mapping[str, Any], settings: Mapping[str, Any]) -> float | None:
    """The rate that some trainers write, at the top or into model_data, under one of two names."""
    places = [part.get(name) for part in (parsed, settings) for name in ("sample_rate", "samplerate")]
    rate = next((place for place in places if place is not None), None)
    if rate is None:
        return None
    if type(rate) not in (int, float) or not 0 < rate < math.inf:
        raise TeacherFileError(f"{path}: sample_rate: {_shown(rate)} is not a rate in Hz")
    return float(rate)


def _shapes(gates: int, hidden: int, layers: int, linear_bias: bool) -> dict[str, tuple[int, ...]]:
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


def _weights(
    path: Path, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float64]]:
    if missing := [name for name in shapes if name not in state]:
        raise TeacherFileError(f"{path}: state_dict lacks {_names(missing)}")
    if unknown := [name for name in state if name not in shapes]:  # then the model is not what we would run
        raise TeacherFileError(f"{path}: state_dict holds {_names(unknown)}, which model_data does not imply")
    weights: dict[str, NDArray[np.float64]] = {}
    for name, shape in shapes.items():
        try:
            array = np.array(state[name], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):  # ragged lists, text, integers beyond float64
            raise TeacherFileError(f"{path}: state_dict.{name}: not an array of numbers") from None
        if array.shape != shape:
            raise TeacherFileError(f"{path}: state_dict.{name}: shape {array.shape} where {shape} is needed")
        if bad := int(np.count_nonzero(~np.isfinite(array))):
            raise TeacherFileError(
                f"{path}: state_dict.{name}: {bad} of {array.size} values are NaN or infinite"
            )
        weights[name] = array
    return weights


def _names(names: list[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch's operations on the CPU.

    A step of a small recurrent layer is too short to share: two threads gain a third at best, and
    lose a factor of forty where another process wants the cores (pool workers do). More cores are
    better used by more processes.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not x.is_cuda:
                with _one_thread():
                    return self.run(x)
            # TensorFloat-32, cuDNN's default, would leave three digits of a float32 computation
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                return self.run(x)

        def run(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.empty_like(x)
            state = None  # zero
            # a call over all of x would hold every gate of every step at once, gigabytes for long tones
            for start in range(0, x.shape[1], _BLOCK_STEPS):
                block = x[:, start : start + _BLOCK_STEPS]
                hidden, state = self.rec(block, state)
                out = self.lin(hidden)
                y[:, start : start + _BLOCK_STEPS] = out + block if model.skip else out
            return y

    module = Recurrent()
    tensors = {name: torch.from_numpy(w).to(device, kind) for name, w in model.weights.items()}
    module.load_state_dict(tensors, assign=True)
    if device.startswith("cuda"):
        module.rec.flatten_parameters()
    return module.eval().requires_grad_(False)


_Reader = Callable[[Path, Mapping[str, Any], str], AmpModel]
# a file's kind shows in the names at its top, whatever its suffix
_READERS: Mapping[frozenset[str], _Reader] = {
    frozenset({"model_data", "state_dict"}): _read_proteus,
    frozenset({"architecture", "config", "weights"}): _read_nam,
}
