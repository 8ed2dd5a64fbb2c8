"""Freshness, damage and datasets in notebooks, as HTML. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parbake import human
from parbake.browse.markup import badge, escaped, fragment, more, note, table
from parbake.browse.tree import leaf

if TYPE_CHECKING:
    from parbake.store.keys import JSON, Freshness
    from parbake.store.verify import VerifyReport

ROWS_MAX = 40


def freshness_html(freshness: Freshness) -> str:
    """``fresh``, or a table of the keys that differ."""
    if freshness:
        return fragment(badge("fresh"))
    rows = [
        (escaped(c.field) if c.field else "", escaped(c.path), _code(c.stored), _code(c.wanted))
        for c in freshness.changes[:ROWS_MAX]
    ]
    fields = any(row[0] for row in rows)
    header = ("field", "key", "stored", "wanted") if fields else ("key", "stored", "wanted")
    cells = [row if fields else row[1:] for row in rows]
    keys = human.count(len(freshness.changes), "key")
    head = (
        f'<div class="parbake-head">{badge("stale")}<span class="parbake-quiet">changed: {keys}</span></div>'
    )
    return fragment(head + table(header, cells) + more(len(freshness.changes) - len(rows), "key"))


def verified_html(report: VerifyReport) -> str:
    """``whole``, or a table of what is damaged."""
    checked = f"{human.size(report.checked_nbytes)} checked"
    if report.unchecked:
        names = ", ".join(report.unchecked)
        checked += f"; read, but without checksums: {names}"
    state = badge("damaged" if report.damaged else "whole")
    head = f'<div class="parbake-head">{state}<span class="parbake-quiet">{escaped(checked)}</span></div>'
    if not report.damaged:
        return fragment(head)
    rows = [
        (
            escaped(one.file),
            escaped(one.field or ""),
            f"{one.start:,} to {one.stop - 1:,}" if one.stop > one.start else "",
            escaped(one.found),
        )
        for one in report.damaged[:ROWS_MAX]
    ]
    listed = table(("file", "field", "samples", "found"), rows, (2,))
    return fragment(head + listed + more(len(report.damaged) - len(rows), "damaged part"))


def dataset_html(name: str, said: Sequence[str], fields: Sequence[tuple[str, str, str]]) -> str:
    """What a dataset gives: name, shape and dtype of the tensors of a sample."""
    rows = [tuple(map(escaped, row)) for row in fields[:ROWS_MAX]]
    head = f'<div class="parbake-head"><span class="parbake-name">{escaped(name, 200)}</span></div>'
    notes = note("<br>".join(map(escaped, said)), "quiet")
    rest = more(len(fields) - len(rows), "field")
    return fragment(head + notes + table(("tensor", "shape", "dtype"), rows) + rest)


def _code(value: JSON) -> str:
    return f"<code>{escaped(leaf(value))}</code>"
