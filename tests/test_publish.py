"""The lock, the swap, what may be at the path, and the files of a store that enter the next one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr
from bakery import SLAB, Loaf, assert_holds, calls, leftovers, shard_bytes, tiny_slabs

from parbake.errors import (
    DamagedStoreError,
    NotAStoreError,
    ParbakeError,
    ProducerError,
    RecipeError,
    StoreNotFoundError,
)
from parbake.producers.bake import bake, repair
from parbake.producers.reporting import Progress
from parbake.store import publish
from parbake.store.store import open_store

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def target(folder: Path) -> Path:
    return folder / "train.zarr"


def test_a_bake_that_is_published_while_it_is_looked_for_is_none(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanished(*_: object) -> Iterator[Path]:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "glob", vanished)
    assert publish.unfinished_bakes(target) == []
    with pytest.raises(StoreNotFoundError):
        open_store(target)


def raise_in(start: int) -> Callable[[int, int], None]:
    def trap(first: int, stop: int) -> None:
        if first == start:
            raise ValueError("stopped")

    return trap


def interrupted(loaf: Loaf, target: Path, **options: Any) -> None:
    with pytest.raises(ProducerError):
        bake(loaf, target, progress=False, **options)


# ---- what may be at the path


def test_missing_folders_are_made(tmp_path: Path) -> None:
    with bake(Loaf(), tmp_path / "a" / "b" / "train.zarr", progress=False) as store:
        assert_holds(store, Loaf())


def test_path_through_links_bakes_what_they_name(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "latest.zarr").symlink_to("link/train.zarr")  # dangles as yet
    bake(Loaf(20), tmp_path / "latest.zarr", progress=False).close()
    with bake(Loaf(30), tmp_path / "link" / "train.zarr", progress=False) as store:
        assert_holds(store, Loaf(30))
    with bake(Loaf(30, seed=1), tmp_path / "latest.zarr", rebuild=True, progress=False) as store:
        assert_holds(store, Loaf(30, seed=1))
    assert (tmp_path / "latest.zarr").is_symlink()
    assert (tmp_path / "real" / "train.zarr" / "zarr.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["latest.zarr", "link", "real"]
    assert os.listdir(tmp_path / "real") == ["train.zarr"]


def test_empty_folder_makes_way(target: Path) -> None:
    target.mkdir()
    with bake(Loaf(), target, progress=False) as store:
        assert_holds(store, Loaf())


def _file(target: Path) -> None:
    target.write_text("mine")


def _folder(target: Path) -> None:
    target.mkdir()
    (target / "thesis.tex").write_text("mine")


def _foreign_group(target: Path) -> None:
    zarr.create_group(target).create_array("x", data=zarr.zeros(3)[:])


def _copied_attributes(target: Path) -> None:
    """As xarray does: our attributes in a file that we did not seal."""
    source = target.with_name("source.zarr")
    bake(Loaf(), source, progress=False).close()
    group = zarr.create_group(target, attributes=dict(zarr.open_group(source, mode="r").attrs))
    group.create_array("x", data=zarr.zeros(3)[:])


def _later_format(target: Path) -> None:
    bake(Loaf(), target, progress=False).close()
    root = json.loads((target / "zarr.json").read_bytes())
    root["attributes"]["parbake_format"] = 2
    (target / "zarr.json").write_text(json.dumps(root))


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("make", [_file, _folder, _foreign_group, _copied_attributes, _later_format])
def test_what_is_no_store_of_ours_is_never_touched(
    make: Callable[[Path], None], rebuild: bool, target: Path
) -> None:
    make(target)
    before = _contents(target.parent)
    with pytest.raises(NotAStoreError) as caught:
        bake(Loaf(seed=5), target, rebuild=rebuild, progress=False)
    assert str(target) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert _contents(target.parent) == before


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("rebuild", [False, True])
def test_what_took_the_path_between_kill_and_resume_is_never_touched(
    rebuild: bool, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with the intent written and the swap not made."""
    bake(Loaf(), target, progress=False).close()
    monkeypatch.setattr(publish, "_swap", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        bake(Loaf(seed=1), target, rebuild=True, progress=False)
    monkeypatch.undo()
    tiny_slabs(monkeypatch)
    shutil.rmtree(target)
    _foreign_group(target)
    before = _contents(target)
    with pytest.raises(NotAStoreError):
        bake(Loaf(seed=1), target, rebuild=rebuild, progress=False)
    assert _contents(target) == before
    shutil.rmtree(target)
    log = target.with_name("log")
    with bake(Loaf(seed=1, log=log), target, progress=False) as store:
        assert_holds(store, Loaf(seed=1))
    assert calls(log) == []  # all of it was baked already


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("")
    for rebuild in (False, True):
        with pytest.raises((RecipeError, NotAStoreError), match=r"notes/train\.zarr: "):
            bake(Loaf(), tmp_path / "notes" / "train.zarr", rebuild=rebuild, progress=False)


def test_store_in_a_read_only_file_system_is_read_but_not_grown(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "parbake-test", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        target = folder / "train.zarr"
        bake(Loaf(), target, progress=False).close()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True, capture_output=True)
        with bake(Loaf(), target, progress=False) as store:
            assert_holds(store, Loaf())
        with pytest.raises(RecipeError, match=r"cannot write in .*disk \(Read-only file system\)"):
            bake(Loaf(60), target, progress=False)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# ---- the lock


def test_second_bake_waits_says_for_whom_and_uses_the_result(target: Path) -> None:
    log = target.with_name("log")
    told = threading.Event()
    notices = []

    def report(progress: Progress) -> None:
        if progress.notice:
            notices.append(progress.notice)
            told.set()

    second = threading.Thread(
        target=lambda: bake(Loaf(40, log=log), target, progress=report).close(), daemon=True
    )

    def hold(start: int, stop: int) -> None:
        if start == 9:
            second.start()
            assert told.wait(timeout=60)

    with bake(Loaf(40, log=log, trap=hold), target, progress=False) as store:
        assert_holds(store, Loaf(40))
    second.join(timeout=60)
    assert not second.is_alive()
    assert [start for start, _, _ in calls(log)] == sorted({start for start, _, _ in calls(log)})
    host = os.uname().nodename
    assert notices == [f"being baked by process {os.getpid()} on {host}; waiting for it"]
    assert leftovers(target) == []


def test_lock_file_of_a_killed_bake_does_not_block(target: Path) -> None:
    lock = target.with_name("train.zarr.lock")
    lock.write_text("process 1 on elsewhere")
    with bake(Loaf(), target, progress=False) as store:
        assert_holds(store, Loaf())
    assert not lock.exists()


def test_lock_excludes_all_others_while_its_file_comes_and_goes(target: Path) -> None:
    """Many holders in turn, each of which removes the file that others wait on."""
    inside = threading.Semaphore(1)
    faults: list[str] = []

    def hold() -> None:
        for _ in range(20):
            with publish.baking_lock(target, lambda _: None):
                if not inside.acquire(blocking=False):
                    faults.append("two at once")
                    continue
                os.sched_yield()
                inside.release()

    holders = [threading.Thread(target=hold, daemon=True) for _ in range(4)]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join(timeout=120)
    assert not any(holder.is_alive() for holder in holders)
    assert faults == []


# ---- what resume trusts


def test_resume_bakes_again_what_its_record_does_not_bear_out(target: Path) -> None:
    interrupted(Loaf(40, trap=raise_in(36)), target, codec="raw")
    (staging,) = publish.staging_root(target).iterdir()
    assert len(list(staging.glob("records/*.json"))) == 4
    shard = staging / "store" / "wave" / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])  # cut
    other = staging / "store/count/c/0/0"
    assert other.stat().st_size == (staging / "store/count/c/1/0").stat().st_size
    shutil.copy(other, staging / "store/count/c/1/0")
    (staging / "scalars" / "f0" / "2.bin").write_bytes(bytes(4 * SLAB))
    (staging / "records" / "3.json").write_text("{")
    log = target.with_name("log")
    with bake(Loaf(40, log=log), target, codec="raw", progress=False) as store:
        assert_holds(store, Loaf(40))
    assert {start // SLAB for start, _, _ in calls(log)} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("first", "then"), [(100, 20), (20, 100), (36, 34)])
def test_resume_with_another_number_of_samples(first: int, then: int, target: Path) -> None:
    expected = shard_bytes(bake(Loaf(then), target.with_name("undisturbed"), progress=False).path)
    interrupted(
        Loaf(first, trap=raise_in(first - first % 3)) if first % 3 else Loaf(first, trap=raise_in(18)), target
    )
    with bake(Loaf(then), target, progress=False) as store:
        assert_holds(store, Loaf(then))
    assert shard_bytes(target) == expected
    assert leftovers(target) == []


def test_another_recipe_does_not_resume_this_one(target: Path) -> None:
    interrupted(Loaf(trap=raise_in(24)), target)
    with bake(Loaf(seed=1), target, progress=False) as store:
        assert_holds(store, Loaf(seed=1))
    assert len(list(publish.staging_root(target).iterdir())) == 1  # the first can go on


# ---- files of the old store in the new one


def test_linked_shards_are_never_written_to(target: Path) -> None:
    """Growth, one changed field and repair share files with what was there; that must stay as it was."""
    bake(Loaf(20), target, progress=False).close()
    kept = target.with_name("kept")
    before = shard_bytes(target)
    stages = [
        lambda: bake(Loaf(60), target, progress=False),
        lambda: bake(Loaf(60, gain=2), target, rebuild=True, progress=False),
        lambda: repair(Loaf(60, gain=2), target, progress=False),
        lambda: bake(Loaf(60, gain=2, drift=1), target, rebuild=True, progress=False),
    ]
    for number, stage in enumerate(stages):
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(target, kept, copy_function=os.link)
        inodes = {file.stat().st_ino for file in target.rglob("*")}
        if number == 2:
            shard = target / "wave" / "c" / "3" / "0" / "0"
            content = bytearray(shard.read_bytes())
            content[100] ^= 1
            shard.unlink()
            shard.write_bytes(content)
        stage().close()
        shared = inodes & {file.stat().st_ino for file in target.rglob("*")}
        assert bool(shared) == (number < 3)
        assert shard_bytes(kept) == before
        before = shard_bytes(target)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EMLINK, errno.EPERM])
def test_where_links_cannot_be_shards_are_copied(
    code: int, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bake(Loaf(20), target, progress=False).close()

    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    log = target.with_name("log")
    with bake(Loaf(60, log=log), target, progress=False) as store:
        assert_holds(store, Loaf(60))
    assert min(start for start, _, _ in calls(log)) == 20
    assert leftovers(target) == []


def test_missing_or_cut_shard_stops_growth_and_says_what_to_do(target: Path) -> None:
    bake(Loaf(20), target, progress=False).close()
    shard = target / "wave" / "c" / "0" / "0" / "0"
    content = shard.read_bytes()
    for damaged in (content[:-1], None):
        shard.unlink()
        if damaged is not None:
            shard.write_bytes(damaged)
        with pytest.raises(DamagedStoreError, match=r"samples 0-7: .*verify .* --repair"):
            bake(Loaf(60), target, progress=False)
    with repair(Loaf(20), target, progress=False) as store:
        assert_holds(store, Loaf(20))
    with bake(Loaf(60), target, progress=False) as store:
        assert_holds(store, Loaf(60))


def test_errors_are_parbakes_and_one_line(target: Path) -> None:
    for options in ({"codec": "gzip"}, {"batch_size": 0}, {"batch_size": -1}):
        with pytest.raises(ParbakeError) as caught:
            bake(Loaf(), target, progress=False, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="nothing to bake"):
        bake(Loaf(0), target, progress=False)
    assert not target.exists()


def test_bake_hands_back_what_it_baked_not_what_came_after(target: Path) -> None:
    """The store is opened before the lock is given up."""
    bake(Loaf(20), target, progress=False).close()
    with open_store(target) as held:
        with bake(Loaf(40), target, progress=False) as store:
            assert store.samples == 40
        assert held.samples == 20
