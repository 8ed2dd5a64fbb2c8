"""Slabs baked by executors: the same bytes, workers that end with their parent, faults in one line."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bakery import (
    SLAB,
    Loaf,
    assert_holds,
    calls,
    ended,
    kill_after,
    leftovers,
    shard_bytes,
    start_child,
    undisturbed,
)

from parbake.errors import NoSpaceError, ProducerError, RecipeError, UnfinishedStoreError
from parbake.producers.bake import bake
from parbake.producers.executors import process_pool
from parbake.producers.reporting import Progress
from parbake.store import publish
from parbake.store.store import open_store

pytestmark = pytest.mark.usefixtures("tiny")


@dataclass(frozen=True)
class InWorker:
    """What a worker does before a batch (a trap of Loaf): leaves its process id; perhaps ends in one way."""

    folder: Path
    start: int = -1
    how: str = ""

    def __call__(self, start: int, stop: int) -> None:
        (self.folder / f"{os.getpid()}.pid").touch()
        if start != self.start:
            return
        if self.how == "exit":
            os._exit(3)
        if self.how == "full":
            raise NoSpaceError("full")
        if self.how == "raise":
            raise ArithmeticError("no convergence")
        if self.how == "hang":
            (self.folder / "hangs").touch()
            with (self.folder / "never").open() as fifo:  # opens when somebody writes: nobody does
                fifo.read()

    def pids(self) -> list[int]:
        return [int(file.stem) for file in self.folder.glob("*.pid")]


def assert_all_gone(pids: list[int]) -> None:
    """Each process ends within a minute; how, is for its parent."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([descriptor], [], [], 60)[0], f"process {pid} goes on"
        finally:
            os.close(descriptor)


def test_process_pool_gives_the_same_bytes_and_counts(folder: Path) -> None:
    loaf = Loaf(60)
    expected = undisturbed(folder, loaf)
    target = folder / "train.zarr"
    told: list[Progress] = []
    trap = InWorker(folder)
    with process_pool(2) as pool:
        with bake(replace(loaf, trap=trap), target, executor=pool, progress=told.append) as store:
            assert_holds(store, loaf)
        assert shard_bytes(target) == expected
        with bake(Loaf(100, log=folder / "log"), target, executor=pool, progress=False) as store:  # grows
            assert_holds(store, Loaf(100))
        assert min(start for start, _, _ in calls(folder / "log")) == 60
    assert os.getpid() not in trap.pids()
    assert (told[-1].samples_done, told[-1].samples_total, told[-1].finished) == (60, 60, True)
    assert told[-1].nbytes_written > 60 * SLAB
    assert_all_gone(trap.pids())
    assert leftovers(target) == []


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("exit", ProducerError, "^loaf: a worker process died "),
        ("raise", ProducerError, r"^loaf: samples 30-31: ArithmeticError: no convergence; "),
        ("full", NoSpaceError, r"train\.zarr: the disk is full; "),
    ],
)
def test_fault_in_a_worker_is_one_line_and_resumable(
    how: str, error: type[Exception], text: str, folder: Path
) -> None:
    loaf = Loaf(60)
    expected = undisturbed(folder, loaf)
    target = folder / "train.zarr"
    trap = InWorker(folder, 30, how)
    with process_pool(2) as pool, pytest.raises(error, match=text) as caught:
        bake(replace(loaf, trap=trap), target, executor=pool, progress=False)
    assert "\n" not in str(caught.value)
    assert not [file for file in folder.rglob(".*") if file.is_file()]
    done = len(list(publish.staging_root(target).glob("*/records/*.json")))
    with pytest.raises(UnfinishedStoreError, match=f"{done} of 8 slabs"):
        open_store(target)
    log = folder / "log"
    bake(replace(loaf, log=log), target, progress=False).close()
    assert len({start // SLAB for start, _, _ in calls(log)}) == 8 - done
    assert shard_bytes(target) == expected
    assert leftovers(target) == []


def test_producer_that_cannot_be_sent_is_refused_in_one_line(folder: Path) -> None:
    loaf = Loaf(trap=lambda start, stop: None)
    refused = r"^loaf: cannot be sent to worker processes .*top of a module"
    with process_pool(2) as pool, pytest.raises(RecipeError, match=refused):
        bake(loaf, folder / "train.zarr", executor=pool, progress=False)


# ---- killed


def test_workers_die_with_their_parent_in_the_middle_of_a_batch(folder: Path) -> None:
    loaf = Loaf(60)
    expected = undisturbed(folder, loaf)
    target = folder / "train.zarr"
    trap = InWorker(folder, 18, "hang")
    os.mkfifo(folder / "never")

    def run() -> None:
        with process_pool(2) as pool:
            bake(replace(loaf, trap=trap), target, executor=pool, progress=False)

    pid = start_child(run)
    while not (folder / "hangs").exists():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        os.sched_yield()
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    assert len(trap.pids()) >= 1
    assert_all_gone(trap.pids())
    bake(loaf, target, progress=False).close()
    assert shard_bytes(target) == expected
    assert leftovers(target) == []


def test_killed_with_a_pool_at_random_moments(folder: Path) -> None:
    loaf = Loaf(400)
    expected = undisturbed(folder, loaf)
    target = folder / "train.zarr"
    trap = InWorker(folder)

    def run() -> None:
        with process_pool(2) as pool:
            bake(replace(loaf, trap=trap), target, executor=pool, progress=False).close()

    began = time.monotonic()
    assert ended(start_child(run)) == 0
    whole_s = time.monotonic() - began
    assert shard_bytes(target) == expected
    moments = random.Random(5)
    for number in range(4):
        target = folder / f"{number}.zarr"
        kill_after(start_child(run), moments.uniform(0.4, 1) * whole_s)
        with publish.baking_lock(target, pytest.fail):  # free at once, and nothing is written from then on
            before = _written(publish.staging_root(target))
            assert_all_gone(trap.pids())
            assert _written(publish.staging_root(target)) == before
        bake(loaf, target, progress=False).close()
        assert shard_bytes(target) == expected
        assert leftovers(target) == []


def _written(folder: Path) -> dict[Path, tuple[int, int]]:
    found = ((file, file.stat()) for file in folder.rglob("*") if file.is_file())
    return {file: (stat.st_size, stat.st_mtime_ns) for file, stat in found}


# ---- other executors


class Overlap:
    """Notes whether two threads are in it at once; ``reused`` stands for a producer's own buffer."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(1)
        self.overlapped = False
        self.threads: set[int] = set()

    def __call__(self, start: int, stop: int) -> None:
        self.threads.add(threading.get_ident())
        if not self.inside.acquire(blocking=False):
            self.overlapped = True
            return
        for _ in range(50):
            os.sched_yield()
        self.inside.release()


@dataclass(frozen=True)
class Reusing(Loaf):
    """Gives views of the same arrays at each call."""

    @property
    def name(self) -> str:
        return "loaf"

    def produce(self, start: int, stop: int, fields: Any) -> dict[str, Any]:
        made = super().produce(start, stop, fields)
        for name, array in made.items():
            held = _held.setdefault(name, np.zeros((16, *array.shape[1:]), array.dtype))
            held[: stop - start] = array
            made[name] = held[: stop - start]
        return made


_held: dict[str, Any] = {}


@pytest.mark.parametrize("kind", [Loaf, Reusing])
def test_threads_never_enter_the_producer_together(kind: type[Loaf], folder: Path) -> None:
    expected = undisturbed(folder, Loaf(200))
    overlap = Overlap()
    with ThreadPoolExecutor(4) as pool:
        target = folder / "train.zarr"
        with bake(kind(200, trap=overlap), target, executor=pool, progress=False) as store:
            assert_holds(store, Loaf(200))
    assert not overlap.overlapped
    assert len(overlap.threads) > 1
    assert shard_bytes(target) == expected


class AtOnce(Executor):
    """The least that an executor is: runs each task when it is submitted."""

    def submit(self, fn: Any, /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **named))
        except BaseException as error:
            future.set_exception(error)
        return future


def test_any_executor_serves(folder: Path) -> None:
    expected = undisturbed(folder, Loaf())
    with bake(Loaf(), folder / "train.zarr", executor=AtOnce(), progress=False) as store:
        assert shard_bytes(store.path) == expected


def test_dask_executor_serves(folder: Path) -> None:
    distributed = pytest.importorskip("distributed")
    expected = undisturbed(folder, Loaf())
    with distributed.Client(processes=False, dashboard_address=None) as client:
        store = bake(Loaf(), folder / "train.zarr", executor=client.get_executor(), progress=False)
    assert shard_bytes(store.path) == expected


UNGUARDED = """
import sys
sys.path[:0] = {tests!r}
from bakery import Loaf
from parbake.producers.bake import bake
from parbake.producers.executors import process_pool
bake(Loaf(40), "loaf.zarr", executor=process_pool(2), progress=False)
"""


def test_a_script_that_its_own_workers_run_again_ends_and_says_why(folder: Path) -> None:
    script = folder / "script.py"
    script.write_text(UNGUARDED.format(tests=[str(Path(__file__).parent)]))
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "being baked by the script that started this process" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr
