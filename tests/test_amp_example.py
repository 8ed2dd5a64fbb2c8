"""The example that teaches an amp model not to alias: its promises, on networks of a few weights."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from amps import inputs, run
from scipy.signal import freqz, lfilter
from test_amp_models import random_model
from test_nam import SYNTHETIC

import parbake
from parbake.producers import SineTeacher
from parbake.producers.audio.amp_models import load_amp_model

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "amp_antialiasing"
NAMES = sorted(path.stem for path in EXAMPLE.glob("*.py"))
TONES, BATCH, WINDOWS = 16, 3, 3
RATE = 44_100


# ---- the example's modules, and a small teacher with its stores


@pytest.fixture(scope="module", autouse=True)
def modules() -> Iterator[None]:
    """Its modules by their plain names, as its folder has them; other examples have some of the same."""
    hidden = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    sys.path.insert(0, str(EXAMPLE))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two lose where others want the cores
    yield
    torch.set_num_threads(threads)
    sys.path.remove(str(EXAMPLE))
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.modules.update(hidden)


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WaveNet of two channels that distorts: fast, since it needs no loop over time."""
    layer = {
        "input_size": 1,
        "condition_size": 1,
        "head_size": 1,
        "channels": 2,
        "kernel_size": 2,
        "dilations": [1, 4],
        "activation": "Tanh",
        "gated": False,
        "head_bias": False,
    }
    count = 2 + 2 * (2 * 2 * 2 + 2 + 2 + 2 * 2 + 2) + 2 + 1
    weights = np.random.default_rng(5).uniform(-1, 1, count)
    weights[:2] *= 6
    model = {
        "version": "0.5.4",
        "architecture": "WaveNet",
        "config": {"layers": [layer], "head": None, "head_scale": 1.0},
        "weights": [*weights[:-1].tolist(), 1.0],
        "sample_rate": float(RATE),
    }
    path = tmp_path_factory.mktemp("teacher") / "tiny.nam"
    path.write_text(json.dumps(model))
    return path


@pytest.fixture(scope="session")
def stores(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two stores of ``teacher``, baked as the README says."""
    folder = tmp_path_factory.mktemp("stores")
    training = replace(module("data").tasks(teacher, None)[0], num_samples=TONES)
    parbake.bake(training, folder / "train.zarr", progress=False).close()
    validation = replace(training, validation=True, levels_db=(-36.0, -18.0, -6.0))
    parbake.bake(validation, folder / "val.zarr", progress=False).close()
    return folder


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few short windows."""
    recipes = module("recipes")
    for family, recipe in recipes.RECIPES.items():
        changed = replace(recipe, windows=WINDOWS, window_steps=256, batch_tones=BATCH, spectral_weight=0.1)
        monkeypatch.setitem(recipes.RECIPES, family, changed)


Train = Callable[..., int]


@pytest.fixture
def train(teacher: Path, stores: Path, tmp_path: Path, short: None) -> Train:
    """Runs train.py's main in this process on the small teacher, from the stores; more options after."""

    def run(out: str, *more: str, cached: bool = True) -> int:
        command = ["--teacher", str(teacher), "--epochs", "2", "--validation-tones", "1"]
        command += ["--out", str(tmp_path / out), "--threads", "1"]
        if cached:
            command += ["--use-cached-data", "--cached-train-path", str(stores / "train.zarr")]
            command += ["--cached-val-path", str(stores / "val.zarr")]
        else:
            command += ["--num-samples", str(TONES), "--workers", "0"]
        code: int = module("train").main([*command, *more])
        return code

    return run


def student_weights(out: Path) -> list[float]:
    weights: list[float] = json.loads((out / "student.nam").read_text())["weights"]
    return weights


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def repeatable(out: Path) -> list[dict[str, str]]:
    """What of the reports does not depend on the clock."""
    clocked = ("tones_per_s", "waiting_share", "trained_s")
    return [{name: value for name, value in row.items() if name not in clocked} for row in rows(out)]


# ---- students

MODELS = SYNTHETIC | {
    "proteus lstm": random_model("LSTM", 2),
    "proteus gru without skip": random_model("GRU", 2, skip=0),
    "proteus without bias": random_model("LSTM", bias_fl=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_student_begins_as_its_teacher_and_its_file_is_a_teacher_again(name: str, tmp_path: Path) -> None:
    students, x = module("students"), inputs(3, 300)
    teacher, saved = tmp_path / "teacher", tmp_path / "student"
    teacher.write_text(json.dumps(MODELS[name]))

    def answer(student: Any, cut: int = 100) -> np.ndarray:
        given = torch.from_numpy(x[:, :, None]).float()
        with torch.no_grad():
            first, state = student(given[:, :cut])
            rest, _ = student(given[:, cut:], state)
        together: np.ndarray = torch.cat([first, rest], dim=1)[:, :, 0].numpy()
        return together

    student = students.student_of(teacher)
    np.testing.assert_allclose(answer(student), run(teacher, x), atol=2e-5)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight += 0.01
    students.save_student(student, teacher, saved)
    np.testing.assert_allclose(answer(student), run(saved, x), atol=2e-5)
    assert np.abs(run(saved, x) - run(teacher, x)).max() > 1e-4


def test_a_wavenets_gradients_are_whole_where_a_window_begins_late(teacher: Path) -> None:
    x, past = torch.randn(2, 40, 1, generator=torch.Generator().manual_seed(0)), 30
    student = module("students").student_of(teacher)

    def gradients(output: torch.Tensor) -> list[torch.Tensor]:
        weights = [weight for weight in student.parameters() if weight.requires_grad]
        found = torch.autograd.grad(output.square().sum(), weights, allow_unused=True, materialize_grads=True)
        return list(found)  # the last layer's way to a next one is not used

    windowed, _ = student(x[:, past:], student.settled(x[:, :past]))
    torch.testing.assert_close(gradients(windowed), gradients(student(x)[0][:, past:]))


# ---- losses


def test_pre_emphasis_keeps_what_is_below_12_khz_and_nothing_above_16_khz() -> None:
    losses = module("losses")
    signal_ = np.random.default_rng(0).standard_normal((3, 200))
    taps = losses.low_pass(RATE)[0, 0].double()
    wanted = lfilter(taps.numpy(), [1.0], signal_)[:, len(taps) - 1 :]
    found = losses.pre_emphasised(torch.from_numpy(signal_), RATE)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    frequency_hz, response = freqz(taps.numpy(), worN=2000, fs=RATE)
    assert len(taps) % 2 == 1
    assert abs(abs(response[frequency_hz < 12e3]) - 1).max() < 2e-4
    assert abs(response[frequency_hz > 16e3]).max() < 2e-4  # -74 dB


def test_esr_and_dc_are_ratios_of_energies() -> None:
    losses = module("losses")
    rng = np.random.default_rng(1)
    error, target = rng.standard_normal((2, 3, 64)) + 0.5
    power = losses.power(torch.from_numpy(target))
    esr, dc = (f(torch.from_numpy(error), power) for f in (losses.esr, losses.dc))
    np.testing.assert_allclose(esr, (error**2).sum(1) / (target**2).sum(1))
    np.testing.assert_allclose(dc, error.mean(1) ** 2 / (target**2).mean(1))


def test_between_the_harmonics_only_aliases_count() -> None:
    f0_hz, steps = torch.tensor([2000.0, 2000.0, 2000.0, 40.0]), 4096
    time_s = torch.arange(steps, dtype=torch.float64) / RATE

    def sine(frequency_hz: float) -> torch.Tensor:
        return torch.sin(2 * math.pi * frequency_hz * time_s + 0.3)

    harmonics = sine(2000) + 0.5 * sine(6000) + 0.2
    alias = 0.1 * sine(4100 + RATE / steps / 3)
    error = torch.stack([harmonics, alias, harmonics + alias, alias])
    losses = module("losses")
    found = losses.between_harmonics(error, torch.full((4,), 2.0, dtype=torch.float64), f0_hz.double(), RATE)
    power = 0.1**2 / 2 / 2
    np.testing.assert_allclose(found[1], power, rtol=1e-3)
    np.testing.assert_allclose(found[2], power, rtol=0.03)
    assert found[0] < 3e-4 * losses.power(harmonics) / 2  # side lobes
    assert found[3] == 0  # harmonics of 40 Hz leave no room between them


def test_a_harmonic_above_the_low_pass_counts_by_its_own_weight_alone() -> None:
    time_s = torch.arange(4096, dtype=torch.float64) / RATE
    error = 0.1 * torch.sin(2 * math.pi * 18e3 * time_s)[None]
    plain = replace(module("recipes").RECIPES["WaveNet"], full_weight=0.0, spectral_weight=0.5, floor=0.0)

    def loss(recipe: Any) -> float:
        power, f0_hz = torch.ones(1), torch.tensor([2000.0])
        return float(module("batch").loss_of(error, power, f0_hz, recipe, RATE))

    assert loss(plain) < 1e-3
    assert loss(replace(plain, full_weight=0.3)) == pytest.approx(math.sqrt(0.3 * 0.1**2 / 2), rel=1e-3)


# ---- one batch


def test_windows_meet_their_targets_with_the_state_of_the_whole_tone_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A student that adds the time since the tone began has no error where its state is handed on."""
    checkpoint, batch, students = module("checkpoint"), module("batch"), module("students")

    class Clock(students.Student):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
            begun = torch.zeros(()) if state is None else state[0]
            after = begun + torch.arange(1, x.shape[1] + 1)
            return x * self.gain + after[:, None] / 1000, (after[-1],)

    student = Clock()
    recipe = replace(
        module("recipes").RECIPES["LSTM"],
        windows=3,
        window_steps=100,
        settle_steps=700,
        lr=0.0,
        floor=1e-14,
    )
    x = torch.randn(2, 6000, 1, generator=torch.Generator().manual_seed(0))
    y = student(x)[0].detach()[:, 4600:]
    run = checkpoint.Run(student, torch.optim.Adam(student.parameters()), checkpoint.Place())

    def loss(target: torch.Tensor, changed: Any = recipe) -> float:
        found: float = batch.train_batch(run, (x, target, torch.tensor([300.0, 1000.0])), changed, RATE, 0)
        return found

    assert loss(y) < 1e-5
    assert loss(y + 0.01) > 1e-3
    whole = student.settled
    monkeypatch.setattr(student, "settled", lambda x: whole(x[:, -700:]))
    assert loss(y) > 0.1


def test_threads_share_out_the_tones_of_a_batch(teacher: Path) -> None:
    checkpoint, batch, students = module("checkpoint"), module("batch"), module("students")
    recipe = replace(module("recipes").RECIPES["LSTM"], windows=2, window_steps=200, settle_steps=300, lr=0.1)
    x = torch.rand(3, 2000, 1, generator=torch.Generator().manual_seed(0))
    tones = x, x[:, 1000:] / 2, torch.tensor([300.0, 1000.0, 3000.0])

    def taught(threads: int) -> tuple[float, torch.Tensor]:
        student = students.student_of(teacher)
        # not Adam: it takes equal steps along gradients that are nearly zero
        run = checkpoint.Run(student, torch.optim.SGD(student.parameters()), checkpoint.Place())
        loss = batch.train_batch(run, tones, recipe, RATE, 0, threads)
        return loss, torch.cat([weight.detach().ravel() for weight in student.parameters()])

    alone, weights = taught(1)
    start = torch.cat([weight.detach().ravel() for weight in students.student_of(teacher).parameters()])
    assert (weights - start).abs().max() > 0.01
    for threads in (2, 3, 8):
        loss, found = taught(threads)
        assert loss == pytest.approx(alone, rel=1e-4)
        torch.testing.assert_close(found, weights, rtol=0, atol=1e-4)
        assert torch.equal(found, taught(threads)[1])


def test_windows_begin_elsewhere_in_each_batch_and_epoch() -> None:
    place, first_window = module("checkpoint").Place, module("batch").first_window
    recipe = replace(module("recipes").RECIPES["LSTM"], windows=2, window_steps=10, settle_steps=5)
    places = [place(epoch=epoch, batch=batch) for epoch in range(8) for batch in range(8)]
    starts = [first_window(recipe, 30, 0, at) for at in places]
    assert set(starts) == {5, 6, 7, 8, 9, 10}
    assert starts[:8] != starts[8:16]
    assert starts != [first_window(recipe, 30, 1, at) for at in places]


def test_the_learning_rate_falls_to_zero_over_the_run() -> None:
    place, lr_share = module("checkpoint").Place, module("batch").lr_share
    shares = [
        lr_share(place(step=step, total_steps=100), window)
        for step in range(0, 100, 4)
        for window in range(4)
    ]
    np.testing.assert_allclose(shares, (1 + np.cos(np.pi * np.arange(100) / 100)) / 2)
    assert lr_share(place(step=40), 3) == 1


# ---- which tones, in which order


def test_an_epoch_is_resumed_at_any_batch() -> None:
    weights = np.arange(9.0)
    draws = module("data").Draws(weights, 2, seed=1)
    epochs = []
    for epoch in range(3):
        draws.epoch, draws.batch = epoch, 0
        whole = list(draws)
        for batch in range(draws.batches + 1):
            draws.batch = batch
            assert list(draws) == whole[2 * batch :]
            assert len(draws) == len(list(draws))
        assert all(weights[whole] > 0)
        epochs.append(tuple(whole))
    assert len(set(epochs)) == 3


def test_tones_are_drawn_by_their_weights() -> None:
    draws = module("data").Draws(np.repeat([1.0, 3.0], 4000), 8000, seed=1)
    assert np.mean(np.array(list(draws)) >= 4000) == pytest.approx(0.75, abs=0.02)


def test_too_few_tones_are_refused() -> None:
    with pytest.raises(parbake.RecipeError, match="1 tones are fewer than a batch of 2"):
        module("data").Draws(np.ones(1), 2, 0)


# ---- runs


def test_a_run_leaves_all_that_it_says(
    train: Train, teacher: Path, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run") == 0
    out, printed = tmp_path / "run", capsys.readouterr().out
    reports = rows(out)
    epoch_batches = 2 * (int(json.loads((out / "results.json").read_text())["steps"]) // (2 * WINDOWS))
    assert [int(row["step"]) for row in reports] == [WINDOWS * (n + 1) for n in range(epoch_batches)]
    assert all(math.isfinite(float(value)) for row in reports for value in row.values())
    assert float(reports[-1]["epoch"]) == 2.0

    results = json.loads((out / "results.json").read_text())
    esr_s = parbake.open_store(stores / "val.zarr")["esr_s"][:].reshape(3, 88)[:, 0]
    np.testing.assert_allclose(results["teacher"]["esr_s_db_of_levels"], 10 * np.log10(esr_s))
    assert results["early"]["trained_s"] <= results["trained_s"]
    assert results["early"]["esr_s_db"] != results["student"]["esr_s_db"]
    assert f"{results['student']['esr_s_db']:.2f}" in printed
    assert f"{results['teacher']['esr_s_db']:.2f}" in printed

    # the last report is of the same tones as the end
    assert float(reports[-1]["esr_s_db"]) == results["student"]["esr_s_db"]
    picture = (out / "spectrum.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (2000, 760)

    # the student's file is a teacher, and says what the student says
    students = module("students")
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, 300, 1))).float()
    student = students.student_of(teacher)
    student.load_state_dict(torch.load(out / "checkpoint.pt", weights_only=True)["student"])
    played = load_amp_model(out / "student.nam").module("float32", "cpu")(x)
    torch.testing.assert_close(played, student(x)[0].detach(), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(played, students.student_of(teacher)(x)[0], atol=1e-5)


def test_cached_or_on_the_fly_the_numbers_are_the_same(train: Train, tmp_path: Path) -> None:
    assert train("cached") == 0
    assert train("computed", cached=False) == 0
    assert repeatable(tmp_path / "cached") == repeatable(tmp_path / "computed")
    assert student_weights(tmp_path / "cached") == student_weights(tmp_path / "computed")


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "on the fly"])
def test_a_run_stopped_in_mid_epoch_ends_with_the_same_weights(
    cached: bool,
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train("whole", cached=cached) == 0
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(module("batch"), "loss_of", _interrupting(module("batch").loss_of, 2 * WINDOWS + 2))
        assert train("parts", cached=cached) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert f"stopped after {3 * WINDOWS} steps; go on with" in capsys.readouterr().out
    assert not (tmp_path / "parts" / "student.nam").exists()
    assert train("parts", "--resume", cached=cached) == 0
    assert student_weights(tmp_path / "parts") == student_weights(tmp_path / "whole")
    assert repeatable(tmp_path / "parts") == repeatable(tmp_path / "whole")
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("parts", "whole")]
    assert results[0]["student"] == results[1]["student"]
    assert results[0]["early"]["esr_s_db"] == results[1]["early"]["esr_s_db"]


def _interrupting(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """``function``, with Ctrl-C during a call of that number."""
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*arguments)

    return counted


def test_rows_after_the_checkpoint_are_written_once(train: Train, tmp_path: Path) -> None:
    """As after a kill between a report and its checkpoint, in the middle of a row."""
    metrics, validation = module("metrics"), module("validation")
    scores = validation.Scores((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    rest = {"tones_per_s": 1.0, "waiting_share": 0.0, "trained_s": 2.0}
    with metrics.Metrics(tmp_path, 0, False, {}) as begun:
        for step in (1, 2, 3):
            begun.report(metrics.row_of(step, 0.5, 0.1, scores, **rest))
    text = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(f"{text}1")  # a row that was cut after the first digit of its step
    with metrics.Metrics(tmp_path, 2, False, {}) as resumed:
        resumed.report(metrics.row_of(3, 0.5, 0.1, scores, **rest))
    assert (tmp_path / "metrics.csv").read_text() == text


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = module("checkpoint")
    network = torch.nn.Linear(1, 1)
    run = checkpoint.Run(network, torch.optim.Adam(network.parameters()), checkpoint.Place(step=1))
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(run, {"seed": 0}, path)
    run.at(step=2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", _full_disk)
        with pytest.raises(OSError, match="no space"):
            checkpoint.save(run, {"seed": 0}, path)
    checkpoint.load(run, {"seed": 0}, path)
    assert run.place.step == 1
    with pytest.raises(parbake.RecipeError, match=r"of another run \(seed: 0 -> 1\)"):
        checkpoint.load(run, {"seed": 1}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(parbake.ParbakeError, match="no checkpoint that can be read"):
        checkpoint.load(run, {"seed": 0}, path)


def _full_disk(_: int) -> None:
    raise OSError("no space")


# ---- a user's mistakes: one line


def refusal(code: int, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code, and the only line on stderr."""
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: error: ")
    return code, line


def test_a_stale_store_is_refused_with_its_keys(
    train: Train, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = refusal(train("run", "--cached-val-path", str(stores / "train.zarr")), capsys)
    assert code == 1
    assert "train.zarr: stale: db_max: 0.0 -> (absent)" in line
    other = tmp_path / "other.json"
    other.write_bytes(SineTeacher().teacher_path.read_bytes())
    code, line = refusal(train("run", "--teacher", str(other)), capsys)
    assert code == 1
    assert "field 'y': teacher.sha256: " in line


def test_mistakes_are_told_in_one_line(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = refusal(train("none", "--resume"), capsys)
    assert code == 2
    assert "none: holds no run to resume" in line
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").touch()
    code, line = refusal(train("run"), capsys)
    assert code == 2
    assert "run: holds a run; add --resume" in line
    code, line = refusal(train("new", "--teacher", "absent.json"), capsys)
    assert code == 1
    assert "absent.json: no such teacher file" in line
    code, line = refusal(train("new", "--batch-size", "17"), capsys)
    assert code == 2
    assert "fewer than a batch of 17" in line
    assert refusal(train("new", "--config", "0"), capsys)[0] == 2  # a WaveNet where config 0 is an LSTM


def test_options_are_known_with_hyphens_and_underscores() -> None:
    parsed = module("options").parsed
    guide = ["--config", "0", "--use_cached_data", "--cached_train_path=a_b.zarr", "--cached_val_path", "c_d"]
    options = parsed(guide, None)
    assert options == parsed([guide[0], guide[1], *(_hyphened(word) for word in guide[2:])], None)
    assert (options.cached_train_path, options.cached_val_path) == (Path("a_b.zarr"), Path("c_d"))
    assert options.minutes == 25
    for wrong in ("--epochs=0", "--minutes=-1", "--minutes=inf", "--config=8", "--workers=-1", "--lr=x"):
        with pytest.raises(SystemExit, match="2"):
            parsed([wrong], None)


def _hyphened(word: str) -> str:
    name, *value = word.split("=")
    return "=".join([name.replace("_", "-"), *value]) if word.startswith("--") else word


def test_another_length_is_another_run(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run", "--epochs", "1") == 0
    capsys.readouterr()
    code, line = refusal(train("run", "--resume", "--epochs", "3", "--validation-tones", "2"), capsys)
    assert code == 2
    assert "of another run (epochs: 1 -> 3; validation_tones: 1 -> 2)" in line


def test_a_loss_that_is_not_finite_ends_the_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module("loop"), "train_batch", lambda *_: math.nan)
    code, line = refusal(train("run"), capsys)
    assert code == 1
    assert "step 0: the loss is nan" in line
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    torch.save({"weights": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(parbake.ParbakeError, match="no checkpoint that can be read"):
        module("checkpoint").load(None, {}, tmp_path / "checkpoint.pt")


# ---- the tasks


def test_the_rate_is_that_of_the_teachers_file(teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.nam"
    other.write_text(json.dumps(json.loads(teacher.read_text()) | {"sample_rate": 48_000}))
    assert [task.sample_rate for task in module("data").tasks(other, None)] == [48_000, 48_000]
    assert [task.sample_rate for task in module("data").tasks(other, 2)] == [48_000, 48_000]


def test_the_readme_bakes_what_is_trained_on() -> None:
    """Every number of the tasks that is not SineTeacher's own stands in the README's commands."""
    text = (EXAMPLE / "README.md").read_text().replace("\\\n", " ")
    commands = [line.split() for line in text.splitlines() if line.startswith("$ parbake build")]
    plain = SineTeacher()
    for task, command in zip(module("data").tasks(None, None), commands, strict=True):
        wanted = {}
        for name in ("target", "midi_max", "db_min", "linear_db", "validation", "levels_db"):
            value = getattr(task, name)
            if value != getattr(plain, name):
                wanted[f"--{name.replace('_', '-')}"] = value
        options = [word for word in command if word.startswith("--")]
        assert set(wanted) == set(options) - {"--config", "--teacher", "--num-samples"}
        for option, value in wanted.items():
            if value is not True:
                given = command[command.index(option) + 1]
                parts = [float(part) for part in given.split(",")] if option != "--target" else [given]
                assert parts == (list(value) if isinstance(value, tuple) else [value])


# ---- validation


def test_a_student_without_an_answer_has_no_ratio() -> None:
    by_level = module("validation").by_level
    ratios = np.array([[1.0, np.nan], [1.0, 10.0], [np.nan, 1.0]])
    found = by_level(ratios.ravel(), np.array([[True, True], [True, True], [False, True]]).ravel())
    np.testing.assert_allclose(found, [np.nan, 10 * math.log10(5.5), 0])


def test_a_student_that_is_the_teacher_scores_as_the_teacher(
    teacher: Path, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = module("validation")
    with parbake.open_store(stores / "val.zarr") as store:
        notes = validation.read_validation(store, RATE, 3)
    assert notes.numbers.tolist() == [0, 44, 87, 88, 132, 175, 176, 220, 263]
    assert notes.few(2).numbers.tolist() == [0, 87, 88, 175, 176, 263]
    student = module("students").student_of(teacher)
    found = notes.scores(student)
    for levels in (found.esr_s, found.error):
        np.testing.assert_allclose(levels, notes.teacher_scores().esr_s, atol=0.01)
    monkeypatch.setattr(validation, "_BLOCK_TONES", 2)
    np.testing.assert_allclose(notes.scores(student, threads=2).esr_s, found.esr_s, atol=1e-4)


# ---- where reports go


def test_reports_reach_tensorboard_and_wandb_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, validation = module("metrics"), module("validation")
    board, logged = _Recorder(), _Recorder()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", _module(SummaryWriter=lambda *_, **__: board))
    monkeypatch.setitem(sys.modules, "wandb", _module(init=lambda **_: logged))
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: name)
    scores = validation.Scores((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    with metrics.Metrics(tmp_path, 0, True, {}) as reports:
        reports.report(
            metrics.row_of(7, 0.5, 0.1, scores, tones_per_s=1.0, waiting_share=0.25, trained_s=2.0)
        )
    assert ("esr_s_db", 2.0, 7) in board.calls
    assert ("error_db_at_-6", 6.0, 7) in board.calls
    assert logged.calls[0][0]["waiting_share"] == 0.25
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with metrics.Metrics(tmp_path, 0, True, {}):
        pass
    assert capsys.readouterr().out.count("wandb is not installed") == 1


class _Recorder:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def add_scalar(self, *arguments: Any) -> None:
        self.calls.append(arguments)

    def log(self, values: Any, step: int) -> None:
        self.calls.append((values, step))

    def close(self) -> None: ...

    def finish(self) -> None: ...


def _module(**content: Any) -> ModuleType:
    made = ModuleType("made")
    made.__dict__.update(content)
    return made


# ---- as it is typed


def test_it_runs_on_the_built_in_teacher_from_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "train.py"), "--num_samples", "3", "--batch-size", "2"]
    command += ["--epochs", "1", "--validation-tones", "1", "--workers", "1", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "LSTM 12" in done.stdout
    assert load_amp_model(tmp_path / "run" / "student.json").kind == "LSTM 12"


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLE)!r}); import train; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
