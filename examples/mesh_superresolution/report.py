"""How far predictions are from the fine solution: numbers, and a picture of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.producers import MeshSeries

Reals = NDArray[np.float32]

INK, FAINT = "#222222", "#8a8a8a"
DPI = 200
_OUTLIERS = 99.5  # percent of the errors that the colours tell apart


@dataclass(frozen=True, eq=False)
class Step:
    """One step at the target's nodes; ``coarse`` are the source's values interpolated. [node, channel]."""

    time_s: float
    coarse: Reals
    fine: Reals
    predicted: Reals


def relative_errors(predicted: Reals, fine: Reals, scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square errors over steps and nodes, in units of ``scale`` [channel]; last that of all.

    With the standard deviations as ``scale``, 0 is the fine solution and 1 is as good as a constant.
    """
    channels = np.sqrt(np.square(predicted - fine, dtype=np.float64).mean(axis=(0, 1))) / scale
    return np.append(channels, np.sqrt(np.square(channels).mean()))


def table(rows: Mapping[str, NDArray[np.float64]], channels: Sequence[str]) -> str:
    """A line for each way to predict: errors in percent, and how much less than those of the first row."""
    first = next(iter(rows.values()))
    head = f"{'relative L2 error, %':32}" + "".join(f"{name:>9}" for name in [*channels, "all"])
    lines = [head + f"{'less':>9}{'dB':>7}"]
    for name, errors in rows.items():
        gain = errors[-1] / first[-1]
        less = "" if errors is first else f"{100 * (1 - gain):8.1f}%{20 * np.log10(gain):7.2f}"
        lines.append(f"{name:32}" + "".join(f"{100 * error:9.2f}" for error in errors) + less)
    return "\n".join(lines)


def draw(
    file: Path, step: Step, source: MeshSeries, target: MeshSeries, channel: int, names: tuple[str, str]
) -> None:
    """Maps of one channel: interpolated and fine, and the errors of both ways to predict.

    For triangles and quadrilaterals. ``names``: of the channel, and of the model. Raises ImportError
    without matplotlib.
    """
    from matplotlib.figure import Figure
    from matplotlib.tri import Triangulation

    name, model = names
    values = [v[:, channel] for v in (step.coarse, step.fine)]
    errors = [v[:, channel] - step.fine[:, channel] for v in (step.coarse, step.predicted)]
    points = target.mesh.points
    mesh = Triangulation(points[:, 0], points[:, 1], _triangles(target.mesh.cells))
    wide, high = np.ptp(points, axis=0)
    rows, columns = (4, 1) if wide > 3 * high else (2, 2)
    width_in = 8.0 if columns == 1 else 10.0
    height_in = rows * ((width_in / columns - 1.2) * float(high / wide) + 0.42) + 0.4
    shown = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    shown.suptitle(
        f"{name} at {step.time_s:.3f} s, a step that training did not see",
        x=0.012, ha="left", fontsize=11, color=INK, fontweight="bold",
    )  # fmt: skip
    axes = shown.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel(order="F")
    low, top = min(map(np.min, values)), max(map(np.max, values))
    limit = float(np.percentile(np.abs(errors), _OUTLIERS)) or 1.0
    titles = (f"interpolated from {source.nodes:,} nodes", f"fine, {target.nodes:,} nodes")
    for ax, shades, title in zip(axes[:2], values, titles, strict=True):
        painted = _painted(ax, mesh, shades, title, cmap="viridis", vmin=low, vmax=top)
    _bar(shown, painted, axes[:2])
    for ax, of, series in zip(axes[:2], ("source", "target"), (source, target), strict=True):
        x, y = series.mesh.points.T
        size = 1.5 if of == "source" else 0.12
        ax.scatter(x, y, s=size, c="white", lw=0, alpha=0.7)
    for ax, shades, what in zip(axes[2:], errors, ("interpolation", model), strict=True):
        title = f"error of {what}, rms {np.sqrt(np.square(shades).mean()):.3g}"
        painted = _painted(ax, mesh, shades, title, cmap="RdBu_r", vmin=-limit, vmax=limit)
    _bar(shown, painted, axes[2:], extend="both")
    file.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(file, dpi=DPI, metadata={"Software": None})


def _painted(ax: Any, mesh: Any, shades: Reals, title: str, **colours: Any) -> Any:
    painted = ax.tripcolor(mesh, shades, shading="gouraud", **colours)
    ax.set_title(title, loc="left", fontsize=9.5, color=INK)
    ax.set_aspect("equal")
    ax.margins(0.01)
    ax.tick_params(labelsize=8, labelcolor=INK, color=FAINT, length=3)
    ax.locator_params(axis="y", nbins=3)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.label_outer()
    return painted


def _bar(shown: Any, painted: Any, axes: Any, **options: Any) -> None:
    bar = shown.colorbar(painted, ax=list(axes), fraction=0.05, pad=0.02, aspect=22, **options)
    bar.ax.tick_params(labelsize=8, labelcolor=INK, color=FAINT, length=3)
    bar.outline.set_visible(False)


def _triangles(cells: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Triangles as they are, quadrilaterals in two halves, [triangle, 3]."""
    none = np.empty((0, 3), np.int64)
    quads = cells.get("quad", np.empty((0, 4), np.int64))
    return np.concatenate([cells.get("triangle", none), quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
