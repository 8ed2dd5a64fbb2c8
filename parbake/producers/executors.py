"""Pools of worker processes that end when the process that started them does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

_PR_SET_PDEATHSIG = 1


def process_pool(workers: int) -> ProcessPoolExecutor:
    """An executor of ``workers`` spawned processes for ``bake(executor=...)``; use it as a context manager.

    The cores are shared out among the workers. An orphan would go on writing after the lock of its bake
    is free, so each worker dies with its parent, also when that is killed.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    return ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(), threads),
    )


def _start_worker(parent: int, threads: int) -> None:
    if (torch := sys.modules.get("torch")) is not None:  # the user's own script imports it
        torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # for a torch that is imported later
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends the pool
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return
    process = multiprocessing.parent_process()
    assert process is not None
    threading.Thread(target=lambda: (process.join(), os._exit(1)), daemon=True).start()
