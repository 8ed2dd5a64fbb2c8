"""The spectrum of one tone before and after: what lies between the harmonics is aliases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal.windows import chebwin
from students import Student
from validation import LEVELS_DB, NOTES, ValidationSet, last_second

from parbake.producers.audio.bandlimited import alias_ratio, band_limited

# the colours of parbake's own figures: of Okabe and Ito, told apart by colour-blind readers
BLUE, VERMILION, INK, FAINT = "#0072b2", "#d55e00", "#222222", "#8a8a8a"
LEVEL = 1  # -18 dB
LOWEST_NOTE, HIGHEST_NOTE = 90, 100  # MIDI; where aliases are many and harmonics far apart
FIRST_NOTE = 21  # of the validation set
FLOOR_DB = -100.0
SIDE_LOBES_DB = 140.0


def chosen_tone(validation: ValidationSet) -> int:
    """The row of the tone whose teacher aliases most, of the level and notes above; else of the level."""
    level, note = np.divmod(validation.numbers, NOTES)
    of_level = level == LEVEL
    shown = of_level & (note + FIRST_NOTE >= LOWEST_NOTE) & (note + FIRST_NOTE <= HIGHEST_NOTE)
    rows = np.flatnonzero(shown if shown.any() else of_level)
    return int(rows[np.nanargmax(validation.esr_s[rows])])


def spectrum_db(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Levels in dB of the bins of ``signal`` [step], 0 dB the strongest; a Chebyshev window."""
    level = np.abs(np.fft.rfft(signal * chebwin(len(signal), SIDE_LOBES_DB, sym=False)))
    return np.asarray(20 * np.log10(np.maximum(level / level.max(), 1e-10)))


def draw_spectrum(before: Student, after: Student, validation: ValidationSet, path: Path) -> None:
    """The spectra of both networks' answers to the chosen tone, as a PNG."""
    from matplotlib.figure import Figure

    row = chosen_tone(validation)
    f0_hz, rate_hz = float(validation.f0_hz[row]), validation.sample_rate
    harmonics_hz = f0_hz * np.arange(1, int(rate_hz / 2 / f0_hz) + 1)
    shown = Figure(figsize=(10.0, 3.8), dpi=200, layout="constrained", facecolor="white")
    for axes, (title, student) in zip(
        shown.subplots(1, 2, sharey=True),
        (("before: the teacher", before), ("after: the student", after)),
        strict=True,
    ):
        y = last_second(student, validation.x[row : row + 1], validation.y.shape[1])
        aliases = float(alias_ratio(y, band_limited(y, np.array([f0_hz]), rate_hz)))
        output = y[0].numpy()
        level = spectrum_db(output)
        frequency_hz = np.fft.rfftfreq(len(output), 1 / rate_hz)
        at = np.round(harmonics_hz * len(output) / rate_hz).astype(np.int64)
        axes.plot(frequency_hz / 1000, level, color=VERMILION, linewidth=0.7, label="aliases")
        axes.plot(harmonics_hz / 1000, level[at], "o", color=BLUE, markersize=4, label="harmonics")
        axes.vlines(harmonics_hz / 1000, FLOOR_DB, level[at], color=BLUE, linewidth=1.2)
        axes.set_title(
            f"{title}, aliases at {10 * np.log10(aliases):.1f} dB", loc="left", fontsize=9.5, color=INK
        )
        axes.set_xlabel("frequency (kHz)", fontsize=9, color=INK)
        axes.set(xlim=(0, rate_hz / 2000), ylim=(FLOOR_DB, 5))
        axes.tick_params(labelsize=8, labelcolor=INK, color=FAINT, length=3)
        for side, spine in axes.spines.items():
            spine.set(visible=side in ("left", "bottom"), color=FAINT, linewidth=0.8)
    shown.axes[0].legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, labelcolor=INK, frameon=False
    )
    shown.axes[0].set_ylabel("level (dB)", fontsize=9, color=INK)
    title = f"A tone of {f0_hz:,.0f} Hz at {LEVELS_DB[LEVEL]:g} dB through the amp"
    shown.suptitle(title, x=0.012, ha="left", fontsize=11, color=INK, fontweight="bold")
    partial = path.with_suffix(".partial.png")
    shown.savefig(partial, metadata={"Software": None})
    partial.replace(path)
