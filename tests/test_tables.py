"""Tables: a line for each row where they fit, blocks where they do not, whole lines into a pipe."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from parbake.cli_tables import Rows, pairs, print_parts

LONG = "surface_pressure_coefficient_of_the_second_blade"
ROWS = Rows(
    ("field", "dimensions", "units"), [(LONG, "sample 96, time 500", "kg m-1"), ("f0", "sample 96", "")]
)


def printed(rows: Rows, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(rows)
    return out.getvalue().splitlines()


def test_what_fits_is_a_table() -> None:
    lines = printed(ROWS, 80)
    assert [line.split() for line in lines] == [
        ["field", "dimensions", "units"],
        [LONG, "sample", "96,", "time", "500", "kg", "m-1"],
        ["f0", "sample", "96"],
    ]


def test_what_does_not_fit_is_a_block_a_row() -> None:
    assert [line.rstrip() for line in printed(ROWS, 40)] == [
        LONG[:40],
        LONG[40:],
        "  dimensions sample 96, time 500, units",
        "  kg m-1",
        "f0",
        "  dimensions sample 96",
    ]


CELLS = st.lists(st.tuples(*[st.from_regex(r"[a-z0-9]{1,30}", fullmatch=True)] * 3), min_size=1, max_size=4)


@given(CELLS, st.integers(20, 120))
def test_nothing_is_lost_and_no_line_is_wider_than_the_screen(
    cells: list[tuple[str, ...]], width: int
) -> None:
    lines = printed(Rows(("a", "b", "c"), cells), width)
    assert max(map(len, lines)) <= width
    assert Counter("".join(map("".join, cells))) <= Counter("".join(lines))


def test_a_pipe_gets_whole_lines_without_spaces_at_their_ends(capsys: pytest.CaptureFixture[str]) -> None:
    wide = Rows(("store", "size"), [(LONG * 20, "1 B"), ("b", "")], right=(1,))
    print_parts("", wide, pairs([("key", "v" * 500)]))
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"store{' ' * (len(LONG) * 20 - 3)}size",
        f"{LONG * 20}   1 B",
        "b",
        f"key: {'v' * 500}",
    ]
