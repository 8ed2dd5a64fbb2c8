"""Sine tones through a teacher network: the data for distilling an amp model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from parbake.errors import RecipeError
from parbake.producers.amp_models import amp_module, load_amp_model
from parbake.producers.recipe import settle
from parbake.store.keys import JSON
from parbake.store.layout import SAMPLE_NBYTES_MAX, Coord, Field

DEFAULT_TEACHER = Path(__file__).resolve().parents[1] / "data" / "default_teacher.json"

_TRAINING = 0  # numbers of the random streams; 1 is kept for a validation that draws
_VALIDATION_NOTES = 21.0 + np.arange(88)  # the keys of a piano, A0 to C8
_LEVELS_DB = (-200.0, 60.0)  # beyond them no stored dtype holds the tone
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


def _option(help_text: str) -> dict[str, str]:
    return {"help": help_text}


@dataclass(frozen=True)
class Tones:
    """Tones of a range of samples: float64 arrays [samples]. ``f0`` in Hz, ``phase`` in radians."""

    f0: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    phase: NDArray[np.float64]
    db: NDArray[np.float64]  # 20 log10 of the amplitude

    def wave(self, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """A sin(2 pi f0 t + phase), [samples, time, 1]."""
        radians = np.outer(2 * np.pi * self.f0, time_s)
        radians += self.phase[:, None]
        np.sin(radians, out=radians)
        radians *= self.amplitude[:, None]
        return radians[:, :, None]


@dataclass(frozen=True)
class SineTeacher:
    """Sine tones and what a teacher network makes of them.

    Fields: x, the tone A sin(2 pi f0 t + phase), and y, the teacher's output from zero state, both
    [time, 1]; scalars f0 (Hz), dB (20 log10 A) and phase (radians).

    Training draws for each sample a note, uniform over the real numbers in [midi_min, midi_max] and
    not over whole notes, so that frequencies between the keys are learnt too (``linear_f0``: uniform
    in Hz over the same range); an amplitude, uniform in (0, 10^(db_max/20)] (from 10^(db_min/20) where
    that is given); a phase, uniform in [0, 2 pi). The draws depend on (seed, sample) alone.

    Validation draws nothing: notes 21 to 108 at phase 0 for each of ``levels_db``, all notes of the
    first level first. num_samples, midi_*, db_*, linear_f0 and seed do not matter to it.

    x is computed in float64; ``compute_dtype`` is the teacher's. Raises RecipeError for parameters
    that make no task, TeacherFileError for a teacher that cannot be used.
    """

    name: ClassVar[str] = "sine-teacher"
    version: ClassVar[int] = 1

    teacher: Path | None = field(
        default=None, metadata=_option("Model file: LSTM or GRU, Proteus JSON. Default: a diode clipper.")
    )
    num_samples: int = field(default=1600, metadata=_option("Tones of the training set."))
    sample_rate: float = field(default=44100.0, metadata=_option("Hz."))
    duration: float = field(default=1.2, metadata=_option("Seconds of each tone."))
    midi_min: float = field(default=21.0, metadata=_option("Lowest MIDI note, fractions allowed."))
    midi_max: float = field(default=127.0, metadata=_option("Highest MIDI note."))
    db_min: float | None = field(
        default=None, metadata=_option("Lowest level, dB re amplitude 1. Default: down to silence.")
    )
    db_max: float = field(default=0.0, metadata=_option("Highest level, dB re amplitude 1."))
    linear_f0: bool = field(
        default=False, metadata=_option("Draw frequencies uniformly in Hz, not in notes.")
    )
    validation: bool = field(
        default=False, metadata=_option("The fixed validation set: 88 notes from 21, phase 0, each level.")
    )
    levels_db: tuple[float, ...] = field(
        default=(-20.0,), metadata=_option("Levels of the validation set, dB re amplitude 1.")
    )
    target: Literal["teacher"] = field(default="teacher", metadata=_option("What y is."))
    seed: int | Literal["fresh"] = field(
        default=0, metadata=_option("Seed of the training set; 'fresh' draws one at the first bake.")
    )
    compute_dtype: Literal["float64", "float32"] = field(
        default="float64", metadata=_option("Precision in which the teacher runs.")
    )
    store_dtype: Literal["float64", "float32", "float16"] = field(
        default="float32", metadata=_option("Precision of x and y as stored.")
    )
    device: str = field(
        default="auto", metadata=_option("Where the teacher runs: auto (CUDA if present), cpu, cuda:0, ...")
    )
    teacher_sha256: str = field(init=False, repr=False)  # of the file when this was made

    def __post_init__(self) -> None:
        settle(self)
        for check in (_check_time, _check_validation if self.validation else _check_training, _check_device):
            check(self)
        if self.teacher is not None:
            object.__setattr__(self, "teacher", self.teacher.absolute())
        model = load_amp_model(self.teacher_path)
        if model.sample_rate not in (None, self.sample_rate):
            raise _refused(
                "sample_rate",
                f"{self.sample_rate:g} Hz, but the teacher {self.teacher_path.name} was made for "
                f"{model.sample_rate:g} Hz; set it to that or name another teacher",
            )
        object.__setattr__(self, "teacher_sha256", model.sha256)

    @property
    def teacher_path(self) -> Path:
        return self.teacher or DEFAULT_TEACHER

    @property
    def time_s(self) -> NDArray[np.float64]:
        """Time of each point of a tone, in seconds from its start."""
        return np.arange(_steps(self)) / self.sample_rate

    def __len__(self) -> int:
        return len(_VALIDATION_NOTES) * len(self.levels_db) if self.validation else self.num_samples

    def schema(self) -> dict[str, Field]:
        shape, dims = (_steps(self), 1), ("time", "channel")
        coords = {"time": Coord(self.time_s, "s")}
        teacher = {"teacher": self.teacher_path, "target": self.target, "compute_dtype": self.compute_dtype}
        return {
            "x": Field(
                shape, self.store_dtype, dims, units="1", coords=coords, description="input of the teacher"
            ),
            # a change of teacher leaves the tones as they are, so what it touches is y's own
            "y": Field(
                shape,
                self.store_dtype,
                dims,
                units="1",
                coords=coords,
                keys=teacher,
                description="output of the teacher",
            ),
            "f0": Field((), "float64", (), units="Hz", description="fundamental frequency"),
            "dB": Field((), "float64", (), units="dB", description="level re amplitude 1"),
            "phase": Field((), "float64", (), units="rad", description="phase at time 0"),
        }

    def invalidation_keys(self) -> dict[str, JSON]:
        """What the tones depend on; parameters that do not matter to the split in hand are left out."""
        keys: dict[str, JSON] = {"sample_rate": self.sample_rate, "duration": self.duration}
        if self.validation:
            return keys | {"split": "validation", "levels_db": list(self.levels_db)}
        names = ("midi_min", "midi_max", "db_min", "db_max", "linear_f0", "seed")
        return keys | {"split": "training"} | {name: getattr(self, name) for name in names}

    def tones(self, start: int, stop: int) -> Tones:
        """The tones of samples [start, stop)."""
        if not 0 <= start <= stop:
            raise IndexError(f"sine-teacher: samples {start} to {stop} are no range")
        return _validation_tones(self, start, stop) if self.validation else _drawn_tones(self, start, stop)

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> Mapping[str, Any]:
        """The named fields of samples [start, stop): NumPy arrays, and y as a tensor on its device."""
        tones = self.tones(start, stop)
        scalars = {"f0": tones.f0, "dB": tones.db, "phase": tones.phase}
        out: dict[str, Any] = {name: scalars[name] for name in fields if name in scalars}
        if "x" in fields or "y" in fields:
            wave = tones.wave(self.time_s)
            if "x" in fields:
                out["x"] = wave.astype(self.store_dtype)
            if "y" in fields:
                out["y"] = self._through_teacher(wave)
        return out

    def _through_teacher(self, wave: NDArray[np.float64]) -> Any:
        import torch

        device = _usable_device(self.device)
        module = amp_module(self.teacher_path.resolve(), self.teacher_sha256, self.compute_dtype, device)
        with torch.inference_mode():
            x = torch.from_numpy(wave).to(getattr(torch, self.compute_dtype)).to(device)
            return module(x).to(getattr(torch, self.store_dtype))


def _usable_device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (AssertionError, RuntimeError) as error:  # what torch raises without that backend or number
        text = " ".join(str(error).split())[:120]
        raise _refused("device", f"{wanted!r} cannot be used here: {text}") from error
    return wanted


def _steps(recipe: SineTeacher) -> int:
    return round(recipe.duration * recipe.sample_rate)


# ---- tones


def uniforms(seed: int, stream: int, start: int, stop: int) -> NDArray[np.float64]:
    """Four numbers in [0, 1) for each of samples [start, stop): [stop - start, 4].

    They depend on (seed, stream, sample) alone: Philox 4x64-10 in counter mode (Salmon et al. 2011),
    the sample number being the counter. Its raw bits are used, and no method of NumPy's Generator,
    whose streams may change between versions (NEP 19).
    """
    key = np.array([seed, stream], dtype=np.uint64)
    # the generator counts up before each block of four
    raw = np.random.Philox(key=key, counter=start).random_raw(4 * (stop - start))
    bits = np.asarray(raw, dtype=np.uint64).reshape(-1, 4)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _drawn_tones(recipe: SineTeacher, start: int, stop: int) -> Tones:
    if recipe.seed == "fresh":
        raise _refused("seed", "'fresh' is drawn by the bake; give a number to compute tones outside one")
    note, level, turn, _ = uniforms(recipe.seed, _TRAINING, start, stop).T
    low, high = recipe.midi_min, recipe.midi_max
    f0 = _hz(low) + (_hz(high) - _hz(low)) * note if recipe.linear_f0 else _hz(low + (high - low) * note)
    quietest = 0.0 if recipe.db_min is None else _amplitude(recipe.db_min)
    # 1 - level is in (0, 1]: never silence, whose level in dB is no number
    amplitude = quietest + (_amplitude(recipe.db_max) - quietest) * (1 - level)
    return Tones(f0, amplitude, 2 * np.pi * turn, 20 * np.log10(amplitude))


def _validation_tones(recipe: SineTeacher, start: int, stop: int) -> Tones:
    if stop > len(recipe):
        raise IndexError(f"sine-teacher: sample {stop - 1} of {len(recipe)} validation samples")
    level, note = np.divmod(np.arange(start, stop), len(_VALIDATION_NOTES))
    db = np.array(recipe.levels_db)[level]
    return Tones(_hz(_VALIDATION_NOTES[note]), _amplitude(db), np.zeros(len(db)), db)


def _hz(note: Any) -> Any:
    return 440.0 * 2.0 ** ((note - 69.0) / 12.0)


def _amplitude(db: Any) -> Any:
    return 10.0 ** (db / 20.0)


# ---- checks


def _refused(parameter: str, text: str) -> RecipeError:
    return RecipeError(f"{SineTeacher.name}: {parameter}: {text}")


def _check_time(recipe: SineTeacher) -> None:
    for name in ("sample_rate", "duration"):
        value = getattr(recipe, name)
        if not 0 < value < math.inf:
            raise _refused(name, f"{value:g} is not above zero and finite")
    steps = recipe.duration * recipe.sample_rate
    points_max = SAMPLE_NBYTES_MAX // np.dtype(recipe.store_dtype).itemsize
    if not 0.5 < steps <= points_max:
        raise _refused(
            "duration",
            f"{recipe.duration:g} s at {recipe.sample_rate:g} Hz is {steps:g} points a tone; "
            f"it must be from 1 to {points_max:,}",
        )


def _check_training(recipe: SineTeacher) -> None:
    if recipe.num_samples < 1:
        raise _refused("num_samples", f"{recipe.num_samples} is below 1")
    if recipe.seed != "fresh" and not 0 <= recipe.seed < 2**64:
        raise _refused("seed", f"{recipe.seed} is not from 0 to 2^64 - 1, and not 'fresh'")
    low, high = recipe.midi_min, recipe.midi_max
    if not 0 <= low <= high:
        raise _refused("midi_min", f"{low:g} is not from 0 to midi_max ({high:g})")
    _check_nyquist("midi_max", high, recipe.sample_rate)
    _check_level("db_max", recipe.db_max)
    if recipe.db_min is not None:
        _check_level("db_min", recipe.db_min)
        if recipe.db_min > recipe.db_max:
            raise _refused("db_min", f"{recipe.db_min:g} is above db_max ({recipe.db_max:g})")


def _check_validation(recipe: SineTeacher) -> None:
    if not recipe.levels_db:
        raise _refused("levels_db", "is empty; give at least one level in dB, such as -20")
    for level in recipe.levels_db:
        _check_level("levels_db", level)
    _check_nyquist("validation", float(_VALIDATION_NOTES[-1]), recipe.sample_rate)


def _check_nyquist(parameter: str, note: float, sample_rate: float) -> None:
    limit = 69 + 12 * math.log2(sample_rate / 2 / 440)  # compared as notes: no overflow
    if not note < limit:
        raise _refused(
            parameter,
            f"note {note:g} is not below half of sample_rate ({sample_rate / 2:g} Hz, note {limit:.2f}); "
            "its tone would alias",
        )


def _check_level(parameter: str, level_db: float) -> None:
    low, high = _LEVELS_DB
    if not low <= level_db <= high:
        raise _refused(parameter, f"{level_db:g} dB is not from {low:g} to {high:g}")


def _check_device(recipe: SineTeacher) -> None:
    if not _DEVICE.fullmatch(recipe.device):
        raise _refused("device", f"{recipe.device!r} is not auto, cpu, cuda, cuda:N, xpu or mps")
    if recipe.device == "mps" and recipe.compute_dtype == "float64":
        raise _refused("device", "mps has no float64; set compute_dtype to float32")
