"""Flipped bits, missing and misplaced files, metadata and chunks that lie: found, and never believed."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, NotAStoreError
from parbake.producers.bake import bake
from parbake.producers.function import FunctionProducer, from_function
from parbake.store import layout as layouts
from parbake.store import zarr_dir, zarr_format
from parbake.store.codecs import Chain, CodecError
from parbake.store.keys import Producer, canonical
from parbake.store.layout import Coord, Field
from parbake.store.store import Store, open_store
from parbake.store.verify import Damage

SAMPLES = 5  # of shards of two: the last is partial
CODECS = ("raw", "lz4", "zstd")
PLACE = Coord(np.arange(17) * 0.5, "m")
FIELDS = {
    "x": Field((17,), "f4", ("place",), units="V", description="what goes in", coords={"place": PLACE}),
    "y": Field((17,), "f4", ("place",), units="V", coords={"place": PLACE}),
    "level": Field((), "f8", ()),
}
REFUSED = (DamagedStoreError, NotAStoreError)
HARMLESS_NBYTES = 16 * 1024**2  # allocations that no lie about sizes explains
BLOSC_HEADER = struct.Struct("<BBBBIII")


def values_of(seed: int, samples: int = SAMPLES) -> dict[str, NDArray[Any]]:
    """Smooth enough for Blosc to compress."""
    start = np.arange(samples).reshape(-1, 1) + 100 * seed
    x = np.floor(8 * np.sin(np.arange(17) + start)).astype("f4")
    return {"x": x, "y": x + 1, "level": np.arange(samples) + seed + 0.5}


def arrays(values: Mapping[str, NDArray[Any]], name: str = "") -> FunctionProducer:
    keys = {"content": name or hashlib.sha256(values["x"].tobytes()).hexdigest()}
    return FunctionProducer(
        lambda i: {name: array[i] for name, array in values.items()},
        len(values["x"]),
        FIELDS,
        keys,
        visible=False,
    )


def baked(path: Path, producer: FunctionProducer, codec: str) -> Path:
    """A store of a few hundred bytes a field."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "SHARD_NBYTES", 2 * 68)
        patch.setattr(layouts, "CHUNK_NBYTES", 68)
        patch.setattr(layouts, "SLAB_SAMPLES_MAX", 2)
        patch.setattr(layouts, "SCALAR_CHUNK_SAMPLES", 2)
        patch.setattr(layouts, "SCALAR_SHARD_SAMPLES", 4)
        bake(producer, path, codec=codec, progress=False).close()
    return path


VALUES = values_of(0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {codec: baked(folder / f"{codec}.zarr", arrays(VALUES), codec) for codec in CODECS}


@pytest.fixture(params=CODECS)
def path(request: pytest.FixtureRequest, whole: dict[str, Path], tmp_path: Path) -> Path:
    """A store to be damaged, of each codec."""
    return Path(shutil.copytree(whole[request.param], tmp_path / "train.zarr"))


@pytest.fixture
def lz4(whole: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole["lz4"], tmp_path / "train.zarr"))


@pytest.fixture
def raw(whole: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole["raw"], tmp_path / "train.zarr"))


def said(store: Store) -> Any:
    """All that a store says of itself, as comparable text."""
    keys, coords = store.invalidation_keys, store.coords
    return (
        store.samples,
        str(store.fields),
        store.layout,
        canonical([keys.shared, keys.fields, store.provenance, store.statistics]),
        {dim: (coord.values.tobytes(), coord.units) for dim, coord in coords.items()},
    )


def check_reads(path: Path, **options: Any) -> list[str]:
    """The fields of which a sample is refused; any other sample must be right, to the bit."""
    refused = []
    with open_store(path, **options) as store:
        for name, wanted in VALUES.items():
            for sample in range(SAMPLES):
                try:
                    found = store.read([sample], (name,))[name]
                except DamagedStoreError as error:
                    check_message(error, path, name)
                    refused.append(name)
                else:
                    assert found.tobytes() == wanted[sample].tobytes()
    return refused


def check_message(error: BaseException, path: Path, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 1000
    for part in (str(path), *parts):
        assert part in text


def damage_of(path: Path, **options: Any) -> tuple[Damage, ...]:
    with open_store(path, **options) as store:
        report = store.verify()
        assert bool(report) == (not report.damaged)
    for damage in report.damaged:
        assert "\n" not in str(damage)
    return report.damaged


def test_a_whole_store_is_whole(path: Path) -> None:
    assert damage_of(path) == ()
    assert check_reads(path) == []
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 20_000
    with open_store(path) as store:
        assert not store.edited
        shards = {name: field.shard_count(SAMPLES) for name, field in store.layout.fields.items()}
        assert shards == {"x": 3, "y": 3, "level": 2}
        assert store.layout.fields["x"].chunks_per_shard == 2


# ---- single bits


def flips(path: Path, pattern: str, stride: int) -> Iterator[tuple[Path, int]]:
    """Every ``stride``-th bit of the files that fit a pattern, each flipped while it is handed out."""
    count = 0
    for file in sorted(path.rglob(pattern)):
        if not file.is_file():
            continue
        content = file.read_bytes()
        descriptor = os.open(file, os.O_WRONLY)
        try:
            for bit in range(count % stride, 8 * len(content), stride):
                place, mask = bit // 8, 1 << bit % 8
                os.pwrite(descriptor, bytes([content[place] ^ mask]), place)
                yield file, bit
                os.pwrite(descriptor, content[place : place + 1], place)
        finally:
            os.close(descriptor)
        count += 1


@pytest.fixture
def same_metadata(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Metadata is read once: thousands of flips in other files then take seconds."""
    with open_store(path) as store:
        opened = zarr_dir.open_metadata(store.contents.files)
    monkeypatch.setattr(zarr_dir, "open_metadata", lambda folder: opened)
    monkeypatch.setattr(zarr_dir, "damaged_nodes", lambda folder, root: [])


def check_flip(path: Path, before: Any) -> str:
    """How a flipped bit is found; "harmless" where all that is read is as it was."""
    try:
        store = open_store(path)
    except REFUSED as error:
        check_message(error, path)
        return "refused"
    with store:
        report = store.verify()
        for name, wanted in VALUES.items():
            with contextlib.suppress(DamagedStoreError):
                found = store.read(slice(None), (name,))[name]
                assert found.tobytes() == wanted.tobytes()
        if not report:
            return "verified"
        if store.edited:
            return "edited"
        assert said(store) == before
        return "harmless"


def check_flips(path: Path, pattern: str, stride: int) -> dict[str, int]:
    """How many bits were found in which way."""
    with open_store(path) as store:
        before = said(store)
    found: dict[str, int] = {}
    for file, bit in flips(path, pattern, stride):
        try:
            how = check_flip(path, before)
        except Exception as error:
            raise AssertionError(f"bit {bit} of {file.relative_to(path)}") from error
        found[how] = found.get(how, 0) + 1
    return found


@pytest.mark.usefixtures("same_metadata")
def test_every_flipped_bit_of_data_is_found(path: Path) -> None:
    """Of shards, coordinates and manifests: files with checksums have no idle bit."""
    found = check_flips(path, "c/**/[0-9]", 17)
    assert set(found) == {"verified"}
    assert found["verified"] > 800
    assert damage_of(path) == ()  # each was put back


def test_every_flipped_bit_of_metadata_is_found(lz4: Path) -> None:
    """All of it is there twice: consolidated and sealed, and by node. Canonical text has no idle bit."""
    found = check_flips(lz4, "zarr.json", 61)
    assert set(found) == {"refused", "verified", "edited"}
    assert sum(found.values()) > 2000
    assert found["refused"] > 500
    assert damage_of(lz4) == ()


def test_each_bit_of_one_shard_is_found_when_read(path: Path) -> None:
    """Without verify: in the header, the payloads, the index; between the chunks there is nothing to read."""
    shard = path / "x" / "c" / "0" / "0"
    content = shard.read_bytes()
    with open_store(path) as store:
        index = store.reader.maps["x"].scan(store.reader.source("x", 0), 0)
    spans = [range(start, start + nbytes) for start, nbytes in zip(index.offset, index.nbytes, strict=True)]
    covered = {
        *range(64),
        *range(len(content) - 36, len(content)),
        *(place for span in spans for place in span),
    }
    for file, bit in flips(path, "x/c/0/0", 3):
        assert file == shard
        with open_store(path) as store:
            try:
                found = store.read([0, 1], ("x",))["x"]
            except DamagedStoreError as error:
                check_message(error, path, "field 'x'", "samples", "x/c/0/0", "verify")
            else:
                assert found.tobytes() == VALUES["x"][:2].tobytes()
                assert bit // 8 not in covered


# ---- files that are missing, cut, misplaced

SHARDS = [("x", "x/c/0/0"), ("x", "x/c/2/0"), ("level", "level/c/1")]


def missing(file: Path) -> None:
    file.unlink()


def cut(nbytes: int) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        os.truncate(
            file, min(nbytes, file.stat().st_size - 1) if nbytes >= 0 else file.stat().st_size + nbytes
        )

    return change


def longer(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(bytes(64))


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def zeroed_chunks(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:64] + bytes(len(content) - 64 - 36) + content[-36:])


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_link(file: Path) -> None:
    aside = file.parents[3] / "aside"
    shutil.copy(file, aside)
    file.unlink()
    file.symlink_to(aside)


def a_link_to_its_folder(file: Path) -> None:
    aside = file.parents[3] / "aside"
    file.parent.rename(aside)
    file.parent.symlink_to(aside)


CHANGES: dict[str, Callable[[Path], None]] = {
    "missing": missing,
    "empty": cut(0),
    "cut in the header": cut(63),
    "cut to the header": cut(64),
    "cut by a byte": cut(-1),
    "longer": longer,
    "zeroed": zeroed,
    "zeroed chunks": zeroed_chunks,
    "a folder": a_folder,
    "a link": a_link,
    "a link to its folder": a_link_to_its_folder,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("field", "file"), SHARDS)
def test_a_damaged_shard_is_refused_and_named(lz4: Path, change: str, field: str, file: str) -> None:
    CHANGES[change](lz4 / file)
    layout = open_store(lz4).layout.fields[field]
    shard = int(file.split("/")[2])
    first, last = shard * layout.shard_samples, min((shard + 1) * layout.shard_samples, SAMPLES)
    for options in ({}, {"mmap": False}, {"checksums": "always"}):
        assert set(check_reads(lz4, **options)) == {field}
        with open_store(lz4, **options) as store, pytest.raises(DamagedStoreError) as error:
            store.read([first], (field,))
        check_message(
            error.value, lz4, f"field {field!r}", f"(samples {first}-", f"{field}/c/{shard}", "--repair"
        )
    damaged = damage_of(lz4)
    assert {damage.field for damage in damaged} == {field}
    assert file in {damage.file for damage in damaged}
    assert min(damage.start for damage in damaged if damage.file == file) == first
    assert max(damage.stop for damage in damaged if damage.file == file) == last


def exchange(one: Path, other: Path) -> None:
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)


@pytest.mark.parametrize("others", ["x/c/1/0", "y/c/0/0"])
def test_exchanged_shards_are_found(path: Path, others: str) -> None:
    with open_store(path) as store:
        same_size = store.manifest("x").nbytes[0] == store.manifest(others[0]).nbytes[int(others[4])]
    exchange(path / "x/c/0/0", path / others)
    assert set(check_reads(path)) == {"x", others[0]}
    assert {damage.file for damage in damage_of(path)} == {"x/c/0/0", others}
    if same_size:  # so that it is the header that told
        with open_store(path) as store, pytest.raises(DamagedStoreError) as error:
            store.read([0], ("x",))
        told = "shard 1 lies where shard 0 belongs" if others[0] == "x" else "another bake or field"
        check_message(error.value, path, told)


@pytest.mark.parametrize("field", ["x", "level"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_shard_of_another_store_is_found(raw: Path, tmp_path: Path, field: str, codec: str) -> None:
    """Of other keys, or of another layout."""
    other = baked(tmp_path / "other.zarr", arrays(values_of(3) if codec == "raw" else VALUES), codec)
    file = f"{field}/c/0" if field == "level" else f"{field}/c/0/0"
    if field == "level" and codec != "raw":
        return  # scalars are laid out alike under every codec: it is the same file
    shutil.copy(other / file, raw / file)
    assert set(check_reads(raw)) == {field}
    assert [damage.file for damage in damage_of(raw)] == [file]


@pytest.mark.parametrize("file", ["x/c/1/0", "level/c/1"])
def test_verify_finds_a_shard_of_the_same_keys_with_other_bytes(raw: Path, tmp_path: Path, file: str) -> None:
    """As another device or library may give them: header and CRCs are right, and of equal length.

    The CRC of the whole file would be the same: a piece that ends in its own CRC cancels out.
    """
    producer = arrays(VALUES)
    other = baked(tmp_path / "other.zarr", arrays(values_of(7), producer.keys["content"]), "raw")
    assert (other / file).stat().st_size == (raw / file).stat().st_size
    shutil.copy(other / file, raw / file)
    (damage,) = damage_of(raw)
    assert (damage.file, damage.start) == (file, 2 if file[0] == "x" else 4)
    assert "is recorded" in damage.found


def test_verify_finds_chunks_exchanged_within_a_shard(raw: Path) -> None:
    def change(index: NDArray[np.uint64], content: bytearray) -> None:
        spans = [slice(int(start), int(start + nbytes)) for start, nbytes in index]
        content[spans[0]], content[spans[1]] = content[spans[1]], content[spans[0]]

    rewritten(raw / "x/c/0/0", change)
    assert [damage.file for damage in damage_of(raw)] == ["x/c/0/0"]


@pytest.mark.parametrize(
    "file", ["manifest/x/nbytes/c/0", "manifest/x/crc32c/c/0", "manifest/x/statistics/c/0/0/0"]
)
@pytest.mark.parametrize(
    "change", ["missing", "empty", "cut by a byte", "longer", "zeroed", "a folder", "a link"]
)
def test_a_damaged_manifest_is_found(lz4: Path, file: str, change: str) -> None:
    CHANGES[change](lz4 / file)
    with open_store(lz4) as store:
        with pytest.raises(DamagedStoreError) as error:
            store.read([0], ("x",))
        check_message(error.value, lz4, file)
        assert store["y"][0].tobytes() == VALUES["y"][0].tobytes()
        (damage,) = store.verify().damaged
    assert (damage.field, damage.start, damage.stop) == ("x", 0, SAMPLES)


@pytest.mark.parametrize("change", ["missing", "empty", "cut by a byte", "longer", "zeroed", "a folder"])
def test_damaged_coordinates_are_found(lz4: Path, change: str) -> None:
    CHANGES[change](lz4 / "place/c/0")
    with open_store(lz4) as store:
        with pytest.raises(DamagedStoreError) as error:
            _ = store.coords
        check_message(error.value, lz4, "place/c/0")
        assert not store.verify()
    assert check_reads(lz4) == []


NODES = ["x/zarr.json", "place/zarr.json", "manifest/zarr.json", "manifest/x/nbytes/zarr.json"]
NONSENSE = ["", "[]", "null", "{", '{"a": NaN}', "[" * 100_000, '{"attributes": 1}', "\x00\x00", '"\\ud800"']


@pytest.mark.parametrize("node", NODES)
def test_damaged_metadata_of_a_node_is_found(lz4: Path, node: str) -> None:
    for text in NONSENSE:
        (lz4 / node).write_text(text)
        assert [damage.file for damage in damage_of(lz4)] == [node]
    for change in (missing, a_folder):
        (lz4 / node).exists() or (lz4 / node).write_text("{}")
        change(lz4 / node)
        assert [damage.file for damage in damage_of(lz4)] == [node]
    assert check_reads(lz4) == []  # what is believed is the sealed copy


@pytest.mark.parametrize("change", ["missing", "empty", "cut by a byte", "zeroed", "a folder"])
def test_a_damaged_root_is_refused(lz4: Path, change: str) -> None:
    CHANGES[change](lz4 / "zarr.json")
    with pytest.raises(REFUSED) as error:
        open_store(lz4)
    check_message(error.value, lz4)


@pytest.mark.parametrize("text", NONSENSE)
def test_a_root_of_nonsense_is_refused(lz4: Path, text: str) -> None:
    (lz4 / "zarr.json").write_text(text)
    with pytest.raises(REFUSED) as error:
        open_store(lz4)
    check_message(error.value, lz4)


def test_links_for_metadata_are_not_followed(lz4: Path, tmp_path: Path) -> None:
    for name in ("x/zarr.json", "zarr.json"):
        (lz4 / name).rename(tmp_path / "aside.json")
        (lz4 / name).symlink_to(tmp_path / "aside.json")
        if name == "x/zarr.json":
            assert [damage.file for damage in damage_of(lz4)] == [name]
            continue
        with pytest.raises(NotAStoreError, match="not a plain file") as error:
            open_store(lz4)
        check_message(error.value, lz4)


def test_a_file_cut_while_it_is_open(lz4: Path) -> None:
    """With pread; a map of a file that is cut ends the process, which is why there is ``mmap=False``."""
    with open_store(lz4, mmap=False, checksums="always") as store:
        store.read(slice(None))
        for name, file in (("x", "x/c/0/0"), ("level", "level/c/0")):
            os.truncate(lz4 / file, 70)
            with pytest.raises(DamagedStoreError, match="cut while it was open") as error:
                store.read([0], (name,))
            check_message(error.value, lz4, name)


# ---- what must be tried in a process of its own


def in_child(work: Callable[[], None]) -> None:
    """Run ``work`` in a child; a crash, an unforeseen error or waiting for ever fails."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    child.join()
    assert not alive, "it waits for ever"
    assert child.exitcode == 0


def test_a_fifo_in_place_of_any_file_is_refused_without_waiting(lz4: Path) -> None:
    def replace_each() -> None:
        for file in sorted(file for file in lz4.rglob("*") if file.is_file()):
            content = file.read_bytes()
            file.unlink()
            os.mkfifo(file)
            try:
                store = open_store(lz4)
            except REFUSED:
                assert file == lz4 / "zarr.json"
            else:
                with store:
                    assert not store.verify()
                    for name, wanted in VALUES.items():
                        with contextlib.suppress(DamagedStoreError):
                            assert store[name][:].tobytes() == wanted.tobytes()
            file.unlink()
            file.write_bytes(content)
        assert damage_of(lz4) == ()

    in_child(replace_each)


def test_blosc_chunks_of_chance_harm_nothing() -> None:
    """Their checksum may be right: whoever wrote them can compute it."""

    def decode_many() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (min(used + 256 * 1024**2, hard if hard > 0 else 2**62), hard))
        random = np.random.default_rng(5)
        around = np.full(4096 + 2 * 512, 0xA5, np.uint8)
        out = around[512:-512]
        for codec in ("lz4", "zstd"):
            for dtype in ("<f4", "|u1"):
                chain = Chain(codec, np.dtype(dtype))
                smooth = np.repeat(np.arange(64, dtype="u1"), 64).view(dtype)
                body = np.frombuffer(bytes(chain.encode(smooth)[0]), np.uint8)
                for _ in range(4000):
                    forged = body.copy()
                    places = random.integers(0, len(forged), random.integers(1, 5))
                    forged[places] = random.integers(0, 256, len(places))
                    if random.random() < 0.7:
                        forged[:16] = body[:16]  # past the checks of the header, into the decoder
                    with contextlib.suppress(CodecError):
                        chain.decode(np.concatenate([forged, np.zeros(4, np.uint8)]), out)
                    assert (around[:512] == 0xA5).all()
                    assert (around[-512:] == 0xA5).all()

    in_child(decode_many)


# ---- chunks that lie, with checksums to match


def rewritten(file: Path, change: Callable[[NDArray[np.uint64], bytearray], None]) -> None:
    """Change the index [chunk, (offset, nbytes)] and bytes of a shard of two chunks; checksums follow."""
    content = bytearray(file.read_bytes())
    index = np.frombuffer(bytes(content[-36:-4]), "<u8").reshape(2, 2).copy()
    change(index, content)
    content[-36:-4] = index.tobytes()
    content[-4:] = crc32c(index.tobytes()).to_bytes(4, "little")
    file.write_bytes(content)


def entry(offset: int | None, nbytes: int | None) -> Callable[[NDArray[np.uint64], bytearray], None]:
    def change(index: NDArray[np.uint64], _: bytearray) -> None:
        index[0] = (index[0, 0] if offset is None else offset, index[0, 1] if nbytes is None else nbytes)

    return change


ENTRIES = {
    "missing": (2**64 - 1, 2**64 - 1),
    "half missing": (2**64 - 1, None),
    "the other half": (None, 2**64 - 1),
    "in the header": (0, None),
    "beyond the end": (2**40, None),
    "into the index": (None, 2**20),
    "round the clock": (2**64 - 100, 200),
    "sum overflows": (64, 2**64 - 32),
    "negative": (2**63, 2**63),
    "no bytes": (None, 0),
    "three bytes": (None, 3),
    "a byte less": (None, 60),
    "shifted": (65, None),
}


@pytest.mark.parametrize("options", [{}, {"mmap": False}, {"checksums": "never"}], ids=str)
@pytest.mark.parametrize("lie", ENTRIES)
def test_index_entries_that_lie(path: Path, lie: str, options: dict[str, Any]) -> None:
    rewritten(path / "x/c/0/0", entry(*ENTRIES[lie]))
    if options.get("checksums") == "never" and lie == "shifted":
        return  # bytes that are believed by whoever asks for no checks
    with open_store(path, **options) as store, pytest.raises(DamagedStoreError) as error:
        store.read([0], ("x",))
    check_message(error.value, path, "field 'x'", "samples 0-", "x/c/0/0")
    damaged = damage_of(path, **options)
    assert {damage.file for damage in damaged} == {"x/c/0/0"}


HEADERS = {
    "more bytes": {"nbytes": 69},
    "a bomb": {"nbytes": 2**31 - 1},
    "fewer bytes": {"nbytes": 1},
    "none": {"nbytes": 0},
    "longer than it is": {"cbytes": 2**31},
    "shorter than it is": {"cbytes": 20},
    "huge blocks": {"blocksize": 2**31},
    "no blocks": {"blocksize": 0},
    "another type size": {"typesize": 8},
    "type size zero": {"typesize": 0},
    "another version": {"version": 3},
    "another format": {"flags": 0xE0},
    "snappy": {"flags": 0x40},
}
PARTS = ("version", "lz", "flags", "typesize", "nbytes", "blocksize", "cbytes")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("lie", HEADERS)
def test_blosc_headers_that_lie(whole: dict[str, Path], tmp_path: Path, codec: str, lie: str) -> None:
    path = Path(shutil.copytree(whole[codec], tmp_path / "train.zarr"))

    def change(index: NDArray[np.uint64], content: bytearray) -> None:
        start, nbytes = int(index[1, 0]), int(index[1, 1])
        parts = dict(zip(PARTS, BLOSC_HEADER.unpack_from(content, start), strict=True))
        assert parts["nbytes"] == 68
        content[start : start + 16] = BLOSC_HEADER.pack(*(parts | HEADERS[lie]).values())
        crc = crc32c(bytes(content[start : start + nbytes - 4]))
        content[start + nbytes - 4 : start + nbytes] = crc.to_bytes(4, "little")

    rewritten(path / "x/c/0/0", change)
    with (
        no_giant_allocation(),
        open_store(path) as store,
        pytest.raises(DamagedStoreError, match="Blosc") as error,
    ):
        store.read([1], ("x",))
    check_message(error.value, path, "field 'x', chunk 1 (samples 1-1)", "x/c/0/0")


# ---- metadata that lies, sealed again


@contextlib.contextmanager
def no_giant_allocation() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < HARMLESS_NBYTES
    finally:
        tracemalloc.stop()


def resealed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the root's metadata and seal it again, as an attacker would; the nodes' own files follow."""
    root = json.loads((path / "zarr.json").read_bytes())
    changed = change(root) or root
    with contextlib.suppress(Exception):  # what cannot be sealed is written as it is
        changed["attributes"]["parbake_seal"] = zarr_format._seal(changed)
    with contextlib.suppress(Exception):
        for name, node in changed["consolidated_metadata"]["metadata"].items():
            if not (path / name).resolve().is_relative_to(path):
                continue
            (path / name).mkdir(parents=True, exist_ok=True)
            (path / name / "zarr.json").write_text(json.dumps(node))
    (path / "zarr.json").write_text(json.dumps(changed))


def put(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    """Set one place of the root's metadata; an ellipsis stands for that of the nodes."""
    *keys, last, value = path_and_value

    def change(root: dict[str, Any]) -> None:
        place: Any = root["consolidated_metadata"]["metadata"] if keys[:1] == [...] else root
        for key in keys[1:] if keys[:1] == [...] else keys:
            place = place[key]
        place[last] = value

    return change


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(root: dict[str, Any]) -> None:
        nodes = root["consolidated_metadata"]["metadata"]
        nodes[new] = nodes.pop(old)
        for key in ("nbytes", "crc32c", "statistics") if old == "x" else ():
            nodes[f"manifest/{new}/{key}"] = nodes[f"manifest/{old}/{key}"]

    return change


def dropped(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(root: dict[str, Any]) -> None:
        for name in names:
            del root["consolidated_metadata"]["metadata"][name]

    return change


def of_samples(samples: int, *, consistent: bool) -> Callable[[dict[str, Any]], None]:
    """Another number of samples; ``consistent``: also in the shapes of the manifest."""

    def change(root: dict[str, Any]) -> None:
        root["attributes"]["parbake_samples"] = samples
        nodes = root["consolidated_metadata"]["metadata"]
        for name, per_shard in (("x", 2), ("y", 2), ("level", 4)):
            nodes[name]["shape"][0] = samples
            if consistent:
                for key in ("nbytes", "crc32c"):
                    shards = [-(-samples // per_shard)]
                    node = nodes[f"manifest/{name}/{key}"]
                    node["shape"] = node["chunk_grid"]["configuration"]["chunk_shape"] = shards
                node = nodes[f"manifest/{name}/statistics"]
                node["shape"][0] = node["chunk_grid"]["configuration"]["chunk_shape"][0] = -(-samples // 2)

    return change


def of_shape(length: int) -> Callable[[dict[str, Any]], None]:
    """Samples of another length, everywhere but in the data."""

    def change(root: dict[str, Any]) -> None:
        nodes = root["consolidated_metadata"]["metadata"]
        for name in ("x", "y"):
            nodes[name]["shape"][1] = length
            nodes[name]["chunk_grid"]["configuration"]["chunk_shape"][1] = length
            nodes[name]["codecs"][0]["configuration"]["chunk_shape"][1] = length
        nodes["place"]["shape"] = nodes["place"]["chunk_grid"]["configuration"]["chunk_shape"] = [length]

    return change


def of_chunks(chunk: int, shard: int) -> Callable[[dict[str, Any]], None]:
    def change(root: dict[str, Any]) -> None:
        node = root["consolidated_metadata"]["metadata"]["x"]
        node["chunk_grid"]["configuration"]["chunk_shape"][0] = shard
        node["codecs"][0]["configuration"]["chunk_shape"][0] = chunk

    return change


def of_objects(root: dict[str, Any]) -> None:
    """Pointers in place of doubles, all else in keeping."""
    node = root["consolidated_metadata"]["metadata"]["level"]
    node |= {"data_type": "object", "fill_value": 0}
    node["codecs"][0]["configuration"]["codecs"] = [{"name": "bytes"}, {"name": "crc32c"}]


def blosc_of(cname: Any) -> list[dict[str, Any]]:
    options = {"typesize": 4, "cname": cname, "clevel": 5, "shuffle": "shuffle", "blocksize": 0}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    return [little, {"name": "blosc", "configuration": options}, {"name": "crc32c"}]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


INNER = (..., "x", "codecs", 0, "configuration")
LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "2**61 samples": of_samples(2**61, consistent=False),
    "2**61 samples, consistently": of_samples(2**61, consistent=True),
    "10**12 samples, consistently": of_samples(10**12, consistent=True),
    "2**62 samples": of_samples(2**62, consistent=True),
    "a sample more than fits": of_samples(7, consistent=True),
    "no samples": of_samples(0, consistent=True),
    "fewer than none": of_samples(-5, consistent=True),
    "samples by half": put("attributes", "parbake_samples", 5.5),
    "samples of another field": put(..., "y", "shape", [4, 17]),
    "samples in words": put("attributes", "parbake_samples", "many"),
    "slabs of none": put("attributes", "parbake_slab_samples", 0),
    "slabs of 2**40": put("attributes", "parbake_slab_samples", 2**40),
    "other slabs": put("attributes", "parbake_slab_samples", 1),
    "long samples": of_shape(2**20),
    "samples of 2**40": of_shape(2**40),
    "samples of 2**64": of_shape(2**64),
    "empty samples": of_shape(0),
    "negative samples": of_shape(-17),
    "shape without chunks": put(..., "x", "shape", [5, 2**30]),
    "shape of text": put(..., "x", "shape", "5"),
    "shape of null": put(..., "x", "shape", None),
    "chunks of 2**30": of_chunks(2**30, 2**30),
    "shards of 2**31": of_chunks(1, 2**31),
    "shards of 2**30": of_chunks(1, 2**30),
    "chunks beyond shards": of_chunks(4, 2),
    "chunks that do not divide": of_chunks(2, 3),
    "empty chunks": of_chunks(0, 2),
    "negative chunks": of_chunks(-1, -2),
    "other chunks": of_chunks(1, 1),
    "objects": put(..., "x", "data_type", "object"),
    "objects in keeping": of_objects,
    "text": put(..., "x", "data_type", "<U4"),
    "records": put(..., "x", "data_type", "f4,f4"),
    "times": put(..., "x", "data_type", "datetime64"),
    "a data type of parts": put(..., "x", "data_type", {"name": "numpy.datetime64"}),
    "doubles": put(..., "x", "data_type", "float64"),
    "objects of coordinates": put(..., "place", "data_type", "object"),
    "a long coordinate": put(..., "place", "shape", [2**50]),
    "a coordinate of no dimension": renamed("place", "elsewhere"),
    "an array of no field": put(..., "aside", {"node_type": "array"}),
    "another codec": put(*INNER, "codecs", [{"name": "bytes"}, {"name": "pickle"}, {"name": "crc32c"}]),
    "zlib within Blosc": put(*INNER, "codecs", blosc_of("zlib")),
    "a codec in a list": put(*INNER, "codecs", blosc_of(["lz4"])),
    "no codecs": put(..., "x", "codecs", []),
    "codecs without crc": lambda root: root["consolidated_metadata"]["metadata"]["x"]["codecs"][0][
        "configuration"
    ]["codecs"].pop(),
    "the index in front": put(*INNER, "index_location", "start"),
    "the index unchecked": put(*INNER, "index_codecs", [{"name": "bytes"}]),
    "another separator": put(..., "x", "chunk_key_encoding", "configuration", "separator", "."),
    "a transformer": put(..., "x", "storage_transformers", [{"name": "elsewhere"}]),
    "another fill value": put(..., "x", "fill_value", 0.0),
    "a name that climbs": renamed("x", "../../x"),
    "an absolute name": renamed("x", "/etc"),
    "a name in a folder": renamed("x", "y/x"),
    "a name with a zero": renamed("x", "x\x00"),
    "a name with a line": renamed("x", "x\ny"),
    "an empty name": renamed("x", ""),
    "a dot": renamed("x", "."),
    "the manifest's name": lambda root: root["consolidated_metadata"]["metadata"].update(
        manifest=root["consolidated_metadata"]["metadata"]["x"]
    ),
    "dimensions of null": put(..., "x", "dimension_names", None),
    "a dimension of null": put(..., "x", "dimension_names", ["sample", None]),
    "too few dimensions": put(..., "x", "dimension_names", ["sample"]),
    "another sample dimension": put(..., "x", "dimension_names", ["time", "place"]),
    "units of numbers": put(..., "x", "attributes", "units", 5),
    "no manifest of a field": dropped("manifest/x/nbytes"),
    "no manifest": dropped("manifest"),
    "no fields": dropped("x", "y", "level"),
    "a manifest of 2**40": put(..., "manifest/x/nbytes", "shape", [2**40]),
    "a manifest that overflows": put(..., "manifest/x/statistics", "shape", [2**62, 4, 1]),
    "a manifest of objects": put(..., "manifest/x/nbytes", "data_type", "object"),
    "nodes in a list": put("consolidated_metadata", "metadata", []),
    "metadata in a list": put("consolidated_metadata", []),
    "metadata of text": put("consolidated_metadata", "metadata"),
    "a node of null": put(..., "x", None),
    "a node of no kind": put(..., "x", {}),
    "attributes in a list": put(..., "x", "attributes", []),
    "root attributes in a list": put("attributes", []),
    "no attributes": put("attributes", {}),
    "keys that are none": put("attributes", "parbake_keys", "[1]"),
    "keys not JSON": put("attributes", "parbake_keys", "{"),
    "keys of another digest": put("attributes", "parbake_digest", "0" * 64),
    "a field's keys in a list": put(..., "x", "attributes", "parbake_keys", "[]"),
    "a field's other digest": put(..., "x", "attributes", "parbake_digest", "0" * 64),
    "statistics not JSON": put(..., "x", "attributes", "statistics", "{"),
    "provenance in a list": put("attributes", "parbake_provenance", "[]"),
    "provenance so deep": put("attributes", "parbake_provenance", nested(900)),
    "attributes so deep": put("attributes", "deep", json.loads(nested(480))),
    "another format": put("attributes", "parbake_format", 2),
}


@pytest.mark.parametrize("lie", LIES)
def test_sealed_metadata_that_lies(raw: Path, lie: str) -> None:
    """Refused when opened, or at the latest when read or verified; nothing large is allocated."""
    resealed(raw, LIES[lie])
    with no_giant_allocation():
        try:
            store = open_store(raw)
        except REFUSED as error:
            check_message(error, raw)
            return
        with store:
            for name, wanted in VALUES.items():
                for index in ([0], slice(None)):
                    try:
                        found = store.read(index, (name,))[name]
                    except DamagedStoreError as error:
                        check_message(error, raw)
                    else:
                        assert found.tobytes() == wanted[index].tobytes()
            assert not store.verify()


def test_a_codec_within_blosc_that_is_not_ours(lz4: Path) -> None:
    resealed(lz4, put(*INNER, "codecs", blosc_of("zlib")))
    with pytest.raises(DamagedStoreError, match="codecs of 'x'"):
        open_store(lz4)


def test_the_seal_of_these_lies_is_right(raw: Path) -> None:
    """So that it is the parser that refuses them: what is honest and sealed again still opens."""
    resealed(raw, put(..., "x", "attributes", "long_name", "what came in"))
    assert check_reads(raw) == []
    resealed(raw, lambda root: root["attributes"].update(title="sealed with a title"))
    with open_store(raw) as store:
        assert not store.edited
        assert store.fields["x"].description == "what came in"
        assert store.verify()


def test_a_lie_without_a_seal_is_refused(raw: Path) -> None:
    root = json.loads((raw / "zarr.json").read_bytes())
    for change in (
        put("attributes", "parbake_samples", 4),
        put(..., "x", "attributes", "units", "mV"),
        put(..., "x", "data_type", "int32"),
        put("attributes", "parbake_keys", root["attributes"]["parbake_keys"].replace("1", "2", 1)),
        put("attributes", "parbake_new", 1),
        put("attributes", "parbake_seal", "[]"),
        put("attributes", "parbake_seal", None),
        put(..., "x", "attributes", "parbake_keys", "{}"),
        dropped("y"),
    ):
        lying = copy.deepcopy(root)
        change(lying)
        assert lying != root
        (raw / "zarr.json").write_text(json.dumps(lying))
        with pytest.raises(DamagedStoreError, match="does not match its seal"):
            open_store(raw)


@pytest.mark.parametrize("attribute", ["long_name", "title", "comment"])
def test_a_description_may_be_edited(raw: Path, attribute: str) -> None:
    root = json.loads((raw / "zarr.json").read_bytes())
    root["consolidated_metadata"]["metadata"]["x"]["attributes"][attribute] = "somebody's words"
    (raw / "zarr.json").write_text(json.dumps(root, indent=2))
    with open_store(raw) as store:
        assert store.edited
        assert [damage.found for damage in store.verify().damaged] == ["description edited since the bake"]
    assert check_reads(raw) == []


def test_metadata_too_large_to_be_metadata(raw: Path) -> None:
    for name in ("x/zarr.json", "zarr.json"):
        os.truncate(raw / name, 2**40)  # sparse: it takes no room
        with no_giant_allocation():
            if name == "x/zarr.json":
                assert [damage.file for damage in damage_of(raw)] == [name]
                continue
            with pytest.raises(NotAStoreError, match="bytes where at most"):
                open_store(raw)


def test_data_files_of_a_terabyte(raw: Path) -> None:
    for file, field in (("x/c/0/0", "x"), ("manifest/y/nbytes/c/0", "y"), ("level/c/1", "level")):
        os.truncate(raw / file, 2**40)
        with no_giant_allocation(), open_store(raw) as store:
            with pytest.raises(DamagedStoreError, match=r"1,?099,?511,?627,?776 bytes where"):
                store.read([0, 4], (field,))
            assert field in {damage.field for damage in store.verify().damaged}
    os.truncate(raw / "place/c/0", 2**40)
    with no_giant_allocation(), open_store(raw) as store, pytest.raises(DamagedStoreError):
        _ = store.coords


def test_last_shard_of_a_shorter_store_in_place_of_a_longer_one_is_found(tmp_path: Path) -> None:
    """Same keys, same number of chunks, same size: only the header tells how many samples are in it."""

    def values(count: int) -> Producer:
        schema = {"x": Field((64,), np.float32, ("time",))}
        return from_function(lambda i: np.full(64, i, np.float32), count, schema=schema)

    shorter, longer = tmp_path / "shorter.zarr", tmp_path / "longer.zarr"
    bake(values(250), shorter, codec="raw", progress=False).close()
    bake(values(256), longer, codec="raw", progress=False).close()
    assert (shorter / "x/c/0/0").stat().st_size == (longer / "x/c/0/0").stat().st_size
    shutil.copy(shorter / "x/c/0/0", longer / "x/c/0/0")
    with open_store(longer) as store, pytest.raises(DamagedStoreError, match="holds 250 samples where 256"):
        store["x"][0]
