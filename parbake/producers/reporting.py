"""How far a bake is, and telling it on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias


@dataclass(frozen=True)
class Progress:
    """How far a bake is. ``samples_total``: those of this bake; samples that are kept do not count.

    ``nbytes_written``: encoded; ``seconds``: since this call began; ``notice``: something to tell once.
    """

    what: str
    samples_done: int
    samples_total: int
    nbytes_written: int
    seconds: float
    finished: bool = False
    notice: str | None = None

    @property
    def samples_per_s(self) -> float | None:
        """Samples a second since this call began; None before the first."""
        return self.samples_done / self.seconds if self.samples_done and self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None before the first sample."""
        rate = self.samples_per_s
        return (self.samples_total - self.samples_done) / rate if rate else None


Report: TypeAlias = Callable[[Progress], None]


class Reporter:
    """Counts what a bake has done and tells it on, at most ten times a second."""

    def __init__(self, what: str, report: Report | None) -> None:
        self._report = report
        self._now = Progress(what, 0, 0, 0, 0.0)
        self._began = time.monotonic()
        self._told = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def begin(self, samples_total: int) -> None:
        self._began = time.monotonic()
        self._now = replace(self._now, samples_total=samples_total)
        self._tell()

    def produced(self, samples: int, nbytes_written: int) -> None:
        """Some more samples are computed; ``nbytes_written`` by this bake until now."""
        done = self._now.samples_done + samples
        self._now = replace(self._now, samples_done=done, nbytes_written=nbytes_written)
        if self.seconds - self._told > 0.1:
            self._tell()

    def written(self, nbytes: int) -> None:
        self._now = replace(self._now, nbytes_written=nbytes)

    def notice(self, text: str) -> None:
        if self._report is not None:
            self._report(replace(self._now, notice=text))

    def finish(self) -> None:
        self._now = replace(self._now, finished=True)
        self._tell()

    def _tell(self) -> None:
        self._told = self.seconds
        self._now = replace(self._now, seconds=self.seconds)
        if self._report is not None:
            self._report(self._now)
