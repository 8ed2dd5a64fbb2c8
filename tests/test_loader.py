"""``dataset.loader``: worker processes, their ends and failures, and what they leave behind."""

from __future__ import annotations

import functools
import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bakery import ended, start_child
from loading import SAMPLES, assert_batches_of, assert_same, never_dry, nothing_left, numbers, ordinary
from torch.utils.data import get_worker_info

import parbake
from parbake.errors import DamagedStoreError, ParbakeError, RecipeError
from parbake.loaders.dataset import StoreDataset
from parbake.loaders.shared_loader import SharedLoader

pytestmark = pytest.mark.filterwarnings("ignore:parbake. all")  # tests keep what they look at


def loader_of(dataset: StoreDataset, batch_size: int = 4, **options: Any) -> SharedLoader:
    options = {"num_workers": 2, "multiprocessing_context": "fork"} | options
    return dataset.loader(batch_size, **options)


_others = set[int | None]()  # children of tests before, which end when they are collected


@pytest.fixture(autouse=True)
def _children_before() -> None:
    _others.clear()
    _others.update(process.pid for process in multiprocessing.active_children())


def children() -> set[int | None]:
    """The processes that this test has started."""
    return {process.pid for process in multiprocessing.active_children()} - _others


def with_reader(sample: Any) -> Any:
    """A transform that notes who reads."""
    worker = get_worker_info()
    return {**sample, "reader": -1 if worker is None else os.getpid(), "worker": worker.id if worker else -1}


# ---- start methods


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_start_method_keeps_every_batch_right(path: Path, method: str) -> None:
    ds = StoreDataset(path, with_index=True)
    plain = [numbers(ds.loader(4, True, num_workers=0, seed=1))]
    with nothing_left() if method == "fork" else warnings.catch_warnings():  # the others leave a server
        loader = loader_of(ds, shuffle=True, seed=1, multiprocessing_context=method)
        kept = list(loader)
        again = list(loader)
        assert_batches_of(ds.store, kept, plain[0])
        assert sorted(numbers(again)) == list(range(SAMPLES))
        wave = kept[0]["wave"].clone()
        del loader, again
        assert torch.equal(kept[0]["wave"], wave)
        del kept


def test_spawned_workers_fill_the_slots(path: Path) -> None:
    """No batch goes through memory of its own."""
    loader = loader_of(StoreDataset(path), num_workers=1, multiprocessing_context="spawn")
    places = set()
    for batch in loader:
        assert not batch["wave"].is_shared()  # as torch's own shared tensors are
        places.add(batch["wave"].data_ptr())
    assert len(places) <= 2 + 4


def test_batches_lie_in_slots_that_are_used_again(ds: StoreDataset) -> None:
    loader = loader_of(ds, 1, num_workers=1, prefetch_factor=1)
    places: dict[int, int] = {}
    for _ in range(2):
        for batch in loader:
            places[batch["wave"].data_ptr()] = places.get(batch["wave"].data_ptr(), 0) + 1
            assert batch["wave"].untyped_storage().nbytes() == batch["wave"].nbytes
    assert len(places) <= 1 + 4
    assert sum(places.values()) == 2 * SAMPLES


# ---- workers


def test_persistent_workers_stay_and_others_go(ds: StoreDataset) -> None:
    ds.transform = with_reader
    loader = loader_of(ds)
    first, second = ({int(pid) for batch in loader for pid in batch["reader"]} for _ in range(2))
    assert first == second == children()
    del loader
    gc.collect()
    assert children() == set()
    loader = loader_of(ds, persistent_workers=False)
    first = {int(pid) for batch in loader for pid in batch["reader"]}
    assert children() == set()
    second = {int(pid) for batch in loader for pid in batch["reader"]}
    assert not first & second


def test_without_workers_this_process_reads(ds: StoreDataset) -> None:
    ds.transform = with_reader
    for batch in loader_of(ds, num_workers=0, timeout=5):
        assert set(batch["reader"].tolist()) == {-1}
    assert children() == set()


def _note_worker(worker: int, folder: Path) -> None:
    (folder / f"{worker}").touch()


def test_options_of_torch_reach_it(ds: StoreDataset, tmp_path: Path) -> None:
    begin = functools.partial(_note_worker, folder=tmp_path)
    assert len(list(loader_of(ds, worker_init_fn=begin, num_workers=3, prefetch_factor=1))) == 8
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="start method"):
        list(loader_of(ds, multiprocessing_context="thread"))
    with pytest.raises(RecipeError, match="num_workers=-1"):
        loader_of(ds, num_workers=-1)
    with pytest.raises(RecipeError, match="prefetch_factor=0"):
        loader_of(ds, prefetch_factor=0)


@never_dry()  # slots must not be lost on the way
def test_an_iteration_that_is_left_early_leaves_slots_and_order_right(ds: StoreDataset) -> None:
    for persistent in (True, False):
        loader = loader_of(ds, 2, shuffle=True, persistent_workers=persistent)
        alone = ds.loader(2, shuffle=True, num_workers=0)
        for batches in (3, 1, 2, 7, 15):
            wanted = numbers(alone)[: 2 * batches]
            seen = []
            for batch in itertools.islice(loader, batches):
                seen += batch["index"].tolist()
                np.testing.assert_array_equal(batch["f0"].numpy(), ds.store.read(seen[-2:])["f0"])
            assert seen == wanted


class Keeps:
    """A batch transform that mixes with the batch before, which it keeps as it was given."""

    def __init__(self) -> None:
        self.last: Any = None

    def __call__(self, batch: Any) -> Any:
        last, self.last = self.last, batch
        return {**batch, "last": (last or batch)["index"].clone(), "wave": batch["wave"]}


def test_what_a_transform_keeps_is_its_own(ds: StoreDataset) -> None:
    ds.batch_transform = Keeps()
    loader = loader_of(ds, 2, num_workers=1)
    lasts = []
    for batch in loader:
        lasts += batch["last"].tolist()
        for tensor in batch.values():
            tensor.fill_(-1)
    assert lasts == [0, 1, *range(SAMPLES - 2)]


# ---- failures


class Trap:
    """A transform that fails at one sample, in a way of its own, as long as a file is there."""

    def __init__(self, sample: int, error: Any, once: Path | None = None) -> None:
        self.sample, self.error, self.once = sample, error, once

    def __call__(self, sample: Any) -> Any:
        if int(sample["index"]) == self.sample and (self.once is None or self.once.exists()):
            if self.error is signal.SIGKILL:
                os.kill(os.getpid(), signal.SIGKILL)
            raise self.error
        return sample


def local_error() -> Exception:
    class NamelessError(Exception):
        pass

    return NamelessError("of no module")


@pytest.mark.parametrize(
    ("error", "type_", "text"),
    [
        (ValueError("too loud"), ValueError, "too loud"),
        (KeyError("x"), KeyError, "x"),
        (DamagedStoreError("bent"), DamagedStoreError, "bent"),
        (UnicodeDecodeError("ascii", b"", 0, 1, "odd"), RuntimeError, "UnicodeDecodeError"),
        (local_error(), RuntimeError, "of no module"),
        (StopIteration(), RuntimeError, "StopIteration was raised"),
    ],
    ids=repr,
)
def test_errors_arrive_with_their_type_and_the_samples(
    ds: StoreDataset, error: Exception, type_: type[Exception], text: str
) -> None:
    ds.transform = Trap(13, error)
    loader = loader_of(ds)
    seen: list[list[int]] = []
    with pytest.raises(type_, match=text) as caught:
        seen.extend(batch["index"].tolist() for batch in loader)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    raised = caught.value.__cause__ if isinstance(error, StopIteration) else caught.value
    assert raised is not None
    assert raised.__notes__ == ["while reading samples 12, 13, 14, 15 of a batch"]


def test_the_iteration_goes_on_after_an_error(ds: StoreDataset, tmp_path: Path) -> None:
    ds.transform = Trap(13, ValueError("too loud"))
    loader = loader_of(ds)
    batches = iter(loader)
    seen: list[list[int]] = []
    while len(seen) < 8:
        try:
            seen.append(next(batches)["index"].tolist())
        except ValueError:
            assert loader.state_dict()["delivered"] == 12  # a run that ends here reads it again
            seen.append([])
    assert seen == [[*range(i, min(i + 4, SAMPLES))] if i != 12 else [] for i in range(0, SAMPLES, 4)]
    assert loader.state_dict()["epoch"] == 1


@never_dry()
def test_batches_that_fail_give_their_slots_back(ds: StoreDataset) -> None:
    ds.transform = _fail_early
    batches = iter(loader_of(ds, 1, num_workers=1))
    for _ in range(20):
        with pytest.raises(ValueError, match="too early"):
            next(batches)
    assert numbers(batches) == list(range(20, SAMPLES))


def _fail_early(sample: Any) -> Any:
    if sample["index"] < 20:
        raise ValueError("too early")
    return sample


def test_workers_that_cannot_begin_are_replaced(ds: StoreDataset, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.touch()
    loader = loader_of(ds, num_workers=1, worker_init_fn=functools.partial(_begin_without, trap))
    with pytest.raises(ValueError, match="cannot begin"):
        list(loader)
    trap.unlink()
    assert numbers(loader) == list(range(SAMPLES))
    assert (tmp_path / "begun").exists()


def _begin_without(trap: Path, worker: int) -> None:
    if trap.exists():
        raise ValueError("cannot begin")
    trap.with_name("begun").touch()


def test_a_long_batch_notes_its_first_samples(ds: StoreDataset) -> None:
    ds.transform = Trap(13, ValueError("too loud"))
    with pytest.raises(ValueError, match="too loud") as caught:
        list(loader_of(ds, 20, num_workers=0))
    assert caught.value.__notes__ == ["while reading samples 0, 1, 2, 3, 4, 5, 6, 7 and 12 more of a batch"]


@pytest.mark.parametrize("persistent", [True, False])
def test_a_worker_that_is_killed_is_an_error_and_replaced(
    ds: StoreDataset, tmp_path: Path, persistent: bool
) -> None:
    trap = tmp_path / "trap"
    trap.touch()
    ds.transform = Trap(13, signal.SIGKILL, once=trap)
    loader = loader_of(ds, persistent_workers=persistent)
    with pytest.raises(RuntimeError, match=r"worker .*(killed by signal|exited unexpectedly)"):
        list(loader)
    trap.unlink()
    assert numbers(loader) == list(range(SAMPLES))
    assert numbers(loader) == list(range(SAMPLES))


def test_workers_that_die_between_epochs_are_replaced(ds: StoreDataset) -> None:
    loader = loader_of(ds)
    assert len(list(loader)) == 8
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, signal.SIGTERM)  # torch's workers end quietly by this
        process.join()
    assert numbers(loader) == list(range(SAMPLES))


def test_a_transform_that_takes_too_long_is_an_error(ds: StoreDataset, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ds.transform = functools.partial(_wait_for, pipe)
    loader = loader_of(ds, num_workers=1, timeout=0.2)
    with pytest.raises(RuntimeError, match=r"timed out after 0\.2 seconds"):
        list(loader)
    with pipe.open("wb"):  # lets the worker go
        pipe.unlink()
    loader = loader_of(ds)
    assert numbers(loader) == list(range(SAMPLES))


def _wait_for(pipe: Path, sample: Any) -> Any:
    if pipe.exists():
        pipe.read_bytes()
    return sample


# ---- what is left behind


def _break(loader: SharedLoader) -> None:
    for _ in loader:
        break


def _drop(loader: SharedLoader) -> None:
    batches = iter(loader)
    kept = next(batches)
    del batches
    assert kept["index"].tolist() == [0, 1]


def _raise(loader: SharedLoader) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(map(_divide, loader))
    assert caught.traceback  # which holds the iteration


def _divide(batch: Any) -> float:
    return len(batch) / 0


def _use_up(loader: SharedLoader) -> None:
    assert len(list(loader)) == 15


def _never_begin(loader: SharedLoader) -> None:
    iter(loader)


@pytest.mark.parametrize("leave", [_break, _drop, _raise, _use_up, _never_begin])
@pytest.mark.parametrize("persistent", [True, False])
def test_leaving_leaves_nothing_behind(ds: StoreDataset, leave: Any, persistent: bool) -> None:
    leave(loader_of(ds, 2, num_workers=1))  # what a first use opens for good
    with nothing_left():
        loader = loader_of(ds, 2, num_workers=1, persistent_workers=persistent)
        for _ in range(4):
            leave(loader)
        del loader
        for _ in range(2):
            leave(loader_of(ds, 2, num_workers=1, persistent_workers=persistent))


def test_a_loader_is_no_circle(ds: StoreDataset) -> None:
    """Dropping it ends its workers at once, not when the collector comes."""
    gc.collect()
    gc.disable()
    try:
        loader = loader_of(ds)
        batches = iter(loader)
        next(batches)
        gone = weakref.ref(loader)
        del loader, batches
        assert gone() is None
        assert children() == set()
    finally:
        gc.enable()


@pytest.mark.parametrize("under_way", [True, False])
def test_a_fork_has_slots_and_workers_of_its_own(ds: StoreDataset, under_way: bool) -> None:
    """Both go on with the loader at the same time and disturb nothing of each other."""
    loader = loader_of(ds, 2)
    kept = list(loader)
    batches = [iter(loader)] if under_way else []
    workers = children()
    ready, go = os.pipe(), os.pipe()

    def use() -> None:
        assert numbers(loader) == list(range(SAMPLES))
        os.write(ready[1], b"!")
        os.read(go[0], 1)
        assert numbers(loader) == list(range(SAMPLES))
        if under_way:
            with pytest.raises(ParbakeError, match="before the process was forked"):
                next(batches[0])
        batches.clear()
        gc.collect()

    child = start_child(use)
    assert os.read(ready[0], 1) == b"!"
    if under_way:
        assert_batches_of(ds.store, batches[0], list(range(SAMPLES)))
    assert numbers(loader) == list(range(SAMPLES))
    os.write(go[1], b"!")
    assert numbers(loader) == list(range(SAMPLES))
    assert ended(child) == 0
    assert numbers(loader) == list(range(SAMPLES))
    assert_batches_of(ds.store, kept, list(range(SAMPLES)))
    assert children() == workers
    for descriptor in (*ready, *go):
        os.close(descriptor)


SCRIPT = """
import multiprocessing, os, sys
from parbake.loaders.dataset import StoreDataset

def children():
    return [process.pid for process in multiprocessing.active_children()]

loader = StoreDataset(sys.argv[1]).loader(4, num_workers=2, multiprocessing_context="fork")
batches = iter(loader)
kept = next(batches)
print(*children(), flush=True)
"""


def run(path: Path, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + code, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(parbake.__file__).parents[1],
        start_new_session=True,
    )


@pytest.fixture
def started(path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    process = run(path, request.param)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    yield process, workers
    process.kill()
    process.communicate()


def assert_gone(pids: list[int]) -> None:
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("started", ["pass", "del loader", "batches = list(loader)"], indirect=True)
def test_the_interpreter_ends_quietly(started: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, workers = started
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert_gone(workers)


@pytest.mark.parametrize("group", [False, True], ids=["process", "terminal"])
@pytest.mark.parametrize("started", ["del batches\nwhile True:\n    for _ in loader: pass"], indirect=True)
def test_an_interrupt_ends_all(started: tuple[subprocess.Popen[str], list[int]], group: bool) -> None:
    process, workers = started
    if group:  # as a terminal does
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert_gone(workers)


def test_results_that_no_slot_can_hold_go_the_usual_way(ds: StoreDataset) -> None:
    ds.transform = _odd
    assert_same(list(loader_of(ds)), ordinary(ds, 4))


def _odd(sample: Any) -> Any:
    return {"text": str(sample["index"]), "list": ["a", "b"], "wave": sample["wave"][::2].T}
