"""Stores in zip archives: ours and others', by zipfile, zarr-python and unzip; hostile and damaged ones."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import shutil
import struct
import subprocess
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from bakery import Loaf, ended, same, start_child, tiny_slabs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake.errors import DamagedStoreError, NotAStoreError, ParbakeError
from parbake.producers.bake import bake
from parbake.store import store as stores
from parbake.store import zarr_dir, zip_writer
from parbake.store.chunks import Access
from parbake.store.codecs import CodecError
from parbake.store.index import Window
from parbake.store.opened import read_file
from parbake.store.reader import Reader
from parbake.store.store import Store, open_store
from parbake.store.zarr_zip import OpenZip, zip_faults
from parbake.store.zip_writer import ALIGNMENT, write_zip

SAMPLES = 61
VALUES = Loaf(SAMPLES).values()
CODECS = ("raw", "lz4")
FLIPS_EVERY = 5  # bits; 1 for all of them, which takes a minute


def opened(archive: Path, *, mmap: bool = True) -> Store:
    """A store in an archive."""
    contents = zarr_dir.open_contents(OpenZip(archive))
    options = stores._Options("first", mmap, 1 << 20, None)
    access = Access(contents.files, "first", mmap, "bake it again")
    return Store(contents, Reader(contents.maps, access, 1 << 20), options, None)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def packed(folder: Path, target: Path) -> Path:
    write_zip(target, ((name, [content]) for name, content in files_of(folder).items()))
    return target


def content_of(archive: Path) -> dict[str, bytes]:
    with contextlib.closing(OpenZip(archive)) as files:
        return {name: read_file(files, name, 1 << 30) for name in files.files()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("zip")
    with pytest.MonkeyPatch.context() as patch:
        tiny_slabs(patch)
        for codec in CODECS:
            bake(Loaf(SAMPLES), top / f"{codec}.zarr", codec=codec, progress=False).close()
    return {codec: top / f"{codec}.zarr" for codec in CODECS}


@pytest.fixture(scope="module")
def archives(folders: dict[str, Path]) -> dict[str, Path]:
    return {codec: packed(path, path.with_suffix(".zarr.zip")) for codec, path in folders.items()}


@pytest.fixture
def members(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    def make(content: dict[str, bytes]) -> Path:
        write_zip(tmp_path / "made.zip", ((name, [data]) for name, data in content.items()))
        return tmp_path / "made.zip"

    return make


# ---- our own stores


def assert_equal_reads(one: Store, other: Store) -> None:
    index = np.random.default_rng(0).permutation(SAMPLES)
    for threads in (1, 2):
        found, wanted = one.read(index, threads=threads), other.read(index, threads=threads)
        assert found.keys() == wanted.keys()
        assert all(same(found[name], wanted[name]) for name in wanted)
    window = {"wave": Window(0, 7, np.full(len(index), 5))}
    found, wanted = (store.read(index, ["wave"], windows=window) for store in (one, other))
    assert same(found["wave"], wanted["wave"])
    assert one.coords.keys() == other.coords.keys()
    assert one.verify().damaged == ()


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("codec", CODECS)
def test_a_zip_reads_as_its_folder(
    codec: str, mmap: bool, archives: dict[str, Path], folders: dict[str, Path]
) -> None:
    with opened(archives[codec], mmap=mmap) as packed_store, open_store(folders[codec]) as wanted:
        assert_equal_reads(packed_store, wanted)
        assert packed_store.nbytes_stored("wave") == wanted.nbytes_stored("wave")


def test_raw_chunks_are_seen_in_place(archives: dict[str, Path]) -> None:
    with opened(archives["raw"]) as store:
        view = store.read(slice(4, 6), ["count"], view=True)["count"]
        assert view.base is not None
        assert not view.flags.writeable
        assert view.ctypes.data % ALIGNMENT % view.itemsize == 0
        assert same(np.array(view), VALUES["count"][4:6])


def test_unaligned_members_are_read_right(tmp_path: Path, folders: dict[str, Path]) -> None:
    odd = tmp_path / "odd.zip"
    with zipfile.ZipFile(odd, "w") as archive:
        for number, (name, content) in enumerate(files_of(folders["raw"]).items()):
            archive.writestr(f"pad{number}", b"x" * (number % 7))
            archive.writestr(name, content)
    with opened(odd) as store, open_store(folders["raw"]) as wanted:
        assert_equal_reads(store, wanted)


def _read_in_spawned(path: Path, results: Any) -> None:
    with opened(path) as store:
        results.put(store.read(range(SAMPLES))["wave"])


def test_forked_and_spawned_processes_read(archives: dict[str, Path]) -> None:
    with opened(archives["lz4"]) as store:
        store.read([0])

        def call() -> None:
            found = store.read(range(SAMPLES))
            assert all(same(found[name], VALUES[name]) for name in VALUES)

        assert ended(start_child(call)) == 0
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=_read_in_spawned, args=(archives["lz4"], results))
    child.start()
    assert same(results.get(timeout=60), VALUES["wave"])
    child.join()


def test_reading_goes_on_when_another_file_takes_the_path(tmp_path: Path, archives: dict[str, Path]) -> None:
    mine = shutil.copy(archives["lz4"], tmp_path / "mine.zip")
    with opened(mine) as store:
        (tmp_path / "other").write_bytes(b"another")
        (tmp_path / "other").rename(mine)
        assert same(store.read(range(SAMPLES))["wave"], VALUES["wave"])


def test_who_reads_holds_a_lock_until_closed(archives: dict[str, Path]) -> None:
    import fcntl

    with archives["raw"].open("rb") as other:
        store = opened(archives["raw"])
        store.read(range(SAMPLES))
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        store.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ValueError, match="closed"):
            store.contents.files.open("zarr.json")


def test_no_descriptor_is_left_open(archives: dict[str, Path], tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with opened(archives["raw"]) as store:
        store.read(range(SAMPLES))
    (tmp_path / "no.zip").write_bytes(b"PK")
    for path in (tmp_path / "no.zip", tmp_path):
        with pytest.raises((NotAStoreError, OSError)):
            OpenZip(path)
    with contextlib.closing(OpenZip(archives["raw"])) as files:
        with pytest.raises(FileNotFoundError):
            files.open("nothing")
        assert zip_faults(files) == []
    assert set(os.listdir("/proc/self/fd")) == before


def test_an_archive_that_is_cut_while_open_is_damage(tmp_path: Path, archives: dict[str, Path]) -> None:
    mine = shutil.copy(archives["raw"], tmp_path / "mine.zip")
    with opened(mine) as store:
        with contextlib.closing(OpenZip(mine)) as files:
            span = files.open("wave/c/3/0/0")
            os.close(span.descriptor)
        os.truncate(mine, span.start + 100)
        with pytest.raises(DamagedStoreError, match=r"wave/c/3/0/0: the archive was cut"):
            store.read(range(SAMPLES), ["wave"])


# ---- what others write, and what others read


@pytest.mark.parametrize("codec", CODECS)
def test_zipfile_unzip_and_zarr_read_what_is_written(
    codec: str, archives: dict[str, Path], folders: dict[str, Path]
) -> None:
    with zipfile.ZipFile(archives[codec]) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files_of(folders[codec])
        assert {(i.compress_type, i.date_time) for i in archive.infolist()} == {(0, (1980, 1, 1, 0, 0, 0))}
    if (unzip := shutil.which("unzip")) is not None:
        subprocess.run([unzip, "-tq", archives[codec]], check=True, capture_output=True)
    with zarr.storage.ZipStore(archives[codec], mode="r") as store:
        group = zarr.open_group(store, mode="r")
        for name, values in VALUES.items():
            np.testing.assert_array_equal(group[name][:], values)


class _Unseekable(io.RawIOBase):
    """A pipe as zipfile sees it."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


@dataclass(frozen=True)
class Form:
    """How zipfile writes an archive."""

    zip64: bool = False
    streamed: bool = False
    twice: bool = False
    comment: bytes = b""
    prefix: bytes = b""
    folders: bool = False


forms = st.builds(
    Form,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.binary(max_size=100) | st.just(b"PK\5\6" * 9),
    st.binary(max_size=100) | st.just(b"PK\3\4" * 9),
    st.booleans(),
)
part = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=8).filter(
    lambda text: text not in (".", "..")
)
names = st.lists(part, min_size=1, max_size=4).map("/".join)


def written(path: Path, content: dict[str, bytes], form: Form) -> None:
    """An archive by zipfile."""
    with path.open("wb") as file:
        file.write(form.prefix)
        with zipfile.ZipFile(_Unseekable(file) if form.streamed else file, "w") as archive:  # type: ignore[arg-type]
            archive.comment = form.comment
            for parent in {name.rpartition("/")[0] for name in content} - {""} if form.folders else ():
                archive.mkdir(parent)
            for stale in (True, False) if form.twice else (False,):
                for name, data in content.items():
                    with archive.open(name, "w", force_zip64=form.zip64) as member:
                        member.write(data[::-1] + b"stale" if stale else data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, st.binary(max_size=300), max_size=8), forms)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_of_zipfile_are_read(tmp_path: Path, content: dict[str, bytes], form: Form) -> None:
    path = tmp_path / "foreign.zip"
    written(path, content, form)
    content = {name: content[name] for name in content}
    tops = {name.partition("/")[0] for name in content}
    with contextlib.closing(OpenZip(path)) as files:
        assert {name: read_file(files, name, 1 << 20) for name in files.files()} == content
        assert zip_faults(files) == []
        assert files.names("") == sorted(tops)
        for top in tops:
            inner = {name[len(top) + 1 :].partition("/")[0] for name in content if name.startswith(f"{top}/")}
            if inner:
                assert files.names(top) == sorted(inner)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, st.lists(st.binary(max_size=200), max_size=4), max_size=8))
def test_zipfile_reads_what_is_written_and_data_is_aligned(
    tmp_path: Path, content: dict[str, list[bytes]]
) -> None:
    path = tmp_path / "ours.zip"
    write_zip(path, content.items())
    first = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == list(content)
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in content} == {n: b"".join(p) for n, p in content.items()}
    with contextlib.closing(OpenZip(path)) as files:
        assert sorted(files.files()) == sorted(content)
        for name in content:
            span = files.open(name)
            os.close(span.descriptor)
            assert span.start % ALIGNMENT == 0
    write_zip(path, content.items())
    assert path.read_bytes() == first


def test_large_parts_in_reused_memory_are_written_right(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    wanted = {f"c/{i}": [rng.bytes(int(n)) for n in rng.integers(0, 6 << 20, 4)] for i in range(3)}

    def reused(parts: list[bytes]) -> Iterator[memoryview]:
        held = bytearray(6 << 20)
        for data in parts:
            held[: len(data)] = data
            yield memoryview(held)[: len(data)]
            held[:] = bytes(len(held))

    write_zip(tmp_path / "x.zip", ((name, reused(parts)) for name, parts in wanted.items()))
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.testzip() is None
    assert content_of(tmp_path / "x.zip") == {name: b"".join(parts) for name, parts in wanted.items()}


def test_a_zip_store_of_zarr_is_read(tmp_path: Path) -> None:
    values = np.arange(60, dtype="<i4").reshape(6, 10)
    with zarr.storage.ZipStore(tmp_path / "z.zip", mode="w") as store:
        array = zarr.create_array(store, shape=(6, 10), chunks=(2, 10), dtype="<i4", compressors=None)
        array[:] = values
    with contextlib.closing(OpenZip(tmp_path / "z.zip")) as files:
        assert files.names("") == ["c", "zarr.json"]
        assert files.names("c/1") == ["0"]
        found = [np.frombuffer(read_file(files, f"c/{i}/0", 1000), "<i4") for i in range(3)]
        assert same(np.concatenate(found).reshape(6, 10), values)
        with pytest.raises(FileNotFoundError):
            files.names("d")


@pytest.mark.parametrize("root", ["zarr.json", ".zgroup", ".zarray"])
def test_a_store_in_one_top_folder_is_served_from_there(tmp_path: Path, root: str) -> None:
    top = tmp_path / "made.zip"
    content = {f"train.zarr/{root}": b"{}", "train.zarr/x/0": b"1", "__MACOSX/._x": b"2", "readme": b"3"}
    written(top, content, Form(folders=True))
    assert content_of(top) == {root: b"{}", "x/0": b"1"}
    with contextlib.closing(OpenZip(top)) as files:
        assert files.names("") == sorted([root, "x"])
    written(top, {root: b"0", **content}, Form())
    assert content_of(top).keys() == {root, *content}
    written(top, {f"val.zarr/{root}": b"0", **content}, Form())
    assert "several stores (train.zarr/, val.zarr/" in refusal(top)


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs the command zip")
def test_archives_of_the_command_zip_are_read(tmp_path: Path, folders: dict[str, Path]) -> None:
    for name, folder in (("top.zip", folders["lz4"].parent), ("bare.zip", folders["lz4"])):
        what = "." if folder == folders["lz4"] else folders["lz4"].name
        subprocess.run(["zip", "-q", "-r", "-0", tmp_path / name, what], cwd=folder, check=True)
        with opened(tmp_path / name) as store:
            assert same(store.read(range(SAMPLES))["wave"], VALUES["wave"])


def test_a_member_is_refused_only_when_it_is_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", b"1" * 100, zipfile.ZIP_DEFLATED)
        archive.writestr("b", b"2")
    with contextlib.closing(OpenZip(tmp_path / "x.zip")) as files:
        assert read_file(files, "b", 9) == b"2"
        with pytest.raises(CodecError, match=r"^a is compressed.*unzip it, and open the folder or pack that"):
            files.open("a")
        [(name, fault)] = zip_faults(files)
        assert name == "a"
        assert "compressed" in fault


# ---- damage and hostility


def refusal(path: Path) -> str:
    """The one line with which an archive is refused."""
    with pytest.raises(NotAStoreError) as caught:
        OpenZip(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text


def fault_of(path: Path, name: str) -> str:
    """The one line with which a member is refused, in an archive that opens."""
    with contextlib.closing(OpenZip(path)) as files, pytest.raises(CodecError) as caught:
        files.open(name)
    text = str(caught.value)
    assert "\n" not in text
    assert name in text
    return text


@dataclass(frozen=True)
class Crafted:
    """A member as it is to be stated; None: the truth."""

    name: bytes
    data: bytes = b""
    local_name: bytes | None = None
    header: int | None = None  # as the directory says
    nbytes: int | None = None
    flags: int = 0
    method: int = 0
    extra: bytes = b""
    local_extra: bytes = b""
    after: bytes = b""


def crafted(
    path: Path,
    *members: Crafted,
    count: int | None = None,
    size: int | None = None,
    offset: int | None = None,
) -> Path:
    body, records = b"", b""
    for m in members:
        header = len(body) if m.header is None else m.header
        local = m.name if m.local_name is None else m.local_name
        nbytes = len(m.data) if m.nbytes is None else m.nbytes
        crc = zlib.crc32(m.data)
        fixed = (10, m.flags, m.method, 0, 33, crc)
        body += struct.pack(
            "<4s5H3L2H", b"PK\3\4", *fixed, len(m.data), len(m.data), len(local), len(m.local_extra)
        )
        body += local + m.local_extra + m.data + m.after
        lengths = (len(m.name), len(m.extra), 0, 0, 0)
        records += struct.pack("<4s6H3L5H2L", b"PK\1\2", 10, *fixed, nbytes, nbytes, *lengths, 0, header)
        records += m.name + m.extra
    count = len(members) if count is None else count
    size = len(records) if size is None else size
    offset = len(body) if offset is None else offset
    end = b""
    if count > 0xFFFF or size > 0xFFFFFFFF:
        end += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        end += struct.pack("<4sLQL", b"PK\6\7", 0, (size + offset) % 2**64, 1)
    short = min(count, 0xFFFF)
    end += struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, short, short, min(size, 0xFFFFFFFF), min(offset, 0xFFFFFFFF), 0
    )
    path.write_bytes(body + records + end)
    return path


def test_what_is_crafted_truthfully_is_read(tmp_path: Path) -> None:
    """So that what follows is refused for what it states."""
    path = crafted(tmp_path / "x.zip", Crafted(b"a", b"123"), Crafted(b"b/"), Crafted(b"b/c", b"4"))
    assert content_of(path) == {"a": b"123", "b/c": b"4"}


@pytest.mark.parametrize(
    "name",
    [
        b"../a",
        b"a/../b",
        b"a/..",
        b"..",
        b"./a",
        b"a/.",
        b".",
        b"a/./b",
        b"/etc/passwd",
        b"/",
        b"a//b",
        b"a//",
        b"",
        b"a\\b",
        b"..\\a",
        b"a\0b",
        b"a\0",
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: bytes) -> None:
    path = crafted(tmp_path / "x.zip", Crafted(b"fine", b"1"), Crafted(name), Crafted(b"too", b"2"))
    assert f"named {name.decode()!r}" in refusal(path)
    with pytest.raises(ValueError, match=r"named|a folder"):
        write_zip(tmp_path / "y.zip", [("fine", []), (name.decode(), [])])
    assert not list(tmp_path.glob("*y.zip*"))


@pytest.mark.parametrize(
    "name", [b"...", b"..a", b"a..", b".zgroup", b"a/.zarray", b"a.b/..c", b"a/...", b"a/"]
)
def test_names_that_only_look_odd_are_let_through(tmp_path: Path, name: bytes) -> None:
    OpenZip(crafted(tmp_path / "x.zip", Crafted(b"fine"), Crafted(name), Crafted(b"too"))).close()


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    assert "named 'a\ufffd'" in refusal(
        crafted(tmp_path / "x.zip", Crafted(b"b"), Crafted(b"a\xff", flags=1 << 11))
    )


def test_names_of_old_writers_are_those_of_zipfile(tmp_path: Path) -> None:
    path = crafted(tmp_path / "x.zip", Crafted(b"caf\x82", b"1"), Crafted(b"\xc3\xa9", b"2", flags=1 << 11))
    assert content_of(path) == {"caf\xe9": b"1", "\xe9": b"2"}
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["caf\xe9", "\xe9"]


def test_the_last_of_one_name_wins(tmp_path: Path) -> None:
    path = crafted(tmp_path / "x.zip", *(Crafted(b"a", data) for data in (b"1", b"22", b"3")), Crafted(b"b"))
    assert content_of(path) == {"a": b"3", "b": b""}


def zip_64(*values: int) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


FULL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        (Crafted(b"a", b"1234", flags=1), "encrypted"),
        (Crafted(b"a", b"1234", flags=1 << 6 | 1), "encrypted"),
        (Crafted(b"a", b"1234", method=93), "compressed"),
        (Crafted(b"a", b"1234", local_name=b"b"), "another name"),
        (Crafted(b"a", b"1234", local_name=b"ab"), "another name"),
        (Crafted(b"a", b"1234", header=3), "is missing"),
        (Crafted(b"a", b"1234", header=10**6), "outside"),
        (Crafted(b"a", b"1234", header=FULL, extra=zip_64(2**64 - 1)), "outside"),
        (Crafted(b"a", b"1234", nbytes=5), "overlaps"),
        (Crafted(b"a", b"1234", nbytes=3), "CRC-32"),
        (Crafted(b"a", b"1234", nbytes=10**9), "overlaps"),
        (Crafted(b"a", b"1234", nbytes=FULL), "overlaps"),
        (Crafted(b"a", b"1234", nbytes=FULL, extra=zip_64(4, 5)), "4"),
        (Crafted(b"a", b"1234", nbytes=FULL, extra=zip_64(2**64 - 1, 2**64 - 1)), "overlaps"),
        (Crafted(b"a", b"1234", nbytes=FULL, extra=zip_64(2**63 - 1, 2**63 - 1)), "overlaps"),
    ],
)
def test_a_member_that_lies_is_refused_alone(tmp_path: Path, member: Crafted, fault: str) -> None:
    path = crafted(tmp_path / "x.zip", Crafted(b"0", b"first"), member, Crafted(b"z", b"last"))
    assert fault in fault_of(path, "a")
    with contextlib.closing(OpenZip(path)) as files:
        faulty = [name for name, _ in zip_faults(files)]
        assert "a" in faulty
        assert len(faulty) <= 2  # and the member that it reaches into


def test_members_that_overlap_are_refused_both(tmp_path: Path) -> None:
    """A member in another's bytes, as archives that unpack to more than they are have them."""
    inner = crafted(tmp_path / "inner.zip", Crafted(b"in", b"1234")).read_bytes()[: 30 + 2 + 4]
    outer = Crafted(b"out", inner + b"tail")
    path = crafted(tmp_path / "x.zip", outer, Crafted(b"in", b"1234", header=33))
    assert "overlaps" in fault_of(path, "out")
    assert "overlaps" in fault_of(path, "in")
    twins = crafted(tmp_path / "y.zip", Crafted(b"a", b"1"), Crafted(b"a", b"1", header=0), Crafted(b"b"))
    assert "overlaps" in fault_of(twins, "a")


def test_a_member_that_reaches_into_the_directory_is_refused(tmp_path: Path) -> None:
    path = crafted(tmp_path / "x.zip", Crafted(b"a", b"1234", nbytes=20))
    assert "overlaps" in fault_of(path, "a")


def test_a_folder_with_data_is_refused(tmp_path: Path) -> None:
    assert "folder 'a/' holds data" in refusal(
        crafted(tmp_path / "x.zip", Crafted(b"b"), Crafted(b"a/", b"1"))
    )


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        ({"count": 10**9}, "1,000,000,000 members"),
        ({"count": 3}, "3 members"),
        ({"count": 1}, "1 members"),
        ({"size": 10**9}, "does not fit"),
        ({"size": 2**64 - 1}, "does not fit|contradict"),
        ({"size": 50}, "does not fit|damaged"),
        ({"offset": 10**6}, "does not fit"),
    ],
)
def test_an_end_that_lies_is_refused_before_anything_is_allocated(
    tmp_path: Path, stated: dict[str, int], fault: str
) -> None:
    path = crafted(tmp_path / "x.zip", Crafted(b"a", b"1"), Crafted(b"b", b"2"), **stated)
    tracemalloc.start()
    try:
        with pytest.raises(NotAStoreError, match=fault):
            OpenZip(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_archive_that_is_cut_is_refused(tmp_path: Path) -> None:
    whole = crafted(tmp_path / "x.zip", Crafted(b"a", b"1234"), Crafted(b"b", b"5")).read_bytes()
    for nbytes in range(len(whole)):
        (tmp_path / "cut.zip").write_bytes(whole[:nbytes])
        refusal(tmp_path / "cut.zip")
    start = whole.index(b"PK\1\2")
    for first in range(start, len(whole) - 22):  # bytes out of the directory
        (tmp_path / "cut.zip").write_bytes(whole[:first] + whole[first + 1 :])
        refusal(tmp_path / "cut.zip")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "not a plain file" in refusal(tmp_path / "fifo")
    assert "not a plain file" in refusal(tmp_path)
    with pytest.raises(FileNotFoundError):
        OpenZip(tmp_path / "nothing")


def test_verification_finds_a_flipped_byte_of_any_member(members: Callable[..., Path]) -> None:
    path = members({"a": b"1" * 1000, "b": b"2" * 1000})
    whole = path.read_bytes()
    for name, at in (("a", whole.index(b"1" * 1000) + 999), ("b", whole.index(b"2" * 1000))):
        path.write_bytes(whole[:at] + b"!" + whole[at + 1 :])
        with contextlib.closing(OpenZip(path)) as files:
            [(found, fault)] = zip_faults(files)
        assert found == name
        assert "CRC-32" in fault


def flip_places(whole: bytes) -> Iterator[int]:
    """All bytes of the directory, its end and the local headers with their names and extra fields."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        for info in archive.infolist():
            name_nbytes, extra_nbytes = struct.unpack_from("<2H", whole, info.header_offset + 26)
            yield from range(info.header_offset, info.header_offset + 30 + name_nbytes + extra_nbytes)
        yield from range(archive.start_dir, len(whole))


def flips(whole: bytes, every: int) -> Iterator[bytes]:
    """The archive with single bits of what is not data flipped: one bit in ``every``, to be quick."""
    bits = [(at, 1 << bit) for at in flip_places(whole) for bit in range(8)]
    for at, bit in bits[::every]:
        yield whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]


TINY = {"a": b"\0" * 24, "b/c": b"12345678" * 9, "e": b""}


def _by_us(path: Path) -> None:
    write_zip(path, ((name, [data]) for name, data in TINY.items()))


def _by_command(path: Path) -> None:
    if shutil.which("zip") is None:
        pytest.skip("needs the command zip")
    folder = path.with_suffix("")
    (folder / "b").mkdir(parents=True)
    for name, data in TINY.items():
        (folder / name).write_bytes(data)
    subprocess.run(["zip", "-q", "-r", "-0", path, *TINY], cwd=folder, check=True)


@pytest.mark.parametrize(
    "write",
    [
        _by_us,
        _by_command,
        lambda path: written(path, TINY, Form(comment=b"note")),
        lambda path: written(path, TINY, Form(zip64=True, prefix=b"#!/bin/sh")),
        lambda path: written(path, TINY, Form(streamed=True)),
        lambda path: written(path, TINY, Form(streamed=True, zip64=True)),
    ],
    ids=["ours", "zip", "comment", "prefix", "streamed", "streamed zip64"],
)
def test_a_flipped_bit_of_what_is_not_data_never_gives_other_bytes(
    folder: Path, write: Callable[[Path], None]
) -> None:
    write(folder / "x.zip")
    refused = 0
    for flipped in flips((folder / "x.zip").read_bytes(), FLIPS_EVERY):
        (folder / "f.zip").write_bytes(flipped)
        try:
            files = OpenZip(folder / "f.zip")
        except NotAStoreError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
            refused += 1
            continue
        with contextlib.closing(files):
            for name, data in TINY.items():
                try:
                    assert read_file(files, name, 1000) == data
                except (CodecError, FileNotFoundError) as error:
                    assert len(str(error).splitlines()) == 1  # noqa: PT017
                    refused += 1
    assert refused > 100


def test_a_flipped_bit_of_what_is_not_data_never_gives_other_samples(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_slabs(monkeypatch)
    loaf = Loaf(5, only=("f0",))
    bake(loaf, folder / "s.zarr", progress=False).close()
    whole = packed(folder / "s.zarr", folder / "s.zip").read_bytes()
    refused = 0
    for flipped in flips(whole, every=29):
        (folder / "f.zip").write_bytes(flipped)
        try:
            with opened(folder / "f.zip") as store:
                assert same(store.read(range(5))["f0"], loaf.values()["f0"])
        except ParbakeError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
            refused += 1
    assert refused > 50


# ---- large ones


def test_members_beyond_4_gib_are_found(tmp_path: Path) -> None:
    """A hole in the file stands for most of the data."""
    path = tmp_path / "large.zip"
    gap = (4 << 30) + 5

    class Sparse(io.FileIO):
        def write(self, data: Any) -> int:
            if len(data) < 1 << 20:
                return super().write(data)
            self.seek(len(data), os.SEEK_CUR)
            return len(data)

    with Sparse(path, "w+") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("first", b"1")
        file.seek(gap)
        archive.start_dir = gap
        archive.writestr("zarr.json", b"{}")
        archive.writestr("x/0", b"beyond")
    assert path.stat().st_blocks * 512 < 1 << 20
    with contextlib.closing(OpenZip(path)) as files:
        span = files.open("x/0")
        os.close(span.descriptor)
        assert span.start > gap
        assert read_file(files, "x/0", 99) == b"beyond"
        assert files.names("") == ["first", "x", "zarr.json"]


def test_a_large_member_of_ours_is_stated_in_64_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 32 bits were full at 1,000 bytes: only the writer decides on that."""
    monkeypatch.setattr(zip_writer, "_LONG_NBYTES", 1000)
    content = {"zarr.json": b"{}", "long": b"x" * 1000, "short": b"y" * 999, "after": b"z"}
    write_zip(tmp_path / "x.zip", ((name, [data]) for name, data in content.items()))
    whole = (tmp_path / "x.zip").read_bytes()
    assert b"PK\6\6" in whole
    assert whole.count(struct.pack("<2H2Q", 1, 16, 1000, 1000)) == 2  # in both its headers
    assert content_of(tmp_path / "x.zip") == content
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == content
        assert [info.extract_version for info in archive.infolist()] == [10, 45, 45, 45]


def test_more_members_than_16_bits_count(tmp_path: Path) -> None:
    count = 0xFFFF + 2
    write_zip(tmp_path / "x.zip", ((f"c/{i}", [b"%d" % i]) for i in range(count)))
    with contextlib.closing(OpenZip(tmp_path / "x.zip")) as files:
        assert read_file(files, "c/65536", 9) == b"65536"
        assert len(files.names("c")) == count
        assert files._directory.records.__sizeof__() / count < 100
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert len(archive.namelist()) == count
        assert archive.read("c/65536") == b"65536"


# ---- faults while writing


def test_a_fault_leaves_neither_an_archive_nor_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"before")

    def parts() -> Iterator[bytes]:
        yield bytes(9 << 20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_zip(tmp_path / "x.zip", [("a", parts())])
    assert [f.name for f in tmp_path.iterdir()] == ["x.zip"]
    assert (tmp_path / "x.zip").read_bytes() == b"before"


@pytest.mark.parametrize("names", [["a", "a"], ["a/"], ["a" * 65_536]])
def test_names_that_no_archive_should_hold_are_not_written(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ValueError, match="too long, a folder, or there already"):
        write_zip(tmp_path / "x.zip", ((name, []) for name in names))
    assert list(tmp_path.iterdir()) == []
