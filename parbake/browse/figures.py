"""What all our figures have in common: size, colours, plain text, and how they become bytes."""

from __future__ import annotations

import functools
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parbake import human
from parbake.errors import RecipeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.legend import Legend

WIDTH_IN = 8.0
_SCALE = 2  # pixels per 1/100 inch
DPI = 100  # at which a figure is as wide as a column of a page
SUFFIXES = ("png", "svg", "pdf")

# of Okabe and Ito, "Color Universal Design" (2008): told apart by colour-blind readers, and in print
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#c98a00", "#56b4e9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
INK, FAINT, BACKDROP = "#222222", "#8a8a8a", "#b4b4b4"
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
_LOSSLESS_NBYTES = 100_000
_TEXT_MAX = 48  # characters of a name in a figure
# of a legend: what there is room for, what an entry takes beside its text, and a letter of that
_LEGEND_WIDTH_IN, _LEGEND_ITEM_IN, _LETTER_IN = WIDTH_IN - 1.0, 0.4, 0.066


def figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """An empty figure on white that belongs to no window. Raises RecipeError without matplotlib."""
    return _picture_class()(figsize=(width_in, height_in), dpi=DPI, layout="constrained", facecolor="white")


@functools.cache
def _picture_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RecipeError(
            f"pictures need matplotlib ({error}); install it with: pip install 'parbake[plot]'"
        ) from None

    class Picture(Figure):
        """A figure that shows itself in a notebook without pyplot, sharp on dense screens."""

        def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
            width_in, height_in = self.get_size_inches()
            return rendered(self), {"width": round(width_in * DPI), "height": round(height_in * DPI)}

    return Picture


def rendered(shown: Figure, suffix: str = "png", **options: Any) -> bytes:
    """The figure as the bytes of a file, sharp on dense screens; ``suffix``: one of SUFFIXES."""
    from matplotlib import rc_context

    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    settings: Any = {"svg.hashsalt": "parbake", "savefig.bbox": None, "savefig.transparent": False}
    buffer = io.BytesIO()
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")  # a name in a script that the font has not
        shown.savefig(
            buffer, format=suffix, dpi=DPI * _SCALE, facecolor="white", metadata=undated[suffix], **options
        )
    return buffer.getvalue()


def compact(shown: Figure) -> bytes:
    """The figure as WebP: without loss where that is small, else (maps) with one that nobody sees."""
    from PIL import Image

    with Image.open(io.BytesIO(rendered(shown, pil_kwargs={"compress_level": 0}))) as image:
        opaque = image.convert("RGB")
    lossless = _webp(opaque, lossless=True, quality=40)
    return lossless if len(lossless) <= _LOSSLESS_NBYTES else _webp(opaque, quality=92)


def _webp(image: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", method=4, **options)
    return buffer.getvalue()


def plain(text: object, longest: int = _TEXT_MAX) -> str:
    """A text from a store as it may stand in a figure: cut, on one line, no formulae."""
    line = human.printable(" ".join(str(text).split()))
    cut = line if len(line) <= longest else f"{line[: longest - 1]}…"
    return cut.replace("$", r"\$")


def with_units(name: object, units: str | None) -> str:
    """``time (s)``; a name that is its own unit stands alone."""
    return plain(name) if units in (None, "", "1", str(name)) else f"{plain(name)} ({plain(units, 24)})"


def magnitude(text: str, dtype: np.dtype[Any]) -> str:
    """What is shown of values of ``dtype``: of complex ones their magnitude."""
    return f"magnitude of {text}" if dtype.kind == "c" else text


def real(values: NDArray[Any]) -> NDArray[np.float64]:
    """What is shown of values, as numbers."""
    return np.asarray(np.abs(values) if values.dtype.kind == "c" else values, np.float64)


def headline(shown: FigureBase, text: str) -> None:
    """A title at the left edge; ``text`` is plain already."""
    shown.suptitle(text, x=0.012, ha="left", fontsize=11, color=INK, fontweight="bold")


def styled(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Quiet axes: small grey ticks, two spines. The texts are plain already."""
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.set_facecolor("white")
    axes.tick_params(labelsize=8, labelcolor=INK, color=FAINT, length=3, which="both")
    for text in (axes.xaxis.get_offset_text(), axes.yaxis.get_offset_text()):
        text.set(fontsize=8, color=INK)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=FAINT, linewidth=0.8)


def legend_above(axes: Axes, handles: list[Any], labels: list[str]) -> Legend:
    """A legend without a box at the right of the title, below it where it takes several rows.

    ``labels`` are plain already. It never moves the axes: names from a store may be as long as they like.
    """
    title = axes.get_title(loc="left")
    widths_in = [_LEGEND_ITEM_IN + _LETTER_IN * len(label) for label in labels]
    columns, rows = len(labels), 1
    if sum(widths_in) + 1.2 * _LETTER_IN * len(title) > _LEGEND_WIDTH_IN:
        columns = max(1, int(_LEGEND_WIDTH_IN / max(widths_in)))
        rows = -(-len(labels) // columns)
        axes.set_title(title, loc="left", fontsize=9.5, color=INK, pad=8 + 13 * rows)
    legend = axes.legend(
        handles,
        labels,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=columns,
        fontsize=8,
        labelcolor=INK,
        frameon=False,
        handlelength=1.4,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    legend.set_in_layout(False)
    return legend


def colour_bar(shown: FigureBase, painted: Any, axes: Any, **options: Any) -> None:
    """A slim bar beside the axes that it belongs to."""
    bar = shown.colorbar(painted, ax=axes, **{"fraction": 0.05, "pad": 0.02, "aspect": 22, **options})
    bar.ax.tick_params(labelsize=8, labelcolor=INK, color=FAINT, length=3)
    bar.outline.set_visible(False)


def note(axes: Axes, text: str) -> None:
    """A sentence where a picture would be."""
    axes.set_axis_off()
    axes.text(0.0, 0.5, text, transform=axes.transAxes, fontsize=9, color=FAINT, va="center")
