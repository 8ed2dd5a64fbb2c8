"""Zarr that others wrote reads as they read it: zarr-python, tensorstore and xarray, version 2 and 3."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from foreign_zarr import DTYPES, assert_reads, assert_same_bits, store_of, values
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from parbake.errors import DamagedStoreError, NotAStoreError, ParbakeError, RecipeError
from parbake.store.chunkmap import FetchedMap, FieldMap, TiledMap
from parbake.store.opened import OpenFolder

FLOATS = np.arange(60, dtype="f4").reshape(10, 6)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Writers warn of what is not in the specification yet; readers of ours must not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of an array, and of its chunks, which may split any axis and be larger than the array."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    chunks = [draw(st.one_of(st.just(n), st.integers(1, n + 2))) for n in shape]
    return tuple(shape), tuple(chunks)


def written(array: Any, data: NDArray[Any], rows: int) -> NDArray[Any]:
    """What zarr-python reads after it wrote the first ``rows`` of ``data``, the rest left absent."""
    if rows:
        array[:rows] = data[:rows]
    return np.asarray(zarr.open_array(array.store, path=array.path, mode="r")[...])


V3_COMPRESSORS: list[list[Any]] = [
    [],
    [ZstdCodec()],
    [GzipCodec(level=1)],
    [BloscCodec(cname="lz4", shuffle="shuffle")],
    [Crc32cCodec()],
    [BloscCodec(cname="zstd", shuffle="bitshuffle"), Crc32cCodec()],
]


@settings(deadline=None, max_examples=120)
@given(
    shapes(),
    st.sampled_from(DTYPES),
    st.sampled_from(V3_COMPRESSORS),
    st.sampled_from([("default", "/"), ("default", "."), ("v2", "."), ("v2", "/")]),
    st.data(),
)
def test_v3_of_zarr_python(
    cut: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: str,
    compressors: list[Any],
    keys: tuple[str, str],
    data: st.DataObject,
) -> None:
    shape, chunks = cut
    shards: Any = None
    if data.draw(st.booleans(), "sharded"):
        shard = tuple(c * data.draw(st.integers(1, 3)) for c in chunks)
        shards = {"shape": shard, "index_location": data.draw(st.sampled_from(["start", "end"]))}
    order = data.draw(st.none() | st.permutations(range(len(shape))))
    endian = "big" if np.dtype(dtype).byteorder == ">" else "little"
    fill = data.draw(st.none() | st.sampled_from([0, 1]))
    wanted = values(dtype, shape)
    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(
            folder,
            name="g/x",
            shape=shape,
            dtype=np.dtype(dtype).newbyteorder("="),
            chunks=chunks,
            shards=shards,
            filters=[TransposeCodec(order=order)] if order is not None else None,
            serializer=BytesCodec(endian=endian if np.dtype(dtype).itemsize > 1 else None),  # type: ignore[arg-type]
            compressors=compressors or None,
            fill_value=values(dtype, (1,), 5)[0] if fill is None else fill,
            chunk_key_encoding={"name": keys[0], "separator": keys[1]},  # type: ignore[arg-type]
            dimension_names=[f"d{i}" for i in range(len(shape))] if fill else None,
            config={"write_empty_chunks": data.draw(st.booleans())},
        )
        read = written(array, wanted, data.draw(st.integers(0, shape[0]), "rows"))
        for checksums, mmap in (("first", True), ("always", False)):
            with store_of(Path(folder), checksums=checksums, mmap=mmap) as store:  # type: ignore[arg-type]
                assert isinstance(store.contents.maps["g/x"], FieldMap | TiledMap)
                assert store.contents.notices == ()
                assert_reads(store, "g/x", read)


V2_COMPRESSORS: list[Any] = [
    None,
    numcodecs.Zlib(1),
    numcodecs.GZip(1),
    numcodecs.BZ2(1),
    numcodecs.LZMA(preset=0),
    numcodecs.Zstd(1),
    numcodecs.LZ4(),
    *(numcodecs.Blosc(name, shuffle=i % 3) for i, name in enumerate(["lz4", "zstd", "blosclz", "zlib"])),
]


@settings(deadline=None, max_examples=120)
@given(
    shapes(),
    st.sampled_from(DTYPES),
    st.sampled_from(V2_COMPRESSORS),
    st.sampled_from("./"),
    st.sampled_from("CF"),
    st.data(),
)
def test_v2_of_zarr_python(
    cut: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: str,
    compressor: Any,
    separator: str,
    order: str,
    data: st.DataObject,
) -> None:
    shape, chunks = cut
    kind = np.dtype(dtype)
    filters = [numcodecs.Shuffle(kind.itemsize), numcodecs.CRC32(), numcodecs.Fletcher32()]
    if kind.kind in "iu":
        filters.append(numcodecs.Delta(kind.str))
    filters = data.draw(st.lists(st.sampled_from(filters), max_size=1), "filters")
    wanted = values(dtype, shape)
    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create(
            store=folder,
            path="x",
            shape=shape,
            dtype=kind,
            chunks=chunks,
            compressor=compressor,
            filters=filters or None,
            order=order,  # type: ignore[arg-type]
            fill_value=data.draw(st.sampled_from([None, 0, 1]), "fill"),
            dimension_separator="/" if separator == "/" else ".",
            zarr_format=2,
            config={"write_empty_chunks": data.draw(st.booleans())},
        )
        zarr.open_group(folder, mode="a", zarr_format=2)
        read = written(array, wanted, data.draw(st.integers(0, shape[0]), "rows"))
        with store_of(Path(folder)) as store:
            assert isinstance(store.contents.maps["x"], FieldMap | TiledMap)
            assert_reads(store, "x", read)


@settings(deadline=None, max_examples=60)
@given(shapes(), st.sampled_from(DTYPES), st.booleans(), st.data())
def test_tensorstore(
    cut: tuple[tuple[int, ...], tuple[int, ...]], dtype: str, sharded: bool, data: st.DataObject
) -> None:
    ts = pytest.importorskip("tensorstore")
    shape, chunks = cut
    kind = np.dtype(dtype)
    version = 3 if sharded else data.draw(st.sampled_from([2, 3]))
    with tempfile.TemporaryDirectory() as folder:
        kvstore = {"driver": "file", "path": folder, "file_io_sync": False}
        metadata: dict[str, Any] = {"shape": shape}
        if version == 2:
            metadata |= {
                "dtype": kind.str,
                "chunks": chunks,
                "order": data.draw(st.sampled_from("CF" if len(shape) > 1 else "C")),
                "dimension_separator": data.draw(st.sampled_from("./")),
                "compressor": data.draw(st.sampled_from([None, {"id": "zlib", "level": 1}, {"id": "blosc"}])),
                "fill_value": None,
            }
        else:
            endian = "big" if kind.byteorder == ">" else "little"
            inner: list[Any] = [{"name": "bytes", "configuration": {"endian": endian}}]
            inner += data.draw(st.sampled_from([[], [{"name": "crc32c"}], [{"name": "gzip"}]]))
            grid = chunks
            if sharded:
                grid = tuple(c * data.draw(st.integers(1, 3)) for c in chunks)
                index = [{"name": "bytes", "configuration": {"endian": "little"}}]
                index += data.draw(st.sampled_from([[], [{"name": "crc32c"}]]))
                config = {
                    "chunk_shape": chunks,
                    "codecs": inner,
                    "index_codecs": index,
                    "index_location": data.draw(st.sampled_from(["start", "end"])),
                }
                inner = [{"name": "sharding_indexed", "configuration": config}]
            metadata |= {
                "data_type": kind.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": grid}},
                "codecs": inner,
            }
        driver = "zarr" if version == 2 else "zarr3"
        spec = {"driver": driver, "kvstore": kvstore, "metadata": metadata, "create": True}
        array = ts.open(spec).result()
        rows = data.draw(st.integers(0, shape[0]), "rows")
        if rows:
            array[:rows].write(values(dtype, shape)[:rows]).result()
        with store_of(Path(folder)) as store:
            assert isinstance(store.contents.maps["data"], FieldMap | TiledMap)
            assert_reads(store, "data", array.read().result())


def test_fill_values_of_absent_chunks(tmp_path: Path) -> None:
    fills = {
        "float32": [np.nan, np.inf, -np.inf, -0.0, 1.5, np.frombuffer(b"\x01\x00\xc0\x7f", "<f4")[0]],
        "float64": [np.nan, 1e300],
        "float16": [np.inf, 65504.0],
        "int64": [-(2**63), 2**63 - 1],
        "uint64": [2**64 - 1],
        "bool": [True],
        "complex64": [complex(np.nan, -np.inf), 1 - 2j],
        "complex128": [complex(1e300, np.nan)],
    }
    for version in (2, 3):
        for i, (dtype, value) in enumerate((d, v) for d, some in fills.items() for v in some):
            path = tmp_path / f"{version}-{i}"
            array = zarr.create_array(
                path, shape=(5, 2), chunks=(2, 2), dtype=dtype, fill_value=value, zarr_format=version
            )
            array[2:4] = 1
            with store_of(path) as store:
                again = zarr.open_array(path, mode="r")  # a NaN's bits may be lost in writing
                assert_same_bits(store["data"][:], np.asarray(again[...]))


@pytest.mark.parametrize("fill", ["0x7fc00001", "0xffc00000", "NaN", "-Infinity"])
def test_fill_values_as_they_stand_in_json(fill: str, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x", shape=(3,), chunks=(2,), dtype="float32", fill_value=0)
    edit(tmp_path / "x/zarr.json", fill_value=fill)
    bits = {"0x7fc00001": 0x7FC00001, "0xffc00000": 0xFFC00000, "NaN": 0x7FC00000, "-Infinity": 0xFF800000}
    assert store_of(tmp_path / "x")["data"][:].view("u4").tolist() == [bits[fill]] * 3


# ---- xarray


def climate() -> Any:
    import xarray as xr

    time, lat = np.arange(8), np.linspace(-1, 1, 3)
    return xr.Dataset(
        {
            "t2m": (("time", "lat", "node"), values("<f4", (8, 3, 4)), {"units": "K", "long_name": "warmth"}),
            "mask": (("lat", "node"), np.ones((3, 4), bool)),
            "level": ("time", values("<i2", (8,))),
            "name": ("node", np.array(["a", "b", "c", "d"])),
        },
        coords={
            "time": ("time", time, {"units": "hours since 2000-01-01"}),
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "area": ("node", np.arange(4.0)),
        },
    )


@pytest.mark.parametrize(("version", "consolidated"), [*itertools.product([2, 3], [False, True])])
def test_xarray(version: int, consolidated: bool, tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    climate().to_zarr(tmp_path / "x", zarr_format=version, consolidated=consolidated)
    plain = xr.open_zarr(tmp_path / "x", decode_times=False)
    with store_of(tmp_path / "x") as store:
        assert set(store.fields) == {"t2m", "level", "time"}
        for name in store.fields:
            assert_reads(store, name, plain[name].values)
        field = store.fields["t2m"]
        assert (field.dims, field.units, field.description) == (("lat", "node"), "K", "warmth")
        assert set(store.coords) == {"lat", "area"}
        assert_same_bits(store.coords["lat"].values, plain["lat"].values)
        assert (store.coords["lat"].units, store.coords["lat"].dim) == ("degrees_north", None)
        assert store.coords["area"].dim == "node"
        notice, as_stored = store.contents.notices
        assert notice.startswith("left out: ")
        assert as_stored.startswith("values as stored; times are numbers: 'time' (")
        assert "mask (3, 4) bool [lat, node] (not along dimension 'time' of 8)" in notice
        assert "name" in notice


def test_xarray_along_another_dimension(tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    climate().to_zarr(tmp_path / "x", zarr_format=3)
    plain = xr.open_zarr(tmp_path / "x", decode_times=False)
    with store_of(tmp_path / "x", "node") as store:
        assert set(store.fields) == {"t2m", "mask", "area"}
        for name in store.fields:
            assert_reads(store, name, plain[name].transpose("node", ...).values)
        slow = [text for text in store.contents.notices if "axis 2" in text]
        assert len(slow) == 1
    with pytest.raises(
        RecipeError, match=r"x: no array .*'nodes'.*; its dimensions are 'lat', 'node', 'time'; it"
    ):
        store_of(tmp_path / "x", "nodes")


@pytest.mark.parametrize("version", [2, 3])
def test_datatree(version: int, tmp_path: Path) -> None:
    xr = pytest.importorskip("xarray")
    fine = xr.Dataset({"u": (("time", "x"), values("<f8", (6, 5)))}, coords={"x": np.arange(5.0)})
    coarse = xr.Dataset({"u": (("time", "x"), values("<f8", (6, 2)))}, coords={"x": np.arange(2.0)})
    tree = xr.DataTree.from_dict({"/run/fine": fine, "/run/coarse": coarse})
    tree.to_zarr(tmp_path / "x", zarr_format=version, consolidated=version == 2)
    with store_of(tmp_path / "x") as store:
        for name, dataset in (("run/fine/u", fine), ("run/coarse/u", coarse)):
            assert_reads(store, name, dataset["u"].values)
        dims = {store.fields[name].dims[0]: store.fields[name].shape[0] for name in store.fields}
        assert dict(sorted(dims.items())) in ({"x": 2, "run_fine_x": 5}, {"x": 5, "run_coarse_x": 2})
        for name, dataset in (("run/fine/u", fine), ("run/coarse/u", coarse)):
            assert_same_bits(store.coords[store.fields[name].dims[0]].values, dataset["x"].values)


# ---- what zarr-python reads


def edit(file: Path, **members: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | members))


def test_an_unknown_codec_is_read_by_zarr_python_and_told_once(tmp_path: Path) -> None:
    data = FLOATS
    nested = nested_sharding()
    zarr.create_array(tmp_path, name="x", data=data, chunks=(4, 6), serializer=nested, compressors=None)
    zarr.create_array(tmp_path, name="y", data=data, chunks=(4, 6))
    with store_of(tmp_path) as store:
        assert isinstance(store.contents.maps["x"], FetchedMap)
        assert isinstance(store.contents.maps["y"], FieldMap)
        assert_reads(store, "x", data)
        [notice] = store.contents.notices
        assert "field 'x'" in notice
        assert "'sharding_indexed' is read through zarr-python" in notice


def nested_sharding() -> Any:
    from zarr.codecs import ShardingCodec

    return ShardingCodec(
        chunk_shape=(2, 6), codecs=[ShardingCodec(chunk_shape=(1, 3), codecs=[BytesCodec()])]
    )


def many_tiles(folder: Path, **other: Any) -> NDArray[Any]:
    array = zarr.create_array(folder, name="x", shape=(3, 2_100), dtype="f4", chunks=(3, 2), **other)
    array[:, 1_000:1_030] = values("<f4", (3, 30))
    return np.asarray(array[...])


def test_many_tiles_are_read_by_zarr_python(tmp_path: Path) -> None:
    data = many_tiles(tmp_path)
    with store_of(tmp_path) as store:
        assert isinstance(store.contents.maps["x"], FetchedMap)
        assert_reads(store, "x", data)
        assert "1,050 chunks" in store.contents.notices[0]


def test_what_zarr_python_does_not_know_either_is_left_out(tmp_path: Path) -> None:
    group_of_two(tmp_path)
    edit(tmp_path / "x/zarr.json", chunk_grid={"name": "of tomorrow", "configuration": {}})
    with store_of(tmp_path) as store:
        assert list(store.fields) == ["y"]
        assert "the chunk grid 'of tomorrow' is read through zarr-python; " in store.contents.notices[0]


@pytest.mark.parametrize("version", [2, 3])
def test_a_zip_reads_as_its_folder(version: int, tmp_path: Path) -> None:
    """With a field that zarr-python reads; packed by zarr-python, and with a folder at its top."""
    folder = tmp_path / "x"
    many = many_tiles(folder / "g", zarr_format=version)
    zarr.open_group(folder, mode="a", zarr_format=version)
    zarr.create_array(folder, name="y", data=FLOATS[:3], chunks=(2, 6), zarr_format=version)
    for zipped, skip in ((tmp_path / "a.zip", folder), (tmp_path / "b.zip", tmp_path)):
        with zipfile.ZipFile(zipped, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(skip))
        with store_of(folder) as plain, store_of(zipped) as store:
            assert list(store.fields) == list(plain.fields) == ["g/x", "y"]
            assert store.contents.notices == plain.contents.notices
            assert_reads(store, "g/x", many)
            assert_reads(store, "y", FLOATS[:3])
            assert [store.nbytes_stored(n) for n in store.fields] == [
                plain.nbytes_stored(n) for n in plain.fields
            ]
            assert store.nbytes_stored("y") > 0


def test_what_zarr_python_reads_is_read_after_a_fork(tmp_path: Path) -> None:
    data = many_tiles(tmp_path)
    with store_of(tmp_path) as store:
        assert_same_bits(store["x"][:], data)
        child = os.fork()
        if not child:
            store.reader.reserve(1, ["x"], 0)  # nothing is decoded yet
            same = store.read([2, 0], ["x"])["x"].tobytes() == data[[2, 0]].tobytes()
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0


# ---- what is refused


def group_of_two(folder: Path) -> None:
    zarr.create_array(folder, name="x", data=FLOATS, chunks=(2, 6))
    zarr.create_array(folder, name="y", data=FLOATS, chunks=(4, 6), shards=(8, 6))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    group_of_two(folder)
    return folder


HOSTILE: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("a huge shape", lambda d: d.update(shape=[2**62, 6])),
    ("a huge sample", lambda d: d.update(shape=[10, 2**61])),
    ("a negative shape", lambda d: d.update(shape=[-10, 6])),
    ("a shape of floats", lambda d: d.update(shape=[10.0, 6])),
    ("a shape of bools", lambda d: d.update(shape=[True, 6])),
    ("no shape", lambda d: d.pop("shape")),
    ("a hundred axes", lambda d: d.update(shape=[1] * 100)),
    ("empty", lambda d: d.update(shape=[0, 6])),
    ("chunks of none", lambda d: grid_of(d).update(chunk_shape=[0, 6])),
    ("chunks of floats", lambda d: grid_of(d).update(chunk_shape=[2.0, 6])),
    ("chunks of another rank", lambda d: grid_of(d).update(chunk_shape=[2])),
    ("huge chunks", lambda d: grid_of(d).update(chunk_shape=[2**40, 6])),
    ("negative chunks", lambda d: grid_of(d).update(chunk_shape=[-2, 6])),
    ("a text as grid", lambda d: d.update(chunk_grid={"name": "regular"})),
    ("a fill value that does not fit", lambda d: d.update(fill_value="0x00")),
    ("a fill value of another kind", lambda d: d.update(fill_value=[1, 2, 3])),
    ("codecs that are none", lambda d: d.update(codecs=7)),
    ("no codecs", lambda d: d.update(codecs=[])),
    (
        "a separator that leaves",
        lambda d: d["chunk_key_encoding"].update(configuration={"separator": "/../"}),
    ),
    ("a structured dtype", lambda d: d.update(data_type={"name": "structured", "configuration": {}})),
    ("a pickle", lambda d: d["codecs"].insert(0, {"name": "numcodecs.pickle"})),
    ("a nested pickle", lambda d: d.update(codecs=[{"name": "a", "configuration": {"b": ["pickle"]}}])),
]


def grid_of(document: dict[str, Any]) -> dict[str, Any]:
    found = document["chunk_grid"]["configuration"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(("what", "change"), HOSTILE, ids=[what for what, _ in HOSTILE])
def test_hostile_metadata_of_one_array_leaves_the_others(
    what: str, change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    group_of_two(tmp_path)
    document = json.loads((tmp_path / "x/zarr.json").read_text())
    change(document)
    (tmp_path / "x/zarr.json").write_text(json.dumps(document))
    tracemalloc.start()
    with store_of(tmp_path) as store:
        assert list(store.fields) == ["y"]
        [notice] = store.contents.notices
        assert notice.startswith("left out: x (")
        assert "\n" not in notice
        assert ("pickle" in what) == ("pickled objects" in notice)  # no library was asked
        assert_same_bits(store["y"][:], FLOATS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    shutil.rmtree(tmp_path / "y")
    with pytest.raises(NotAStoreError, match=r"it holds x \("):
        store_of(tmp_path)


HOSTILE_V2: list[tuple[str, dict[str, Any]]] = [
    ("objects", {"dtype": "|O", "filters": [{"id": "pickle"}]}),
    ("a structure", {"dtype": [["a", "<f4"]]}),
    ("a dtype by another name", {"dtype": "float32"}),
    ("a time", {"dtype": "<M8[ns]"}),
    ("more than doubles", {"dtype": "<f16"}),
    ("a pickle of numbers", {"filters": [{"id": "pickle"}]}),
    ("a pickle that compresses", {"compressor": {"id": "Pickle"}}),
    ("chunks of none", {"chunks": [0, 6]}),
    ("a huge chunk", {"chunks": [2**40, 6]}),
    ("a huge shape", {"shape": [2**62, 6]}),
    ("a separator that leaves", {"dimension_separator": "/../"}),
    ("a fill value that does not fit", {"dtype": "|u1", "fill_value": 256}),
    ("a fill value that is a half", {"dtype": "|u1", "fill_value": 0.5}),
    ("a fill value that is a text", {"fill_value": "AAAA"}),
    ("filters that are none", {"filters": 7}),
    ("another version", {"zarr_format": 1}),
]


@pytest.mark.parametrize(("what", "change"), HOSTILE_V2, ids=[what for what, _ in HOSTILE_V2])
def test_hostile_metadata_of_version_2_leaves_the_others(
    what: str, change: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("x", "y"):
        zarr.create_array(tmp_path, name=name, data=FLOATS, chunks=(2, 6), zarr_format=2)
    edit(tmp_path / "x/.zarray", **change)
    with store_of(tmp_path) as store:
        assert list(store.fields) == ["y"]
        [notice] = store.contents.notices
        assert notice.startswith("left out: x (")
        assert what.startswith("a pickle") == ("pickled objects" in notice)  # no library was asked


SHARDS: list[tuple[str, dict[str, Any]]] = [
    ("that do not divide", {"chunk_shape": [3, 6]}),
    ("of none", {"chunk_shape": [0, 6]}),
    ("larger than the shard", {"chunk_shape": [16, 6]}),
    ("at no place", {"index_location": "middle"}),
    ("without codecs", {"codecs": None}),
]


@pytest.mark.parametrize(("what", "change"), SHARDS, ids=[what for what, _ in SHARDS])
def test_hostile_shards_leave_the_others(what: str, change: dict[str, Any], tmp_path: Path) -> None:
    group_of_two(tmp_path)
    document = json.loads((tmp_path / "y/zarr.json").read_text())
    document["codecs"][0]["configuration"] |= change
    (tmp_path / "y/zarr.json").write_text(json.dumps(document))
    with store_of(tmp_path) as store:
        assert list(store.fields) == ["x"]
        assert store.contents.notices[0].startswith("left out: y (")


def test_a_shard_of_too_many_chunks_is_left_out(tmp_path: Path) -> None:
    group_of_two(tmp_path)
    document = json.loads((tmp_path / "y/zarr.json").read_text())
    grid_of(document)["chunk_shape"] = [2**50, 6]
    (tmp_path / "y/zarr.json").write_text(json.dumps(document))
    assert list(store_of(tmp_path).fields) == ["x"]


@pytest.mark.parametrize("entry", [0, 5, 2**63, 2**64 - 2, 10_000])
@pytest.mark.parametrize("column", [0, 1])
def test_a_shard_index_that_points_outside_is_found(entry: int, column: int, tmp_path: Path) -> None:
    """Without a checksum of the index, and none of the chunks: sizes alone tell."""
    ts = pytest.importorskip("tensorstore")
    config = {
        "chunk_shape": [1, 6],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    metadata = {
        "shape": [4, 6],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 6]}},
        "codecs": [{"name": "sharding_indexed", "configuration": config}],
    }
    kvstore = {"driver": "file", "path": str(tmp_path)}
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, "create": True}
    ts.open(spec).result().write(FLOATS[:4]).result()
    file = tmp_path / "c/0/0"
    index = np.frombuffer(file.read_bytes()[-64:], "<u8").reshape(4, 2).copy()
    index[2, column] = entry
    file.write_bytes(file.read_bytes()[:-64] + index.tobytes())
    inside = column == 0 and entry in (0, 5)  # other bytes of the file: nothing could tell
    with store_of(tmp_path) as store:
        if inside:
            assert store["data"][:].shape == (4, 6)
        else:
            with pytest.raises(DamagedStoreError, match=r"field 'data', (shard 0|chunk 2) .*"):
                store["data"][:]


def test_links_are_not_followed(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "real", name="x", data=FLOATS, chunks=(2, 6))
    zarr.create_array(tmp_path / "other", name="z", data=FLOATS, chunks=(2, 6))
    (tmp_path / "real/linked").symlink_to(tmp_path / "other/z")
    (tmp_path / "real/README").write_text("a file among the arrays")
    with store_of(tmp_path / "real") as store:
        assert list(store.fields) == ["x"]
        assert store.contents.notices == ("not looked at: linked is not a folder of the store",)
    chunk = tmp_path / "real/x/c/1/0"
    chunk.unlink()
    chunk.symlink_to(tmp_path / "other/z/c/0/0")
    with store_of(tmp_path / "real") as store, pytest.raises(DamagedStoreError, match="not a plain file"):
        store["x"][:]


@pytest.mark.parametrize("name", ["../other/z", "a/../../other/z", "/etc", "x//y", "."])
@pytest.mark.parametrize("version", [2, 3])
def test_names_that_leave_the_store_are_refused(name: str, version: int, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "other", name="z", data=FLOATS, chunks=(2, 6), zarr_format=version)
    zarr.create_array(tmp_path / "real", name="x", data=FLOATS, chunks=(2, 6), zarr_format=version)
    zarr.consolidate_metadata(tmp_path / "real", zarr_format=version)
    file = tmp_path / "real" / (".zmetadata" if version == 2 else "zarr.json")
    document = json.loads(file.read_text())
    nodes = document["metadata"] if version == 2 else document["consolidated_metadata"]["metadata"]
    suffix = "/.zarray" if version == 2 else ""
    nodes[f"{name}{suffix}"] = nodes[f"x{suffix}"]
    file.write_text(json.dumps(document))
    with store_of(tmp_path / "real") as store:
        assert list(store.fields) == ["x"]
        assert repr(name) in store.contents.notices[0]


@pytest.mark.parametrize(
    "root",
    [
        "",
        "no JSON",
        "[" * 100_000,
        "[]",
        "{}",
        '{"zarr_format": 3, "node_type": "group", "consolidated_metadata": []}',
        '{"zarr_format": 3, "node_type": "group", "consolidated_metadata": {"metadata": {"x": []}}}',
        '{"zarr_format": 3, "node_type": "array"}',
    ],
)
def test_a_root_that_is_none(root: str, tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text(root)
    with pytest.raises(NotAStoreError) as raised:
        store_of(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_empty_folder_is_no_zarr(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match=r"an empty folder$"):
        store_of(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NotAStoreError, match=r"neither zarr.json nor .zgroup nor .zarray.*notes.txt"):
        store_of(tmp_path)


def test_groups_in_groups_come_to_an_end(tmp_path: Path) -> None:
    path = "/".join("g" * 30)
    zarr.create_array(tmp_path, name=f"{path}/x", data=FLOATS)
    zarr.create_array(tmp_path, name="y", data=FLOATS)
    with store_of(tmp_path) as store:
        assert list(store.fields) == ["y"]
        assert "groups deep" in store.contents.notices[0]


def outcome(run: Callable[[], Any]) -> tuple[Any, str]:
    """What it gives, or the text of the error that it ends in."""
    try:
        return run(), ""
    except ParbakeError as error:
        return None, str(error)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Arrays with a crc32c, with sizes alone, and with none, and the file of one chunk."""
    folder = tmp_path_factory.mktemp("three")
    shard: Any = {"data": FLOATS, "chunks": (2, 6), "shards": (6, 6)}
    zarr.create_array(folder / "crc", **shard, compressors=[Crc32cCodec()])
    zarr.create_array(folder / "gzip", **shard, compressors=[GzipCodec()])
    blosc: Any = numcodecs.Blosc("lz4")
    zarr.create_array(folder / "v2", data=FLOATS, chunks=(5, 6), compressors=blosc, zarr_format=2)
    files = {"crc": "c/0/0", "gzip": "c/0/0", "v2": "0.0"}
    return {kind: (folder / kind, file) for kind, file in files.items()}


@settings(deadline=None, max_examples=150)
@given(kind=st.sampled_from(["crc", "gzip", "v2"]), data=st.data())
def test_flipped_bits_are_found_or_give_other_samples(
    three: dict[str, tuple[Path, str]], kind: str, data: st.DataObject
) -> None:
    """Found wherever a crc32c covers them; elsewhere an error in a line or samples of the right shape."""
    path, name = three[kind]
    whole = (path / name).read_bytes()
    content = bytearray(whole)
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    (path / name).write_bytes(content)
    try:
        with store_of(path) as store:
            found, error = outcome(lambda: store["data"][:])
    finally:
        (path / name).write_bytes(whole)
    assert "\n" not in error
    assert error or (found.shape == FLOATS.shape and kind != "crc")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_metadata_with_flipped_bytes_opens_or_is_refused_in_a_line(two: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(two, folder, dirs_exist_ok=True)
        file = Path(folder) / data.draw(st.sampled_from(["zarr.json", "x/zarr.json", "y/zarr.json"]))
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.sampled_from(b'0123456789-.,:"{}[]ntfe '))
        file.write_bytes(content)

        def read() -> bool:
            with store_of(Path(folder)) as store:
                return all(len(array) == 2 for array in store.read([0, -1]).values())

        read_it, error = outcome(read)
        assert "\n" not in error
        assert read_it or error


# ---- the rest


def test_sizes_on_disk(tmp_path: Path) -> None:
    group_of_two(tmp_path)
    with store_of(tmp_path) as store:
        for name in ("x", "y"):
            files = [f for f in (tmp_path / name / "c").rglob("*") if f.is_file()]
            assert store.nbytes_stored(name) == sum(f.stat().st_size for f in files) > 0


def test_coordinates_that_a_group_names(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path, mode="w", attributes={"coordinates": "area other"})
    for folder in (group, group.create_group("g")):
        folder.create_array("u", data=FLOATS, dimension_names=["time", "node"])
    group.create_array("area", data=FLOATS[0], dimension_names=["node"])
    group.create_array("unsaid", data=FLOATS[0], dimension_names=["node"])
    with store_of(tmp_path) as store:
        assert list(store.fields) == ["g/u", "u"]
        assert list(store.coords) == ["area"]
        assert_same_bits(store.coords["area"].values, FLOATS[0])


def test_another_content_has_another_version(tmp_path: Path) -> None:
    group_of_two(tmp_path)
    first = store_of(tmp_path).contents.version
    assert store_of(tmp_path).contents.version == first
    edit(tmp_path / "x/zarr.json", attributes={"units": "m"})
    assert store_of(tmp_path).contents.version != first


def test_raw_chunks_are_seen_in_the_map(tmp_path: Path) -> None:
    zarr.create_array(tmp_path, name="x", data=FLOATS, chunks=(4, 6), compressors=None)
    with store_of(tmp_path) as store:
        view = store.read([4, 5, 6], ["x"], view=True)["x"]
        assert_same_bits(view, FLOATS[4:7])
        assert not view.flags.writeable
        assert not view.flags.owndata


def test_names_of_a_folder(tmp_path: Path) -> None:
    group_of_two(tmp_path)
    folder = OpenFolder(tmp_path)
    assert folder.names("") == ["x", "y", "zarr.json"]
    assert folder.names("x") == ["c", "zarr.json"]
    (tmp_path / "link").symlink_to(tmp_path / "x")
    for name in ("link", "zarr.json", "link/c"):
        with pytest.raises(ValueError, match="is not a folder"):
            folder.names(name)
    with pytest.raises(FileNotFoundError):
        folder.names("z")
    folder.close()
