"""BatchLoader: threads that read ahead, how they end and fail, and what they hold."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bakery import ended, start_child
from loading import SAMPLES, assert_batches_of, assert_same, held, never_dry, nothing_left, numbers, ordinary

import parbake
from parbake.errors import DamagedStoreError, ParbakeError, RecipeError
from parbake.loaders.batch_loader import BatchLoader
from parbake.loaders.dataset import StoreDataset
from parbake.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:parbake. all")  # tests keep what they look at


class Gate:
    """A transform that waits at one sample until it is opened, and lets know that it waits."""

    def __init__(self, sample: int) -> None:
        self.sample, self.reached, self.opened = sample, threading.Event(), threading.Event()

    def __call__(self, sample: Any) -> Any:
        if int(sample["index"]) == self.sample:
            self.reached.set()
            self.opened.wait()
        return sample


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate(13)
    yield gate
    gate.opened.set()


def join_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("parbake-batches"):
            thread.join(30)


# ---- reading ahead


@pytest.mark.parametrize(("threads", "prefetch", "ahead"), [(1, 2, 2), (1, 1, 1), (3, 2, 3), (2, 5, 5)])
def test_so_many_batches_are_read_ahead_and_no_more(
    ds: StoreDataset, threads: int, prefetch: int, ahead: int
) -> None:
    asked = []

    def sampler() -> Iterator[int]:
        for number in range(SAMPLES):
            asked.append(number)
            yield number

    loader = BatchLoader(ds, 2, sampler=sampler(), threads=threads, prefetch=prefetch)
    batches = iter(loader)
    for count in range(5):
        assert len(asked) == 2 * (ahead + count)
        next(batches)
    loader.close()


def test_threads_read_at_the_same_time(ds: StoreDataset) -> None:
    together = threading.Barrier(3)

    def meet(batch: Any) -> Any:
        together.wait(30)  # raises BrokenBarrierError where fewer come
        return batch

    ds.batch_transform = meet
    assert numbers(BatchLoader(ds, 5, threads=3)) == list(range(SAMPLES))


def test_a_slow_batch_does_not_change_the_order(ds: StoreDataset, gate: Gate) -> None:
    done = threading.Event()

    def transform(sample: Any) -> Any:
        if int(sample["index"]) == 17:
            done.set()
        return gate(sample)

    ds.transform = transform
    batches = iter(BatchLoader(ds, 2, threads=2, prefetch=9))
    assert done.wait(30)  # sample 17 before sample 13
    gate.opened.set()
    assert numbers(batches) == list(range(SAMPLES))


def test_batches_lie_in_slots_that_are_used_again(ds: StoreDataset) -> None:
    loader = BatchLoader(ds, 1, prefetch=1)
    places = {batch["wave"].data_ptr() for _ in range(2) for batch in loader}
    assert len(places) <= 1 + 4


def test_an_idle_thread_holds_no_batch(ds: StoreDataset) -> None:
    batches = iter(BatchLoader(ds, 15, prefetch=2))
    gone = [weakref.ref(next(batches)["wave"]) for _ in range(2)]
    assert next(batches, None) is None
    assert [ref() for ref in gone] == [None, None]


# ---- devices


def test_the_cpu_gives_the_slots_themselves(ds: StoreDataset) -> None:
    for device in (None, "cpu", torch.device("cpu")):
        assert_same(list(BatchLoader(ds, 7, device=device)), ordinary(ds, 7))


def test_batches_are_moved_to_other_devices(store: Store) -> None:
    ds = StoreDataset(store, transform=lambda sample: {"a": [sample["wave"], "text"], "b": sample["f0"]})
    for batch, wanted in zip(BatchLoader(ds, 7, device="meta"), ordinary(ds, 7), strict=True):
        assert batch["a"][1] == wanted["a"][1]
        for moved, tensor in ((batch["a"][0], wanted["a"][0]), (batch["b"], wanted["b"])):
            assert (moved.device.type, moved.shape, moved.dtype) == ("meta", tensor.shape, tensor.dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_reach_a_gpu(ds: StoreDataset) -> None:
    loader = BatchLoader(ds, 2, shuffle=True, device="cuda")
    for _ in range(3):
        batches = [{name: tensor.cpu() for name, tensor in batch.items()} for batch in loader]
        assert_batches_of(ds.store, batches, numbers(batches))


# ---- failures


@pytest.mark.parametrize(
    ("type_", "arguments"),
    [
        (ValueError, ["too loud"]),
        (DamagedStoreError, ["bent"]),
        (UnicodeDecodeError, ["ascii", b"", 0, 1, "odd"]),
        (SystemExit, [3]),
    ],
)
def test_errors_arrive_as_they_were_raised(
    ds: StoreDataset, type_: type[BaseException], arguments: list[Any]
) -> None:
    error = type_(*arguments)

    def fail(sample: Any) -> Any:
        if int(sample["index"]) == 13:
            raise error
        return sample

    ds.transform = fail
    batches = iter(BatchLoader(ds, 4))
    assert numbers(next(batches) for _ in range(3)) == list(range(12))
    with pytest.raises(type_) as caught:
        next(batches)
    assert caught.value is error
    assert error.__notes__ == ["while reading samples 12, 13, 14, 15 of a batch"]
    assert numbers(batches) == list(range(16, SAMPLES))


@never_dry()
def test_an_error_that_is_dropped_holds_no_slot(ds: StoreDataset) -> None:
    def fail(batch: Any) -> Any:
        raise ValueError("too loud")

    ds.batch_transform = fail
    gc.collect()
    gc.disable()  # a circle would keep the slots
    try:
        batches = iter(BatchLoader(ds, 1))
        for _ in range(SAMPLES):
            with pytest.raises(ValueError, match="too loud"):
                next(batches)
    finally:
        gc.enable()


def test_stop_iteration_of_a_transform_does_not_end_the_loop(ds: StoreDataset) -> None:
    ds.transform = lambda sample: next(iter(()))
    with pytest.raises(RuntimeError, match="StopIteration was raised"):
        list(BatchLoader(ds, 4))


@pytest.mark.parametrize("option", ["threads", "prefetch"])
def test_options_that_cannot_be(ds: StoreDataset, option: str) -> None:
    with pytest.raises(RecipeError, match=f"{option}=0; at least 1"):
        BatchLoader(ds, 4, **{option: 0})


def test_what_is_no_store_dataset_is_refused(ds: StoreDataset) -> None:
    part = torch.utils.data.Subset(ds, [2, 5, 3])
    with pytest.raises(RecipeError, match=r"^BatchLoader takes a StoreDataset, not Subset; .*sampler="):
        BatchLoader(part, 4)  # type: ignore[arg-type]


def test_devices_that_are_not_there_are_refused(ds: StoreDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"^device='cuda:1': torch finds no CUDA device here"):
        BatchLoader(ds, 4, device="cuda:1")
    with pytest.raises(RecipeError, match=r"^device='cudaa' is no device of torch"):
        BatchLoader(ds, 4, device="cudaa")


# ---- ends


def test_closing_ends_threads_and_iterations(ds: StoreDataset) -> None:
    with nothing_left():
        with BatchLoader(ds, 4, threads=3) as loader:
            batches = iter(loader)
            kept = next(batches)
        for refused in (lambda: next(batches), lambda: iter(loader)):
            with pytest.raises(ParbakeError, match="this BatchLoader is closed; make a new one"):
                refused()
        loader.close()
        join_threads()
        assert_batches_of(ds.store, [kept], [0, 1, 2, 3])
        del kept


def test_closing_does_not_wait_for_a_transform(ds: StoreDataset, gate: Gate) -> None:
    ds.transform = gate
    with BatchLoader(ds, 4) as loader:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        assert gate.reached.wait(30)
    with pytest.raises(ParbakeError, match="closed"):
        next(batches)
    gate.opened.set()
    join_threads()


def test_closing_wakes_who_waits_for_a_batch(ds: StoreDataset, gate: Gate) -> None:
    ds.transform = gate
    loader = BatchLoader(ds, 4)
    errors = []

    def loop() -> None:
        try:
            list(loader)
        except ParbakeError as error:
            errors.append(str(error))

    waiting = threading.Thread(target=loop)
    waiting.start()
    assert gate.reached.wait(30)
    loader.close()
    waiting.join(30)
    assert errors == ["this BatchLoader is closed; make a new one"]


def _break(loader: BatchLoader) -> None:
    for _ in loader:
        break


def _use_up(loader: BatchLoader) -> None:
    assert len(list(loader)) == 15


def _never_begin(loader: BatchLoader) -> None:
    iter(loader)


@pytest.mark.parametrize("leave", [_break, _use_up, _never_begin])
def test_leaving_leaves_nothing_behind(ds: StoreDataset, leave: Any) -> None:
    leave(BatchLoader(ds, 2))
    join_threads()
    with nothing_left():
        for _ in range(20):
            leave(BatchLoader(ds, 2, threads=2))
        loader = BatchLoader(ds, 2)
        for _ in range(20):
            leave(loader)
        del loader
        join_threads()


def test_threads_end_with_their_loader_at_once(ds: StoreDataset) -> None:
    gc.collect()
    gc.disable()  # no circle
    try:
        loader = BatchLoader(ds, 2)
        batches = iter(loader)
        next(batches)
        del loader, batches
        join_threads()
        assert held()[3] == 0
    finally:
        gc.enable()


def test_batches_left_unread_are_not_begun(ds: StoreDataset, gate: Gate) -> None:
    read = []

    def note(batch: Any) -> Any:
        read.append(batch["index"].tolist())
        return batch

    ds.batch_transform, ds.transform = note, gate
    loader = BatchLoader(ds, 14, prefetch=3)
    batches = iter(loader)
    assert gate.reached.wait(30)
    del batches
    gate.opened.set()
    assert numbers(loader) == list(range(SAMPLES))
    assert read == [list(range(14)), list(range(14)), list(range(14, 28)), [28, 29]]


def test_a_fork_has_threads_of_its_own(ds: StoreDataset, gate: Gate) -> None:
    """The child's copy of a batch stays as it is, and so does the parent's, whatever both read."""
    loader = BatchLoader(ds, 2, shuffle=True)
    batches = iter(loader)
    kept = next(batches)
    order = numbers([kept])

    def use() -> None:
        assert sorted(numbers(loader)) == list(range(SAMPLES))
        with pytest.raises(ParbakeError, match="before the process was forked"):
            next(batches)
        assert_batches_of(ds.store, [kept], order)
        loader.close()

    assert ended(start_child(use)) == 0
    rest = list(batches)
    assert_batches_of(ds.store, [kept, *rest], numbers([kept, *rest]))
    assert len(rest) == 14


SCRIPT = """
import sys, threading
from parbake.loaders.dataset import StoreDataset
from parbake.loaders.batch_loader import BatchLoader
ds = StoreDataset(sys.argv[1])
"""
ENDS = {
    "reading": "batches = iter(BatchLoader(ds, 2, threads=2, prefetch=9)); next(batches)",
    "idle": "loader = BatchLoader(ds, 2); kept = list(loader)",
    "stuck": """
reached = threading.Event()
def wait(sample):
    reached.set()
    threading.Event().wait()
ds.transform = wait
batches = iter(BatchLoader(ds, 2))
assert reached.wait(30)
""",
}


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_the_interpreter_ends_quietly(path: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT + code, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(parbake.__file__).parents[1],
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_loader_that_a_fork_left_behind_ends_quietly(ds: StoreDataset) -> None:
    """Where the parent's threads are gone, nothing waits for them."""
    loaders = [BatchLoader(ds, 2)]
    batches = [iter(loaders[0])]
    next(batches[0])

    def drop() -> None:
        batches.clear()
        loaders.clear()
        gc.collect()

    assert ended(start_child(drop)) == 0
    assert len(list(batches[0])) == 14
    assert os.getpid() == loaders[0]._pool.pid  # type: ignore[union-attr]
