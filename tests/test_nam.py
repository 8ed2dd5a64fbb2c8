"""Models of .nam files: against plain NumPy written from the formulas, and every fault said in one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amps import Array, inputs, run
from conftest import DATA

from parbake.errors import RecipeError, TeacherFileError
from parbake.producers.audio import wavenet
from parbake.producers.audio.amp_models import load_amp_model
from parbake.producers.audio.sine import SineTeacher
from parbake.producers.audio.torch_settings import teacher_settings

Model = dict[str, Any]


@pytest.fixture
def real() -> Callable[[str], Path]:
    """Real models by name; they are not part of the repository."""

    def file(name: str) -> Path:
        path = DATA / "teachers" / name
        if not path.exists():
            pytest.skip(f"needs the real teacher {name}, which is not part of the repository")
        return path

    return file


# ---- the plain implementation


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "Tanh": np.tanh,
    "Hardtanh": lambda x: np.clip(x, -1, 1),
    "ReLU": lambda x: np.maximum(x, 0),
    "LeakyReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "Sigmoid": sigmoid,
    "SiLU": lambda x: x * sigmoid(x),
    "Hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


class Weights:
    """Hands out a file's weights in order, and sees to it that none is left."""

    def __init__(self, model: Model) -> None:
        self.rest = np.array(model["weights"])

    def take(self, *shape: int) -> Array:
        count = math.prod(shape)
        assert count <= len(self.rest)
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken.reshape(shape)


def reference(file: Path, x: Array) -> Array:
    """Output for one input [time]."""
    model = json.loads(file.read_text())
    return (wavenet_output if model["architecture"] == "WaveNet" else lstm_output)(model, x)


def wavenet_output(model: Model, x: Array) -> Array:
    """By convolutions without padding over an input that has enough zeros before it."""
    arrays, weights = model["config"]["layers"], Weights(model)
    looks_back = sum((a["kernel_size"] - 1) * sum(a["dilations"]) for a in arrays)
    x = np.concatenate([np.zeros(looks_back), x])
    y, head = x[None], None
    for a in arrays:
        channels, mid = a["channels"], a["channels"] * (2 if a["gated"] else 1)
        y = weights.take(channels, a["input_size"]) @ y
        for dilation in a["dilations"]:
            conv, bias = weights.take(mid, channels, a["kernel_size"]), weights.take(mid)
            mixin, out, out_bias = (
                weights.take(mid, 1),
                weights.take(channels, channels),
                weights.take(channels),
            )
            n = y.shape[1] - (a["kernel_size"] - 1) * dilation
            z = bias[:, None] + mixin * x[-n:]
            for tap in range(a["kernel_size"]):
                z = z + conv[:, :, tap] @ y[:, tap * dilation : tap * dilation + n]
            signal = ACTIVATIONS[a["activation"]](z[:channels])
            if a["gated"]:
                signal = signal * sigmoid(z[channels:])
            y = y[:, -n:] + out @ signal + out_bias[:, None]
            head = signal if head is None else head[:, -n:] + signal
        head = weights.take(a["head_size"], channels) @ head
        if a["head_bias"]:
            head = head + weights.take(a["head_size"])[:, None]
    result: Array = weights.take(1)[0] * head[0]
    assert not len(weights.rest)
    return result


def lstm_output(model: Model, x: Array) -> Array:
    """Step by step: one matrix for [input, state], gates i, f, g, o."""
    config, weights = model["config"], Weights(model)
    hidden = config["hidden_size"]
    signal = x[:, None]
    for _ in range(config["num_layers"]):
        matrix, bias = weights.take(4 * hidden, signal.shape[1] + hidden), weights.take(4 * hidden)
        h, c = weights.take(hidden), weights.take(hidden)
        out = []
        for step in signal:
            i, f, g, o = np.split(matrix @ np.concatenate([step, h]) + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out.append(h)
        signal = np.array(out)
    result: Array = signal @ weights.take(hidden) + weights.take(1)
    assert not len(weights.rest)
    return result


# ---- synthetic models


def layer_array(
    inputs: int = 1,
    channels: int = 3,
    head_size: int = 1,
    dilations: tuple[int, ...] = (1, 4, 2),
    **changes: Any,
) -> Model:
    return {
        "input_size": inputs,
        "condition_size": 1,
        "head_size": head_size,
        "channels": channels,
        "kernel_size": 3,
        "dilations": list(dilations),
        "activation": "Tanh",
        "gated": False,
        "head_bias": False,
    } | changes


def array_weights(a: Model) -> int:
    mid = a["channels"] * (2 if a["gated"] else 1)
    layer = mid * (a["channels"] * a["kernel_size"] + 2) + a["channels"] ** 2 + a["channels"]
    head = a["head_size"] * (a["channels"] + a["head_bias"])
    return int(a["channels"] * a["input_size"] + len(a["dilations"]) * layer + head)


def wavenet_model(*arrays: Model) -> Model:
    count = sum(map(array_weights, arrays))
    weights = np.random.default_rng(11).normal(scale=0.5, size=count)
    config = {"layers": list(arrays), "head": None, "head_scale": 0.02}
    scale = float(np.float32(0.02))  # as the exporter writes it
    return nam("WaveNet", config, [*weights.tolist(), scale])


def lstm_model(layers: int, hidden: int = 4) -> Model:
    inputs = [1] + [hidden] * (layers - 1)
    count = sum(4 * hidden * (size + hidden + 1) + 2 * hidden for size in inputs) + hidden + 1
    weights = np.random.default_rng(13).normal(size=count).tolist()
    return nam("LSTM", {"input_size": 1, "hidden_size": hidden, "num_layers": layers}, weights)


def nam(architecture: str, config: Model, weights: list[float]) -> Model:
    return {"version": "0.5.4", "architecture": architecture, "config": config, "weights": weights}


def written(folder: Path, model: Model) -> Path:
    file = folder / "model.nam"
    file.write_text(json.dumps(model))
    return file


SYNTHETIC = {
    "wavenet": wavenet_model(layer_array()),
    "gated": wavenet_model(layer_array(gated=True)),
    "head bias": wavenet_model(layer_array(head_bias=True)),
    "three arrays": wavenet_model(
        layer_array(1, 5, 3, (1, 2, 4), head_bias=True),
        layer_array(5, 3, 2, (7, 3), gated=True, kernel_size=2),
        layer_array(3, 2, 1, (1,), head_bias=True, kernel_size=5, activation="ReLU"),
    ),
    "kernel of one": wavenet_model(layer_array(kernel_size=1)),
    "lstm": lstm_model(1),
    "two lstm layers": lstm_model(2),
}


@pytest.fixture(params=SYNTHETIC, name="file")
def synthetic_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(tmp_path, SYNTHETIC[request.param])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows and three time steps at once: shorter than what the layers look back."""
    monkeypatch.setattr(wavenet, "_GROUP_ROWS", 2)
    monkeypatch.setattr(wavenet, "_BLOCK_COLUMNS", 7)


# ---- values


@pytest.mark.parametrize(
    ("name", "kind", "sample_rate"),
    [
        ("broadcast_tcn_teacher.nam", "WaveNet 16+8", 44100.0),
        ("namcore_wavenet_a1_standard.nam", "WaveNet 16+8", None),
        ("namcore_lstm.nam", "LSTM 3", 48000.0),
    ],
)
def test_a_real_model_equals_a_plain_implementation(
    name: str, kind: str, sample_rate: float | None, real: Callable[[str], Path]
) -> None:
    model = load_amp_model(real(name))
    assert (model.kind, model.sample_rate) == (kind, sample_rate)
    x = inputs(9, 1500)  # two groups of rows, two blocks of time
    y = run(real(name), x)
    assert np.abs(y).max() > 1e-3
    for row in (0, 8):
        np.testing.assert_allclose(y[row], reference(real(name), x[row]), rtol=0, atol=1e-12)


def test_output_equals_a_plain_implementation(file: Path) -> None:
    x = inputs(3, 150)
    y = run(file, x)
    assert y.shape == x.shape
    for row in range(len(x)):
        np.testing.assert_allclose(y[row], reference(file, x[row]), rtol=0, atol=1e-13)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_do_not_show(file: Path) -> None:
    x = inputs(3, 50)
    y = run(file, x)
    for row in range(len(x)):
        np.testing.assert_allclose(y[row], reference(file, x[row]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_every_activation_is_the_one_of_its_name(activation: str, gated: bool, tmp_path: Path) -> None:
    file = written(tmp_path, wavenet_model(layer_array(activation=activation, gated=gated)))
    x = 4 * inputs(1, 200)  # far enough to reach the bends
    np.testing.assert_allclose(run(file, x)[0], reference(file, x[0]), rtol=0, atol=1e-13)


def test_no_activation_is_without_a_test() -> None:
    assert set(wavenet.ACTIVATIONS) == set(ACTIVATIONS)


def test_before_the_first_sample_a_wavenet_heard_silence_for_ever(tmp_path: Path) -> None:
    file = written(tmp_path, SYNTHETIC["three arrays"])
    silence = run(file, np.zeros((2, 60)))
    assert abs(silence[0, 0]) > 1e-6  # there are biases
    np.testing.assert_allclose(silence, silence[0, 0], rtol=0, atol=1e-14)
    x = inputs(2, 60)
    late = run(file, np.concatenate([np.zeros((2, 17)), x], axis=1))
    np.testing.assert_allclose(late[:, 17:], run(file, x), rtol=0, atol=1e-14)


def test_an_lstm_starts_from_the_state_in_its_file(tmp_path: Path) -> None:
    model = lstm_model(1, hidden=2)
    x = inputs(1, 5)
    before = run(written(tmp_path, model), x)
    model["weights"][-5] += 1.0  # the last number of the cell state: two head weights and a bias follow
    changed = run(written(tmp_path, model), x)
    assert abs(changed - before)[0, 0] > 1e-3
    np.testing.assert_allclose(changed[0], reference(tmp_path / "model.nam", x[0]), rtol=0, atol=1e-13)


def test_the_same_batch_gives_the_same_bytes(file: Path) -> None:
    module = load_amp_model(file).module("float32", "cpu")
    x = torch.from_numpy(inputs(5, 300)[:, :, None]).float()
    kept = x.clone()
    first = module(x).numpy().tobytes()
    assert module(x).numpy().tobytes() == first
    assert load_amp_model(file).module("float32", "cpu")(x).numpy().tobytes() == first
    assert torch.equal(x, kept)


def test_float32_runs_in_float32(file: Path) -> None:
    x = inputs(2, 200)
    y = run(file, x, "float32")
    assert y.dtype == np.float32
    assert 0 < np.abs(y - run(file, x)).max() < 1e-5


def test_a_module_holds_its_weights_where_torch_looks_for_them(file: Path) -> None:
    module = load_amp_model(file).module("float64", "cpu")
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    numbers = sum(tensor.numel() for tensor in module.state_dict().values())
    assert numbers >= len(json.loads(file.read_text())["weights"]) - 1  # but the scale of the head


def test_no_rows_and_no_time_give_none(file: Path) -> None:
    module = load_amp_model(file).module("float64", "cpu")
    assert module(torch.zeros(2, 0, 1, dtype=torch.float64)).shape == (2, 0, 1)


# ---- the process around it


def test_a_run_leaves_torchs_random_state_and_threads_alone(file: Path) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        load_amp_model(file).module("float64", "cpu")(torch.zeros(1, 10, 1, dtype=torch.float64))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)


def test_on_the_cpu_a_teacher_has_one_thread() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with teacher_settings(on_cuda=False):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_on_cuda_products_are_full_float32_whatever_was_set() -> None:
    products = torch.backends.cuda.matmul  # a setting that is there without a device
    torch.set_float32_matmul_precision("high")
    try:
        assert products.fp32_precision == "tf32"
        with teacher_settings(on_cuda=True):
            assert products.fp32_precision == "ieee"
            assert not torch.backends.cudnn.allow_tf32
        assert products.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_file_is_read_and_checked_without_torch(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from parbake.producers.audio.amp_models import load_amp_model\n"
        "load_amp_model(Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(file)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "False\n"


def test_a_nam_file_teaches_sine_tones(tmp_path: Path) -> None:
    model = wavenet_model(layer_array(1, 4, 2), layer_array(4, 2, 1)) | {"sample_rate": 8000}
    file = written(tmp_path, model)
    with pytest.raises(RecipeError, match="was made for 8000 Hz"):
        SineTeacher(teacher=file, sample_rate=44_100)
    teacher = SineTeacher(teacher=file, duration=0.05, num_samples=4, midi_max=90, store_dtype="float64")
    assert teacher.sample_rate == 8000
    produced = teacher.produce(0, 4, ("x", "y"))
    for x, y in zip(produced["x"], produced["y"].numpy(), strict=True):
        np.testing.assert_allclose(y[:, 0], reference(file, x[:, 0]), rtol=0, atol=1e-13)


# ---- faults


def refusal(file: Path) -> str:
    with pytest.raises(TeacherFileError) as caught:
        load_amp_model(file)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{file}: ")
    return text.removeprefix(f"{file}: ")


def change_layer(number: int, **values: Any) -> Callable[[Model], object]:
    return lambda model: model["config"]["layers"][number].update(values)


def change_config(**values: Any) -> Callable[[Model], object]:
    return lambda model: model["config"].update(values)


def put_weight(value: Any) -> Callable[[Model], object]:
    return lambda model: model["weights"].__setitem__(3, value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.pop("version"), "version: None is not supported (0.5.x is)"),
        (lambda m: m.update(version="0.4.1"), "version: '0.4.1' is not supported (0.5.x is)"),
        (lambda m: m.update(version="0.6.0"), "version: '0.6.0' is not supported (0.5.x is)"),
        (lambda m: m.update(version="0.50.1"), "version: '0.50.1' is not supported"),
        (lambda m: m.update(version=0.5), "version: 0.5 is not supported"),
        (
            lambda m: m.update(architecture="ConvNet"),
            "architecture: 'ConvNet' is not supported ('LSTM' and 'WaveNet' are)",
        ),
        (lambda m: m.update(architecture=["LSTM"]), "architecture: ['LSTM'] is not supported"),
        (lambda m: m.update(config=[1]), "config: [1] is not a table of names"),
        (lambda m: m.update(weights={}), "weights: not a list of numbers"),
        (lambda m: m.update(sample_rate="fast"), "sample_rate: 'fast' is not a rate in Hz"),
        (lambda m: m.update(sample_rate=10**400), "sample_rate: 1000"),
        (lambda m: m["weights"].append(0.02), "weights: 198 values where config needs 197"),
        (lambda m: m["weights"].pop(), "weights: 196 values where config needs 197"),
        (put_weight(float("nan")), "weights: 1 of 197 values are NaN or infinite"),
        (put_weight(float("inf")), "weights: 1 of 197 values are NaN or infinite"),
        (put_weight("1.5"), "weights: not a list of numbers"),
        (put_weight(True), "weights: not a list of numbers"),
        (put_weight([1.0]), "weights: not a list of numbers"),
        (put_weight(10**400), "weights: not a list of numbers"),
        (change_config(head={"channels": 8}), "config.head: {'channels': 8} is not supported (null is)"),
        (change_config(parametric={}), "config holds parametric, which version 0.5 does not have"),
        (change_config(head_scale=0.5), "config.head_scale: 0.5 where the last weight says 0.0199"),
        (change_config(head_scale=None), "config.head_scale: None is not a number"),
        (change_config(head_scale=10**400), "config.head_scale: 1000"),
        (change_config(layers=[]), "config.layers: [] is not a list of 1 to 64 layer arrays"),
        (change_config(layers=None), "config.layers: None is not a list"),
        (change_config(layers=[3]), "config.layers[0]: 3 is not a table of names"),
        (change_config(layers=[{}] * 65), "config.layers: [{}, {}, {}"),
        (change_layer(0, bottleneck=2), "config.layers[0] holds bottleneck, which version 0.5 does not"),
        (
            change_layer(0, input_size=2),
            "config.layers[0].input_size: 2 where 1 is needed (the model's input",
        ),
        (change_layer(1, input_size=2), "config.layers[1].input_size: 2 where 3 is needed (the channels of"),
        (change_layer(0, head_size=3), "config.layers[1].channels: 2 where 3 is needed (the head_size of"),
        (change_layer(1, head_size=2), "config.layers[1].head_size: 2 where 1 is needed (the model's output"),
        (change_layer(1, condition_size=2), "config.layers[1].condition_size: 2 where 1 is needed"),
        (change_layer(0, channels=10**12), "config.layers[0].channels: 1000000000000 is not a whole number"),
        (change_layer(0, kernel_size=0), "config.layers[0].kernel_size: 0 is not a whole number from 1"),
        (change_layer(0, kernel_size=2.0), "config.layers[0].kernel_size: 2.0 is not a whole number"),
        (change_layer(0, kernel_size=4), "weights: 197 values where config needs 224"),
        (change_layer(0, gated=True), "weights: 197 values where config needs 296"),
        (change_layer(1, head_bias=True), "weights: 197 values where config needs 198"),
        (change_layer(0, gated=2), "config.layers[0].gated: 2 is neither 0 nor 1"),
        (change_layer(0, head_bias=None), "config.layers[0].head_bias: None is neither 0 nor 1"),
        (change_layer(0, dilations=[]), "config.layers[0].dilations: [] is not a list of 1 to 1024"),
        (change_layer(0, dilations=[1, 0]), "config.layers[0].dilations: [1, 0] is not a list"),
        (change_layer(0, dilations=[1, True]), "config.layers[0].dilations: [1, True] is not a list"),
        (change_layer(0, dilations=[1] * 1025), "config.layers[0].dilations: [1, 1, 1"),
        (change_layer(0, dilations=[2**21]), "config.layers[0].dilations: [2097152] is not a list"),
        (
            change_layer(0, dilations=[1, 2**20]),
            "config.layers: they look back over 6,291,474 values, more than 4,194,304",
        ),
        (change_layer(0, activation="PReLU"), "config.layers[0].activation: 'PReLU' is not supported (Tanh,"),
        (change_layer(0, activation="Fasttanh"), "config.layers[0].activation: 'Fasttanh' is not supported"),
        (change_layer(0, activation={"a": 1}), "config.layers[0].activation: {'a': 1} is not supported"),
    ],
)
def test_a_wavenet_with_a_fault_is_refused_by_name(
    change: Callable[[Model], object], text: str, tmp_path: Path
) -> None:
    model = wavenet_model(layer_array(1, 3, 2), layer_array(3, 2, 1, (1, 2)))
    load_amp_model(written(tmp_path, model))  # it is the change that is refused
    change(model)
    assert refusal(written(tmp_path, model)).startswith(text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (change_config(input_size=2), "config.input_size: 2 where 1 is needed (one channel, no knobs)"),
        (change_config(hidden_size=5), "weights: 261 values where config needs"),
        (change_config(hidden_size=-4), "config.hidden_size: -4 is not a whole number from 1 to 4096"),
        (change_config(num_layers=3), "weights: 261 values where config needs"),
        (change_config(num_layers=0), "config.num_layers: 0 is not a whole number"),
        (change_config(num_layers=10**9), "config.num_layers: 1000000000 is not a whole number"),
        (lambda m: m["config"].pop("num_layers"), "config.num_layers: None is not a whole number"),
        (change_config(proj_size=2), "config holds proj_size, which version 0.5 does not have"),
        (lambda m: m["weights"].pop(), "weights: 260 values where config needs 261"),
        (lambda m: m.update(weights=[]), "weights: 0 values where config needs 261"),
    ],
)
def test_an_lstm_with_a_fault_is_refused_by_name(
    change: Callable[[Model], object], text: str, tmp_path: Path
) -> None:
    model = lstm_model(2)
    load_amp_model(written(tmp_path, model))
    change(model)
    assert refusal(written(tmp_path, model)).startswith(text)
