"""Tables for a terminal of any width, and for pipes: a row is a line, or a block where it does not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from parbake import human

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

_FOLDED_MIN = 20  # columns left to what is folded; with less, a row is a block
_PIPE_WIDTH = 1 << 20  # columns: what reads a pipe takes lines, not folds


@dataclass(frozen=True)
class Rows:
    """Rows of text; columns ``right`` are numbers, ``folded`` may break its lines on a narrow screen."""

    header: Sequence[str]
    cells: Sequence[Sequence[str]]
    right: Collection[int] = ()
    folded: int = 0
    gap: int = 2  # between columns

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.cells import cell_len

        cells = [[human.printable(cell) for cell in row] for row in self.cells]
        widths = [max(map(cell_len, column)) for column in zip(self.header, *cells, strict=True)]
        left = options.max_width - sum(widths) - self.gap * (len(widths) - 1) + widths[self.folded]
        if left >= min(widths[self.folded], _FOLDED_MIN):
            yield self._table(cells)
        else:
            yield from self._blocks(cells)

    def _table(self, cells: Sequence[Sequence[str]]) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        made = Table(box=None, pad_edge=False, padding=(0, self.gap, 0, 0), header_style="dim")
        for position, name in enumerate(self.header):
            made.add_column(
                name,
                justify="right" if position in self.right else "left",
                overflow="fold",
                no_wrap=position != self.folded,
            )
        for row in cells:
            made.add_row(*map(Text, row))  # Text: [brackets] are no markup
        return made

    def _blocks(self, cells: Sequence[Sequence[str]]) -> Iterator[RenderableType]:
        from rich.padding import Padding
        from rich.text import Text

        for name, *rest in cells:
            titled = zip(self.header[1:], rest, strict=True)
            told = [Text.assemble((f"{title} ", "dim"), cell) for title, cell in titled if cell]
            yield Text(name, overflow="fold")
            yield Padding(Text(", ").join(told), (0, 0, 0, 2))


def pairs(rows: Iterable[tuple[str, str]]) -> RenderableType:
    """A line for each ``key: value``."""
    from rich.text import Text

    lines = [Text.assemble((f"{human.printable(k)}: ", "dim"), human.printable(v)) for k, v in rows]
    return Text("\n").join(lines)


def print_parts(*parts: RenderableType) -> None:
    """Print on stdout; into a pipe whole lines without spaces at their ends."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    with console.capture() as printed:
        for part in parts:
            console.print(part, soft_wrap=not isinstance(part, Rows))  # soft: copied lines stay whole
    text = printed.get()
    if not console.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    click.echo(text, nl=False, color=console.is_terminal)
