"""Numbers and tables as the page shows them. Pure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence


def number(value: float) -> str:
    """Three significant digits, thousands apart: ``1,230``, ``45.6``, ``0.0123``."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{digits}f}"


def times(value: float) -> str:
    """A ratio: two significant digits, three from 100 on."""
    return number(value) if value >= 99.5 else f"{float(f'{value:.2g}'):g}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def size(nbytes: float) -> str:
    """Decimal units, as the guides count: ``847 kB``, ``42.3 GB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{number(nbytes / factor)} {unit}"
    return f"{nbytes:.0f} B"


def flowed(template: str, **values: object) -> str:
    """The template's paragraphs with the values in them, in lines of the width of a page's source."""
    filled = template.format(**values).split("\n\n")
    return "\n\n".join(
        textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)
        for text in filled
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in (head, *rows)]
    return "\n".join((lines[0], "|---" * len(head) + "|", *lines[1:]))


def spoken(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
