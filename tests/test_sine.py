"""The sine-tone task: its draws, keys and values, and every parameter that makes no task."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bakery import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

import parbake
from parbake.errors import TeacherFileError
from parbake.producers.audio.sine import DEFAULT_TEACHER, SineTeacher
from parbake.producers.audio.tones import uniforms
from parbake.store.keys import Producer, canonical, compare, producer_keys

FIELDS = ("x", "y", "f0", "dB", "phase")
SHORT_S = 0.004  # 176 points
SEEDS = st.integers(0, 2**64 - 1)


def rows(producer: SineTeacher, start: int, stop: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(part) for name, part in producer.produce(start, stop, FIELDS).items()}


def other_teacher(folder: Path) -> Path:
    """The shipped teacher with another output bias, at no stated rate."""
    content = json.loads(DEFAULT_TEACHER.read_text())
    content["state_dict"]["lin.bias"] = [0.5]
    del content["sample_rate"]
    file = folder / "other.json"
    file.write_text(json.dumps(content))
    return file


# ---- draws


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """One block of Philox 4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    mask = 2**64 - 1
    c = [counter >> 64 * i & mask for i in range(4)]
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [p1 >> 64 ^ c[1] ^ k0, p1 & mask, p0 >> 64 ^ c[3] ^ k1, p0 & mask]
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & mask, k1 + 0xBB67AE8584CAA73B & mask
    return c


def test_the_reference_generator_gives_the_published_vector() -> None:
    published = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox(0, (0, 0)) == published  # Random123, kat_vectors


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.integers(0, 1), st.integers(0, 2**40), st.integers(0, 5))
def test_numbers_are_philox_of_seed_stream_and_sample(seed: int, stream: int, start: int, count: int) -> None:
    wanted = [[(v >> 11) / 2**53 for v in philox(start + i + 1, (seed, stream))] for i in range(count)]
    drawn = uniforms(seed, stream, start, start + count)
    assert drawn.shape == (count, 4)
    assert drawn.tolist() == wanted


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_streams_and_seeds_share_no_number(seed: int) -> None:
    blocks = [uniforms(seed, 0, 0, 64), uniforms(seed, 1, 0, 64), uniforms(seed ^ 1, 0, 0, 64)]
    assert len(np.unique(blocks)) == 3 * 64 * 4


@settings(deadline=None, max_examples=50)
@given(
    SEEDS,
    st.floats(0, 60),
    st.floats(0, 67),
    st.floats(-60, 20),
    st.one_of(st.none(), st.floats(0, 60)),
    st.booleans(),
)
def test_draws_stay_in_their_ranges(
    seed: int, low: float, span: float, db_max: float, db_span: float | None, linear: bool
) -> None:
    high, db_min = low + span, None if db_span is None else db_max - db_span
    task = SineTeacher(
        seed=seed, midi_min=low, midi_max=high, db_min=db_min, db_max=db_max, linear_f0=linear, duration=0.001
    )
    t = task.tones(0, 200)
    edges = [440 * 2 ** ((note - 69) / 12) for note in (low, high)]
    assert edges[0] * (1 - 1e-12) <= t.f0.min() <= t.f0.max() <= edges[1] * (1 + 1e-12)
    quietest = 0 if db_min is None else 10 ** (db_min / 20)
    assert 0 < t.amplitude.min() <= t.amplitude.max() <= 10 ** (db_max / 20) * (1 + 1e-12)
    assert t.amplitude.min() >= quietest * (1 - 1e-12)
    assert 0 <= t.phase.min() <= t.phase.max() < 2 * np.pi
    np.testing.assert_allclose(10 ** (t.db / 20), t.amplitude, rtol=1e-12)


def test_notes_or_frequencies_amplitudes_and_phases_are_uniform() -> None:
    for linear in (False, True):
        t = SineTeacher(linear_f0=linear).tones(0, 20_000)
        low, high = (440 * 2 ** ((note - 69) / 12) for note in (21, 127))
        share = (t.f0 - low) / (high - low) if linear else np.log(t.f0 / low) / np.log(high / low)
        for drawn in (share, t.amplitude, t.phase / (2 * np.pi)):
            # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) one fair sample in a thousand; seed 0 is fixed
            distance = np.abs(np.sort(drawn) - (np.arange(20_000) + 0.5) / 20_000).max()
            assert distance < 1.95 / math.sqrt(20_000)


def test_levels_are_drawn_uniformly_in_db_where_that_is_asked_for() -> None:
    task = SineTeacher(linear_db=True, db_min=-40, db_max=-6)
    t, plain = task.tones(0, 20_000), SineTeacher(db_min=-40, db_max=-6).tones(0, 20_000)
    share = np.sort((t.db + 40) / 34)
    assert 0 < share[0] <= share[-1] <= 1
    assert np.abs(share - (np.arange(20_000) + 0.5) / 20_000).max() < 1.95 / math.sqrt(20_000)
    np.testing.assert_allclose(t.amplitude, 10 ** (t.db / 20), rtol=1e-15)
    np.testing.assert_array_equal([t.f0, t.phase], [plain.f0, plain.phase])
    assert "give db_min" in refusal(lambda: SineTeacher(linear_db=True))


def test_validation_is_88_notes_at_each_level_in_turn() -> None:
    task = SineTeacher(validation=True, levels_db=(-36, -18, -6), num_samples=5, seed="fresh")
    assert len(task) == 264
    t = task.tones(0, 264)
    np.testing.assert_allclose(t.f0[:88], 440 * 2 ** ((np.arange(21, 109) - 69) / 12), rtol=1e-15)
    assert t.f0[48] == 440.0
    assert t.db.tolist() == [-36.0] * 88 + [-18.0] * 88 + [-6.0] * 88
    np.testing.assert_array_equal(t.f0[88:176], t.f0[:88])
    np.testing.assert_allclose(t.amplitude, 10 ** (t.db / 20), rtol=1e-15)
    assert not t.phase.any()
    with pytest.raises(IndexError, match="sample 264 of 264"):
        task.tones(263, 265)


# ---- values


def test_x_is_the_sine_that_the_scalars_describe() -> None:
    out = rows(SineTeacher(duration=0.05, store_dtype="float64"), 0, 8)
    for i in range(8):
        time = np.arange(2205) / 44100
        wanted = 10 ** (out["dB"][i] / 20) * np.sin(2 * np.pi * out["f0"][i] * time + out["phase"][i])
        np.testing.assert_allclose(out["x"][i, :, 0], wanted, rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 15), st.integers(1, 8), st.booleans())
def test_a_range_equals_its_rows_of_a_larger_one(start: int, count: int, validation: bool) -> None:
    task = SineTeacher(validation=validation, duration=SHORT_S, store_dtype="float64", seed=3)
    longer = dataclasses.replace(task, num_samples=7)
    whole, part = rows(task, 0, 24), rows(longer, start, start + count)
    for name in ("f0", "dB", "phase"):
        np.testing.assert_array_equal(part[name], whole[name][start : start + count])
    for name in ("x", "y"):
        np.testing.assert_allclose(part[name], whole[name][start : start + count], rtol=0, atol=1e-12)


def test_batched_output_equals_one_at_a_time(broadcast_lstm: Path) -> None:
    task = SineTeacher(teacher=broadcast_lstm, duration=0.05, store_dtype="float64")
    batched = rows(task, 0, 16)["y"]
    single = np.concatenate([rows(task, i, i + 1)["y"] for i in range(16)])
    assert np.abs(batched).max() > 0.1
    np.testing.assert_allclose(batched, single, rtol=0, atol=1e-12)


def test_fields_have_the_declared_shapes_and_dtypes_and_only_those_asked_for() -> None:
    for dtype in ("float64", "float32", "float16"):
        task = SineTeacher(duration=SHORT_S, store_dtype=dtype)
        assert isinstance(task, Producer)
        out, schema = rows(task, 2, 5), task.schema()
        assert out.keys() == schema.keys()
        for name, part in out.items():
            assert (part.shape, part.dtype) == ((3, *schema[name].shape), schema[name].dtype)
        np.testing.assert_array_equal(schema["x"].coords["time"].values, np.arange(176) / 44100)
    for name in FIELDS:
        assert task.produce(0, 1, [name]).keys() == {name}


def test_compute_dtype_is_the_teachers() -> None:
    task = SineTeacher(duration=SHORT_S, store_dtype="float64")
    exact, rough = rows(task, 0, 4), rows(dataclasses.replace(task, compute_dtype="float32"), 0, 4)
    np.testing.assert_array_equal(exact["x"], rough["x"])
    assert 0 < np.abs(exact["y"] - rough["y"]).max() < 1e-4


def test_the_shipped_teacher_sounds_like_the_circuit_it_was_trained_on() -> None:
    file = Path(__file__).resolve().parents[1] / "examples" / "train_default_teacher.py"
    spec = importlib.util.spec_from_file_location("train_default_teacher", file)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    task = SineTeacher(validation=True, levels_db=(-36, -6), duration=0.05, store_dtype="float64")
    tones = task.tones(0, 176)
    _, volts = script.clipper(tones.f0, tones.amplitude, tones.phase, 2205)
    errors = np.sum((rows(task, 0, 176)["y"][:, :, 0] - volts) ** 2, axis=1)
    assert np.max(errors / np.sum(volts**2, axis=1)) < 0.01
    assert DEFAULT_TEACHER.stat().st_size < 100_000


# ---- keys


def test_keys_are_plain_json_and_change_with_all_that_matters_and_nothing_else() -> None:
    task = SineTeacher(duration=SHORT_S)
    stored, _ = producer_keys(task)

    def changed(**params: Any) -> set[tuple[str | None, str]]:
        freshness = compare(stored, producer_keys(dataclasses.replace(task, **params))[0])
        return {(change.field, change.path) for change in freshness.changes}

    canonical({"shared": stored.shared})
    for nothing in ({"num_samples": 5}, {"device": "cpu"}, {"levels_db": (-6.0,)}, {"midi_min": 21}):
        assert changed(**nothing) == set()
    assert changed(linear_db=True, db_min=-40) == {(None, "db_min"), (None, "linear_db")}
    shared = {"midi_min": 30, "midi_max": 90, "db_min": -40, "db_max": -1, "linear_f0": True, "seed": 1}
    for name, value in shared.items():
        assert changed(**{name: value}) == {(None, name)}
    assert changed(seed="fresh") == {(None, "seed")}
    assert changed(compute_dtype="float32") == {("y", "compute_dtype")}
    assert changed(store_dtype="float64") == {("x", "dtype"), ("y", "dtype")}
    assert (None, "duration") in changed(duration=0.1)
    assert (None, "split") in changed(validation=True)


def test_validation_keys_leave_out_what_validation_does_not_use() -> None:
    task = SineTeacher(duration=SHORT_S, validation=True)
    stored, _ = producer_keys(task)
    unused = {"midi_min": 30, "midi_max": 90, "db_min": -40, "db_max": -1, "linear_f0": True, "seed": "fresh"}
    assert compare(stored, producer_keys(dataclasses.replace(task, **unused))[0])  # type: ignore[arg-type]
    other = compare(stored, producer_keys(dataclasses.replace(task, levels_db=(-6.0,)))[0])
    assert [change.path.split("[")[0] for change in other.changes] == ["levels_db"]


def test_another_teacher_makes_y_alone_stale_wherever_its_file_lies(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    first, second = other_teacher(tmp_path), other_teacher(tmp_path / "sub")
    default, _ = producer_keys(SineTeacher(duration=SHORT_S))
    one, _ = producer_keys(SineTeacher(duration=SHORT_S, teacher=first))
    two, _ = producer_keys(SineTeacher(duration=SHORT_S, teacher=second))
    assert {(c.field, c.path) for c in compare(default, one).changes} == {("y", "teacher.sha256")}
    assert compare(one, two)
    assert str(tmp_path) not in canonical({"shared": one.shared, "fields": one.fields})


def test_a_teacher_that_changed_after_construction_is_not_run(tmp_path: Path) -> None:
    task = SineTeacher(duration=SHORT_S, teacher=other_teacher(tmp_path))
    assert task.teacher is not None
    task.teacher.write_text(DEFAULT_TEACHER.read_text())
    with pytest.raises(TeacherFileError, match="changed since the producer was made"):
        task.produce(0, 1, ("y",))


def test_two_teachers_at_one_path_one_after_the_other_are_told_apart(tmp_path: Path) -> None:
    file = other_teacher(tmp_path)
    before = rows(SineTeacher(duration=SHORT_S, teacher=file), 0, 2)["y"]
    file.write_text(DEFAULT_TEACHER.read_text())
    after = rows(SineTeacher(duration=SHORT_S, teacher=file), 0, 2)["y"]
    assert np.abs(before - after).min() > 0.1  # the bias of 0.5
    np.testing.assert_array_equal(after, rows(SineTeacher(duration=SHORT_S), 0, 2)["y"])


def test_it_pickles_small_is_hashable_and_equal_to_its_copy(tmp_path: Path) -> None:
    task = SineTeacher(duration=SHORT_S, teacher=other_teacher(tmp_path))
    task.produce(0, 1, ("y",))
    data = pickle.dumps(task)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert {copy: 1}[task] == 1
    np.testing.assert_array_equal(rows(copy, 0, 2)["y"], rows(task, 0, 2)["y"])


def test_a_relative_teacher_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_teacher(tmp_path)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    task = SineTeacher(duration=SHORT_S, teacher="other.json")  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path / "sub")
    assert task.produce(0, 1, ("y",))["y"].shape == (1, 176, 1)


def test_torch_is_imported_for_y_alone() -> None:
    code = (
        "import sys; from parbake.producers.audio.sine import SineTeacher\n"
        "from parbake.store.keys import producer_keys\n"
        "task = SineTeacher(duration=0.001)\n"
        "producer_keys(task), task.schema(), len(task), task.produce(0, 1, ('x', 'f0'))\n"
        "before = 'torch' in sys.modules\n"
        "task.produce(0, 1, ('y',))\n"
        "print(before, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout == "False True\n"


# ---- faults


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"sample_rate": 0}, "sample_rate: 0 is not above zero and finite"),
        ({"sample_rate": "inf"}, "sample_rate: inf is not above zero and finite"),
        ({"duration": "nan"}, "duration: nan is not above zero and finite"),
        ({"duration": 1e-5}, "duration: 1e-05 s at 44100 Hz is 0.441 points a tone"),
        ({"duration": 1e300, "sample_rate": 1e300}, "duration: 1e+300 s at 1e+300 Hz is inf points a tone"),
        ({"duration": 1e5}, "duration: 100000 s at 44100 Hz is 4.41e+09 points a tone"),
        ({"num_samples": 0}, "num_samples: 0 is below 1"),
        ({"seed": -1}, "seed: -1 is not from 0 to 2^64 - 1"),
        ({"seed": 2**64}, f"seed: {2**64} is not from 0 to 2^64 - 1"),
        ({"midi_min": -1}, "midi_min: -1 is not from 0 to midi_max (127)"),
        ({"midi_min": 60, "midi_max": 59}, "midi_min: 60 is not from 0 to midi_max (59)"),
        ({"midi_max": 1e308}, "midi_max: note 1e+308 is not below half of sample_rate"),
        ({"midi_max": "nan"}, "midi_min: 21 is not from 0 to midi_max (nan)"),
        ({"db_max": 61}, "db_max: 61 dB is not from -200 to 60"),
        ({"db_min": 1}, "db_min: 1 is above db_max (0)"),
        ({"db_min": "-inf"}, "db_min: -inf dB is not from -200 to 60"),
        ({"validation": True, "levels_db": ()}, "levels_db: is empty"),
        ({"validation": True, "levels_db": (-20, 1000)}, "levels_db: 1000 dB is not from -200 to 60"),
        ({"validation": True, "sample_rate": 8000}, "validation: note 108 is not below half of sample_rate"),
        ({"sample_rate": 48000}, "sample_rate: 48000 Hz, but the teacher default_teacher.json was made for"),
        ({"device": "gpu"}, "device: 'gpu' is not auto, cpu, cuda"),
        ({"device": "mps"}, "device: mps has no float64"),
        ({"target": "student"}, "target: 'student' is not one of 'teacher', 'bandlimited'"),
        ({"store_dtype": "int8"}, "store_dtype: 'int8' is not one of 'float64', 'float32', 'float16'"),
    ],
)
def test_a_parameter_that_makes_no_task_is_refused_at_once(params: dict[str, Any], text: str) -> None:
    assert refusal(lambda: SineTeacher(**params)).startswith(f"sine-teacher: {text}")


def test_notes_at_half_the_sample_rate_are_refused_and_below_it_not(tmp_path: Path) -> None:
    anywhere = other_teacher(tmp_path)  # states no rate
    SineTeacher(teacher=anywhere, sample_rate=880.1, midi_max=69)
    assert "midi_max" in refusal(lambda: SineTeacher(teacher=anywhere, sample_rate=880, midi_max=69))


def test_a_rate_that_is_left_out_is_that_of_the_teachers_file(tmp_path: Path) -> None:
    file = tmp_path / "at_48k.json"
    file.write_text(json.dumps(json.loads(DEFAULT_TEACHER.read_text()) | {"sample_rate": 48_000}))
    task = SineTeacher(teacher=file, num_samples=2, duration=SHORT_S)
    assert task == SineTeacher(teacher=file, num_samples=2, duration=SHORT_S, sample_rate=48_000)
    assert task.sample_rate == 48_000
    assert rows(task, 0, 1)["x"].shape == (1, round(SHORT_S * 48_000), 1)
    assert SineTeacher(teacher=other_teacher(tmp_path)).sample_rate == 44_100  # it states none
    text = refusal(lambda: SineTeacher(teacher=file, sample_rate=44_100))
    assert text.startswith(
        "sine-teacher: sample_rate: 44100 Hz, but the teacher at_48k.json was made for 48000 Hz"
    )


def test_an_absent_teacher_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TeacherFileError, match="no such teacher file"):
        SineTeacher(teacher=tmp_path / "no.json")


def test_a_fresh_seed_is_the_bakes_to_draw() -> None:
    assert refusal(lambda: SineTeacher(seed="fresh").produce(0, 1, ("f0",))).startswith(
        "sine-teacher: seed: "
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_a_recipe_error() -> None:
    task = SineTeacher(duration=SHORT_S, device="cuda:0")
    assert refusal(lambda: task.produce(0, 1, ("y",))).startswith("sine-teacher: device: 'cuda:0' cannot")


def test_a_model_file_that_is_replaced_after_it_was_read_is_another_one(tmp_path: Path) -> None:
    file = tmp_path / "teacher.json"
    content = DEFAULT_TEACHER.read_text()
    file.write_text(content)
    first = SineTeacher(teacher=file, num_samples=2, duration=0.01)
    first.produce(0, 1, ("y",))
    model = json.loads(content)
    model["state_dict"]["lin.bias"] = [value + 1 for value in model["state_dict"]["lin.bias"]]
    file.write_text(json.dumps(model))
    with parbake.bake(first, tmp_path / "s.zarr", progress=False) as store:
        assert not store.freshness(SineTeacher(teacher=file, num_samples=2, duration=0.01))
