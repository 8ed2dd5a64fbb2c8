"""Tones side by side: on matrices as small as a student's torch's own threads gain little."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def side_by_side(call: Callable[[T], U], parts: Sequence[T], threads: int) -> list[U]:
    """``call`` of each of ``parts``, in their order, on so many threads; torch computes without the GIL."""
    if min(threads, len(parts)) == 1:
        return [call(part) for part in parts]
    return list(_pool(threads).map(call, parts))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
