"""What is measured, inside the child process that has the reader open."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import cycle, islice
from typing import Any

import numpy as np
from adapters.base import Batch, Peer, UnavailableError
from shapes import Source, orders

MEASURES = {
    "random": "random",
    "untouched": "random, not looked at",
    "sequential": "sequential",
    "workers": "2 workers, shuffled",
    "first": "fresh process",
    "cold": "cold files",
}
WORKERS = 2
LEAST_S = 0.3  # fast readers repeat their epoch until then


def lanes_sum(batch: Batch) -> int:
    """The sum of all bytes as uint64, modulo 2**64: looks at every byte, at one cost for all dtypes."""
    total = 0
    for value in batch.values() if isinstance(batch, Mapping) else batch:
        total += int(np.ascontiguousarray(value).reshape(-1).view(np.uint64).sum())
    return total % 2**64


def samples_in(batch: Batch) -> int:
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0])


class Session:
    """One reader and the samples it should give."""

    def __init__(self, peer: Peer, source: Source) -> None:
        self.peer = peer
        self.source = source
        self.checksums = source.checksums()
        self._loaders: dict[tuple[int, bool], Iterable[Batch]] = {}

    def run(self, measure: str, seed: int, budget_s: float) -> dict[str, float]:
        """Seconds and samples of one round. Raises UnavailableError, ValueError for wrong data."""
        batches, order = self.batches(measure, seed)
        if order is None:
            return self._timed(batches, budget_s, started=measure == "workers")
        least_s = 0 if measure == "first" else LEAST_S
        return self._in_order(order, least_s, budget_s, look=measure != "untouched")

    def batches(self, measure: str, seed: int) -> tuple[Any, Any]:
        """The loader that a round iterates, or the samples of the batches that it asks for."""
        if measure == "workers":
            return self._loader(WORKERS, self.peer.random), None
        if measure == "random" and not self.peer.random:
            raise UnavailableError("it reads in order only")
        in_order = measure == "sequential" or not self.peer.random
        if self.peer.batch is None or (in_order and self.peer.streams):
            return self._loader(0, not in_order), None
        order = orders(len(self.checksums), self.source.batch, seed)
        return None, np.sort(order, axis=None).reshape(order.shape) if in_order else order

    def _loader(self, workers: int, shuffle: bool) -> Iterable[Batch]:
        """Made once and iterated in each round, as epochs of a training are."""
        if (workers, shuffle) not in self._loaders:
            self._loaders[workers, shuffle] = self.peer.loader(self.source.batch, workers, shuffle)
        return self._loaders[workers, shuffle]

    def warm(self, budget_s: float) -> None:
        """Read what there is once, in order, and check it."""
        self.run("sequential", 0, budget_s)

    def _in_order(self, order: Any, least_s: float, budget_s: float, look: bool) -> dict[str, float]:
        """Asks for batches of these samples: whole epochs, until it took ``least_s`` or the time is over."""
        sums = []
        done = 0
        began = time.perf_counter()
        for index in cycle(order):
            batch = self.peer.batch(index)
            if look:
                sums.append(lanes_sum(batch))
            done += 1
            seconds = time.perf_counter() - began
            if seconds > budget_s or (seconds > least_s and done % len(order) == 0):
                break
        wanted = islice(cycle(self.checksums[order].sum(axis=1).tolist()), done)
        if look and sums != list(wanted):
            raise ValueError("wrong data: batches differ from the source")
        return {"seconds": seconds, "samples": done * len(order[0])}

    def _timed(self, batches: Iterable[Batch], budget_s: float, *, started: bool) -> dict[str, float]:
        """Takes batches of a loader until its epoch or the time is over.

        ``started``: the clock starts when each worker has given a batch; those do not count.
        Which samples a batch holds is not known, so only whole epochs can be checked.
        """
        sums: list[int] = []
        samples = skipped = 0
        began = time.perf_counter()
        for batch in batches:
            if started and len(sums) < WORKERS:
                began, skipped = time.perf_counter(), samples + samples_in(batch)
            sums.append(lanes_sum(batch))
            samples += samples_in(batch)
            if time.perf_counter() - began > budget_s and samples > skipped:
                break
        seconds = time.perf_counter() - began
        if samples == len(self.checksums) and sum(sums) % 2**64 != int(self.checksums.sum()):
            raise ValueError("wrong data: the epoch differs from the source")
        if samples <= skipped:
            raise ValueError("too few batches")
        return {"seconds": seconds, "samples": samples - skipped}
