"""How many threads torch may use on the CPU while a producer computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's operations on the CPU.

    The last bits of a matrix product may change with the number of threads, and a bake gives the same
    bytes in a pool worker (which has one) as in the main process. More cores are better used by more
    processes.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
