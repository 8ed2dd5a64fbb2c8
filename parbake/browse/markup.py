"""HTML from text that nobody vouches for: escaped, cut, in tables. Pure."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence

from parbake import human
from parbake.browse.style import STYLE

TEXT_MAX = 400  # characters of one text from a file

_BADGES = {
    "fresh": ("good", "it holds what its producer would give"),
    "unknown": ("quiet", "to know: open_store(path, expect=producer) or store.freshness(producer)"),
    "edited": (
        "warn",
        "attributes that only describe were changed since the bake; samples and keys were not",
    ),
    "foreign": ("quiet", "not baked by parbake: its keys are unknown"),
    "damaged": ("bad", "store.verify() lists all damage"),
    "computed": ("quiet", "computed whenever it is read, and kept nowhere"),
    "several": ("quiet", "several stores, one after the other"),
    "stale": ("bad", "the producer would give something else"),
    "whole": ("good", "all bytes are as they were written"),
}


def escaped(text: object, most: int = TEXT_MAX) -> str:
    """``text`` for HTML, in elements and in quoted attributes; what is beyond ``most`` characters is cut.

    Controls, line breaks and what changes the direction of writing are shown as in a terminal.
    """
    raw = str(text)
    more = len(raw) - most
    shown = html.escape(human.printable(raw[:most]))
    return f"{shown}… ({more:,} more characters)" if more > 0 else shown


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """A table of HTML cells; columns ``right`` are numbers. The first cell of a row is its header."""
    heads = "".join(_cell("th", cell, i in right, ' scope="col"') for i, cell in enumerate(header))
    body = "".join(
        "<tr>"
        + "".join(
            _cell("th" if i == 0 else "td", cell, i in right, "" if i else ' scope="row"')
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    head = f"<thead><tr>{heads}</tr></thead>" if header else ""
    return f'<div class="parbake-wide"><table class="parbake-table">{head}<tbody>{body}</tbody></table></div>'


def details(summary: str, content: str, *, opened: bool = False) -> str:
    """A part that folds; both are HTML."""
    return f"<details{' open' * opened}><summary>{summary}</summary>{content}</details>"


def fragment(content: str) -> str:
    """``content`` with its style sheet, for a cell of a notebook."""
    return f'<div class="parbake"><style>{STYLE}</style>{content}</div>'


def badge(state: str) -> str:
    """A state in one word; pointing at it tells more."""
    kind, tells = _BADGES[state]
    return f'<span class="parbake-badge parbake-{kind}" title="{escaped(tells)}">{state}</span>'


def quiet(content: str) -> str:
    return f'<span class="parbake-quiet">{content}</span>'


def note(content: str, kind: str) -> str:
    """A line of its own; ``kind``: quiet, warn or bad."""
    return f'<div class="parbake-note parbake-{kind}">{content}</div>'


def more(count: int, noun: str) -> str:
    """How many more there are than are shown, if any."""
    return note(f"and {human.count(count, f'more {noun}')}", "quiet") if count > 0 else ""


def _cell(tag: str, cell: str, right: bool, more: str = "") -> str:
    # where a site strips <style>, it keeps the attribute align
    number = ' class="parbake-number" align="right"' if right else ""
    return f"<{tag}{more}{number}>{cell}</{tag}>"
