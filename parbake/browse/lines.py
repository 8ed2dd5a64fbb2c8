"""Signals: a waveform of a few periods or its envelope, and a spectrum in which a tone's lines are marked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parbake.browse import figures
from parbake.browse.spectrum import (
    LOBE_BINS,
    STEPS_MIN,
    Lines,
    Spectrum,
    aliases,
    columns,
    harmonics,
    spectrum_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

Reals = NDArray[np.float64]

CURVES_MAX = 6
_POINTS_MAX = 8000  # of a line; more are drawn as an envelope
_COLUMNS = 800  # of an envelope
_DOTTED_MAX = 120  # points of a line that are few enough to be seen singly
_PERIODS = 4
_RESOLVED_PERIODS = 2 * (LOBE_BINS + 1)  # in so many the lines of a tone stand apart
_SHOWN_DB = 130  # of a spectrum, below its highest line
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_EVEN = 1e-3  # of a step: a coordinate of float32 is no truer


@dataclass(frozen=True, eq=False)
class Curve:
    """Values [n] at positions [n]; ``role`` says in a legend what it is."""

    role: str
    position: Reals
    values: Reals


@dataclass(frozen=True, eq=False)
class Signals:
    """Curves over one axis. ``axis``, ``units``: its name and units; ``left_out``: curves not drawn."""

    curves: tuple[Curve, ...]
    axis: str
    units: str | None
    value_label: str
    f0_hz: float | None = None
    left_out: int = 0

    @property
    def seconds(self) -> float | None:
        """The unit of the axis in seconds, if it is time."""
        return SECONDS.get(self.units or "")

    def rate_hz(self, curve: Curve) -> float | None:
        """Samples per second, where the axis is time in even steps, enough of them for a spectrum."""
        if self.seconds is None or len(curve.position) < STEPS_MIN:
            return None
        steps = np.diff(curve.position)
        step = float(curve.position[-1] - curve.position[0]) / len(steps)
        if not step > 0 or float(np.abs(steps - step).max()) > max(_EVEN * step, _rounding(curve.position)):
            return None
        rate = 1 / (step * self.seconds)
        whole = round(rate)  # what time was divided by, but for the rounding of the coordinate
        return float(whole) if whole and abs(rate / whole - 1) < 1e-6 else rate

    @property
    def tone_hz(self) -> float | None:
        """The fundamental, where there is one that the spectrum can show."""
        f0, last = self.f0_hz, self.curves[-1]
        rate = self.rate_hz(last)
        if f0 is None or rate is None:
            return None
        return f0 if _RESOLVED_PERIODS * rate / len(last.values) <= f0 < rate / 2 else None


def _rounding(position: Reals) -> float:
    """By how much steps differ that are even but for the rounding of their ends."""
    short = position.astype(np.float32)
    ends = short if np.array_equal(short, position) else position  # of a coordinate of float32, or finer
    return 2 * float(np.spacing(np.abs(ends).max()))


def height_in(signals: Signals) -> float:
    return 4.6 if signals.rate_hz(signals.curves[-1]) else 2.6


def draw_signals(shown: FigureBase, signals: Signals) -> None:
    """The waveform and, where the axis is time in even steps, the spectrum below it."""
    colours = _colours(signals)
    if signals.rate_hz(signals.curves[-1]) is None:
        draw_waveform(shown.subplots(), signals, colours)
        return
    above, below = shown.subplots(2, 1, height_ratios=(2, 3))
    draw_waveform(above, signals, colours)
    draw_spectrum(below, signals, colours)


def _colours(signals: Signals) -> tuple[str, ...]:
    """Of input and output the input stands back; else a colour for each."""
    return (figures.BACKDROP, figures.BLUE) if len(signals.curves) == 2 else figures.PALETTE


def draw_waveform(axes: Axes, signals: Signals, colours: tuple[str, ...]) -> None:
    """The last periods of a tone; else all of the curve, as an envelope where it has too many points."""
    begin, end, what = _window(signals)
    seconds, unit = signals.seconds, signals.units
    scale, unit = (seconds * 1e3, "ms") if seconds and (end - begin) * seconds < 0.5 else (1.0, unit)
    handles: list[Any] = []
    for curve, colour in zip(signals.curves, colours, strict=False):
        inside = (curve.position >= begin) & (curve.position <= end)
        position, values = curve.position[inside] * scale, curve.values[inside]
        if len(position) > _POINTS_MAX:
            where, low, high = columns(position, values, _COLUMNS)
            band = axes.fill_between(where, low, high, color=colour, alpha=0.8, linewidth=0.6)
            handles.append(band)
            what = f"{what}, lowest to highest" if "lowest" not in what else what
        else:
            dotted = "." if len(position) < _DOTTED_MAX else ""
            handles += axes.plot(position, values, color=colour, linewidth=1.4, marker=dotted, markersize=5)
    figures.styled(axes, what, figures.with_units(signals.axis, unit), signals.value_label)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.margins(x=0.005)
    axes.axhline(0, color=figures.FAINT, linewidth=0.6, zorder=0)
    if len(handles) > 1:
        labels = [figures.plain(curve.role) for curve in signals.curves]
        figures.legend_above(axes, handles, labels)


def _window(signals: Signals) -> tuple[float, float, str]:
    """From where to where the waveform is shown, in the units of its axis, and what that is."""
    begins = [float(np.nanmin(curve.position)) for curve in signals.curves]
    ends = [float(np.nanmax(curve.position)) for curve in signals.curves]
    begin, end = min(begins), max(ends)
    more = f", {signals.left_out} more not drawn" if signals.left_out else ""
    if signals.tone_hz is None or signals.seconds is None:
        return begin, end, f"waveform{more}" if signals.seconds else f"values{more}"
    span = _PERIODS / signals.tone_hz / signals.seconds
    if max(begins) > min(ends) - span:
        return begin, end, f"waveform{more}"
    return min(ends) - span, min(ends), f"waveform, last {_PERIODS} periods{more}"


def spectrum_of_tone(curve: Curve, rate_hz: float, tone_hz: float | None) -> Spectrum:
    """Of a tone the spectrum of the last second, when it has settled; else that of all that is shown.

    Of a low tone it is as much more as keeps its lines apart.
    """
    steps = len(curve.values) if tone_hz is None else round(rate_hz * max(1, _RESOLVED_PERIODS / tone_hz))
    return spectrum_of(curve.values[-steps:], rate_hz)


def draw_spectrum(axes: Axes, signals: Signals, colours: tuple[str, ...]) -> None:
    """Levels in dB over Hz; of the last curve the tone's harmonics and aliases are marked."""
    tone_hz = signals.tone_hz
    drawn: list[Any] = []
    labels: list[str] = []
    highest, half_hz, steps, found = -np.inf, 0.0, 0, None
    for curve, colour in zip(signals.curves, colours, strict=False):
        rate_hz = signals.rate_hz(curve)
        if rate_hz is None or not np.isfinite(curve.values).all():
            continue
        found = spectrum_of_tone(curve, rate_hz, tone_hz)
        where, _, level = columns(found.frequency_hz, found.level_db, 4 * _COLUMNS)
        drawn += axes.plot(where, level, color=colour, linewidth=0.9)
        labels.append(figures.plain(curve.role.partition(",")[0]))
        highest, half_hz = max(highest, float(level.max())), max(half_hz, rate_hz / 2)
        steps = found.steps
    last = signals.curves[-1]
    if found is None:
        figures.note(axes, "no spectrum: there are values that are not finite")
        return
    handles = list(drawn)
    rate = signals.rate_hz(last)
    if tone_hz is not None and rate is not None and np.isfinite(last.values).all():
        marked = harmonics(found, tone_hz, rate), aliases(found, tone_hz, rate)
        texts = (
            f"harmonics k · {tone_hz:.5g} Hz",
            f"aliases, folded at {rate / 2:,.0f} Hz",
        )
        for lines, text, marker, colour in zip(
            marked, texts, "ov", (figures.BLUE, figures.VERMILION), strict=True
        ):
            if len(lines):
                handles.append(_marks(axes, lines, marker, colour))
                labels.append(text)
    figures.styled(
        axes,
        f"spectrum, last {steps:,} steps",
        "frequency (Hz)",
        "level (dB)\nsine of amplitude 1 is 0 dB",
    )
    top = 10 * np.ceil((highest + 3) / 10)
    seen_hz = [float(line.get_xdata()[line.get_ydata() > top - _SHOWN_DB].max(initial=0)) for line in drawn]
    last_hz = max([*seen_hz, 10 * (tone_hz or 0)])  # of a low tone the lines end far below half the rate
    axes.set(xlim=(0, min(half_hz, 1.25 * last_hz) if tone_hz else half_hz), ylim=(top - _SHOWN_DB, top))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter("{x:,.0f}" if half_hz >= 20 else "{x:g}")
    if len(handles) > 1:
        figures.legend_above(axes, handles, labels)


def _marks(axes: Axes, lines: Lines, marker: str, colour: str) -> Any:
    """Hollow where they are few, so that one sees the line below; small where they are many."""
    size = 5.0 if len(lines) <= 40 else 2.8
    (drawn,) = axes.plot(
        lines.frequency_hz,
        lines.level_db,
        marker,
        markersize=size,
        markerfacecolor="white" if len(lines) <= 40 else colour,
        markeredgecolor=colour,
        markeredgewidth=1.1,
        zorder=3,
        clip_on=True,
    )
    return drawn
