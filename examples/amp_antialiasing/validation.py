"""How much a network aliases, and how far it is from the alias-free target: at three levels, in dB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from students import Student
from threads import side_by_side
from torch import Tensor

from parbake import Samples
from parbake.producers.audio.bandlimited import alias_ratio, band_limited

LEVELS_DB = (-36.0, -18.0, -6.0)
NOTES = 88  # of each level: the keys of a piano
_BLOCK_TONES, _BLOCK_STEPS = 24, 16_384  # at once through a network: 100 MB


@dataclass(frozen=True)
class Scores:
    """In dB, of each level the mean over its notes of a ratio of energies.

    ``esr_s``: aliases over the rest of the output (ESR-S of arXiv 2505.11375). ``error``: output minus
    target over target.
    """

    esr_s: tuple[float, ...]
    error: tuple[float, ...]

    @property
    def esr_s_mean(self) -> float:
        return float(np.mean(self.esr_s))

    @property
    def error_mean(self) -> float:
        return float(np.mean(self.error))

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        means = {"esr_s_db": self.esr_s_mean, "error_db": self.error_mean}
        return {**means, "esr_s_db_of_levels": [*self.esr_s], "error_db_of_levels": [*self.error]}


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Some notes of each level, all in memory: 0.4 MB a tone."""

    numbers: NDArray[np.int64]  # of the tones in the store, level by level
    x: Tensor  # [tone, time, 1]
    y: Tensor  # [tone, time_kept]
    f0_hz: NDArray[np.float64]
    esr_s: NDArray[np.float64]  # the teacher's
    sample_rate: float

    def few(self, notes: int) -> ValidationSet:
        """Some of the notes of each level, spread evenly."""
        rows = spread(len(self.numbers) // len(LEVELS_DB), notes)
        return ValidationSet(
            self.numbers[rows],
            self.x[rows],
            self.y[rows],
            self.f0_hz[rows],
            self.esr_s[rows],
            self.sample_rate,
        )

    def teacher_scores(self) -> Scores:
        """The teacher's; what it has too much is its aliases, so both ratios are the same."""
        levels = by_level(self.esr_s, ~np.isnan(self.esr_s))
        return Scores(levels, levels)

    def scores(self, student: Student, threads: int = 1) -> Scores:
        def ratios(block: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            output = last_second(student, self.x[block], self.y.shape[1])
            limited = band_limited(output, self.f0_hz[block], self.sample_rate)
            target = self.y[block].double()
            return alias_ratio(output, limited).numpy(), alias_ratio(output, target).numpy()

        starts = range(0, len(self.numbers), _BLOCK_TONES)
        blocks = [slice(start, start + _BLOCK_TONES) for start in starts]
        found = side_by_side(ratios, blocks, threads)
        esr_s, error = (np.concatenate(parts) for parts in zip(*found, strict=True))
        sounding = ~np.isnan(self.esr_s)
        return Scores(by_level(esr_s, sounding), by_level(error, sounding))


def read_validation(samples: Samples, sample_rate: float, notes: int) -> ValidationSet:
    """``notes`` notes of each level of a validation store."""
    numbers = spread(NOTES, notes)
    read = samples.read(numbers, ("x", "y", "f0", "esr_s"))
    x, y = torch.from_numpy(read["x"]), torch.from_numpy(read["y"])[:, :, 0]
    return ValidationSet(numbers, x, y, read["f0"], read["esr_s"], sample_rate)


def spread(notes_stored: int, notes: int) -> NDArray[np.int64]:
    """Rows of ``notes`` of the stored notes of each level, level by level."""
    chosen = np.unique(np.linspace(0, notes_stored - 1, min(notes, notes_stored)).round().astype(np.int64))
    return (np.arange(len(LEVELS_DB))[:, None] * notes_stored + chosen).ravel()


def by_level(ratios: NDArray[np.float64], sounding: NDArray[np.bool_]) -> tuple[float, ...]:
    """Mean of each level in dB; [level x note] in one row.

    Of the tones on which the teacher sounds: the others have no ratio. A student that is silent or not finite
    on one of these gives NaN, and not the mean of the rest.
    """
    shape = len(LEVELS_DB), -1
    means = np.mean(ratios.reshape(shape), axis=1, where=sounding.reshape(shape))
    return tuple((10 * np.log10(means)).tolist())


def last_second(student: Student, x: Tensor, steps: int) -> Tensor:
    """The last ``steps`` of the student's answer to ``x`` [tone, time, 1]: [tone, steps], float64."""
    outputs, state = [], None
    with torch.inference_mode():
        for block in torch.split(x, _BLOCK_STEPS, dim=1):
            y, state = student(block, state)
            outputs.append(y)
    return torch.cat(outputs, dim=1)[:, -steps:, 0].double()


def table(rows: Sequence[tuple[str, Scores]]) -> str:
    """The scores as lines of text, levels as columns."""
    columns = [*(f"{level:g} dB" for level in LEVELS_DB), "mean"]
    lines = [f"{'dB':<34}" + "".join(f"{column:>10}" for column in columns)]
    for title, ratio in (("aliases (ESR-S)", "esr_s"), ("error to the alias-free target", "error")):
        lines.append(title)
        for name, scores in rows:
            values = getattr(scores, ratio)
            cells = [*values, float(np.mean(values))]
            lines.append(f"  {name:<32}" + "".join(f"{cell:>10.2f}" for cell in cells))
    return "\n".join(lines)
