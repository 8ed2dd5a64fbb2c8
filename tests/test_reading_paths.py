"""The ways of reading many samples: gathered from maps, decoded and kept, windows of them, in threads."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import resource
import runpy
import signal
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bakery import Loaf, same, tiny_slabs
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, RecipeError
from parbake.loaders.block_shuffle import BlockShuffle
from parbake.loaders.dataset import StoreDataset
from parbake.producers.bake import bake
from parbake.producers.computed import ComputedStore
from parbake.producers.function import FunctionProducer
from parbake.store import opened, reader
from parbake.store.codecs import Chain
from parbake.store.gather import gather
from parbake.store.index import Window
from parbake.store.layout import Field
from parbake.store.opened import ChunkAddresses, FileSpan, MappedFile, PreadFile, Shard, open_shards
from parbake.store.store import Store, open_store

SAMPLES = 61
VALUES = Loaf(SAMPLES).values()
SIZES = {"wave": 24, "count": 40}
CODECS = ("raw", "lz4", "zstd")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("paths")
    made = {codec: folder / f"{codec}.zarr" for codec in CODECS}
    with pytest.MonkeyPatch.context() as patch:
        tiny_slabs(patch)
        for codec, path in made.items():
            bake(Loaf(SAMPLES), path, codec=codec, progress=False).close()
    return made


@pytest.fixture
def lz4(paths: dict[str, Path]) -> Iterator[Store]:
    with open_store(paths["lz4"]) as store:
        yield store


@pytest.fixture
def raw(paths: dict[str, Path]) -> Iterator[Store]:
    with open_store(paths["raw"]) as store:
        yield store


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The payloads that are decoded from now on."""
    seen: list[bytes] = []
    real = Chain.decode

    def decode(self: Chain, payload: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        seen.append(payload.tobytes())
        real(self, payload, out)

    monkeypatch.setattr(Chain, "decode", decode)
    return seen


# ---- every way gives the same samples


@pytest.fixture(scope="module")
def opened_stores(paths: dict[str, Path]) -> Iterator[list[Store]]:
    """Every codec and option; caches of no, of two or three and of all chunks."""
    stores = [
        open_store(path, mmap=mmap, checksums=checksums, cache_nbytes=cache_nbytes)
        for path in paths.values()
        for mmap in (True, False)
        for checksums in ("first", "always")
        for cache_nbytes in (0, 2_000, 1 << 20)
    ]
    yield stores
    for store in stores:
        store.close()


@settings(deadline=None, max_examples=25)
@given(
    index=st.lists(st.integers(0, SAMPLES - 1), max_size=70) | st.permutations(range(SAMPLES)),
    threads=st.sampled_from([1, 3]),
)
def test_all_ways_give_the_same_samples(opened_stores: list[Store], index: list[int], threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_THREAD_NBYTES", 1)
        for store in opened_stores:
            found = store.read(index, threads=threads)
            assert all(same(found[name], VALUES[name][index]) for name in VALUES)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), threads=st.sampled_from([1, 3]))
def test_windows_are_those_that_numpy_cuts(opened_stores: list[Store], data: Any, threads: int) -> None:
    index = data.draw(st.lists(st.integers(0, SAMPLES - 1), max_size=30))
    length = data.draw(st.integers(1, 24))
    starts = data.draw(st.lists(st.integers(0, 24 - length), min_size=len(index), max_size=len(index)))
    windows = {name: Window(0, length, np.array(starts, np.int64)) for name in SIZES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_THREAD_NBYTES", 1)
        patch.setattr(reader, "_SCRATCH_NBYTES", 500)
        for store in opened_stores:
            found = store.read(index, windows=windows, threads=threads)
            assert same(found["f0"], VALUES["f0"][index])
            for name in SIZES:
                cut = [
                    VALUES[name][i, start : start + length] for i, start in zip(index, starts, strict=True)
                ]
                wanted = np.array(cut, VALUES[name].dtype).reshape(
                    len(index), length, *VALUES[name].shape[2:]
                )
                assert same(found[name], wanted)


def test_windows_along_a_later_axis(opened_stores: list[Store]) -> None:
    windows = {"wave": Window(1, 1, np.array([1, 0, 1]))}
    wanted = np.stack([VALUES["wave"][5, :, 1:], VALUES["wave"][9, :, :1], VALUES["wave"][5, :, 1:]])
    computed = ComputedStore(Loaf(SAMPLES))
    for store in (*opened_stores, computed):
        assert same(store.read([5, 9, 5], ("wave",), windows=windows)["wave"], wanted)


def test_a_window_of_a_raw_field_is_cut_from_the_map_itself(
    raw: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the part is read."""
    seen: list[NDArray[Any]] = []
    real = Window.cut

    def cut(self: Window, samples: Any, out: NDArray[Any]) -> None:
        seen.extend(samples := list(samples))
        real(self, samples, out)

    monkeypatch.setattr(Window, "cut", cut)
    raw.read([7, 40], ("wave",), windows={"wave": Window(0, 3, np.array([0, 5]))})
    assert len(seen) == 2
    assert not any(array.flags.writeable or array.flags.owndata for array in seen)


@given(st.data())
def test_gather_is_an_index_over_memory(data: Any) -> None:
    nbytes = data.draw(st.integers(1, 40))
    memory = np.random.default_rng(0).integers(0, 256, 1_000, np.uint8)
    offsets = data.draw(st.lists(st.integers(0, 1_000 - nbytes), min_size=1, max_size=50))
    places = data.draw(st.permutations(range(len(offsets))))
    rows = np.zeros((len(offsets), nbytes), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parbake.store.gather._PIECE_NBYTES", data.draw(st.integers(1, 400)))
        gather(memory.ctypes.data + np.array(offsets, np.int64), rows, np.array(places, np.int64))
    wanted = np.stack([memory[offset : offset + nbytes] for offset in offsets])
    assert (rows[places] == wanted).all()


# ---- decoded once, kept within bounds


def test_what_was_decoded_is_not_decoded_again(lz4: Store, decodes: list[bytes]) -> None:
    for sample in range(SAMPLES):
        lz4.read([sample], ("wave", "count"))
    assert max(Counter(decodes).values()) == 1
    before = len(decodes)
    lz4.read(np.arange(SAMPLES)[::-3], ("wave", "count"))
    assert len(decodes) == before


def test_scalars_are_never_decoded(lz4: Store, decodes: list[bytes]) -> None:
    lz4.read([3, 60, 17], ("f0", "level"))
    assert not decodes


def test_whole_chunks_are_decoded_into_their_place(lz4: Store, decodes: list[bytes]) -> None:
    lz4.read(slice(0, 60), ("count",))
    lz4.read([0], ("count",))
    assert Counter(Counter(decodes).values()) == {1: 14, 2: 1}  # what was read whole is not kept


def test_least_recently_used_chunks_give_way(paths: dict[str, Path], decodes: list[bytes]) -> None:
    twelve_samples = 12 * (192 + 80)  # three chunks of count, six of wave
    with open_store(paths["lz4"], cache_nbytes=twelve_samples) as store:
        for chunk in (0, 1, 2, 0, 3, 0, 1):  # 3 takes the place of 1
            store.read([4 * chunk], ("count",))
    assert list(Counter(decodes).values()) == [1, 2, 1, 1]


def test_an_epoch_of_blocks_decodes_each_chunk_once(lz4: Store, decodes: list[bytes]) -> None:
    dataset = StoreDataset(lz4, fields=("count",))
    order = BlockShuffle(dataset, batch_size=4, span=3)
    lz4.reader.cache_nbytes = 0
    lz4.reserve(order.order.span * order.order.block)
    samples = list(order)
    for start in range(0, SAMPLES, 4):
        dataset.__getitems__(samples[start : start + 4])
    # a batch may reach into the next run, whose chunks then push out what the last samples of this one need
    assert len(decodes) <= 16 + order.order.runs
    assert len(set(decodes)) == 16


def test_more_than_is_kept_is_said(lz4: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parbake.store.store.RESERVED_NBYTES_MAX", 4_000)
    lz4.reader.cache_nbytes = 0
    lz4.reserve(4)
    with pytest.warns(UserWarning, match="decoded several times") as said:
        lz4.reserve(SAMPLES)
    assert "\n" not in str(said[0].message)
    assert lz4.reader.cache_nbytes == 4_000


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_a_damaged_chunk_is_never_kept_as_right(codec: str, tmp_path: Path, tiny: None) -> None:
    with bake(Loaf(SAMPLES), tmp_path / "damaged.zarr", codec=codec, progress=False) as store:
        file = store.path / store.reader.maps["count"].file_name(0)
        start = int(store.reader.maps["count"].scan(store.reader.source("count", 0), 0).offset[1])
    data = bytearray(file.read_bytes())
    data[start + 20] ^= 1
    file.write_bytes(data)
    with open_store(tmp_path / "damaged.zarr") as store:
        for _ in range(2):
            with pytest.raises(DamagedStoreError, match=r"'count', chunk 1 \(samples 4-7\)"):
                store.read([0, 5, 9], ("count",))
        assert same(store.read([0, 9], ("count",))["count"], VALUES["count"][[0, 9]])


def test_files_closed_under_a_gather_leave_no_address_behind(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "OPEN_FILES_MAX", 2)
    with open_store(paths["raw"]) as store:
        for seed in range(50):
            index = np.random.default_rng(seed).integers(0, SAMPLES, 9)
            found = store.read(index)
            assert all(same(found[name], VALUES[name][index]) for name in VALUES)
            parts = [part for [part] in store.reader._parts.values()]
            assert sum(len(part._addresses._held) for part in parts) <= 2


def test_a_gather_from_more_files_than_may_be_open(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "OPEN_FILES_MAX", 2)
    monkeypatch.setattr(reader, "OPEN_FILES_MAX", 2)
    alive: weakref.WeakSet[MappedFile] = weakref.WeakSet()
    most = 0
    real = MappedFile.__init__

    def init(self: MappedFile, span: FileSpan) -> None:
        nonlocal most
        real(self, span)
        alive.add(self)
        most = max(most, len(alive))

    monkeypatch.setattr(MappedFile, "__init__", init)
    index = np.random.default_rng(0).integers(0, SAMPLES, 90)
    with open_store(paths["raw"]) as store:
        for _ in range(2):
            assert same(store.read(index, ("count",))["count"], VALUES["count"][index])
    assert most <= 2 + 2 + 1  # open, held by the gather, and the one that is opened


@pytest.mark.parametrize(
    ("axis", "start"), [(0, 22), (0, -1), (2, 0), (-1, 0)], ids=["end", "begin", "axis", "last axis"]
)
def test_windows_beyond_a_sample_are_refused(raw: Store, axis: int, start: int) -> None:
    """A slice of what is left, or of another place, would fill the row all the same."""
    for store in (raw, ComputedStore(Loaf(SAMPLES))):
        with pytest.raises(IndexError, match="field 'wave': ") as caught:
            store.read([3, 4], ("wave",), windows={"wave": Window(axis, 3, np.array([0, start]))})
        assert "\n" not in str(caught.value)


def test_too_many_open_files_are_no_damage(raw: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    raw.read([0], ("wave",))
    real = os.open

    def none_left(name: Any, *args: Any, **options: Any) -> int:
        if "dir_fd" in options:
            raise OSError(errno.EMFILE, "Too many open files", name)
        return real(name, *args, **options)

    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        raw.read([60], ("wave",))


def test_a_store_that_another_thread_closes_in_the_middle(
    raw: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.read([0], ("wave",))
    real = os.stat

    def closed(*args: Any, **options: Any) -> os.stat_result:
        raw.contents.files.close()
        return real(*args, **options)

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(ValueError, match="the store is closed"):
        raw.read([60], ("wave",))


def in_fork(read: Callable[[], bytes]) -> bytes:
    """What a forked child reads, if it does not wait for ever."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=lambda: there.send(read()))
    child.start()
    found = here.recv() if here.poll(60) else b"waits for ever"
    child.kill()
    child.join()
    return bytes(found)


def in_threads(work: Callable[[int], None], count: int) -> list[BaseException]:
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("codec", CODECS)
def test_threads_share_caches_and_maps(
    paths: dict[str, Path], codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "OPEN_FILES_MAX", 3)
    monkeypatch.setattr(reader, "_THREAD_NBYTES", 1)
    with open_store(paths[codec], cache_nbytes=3_000) as store:

        def work(seed: int) -> None:
            random = np.random.default_rng(seed)
            for _ in range(30):
                index = random.integers(0, SAMPLES, 11)
                found = store.read(index, threads=1 + seed % 3)
                assert all(same(found[name], VALUES[name][index]) for name in VALUES)

        assert in_threads(work, 6) == []


def test_an_error_in_a_thread_reaches_the_caller(lz4: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_THREAD_NBYTES", 1)
    real = Chain.decode

    def decode(self: Chain, payload: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("no room in this thread")
        real(self, payload, out)

    monkeypatch.setattr(Chain, "decode", decode)
    with pytest.raises(MemoryError, match="in this thread"):
        lz4.read([0, 10, 20, 30, 40, 50], ("wave",), threads=3)


def test_an_interrupted_read_waits_for_its_threads(lz4: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """They write into memory that the caller is about to use for something else."""
    monkeypatch.setattr(reader, "_THREAD_NBYTES", 1)
    inside, ended = threading.Event(), []
    real = Chain.decode

    def decode(self: Chain, payload: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            for _ in range(2):  # while it is read, and while the threads are waited for
                signal.raise_signal(signal.SIGINT)
                interrupted.acquire(timeout=1)
            ended.append(1)
        else:
            inside.wait(60)
        real(self, payload, out)

    def interrupt(*_: object) -> None:
        interrupted.release()
        raise KeyboardInterrupt

    interrupted = threading.Semaphore(0)
    monkeypatch.setattr(Chain, "decode", decode)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            lz4.read([0, 30], ("wave",), threads=2)
        assert ended == [1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_fork_while_a_thread_closes_a_file(paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The child knows no address of a map that it does not hold as open."""
    inside, forked = threading.Event(), threading.Event()
    real = ChunkAddresses.forget

    def forget(self: ChunkAddresses, shard: Shard) -> None:
        if not inside.is_set():
            inside.set()
            forked.wait(1)
        real(self, shard)

    def strays() -> list[int]:
        with open_shards.lock:
            known = store.reader._parts["count"][0]._addresses
            still = list(open_shards._shards.values())
            return [number for number, shard in known._held.items() if shard not in still]

    with open_store(paths["raw"]) as store:
        store.read(range(SAMPLES), ("count",))
        monkeypatch.setattr(opened, "OPEN_FILES_MAX", 2)
        monkeypatch.setattr(ChunkAddresses, "forget", forget)
        thread = threading.Thread(target=lambda: store.read([0], ("wave",)))
        thread.start()
        inside.wait(60)
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=lambda: there.send(strays()))
        child.start()
        forked.set()
        found = here.recv() if here.poll(60) else "waits for ever"
        child.join()
        thread.join()
        assert found == []


def test_a_fork_while_a_thread_computes() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def trap(start: int, stop: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            go_on.wait(60)

    store = ComputedStore(Loaf(SAMPLES, trap=trap))
    thread = threading.Thread(target=lambda: store.read([0]))
    thread.start()
    inside.wait(60)
    found = in_fork(lambda: store.read([1])["count"].tobytes())
    go_on.set()
    thread.join()
    assert found == VALUES["count"][[1]].tobytes()


def test_a_fork_while_a_thread_decodes(lz4: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child waits for nobody: the thread that holds the lock is not in it."""
    inside, go_on = threading.Event(), threading.Event()
    real = Chain.decode

    def decode(self: Chain, payload: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            go_on.wait(60)
        real(self, payload, out)

    monkeypatch.setattr(Chain, "decode", decode)
    thread = threading.Thread(target=lambda: lz4.read([0], ("count",)))
    thread.start()
    inside.wait()
    found = in_fork(lambda: lz4.read([1], ("count",))["count"].tobytes())
    go_on.set()
    thread.join()
    assert found == VALUES["count"][[1]].tobytes()


def test_several_threads_are_the_first_to_read_after_a_fork(
    lz4: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them waits for a lock that a thread of the parent held."""
    lz4.read([0], ("count",))
    monkeypatch.setattr(lz4.reader, "_process", -1)  # as in a child
    second = threading.Event()
    real = reader.threading.local

    def local() -> Any:
        second.wait(1)  # the other thread has time to pass
        return real()

    def read(_: int) -> None:
        lz4.read([9], ("count",))
        second.set()

    with lz4.reader._decoded[lz4.reader._parts["count"][0]]._lock, monkeypatch.context() as patch:
        patch.setattr(reader.threading, "local", local)
        threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


def test_what_was_decoded_may_be_dropped_at_any_moment(lz4: Store) -> None:
    """By ``reserve`` or ``close`` in another thread."""

    class Dropped(dict[str, Any]):
        def __contains__(self, name: object) -> bool:
            found = super().__contains__(name)
            self.clear()  # right after it was looked for
            return found

    lz4.reader._decoded = Dropped()
    for sample in (3, 3, 50):
        assert same(lz4.read([sample], ("count",))["count"], VALUES["count"][[sample]])


@pytest.mark.parametrize("checksums", ["first", "always"])
def test_the_bytes_that_were_checked_are_those_decoded(
    paths: dict[str, Path], checksums: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a map each look at a file may give other bytes."""
    gets: list[tuple[int, int]] = []
    real = PreadFile.get

    def get(self: PreadFile, start: int, stop: int) -> NDArray[np.uint8]:
        gets.append((start, stop))
        return real(self, start, stop)

    with open_store(paths["lz4"], mmap=False, checksums=checksums) as store:
        store.will_need([5], ("count",))
        monkeypatch.setattr(PreadFile, "get", get)
        store.read([5], ("count",))
        assert len(gets) == 1


# ---- memory


def private_nbytes() -> int:
    """Memory that this process alone has and that is no copy of a file."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """80 MB of samples of 4 KiB, that compress to almost nothing, and a scalar."""
    folder = tmp_path_factory.mktemp("rows")
    schema = {"row": Field((1024,), "f4", ("place",)), "level": Field((), "f4", ())}

    def values(index: int) -> dict[str, Any]:
        return {"row": np.full(1024, index % 997, np.float32), "level": np.float32(index)}

    producer = FunctionProducer(values, 20_000, schema, {}, visible=False)
    made = {codec: folder / f"{codec}.zarr" for codec in ("raw", "lz4")}
    for codec, path in made.items():
        bake(producer, path, codec=codec, batch_size=512, progress=False).close()
    return made


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_fifty_thousand_random_reads_take_little_memory(rows: dict[str, Path], codec: str) -> None:
    random = np.random.default_rng(0)
    with open_store(rows[codec]) as store:
        out = {"row": np.zeros((64, 1024), np.float32), "level": np.zeros(64, np.float32)}
        store.read(range(64), out=out)
        before = private_nbytes()
        for _ in range(50_000 // 64 + 1):
            index = random.integers(0, 20_000, 64)
            store.read(index, out=out)
            assert (out["row"][:, 1023] == index % 997).all()
        assert private_nbytes() - before < 50e6


# ---- what will be read next


def test_only_what_was_not_read_yet_is_asked_for(lz4: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(MappedFile, "will_need", lambda _, start, stop: asked.append(start))
    field = lz4.reader.maps["count"]
    first, last = (field.scan(lz4.reader.source("count", shard), shard).offset for shard in (0, 7))
    lz4.will_need([5, 60, 5], ("count",))
    assert asked == [first[1], last[1]]
    lz4.read([60, 0, 5], ("count",))  # a read, too, asks for all its chunks before it waits for the first
    assert asked == [first[1], last[1], first[0]]
    lz4.will_need([0, 5, 60], ("count",))
    assert len(asked) == 3


@pytest.mark.parametrize("mmap", [True, False])
def test_the_kernel_takes_the_hint(paths: dict[str, Path], mmap: bool) -> None:
    with open_store(paths["lz4"], mmap=mmap) as store:
        store.will_need(range(SAMPLES))
        assert same(store.read([60], ("wave",))["wave"], VALUES["wave"][[60]])


@pytest.mark.parametrize("mmap", [True, False])
def test_systems_that_take_no_hints(
    paths: dict[str, Path], mmap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has no posix_fadvise and counts the faults of a process only."""
    monkeypatch.delattr(os, "posix_fadvise")
    monkeypatch.delattr(resource, "RUSAGE_THREAD")
    found = runpy.run_path(reader.__file__)
    monkeypatch.setattr("parbake.store.store.Reader", found["Reader"])
    with open_store(paths["lz4"], mmap=mmap) as store:
        for _ in range(2):
            assert same(store.read([60], ("wave",))["wave"], VALUES["wave"][[60]])


def test_options_that_cannot_be(paths: dict[str, Path], raw: Store) -> None:
    for nbytes in (None, 1e6, -1):
        with pytest.raises(RecipeError, match="cache_nbytes="):
            open_store(paths["lz4"], cache_nbytes=nbytes)  # type: ignore[arg-type]
    window = {"count": Window(0, 3, np.array([0]))}
    with pytest.raises(RecipeError, match="view=True reads nothing"):
        raw.read([0], ("count",), windows=window, view=True)


def test_room_is_shared_by_the_fields_that_are_read(lz4: Store, decodes: list[bytes]) -> None:
    lz4.reader.cache_nbytes = 0
    lz4.reserve(SAMPLES, ("count",))
    for sample in range(SAMPLES):
        lz4.read([sample], ("count",))
    assert len(decodes) == 16
