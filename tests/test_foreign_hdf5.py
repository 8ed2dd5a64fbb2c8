"""HDF5 files that others wrote: h5py, netCDF4, xarray and MATLAB's layout, against h5py as the oracle."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
from bakery import without_plugin_path
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, NotAStoreError, ParbakeError, RecipeError
from parbake.store.chunkmap import FetchedMap, FieldMap, TiledMap
from parbake.store.chunks import Access
from parbake.store.codecs import CodecError
from parbake.store.foreign import hdf5_tree
from parbake.store.foreign.hdf5 import open_contents
from parbake.store.hdf5_index import chunk_table
from parbake.store.index import Window
from parbake.store.opened import FileSpan, MappedFile, PreadFile
from parbake.store.reader import CACHE_NBYTES, Reader
from parbake.store.store import Store, _Options

warnings.filterwarnings("ignore", "numpy.ndarray size changed")  # netCDF4 and its build


def opened(path: Path, sample_dim: str | None = None, mmap: bool = True) -> Store:
    contents = open_contents(path, sample_dim)
    access = Access(contents.files, "first", mmap, "ask whoever wrote it")
    options = _Options("first", mmap, CACHE_NBYTES, sample_dim)
    return Store(contents, Reader(contents.maps, access, CACHE_NBYTES), options, None)


def values_of(path: Path, name: str) -> NDArray[Any]:
    """All of a dataset as h5py reads it, native byte order."""
    with h5py.File(path) as file:
        found = file[name][...]
    return found.astype(found.dtype.newbyteorder("="))


def same_bits(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    return (
        found.dtype == wanted.dtype
        and found.shape == wanted.shape
        and np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(wanted).tobytes()
    )


def check_against_h5py(path: Path, store: Store, index: Any = slice(None)) -> None:
    for name, found in store.read(index).items():
        assert same_bits(found, values_of(path, name)[index]), name


def some(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> NDArray[Any]:
    """Values of any bits that a dtype may have."""
    dtype, rng = np.dtype(dtype), np.random.default_rng(seed)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    return rng.standard_normal(shape).round(2).astype(dtype)


# ---- any dataset

DTYPES = ("?", "|i1", "<i4", ">i2", ">u8", "<f2", ">f4", "<f4", "<f8", "<c8", ">c16")
FILTERS = (
    {},
    {"compression": "gzip", "compression_opts": 1},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"shuffle": True},
    {"fletcher32": True},
    {"compression": "lzf", "shuffle": True},
    {"scaleoffset": 0},
)


@st.composite
def datasets(draw: st.DrawFn) -> dict[str, Any]:
    """How to make one dataset: arguments of ``create_dataset``, the rows that are written, a layout."""
    shape = (draw(st.integers(1, 12)), *draw(st.lists(st.integers(1, 7), max_size=3)))
    made: dict[str, Any] = {"shape": shape, "dtype": draw(st.sampled_from(DTYPES))}
    kind = draw(st.sampled_from(["chunked", "chunked", "contiguous", "compact"]))
    if kind == "chunked":
        made["chunks"] = tuple(draw(st.integers(1, n + 2)) for n in shape)
        made["maxshape"] = (None,) * len(shape)
        made |= draw(st.sampled_from(FILTERS))
        if "scaleoffset" in made and np.dtype(made["dtype"]).kind not in "iu":
            del made["scaleoffset"]
    if draw(st.booleans()):
        made["fillvalue"] = np.array(draw(st.integers(0, 1))).astype(made["dtype"])[()]
    rows = draw(st.sampled_from([slice(0), slice(None), slice(draw(st.integers(0, 11)), None)]))
    return {"made": made, "kind": kind, "rows": rows, "never": draw(st.booleans())}


def write(file: h5py.File, name: str, spec: dict[str, Any]) -> None:
    made, values = spec["made"], some(spec["made"]["shape"], spec["made"]["dtype"])
    if spec["kind"] == "compact":
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space, of = h5py.h5s.create_simple(made["shape"]), h5py.h5t.py_create(values.dtype, logical=True)
        group, _, leaf = name.rpartition("/")
        parent = file.require_group(group).id
        dataset = h5py.Dataset(h5py.h5d.create(parent, leaf.encode(), of, space, plist))
    else:
        dataset = file.create_dataset(name, **made, fill_time="never" if spec["never"] else "ifset")
    if len(values[spec["rows"]]):
        dataset[spec["rows"]] = values[spec["rows"]]


@settings(max_examples=80, deadline=None)
@given(
    specs=st.lists(datasets(), min_size=1, max_size=3),
    libver=st.sampled_from(["earliest", "v110", "latest"]),
    userblock=st.sampled_from([0, 512, 1024]),
    mmap=st.booleans(),
    data=st.data(),
)
def test_any_dataset_reads_as_h5py_reads_it(
    specs: list[dict[str, Any]], libver: str, userblock: int, mmap: bool, data: st.DataObject
) -> None:
    with folder_in_memory() as folder:
        path = folder / "any.h5"
        with h5py.File(path, "w", libver=libver, userblock_size=userblock) as file:
            for number, spec in enumerate(specs):
                write(file, f"g{number % 2}/x{number}", spec)
        with opened(path, mmap=mmap) as store:
            check_against_h5py(path, store)
            n = store.samples
            index = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=8))
            for name, found in store.read(index).items():
                assert same_bits(found, values_of(path, name)[index])
            mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
            check_against_h5py(path, store, mask)


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


def one_dataset(path: Path, values: NDArray[Any], **made: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, **made)
    return path


def test_layouts_go_through_maps_and_the_rest_through_h5py_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "kinds.h5"
    with h5py.File(path, "w") as file:
        file["contiguous"] = some((40, 3, 5), "f4")
        file.create_dataset("rows", data=some((40, 15), ">f4"), chunks=(7, 15), compression="gzip")
        file.create_dataset(
            "parts", data=some((40, 15), "i4"), chunks=(7, 4), compression="lzf", shuffle=True
        )
        file.create_dataset("scaled", data=some((40, 15), "i4"), chunks=(7, 4), scaleoffset=0)
        odd = h5py.h5t.NATIVE_INT32.copy()
        odd.set_precision(24)
        h5py.h5d.create(file.id, b"odd", odd, h5py.h5s.create_simple((40,)))
        file["odd"][...] = np.arange(40)
        file["t"] = ["text"] * 40
        file.create_dataset("e", data=np.arange(40) % 2, dtype=h5py.enum_dtype({"A": 0, "B": 1}, "i1"))
        file.create_dataset("v", (40,), h5py.vlen_dtype("i4"))
        file.create_dataset("r", (40,), h5py.ref_dtype)
        file.create_dataset("o", (40,), np.dtype("V5"))
        file.create_dataset("s", (40,), np.dtype([("a", "i4")]))
    store = opened(path)
    kinds = {name: type(one) for name, one in store.contents.maps.items()}
    assert kinds == {
        "contiguous": FieldMap,
        "odd": FetchedMap,
        "parts": TiledMap,
        "rows": FieldMap,
        "scaled": FetchedMap,
    }
    left, *slow = store.contents.notices
    for told in ("t (40,) (texts)", "e (40,) int8 (names of an enumeration)", "varying length", "references"):
        assert told in left
    assert "s (40,) " in left
    assert "o (40,)" in left
    assert len(slow) == 2
    assert "scaleoffset" in slow[1]
    assert "'odd'" in slow[0]
    check_against_h5py(path, store)
    check_against_h5py(path, store, [39, 0, 3, 3, -1])


def test_a_chunk_that_skipped_filters_is_read_by_its_mask(tmp_path: Path) -> None:
    values = some((6, 8), "f4")
    path = tmp_path / "mask.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", (6, 8), "f4", chunks=(2, 8), compression="gzip", shuffle=True)
        dataset[...] = values
        dataset.id.write_direct_chunk((2, 0), values[2:4].tobytes(), filter_mask=0b11)
        dataset.id.write_direct_chunk((4, 0), zlib.compress(values[4:].tobytes()), filter_mask=0b01)
    store = opened(path)
    assert isinstance(store.contents.maps["x"], FieldMap)
    assert same_bits(store.read([5, 2, 0, 3])["x"], values[[5, 2, 0, 3]])


def test_a_sample_axis_that_is_not_the_first_is_fetched(tmp_path: Path) -> None:
    path = tmp_path / "axis.nc"
    values = some((5, 9, 2), "f4")
    xr.Dataset({"x": (("time", "sample", "c"), values)}).to_netcdf(path, engine="h5netcdf")
    store = opened(path, "sample")
    assert same_bits(store.read([8, 0])["x"], np.moveaxis(values, 1, 0)[[8, 0]])
    assert "axis 1" in store.contents.notices[0]
    with pytest.raises(RecipeError, match="'time'"):
        opened(path, "frame")


# ---- writers of NetCDF-4 and MATLAB files


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_files_keep_dimensions_units_and_coordinates(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "x.nc"
    values = some((20, 3, 4), "f4")
    dataset = xr.Dataset(
        {"wave": (("sample", "time", "channel"), values, {"units": "V", "long_name": "voltage"})},
        coords={"time": ("time", np.arange(3) / 10, {"units": "s"}), "node": ("channel", np.arange(4.0))},
    )
    dataset.to_netcdf(path, engine=engine, encoding={"wave": {"zlib": True, "chunksizes": (3, 3, 4)}})
    store = opened(path)
    field = store.fields["wave"]
    assert (field.dims, field.units, field.description) == (("time", "channel"), "V", "voltage")
    assert isinstance(store.contents.maps["wave"], FieldMap)
    assert same_bits(store.read([19, 2, 2])["wave"], values[[19, 2, 2]])
    assert store.coords["time"].units == "s"
    assert store.coords["node"].dim == "channel"
    assert np.array_equal(store.coords["time"].values, np.arange(3) / 10)


def test_netcdf4_groups_unlimited_dimensions_and_lone_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "n.nc"
    values = some((9, 5), "f8")
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("sample", None)
        file.createDimension("lone", 5)
        for group in ("", "a/b"):
            inner = file.createGroup(group) if group else file
            variable = inner.createVariable("x", "f8", ("sample", "lone"), zlib=True, fill_value=-1.0)
            variable[...] = values
            variable.scale_factor = 2.0
        file.createVariable("code", "i2", ("sample",))[:] = np.arange(9)
    store = opened(path)
    assert set(store.fields) == {"x", "a/b/x", "code"}
    assert store.fields["x"].dims == store.fields["a/b/x"].dims == ("lone",)
    assert "scale_factor" in store.contents.notices[0]
    check_against_h5py(path, store, [8, 1])


@pytest.mark.parametrize("compression", ["zstd", "blosc_lz4", "blosc_zstd"])
def test_netcdf4_compressors_are_decoded_here(tmp_path: Path, compression: str) -> None:
    path, values = tmp_path / "z.nc", np.arange(1500, dtype="f4").reshape(30, 50)
    write = f"""if 1:
        import netCDF4, numpy as np
        with netCDF4.Dataset({str(path)!r}, "w") as file:
            assert file.has_zstd_filter() and file.has_blosc_filter()
            file.createDimension("sample", 30)
            file.createDimension("time", 50)
            options = {{"compression": {compression!r}, "chunksizes": (4, 50)}}
            variable = file.createVariable("x", "f4", ("sample", "time"), **options)
            variable[...] = np.arange(1500, dtype="f4").reshape(30, 50)
    """
    done = subprocess.run([sys.executable, "-c", write], env=without_plugin_path(), stderr=subprocess.PIPE)
    if b"AssertionError" in done.stderr:
        pytest.skip("this netCDF4 was built without its filters")
    assert done.returncode == 0
    store = opened(path)
    assert isinstance(store.contents.maps["x"], FieldMap)
    assert same_bits(store.read([29, 0, 5])["x"], values[[29, 0, 5]])


def test_matlab_files_leave_out_texts_cells_and_what_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "m.mat"
    values = some((12, 7), "f8")
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("X", data=values, chunks=(4, 7), compression="gzip")
        file["flag"] = np.ones((12, 1), np.uint8)
        file["name"] = np.zeros((12, 1), np.uint16)
        file["none"] = np.zeros(12, np.uint64)
        file["#refs#/a"] = some((12, 7), "f8")
        file.create_dataset("cell", (12, 1), h5py.ref_dtype)
        for name, kind in {"X": "double", "flag": "logical", "name": "char", "cell": "cell"}.items():
            file[name].attrs["MATLAB_class"] = np.bytes_(kind)
        file["none"].attrs["MATLAB_empty"] = np.uint8(1)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\x02IM")
    store = opened(path)
    assert set(store.fields) == {"X", "flag"}
    check_against_h5py(path, store)
    reversed_axes, left = store.contents.notices
    assert "reverse order" in reversed_axes
    assert "text of MATLAB" in left
    assert "empty in MATLAB" in left
    assert "references" in left
    assert "#" not in left


# ---- links and ways out of the file


def test_nothing_outside_of_the_file_is_opened(tmp_path: Path) -> None:
    path, other = tmp_path / "a.h5", one_dataset(tmp_path / "other.h5", some((8, 2), "f4"))
    layout = h5py.VirtualLayout((8, 2), "f4")
    layout[...] = h5py.VirtualSource(str(other), "x", (8, 2))
    inner = h5py.VirtualLayout((8, 2), "f4")
    inner[...] = h5py.VirtualSource(".", "x", (8, 2))
    round_about = h5py.VirtualLayout((8, 2), "f4")
    round_about[...] = h5py.VirtualSource(".", "away", (8, 2))
    with h5py.File(path, "w") as file:
        file["x"] = some((8, 2), "f4", seed=1)
        file["again"] = file["x"]
        file["group/loop"] = file["/"]
        file["soft"] = h5py.SoftLink("/x")
        file["away"] = h5py.ExternalLink(str(other), "/x")
        file.create_dataset("stored_away", (8, 2), "f4", external=[(str(other), 0, 64)])
        file.create_virtual_dataset("virtual_away", layout)
        file.create_virtual_dataset("virtual_round", round_about)
        file.create_virtual_dataset("virtual", inner)
    store = opened(path)
    assert len(store.fields) == 2
    assert "virtual" in store.fields
    check_against_h5py(path, store)
    told = store.contents.notices[0]
    for name in ("soft", "away", "stored_away", "virtual_away", "virtual_round"):
        assert f"{name} (" in told


def test_groups_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep, many = tmp_path / "deep.h5", tmp_path / "many.h5"
    with h5py.File(deep, "w") as file:
        file["/".join("g" * 40)] = np.zeros(3)
    with h5py.File(many, "w") as file:
        for number in range(30):
            file[f"g{number}"] = np.zeros(3)
    monkeypatch.setattr(hdf5_tree, "OBJECTS_MAX", 20)
    with pytest.raises(NotAStoreError, match="deep"):
        opened(deep)
    with pytest.raises(NotAStoreError, match="more than 20"):
        opened(many)


# ---- threads and processes


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.h5"
    with h5py.File(path, "w") as file:
        file["raw"] = some((200, 50), "f4")
        file.create_dataset("gzip", data=some((200, 50), "f4"), chunks=(7, 20), compression="gzip")
        file.create_dataset("fetched", data=some((200, 50), "i4"), chunks=(7, 50), scaleoffset=0)
    return path


def _reads_right(store: Store, seed: int) -> bool:
    index = np.random.default_rng(seed).integers(0, store.samples, 40)
    wanted = {name: values_of(store.path, name)[index] for name in store.fields}
    return all(same_bits(found, wanted[name]) for name, found in store.read(index).items())


def test_threads_side_by_side_read_right(mixed: Path) -> None:
    store = opened(mixed)
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(lambda seed: _reads_right(store, seed), range(24)))


def test_a_forked_child_reads_right_while_the_parent_does(mixed: Path) -> None:
    store = opened(mixed)
    assert _reads_right(store, 0)
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(_reads_right, store, seed) for seed in range(6)]
        children = [
            multiprocessing.get_context("fork").Process(target=_exit_if, args=(store,)) for _ in range(3)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0, 0, 0]
        assert all(one.result() for one in busy)


def _exit_if(store: Store) -> None:
    os._exit(0 if _reads_right(store, os.getpid()) else 1)


def test_a_process_that_leaves_a_store_open_ends_well(mixed: Path) -> None:
    """HDF5 closes its files when the interpreter is gone, and crashed over a file object of Python."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_foreign_hdf5 import opened\n"
        "store = opened(Path(sys.argv[1])); store.read([1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(mixed), str(Path(__file__).parent)], capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_closing_leaves_no_descriptor(mixed: Path) -> None:
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    store = opened(mixed)
    store.read([1, 2])
    store.close()
    assert before == (set(os.listdir("/proc/self/fd")) if before else before)
    with pytest.raises(ValueError, match="closed"):
        store.contents.files.open("")


# ---- hostile files


def one_line_or_right(path: Path, wanted: NDArray[Any] | None = None) -> None:
    """Opening and reading ends, in an error of one line or in values."""
    try:
        store = opened(path)
        for name in store.fields:
            found = store.read([0, -1], [name])[name]
            if wanted is not None and name == "x":
                assert same_bits(found, wanted[[0, -1]])
        _ = store.coords
        store.close()
    except ParbakeError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_file_cut_anywhere_ends_in_one_line(tmp_path: Path) -> None:
    values = some((40, 60), "f4")
    path = one_dataset(tmp_path / "cut.h5", values, chunks=(7, 60), compression="gzip")
    whole = path.read_bytes()
    for nbytes in range(0, len(whole), 512):
        path.write_bytes(whole[:nbytes])
        with pytest.raises(ParbakeError) as caught:
            opened(path).read([0])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("chunk", [None, 1, 1 << 20])
@pytest.mark.parametrize("power", [20, 26, 30, 60])
def test_shapes_without_storage_take_no_memory(tmp_path: Path, power: int, chunk: int | None) -> None:
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        chunks = None if chunk is None else (chunk,)
        file.create_dataset("x", (1 << power,), "u1", fillvalue=7, chunks=chunks)
    is_refused = power == 60 or (power == 30 and chunk == 1)
    tracemalloc.start()
    if is_refused:
        with pytest.raises(NotAStoreError, match=r"1152921504606846976|1073741824"):
            opened(path)
    else:
        with opened(path) as store:
            assert store.read([0, store.samples - 1])["x"].tolist() == [7, 7]
    touched = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert touched < 2 << 30  # addressed: pages of zeros are taken as they are used


def test_a_chunk_that_is_nowhere_takes_the_memory_of_one_sample(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (1 << 28, 3), "i4", fillvalue=7, chunks=(1 << 26, 3))  # of 768 MiB
        file["x"][1 << 26 : (1 << 26) + 2] = 5  # a chunk that is there
    index = np.array([0, (1 << 26) - 1, 1 << 27, 1 << 26, (1 << 26) + 1, (1 << 26) + 2, (1 << 28) - 1])
    wanted = np.full((7, 3), 7)
    wanted[3:5] = 5
    with opened(path) as store:
        tracemalloc.start()
        for _ in range(2):
            assert (store.read(index)["x"] == wanted).all()
        assert (store.read(index, windows={"x": Window(0, 2, np.arange(7) % 2)})["x"] == wanted[:, :2]).all()
        view = store.read(range(100, 105), view=True)["x"]
        touched = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (view.shape, view.dtype, view.flags.writeable) == ((5, 3), np.dtype("i4"), False)
        assert (view == 7).all()
    assert touched < 1 << 20


def test_one_file_is_mapped_once_whatever_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parbake.store.foreign.hdf5._SHARD_CHUNKS", 2)
    path = tmp_path / "many.h5"
    values = some((40, 12), "f4")
    with h5py.File(path, "w") as file:
        file.create_dataset("tiles", data=values, chunks=(2, 3))  # four tiles of ten shards
        file.create_dataset("shards", data=values, chunks=(1, 12), compression="gzip")
    for mmap, kind in ((True, MappedFile), (False, PreadFile)):
        made: list[object] = []
        real = kind.__init__

        def count(self: Any, span: FileSpan, made: list[object] = made, real: Any = real) -> None:
            made.append(span)
            real(self, span)

        monkeypatch.setattr(kind, "__init__", count)
        with opened(path, mmap=mmap) as store:
            check_against_h5py(path, store)
            check_against_h5py(path, store, slice(5, 20))
            before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
        assert len(made) == 1
        if before:  # nothing holds it once the store is closed
            assert len(os.listdir("/proc/self/fd")) < before


def test_compact_data_is_not_called_slow(tmp_path: Path) -> None:
    path = tmp_path / "compact.h5"
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((40,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT32, space, properties)
        file["x"][...] = np.arange(40)
    with opened(path) as store:
        assert isinstance(store.contents.maps["x"], FetchedMap)
        assert store.contents.notices == ()
        check_against_h5py(path, store)


def test_a_filter_that_no_library_has_is_named_with_its_plugin(tmp_path: Path) -> None:
    path = tmp_path / "filtered.h5"
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4,))
        properties.set_filter(39_999, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((40,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT32, space, properties)
        file["y"] = np.arange(40)
    with opened(path) as store:
        assert list(store.fields) == ["y"]
        assert "x (40,) int32 (needs filter 39999: pip install hdf5plugin)" in store.contents.notices[0]


def test_a_walk_over_chunks_ends_at_the_size_of_the_grid(tmp_path: Path) -> None:
    path = one_dataset(tmp_path / "x.h5", some((40, 3), "f4"), chunks=(2, 3))

    class Endless:
        """An index that names a chunk again and again."""

        def __init__(self, dataset: Any) -> None:
            self.shape, self.chunks, self.id, self.calls = dataset.shape, dataset.chunks, self, 0
            self._one = dataset.id.get_chunk_info(0)

        def chunk_iter(self, take: Any) -> None:
            while take(self._one) is None:
                self.calls += 1

    with h5py.File(path) as file:
        endless = Endless(file["x"])
        with pytest.raises(CodecError, match="more chunks than the 20 of its grid"):
            chunk_table(endless)
    assert endless.calls == 20


def test_files_of_other_fields_have_other_digests(tmp_path: Path) -> None:
    digests = set()
    for i, shape in enumerate([(40,), (41,), (40, 2)]):
        with opened(one_dataset(tmp_path / f"{i}.h5", some(shape, "f4"))) as store:
            digests.add(store.digest)
    assert len(digests) == 3


def test_a_chunk_that_inflates_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", (4, 8), "f4", chunks=(4, 8), compression="gzip")
        dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(64 << 20)))
    with opened(path) as store, pytest.raises(DamagedStoreError, match="more than the 128 bytes"):
        store.read([0])


def test_chunks_that_lie_beyond_the_file_or_on_each_other_are_refused(tmp_path: Path) -> None:
    values = some((4, 64), "f8")
    for what, shift in (("outside", 1 << 40), ("overlap", 8)):
        path = one_dataset(tmp_path / f"{what}.h5", values, chunks=(1, 64))
        with h5py.File(path) as file:
            offset = file["x"].id.get_chunk_info(1).byte_offset
        content = path.read_bytes()
        assert content.count(offset.to_bytes(8, "little")) == 1
        wrong = (offset + shift if what == "outside" else offset - shift).to_bytes(8, "little")
        path.write_bytes(content.replace(offset.to_bytes(8, "little"), wrong))
        with opened(path) as store, pytest.raises(DamagedStoreError, match=what):
            store.read([0])


@pytest.mark.parametrize("content", [b"", b"no HDF5" * 99, b"\x89HDF\r\n\x1a\n" + bytes(900)])
def test_what_is_no_hdf5_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "n.h5"
    path.write_bytes(content)
    with pytest.raises(ParbakeError) as caught:
        opened(path)
    assert "\n" not in str(caught.value)


_FLIPS = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np
from test_foreign_hdf5 import one_line_or_right
path = Path(sys.argv[1])
whole, rng = path.read_bytes(), np.random.default_rng(0)
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for at in range(int(sys.argv[3]), len(whole), 53):
    flipped = bytearray(whole)
    flipped[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(flipped)
    print(at, flush=True)
    signal.alarm(20)
    one_line_or_right(path)
"""


def test_flipped_bits_end_in_one_line_or_in_values_never_in_a_crash(tmp_path: Path) -> None:
    """In a process of its own: the HDF5 library parses metadata, and would take the tests with it."""
    path = tmp_path / "flips.h5"
    with h5py.File(path, "w", libver="v110") as file:
        file["g/contiguous"] = some((20, 3), "f4")
        file.create_dataset("x", data=some((20, 13), "i2"), chunks=(7, 10), compression="gzip", shuffle=True)
        file.create_dataset("scaled", data=some((20, 3), "i4"), chunks=(7, 3), scaleoffset=0)
        file["time"] = np.arange(3.0)
        file["time"].make_scale("time")
        file["g/contiguous"].dims[1].attach_scale(file["time"])
        file["x"].dims[0].label = "sample"
        file["x"].attrs["units"] = "m"
    code = [sys.executable, "-c", _FLIPS, str(path), str(Path(__file__).parent), "3"]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stdout.split()[-1:], done.stderr)
    assert len(done.stdout.split()) > 100


@pytest.mark.parametrize("at", [0, 2, 8, 9, 24, 25, 40])
def test_a_damaged_heap_of_texts_ends_in_one_line(tmp_path: Path, at: int) -> None:
    """The library went round for ever in some of these, and crashed over dimension lists in others."""
    path = tmp_path / "heap.h5"
    with h5py.File(path, "w") as file:
        file["x"] = some((6, 3), "f4")
        file["x"].attrs["units"] = "metre per second"
        file["time"] = np.arange(3.0)
        file["time"].make_scale("time")
        file["x"].dims[1].attach_scale(file["time"])
    content = bytearray(path.read_bytes())
    for bit in range(8):
        flipped = bytearray(content)
        flipped[content.find(b"GCOL") + at] ^= 1 << bit
        path.write_bytes(flipped)
        one_line_or_right(path)
