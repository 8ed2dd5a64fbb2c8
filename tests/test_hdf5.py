"""The HDF5 container: the same store in one file, for us, for h5py, netCDF4 and xarray; damage is found."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bakery import Loaf, ended, leftovers, same, start_child, tiny_slabs, without_plugin_path
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import blosc
from numcodecs.fletcher32 import Fletcher32

from parbake.errors import DamagedStoreError, NotAStoreError, StoreNotFoundError
from parbake.producers.bake import bake
from parbake.producers.convert import convert
from parbake.store import hdf5, hdf5_blocks, hdf5_write, zarr_dir
from parbake.store import store as store_module
from parbake.store.chunkmap import MISSING
from parbake.store.chunks import Access, Checksums
from parbake.store.codecs import CodecError
from parbake.store.durable import Writeback
from parbake.store.hdf5_index import OpenFile, chunk_table, hdf5_file, is_hdf5
from parbake.store.reader import CACHE_NBYTES, Reader
from parbake.store.store import Store, open_store

LOAF = Loaf(samples=30)
CODECS = ("raw", "lz4", "zstd")


def write(store: Store, target: Path, progress: Callable[[int], None] = lambda nbytes: None) -> Path:
    manifests = {name: store.manifest(name) for name in store.fields}
    document, root = store.contents.document, store.sealed.root
    hdf5_write.write_hdf5(target, root, document, store.coords, manifests, store.shard, progress)
    return target


def opened(path: Path, checksums: Checksums = "first", mmap: bool = True) -> Store:
    contents = hdf5.open_contents(path)
    access = Access(contents.files, checksums, mmap, "restore it")
    options = store_module._Options(checksums, mmap, CACHE_NBYTES, None)
    return Store(contents, Reader(contents.maps, access, CACHE_NBYTES), options, None)


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the same bake as ``CODEC.zarr`` and ``CODEC.h5``."""
    folder = tmp_path_factory.mktemp("hdf5")
    with pytest.MonkeyPatch.context() as patch:
        tiny_slabs(patch)
        for codec in CODECS:
            with bake(LOAF, folder / f"{codec}.zarr", codec=codec, progress=False) as store:
                write(store, folder / f"{codec}.h5")
        yield folder


@pytest.fixture
def copy(baked: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of ``CODEC.h5`` to be damaged."""

    def made(codec: str) -> Path:
        return Path(shutil.copy(baked / f"{codec}.h5", tmp_path / "copy.h5"))

    return made


def assert_holds_loaf(store: Store, loaf: Loaf = LOAF) -> None:
    found = store.read(slice(None))
    for name, values in loaf.values().items():
        assert same(found[name], values), name


def fault_of(path: Path) -> str:
    """The one line that opening a file and reading all of it ends with, or ''."""
    try:
        with opened(path) as store:
            assert_holds_loaf(store)
            assert same(store.coords["time"].values, LOAF.schema()["wave"].coords["time"].values)
    except (DamagedStoreError, NotAStoreError) as error:
        fault = str(error)
    else:
        fault = ""
    assert "\n" not in fault
    return fault


# ---- the same store


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("codec", CODECS)
def test_every_sample_has_the_bytes_that_were_baked(baked: Path, codec: str, mmap: bool) -> None:
    with opened(baked / f"{codec}.h5", mmap=mmap) as store:
        assert_holds_loaf(store)
        assert store.verify().damaged == ()
        assert store.freshness(LOAF)
        assert not store.edited


@pytest.mark.parametrize("codec", CODECS)
def test_shards_come_back_with_the_bytes_of_the_directory(baked: Path, codec: str) -> None:
    with store_module.open_store(baked / f"{codec}.zarr") as wanted, opened(baked / f"{codec}.h5") as store:
        for name, field in store.fields.items():
            for number in range(field.layout.shard_count(store.stored_samples)):
                one, other = (held.shard(name, number) for held in (wanted, store))
                assert one.get(0, one.nbytes).tobytes() == other.get(0, other.nbytes).tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_metadata_written_back_are_those_of_the_directory(baked: Path, codec: str, tmp_path: Path) -> None:
    with opened(baked / f"{codec}.h5") as store:
        document = replace(store.contents.document, coords=store.coords)
        zarr_dir.write_metadata(tmp_path, document, {name: store.manifest(name) for name in store.fields})
    files = [file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()]
    assert Path("zarr.json") in files
    for file in files:
        assert (tmp_path / file).read_bytes() == (baked / f"{codec}.zarr" / file).read_bytes(), file


def test_a_file_made_from_a_file_has_the_same_bytes(baked: Path, tmp_path: Path) -> None:
    with store_module.open_store(baked / "lz4.zarr") as store:
        once = write(store, tmp_path / "once.h5")
    with opened(once) as store:
        assert write(store, tmp_path / "again.h5").read_bytes() == once.read_bytes()


def test_progress_is_told_of_every_payload(baked: Path, tmp_path: Path) -> None:
    with opened(baked / "lz4.h5") as store:
        told: list[int] = []
        write(store, tmp_path / "again.h5", told.append)
        with hdf5_file(OpenFile(tmp_path / "again.h5")) as file:
            assert sum(told) == sum(file[name].id.get_storage_size() for name in store.fields)


@pytest.mark.parametrize("codec", CODECS)
def test_chunks_start_at_multiples_of_64(baked: Path, codec: str) -> None:
    with hdf5_file(OpenFile(baked / f"{codec}.h5")) as file:
        for name in LOAF.schema():
            assert not (chunk_table(file[name]).index.offset % 64).any()


# ---- what others see


def test_h5py_reads_raw_fields(baked: Path) -> None:
    with h5py.File(baked / "raw.h5") as file:
        for name, values in LOAF.values().items():
            assert same(file[name][()].astype(values.dtype), values)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_payloads_are_those_of_the_hdf5_filters(baked: Path, codec: str) -> None:
    wave = LOAF.values()["wave"].astype(">f4")
    with h5py.File(baked / f"{codec}.h5") as file:
        for start in range(0, LOAF.samples, 2):
            mask, payload = file["wave"].id.read_direct_chunk((start, 0, 0))
            body = Fletcher32().decode(payload)
            assert mask == 0
            assert blosc.cbuffer_complib(bytes(body)).lower() == codec
            assert blosc.decompress(bytes(body)) == wave[start : start + 2].tobytes()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_h5py_reads_compressed_fields_with_the_plugin(baked: Path, codec: str) -> None:
    pytest.importorskip("hdf5plugin", reason="needs the Blosc filter of hdf5plugin")
    with h5py.File(baked / f"{codec}.h5") as file:
        for name, values in LOAF.values().items():
            assert same(file[name][()].astype(values.dtype), values)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_shows_dims_coordinates_and_units(baked: Path, engine: Any) -> None:
    xr = pytest.importorskip("xarray", reason="needs the extra [xarray]")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_dataset(baked / "raw.h5", engine=engine) as dataset:
            assert set(dataset.data_vars) == {"wave", "count"}
            assert set(dataset.coords) == {"time", "f0", "level"}
            assert dataset["wave"].dims == ("sample", "time", "channel")
            assert dataset["time"].attrs["units"] == "s"
            assert dataset.attrs["parbake_samples"] == LOAF.samples
            for name, values in LOAF.values().items():
                np.testing.assert_array_equal(dataset[name].values, values)
        with xr.open_datatree(baked / "raw.h5", engine=engine) as tree:
            assert tree["manifest/wave"]["nbytes"].dims == ("manifest_wave_shard",)
            tree.load()


def test_netcdf4_reads_fields_and_dimensions(baked: Path) -> None:
    netcdf4 = pytest.importorskip("netCDF4", reason="needs netCDF4")
    with netcdf4.Dataset(baked / "raw.h5") as dataset:
        assert dataset["wave"].dimensions == ("sample", "time", "channel")
        assert {name: len(dim) for name, dim in dataset.dimensions.items()} == {
            **{"sample": 30, "time": 24, "channel": 2, "bin": 40, "end": 2}
        }
        np.testing.assert_array_equal(dataset["wave"][:], LOAF.values()["wave"])


def test_dimension_scales_cost_no_room(baked: Path) -> None:
    with h5py.File(baked / "raw.h5") as file:
        assert file["wave"].dims[1]["time"].name == "/time"
        assert file["wave"].dims[0][0].name == "/sample"
        assert file["sample"].id.get_storage_size() == 0


def test_h5dump_reads_the_metadata(baked: Path) -> None:
    h5dump = shutil.which("h5dump")
    if h5dump is None:
        pytest.skip("needs h5dump of the HDF5 tools")
    for codec in CODECS:
        shown = subprocess.run([h5dump, "-pH", baked / f"{codec}.h5"], capture_output=True, text=True)
        assert shown.returncode == 0
        assert "CHECKSUM FLETCHER32" in shown.stdout


def test_h5py_reads_beside_us_and_we_beside_h5py(baked: Path) -> None:
    with opened(baked / "raw.h5") as store, h5py.File(store.path, "r", locking=True) as file:
        assert file["count"][3, 1] == LOAF.values()["count"][3, 1]
        with opened(baked / "raw.h5") as other:
            assert_holds_loaf(other)
        assert_holds_loaf(store)


# ---- processes and threads


def test_threads_read_side_by_side(baked: Path) -> None:
    with opened(baked / "lz4.h5") as store, ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(assert_holds_loaf, store) for _ in range(8)]:
            future.result()


@pytest.mark.parametrize("mmap", [True, False])
def test_a_forked_child_reads(baked: Path, mmap: bool) -> None:
    with opened(baked / "lz4.h5", mmap=mmap) as store:
        store.read([3], ["wave"])  # one field is scanned before, the others after the fork
        assert ended(start_child(partial(assert_holds_loaf, store))) == 0
        assert_holds_loaf(store)


def _reads(path: Path) -> bool:
    with opened(path) as store:
        assert_holds_loaf(store)
    return True


def test_a_spawned_process_reads(baked: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_reads, (baked / "lz4.h5",))


def test_no_descriptor_is_left_open(baked: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with opened(baked / "lz4.h5") as store:
            assert_holds_loaf(store)
            store.verify()
            store.contents.files.close()
    assert len(os.listdir("/proc/self/fd")) == before


# ---- damage


def flips_end_well(path: Path, positions: list[int]) -> None:
    """One bit at each position: an error, or the same bytes; never others."""
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at in positions:
            flipped = content[at] ^ (1 << at % 8)
            os.pwrite(file.fileno(), bytes([flipped]), at)
            fault_of(path)
            os.pwrite(file.fileno(), content[at : at + 1], at)


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_no_flipped_bit_reads_as_other_data(copy: Callable[[str], Path], codec: str) -> None:
    path = copy(codec)
    positions = list(range(0, path.stat().st_size, 491))
    # in a child, so that a crash of the HDF5 library would show as one
    assert ended(start_child(partial(flips_end_well, path, positions))) == 0


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_verify_finds_every_flip_in_chunks_and_small_arrays(copy: Callable[[str], Path], codec: str) -> None:
    path = copy(codec)
    with hdf5_file(OpenFile(path)) as file:
        index = chunk_table(file["wave"]).index
        places = [int(index.offset[7] + k) for k in (0, 20, int(index.nbytes[7]) - 1)]
        small = ("time", "manifest/wave/crc32c", "manifest/count/statistics", "manifest/f0/chunk_crc32c")
        places += [file[name].id.get_offset() for name in small]
    content = path.read_bytes()
    for at in places:
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        with opened(path) as store:
            assert not store.verify(), at


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_a_zeroed_chunk_is_found(copy: Callable[[str], Path], codec: str) -> None:
    path = copy(codec)
    with h5py.File(path, "r+") as file:
        _, payload = file["wave"].id.read_direct_chunk((4, 0, 0))
        file["wave"].id.write_direct_chunk((4, 0, 0), bytes(len(payload)))
    assert "field 'wave', chunk 2" in fault_of(path)
    with opened(path) as store:
        assert [(d.field, d.start, d.stop) for d in store.verify().damaged if d.start < d.stop] == [
            ("wave", 4, 6)
        ]


def test_exchanged_chunks_are_found(copy: Callable[[str], Path]) -> None:
    path = copy("raw")
    with h5py.File(path, "r+") as file:
        wave = file["wave"].id
        (_, one), (_, other) = wave.read_direct_chunk((4, 0, 0)), wave.read_direct_chunk((8, 0, 0))
        wave.write_direct_chunk((4, 0, 0), other)
        wave.write_direct_chunk((8, 0, 0), one)
    assert "field 'wave', chunk 2" in fault_of(path)
    with opened(path) as store:
        damaged = [(d.field, d.start) for d in store.verify().damaged if d.field]
        assert damaged == [("wave", 4), ("wave", 8)]


def test_a_file_cut_anywhere_is_refused(copy: Callable[[str], Path]) -> None:
    path = copy("lz4")
    for size in range((path.stat().st_size - 1) // 512 * 512, -1, -512):
        os.truncate(path, size)
        assert fault_of(path)


def test_a_dataset_written_again_is_found(copy: Callable[[str], Path]) -> None:
    path = copy("raw")
    with h5py.File(path, "r+") as file:
        file["count"][5] = 0  # h5py puts a right Fletcher-32 behind it
    assert "field 'count', chunk 1" in fault_of(path)


def test_an_edited_description_stays_fresh_and_is_told(copy: Callable[[str], Path]) -> None:
    path = copy("raw")
    with h5py.File(path, "r+") as file:
        file["wave"].attrs["long_name"] = "sound"
    with opened(path) as store:
        assert store.edited
        assert store.freshness(LOAF)
        assert_holds_loaf(store)
        assert [(d.file, d.found) for d in store.verify().damaged] == [
            ("wave", "description edited since the bake")
        ]


def test_an_edited_key_is_damage_and_not_believed(copy: Callable[[str], Path]) -> None:
    path = copy("raw")
    with h5py.File(path, "r+") as file:
        file["time"].attrs["units"] = "ms"
        file.attrs["parbake_digest"] = "0" * 64
    with opened(path) as store:
        assert store.coords["time"].units == "s"
        assert store.freshness(LOAF)
        assert {d.file for d in store.verify().damaged} == {"/", "time"}


def test_a_document_changed_by_hand_is_refused(copy: Callable[[str], Path]) -> None:
    path = copy("raw")
    with h5py.File(path, "r+") as file:
        from crc32c import crc32c

        text = file["manifest/document"][()].replace(b'"parbake_samples":30', b'"parbake_samples":29')
        file["manifest/document"][()] = text
        file["manifest/document"].attrs["crc32c"] = np.uint32(crc32c(text))
    assert "does not match its seal" in fault_of(path)


# ---- the same data in another form


REPACKED: dict[str, dict[str, Any]] = {
    "as it was": {"fletcher32": True},
    "no filter": {},
    "gzip": {"compression": "gzip", "fletcher32": True},
    "other chunks": {"chunks": (3, 24, 2), "fletcher32": True},
    "other shape": {"chunks": (2, 24, 2), "fletcher32": True, "shape": (31, 24, 2)},
    "contiguous": {"chunks": None},
    "other type": {"chunks": (2, 24, 2), "fletcher32": True, "dtype": "<f4"},
}


@pytest.mark.parametrize("how", REPACKED)
def test_a_repacked_field_is_refused_or_read_right(copy: Callable[[str], Path], how: str) -> None:
    path = copy("raw")
    with h5py.File(path, "r+") as file:
        values = file["wave"][()]
        del file["wave"]
        options = {"shape": values.shape, "dtype": values.dtype, "chunks": (2, 24, 2), **REPACKED[how]}
        file.create_dataset("wave", **options)[: len(values)] = values
    fault = fault_of(path)
    assert ("field 'wave' has" in fault) == (how != "as it was"), fault


def replaced(how: str, file: h5py.File, beside: Path) -> None:
    """Put something else in the place of a field."""
    shape, dtype = file["wave"].shape, file["wave"].dtype
    del file["wave"]
    if how == "soft link":
        file["wave"] = h5py.SoftLink("/count")
    elif how == "external link":
        file["wave"] = h5py.ExternalLink(beside.name, "/wave")
    elif how == "hard link to another field":
        file["wave"] = file["count"]
    elif how == "external storage":
        file.create_dataset("wave", shape, dtype, external=[(beside, 0, h5py.h5f.UNLIMITED)])
    elif how == "virtual dataset":
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource(beside, "wave", shape)
        file.create_virtual_dataset("wave", layout)
    elif how == "group":
        file.create_group("wave")


@pytest.mark.parametrize(
    "how",
    [
        *("soft link", "external link", "hard link to another field"),
        *("external storage", "virtual dataset", "group", "nothing"),
    ],
)
def test_what_is_no_dataset_of_the_file_is_refused(
    copy: Callable[[str], Path], baked: Path, how: str
) -> None:
    path = copy("raw")
    with h5py.File(path, "r+") as file:
        replaced(how, file, Path(shutil.copy(baked / "raw.h5", path.parent / "beside.h5")))
    assert "wave" in fault_of(path)


def test_a_soft_link_in_place_of_the_document_is_refused(copy: Callable[[str], Path], baked: Path) -> None:
    path = copy("raw")
    with h5py.File(path, "r+") as file:
        del file["manifest/document"]
        file["manifest/document"] = h5py.ExternalLink(str(baked / "raw.h5"), "/manifest/document")
    assert "is a link" in fault_of(path)


def test_h5repack_is_refused_or_read_right(copy: Callable[[str], Path], tmp_path: Path) -> None:
    h5repack = shutil.which("h5repack")
    if h5repack is None:
        pytest.skip("needs h5repack of the HDF5 tools")
    for options in ([], ["-f", "GZIP=4"], ["-f", "NONE"]):
        subprocess.run([h5repack, *options, copy("raw"), tmp_path / "again.h5"], check=True)
        fault_of(tmp_path / "again.h5")  # which compares what is read


# ---- telling files apart


def test_a_file_of_ours_is_told_from_others(baked: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "copied.h5", "w") as file:
        file.attrs["parbake_format"] = 1
    with h5py.File(tmp_path / "block.h5", "w", userblock_size=1024) as file:
        file["x"] = 1
    (tmp_path / "text").write_text("no signature" * 1000)
    (tmp_path / "cut.h5").write_bytes((baked / "raw.h5").read_bytes()[:600])
    assert is_hdf5(baked / "raw.h5")
    assert hdf5.is_ours(baked / "raw.h5")
    assert is_hdf5(tmp_path / "copied.h5")
    assert not hdf5.is_ours(tmp_path / "copied.h5")
    assert is_hdf5(tmp_path / "block.h5")
    assert not hdf5.is_ours(tmp_path / "block.h5")
    assert is_hdf5(tmp_path / "cut.h5")
    assert not hdf5.is_ours(tmp_path / "cut.h5")
    assert not is_hdf5(tmp_path / "text")
    assert not is_hdf5(tmp_path)
    assert not is_hdf5(tmp_path / "nothing")
    with pytest.raises(StoreNotFoundError):
        hdf5.open_contents(tmp_path / "nothing")
    with pytest.raises(NotAStoreError, match="did not write"):
        hdf5.open_contents(tmp_path / "copied.h5")


# ---- writing


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_a_damaged_source_is_not_written(baked: Path, tmp_path: Path, codec: str) -> None:
    source = Path(shutil.copytree(baked / f"{codec}.zarr", tmp_path / "source.zarr"))
    file = source / "wave" / "c" / "1" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with store_module.open_store(source) as store, pytest.raises(DamagedStoreError, match="shard 1"):
        write(store, tmp_path / "out.h5")
    assert sorted(os.listdir(tmp_path)) == ["source.zarr"]


@pytest.mark.parametrize("after", [0, 20, 60])
def test_a_full_disk_leaves_nothing(
    baked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    left = [after]
    written = os.pwritev

    def full(descriptor: int, parts: list[memoryview], at: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return written(descriptor, parts, at)

    monkeypatch.setattr(hdf5_blocks.os, "pwritev", full)
    with (
        store_module.open_store(baked / "raw.zarr") as store,
        pytest.raises(OSError, match="No space left"),
    ):
        write(store, tmp_path / "out.h5")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("parts", "block"), [(2, 1 << 22), (1000, 256), (7, 4096)])
def test_blocks_of_any_size_give_the_same_file(
    baked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int, block: int
) -> None:
    def short(descriptor: int, parts: list[memoryview], at: int) -> int:
        return os.pwrite(descriptor, b"".join(parts)[:100], at)

    with store_module.open_store(baked / "lz4.zarr") as store:
        # now, not before: HDF5 notes the name of a filter where a plugin has it, as importing netCDF4 brings
        wanted = write(store, tmp_path / "wanted.h5").read_bytes()
        monkeypatch.setattr(hdf5_blocks, "_PARTS_MAX", parts)
        monkeypatch.setattr(hdf5_blocks, "_BLOCK_NBYTES", block)
        monkeypatch.setattr(hdf5_blocks.os, "pwritev", short)
        assert write(store, tmp_path / "out.h5").read_bytes() == wanted


def test_a_kill_leaves_nothing_under_the_final_name(baked: Path, tmp_path: Path) -> None:
    def killed(after: int) -> None:
        told = []

        def progress(nbytes: int) -> None:
            told.append(nbytes)
            if len(told) == after:
                os.kill(os.getpid(), 9)

        with store_module.open_store(baked / "raw.zarr") as store:
            write(store, tmp_path / "out.h5", progress)

    for after in (1, 9, 20):
        assert ended(start_child(partial(killed, after))) == -9
        assert not (tmp_path / "out.h5").exists()
    assert ended(start_child(partial(killed, 1000))) == 0
    with opened(tmp_path / "out.h5") as store:
        assert_holds_loaf(store)
    assert leftovers(tmp_path / "out.h5") == []


# ---- the table of chunks


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    data=st.data(),
)
def test_a_table_has_every_chunk_where_h5py_has_it(shape: list[int], data: st.DataObject) -> None:
    chunks = tuple(data.draw(st.integers(1, length)) for length in shape)
    written = data.draw(st.integers(0, shape[0]))
    with h5py.File("table", "w", driver="core", backing_store=False, libver="v110") as file:
        dataset = file.create_dataset("x", shape, "u1", chunks=chunks, fletcher32=True)
        dataset[:written] = 1
        table = chunk_table(dataset)
        index = table.index
        assert np.prod(table.grid) == len(index.offset)
        for number, place in enumerate(np.ndindex(table.grid)):
            corner = tuple(np.multiply(place, chunks))
            if index.offset[number] == MISSING:
                assert corner[0] >= written
            else:
                info = dataset.id.get_chunk_info_by_coord(corner)
                assert (info.byte_offset, info.size) == (index.offset[number], index.nbytes[number])
        assert (index.offset != MISSING).sum() == dataset.id.get_num_chunks()


def test_a_table_of_too_many_chunks_is_refused() -> None:
    with h5py.File("table", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", (1 << 60, 2), "u1", chunks=(1, 2))
        with pytest.raises(CodecError, match="more than"):
            chunk_table(dataset)


@pytest.mark.parametrize("loaded", ["", "h5py.File(sys.argv[1])['wave'][0]", "import hdf5plugin"])
def test_a_blosc_of_another_library_is_no_obstacle(baked: Path, tmp_path: Path, loaded: str) -> None:
    """netCDF4 brings a filter for an HDF5 library of its own, which fails in h5py's."""
    if "hdf5plugin" in loaded:
        pytest.importorskip("hdf5plugin")
    target = tmp_path / "out.h5"
    code = f"""if 1:
        import sys, contextlib, netCDF4, h5py
        with contextlib.suppress(OSError):
            {loaded or "pass"}
        from parbake.producers.convert import convert
        convert(sys.argv[2], sys.argv[3], progress=False).close()
    """
    arguments = [str(baked / name) for name in ("lz4.h5", "lz4.zarr")]
    subprocess.run(
        [sys.executable, "-c", code, *arguments, str(target)], env=without_plugin_path(), check=True
    )
    with opened(target) as store:
        assert store.verify()


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip", ".h5"])
@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_every_container_opens_as_a_dataset(baked: Path, tmp_path: Path, suffix: str, codec: str) -> None:
    if (codec, suffix) == ("lz4", ".h5"):
        pytest.importorskip("hdf5plugin")
    target = baked / f"{codec}.zarr"
    if suffix != ".zarr":
        target = tmp_path / f"moved{suffix}"
        convert(baked / f"{codec}.zarr", target, progress=False).close()
    with open_store(target) as store:
        dataset = store.first(7).to_xarray()
        assert dict(dataset.sizes) == {"sample": 7, "time": 24, "channel": 2, "bin": 40, "end": 2}
        assert {"time", "f0", "level"} <= set(dataset.coords)
        np.testing.assert_array_equal(dataset["wave"].values, LOAF.values()["wave"][:7])
        dataset.close()


def test_filters_of_other_packages_are_not_asked(tmp_path: Path) -> None:
    """netCDF4 brings plugins to every HDF5 library in its process; its filter for Blosc refuses to be set."""
    pytest.importorskip("netCDF4")
    script = """
import sys, netCDF4, h5py, numpy, parbake
before = [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())]
waves = parbake.from_function(lambda i: {"x": numpy.full(99, i, "f4")}, 9, invalidation_keys={"v": 1})
for name in "ab":
    with parbake.bake(waves, f"{sys.argv[1]}/{name}.h5", progress=False) as store:
        assert (store["x"][:].T == range(9)).all()
assert [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())] == before
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=without_plugin_path())
    assert done.stderr == ""


def test_what_hdf5_writes_before_a_chunk_is_its_own(tmp_path: Path) -> None:
    """Making room in its cache, that is; of whatever size."""
    with (tmp_path / "a").open("w+b") as file, Writeback(file.fileno()) as writeback:
        blocks = hdf5_blocks.BlockFile(file.fileno(), writeback)
        shown, other = memoryview(bytes(64)), memoryview(b"m" * 64)
        blocks.instead(shown, (memoryview(b"b" * 60), memoryview(b"f" * 4)))
        for at, data in ((640, other), (64, shown), (128, shown)):
            blocks.seek(at)
            assert blocks.write(data) == 64
        blocks.flush()
        blocks.close()
        written = (tmp_path / "a").read_bytes()
        assert written[640:] == bytes(other)
        assert written[64:128] == b"b" * 60 + b"f" * 4
        assert written[128:192] == bytes(64)
        blocks.seek(0)
        with pytest.raises(OSError, match="descriptor"):  # not into what has its number by then
            blocks.write(other)
