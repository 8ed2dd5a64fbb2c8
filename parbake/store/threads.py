"""Work on slices of a range, side by side in threads of this process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

_pool: tuple[int, ThreadPoolExecutor] | None = None  # with the process that made it


def _executor() -> ThreadPoolExecutor:
    global _pool
    if _pool is None or _pool[0] != os.getpid():  # its threads do not live on in a forked child
        _pool = os.getpid(), ThreadPoolExecutor(os.cpu_count(), "parbake-read")
    return _pool[1]


def in_slices(work: Callable[[slice], None], count: int, threads: int) -> None:
    """``work`` on ``threads`` slices of range(count), at most; the caller's thread does the first.

    Raises what a slice raises, when all have ended.
    """
    threads = min(threads, count)
    if threads < 2:
        work(slice(0, count))
        return
    edges = [count * i // threads for i in range(threads + 1)]
    first, *others = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    futures: list[Future[None]] = []
    try:
        for other in others:
            futures.append(_executor().submit(work, other))
        work(first)
    finally:
        _wait(futures)
    for future in futures:
        future.result()


def _wait(futures: list[Future[None]]) -> None:
    """Until all have ended, whatever signals raise meanwhile: they write into memory of the caller."""
    try:
        wait(futures)
    except BaseException:
        _wait(futures)
        raise
