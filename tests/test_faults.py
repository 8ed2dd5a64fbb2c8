"""Killed, full, failing: whatever happens to a bake, nothing is lost, mixed or left lying."""

from __future__ import annotations

import errno
import faulthandler
import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bakery import (
    BATCH,
    SLAB,
    KillAt,
    Listed,
    Loaf,
    assert_holds,
    calls,
    ended,
    kill_after,
    leftovers,
    shard_bytes,
    start_child,
    tiny_slabs,
    undisturbed,
)

from parbake.errors import (
    NoSpaceError,
    ParbakeError,
    ProducerError,
    StoreNotFoundError,
    StoreReplacedError,
    UnfinishedStoreError,
)
from parbake.producers import publishing, slabs
from parbake.producers.bake import bake, repair
from parbake.store import publish, writer, zarr_dir
from parbake.store.store import Store, open_store

GRID = [(0, 3), (3, 6), (6, 8), (8, 9), (9, 12), (12, 15), (15, 16), (16, 18), (18, 20)]  # 20 samples
SMALL = ("wave", "f0")  # fewer files, so fewer moments to die at


@pytest.fixture(autouse=True)
def told_deadlock(tiny: None) -> Iterator[None]:
    faulthandler.dump_traceback_later(300, exit=True)  # a deadlock shows where
    yield
    faulthandler.cancel_dump_traceback_later()


def temporary_files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob(".*") if file.is_file()]


# ---- killed


@dataclass(frozen=True)
class Scenario:
    """A bake to be killed. ``old``: what is at the path before. ``damage``: done to it."""

    new: Loaf
    old: Loaf | None = None
    damage: bool = False

    def prepare(self, target: Path) -> None:
        if self.old is not None:
            bake(self.old, target, progress=False).close()
        if self.damage:
            spoil(target / "wave" / "c" / "1" / "0" / "0")

    def run(self, target: Path) -> None:
        if self.damage:
            repair(self.new, target, progress=False).close()
        else:
            bake(self.new, target, rebuild=self.old is not None, progress=False).close()

    def assert_open_or_unfinished(self, target: Path) -> bool:
        """After a kill; whether the store is the new one."""
        try:
            with open_store(target) as store:
                seed = store.invalidation_keys.shared["keys"]["seed"]
                gain = store.invalidation_keys.fields.get("count", {"gain": self.new.gain})["gain"]
                found = (seed, gain, store.samples)
                is_new = found == (self.new.seed, self.new.gain, self.new.samples)
                if is_new and (not self.damage or store.verify()):
                    assert_holds(store, self.new)
                    return True
                assert self.old is not None
                if not self.damage:
                    assert_holds(store, self.old)
        except UnfinishedStoreError:
            assert self.old is None or publish._exchange is _cannot_exchange
        except StoreNotFoundError:
            assert self.old is None  # and nothing was begun:
            assert not list(publish.staging_root(target).glob("*/plan.json"))
        return False


def spoil(file: Path) -> None:
    """Change a byte in the middle of a file, in a copy: the file may be linked elsewhere."""
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0x10
    file.unlink()
    file.write_bytes(content)


def finish_as_the_next_bake_does(target: Path) -> None:
    """A fresh store is opened without the lock; whoever bakes next removes what a kill left."""
    with publish.baking_lock(target, pytest.fail):
        publish.finish_swap(target)


def _cannot_exchange(a: Path, b: Path) -> bool:
    return False


SCENARIOS = {
    "bake": Scenario(Loaf(60)),
    "growth": Scenario(Loaf(60), old=Loaf(20)),
    "rebuild": Scenario(Loaf(60, seed=1), old=Loaf(30)),
    "one-field": Scenario(Loaf(60, gain=2), old=Loaf(30)),
    "repair": Scenario(Loaf(60), old=Loaf(60), damage=True),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_bake_resumes_to_the_same_bytes(name: str, folder: Path) -> None:
    scenario, target = SCENARIOS[name], folder / "train.zarr"
    expected = undisturbed(folder, scenario.new)
    scenario.prepare(target)
    template = folder / "template.zarr"
    if scenario.old is not None:
        shutil.copytree(target, template)
    began = time.monotonic()
    assert ended(start_child(lambda: scenario.run(target))) == 0
    whole_s = time.monotonic() - began
    kills = {"bake": 50}.get(name, 15)
    moments = random.Random(name)
    killed = finished = 0
    while killed < kills or not finished:
        if scenario.assert_open_or_unfinished(target):  # begin again
            shutil.rmtree(target)
            shutil.rmtree(publish.staging_root(target), ignore_errors=True)
            if scenario.old is not None:
                shutil.copytree(template, target)
        status = kill_after(start_child(lambda: scenario.run(target)), moments.uniform(0, whole_s))
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        if status == 0:
            finished += 1
            assert scenario.assert_open_or_unfinished(target)
            assert shard_bytes(target) == expected
            assert leftovers(target) == []
    assert killed >= kills


SWEEPS = {
    "bake": (Scenario(Loaf(12, only=SMALL)), False),
    "rebuild": (Scenario(Loaf(12, seed=1, only=SMALL), old=Loaf(12, only=SMALL)), False),
    "growth-by-two-renames": (Scenario(Loaf(20, only=SMALL), old=Loaf(12, only=SMALL)), True),
    "repair": (Scenario(Loaf(20, only=SMALL), old=Loaf(20, only=SMALL), damage=True), False),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_killed_before_each_change_of_the_disk(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call around the swap, and of the many alike before and after it every seventh."""
    scenario, two_renames = SWEEPS[name]
    if two_renames:
        monkeypatch.setattr(publish, "_exchange", _cannot_exchange)
    expected = undisturbed(folder, scenario.new)
    template = folder / "template.zarr"
    scenario.prepare(template)

    def child(watch: KillAt) -> int:
        def run() -> None:
            watch.install()
            scenario.run(folder / "train.zarr")

        return ended(start_child(run))

    def begin() -> Path:
        target = folder / "train.zarr"
        for stale in (target, publish.staging_root(target)):
            shutil.rmtree(stale, ignore_errors=True)
        if scenario.old is not None:
            shutil.copytree(template, target)
        return target

    target = begin()
    assert child(Listed(folder / "calls")) == 0
    listed = (folder / "calls").read_text().splitlines()
    swap = next(number for number, line in enumerate(listed, 1) if "swap.json" in line)
    moments = [n for n in range(1, len(listed) + 1) if swap - 4 <= n <= swap + 8 or n % 7 == len(name) % 7]
    became_new = set()
    for moment in moments:
        target = begin()
        assert child(KillAt(moment)) == -signal.SIGKILL, f"call {moment}: {listed[moment - 1]}"
        is_new = scenario.assert_open_or_unfinished(target)
        became_new.add(is_new)
        scenario.run(target)
        with open_store(target) as store:
            assert_holds(store, scenario.new)
        assert shard_bytes(target) == expected, f"killed before {listed[moment - 1]}"
        if is_new:
            finish_as_the_next_bake_does(target)
        assert leftovers(target) == [], f"killed before {listed[moment - 1]}"
    assert became_new == {True, False}


def test_killed_while_removing_the_old_store_whose_successor_is_then_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the staging folder after the swap is the old store: never put back, never resumed."""
    target = folder / "train.zarr"
    bake(Loaf(20), target, codec="raw", progress=False).close()
    monkeypatch.setattr(publish.Staging, "remove", lambda self: None)  # killed just before
    bake(Loaf(20, seed=1), target, rebuild=True, progress=False).close()
    monkeypatch.undo()
    tiny_slabs(monkeypatch)
    shutil.rmtree(target)
    loaf = Loaf(20, seed=1, log=folder / "log")
    with bake(loaf, target, progress=False) as store:
        assert_holds(store, loaf)
    assert len(calls(folder / "log")) == len(GRID)
    assert leftovers(target) == []


# ---- the spool


class DieAt:
    """Kills the process in the call for a batch, once all batches before it are durable."""

    def __init__(self, start: int, staging: Path) -> None:
        self.start = start
        self.staging = staging

    def __call__(self, start: int, stop: int) -> None:
        if start == self.start:
            began = time.monotonic()
            while not self._durable(start):
                assert time.monotonic() - began < 60, "what came before is not spooled"
                os.sched_yield()
            os.kill(os.getpid(), signal.SIGKILL)

    def _durable(self, start: int) -> bool:
        slab_start = start // SLAB * SLAB
        records = len(list(self.staging.glob("*/records/[0-9]*.json")))
        try:
            spooled = [int(file.name.split("-")[1]) for file in self.staging.glob("*/spool/*/[0-9]*.npz")]
        except FileNotFoundError:  # the spool of a slab that is whole goes at this very moment
            return False
        return records >= start // SLAB and (start == slab_start or max(spooled, default=0) >= start)


@pytest.mark.parametrize("start", [start for start, _ in GRID])
def test_spooled_batches_survive_a_kill(start: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "SPOOL_AFTER_S", -1.0)
    expected = undisturbed(folder, Loaf(20))
    target, log = folder / "train.zarr", folder / "log"
    dying = Loaf(20, trap=DieAt(start, publish.staging_root(target)))
    assert ended(start_child(lambda: bake(dying, target, progress=False))) == -signal.SIGKILL
    bake(Loaf(20, log=log), target, progress=False).close()
    assert [(a, b) for a, b, _ in calls(log)] == [batch for batch in GRID if batch[0] >= start]
    assert shard_bytes(target) == expected


def test_spool_of_another_grid_or_a_damaged_one_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs, "SPOOL_AFTER_S", -1.0)
    target, log = folder / "train.zarr", folder / "log"
    dying = Loaf(8, trap=DieAt(6, publish.staging_root(target)))
    assert ended(start_child(lambda: bake(dying, target, progress=False, batch_size=2))) == -signal.SIGKILL
    staging = publish.staging_root(target)
    spools = sorted(staging.glob("*/spool/0/*.npz"))
    assert [spool.name.split("-")[:2] for spool in spools] == [["0", "2"], ["2", "4"], ["4", "6"]]
    shutil.copytree(staging, folder / "again.zarr.baking")
    bake(Loaf(8, log=log), target, batch_size=1, progress=False).close()
    assert [(a, b) for a, b, _ in calls(log)] == [(a, a + 1) for a in range(8)]

    again = folder / "again.zarr"
    damaged = next(publish.staging_root(again).glob(f"*/spool/0/{spools[0].name}"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with bake(Loaf(8, log=folder / "log2"), again, progress=False) as store:
        assert_holds(store, Loaf(8))
    assert [(a, b) for a, b, _ in calls(folder / "log2")] == [(0, 2), (6, 8)]


# ---- a producer that fails


class Stop:
    """Raises in the call for one batch."""

    def __init__(self, start: int, error: BaseException) -> None:
        self.start = start
        self.error = error

    def __call__(self, start: int, stop: int) -> None:
        if start == self.start:
            raise self.error


@pytest.mark.parametrize("start", [start for start, _ in GRID])
def test_producer_that_raises_loses_nothing(start: int, folder: Path) -> None:
    expected = undisturbed(folder, Loaf(20))
    target, log = folder / "train.zarr", folder / "log"
    stop = dict(GRID)[start] - 1
    with pytest.raises(
        ProducerError, match=rf"^loaf: samples {start}-{stop}: OSError: no such mesh; "
    ) as caught:
        bake(Loaf(20, trap=Stop(start, OSError("no such\nmesh"))), target, progress=False)
    assert "\n" not in str(caught.value)
    assert temporary_files(folder) == []
    bake(Loaf(20, log=log), target, progress=False).close()
    assert [(a, b) for a, b, _ in calls(log)] == [batch for batch in GRID if batch[0] >= start]
    assert shard_bytes(target) == expected
    assert leftovers(target) == []


@pytest.mark.parametrize("start", [0, 3, 12])
def test_interrupt_loses_nothing(start: int, folder: Path) -> None:
    expected = undisturbed(folder, Loaf(20))
    target, log = folder / "train.zarr", folder / "log"
    with pytest.raises(KeyboardInterrupt):
        bake(Loaf(20, trap=Stop(start, KeyboardInterrupt())), target, progress=False)
    assert temporary_files(folder) == []
    bake(Loaf(20, log=log), target, progress=False).close()
    assert [(a, b) for a, b, _ in calls(log)] == [batch for batch in GRID if batch[0] >= start]
    assert shard_bytes(target) == expected


def test_batches_still_on_their_way_from_the_device_are_spooled_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a GPU: each array is filled only when it is waited for, after the next batch was begun."""
    from parbake.producers import batches

    def to_host(value: Any, where: str, name: str) -> tuple[Any, Callable[[], None] | None]:
        if name != "wave":
            return value, None
        host = np.zeros_like(value)
        return host, lambda: np.copyto(host, value)

    monkeypatch.setattr(batches, "to_host", to_host)
    expected = undisturbed(folder, Loaf(20))
    target, log = folder / "train.zarr", folder / "log"
    with pytest.raises(ProducerError):
        bake(Loaf(20, trap=Stop(6, ValueError())), target, progress=False)
    with bake(Loaf(20, log=log), target, progress=False) as store:
        assert_holds(store, Loaf(20))
    assert [(a, b) for a, b, _ in calls(log)] == GRID[2:]
    assert shard_bytes(target) == expected


# ---- faults in the threads that write


def _raise(error: Exception) -> Callable[..., Any]:
    def fault(*_: Any, **__: Any) -> Any:
        raise error

    return fault


def _after(count: int, call: Callable[..., Any], fault: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` for the first ``count`` times, then ``fault``."""
    numbers = itertools.count()
    return lambda *args, **named: (call if next(numbers) < count else fault)(*args, **named)


SITES = {
    "encode": (writer, "_encode"),
    "header": (writer.ShardWriter, "__init__"),
    "write": (writer.ShardWriter, "add"),
    "index": (writer, "pack_index"),
    "record": (slabs.SlabRecord, "to_bytes"),
    "statistics": (writer.statistics, "merged"),
    "manifest": (publishing, "_manifest"),
    "scalar shard": (publishing, "write_scalar_shard"),
    "metadata": (zarr_dir, "_small_content"),
    "intent": (publish, "canonical"),
    "swap": (publish, "_swap"),
}


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("site", SITES)
def test_fault_in_any_thread_ends_the_bake(
    site: str, count: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(folder, Loaf(40))
    target = folder / "train.zarr"
    descriptors = len(os.listdir("/proc/self/fd"))
    owner, name = SITES[site]
    count = 0 if owner is publish else count
    for error, raised in (
        (RuntimeError("broken"), RuntimeError),
        (OSError(errno.ENOSPC, "full"), NoSpaceError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, _after(count, getattr(owner, name), _raise(error)))
            with pytest.raises(raised):
                bake(Loaf(40), target, progress=False)
        assert temporary_files(folder) == []
        assert not target.with_name("train.zarr.lock").exists()
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    bake(Loaf(40), target, progress=False).close()
    assert shard_bytes(target) == expected
    assert leftovers(target) == []


def test_failed_sync_of_any_file_is_told_and_written_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaf = Loaf(12, only=SMALL)
    expected = undisturbed(folder, loaf)
    fsync = os.fsync
    told = []
    for number in itertools.count():
        target = folder / f"{number}.zarr"
        seen = itertools.count()

        def failing(descriptor: int, number: int = number, seen: Iterator[int] = seen) -> None:
            if next(seen) == number:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            try:
                bake(loaf, target, progress=False).close()
            except NoSpaceError as error:
                told.append((str(error), target))
        if next(seen) <= number:
            break  # there are no more
        assert temporary_files(folder) == []
        bake(loaf, target, progress=False).close()
        assert shard_bytes(target) == expected
        finish_as_the_next_bake_does(target)  # the sync after the swap may have been the one
        assert leftovers(target) == []
    assert len(told) > 40
    assert number - len(told) <= 2  # what only tells how long it took may fail
    assert all(text.startswith(f"{target}: the disk is full; ") for text, target in told)


# ---- a full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system whose size can be set, in kB, and set again."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(nkbytes: int) -> Path:
        again = "remount," if folder.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}size={nkbytes}k", "parbake-test", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to mount a small tmpfs")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("nkbytes", [4, 12, 40, 100, 160, 220])
def test_full_disk(nkbytes: int, disk: Callable[[int], Path], folder: Path) -> None:
    loaf = Loaf(120)
    expected = undisturbed(folder, loaf)
    target = disk(nkbytes) / "train.zarr"
    with pytest.raises(NoSpaceError) as caught:
        bake(loaf, target, progress=False)
    assert str(caught.value) == (
        f"{target}: the disk is full; what was baked is kept: free some space and run the same bake again"
    )
    assert temporary_files(target.parent) == []
    kept = len(list(publish.staging_root(target).glob("*/records/*.json")))
    assert kept > 0 or nkbytes < 100
    disk(4096)
    log = folder / "log"
    bake(replace(loaf, log=log), target, progress=False).close()
    assert len({start // SLAB for start, _, _ in calls(log)}) == 15 - kept
    assert shard_bytes(target) == expected
    assert leftovers(target) == []


# ---- readers meanwhile


@pytest.mark.parametrize("two_renames", [False, True], ids=["exchange", "two-renames"])
def test_reader_never_mixes_two_bakes(
    two_renames: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if two_renames:
        monkeypatch.setattr(publish, "_exchange", _cannot_exchange)
    target = folder / "train.zarr"
    values = [Loaf(60, seed=seed).values() for seed in range(2)]
    bake(Loaf(60), target, codec="raw", progress=False).close()

    def rebuild() -> None:
        for turn in range(1, 13):
            bake(Loaf(60, seed=turn % 2), target, rebuild=True, progress=False).close()

    pid = start_child(rebuild)
    draw = np.random.default_rng(3)
    seen = set()
    replaced = 0
    status = None
    while status is None:
        if (done := os.waitpid(pid, os.WNOHANG)) != (0, 0):
            status = os.waitstatus_to_exitcode(done[1])
        try:
            store = open_store(target)
        except (StoreNotFoundError, UnfinishedStoreError):
            assert two_renames  # which leaves a moment without a store
            continue
        seed = store.invalidation_keys.shared["keys"]["seed"]
        with store:
            try:
                for _ in range(40):
                    _read_some(store, values[seed], draw)
                    seen.add(seed)
            except StoreReplacedError:
                replaced += 1
    assert status == 0
    assert seen == {0, 1}
    assert replaced > 0


def _read_some(store: Store, values: dict[str, Any], draw: np.random.Generator) -> None:
    index = draw.integers(0, 60, 3)
    for name, found in store.read(index).items():
        np.testing.assert_array_equal(found, values[name][index])


def test_old_store_is_read_until_the_new_one_is_whole(folder: Path) -> None:
    target = folder / "train.zarr"
    bake(Loaf(20), target, progress=False).close()
    for start, _ in GRID:
        with pytest.raises(ProducerError):
            bake(Loaf(20, seed=1, trap=Stop(start, ValueError())), target, rebuild=True, progress=False)
        with open_store(target) as store:
            assert_holds(store, Loaf(20))
    with pytest.raises(ParbakeError):
        bake(Loaf(20, seed=1), target, progress=False)  # still another recipe's


def test_grid_is_what_the_tests_think() -> None:
    edges = sorted({*range(0, 21, BATCH), *range(0, 21, SLAB), 20})
    assert list(itertools.pairwise(edges)) == GRID
