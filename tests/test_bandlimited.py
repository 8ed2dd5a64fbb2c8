"""The alias-free target, esr_s, and the paper's set-ups."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal.windows import chebwin

from parbake.cli import main
from parbake.cli_recipe import parse_producer
from parbake.errors import RecipeError
from parbake.producers.audio import sine
from parbake.producers.audio.bandlimited import alias_ratio, band_limited, kept_steps
from parbake.producers.audio.sine import DEFAULT_TEACHER, SineTeacher
from parbake.producers.bake import bake
from parbake.producers.recipe import make_producer, recipe_of
from parbake.store.keys import compare, producer_keys
from parbake.store.store import open_store

LEVELS_DB = (-36.0, -18.0, -6.0)


def by_definition(y: np.ndarray, f0_hz: float, sample_rate: float) -> np.ndarray:
    """One tone band-limited by direct sums: spectrum, window's transform and cosines."""
    steps = len(y)
    n, window = np.arange(steps), chebwin(steps, 120, sym=False)

    def transform(values: np.ndarray, bins: float) -> complex:
        return complex(np.sum(values * np.exp(-2j * np.pi * (bins * n % steps) / steps)))

    limited = np.full(steps, transform(window * y, 0).real / window.sum())
    for k in range(1, int(sample_rate / (2 * f0_hz)) + 1):
        exact = k * f0_hz * steps / sample_rate
        nearest = round(exact)
        line = transform(window * y, nearest) / transform(window, nearest - exact)
        limited += 2 * abs(line) * np.cos(2 * np.pi * k * f0_hz * n / sample_rate + np.angle(line))
    return limited


def limited(y: np.ndarray, f0_hz: list[float], sample_rate: float) -> np.ndarray:
    return band_limited(torch.from_numpy(np.atleast_2d(y)), np.array(f0_hz), sample_rate).numpy()


def at_any_rate(folder: Path) -> Path:
    """The built-in teacher as a file that states no rate."""
    content = json.loads(DEFAULT_TEACHER.read_text())
    del content["sample_rate"]
    file = folder / "any_rate.json"
    file.write_text(json.dumps(content))
    return file


def small_task(folder: Path, **params: Any) -> SineTeacher:
    """Tones of 2,420 steps at 2,200 Hz, the last 2,200 kept."""
    small = {"teacher": at_any_rate(folder), "sample_rate": 2200, "duration": 1.1, "midi_max": 80}
    return SineTeacher(**{**small, "num_samples": 6, "target": "bandlimited", **params})


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RecipeError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the method


@settings(deadline=None, max_examples=25)
@given(
    st.integers(200, 1200),
    st.floats(-0.49, 0.49),
    st.lists(st.floats(8.2, 99), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_it_is_the_definition_for_any_signal(
    steps: int, beyond: float, f0_hz: list[float], seed: int
) -> None:
    sample_rate = steps + beyond
    y = np.random.default_rng(seed).normal(size=(len(f0_hz), steps))
    wanted = [by_definition(row, f0, sample_rate) for row, f0 in zip(y, f0_hz, strict=True)]
    # half the sample rate exactly is a rule of its own, below
    if all(not np.isclose(sample_rate / (2 * f0) % 1, (0, 1), atol=1e-9).any() for f0 in f0_hz):
        np.testing.assert_allclose(limited(y, f0_hz, sample_rate), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("harmonics", [1, 31, 32, 33, 64])
def test_no_harmonic_is_lost_between_blocks(harmonics: int) -> None:
    f0_hz = 2000 / 2 / (harmonics + 0.5)
    y = np.random.default_rng(harmonics).normal(size=(2, 2000))
    wanted = by_definition(y[0], f0_hz, 2000)
    np.testing.assert_allclose(limited(y, [f0_hz, 900.0], 2000)[0], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("sample_rate", "f0_hz"), [(44100, 110.3), (44100, 1244.5), (48000, 4186.009)])
def test_it_is_the_definition_at_the_rates_of_audio(sample_rate: int, f0_hz: float) -> None:
    time_s = np.arange(sample_rate) / sample_rate
    y = np.tanh(5 * np.sin(2 * np.pi * f0_hz * time_s + 1) + 0.3)
    wanted = by_definition(y, f0_hz, sample_rate)
    np.testing.assert_allclose(limited(y, [f0_hz], sample_rate)[0], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("f0_hz", [97.31, 440.0, 1234.56])
def test_known_harmonics_are_recovered_and_known_aliases_are_the_ratio(f0_hz: float) -> None:
    sample_rate, rng = 44100, np.random.default_rng(1)
    time_s = np.arange(sample_rate) / sample_rate
    numbers = np.arange(1, int(sample_rate / 2 / f0_hz) + 1)

    def partials(f_hz: np.ndarray, amplitude: np.ndarray) -> np.ndarray:
        phase = rng.uniform(0, 2 * np.pi, len(f_hz))
        waves = np.cos(2 * np.pi * np.outer(f_hz, time_s) + phase[:, None])
        return np.asarray(np.sum(amplitude[:, None] * waves, axis=0))

    wanted = 0.2 + partials(numbers * f0_hz, 1 / numbers)
    # the next harmonics, folded at half the sample rate; those that would fall on a harmonic left out
    folded = sample_rate - np.arange(numbers[-1] + 1, numbers[-1] + 9) * f0_hz
    apart = np.abs(folded[:, None] - numbers * f0_hz).min(axis=1) > 6
    aliases = partials(folded[apart], np.full(apart.sum(), 0.01))
    assert apart.sum() >= 3
    found = limited(wanted + aliases, [f0_hz], sample_rate)
    # every line sees all others at -120 dB: 4e-6 for 226 of them, 1e-6 for 17
    assert np.linalg.norm(found[0] - wanted) < 5e-6 * np.linalg.norm(wanted)
    ratio = alias_ratio(torch.from_numpy((wanted + aliases)[None]), torch.from_numpy(found))
    np.testing.assert_allclose(ratio.numpy(), np.sum(aliases**2) / np.sum(wanted**2), rtol=1e-4)


@pytest.mark.parametrize(("steps", "count"), [(1000, 4), (1001, 7)])
def test_a_harmonic_at_half_the_sample_rate_counts_once(steps: int, count: int) -> None:
    n, f0_hz = np.arange(steps), steps / 2 / count
    y = 0.5 + 0.3 * np.cos(np.pi * n) + np.cos(2 * np.pi * f0_hz / steps * n + 0.4)
    np.testing.assert_allclose(limited(y, [f0_hz], steps)[0], y, rtol=0, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch() -> None:
    f0_hz = [2000.0, 30.0, 900.0, 31.0, 55.5]
    y = np.random.default_rng(2).normal(size=(5, 8000))
    whole = limited(y, f0_hz, 8000)
    for i, f0 in enumerate(f0_hz):
        np.testing.assert_allclose(limited(y[i], [f0], 8000)[0], whole[i], rtol=0, atol=1e-12)


def test_the_bytes_do_not_depend_on_torchs_threads() -> None:
    y = np.random.default_rng(3).normal(size=(1, 44100))  # one row: its matrix product is what is shared
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(limited(y, [30.0], 44100))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*results)


# ---- the target


def test_y_is_the_alias_free_last_second_of_the_output(tmp_path: Path) -> None:
    task = small_task(tmp_path, store_dtype="float64")
    whole = np.asarray(dataclasses.replace(task, target="teacher").produce(0, 6, ("y",))["y"])
    out = {name: np.asarray(part) for name, part in task.produce(0, 6, ("x", "y", "f0", "esr_s")).items()}
    last = whole[:, -2200:, 0]
    wanted = [by_definition(row, f0, 2200) for row, f0 in zip(last, out["f0"], strict=True)]
    np.testing.assert_allclose(out["y"][:, :, 0], wanted, rtol=0, atol=1e-9)
    ratio = np.sum((last - wanted) ** 2, axis=1) / np.sum(np.square(wanted), axis=1)
    np.testing.assert_allclose(out["esr_s"], ratio, rtol=1e-6)
    assert out["x"].shape == (6, 2420, 1)
    schema = task.schema()
    for name, part in out.items():
        assert (part.shape[1:], part.dtype) == (schema[name].shape, schema[name].dtype)
    for name in ("y", "esr_s"):
        alone = task.produce(0, 6, (name,))
        np.testing.assert_array_equal(np.asarray(alone.pop(name)), out[name])
        assert not alone


def test_y_lies_over_the_end_of_x_in_time(tmp_path: Path) -> None:
    schema = small_task(tmp_path).schema()
    time_s, kept_s = schema["x"].coords["time"].values, schema["y"].coords["time_kept"].values
    np.testing.assert_array_equal(kept_s, time_s[-schema["y"].shape[0] :])
    assert schema["y"].shape == (2200, 1)


def test_in_float32_the_teacher_alone_is_rough(tmp_path: Path) -> None:
    task = small_task(tmp_path, store_dtype="float64", compute_dtype="float32")
    last = dataclasses.replace(task, target="teacher").produce(0, 2, ("y", "f0"))
    wanted = limited(np.asarray(last["y"])[:, -2200:, 0], list(last["f0"]), 2200)
    np.testing.assert_array_equal(np.asarray(task.produce(0, 2, ("y",))["y"])[:, :, 0], wanted)


def test_a_silent_output_has_no_ratio_and_can_be_baked(tmp_path: Path) -> None:
    content = json.loads(DEFAULT_TEACHER.read_text())
    content["state_dict"]["lin.weight"] = np.zeros_like(content["state_dict"]["lin.weight"]).tolist()
    content["state_dict"]["lin.bias"], content["model_data"]["skip"] = [0.0], 0
    del content["sample_rate"]
    (tmp_path / "silent.json").write_text(json.dumps(content))
    task = small_task(tmp_path)
    with bake(dataclasses.replace(task, teacher=tmp_path / "silent.json"), tmp_path / "s.zarr") as store:
        assert np.isnan(store["esr_s"][:]).all()
        assert not store["y"][:].any()


def test_another_target_bakes_y_and_esr_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited_task = small_task(tmp_path)
    plain = dataclasses.replace(limited_task, target="teacher")
    changes = compare(producer_keys(plain)[0], producer_keys(limited_task)[0]).changes
    assert {change.field for change in changes} == {"y", "esr_s"}
    with bake(plain, tmp_path / "s.zarr") as store:
        x = store["x"][:]
    produced, inner = set[str](), SineTeacher.produce

    def produce(self: SineTeacher, start: int, stop: int, fields: Any) -> Any:
        produced.update(fields)
        return inner(self, start, stop, fields)

    monkeypatch.setattr(SineTeacher, "produce", produce)
    with bake(limited_task, tmp_path / "s.zarr", rebuild=True) as store:
        np.testing.assert_array_equal(store["x"][:], x)
        assert store["y"].shape == (6, 2200, 1)
    assert produced == {"y", "esr_s"}


def test_a_duration_below_the_last_second_is_refused(tmp_path: Path) -> None:
    text = refusal(lambda: small_task(tmp_path, duration=0.999))
    assert text.startswith("sine-teacher: duration: 0.999 s is below the last second")
    assert len(small_task(tmp_path, duration=1).schema()["y"].coords["time_kept"].values) == 2200
    assert "mps has no float64" in refusal(
        lambda: small_task(tmp_path, device="mps", compute_dtype="float32")
    )


def test_the_real_lstm_gives_the_independent_figures(broadcast_lstm: Path) -> None:
    """All 264 tones; in float32, whose figures differ from float64's by less than 0.001 dB."""
    task = SineTeacher(
        teacher=broadcast_lstm,
        validation=True,
        levels_db=LEVELS_DB,
        target="bandlimited",
        compute_dtype="float32",
    )
    esr_s = np.asarray(task.produce(0, 264, ("esr_s",))["esr_s"]).reshape(3, 88)
    by_level = 10 * np.log10(esr_s.mean(axis=1))
    np.testing.assert_allclose(by_level, [-32.58, -16.91, -26.33], rtol=0, atol=0.01)
    assert abs(by_level.mean() - -25.27) < 0.01


# ---- the paper's set-ups


def file_of(folder: Path, kind: str, sample_rate: float | None, patch: pytest.MonkeyPatch) -> Path:
    """A model file that is taken for one of ``kind`` and ``sample_rate``."""

    @dataclass(frozen=True)
    class Model:
        kind: str
        sample_rate: float | None
        sha256: str = "0" * 64

    patch.setattr(sine, "load_amp_model", lambda path: Model(kind, sample_rate))
    return folder / "model"


@pytest.mark.parametrize(
    ("numbers", "kind", "sample_rate", "duration", "steps"),
    [
        ((0, 1, 4, 5), "LSTM 40", 44100, 1.2, 52920),
        ((2, 3), "WaveNet 16", 48000, 1.05, 50400),
        ((6, 7), "WaveNet 16", 44100, 1.05, 46305),
    ],
)
def test_a_config_is_the_papers_set_up(
    numbers: tuple[Any, ...],
    kind: str,
    sample_rate: float,
    duration: float,
    steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = file_of(tmp_path, kind, sample_rate, monkeypatch)
    for number in numbers:
        task = SineTeacher(teacher=file, config=number)
        assert (task.sample_rate, task.duration, len(task)) == (sample_rate, duration, 1600)
        assert task.schema()["y"].shape == (steps, 1)
        validation = SineTeacher(teacher=file, config=number, validation=True)
        assert (validation.duration, len(validation)) == (1.2, 88)
        assert set(validation.tones(0, 88).db) == {-20.0}


def test_without_a_config_the_defaults_are_as_before() -> None:
    task = SineTeacher()
    assert (task.sample_rate, task.duration, task.config) == (44100.0, 1.2, None)
    assert task == SineTeacher(sample_rate=44100, duration=1.2)


def test_the_keys_of_the_outputs_themselves_are_as_they_were() -> None:
    keys, _ = producer_keys(SineTeacher())
    assert keys.shared == {
        "producer": "sine-teacher",
        "version": 1,
        "keys": {
            **{"sample_rate": 44100.0, "duration": 1.2, "split": "training", "seed": 0},
            **{"midi_min": 21.0, "midi_max": 127.0, "db_min": None, "db_max": 0.0, "linear_f0": False},
        },
    }
    assert keys.fields.keys() == {"x", "y", "f0", "dB", "phase"}
    own = {"teacher": {"sha256": SineTeacher().teacher_sha256}}
    assert keys.fields["y"] == keys.fields["x"] | own | {"target": "teacher", "compute_dtype": "float64"}


def test_the_number_of_a_config_is_no_key_and_its_recipe_makes_it_again(tmp_path: Path) -> None:
    file = at_any_rate(tmp_path)
    plain, keys = SineTeacher(teacher=file), producer_keys(SineTeacher(teacher=file))[0]
    for number in (0, 5):
        task = dataclasses.replace(plain, config=number)  # what it says agrees, so it may be said
        assert compare(keys, producer_keys(task)[0])
        recorded = json.loads(json.dumps(recipe_of(task)))
        assert make_producer(SineTeacher, recorded["params"]) == task


@pytest.mark.parametrize(
    ("params", "kind", "rate", "text"),
    [
        ({"config": 8}, "LSTM 40", None, "config: 8 is not one of 0, 1, 2, 3, 4, 5, 6, 7"),
        (
            {"config": 0, "teacher": None},
            "LSTM 40",
            None,
            "config: 0 is an LSTM at 44100 Hz, whose weights come with --teacher FILE",
        ),
        (
            {"config": 0, "sample_rate": 48000},
            "LSTM 40",
            None,
            "sample_rate: 48000 Hz where config 0 is 44100 Hz; leave one out",
        ),
        ({"config": 6, "duration": 1.2}, "WaveNet 16", None, "duration: 1.2 s where config 6 is 1.05 s"),
        (
            {"config": 2},
            "WaveNet 16",
            44100.0,
            "sample_rate: 48000 Hz (config 2), but the teacher model was made for 44100 Hz",
        ),
        (
            {"config": 2},
            "LSTM 40",
            None,
            "config: 2 is a TCN at 48000 Hz, but the teacher model is of kind LSTM",
        ),
        (
            {"config": 0},
            "WaveNet 16",
            None,
            "config: 0 is an LSTM at 44100 Hz, but the teacher model is of kind",
        ),
        (
            {"config": 4},
            "GRU 20",
            None,
            "config: 4 is an LSTM at 44100 Hz, but the teacher model is of kind GRU",
        ),
    ],
)
def test_what_contradicts_a_config_is_refused_in_one_line(
    params: dict[str, Any],
    kind: str,
    rate: float | None,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_params = {"teacher": file_of(tmp_path, kind, rate, monkeypatch), **params}
    assert refusal(lambda: SineTeacher(**given_params)).startswith(f"sine-teacher: {text}")


def test_the_real_tcn_belongs_to_the_configs_at_its_rate(broadcast_lstm: Path) -> None:
    file = broadcast_lstm.with_name("broadcast_tcn_teacher.nam")
    task = SineTeacher(teacher=file, config=6, target="bandlimited", compute_dtype="float32", num_samples=1)
    assert (task.sample_rate, task.duration) == (44100, 1.05)
    assert 0 < float(task.produce(0, 1, ("esr_s",))["esr_s"][0]) < 1
    assert "48000 Hz (config 2), but the teacher" in refusal(lambda: SineTeacher(teacher=file, config=2))
    assert "is of kind WaveNet" in refusal(lambda: SineTeacher(teacher=file, config=0))


def test_the_commands_of_the_guide_work(tmp_path: Path) -> None:
    common = ["sine-teacher", "--config", "0", "--teacher", str(at_any_rate(tmp_path))]
    path = tmp_path / "train.zarr"
    options = ["--num-samples", "2", "--target", "bandlimited", "-o", str(path)]
    done = CliRunner().invoke(main, ["build", *common, *options])
    assert done.exit_code == 0, done.output
    with open_store(path) as store:
        assert store["x"].shape == (2, 52920, 1)
        assert store["y"].shape == (2, kept_steps(44100), 1)
        assert (store["esr_s"][:] > 0).all()
    assert CliRunner().invoke(main, ["check", str(path)]).output == "fresh\n"
    validation = parse_producer([*common, "--validation"], "build")
    assert (len(validation), validation.config) == (88, 0)
    refused = CliRunner().invoke(main, ["build", "sine-teacher", "--config", "0", "-o", str(path)])
    assert refused.exit_code == 2
    assert "--teacher" in refused.output


def test_a_bandlimited_store_opens_in_xarray(tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    bake(small_task(tmp_path), tmp_path / "s.zarr").close()
    with xr.open_zarr(tmp_path / "s.zarr") as ds:
        assert ds["y"].dims == ("sample", "time_kept", "channel")
        assert "esr_s" in ds.coords
        assert float(ds["time_kept"][-1]) == float(ds["time"][-1])
