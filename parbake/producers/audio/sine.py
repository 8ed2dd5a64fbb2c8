"""Sine tones through a teacher network: the data for distilling an amp model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from parbake.errors import RecipeError
from parbake.producers.audio.amp_models import AmpModel, amp_module, load_amp_model
from parbake.producers.audio.bandlimited import alias_ratio, band_limited, kept_steps
from parbake.producers.audio.paper import PAPER_CONFIGS, VALIDATION_DURATION_S, ConfigNumber, PaperConfig
from parbake.producers.audio.tones import VALIDATION_NOTES, ToneRanges, Tones, drawn_tones, validation_tones
from parbake.producers.devices import usable_device
from parbake.producers.recipe import option, settle
from parbake.store.keys import JSON
from parbake.store.layout import SAMPLE_NBYTES_MAX, Coord, Field

DEFAULT_TEACHER = Path(__file__).resolve().parents[2] / "data" / "default_teacher.json"

_ORDINARY = {"sample_rate": 44100.0, "duration": 1.2}  # what a config or a model file may say otherwise
_LEFT_OUT = cast(float, None)  # until __post_init__ has put a number there
_LEVELS_DB = (-200.0, 60.0)  # beyond them no stored dtype holds the tone
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


@dataclass(frozen=True)
class SineTeacher:
    """Sine tones and what a teacher network makes of them.

    Fields: x, the tone A sin(2 pi f0 t + phase), and y, the teacher's output, started anew for
    each tone, both [time, 1]; scalars f0 (Hz), dB (20 log10 A) and phase (radians).

    ``target="bandlimited"``: y is the alias-free part of the output's last second, [time_kept, 1] with
    round(sample_rate) steps (see ``bandlimited``), so that a student is trained on
    ``student(x)[:, -y.shape[1]:]`` against y. x stays whole: the student settles in what comes before.
    The scalar esr_s is then the energy of what was taken away over the energy of y; 10 log10 of it is in
    dB; NaN for a silent output, which has neither.

    Training draws for each sample a note, uniform over the real numbers in [midi_min, midi_max] and
    not over whole notes, so that frequencies between the keys are learnt too (``linear_f0``: uniform
    in Hz over the same range); an amplitude, uniform in (0, 10^(db_max/20)] (from 10^(db_min/20) where
    that is given; ``linear_db``: a level, uniform in dB from db_min to db_max); a phase, uniform in
    [0, 2 pi). The draws depend on (seed, sample) alone.

    Validation draws nothing: notes 21 to 108 at phase 0 for each of ``levels_db``, all notes of the
    first level first. num_samples, midi_*, db_*, linear_* and seed do not matter to it.

    ``config``: a set-up of arXiv 2505.11375 (see ``paper``) gives sample_rate and duration (that of
    training tones, or 1.2 s in validation), which must not contradict it, and the family of network that
    ``teacher`` has to hold; the number itself is no key. Without a config a sample_rate that is left out
    is the one that the teacher's file states; one that is given must not contradict the file.

    x is computed in float64; ``compute_dtype`` is the teacher's. Raises RecipeError for parameters
    that make no task, TeacherFileError for a teacher that cannot be used.
    """

    name: ClassVar[str] = "sine-teacher"
    version: ClassVar[int] = 1

    teacher: Path | None = field(
        default=None, metadata=option("Model file: Proteus JSON or .nam 0.5. Default: a diode clipper.")
    )
    config: ConfigNumber | None = field(
        default=None, metadata=option("Set-up of arXiv 2505.11375; its weights come with --teacher.")
    )
    num_samples: int = field(default=1600, metadata=option("Tones of the training set."))
    sample_rate: float = field(
        default=_LEFT_OUT, metadata=option("Hz. Default: the config's, else the teacher's, else 44100.")
    )
    duration: float = field(
        default=_LEFT_OUT, metadata=option("Seconds of each tone. Default: the config's, else 1.2.")
    )
    midi_min: float = field(default=21.0, metadata=option("Lowest MIDI note, fractions allowed."))
    midi_max: float = field(default=127.0, metadata=option("Highest MIDI note."))
    db_min: float | None = field(
        default=None, metadata=option("Lowest level, dB re amplitude 1. Default: down to silence.")
    )
    db_max: float = field(default=0.0, metadata=option("Highest level, dB re amplitude 1."))
    linear_f0: bool = field(default=False, metadata=option("Draw frequencies uniformly in Hz, not in notes."))
    linear_db: bool = field(
        default=False, metadata=option("Draw levels uniformly in dB from db_min, not in amplitude.")
    )
    validation: bool = field(
        default=False, metadata=option("The fixed validation set: 88 notes from 21, phase 0, each level.")
    )
    levels_db: tuple[float, ...] = field(
        default=(-20.0,), metadata=option("Levels of the validation set, dB re amplitude 1.")
    )
    target: Literal["teacher", "bandlimited"] = field(
        default="teacher", metadata=option("What y is: the output, or its last second without aliases.")
    )
    seed: int | Literal["fresh"] = field(
        default=0, metadata=option("Seed of the training set; 'fresh' draws one at the first bake.")
    )
    compute_dtype: Literal["float64", "float32"] = field(
        default="float64", metadata=option("Precision in which the teacher runs.")
    )
    store_dtype: Literal["float64", "float32", "float16"] = field(
        default="float32", metadata=option("Precision of x and y as stored.")
    )
    device: str = field(
        default="auto", metadata=option("Where the teacher runs: auto (CUDA if present), cpu, cuda:0, ...")
    )
    teacher_sha256: str = field(init=False, repr=False)  # of the file when this was made

    def __post_init__(self) -> None:
        left_out = [name for name in _ORDINARY if getattr(self, name) is None]
        for name in left_out:
            object.__setattr__(self, name, _ORDINARY[name])
        settle(self)
        if self.teacher is not None:
            object.__setattr__(self, "teacher", self.teacher.absolute())
        if self.config is not None:
            _apply_config(self, PAPER_CONFIGS[self.config], left_out)
        model = load_amp_model(self.teacher_path)
        if self.config is None and "sample_rate" in left_out and model.sample_rate is not None:
            object.__setattr__(self, "sample_rate", model.sample_rate)
        for check in (_check_time, _check_validation if self.validation else _check_training, _check_device):
            check(self)
        _check_model(self, model)
        object.__setattr__(self, "teacher_sha256", model.sha256)

    @property
    def teacher_path(self) -> Path:
        return self.teacher or DEFAULT_TEACHER

    @property
    def time_s(self) -> NDArray[np.float64]:
        """Time of each point of a tone, in seconds from its start."""
        return np.arange(_steps(self)) / self.sample_rate

    def __len__(self) -> int:
        return len(VALIDATION_NOTES) * len(self.levels_db) if self.validation else self.num_samples

    def schema(self) -> dict[str, Field]:
        # a change of teacher leaves the tones as they are, so what it touches is a key of what it gives
        of_file = {"sha256": self.teacher_sha256}
        keys = {"teacher": of_file, "target": self.target, "compute_dtype": self.compute_dtype}
        fields = {
            "x": self._signal("time", _steps(self), {}, "input of the teacher"),
            "y": self._signal("time", _steps(self), keys, "output of the teacher"),
            "f0": Field((), "float64", (), units="Hz", description="fundamental frequency"),
            "dB": Field((), "float64", (), units="dB", description="level re amplitude 1"),
            "phase": Field((), "float64", (), units="rad", description="phase at time 0"),
        }
        if self.target == "bandlimited":
            text = "last second of the teacher's output, without aliases"
            fields["y"] = self._signal("time_kept", kept_steps(self.sample_rate), keys, text)
            text = "energy of the aliases taken out of y over energy of y"
            # a silent output has no ratio
            fields["esr_s"] = Field((), "float64", (), units="1", keys=keys, description=text, allow_nan=True)
        return fields

    def _signal(self, dim: str, steps: int, keys: Mapping[str, Any], description: str) -> Field:
        """A field of the last ``steps`` steps of a tone."""
        coords = {dim: Coord(self.time_s[-steps:], "s")}
        return Field(
            (steps, 1),
            self.store_dtype,
            (dim, "channel"),
            units="1",
            coords=coords,
            keys=keys,
            description=description,
        )

    def invalidation_keys(self) -> dict[str, JSON]:
        """What the tones depend on; parameters that do not matter to the split in hand are left out."""
        keys: dict[str, JSON] = {"sample_rate": self.sample_rate, "duration": self.duration}
        if self.validation:
            return keys | {"split": "validation", "levels_db": list(self.levels_db)}
        names = ("midi_min", "midi_max", "db_min", "db_max", "linear_f0", "seed")
        keys |= {"split": "training"} | {name: getattr(self, name) for name in names}
        # named only where it is asked for: stores baked before there was a choice stay fresh
        return keys | {"linear_db": True} if self.linear_db else keys

    def tones(self, start: int, stop: int) -> Tones:
        """The tones of samples [start, stop)."""
        if not 0 <= start <= stop:
            raise IndexError(f"sine-teacher: samples {start} to {stop} are no range")
        if not self.validation:
            return self._drawn(start, stop)
        if stop > len(self):
            raise IndexError(f"sine-teacher: sample {stop - 1} of {len(self)} validation samples")
        return validation_tones(self.levels_db, start, stop)

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> Mapping[str, Any]:
        """The named fields of samples [start, stop): NumPy arrays; y and esr_s as tensors on the device."""
        tones = self.tones(start, stop)
        scalars = {"f0": tones.f0, "dB": tones.db, "phase": tones.phase}
        out: dict[str, Any] = {name: scalars[name] for name in fields if name in scalars}
        if wanted := {"x", "y", "esr_s"}.intersection(fields):
            wave = tones.wave(self.time_s)
            if "x" in wanted:
                out["x"] = wave.astype(self.store_dtype)
            if wanted != {"x"}:
                given = self._through_teacher(wave, tones.f0)
                out |= {name: given[name] for name in wanted - {"x"}}
        return out

    def _drawn(self, start: int, stop: int) -> Tones:
        if self.seed == "fresh":
            raise _refused("seed", "'fresh' is drawn by the bake; give a number to compute tones outside one")
        levels = (self.db_min, self.db_max)
        ranges = ToneRanges(self.midi_min, self.midi_max, *levels, self.linear_f0, self.linear_db)
        return drawn_tones(ranges, self.seed, start, stop)

    def _through_teacher(self, wave: NDArray[np.float64], f0_hz: NDArray[np.float64]) -> dict[str, Any]:
        """y as stored, and esr_s where the target has it."""
        import torch

        device, stored = usable_device(self.device, self.name), getattr(torch, self.store_dtype)
        module = amp_module(self.teacher_path.resolve(), self.teacher_sha256, self.compute_dtype, device)
        with torch.inference_mode():
            x = torch.from_numpy(wave).to(getattr(torch, self.compute_dtype)).to(device)
            y = module(x)
            if self.target == "teacher":
                return {"y": y.to(stored)}
            last = y[:, -kept_steps(self.sample_rate) :, 0]
            limited = band_limited(last, f0_hz, self.sample_rate)
            return {"y": limited.to(stored)[:, :, None], "esr_s": alias_ratio(last, limited)}


def _steps(recipe: SineTeacher) -> int:
    return round(recipe.duration * recipe.sample_rate)


# ---- checks


def _refused(parameter: str, text: str) -> RecipeError:
    return RecipeError(f"{SineTeacher.name}: {parameter}: {text}")


def _apply_config(recipe: SineTeacher, config: PaperConfig, left_out: Sequence[str]) -> None:
    """Parameters that were left out are the config's; those that were given must not contradict it."""
    if recipe.teacher is None:
        raise _refused("config", f"{recipe.config} is {config}, whose weights come with --teacher FILE")
    duration_s = VALIDATION_DURATION_S if recipe.validation else config.duration
    for name, wanted, unit in (("sample_rate", config.sample_rate, "Hz"), ("duration", duration_s, "s")):
        value = getattr(recipe, name)
        if name in left_out:
            object.__setattr__(recipe, name, wanted)
        elif value != wanted:
            raise _refused(
                name,
                f"{value:g} {unit} where config {recipe.config} is {wanted:g} {unit}; leave one out",
            )


def _check_model(recipe: SineTeacher, model: AmpModel) -> None:
    file = recipe.teacher_path.name
    if recipe.config is not None and not PAPER_CONFIGS[recipe.config].fits(model.kind):
        config = PAPER_CONFIGS[recipe.config]
        raise _refused(
            "config",
            f"{recipe.config} is {config}, but the teacher {file} is of kind {model.kind}; name its own",
        )
    if model.sample_rate not in (None, recipe.sample_rate):
        source, way_out = "", "set it to that or name another teacher"
        if recipe.config is not None:
            source, way_out = f" (config {recipe.config})", "name another teacher or config"
        raise _refused(
            "sample_rate",
            f"{recipe.sample_rate:g} Hz{source}, but the teacher {file} was made for "
            f"{model.sample_rate:g} Hz; {way_out}",
        )


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
    if recipe.target == "bandlimited" and _steps(recipe) < kept_steps(recipe.sample_rate):
        raise _refused(
            "duration", f"{recipe.duration:g} s is below the last second, which target 'bandlimited' keeps"
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
    elif recipe.linear_db:
        raise _refused("linear_db", "levels drawn in dB need a lowest one; give db_min, such as -60")


def _check_validation(recipe: SineTeacher) -> None:
    if not recipe.levels_db:
        raise _refused("levels_db", "is empty; give at least one level in dB, such as -20")
    for level in recipe.levels_db:
        _check_level("levels_db", level)
    _check_nyquist("validation", float(VALIDATION_NOTES[-1]), recipe.sample_rate)


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
    if recipe.device == "mps" and recipe.target == "bandlimited":
        raise _refused("device", "mps has no float64, which target 'bandlimited' needs; use cpu")
    if recipe.device == "mps" and recipe.compute_dtype == "float64":
        raise _refused("device", "mps has no float64; set compute_dtype to float32")
