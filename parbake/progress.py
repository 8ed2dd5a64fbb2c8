"""Shows how far a bake is: a bar in a terminal or notebook, plain lines elsewhere."""

from __future__ import annotations

import html
import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self, TextIO

from parbake import human

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from parbake.producers.reporting import Progress

LINE_EVERY_S = 5.0  # of the bake's own clock; a log file is not a screen


class ProgressDisplay(ABC):
    """Takes each Progress of one bake; closed in any case, so that the terminal is left as it was."""

    @abstractmethod
    def __call__(self, progress: Progress, /) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def default_progress(stream: TextIO | None = None) -> ProgressDisplay:
    """A bar where ``stream`` (stderr) is a terminal or in a notebook, else plain lines on it."""
    stream = stream if stream is not None else sys.stderr
    if _in_notebook():
        return NotebookBar()
    if not stream.isatty():
        return ProgressLines(stream)

    from rich.console import Console

    console = Console(file=stream)
    # rich draws no bar in a terminal that cannot move its cursor
    return ProgressBar(console) if console.is_interactive else ProgressLines(stream)


def _in_notebook() -> bool:
    """Whether this process is the kernel of one: others only import what kernels are made of."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


class ProgressLines(ProgressDisplay):
    """One plain line every few seconds; a bake that is over before the first one stays silent."""

    def __init__(self, stream: TextIO, every_s: float = LINE_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._next_s = every_s
        self._notice: str | None = None
        self._said_any = False

    def __call__(self, progress: Progress, /) -> None:
        if progress.notice and progress.notice != self._notice:
            self._say(f"{progress.what}: {progress.notice}")
        self._notice = progress.notice
        last = progress.finished and self._said_any
        if last or (progress.seconds >= self._next_s and progress.samples_total and not progress.finished):
            self._next_s = progress.seconds + self._every_s
            self._said_any = not last
            self._say(line(progress))

    def close(self) -> None:
        pass  # the stream is the caller's

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class ProgressBar(ProgressDisplay):
    """A rich bar; appears with the first sample to bake."""

    def __init__(self, console: Console) -> None:
        from rich import progress as rich

        self._bar = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=None),
            rich.TextColumn("{task.completed:,.0f}/{task.total:,.0f}", markup=False),
            rich.TextColumn("{task.fields[numbers]}", markup=False),
            console=console,
            expand=True,
        )
        self._task: TaskID | None = None
        self._notice: str | None = None

    def __call__(self, progress: Progress, /) -> None:
        if progress.notice and progress.notice != self._notice:
            self._bar.console.print(
                f"{progress.what}: {progress.notice}", markup=False, highlight=False, soft_wrap=True
            )
        self._notice = progress.notice
        if progress.samples_total:
            if self._task is None:
                self._bar.start()
                self._task = self._bar.add_task(
                    progress.what, total=progress.samples_total, numbers=numbers(progress)
                )
            self._bar.update(
                self._task,
                total=progress.samples_total,
                completed=progress.samples_done,
                numbers=numbers(progress),
            )
        if progress.finished:
            self.close()

    def close(self) -> None:
        self._bar.stop()


class NotebookBar(ProgressDisplay):
    """One output that changes in place, without widgets; what stays of it is one line."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._notice: str | None = None
        self._last: Progress | None = None

    def __call__(self, progress: Progress, /) -> None:
        if progress.notice and progress.notice != self._notice:
            self._display(f"{progress.what}: {progress.notice}", None)
        self._notice = progress.notice
        if progress.samples_total:
            self._last = None if progress.finished else progress
            done = progress.samples_done / progress.samples_total
            self._display(line(progress), None if progress.finished else done)

    def close(self) -> None:
        """What did not finish leaves how far it came."""
        if self._last is not None:
            self._display(f"{line(self._last)} (stopped)", None)
            self._last = None

    def _display(self, text: str, done: float | None) -> None:
        """``done``: 0 to 1, drawn as a bar; None for the text alone."""
        from IPython.display import display

        plain, shown = human.printable(text), html.escape(human.printable(text))
        bar = "" if done is None else f'<progress value="{done:.4f}" max="1" style="width: 16em"></progress> '
        bundle = {
            "text/plain": plain,
            "text/html": f'<div style="font-variant-numeric: tabular-nums">{bar}{shown}</div>',
        }
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(bundle, raw=True)


def line(progress: Progress) -> str:
    """``train.zarr: 12% of 50,000 samples, 350 samples/s, 1.20 GiB, 2 min 5 s left``."""
    percent = 100 * progress.samples_done // max(progress.samples_total, 1)
    return f"{progress.what}: {percent}% of {progress.samples_total:,} samples, {numbers(progress)}"


def numbers(progress: Progress) -> str:
    """Rate, size written and time left, or time taken once finished; what is not known is left out."""
    parts = []
    if progress.samples_per_s:
        parts.append(human.rate(progress.samples_per_s))
    if progress.nbytes_written:
        parts.append(human.size(progress.nbytes_written))
    if progress.finished:
        parts.append(human.duration(progress.seconds))
    elif progress.seconds_left is not None:
        parts.append(f"{human.duration(progress.seconds_left)} left")
    return ", ".join(parts)
