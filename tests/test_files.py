"""What follows from files is remembered as long as all of them stand as they did, and no longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parbake.errors import StoreNotFoundError
from parbake.store import files
from parbake.store.files import Snapshot, recall, remember


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A file and two that it refers to, one of them a folder; none has changed for long."""
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files.time, "time", lambda: 4e9)
    main, beside, folder = tmp_path / "main.pvd", tmp_path / "steps" / "0.vtu", tmp_path / "steps"
    folder.mkdir()
    main.write_text("main")
    beside.write_text("step")
    return [main, beside, folder]


def test_what_was_remembered_of_several_files_is_recalled(result: list[Path]) -> None:
    remember(Snapshot.take(result), "mesh", {"sum": "abc"})
    known = recall(result[0], "mesh")
    assert known is not None
    assert known[1] == {"sum": "abc"}
    assert known[0].states == Snapshot.take(result).states


def test_values_remembered_later_join_the_others(result: list[Path]) -> None:
    remember(Snapshot.take(result), "mesh", {"sum": "abc", "p": "1"})
    remember(Snapshot.take(result), "mesh", {"p": "2", "T": "3"})
    known = recall(result[0], "mesh")
    assert known is not None
    assert known[1] == {"sum": "abc", "p": "2", "T": "3"}


def test_what_is_remembered_of_other_kinds_stays_apart(result: list[Path]) -> None:
    remember(Snapshot.take(result), "mesh", {"sum": "abc"})
    assert recall(result[0], "mesh-2") is None


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_change_of_any_file_or_folder_forgets(result: list[Path], which: int) -> None:
    remember(Snapshot.take(result), "mesh", {"sum": "abc"})
    stat = result[which].stat()
    while result[which].stat().st_ctime_ns == stat.st_ctime_ns:  # the clock's grain
        os.utime(result[which], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert recall(result[0], "mesh") is None


def test_a_file_that_is_gone_forgets(result: list[Path]) -> None:
    remember(Snapshot.take(result), "mesh", {"sum": "abc"})
    result[1].unlink()
    assert recall(result[0], "mesh") is None


def test_of_files_that_changed_while_they_were_read_nothing_is_recalled(result: list[Path]) -> None:
    before = Snapshot.take(result)
    result[1].write_text("another step")
    assert before.changed() == result[1]
    remember(before, "mesh", {"sum": "abc"})
    assert recall(result[0], "mesh") is None
    remember(Snapshot.take(result), "mesh", {"sum": "def"})
    assert recall(result[0], "mesh") is not None


def test_files_that_changed_within_two_seconds_are_not_remembered(
    result: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = max(path.stat().st_ctime for path in result)
    monkeypatch.setattr(files.time, "time", lambda: newest + 1.9)
    young = Snapshot.take(result)
    monkeypatch.setattr(files.time, "time", lambda: newest + 60)  # the reading took so long
    remember(young, "mesh", {"sum": "abc"})
    assert recall(result[0], "mesh") is None


def test_a_young_file_is_not_remembered_however_long_its_hash_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another write within the tick of the first one would be seen by neither ``stat``."""
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_MEMO_NBYTES", 1)
    path = tmp_path / "weights.bin"
    path.write_bytes(b"1")
    times = iter([path.stat().st_mtime + 1, path.stat().st_mtime + 60])
    monkeypatch.setattr(files.time, "time", lambda: next(times, 4e9))
    files.file_sha256(path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"beside": 1, "states": [], "values": {}}'])
def test_a_broken_memo_is_not_believed(result: list[Path], text: str, tmp_path: Path) -> None:
    remember(Snapshot.take(result), "mesh", {"sum": "abc"})
    [memo] = (tmp_path / "cache" / "file-hashes" / "mesh").iterdir()
    memo.write_text(text)
    assert recall(result[0], "mesh") is None


def test_a_moved_result_is_known_again_only_with_all_its_files(result: list[Path], tmp_path: Path) -> None:
    """A hard link to the main file beside other steps is another result."""
    remember(Snapshot.take(result), "mesh", {"sum": "abc"})
    other = tmp_path / "elsewhere"
    (other / "steps").mkdir(parents=True)
    (other / "steps" / "0.vtu").write_text("step")
    link = other / "main.pvd"
    link.symlink_to(result[0])
    assert recall(link, "mesh") is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"none\.vtu: No such file"):
        Snapshot.take([tmp_path / "none.vtu"])
