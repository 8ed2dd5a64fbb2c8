"""Sine tones: which ones training draws, which ones validation takes, and their waves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TRAINING = 0  # numbers of the random streams; 1 is kept for a validation that draws
VALIDATION_NOTES = 21.0 + np.arange(88)  # the keys of a piano, A0 to C8


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
class ToneRanges:
    """What training draws from: MIDI notes, levels in dB re amplitude 1 (no ``db_min``: from silence).

    ``linear_f0``: uniform in Hz over the notes' range, not in notes. ``linear_db``: uniform in dB, which
    needs ``db_min``, not in amplitude.
    """

    midi_min: float
    midi_max: float
    db_min: float | None
    db_max: float
    linear_f0: bool
    linear_db: bool


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


def drawn_tones(ranges: ToneRanges, seed: int, start: int, stop: int) -> Tones:
    """The training tones of samples [start, stop)."""
    note, level, turn, _ = uniforms(seed, _TRAINING, start, stop).T
    low, high = ranges.midi_min, ranges.midi_max
    f0 = _hz(low) + (_hz(high) - _hz(low)) * note if ranges.linear_f0 else _hz(low + (high - low) * note)
    # 1 - level is in (0, 1]: never silence, whose level in dB is no number
    if ranges.linear_db and ranges.db_min is not None:
        db = ranges.db_min + (ranges.db_max - ranges.db_min) * (1 - level)
        return Tones(f0, _amplitude(db), 2 * np.pi * turn, db)
    quietest = 0.0 if ranges.db_min is None else _amplitude(ranges.db_min)
    amplitude = quietest + (_amplitude(ranges.db_max) - quietest) * (1 - level)
    return Tones(f0, amplitude, 2 * np.pi * turn, 20 * np.log10(amplitude))


def validation_tones(levels_db: Sequence[float], start: int, stop: int) -> Tones:
    """The validation tones of samples [start, stop): all notes of the first level, then of the next."""
    level, note = np.divmod(np.arange(start, stop), len(VALIDATION_NOTES))
    db = np.array(levels_db)[level]
    return Tones(_hz(VALIDATION_NOTES[note]), _amplitude(db), np.zeros(len(db)), db)


def _hz(note: Any) -> Any:
    return 440.0 * 2.0 ** ((note - 69.0) / 12.0)


def _amplitude(db: Any) -> Any:
    return 10.0 ** (db / 20.0)
