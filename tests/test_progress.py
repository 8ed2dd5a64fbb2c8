"""What a bake shows of its progress, in a terminal and elsewhere."""

from __future__ import annotations

import io
import sys
import types

import pytest

from parbake import human
from parbake.producers.reporting import Progress
from parbake.progress import ProgressBar, ProgressLines, default_progress


def state(done: int, seconds: float, *, finished: bool = False, notice: str | None = None) -> Progress:
    return Progress(
        samples_done=done,
        samples_total=1000,
        nbytes_written=done * 1024,
        seconds=seconds,
        what="train.zarr",
        finished=finished,
        notice=notice,
    )


def lines_of(*states: Progress) -> list[str]:
    stream = io.StringIO()
    with ProgressLines(stream, every_s=5) as display:
        for one in states:
            display(one)
    return stream.getvalue().splitlines()


def test_lines_come_at_most_every_few_seconds_of_the_bakes_own_clock() -> None:
    shown = lines_of(*(state(10 * i, 0.5 * i) for i in range(41)))  # 20 s
    assert [line.split(",")[0] for line in shown] == [
        f"train.zarr: {percent}% of 1" for percent in (10, 20, 30, 40)
    ]
    assert shown[0] == "train.zarr: 10% of 1,000 samples, 20.0 samples/s, 100 KiB, 45 s left"


def test_a_short_bake_prints_no_line() -> None:
    assert lines_of(state(0, 0), state(500, 2), state(1000, 4, finished=True)) == []


def test_the_end_is_told_once_anything_was() -> None:
    shown = lines_of(state(500, 6), state(1000, 8, finished=True))
    assert shown[-1] == "train.zarr: 100% of 1,000 samples, 125 samples/s, 0.98 MiB, 8.0 s"
    assert len(shown) == 2


def test_a_notice_is_told_at_once_and_once() -> None:
    waiting = "being baked by process 7; waiting for it"
    shown = lines_of(state(0, 0, notice=waiting), state(0, 1, notice=waiting), state(0, 2))
    assert shown == [f"train.zarr: {waiting}"]


def test_what_is_not_a_terminal_gets_lines() -> None:
    assert isinstance(default_progress(io.StringIO()), ProgressLines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_a_terminal_gets_a_bar_with_samples_rate_size_and_time_left(terminal: Terminal) -> None:
    with default_progress(terminal) as display:
        assert isinstance(display, ProgressBar)
        display(state(200, 2))
    drawn = terminal.getvalue()
    for part in ("train.zarr", "200/1,000", "100 samples/s", "200 KiB", "8.0 s left"):
        assert part in drawn


def test_a_bar_leaves_the_cursor_as_it_was_when_the_bake_raises(terminal: Terminal) -> None:
    def bake_that_raises() -> None:
        with default_progress(terminal) as display:
            display(state(200, 2))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        bake_that_raises()
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert terminal.getvalue().rindex(shown) > terminal.getvalue().rindex(hidden)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(default_progress(terminal), ProgressLines)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (64 * 1024, "64.0 KiB"),
        (1023 * 1024, "1.00 MiB"),
        (42_336_000_000, "39.4 GiB"),
        (5000 * 1024**4, "5,000 TiB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert human.size(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (7380, "2 h 3 min"),
        (86_400, "1 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert human.duration(seconds) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(1234.5, "1,234 samples/s"), (0.25, "4.0 s a sample"), (99.96, "100 samples/s"), (0, "0.00 samples/s")],
)
def test_rates(per_second: float, text: str) -> None:
    assert human.rate(per_second) == text


# ---- in a notebook


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """What a notebook's kernel is told: (display or update, texts by MIME type)."""
    kernel = pytest.importorskip("IPython")
    told: list[tuple[str, dict[str, str]]] = []

    class Handle:
        def update(self, bundle: dict[str, str], raw: bool) -> None:
            told.append(("update", bundle))

    def display(bundle: dict[str, str], raw: bool, display_id: bool) -> Handle:
        told.append(("display", bundle))
        return Handle()

    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr(kernel, "get_ipython", lambda: types.SimpleNamespace(kernel=None))
    monkeypatch.setattr("IPython.display.display", display)
    return told


def test_a_notebook_gets_one_output_that_changes_and_ends_as_a_line(
    outputs: list[tuple[str, dict[str, str]]],
) -> None:
    with default_progress(io.StringIO()) as display:
        for one in (state(0, 0), state(500, 2), state(1000, 4, finished=True)):
            display(one)
    assert [what for what, _ in outputs] == ["display", "update", "update"]
    assert '<progress value="0.5000"' in outputs[1][1]["text/html"]
    assert "<progress" not in outputs[-1][1]["text/html"]
    assert outputs[-1][1]["text/plain"] == "train.zarr: 100% of 1,000 samples, 250 samples/s, 0.98 MiB, 4.0 s"


def test_a_bake_that_stops_in_a_notebook_says_how_far_it_came(
    outputs: list[tuple[str, dict[str, str]]],
) -> None:
    with default_progress(io.StringIO()) as display:  # left by an error all the same
        display(state(200, 2, notice="<being> baked"))
    assert "&lt;being&gt; baked" in outputs[0][1]["text/html"]
    assert outputs[-1][1]["text/plain"].endswith("8.0 s left (stopped)")
    assert "<progress" not in outputs[-1][1]["text/html"]


def test_a_program_that_only_imports_what_kernels_are_made_of_gets_lines(
    outputs: list[tuple[str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    assert isinstance(default_progress(io.StringIO()), ProgressLines)
