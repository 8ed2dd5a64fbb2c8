"""Spectra of sampled signals, and where a tone's harmonics and their mirror images lie in them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

# HFT144D of Heinzel, Rüdiger and Schilling, "Spectrum and spectral density estimation by the Discrete Fourier
# transform (DFT)" (2002), appendix D: side lobes below -144 dB, amplitudes between bins within 0.003 dB
_FLAT_TOP = (1.0, -1.96760033, 1.57983607, -0.81123644, 0.22583558, -0.02773848, 0.00090360)
LOBE_BINS = 7  # half width of its main lobe
STEPS_MAX = 1 << 18  # of a signal whose spectrum is shown
STEPS_MIN = 4 * LOBE_BINS  # fewer give no spectrum in which anything could be told apart
FLOOR_DB = -200.0  # what silence is shown as
_FOLDED_MAX = 4000  # multiples of a fundamental that are followed through their reflections
_ABOVE_FLOOR_DB = 12.0  # over the spectrum around: less is noise that no mark should dignify
_VISIBLE_DB = 110.0  # below the strongest line: weaker ones are the rounding noise of float32


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Levels [bin] in dB at frequencies [bin] in Hz; 0 dB: a sine of amplitude 1. ``steps``: its window's."""

    frequency_hz: Reals
    level_db: Reals
    steps: int

    @property
    def bin_hz(self) -> float:
        return float(self.frequency_hz[1])

    def level_near(self, frequency_hz: Reals, bins: int = 1) -> Reals:
        """The highest level [n] within some bins of each frequency [n]."""
        nearest = np.round(frequency_hz / self.bin_hz).astype(np.int64)
        around = np.clip(nearest[:, None] + np.arange(-bins, bins + 1), 0, len(self.level_db) - 1)
        return np.asarray(self.level_db[around].max(axis=1))


@dataclass(frozen=True, eq=False)
class Lines:
    """Multiples of a fundamental: number [n], frequency [n] in Hz where it is seen, level [n] in dB."""

    number: NDArray[np.int64]
    frequency_hz: Reals
    level_db: Reals

    def __len__(self) -> int:
        return len(self.number)


def spectrum_of(signal: NDArray[np.floating], rate_hz: float) -> Spectrum:
    """The spectrum of a real signal [step] through a flat-top window, its last STEPS_MAX steps at most."""
    signal = np.asarray(signal[-STEPS_MAX:], np.float64)
    steps = len(signal)
    phase = 2 * np.pi * np.arange(steps) / steps
    window = sum(a * np.cos(k * phase) for k, a in enumerate(_FLAT_TOP))
    amplitude = 2 * np.abs(np.fft.rfft(signal * window)) / steps  # the window's mean is 1
    amplitude[0] /= 2
    with np.errstate(divide="ignore"):
        level = np.maximum(20 * np.log10(amplitude), FLOOR_DB)
    return Spectrum(np.asarray(np.fft.rfftfreq(steps, 1 / rate_hz), np.float64), level, steps)


def folded_hz(frequency_hz: Reals, rate_hz: float) -> Reals:
    """Where sampling at ``rate_hz`` shows each frequency: reflected at 0 and at half the rate."""
    wrapped = np.mod(frequency_hz, rate_hz)
    return np.asarray(np.minimum(wrapped, rate_hz - wrapped))


def harmonics(spectrum: Spectrum, f0_hz: float, rate_hz: float) -> Lines:
    """The multiples of ``f0_hz`` below half the rate that stand out of the spectrum."""
    number = np.arange(1, _below_half(f0_hz, rate_hz) + 1)
    return _standing_out(spectrum, number, np.asarray(number * f0_hz, np.float64))


def aliases(spectrum: Spectrum, f0_hz: float, rate_hz: float) -> Lines:
    """The multiples from half the rate up that stand out where they are mirrored, the lowest for each place.

    Those that fall upon a harmonic cannot be told from it and are left out.
    """
    first = _below_half(f0_hz, rate_hz) + 1
    number = np.arange(first, first + _FOLDED_MAX)
    seen = folded_hz(np.asarray(number * f0_hz, np.float64), rate_hz)
    apart_hz = (LOBE_BINS + 1) * spectrum.bin_hz
    to_harmonic = np.abs(seen - f0_hz * np.round(seen / f0_hz))
    alone = (to_harmonic > apart_hz) & (seen > apart_hz)
    number, seen = number[alone], seen[alone]
    place = np.round(seen / (2 * apart_hz)).astype(np.int64)
    lowest = np.sort(np.unique(place, return_index=True)[1])
    return _standing_out(spectrum, number[lowest], seen[lowest])


def _below_half(f0_hz: float, rate_hz: float) -> int:
    """How many multiples lie below half the rate."""
    return max(int(np.ceil(rate_hz / 2 / f0_hz)) - 1, 0)


def _standing_out(spectrum: Spectrum, number: NDArray[np.int64], frequency_hz: Reals) -> Lines:
    level = spectrum.level_near(frequency_hz)
    shoulder = (LOBE_BINS + 2) * spectrum.bin_hz
    half = spectrum.frequency_hz[-1]
    sides = np.stack([np.clip(frequency_hz + sign * shoulder, 0, half) for sign in (-1, 1)])
    around = np.minimum(*(spectrum.level_near(side) for side in sides))
    strong = level > max(float(spectrum.level_db.max()) - _VISIBLE_DB, FLOOR_DB)
    own = level >= spectrum.level_near(frequency_hz, LOBE_BINS)  # and not the slope of a stronger neighbour
    chosen = strong & own & (level > around + _ABOVE_FLOOR_DB)
    return Lines(number[chosen], frequency_hz[chosen], level[chosen])


def columns(positions: Reals, values: Reals, columns_max: int) -> tuple[Reals, Reals, Reals]:
    """Position, minimum and maximum [column] of stretches of a curve [n]; NaN is passed over."""
    count = min(columns_max, len(values))
    bounds = np.linspace(0, len(values), count + 1).astype(np.int64)[:-1]
    low = np.fmin.reduceat(values, bounds)
    high = np.fmax.reduceat(values, bounds)
    ends = np.append(bounds[1:], len(values)) - 1
    return (positions[bounds] + positions[ends]) / 2, low, high
