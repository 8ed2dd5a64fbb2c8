"""A store as one page: what it is, pictures of samples across its range, distributions."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parbake import human
from parbake.browse import html
from parbake.browse.figures import compact
from parbake.browse.kinds import Kind
from parbake.browse.plot import figure_of, panels_of, scalar_names, scalars_figure, spread
from parbake.errors import DamagedStoreError, RecipeError, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from parbake.store.store import Store

_F0, _HZ = "f0", "Hz"
_DAMAGED = '<p class="damaged">'
_CODE_MAX = 5000  # characters: a path is at most 4096
# what is not in the page is not fetched, whatever a store's texts say
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --soft: #59636e; --rule: #d9dee3;
  --code: #f4f6f8; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --ink: #e2e6ea; --soft: #9aa4ae; --rule: #343b42; --code: #1e2328;
    --bad: #ff8a80; }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
figure { margin: 0 0 1rem; background: #fff; border: 1px solid var(--rule); border-radius: 6px;
  padding: .5rem; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; }
.damaged { border-left: 4px solid var(--bad); padding: .2rem .8rem; color: var(--bad);
  overflow-wrap: anywhere; }
.soft { color: var(--soft); }
pre { background: var(--code); border-radius: 6px; padding: .7rem 1rem; overflow-x: auto; }
@media print {
  main { max-width: none; padding: 0; } body { font-size: 11px; } pre { white-space: pre-wrap; }
}
"""


def report(store: Store, *, samples: int = 5) -> str:
    """One HTML page that holds all it shows; no scripts, nothing fetched.

    ``samples``: pictures of so many, across the range of f0 where there is one, else evenly over the store.
    A sample that is damaged is told in its place. Raises RecipeError where matplotlib is not installed.
    """
    if samples < 1:
        raise RecipeError(f"samples={samples}; at least 1")
    name = html.escaped(store.path.name)
    code = "\n".join(html.escaped(line, _CODE_MAX) for line in _code(store))
    parts = [
        html.store_html(store),
        *_pictures(store, samples),
        *_distributions(store),
        *_section("Read it again", f"<pre><code>{code}</code></pre>"),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def tells_damage(page: str) -> bool:
    """Whether a report has to say that something of its store cannot be read."""
    return html.badge("damaged") in page or _DAMAGED in page


def _section(title: str, *content: str) -> Iterator[str]:
    if any(content):
        yield f"<section><h2>{title}</h2>"
        yield from content
        yield "</section>"


def _pictures(store: Store, count: int) -> Iterator[str]:
    if not store.samples or all(panel.kind is Kind.SCALAR for panel in panels_of(store)):
        return
    numbers, how = picked(store, count)
    of = f"{len(numbers)} of {human.count(store.samples, 'sample')}, {how}"
    shown = [_figure_or_damage(store, number) for number in numbers]
    yield from _section("Samples", f'<p class="soft">{html.escaped(of)}</p>', *shown)


def _figure_or_damage(store: Store, number: int) -> str:
    try:
        return _figure(figure_of(store, number), f"sample {number}")
    except DamagedStoreError as error:
        return _damage(f"sample {number}", error)


def _distributions(store: Store) -> Iterator[str]:
    names = scalar_names(store)
    if not store.samples or not names:
        return
    try:
        content = _figure(scalars_figure(store, names), f"distributions of {', '.join(names)}")
    except DamagedStoreError as error:
        content = _damage("distributions", error)
    yield from _section("Distributions", content)


def _figure(shown: Figure, what: str) -> str:
    data = base64.b64encode(compact(shown)).decode()
    return f'<figure><img alt="{html.escaped(what)}" src="data:image/webp;base64,{data}"></figure>'


def _damage(what: str, error: Exception) -> str:
    return f"{_DAMAGED}{html.escaped(what)}: damaged: {html.escaped(one_line(error))}</p>"


def _code(store: Store) -> tuple[str, ...]:
    """Lines that open the store and read from it."""
    field = next(iter(store.fields))
    return "import parbake", "", f"store = parbake.open_store({str(store.path)!r})", f"store[{field!r}][:10]"


def picked(store: Store, count: int) -> tuple[list[int], str]:
    """Numbers of samples across the range of f0, else over the store, and which of both in words."""
    f0 = store.fields.get(_F0)
    order: NDArray[np.int64] = np.arange(store.samples)
    how = "spread evenly over the store"
    if f0 is not None and f0.units == _HZ and f0.shape == ():
        try:
            index = spread(store.samples)
            values = store.read(index, (_F0,))[_F0]
        except DamagedStoreError:
            values = np.empty(0)
        known = np.isfinite(values)
        if known.any():
            order = index[known][np.argsort(values[known], kind="stable")]
            how = "from the lowest f0 to the highest"
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)
    return [int(order[place]) for place in places], how
