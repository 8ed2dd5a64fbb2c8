"""Amp models: against a plain NumPy recurrence, and every fault of a file said in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amps import Array, inputs, run

from parbake.errors import TeacherFileError
from parbake.producers.audio.amp_models import amp_module, load_amp_model
from parbake.producers.audio.sine import DEFAULT_TEACHER


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def reference(file: Path, x: Array) -> Array:
    """Output for one input [time], by the equations in torch's documentation of LSTM and GRU."""
    parsed = json.loads(file.read_text())
    settings = parsed["model_data"]
    w = {name: np.array(values, dtype=np.float64) for name, values in parsed["state_dict"].items()}
    signal = x[:, None]
    for layer in range(settings["num_layers"]):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        step = lstm_layer if settings["unit_type"] == "LSTM" else gru_layer
        signal = step(signal, *(w[f"rec.{name}_l{layer}"] for name in names))
    y = signal @ w["lin.weight"][0] + (w["lin.bias"][0] if "lin.bias" in w else 0.0)
    return y + x if settings["skip"] else y


def lstm_layer(signal: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array) -> Array:
    h = c = np.zeros(w_hh.shape[1])
    out = []
    for x in signal:
        i, f, g, o = np.split(w_ih @ x + b_ih + w_hh @ h + b_hh, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.array(out)


def gru_layer(signal: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array) -> Array:
    h = np.zeros(w_hh.shape[1])
    out = []
    for x in signal:
        reset_x, update_x, new_x = np.split(w_ih @ x + b_ih, 3)
        reset_h, update_h, new_h = np.split(w_hh @ h + b_hh, 3)
        update = sigmoid(update_x + update_h)
        new = np.tanh(new_x + sigmoid(reset_x + reset_h) * new_h)
        h = (1 - update) * new + update * h
        out.append(h)
    return np.array(out)


def random_model(unit_type: str, layers: int = 1, hidden: int = 5, **settings: Any) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    gates = {"LSTM": 4, "GRU": 3}.get(unit_type, 1)
    state: dict[str, Any] = {}
    for layer in range(layers):
        state[f"rec.weight_ih_l{layer}"] = rng.normal(size=(gates * hidden, hidden if layer else 1)).tolist()
        state[f"rec.weight_hh_l{layer}"] = rng.normal(size=(gates * hidden, hidden)).tolist()
        state[f"rec.bias_ih_l{layer}"] = rng.normal(size=gates * hidden).tolist()
        state[f"rec.bias_hh_l{layer}"] = rng.normal(size=gates * hidden).tolist()
    state["lin.weight"] = rng.normal(size=(1, hidden)).tolist()
    if settings.get("bias_fl", True):
        state["lin.bias"] = rng.normal(size=1).tolist()
    data = {
        "model": "SimpleRNN",
        "input_size": 1,
        "output_size": 1,
        "unit_type": unit_type,
        "num_layers": layers,
        "hidden_size": hidden,
        "skip": 1,
        "bias_fl": True,
    }
    return {"model_data": data | settings, "state_dict": state}


def written(folder: Path, content: Mapping[str, Any]) -> Path:
    file = folder / "model.json"
    file.write_text(json.dumps(content))
    return file


# ---- values


@pytest.mark.parametrize("unit_type", ["LSTM", "GRU"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"skip": 0}, {"bias_fl": False}])
def test_output_equals_a_plain_recurrence(
    unit_type: str, layers: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    file = written(tmp_path, random_model(unit_type, layers, **settings))
    x = inputs(3, 301)  # not a multiple of the block
    y = run(file, x)
    assert y.shape == x.shape
    for row in range(len(x)):
        np.testing.assert_allclose(y[row], reference(file, x[row]), rtol=0, atol=1e-10)


def test_the_shipped_teacher_equals_a_plain_recurrence() -> None:
    x = inputs(2, 1000)
    np.testing.assert_allclose(
        run(DEFAULT_TEACHER, x)[1], reference(DEFAULT_TEACHER, x[1]), rtol=0, atol=1e-10
    )


def test_a_real_model_equals_a_plain_recurrence(broadcast_lstm: Path) -> None:
    model = load_amp_model(broadcast_lstm)
    assert (model.kind, model.sample_rate) == ("LSTM 40", None)
    x = inputs(2, 2000)
    np.testing.assert_allclose(run(broadcast_lstm, x)[1], reference(broadcast_lstm, x[1]), rtol=0, atol=1e-10)


def test_state_is_zero_at_the_start_of_each_call(tmp_path: Path) -> None:
    module = load_amp_model(written(tmp_path, random_model("LSTM"))).module("float64", "cpu")
    x = torch.from_numpy(inputs(2, 300)[:, :, None])
    assert torch.equal(module(x), module(x))


def test_float32_runs_in_float32(tmp_path: Path) -> None:
    file = written(tmp_path, random_model("GRU"))
    x = inputs(2, 200)
    y = run(file, x, "float32")
    assert y.dtype == np.float32
    assert 0 < np.abs(y - run(file, x)).max() < 1e-4


def test_making_a_module_leaves_torchs_random_state_and_threads_alone(tmp_path: Path) -> None:
    model = load_amp_model(written(tmp_path, random_model("LSTM")))
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        model.module("float64", "cpu")(torch.zeros(1, 10, 1, dtype=torch.float64))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_that_changed_is_not_run_in_place_of_the_one_in_the_keys(tmp_path: Path) -> None:
    file = written(tmp_path, random_model("LSTM"))
    sha256 = load_amp_model(file).sha256
    written(tmp_path, random_model("GRU"))
    with pytest.raises(TeacherFileError, match="changed since the producer was made"):
        amp_module(file, sha256, "float64", "cpu")


def test_a_file_is_read_and_checked_without_torch() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from parbake.producers.audio.amp_models import load_amp_model\n"
        "print(load_amp_model(Path(sys.argv[1])).kind, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(DEFAULT_TEACHER)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "LSTM 12 False\n"


@pytest.mark.parametrize(
    "where", [("sample_rate",), ("samplerate",), ("model_data", "sample_rate"), ("model_data", "samplerate")]
)
def test_a_stated_sample_rate_is_found(where: tuple[str, ...], tmp_path: Path) -> None:
    content = random_model("LSTM")
    place = content["model_data"] if len(where) == 2 else content
    place[where[-1]] = 48000
    assert load_amp_model(written(tmp_path, content)).sample_rate == 48000.0


# ---- faults


def refusal(file: Path) -> str:
    with pytest.raises(TeacherFileError) as caught:
        load_amp_model(file)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{file}: ")
    return text.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"PK\x03\x04\x00\xff\xfe", "not JSON"),
        (b"", "not JSON"),
        (b'{"model_data": ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "not a model but a JSON list"),
        (
            b'{"in_shape": [1], "layers": []}',
            "not a model file of a known kind (it holds 'in_shape', 'layers')",
        ),
        (b'{"model_data": 1, "state_dict": {}}', "model_data and state_dict are not tables"),
        (
            b'{"architecture": "WaveNet", "config": {}, "weights": []}',
            "version: None is not supported (0.5.x is)",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_by_what_it_is(content: bytes, text: str, tmp_path: Path) -> None:
    file = tmp_path / "model.nam"
    file.write_bytes(content)
    assert refusal(file).startswith(text)


def edit(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> dict[str, Any]:
    content = random_model("LSTM", hidden=2)
    change(content["model_data"], content["state_dict"])
    return content


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m, s: s.pop("rec.weight_hh_l0"), "state_dict lacks rec.weight_hh_l0"),
        (lambda m, s: s.clear(), "state_dict lacks rec.weight_ih_l0, rec.weight_hh_l0"),
        (lambda m, s: m.update(num_layers=2), "state_dict lacks rec.weight_ih_l1"),
        (
            lambda m, s: s.update({"rec.weight_hr_l0": [[1]]}),
            "state_dict holds rec.weight_hr_l0, which model_data does not imply",
        ),
        (lambda m, s: m.update(bias_fl=False), "state_dict holds lin.bias, which"),
        (
            lambda m, s: s.update({"lin.weight": [[1.0, 2.0, 3.0]]}),
            "state_dict.lin.weight: shape (1, 3) where (1, 2) is needed",
        ),
        (
            lambda m, s: m.update(unit_type="GRU"),
            "state_dict.rec.weight_ih_l0: shape (8, 1) where (6, 1) is needed",
        ),
        (lambda m, s: m.update(hidden_size=3), "state_dict.rec.weight_ih_l0: shape (8, 1) where (12, 1)"),
        (lambda m, s: s.update({"lin.bias": [float("nan")]}), "state_dict.lin.bias: 1 of 1 values are NaN"),
        (lambda m, s: s.update({"lin.bias": [float("inf")]}), "state_dict.lin.bias: 1 of 1 values are NaN"),
        (
            lambda m, s: s.update({"lin.weight": [[1.0], 2.0]}),
            "state_dict.lin.weight: not an array of numbers",
        ),
        (lambda m, s: s.update({"lin.bias": ["a"]}), "state_dict.lin.bias: not an array of numbers"),
        (lambda m, s: s.update({"lin.bias": [10**400]}), "state_dict.lin.bias: not an array of numbers"),
        (lambda m, s: m.update(model="ConvNet"), "model_data.model: 'ConvNet' is not supported"),
        (lambda m, s: m.update(unit_type="RNN"), "model_data.unit_type: 'RNN' is not supported"),
        (lambda m, s: m.update(unit_type=["LSTM"]), "model_data.unit_type: ['LSTM'] is not supported"),
        (lambda m, s: m.update(input_size=2), "model_data.input_size: 2 where 1 is needed"),
        (lambda m, s: m.update(output_size=2), "model_data.output_size: 2 where 1 is needed"),
        (lambda m, s: m.pop("hidden_size"), "model_data.hidden_size: None is not a whole number"),
        (lambda m, s: m.update(hidden_size=10**12), "model_data.hidden_size: 1000000000000 is not a whole"),
        (lambda m, s: m.update(num_layers=True), "model_data.num_layers: True is not a whole number"),
        (lambda m, s: m.update(skip=2), "model_data.skip: 2 is neither 0 nor 1"),
        (lambda m, s: m.update(sample_rate="fast"), "sample_rate: 'fast' is not a rate in Hz"),
        (lambda m, s: m.update(sample_rate=-1), "sample_rate: -1 is not a rate in Hz"),
        (lambda m, s: m.update(sample_rate=10**400), "sample_rate: 1000"),
    ],
)
def test_a_model_with_a_fault_is_refused_by_name(change: Any, text: str, tmp_path: Path) -> None:
    assert refusal(written(tmp_path, edit(change))).startswith(text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.json") == "no such teacher file"
    assert refusal(tmp_path).startswith("the teacher file cannot be read: Is a directory")
    huge = tmp_path / "huge.pt"
    with huge.open("wb") as file:
        file.truncate(2**40)  # sparse
    assert refusal(huge).startswith("1,099,511,627,776 bytes are too many for a model file")
