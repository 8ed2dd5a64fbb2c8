"""Reading: any index, any options, any process, and a store that is replaced meanwhile."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bakery import same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parbake.errors import (
    DamagedStoreError,
    NotAStoreError,
    RecipeError,
    StaleStoreError,
    StoreNotFoundError,
    StoreReplacedError,
)
from parbake.producers.bake import bake
from parbake.producers.convert import convert
from parbake.producers.function import FunctionProducer
from parbake.store import layout as layouts
from parbake.store import opened
from parbake.store.index import normalised_index
from parbake.store.layout import Field
from parbake.store.store import Store, open_store

SAMPLES = 29
CODECS = ("raw", "lz4", "zstd")
SUFFIXES = (".zarr", ".zarr.zip", ".h5")
FIELDS = {
    "x": Field((7, 3), "f8", ("time", "channel")),
    "big": Field((31,), ">f4", ("place",)),
    "mask": Field((5, 2, 9), "?", ("one", "two", "three")),
    "level": Field((), "f4", ()),
    "number": Field((), ">i2", ()),
    "vector": Field((3,), "f8", ("axis",)),
}


def values_of(seed: int) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    return {
        name: (random.normal(size=(SAMPLES, *field.shape)) * 99).astype(field.dtype)
        if field.dtype.kind != "b"
        else random.random((SAMPLES, *field.shape)) < 0.5
        for name, field in FIELDS.items()
    }


def arrays(values: Mapping[str, NDArray[Any]], fields: Mapping[str, Field] = FIELDS) -> FunctionProducer:
    """A producer of arrays that are there already, known by their content."""
    keys = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in values.items()}
    samples = len(next(iter(values.values())))
    return FunctionProducer(
        lambda i: {name: array[i] for name, array in values.items()}, samples, fields, keys, visible=False
    )


VALUES = values_of(1)
NATIVE = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in VALUES.items()}
OTHERS = values_of(2)


def baked(path: Path, values: Mapping[str, NDArray[Any]] = VALUES, **options: Any) -> Path:
    """A store of several small shards and chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "SHARD_NBYTES", 8 * 168)  # eight samples of x
        patch.setattr(layouts, "CHUNK_NBYTES", 400)  # two of x, three of big, four of mask
        patch.setattr(layouts, "SLAB_SAMPLES_MAX", 8)
        patch.setattr(layouts, "SCALAR_CHUNK_SAMPLES", 8)
        patch.setattr(layouts, "SCALAR_SHARD_SAMPLES", 16)
        bake(arrays(values), path, progress=False, **options).close()
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reader")
    return {codec: baked(folder / f"{codec}.zarr", codec=codec) for codec in CODECS}


@pytest.fixture(scope="module", params=[f"{codec}{suffix}" for suffix in SUFFIXES for codec in CODECS])
def path(request: pytest.FixtureRequest, paths: dict[str, Path]) -> Path:
    """Each container, each codec."""
    codec, _, suffix = request.param.partition(".")
    target = paths[codec].with_suffix(f".{suffix}")
    if not target.exists():
        convert(paths[codec], target, progress=False).close()
    return target


@pytest.fixture(scope="module")
def store(path: Path) -> Iterator[Store]:
    with open_store(path) as store:
        yield store


@pytest.fixture
def raw(paths: dict[str, Path]) -> Iterator[Store]:
    with open_store(paths["raw"]) as store:
        yield store


@pytest.fixture
def mine(paths: dict[str, Path], tmp_path: Path) -> Path:
    """A store of this test's own, to be changed."""
    return Path(shutil.copytree(paths["lz4"], tmp_path / "mine.zarr"))


# ---- any index

numbers = st.integers(-SAMPLES, SAMPLES - 1)
ends = st.none() | st.integers(-2 * SAMPLES, 2 * SAMPLES)
slices = st.builds(slice, ends, ends, st.none() | st.integers(-9, 9).filter(bool))
masks = st.lists(st.booleans(), min_size=SAMPLES, max_size=SAMPLES)
lists = st.lists(numbers, max_size=40)
INTEGERS = ("i1", "i2", "i8", ">i4")
indices = st.one_of(
    lists,
    slices,
    masks,
    masks.map(np.array),
    lists.map(lambda index: tuple(np.int32(i) for i in index)),
    st.builds(lambda index, dtype: np.array(index, dtype), lists, st.sampled_from(INTEGERS)),
    st.lists(st.integers(0, SAMPLES - 1)).map(lambda index: np.array(index, "u8")),
    st.builds(range, st.integers(0, SAMPLES), st.integers(0, SAMPLES), st.integers(1, 5)),
    st.builds(range, st.integers(0, SAMPLES - 1), st.integers(0, SAMPLES), st.integers(-5, -1)),
    st.permutations(range(SAMPLES)),
)


def as_numpy(index: Any) -> Any:
    """What picks the same samples from an array."""
    if isinstance(index, slice):
        return index
    array = np.asarray(index)
    return array.astype(np.int64) if array.size == 0 else array


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=indices)
def test_read_gives_what_numpy_picks(store: Store, index: Any) -> None:
    found = store.read(index)
    assert list(found) == list(store.fields)
    for name, array in found.items():
        assert same(array, NATIVE[name][as_numpy(index)])
        assert array.flags.writeable
        assert array.flags.c_contiguous


@settings(deadline=None)
@given(index=indices)
def test_an_index_is_numpys_own(index: Any) -> None:
    found = normalised_index(index, SAMPLES)
    assert found.dtype == np.int64
    assert same(found, np.arange(SAMPLES)[as_numpy(index)])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=lists, names=st.lists(st.sampled_from(sorted(FIELDS)), unique=True))
def test_only_the_fields_asked_for_in_their_order(store: Store, index: list[int], names: list[str]) -> None:
    found = store.read(index, names)
    assert list(found) == names
    assert all(same(found[name], NATIVE[name][as_numpy(index)]) for name in names)


BEYOND = (
    [SAMPLES],
    [-SAMPLES - 1],
    [0, 1, SAMPLES],
    range(SAMPLES + 1),
    np.array([2**64 - 1], np.uint64),  # -1 when cast
    [2**63],
    np.array([-(2**63)]),
    [True] * (SAMPLES + 1),
    [True] * (SAMPLES - 1),
)


@pytest.mark.parametrize("index", BEYOND, ids=str)
def test_beyond_the_samples_is_an_index_error(raw: Store, index: Any) -> None:
    with pytest.raises(IndexError):
        raw.read(index)
    with pytest.raises(IndexError):
        raw["x"][index]


@pytest.mark.parametrize(
    "index", [3, 1.5, [1.0], ["1"], "1", None, [[1, 2]], [None], np.ones((2, 2), bool)], ids=str
)
def test_what_is_no_index_is_a_type_error(raw: Store, index: Any) -> None:
    with pytest.raises(TypeError):
        raw.read(index)


def test_a_view_of_fewer_samples_ends_there(raw: Store) -> None:
    few = raw.first(11)
    assert (few.samples, few.stored_samples, len(few["x"])) == (11, SAMPLES, 11)
    assert same(few["x"][:], NATIVE["x"][:11])
    assert same(few.read([-1])["level"], NATIVE["level"][[10]])
    assert same(np.asarray(few["number"]), NATIVE["number"][:11])
    with pytest.raises(IndexError, match="sample 11 of a store of 11"):
        few.read([11])
    with pytest.raises(IndexError):
        few.read(np.ones(SAMPLES, bool))
    assert few.statistics["level"]["max"] == NATIVE["level"][:11].max()
    with pytest.raises(IndexError):
        raw.first(SAMPLES + 1)


def test_an_unknown_field_is_named_with_those_there_are(raw: Store) -> None:
    with pytest.raises(RecipeError, match=r"no field 'y'; there are .*level"):
        raw.read([0], ["x", "y"])
    with pytest.raises(KeyError):
        raw["y"]


# ---- a field, indexed as NumPy's arrays are

inner = st.one_of(
    st.integers(-3, 2), st.builds(slice, st.integers(-3, 3), st.none()), st.just(Ellipsis), st.none()
)
picks = st.one_of(
    numbers, numbers.map(np.int16), slices, st.lists(numbers, min_size=1, max_size=9), masks.map(np.array)
)
tuples = st.tuples(picks) | st.tuples(picks, inner) | st.tuples(picks, st.integers(-7, 6), inner)


def legal(index: Any) -> bool:
    return sum(part is Ellipsis for part in index if not isinstance(part, np.ndarray)) < 2


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=tuples.filter(legal) | picks)
def test_a_field_is_indexed_like_an_array(store: Store, index: Any) -> None:
    assert same(store["x"][index], NATIVE["x"][index])


OUTRIGHT = (
    ([3, 4, 5], [0, 1, 2]),  # lists pair up
    ([0, 1], slice(None), [2, 2]),
    (3, slice(None), [2, 0, 1]),
    (slice(2, 9), [0, 1], [2, 2]),
    ([0, 1], [[0], [1]]),
    (np.arange(SAMPLES) % 9 == 0, np.array([0, 1, 2, 3])),
    (slice(None, None, 5), np.arange(7) % 2 == 0),
    Ellipsis,
    (),
    (Ellipsis, 1),
    (2, Ellipsis, None, 0),
    (-1, -1, -1),
)


@pytest.mark.parametrize("index", OUTRIGHT, ids=str)
def test_further_axes_follow_numpys_rules(raw: Store, index: Any) -> None:
    assert same(raw["x"][index], NATIVE["x"][index])


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_looks_like_an_array(raw: Store, name: str) -> None:
    field, wanted = raw[name], NATIVE[name]
    assert (field.shape, field.dtype, field.ndim, len(field)) == (
        wanted.shape,
        wanted.dtype,
        wanted.ndim,
        SAMPLES,
    )
    assert same(np.asarray(field), wanted)
    assert same(np.stack(list(field)), wanted)
    assert np.asarray(field, dtype="f8").dtype == np.float64
    assert type(field[4]) is type(wanted[4])


# ---- buffers of the caller's


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=2, max_size=4))
def test_buffers_are_read_into_again_and_again(store: Store, batches: list[list[int]]) -> None:
    out = {name: np.full((6, *array.shape[1:]), 1, array.dtype) for name, array in NATIVE.items()}
    for batch in batches:
        found = store.read(batch, out=out)
        for name, array in found.items():
            assert array is out[name]
            assert same(array, NATIVE[name][batch])


def unfit() -> dict[str, NDArray[Any]]:
    right = np.zeros((4, 31), "f4")
    locked = right.copy()
    locked.flags.writeable = False
    return {
        "short": np.zeros((3, 31), "f4"),
        "flat": np.zeros(4 * 31, "f4"),
        "wide": np.zeros((4, 31), "f8"),
        "foreign order": np.zeros((4, 31), ">f4"),
        "strided": np.zeros((4, 62), "f4")[:, ::2],
        "transposed": np.zeros((31, 4), "f4").T,
        "read-only": locked,
    }


@pytest.mark.parametrize("kind", unfit())
def test_an_unfit_buffer_is_refused_untouched(raw: Store, kind: str) -> None:
    array = unfit()[kind]
    with pytest.raises(RecipeError, match="big") as error:
        raw.read([1, 2, 3, 4], ("big",), out={"big": array})
    assert "\n" not in str(error.value)
    assert not array.any()


def test_a_missing_buffer_is_named(raw: Store) -> None:
    with pytest.raises(RecipeError, match=r"out\['level'\].*nothing was given"):
        raw.read([1], ("x", "level"), out={"x": np.zeros((1, 7, 3))})


# ---- views


def test_views_show_the_file_itself(raw: Store) -> None:
    view = raw.read(range(2, 4), ("x",), view=True)["x"]
    assert same(view, NATIVE["x"][2:4])
    assert not view.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 0
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        view.flags.writeable = True
    assert same(raw.read(slice(8, 16), ("level",), view=True)["level"], NATIVE["level"][8:16])


@pytest.mark.parametrize("index", [[1, 2], [3, 2], [2, 2], [0, 3], [], range(0, 29)], ids=str)
def test_no_view_of_what_does_not_lie_together(raw: Store, index: Any) -> None:
    with pytest.raises(RecipeError, match="'x' gives no view"):
        raw.read(index, ("x",), view=True)


def test_no_view_of_what_must_be_decoded(paths: dict[str, Path], raw: Store) -> None:
    with open_store(paths["lz4"]) as store, pytest.raises(RecipeError, match="no view"):
        store.read([0], ("x",), view=True)
    with open_store(paths["raw"], mmap=False) as store, pytest.raises(RecipeError, match="no view"):
        store.read([0], ("x",), view=True)
    with pytest.raises(RecipeError, match="no view"):
        raw.read([0], ("big",), view=True)


def test_views_stay_valid_after_close(paths: dict[str, Path]) -> None:
    store = open_store(paths["raw"])
    view = store.read([6, 7], ("x",), view=True)["x"]
    store.close()
    del store
    gc.collect()
    assert same(view, NATIVE["x"][6:8])


# ---- options


@pytest.mark.parametrize("checksums", ["first", "always", "never"])
@pytest.mark.parametrize("mmap", [True, False])
def test_options_change_no_value(path: Path, checksums: Any, mmap: bool) -> None:
    with open_store(path, checksums=checksums, mmap=mmap) as store:
        for _ in range(2):
            found = store.read([28, 3, 3, -2, 0])
            assert all(same(found[name], NATIVE[name][[28, 3, 3, -2, 0]]) for name in FIELDS)
        assert same(store["x"][:], NATIVE["x"])
        assert store.verify()


@pytest.mark.parametrize(
    ("checksums", "first_is_refused", "later_is_refused"),
    [("first", True, False), ("always", True, True), ("never", False, False)],
)
@pytest.mark.parametrize("mmap", [True, False])
def test_when_checksums_are_compared(
    mine: Path, checksums: Any, mmap: bool, first_is_refused: bool, later_is_refused: bool
) -> None:
    def refused(store: Store) -> bool:
        try:
            store.read([0], ("level",))
        except DamagedStoreError:
            return True
        return False

    with open_store(mine, checksums=checksums, mmap=mmap) as store:
        store.read([0], ("level",))
        flip(mine / "level" / "c" / "0", 64)
        assert refused(store) == later_is_refused
        assert not refused(store) or later_is_refused
    with open_store(mine, checksums=checksums, mmap=mmap) as store:
        assert refused(store) == first_is_refused
        assert refused(store) == first_is_refused  # a refused chunk does not count as checked


def flip(file: Path, offset: int) -> None:
    """Change one bit in place, so that open maps see it."""
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ 1]))


def test_unknown_checksums_are_refused(paths: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match="'sometimes'"):
        open_store(paths["raw"], checksums="sometimes")  # type: ignore[arg-type]


# ---- life and death


@pytest.mark.parametrize("mmap", [True, False])
def test_a_closed_store_reads_no_more(paths: dict[str, Path], mmap: bool) -> None:
    with open_store(paths["lz4"], mmap=mmap) as store:
        store.read([0])
    store.close()  # twice does no harm
    for read in (lambda: store.read([0]), lambda: store["x"][0], store.verify):
        with pytest.raises(ValueError, match="closed"):
            read()
    assert store.samples == SAMPLES


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def maps_below(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{folder}/")


@pytest.mark.parametrize("mmap", [True, False])
def test_few_files_are_open_at_a_time(mine: Path, monkeypatch: pytest.MonkeyPatch, mmap: bool) -> None:
    gc.collect()
    monkeypatch.setattr(opened, "OPEN_FILES_MAX", 3)
    opened.open_shards.drop(-1)
    with open_store(mine) as other:
        other.read([0], ("x", "big", "mask"))  # the bound is on the process, not on a store
        before = open_descriptors()
        most = most_maps = 0
        with open_store(mine, mmap=mmap) as store:
            assert sum(field.shard_count(SAMPLES) for field in store.layout.fields.values()) > 9
            for index in (range(SAMPLES), [28, 0, 15, 7] * 3):
                for i in index:
                    found = store.read([i])
                    assert all(same(found[name], NATIVE[name][[i]]) for name in FIELDS)
                    most = max(most, open_descriptors())
                    most_maps = max(most_maps, maps_below(mine))
        assert most <= before + 3 + 1  # the folder of the store
        assert most_maps <= 3
    gc.collect()
    assert open_descriptors() <= before - 1
    assert maps_below(mine) == 0


def test_closing_gives_all_descriptors_back(mine: Path) -> None:
    gc.collect()
    before = open_descriptors()
    for mmap in (True, False):
        store = open_store(mine, mmap=mmap)
        store.read(slice(None))
        assert open_descriptors() > before + 3
        store.close()
        assert open_descriptors() == before
        forgotten = open_store(mine, mmap=mmap)
        forgotten.read(slice(None))
        del forgotten, store
        gc.collect()
        assert open_descriptors() == before
        assert maps_below(mine) == 0


def test_a_store_refused_at_opening_leaves_nothing_open(mine: Path) -> None:
    gc.collect()
    before = open_descriptors()
    with pytest.raises(StaleStoreError):
        open_store(mine, expect=arrays(OTHERS))
    (mine / "zarr.json").write_text("{")
    with pytest.raises(DamagedStoreError):
        open_store(mine)
    with pytest.raises(NotAStoreError):
        open_store(mine.parent)
    with pytest.raises(StoreNotFoundError):
        open_store(mine / "nowhere")
    gc.collect()
    assert open_descriptors() == before


def test_the_garbage_collector_may_end_a_reader_anywhere(paths: dict[str, Path]) -> None:
    """Within the lock of the open files, say: in the same thread, so waiting for it would be for ever."""

    def end() -> None:
        with opened.open_shards.lock:
            store.reader.__del__()

    store = open_store(paths["lz4"])
    store.read([0])
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_threads_read_the_same_bits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "OPEN_FILES_MAX", 2)  # so that files are closed under other readers

    def read(seed: int) -> bool:
        index = np.random.default_rng(seed).integers(-SAMPLES, SAMPLES, 17)
        found = store.read(index)
        return all(same(found[name], NATIVE[name][index]) for name in FIELDS)

    with open_store(path, checksums="always") as store, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))


# ---- other processes


def digest_of(store: Store) -> str:
    found = store.read([5, 5, -1, 0, 17])
    return hashlib.sha256(b"".join(found[name].tobytes() for name in sorted(found))).hexdigest()


def tell(connection: Any, read: Callable[[], str]) -> None:
    try:
        connection.send(read())
    except BaseException as error:
        connection.send(repr(error))
    finally:
        connection.close()


def told_by_child(method: str, read: Callable[[], str]) -> str:
    context = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=tell, args=(there, read))
    child.start()
    there.close()
    try:
        return str(here.recv())
    finally:
        child.join()


class Reading:
    """Reads a store in a child; picklable for those that are spawned."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self) -> str:
        return digest_of(self.store)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_reads_the_same_bits(path: Path, method: str) -> None:
    with open_store(path) as store:
        wanted = digest_of(store)  # files are open when the child begins
        assert told_by_child(method, Reading(store)) == wanted
        assert digest_of(store) == wanted


def test_forks_while_another_thread_takes_the_lock(paths: dict[str, Path]) -> None:
    stop = threading.Event()

    def take() -> None:
        while not stop.is_set():
            with opened.open_shards.lock:
                pass

    with open_store(paths["lz4"]) as store:
        wanted = digest_of(store)
        taker = threading.Thread(target=take)
        taker.start()
        try:
            assert {told_by_child("fork", Reading(store)) for _ in range(5)} == {wanted}
        finally:
            stop.set()
            taker.join()


@pytest.mark.parametrize("codec", CODECS)
def test_a_pickled_store_reads_the_same(paths: dict[str, Path], codec: str) -> None:
    with open_store(paths[codec], checksums="always", mmap=False) as store:
        store.read([0])
        copy = pickle.loads(pickle.dumps(store.first(13)))
        assert (copy.samples, copy.stored_samples, copy.path) == (13, SAMPLES, store.path)
        assert copy._options == store._options
        assert same(copy["x"][:], NATIVE["x"][:13])
    assert same(copy["level"][:], NATIVE["level"][:13])  # it has files of its own
    copy.close()


def test_a_pickle_carries_no_samples(raw: Store) -> None:
    raw.read(slice(None))
    assert len(pickle.dumps(raw)) < 1000


def test_a_relative_path_survives_a_change_of_folder(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    with open_store(mine.name) as store:
        pickled = pickle.dumps(store)
        monkeypatch.chdir("/")
        assert same(store["x"][3], NATIVE["x"][3])
        with pickle.loads(pickled) as copy:
            assert same(copy["x"][3], NATIVE["x"][3])


# ---- a store that is replaced meanwhile


def one_of_two(read: Callable[[], NDArray[Any]], index: Any, name: str) -> str:
    """Which bake the samples are of, or that the store was replaced; anything else fails."""
    try:
        found = read()
    except StoreReplacedError:
        return "replaced"
    if same(found, NATIVE[name][index]):
        return "old"
    native = OTHERS[name].dtype.newbyteorder("=")
    assert same(found, OTHERS[name][index].astype(native))
    return "new"


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("touched", [(), ("level",), tuple(FIELDS)], ids=str)
def test_a_replaced_store_is_never_mixed(mine: Path, mmap: bool, touched: tuple[str, ...]) -> None:
    with open_store(mine, mmap=mmap) as store:
        for name in touched:
            store[name][:]
        baked(mine, OTHERS, rebuild=True)
        for name in FIELDS:
            wanted = "old" if name in touched else "replaced"
            assert one_of_two(lambda name=name: store[name][:], slice(None), name) == wanted
        with open_store(mine) as new:
            assert one_of_two(lambda: new["x"][:], slice(None), "x") == "new"
        assert store.contents.version != new.contents.version


def test_verify_and_coordinates_notice_a_replaced_store(mine: Path) -> None:
    with open_store(mine) as store:
        baked(mine, OTHERS, rebuild=True)
        for look in (store.verify, lambda: store.nbytes_stored("x")):
            with pytest.raises(StoreReplacedError, match="baked again"):
                look()


def test_a_removed_store_is_not_called_damaged(mine: Path) -> None:
    with open_store(mine) as store:
        store["level"][:]
        shutil.rmtree(mine)
        assert same(store["level"][:], NATIVE["level"])
        with pytest.raises(StoreReplacedError, match="removed"):
            store["x"][:]


def test_a_pickled_store_that_was_baked_again_says_so(mine: Path) -> None:
    with open_store(mine) as store:
        pickled = pickle.dumps(store)
    baked(mine, OTHERS, rebuild=True)
    with pytest.raises(StoreReplacedError, match=r"mine\.zarr: baked again.*reopen"):
        pickle.loads(pickled)


def test_a_store_opened_in_the_middle_of_a_swap(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is open, then another takes its place before its metadata is read."""
    real, swapped = opened.open_beneath, []

    def swap_first(folder: int, name: str) -> int:
        if not swapped:
            swapped.append(name)
            baked(mine, OTHERS, rebuild=True)
        return real(folder, name)

    monkeypatch.setattr(opened, "open_beneath", swap_first)
    with open_store(mine) as store:
        assert one_of_two(lambda: store["x"][:], slice(None), "x") == "new"


def test_readers_while_it_is_baked_again_and_again(mine: Path) -> None:
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> int:
        rounds = 0
        while not stop.is_set() or rounds < 3:
            with open_store(mine) as store:
                for name in ("x", "level"):
                    seen.add(one_of_two(lambda name=name: store[name][:], slice(None), name))
            rounds += 1
        return rounds

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            for values in (OTHERS, VALUES):
                baked(mine, values, rebuild=True)
        finally:
            stop.set()
        assert reader.result() >= 3
    assert "old" in seen
