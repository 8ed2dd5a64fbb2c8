"""Stores as others read them: zarr-python, tensorstore, xarray. The values come from arrays of our own."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, NotAStoreError, StoreWarning
from parbake.producers.bake import bake
from parbake.producers.function import FunctionProducer
from parbake.store import layout as layouts
from parbake.store.layout import Coord, Field
from parbake.store.store import Store, open_store

SAMPLES = 21  # of slabs of 8: the last slab, shard and chunk of every field are partial
CODECS = ("raw", "lz4", "zstd")
DTYPES = {
    "f8": "<f8",
    "f4": "<f4",
    "f2": "<f2",
    "big_f4": ">f4",
    "big_i2": ">i2",
    "i2": "<i2",
    "u1": "|u1",
    "flags": "|b1",
    "c8": "<c8",
}
SCALARS = {"f0": "<f4", "big_level": ">f4", "midi": ">i2", "voiced": "|b1"}
TIME = np.arange(11) / 44_100


def arrays(values: Mapping[str, NDArray[Any]], fields: Mapping[str, Field]) -> FunctionProducer:
    """A producer of arrays that are there already, known by their content."""
    keys = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in values.items()}
    samples = len(next(iter(values.values())))
    return FunctionProducer(
        lambda i: {name: array[i] for name, array in values.items()}, samples, fields, keys, visible=False
    )


def drawn(dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Values of every kind a dtype has, but for NaN: negative zeros, infinities, extremes."""
    random = np.random.default_rng(len(shape) + ord(dtype[1]))
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return random.random(shape) < 0.5
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return random.integers(limits.min, limits.max, shape, np.dtype(dtype).newbyteorder("="), True).astype(
            kind
        )
    values = random.normal(size=shape).astype(kind)
    special = [-0.0, 0.0, np.inf, -np.inf, np.finfo(kind).max, np.finfo(kind).smallest_subnormal]
    values.reshape(-1)[: len(special)] = special
    return values


def content() -> tuple[dict[str, NDArray[Any]], dict[str, Field]]:
    """Fields of every dtype, odd shape and number of axes, most with dimensions of their own."""
    values, fields = {}, {}
    for number, (name, dtype) in enumerate(DTYPES.items()):
        shape = (11, 7) if number % 2 else (73 + number,)
        values[name] = drawn(dtype, (SAMPLES, *shape))
        fields[name] = Field(shape, dtype, tuple(f"{name}_{axis}" for axis in range(len(shape))), units="V")
    values["x"] = drawn("<f4", (SAMPLES, 11, 3))
    fields["x"] = Field(
        (11, 3),
        "f4",
        ("time", "channel"),
        units="V",
        description="what goes in",
        coords={
            "time": Coord(TIME, "s"),
            "depth": Coord(np.arange(11, dtype=np.float32), "m", dim="time"),
            "channel": Coord(["v x", "v y", "p"]),
        },
    )
    for name, dtype in SCALARS.items():
        values[name] = drawn(dtype, (SAMPLES,))
        fields[name] = Field((), dtype, (), units="Hz" if name == "f0" else None)
    values["position"] = drawn("<f8", (SAMPLES, 3))
    fields["position"] = Field((3,), "f8", ("axis",))
    return values, fields


VALUES, FIELDS = content()


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Several slabs, shards and chunks within a few samples."""
    patch.setattr(layouts, "SHARD_NBYTES", 6_000)  # eight samples of the largest field
    patch.setattr(layouts, "CHUNK_NBYTES", 700)
    patch.setattr(layouts, "SLAB_SAMPLES_MAX", 8)
    patch.setattr(layouts, "SCALAR_CHUNK_SAMPLES", 8)
    patch.setattr(layouts, "SCALAR_SHARD_SAMPLES", 16)


@pytest.fixture(scope="module", params=CODECS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    path = tmp_path_factory.mktemp("foreign") / f"{request.param}.zarr"
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        store = bake(arrays(VALUES, FIELDS), path, codec=request.param, batch_size=5, progress=False)
    with store:
        yield store


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Path:
    """The store's files, to be changed."""
    return Path(shutil.copytree(store.path, tmp_path / "copy.zarr"))


def no_warning() -> warnings.catch_warnings[None]:
    return warnings.catch_warnings(action="error")


def same_bits(found: Any, wanted: NDArray[Any]) -> bool:
    found, native = np.asarray(found), wanted.dtype.newbyteorder("=")
    return (
        found.dtype.newbyteorder("=") == native
        and found.shape == wanted.shape
        and found.astype(native).tobytes() == wanted.astype(native).tobytes()
    )


# ---- that the stores are what these tests are about


def test_the_small_layout_has_partial_slabs_shards_and_chunks(store: Store) -> None:
    assert store.layout.slab_samples == 8
    for field in store.layout.fields.values():
        assert field.shard_count(SAMPLES) > 1
        assert SAMPLES % field.chunk_samples or field.chunk_samples == 1
    assert {field.chunks_per_shard for field in store.layout.fields.values()} >= {2, 4, 8}


def test_every_codec_chain_is_the_one_asked_for(store: Store) -> None:
    wanted = store.path.stem
    for name in FIELDS:
        sharding = json.loads((store.path / name / "zarr.json").read_text())["codecs"]
        assert [codec["name"] for codec in sharding] == ["sharding_indexed"]
        inner = sharding[0]["configuration"]["codecs"]
        names = [codec.get("configuration", {}).get("cname", codec["name"]) for codec in inner]
        scalar = store.fields[name].is_scalar
        assert names == (["bytes", "crc32c"] if scalar or wanted == "raw" else ["bytes", wanted, "crc32c"])


# ---- who reads them


@pytest.mark.parametrize("name", FIELDS)
def test_zarr_python_reads_every_bit(store: Store, name: str) -> None:
    with no_warning():
        array = zarr.open_group(store.path, mode="r")[name]
        assert same_bits(array[:], VALUES[name])
        assert same_bits(array[7:10], VALUES[name][7:10])
        assert same_bits(array.oindex[[20, 0, 8]], VALUES[name][[20, 0, 8]])
        assert same_bits(zarr.open_array(store.path / name, mode="r")[-1], VALUES[name][-1])


@pytest.mark.parametrize("name", FIELDS)
def test_tensorstore_reads_every_bit(store: Store, name: str) -> None:
    kvstore = {"driver": "file", "path": str(store.path / name)}
    with no_warning():
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()
        assert same_bits(array.read().result(), VALUES[name])
        assert same_bits(array[6:19].read().result(), VALUES[name][6:19])


@pytest.mark.parametrize("name", FIELDS)
def test_xarray_reads_every_bit(store: Store, name: str) -> None:
    with no_warning():
        with xr.open_zarr(store.path) as dataset:
            assert same_bits(dataset[name].values, VALUES[name])
        with xr.open_dataset(store.path, engine="zarr") as dataset:
            assert same_bits(dataset[name].isel(sample=slice(15, None)).values, VALUES[name][15:])


@pytest.mark.parametrize("name", FIELDS)
def test_our_reader_agrees(store: Store, name: str) -> None:
    assert same_bits(store[name][:], VALUES[name])
    assert store[name].dtype.isnative


def test_zarr_python_finds_all_metadata_consolidated(store: Store) -> None:
    with no_warning():
        group = zarr.open_group(store.path, mode="r", use_consolidated=True)
        assert set(group.array_keys()) == {*FIELDS, "time", "depth", "channel"}
        assert set(group["manifest"].group_keys()) == set(FIELDS)
        plain = zarr.open_group(store.path, mode="r", use_consolidated=False)
        for name, node in plain.members(max_depth=None):
            assert node.metadata.to_dict()["attributes"] == group[name].metadata.to_dict()["attributes"]
            if isinstance(node, zarr.Array):
                assert str(node.metadata) == str(group[name].metadata)  # as text, for NaN equals no NaN


def without_checksums(file: bytes, chunks: int) -> bytes:
    """A shard but for the CRCs that its header, its chunks and its index end in."""
    index = np.frombuffer(file[-4 - 16 * chunks : -4], "<u8").reshape(-1, 2)
    ends = sorted({64, len(file), *(int(sum(entry)) for entry in index if entry[1] != 2**64 - 1)})
    return b"".join(file[start : end - 4] for start, end in zip([0, *ends[:-1]], ends, strict=True))


def test_the_manifest_is_right_by_another_crc(store: Store) -> None:
    from google_crc32c import value

    with no_warning():
        manifest = zarr.open_group(store.path / "manifest", mode="r")
        for name, field in store.fields.items():
            for shard, (nbytes, crc) in enumerate(
                zip(manifest[name]["nbytes"][:], manifest[name]["crc32c"][:], strict=True)
            ):
                file = store.path.joinpath(name, "c", str(shard), *["0"] * len(field.shape)).read_bytes()
                assert len(file) == nbytes
                assert value(without_checksums(file, field.layout.chunks_per_shard)) == crc
            assert manifest[name]["nbytes"].shape == (field.layout.shard_count(SAMPLES),)


# ---- what a colleague sees


def test_xarray_shows_dimensions_units_and_coordinates(store: Store) -> None:
    with no_warning(), xr.open_zarr(store.path) as dataset:
        assert dataset.sizes["sample"] == SAMPLES
        assert dataset["x"].dims == ("sample", "time", "channel")
        assert dataset["x"].attrs["units"] == "V"
        assert dataset["x"].attrs["long_name"] == "what goes in"
        assert set(dataset.coords) == {*SCALARS, "position", "time", "depth", "channel"}
        assert (dataset["depth"].dims, dataset["depth"].attrs) == (("time",), {"units": "m"})
        assert json.loads(dataset["channel"].attrs["labels"]) == ["v x", "v y", "p"]
        assert dataset["f0"].dims == ("sample",)
        assert dataset["f0"].attrs["units"] == "Hz"
        assert same_bits(dataset["time"].values, TIME)
        assert dataset["time"].attrs == {"units": "s"}
        assert dataset["x"].sel(time=TIME[4]).shape == (SAMPLES, 3)
        assert dataset.attrs["parbake_digest"] == store.digest
        assert json.loads(dataset.attrs["parbake_keys"]) == store.invalidation_keys.shared
        statistics = json.loads(dataset["midi"].attrs["statistics"])
        assert statistics["max"] == VALUES["midi"].max()


def test_open_datatree_reads_fields_of_any_dimensions(store: Store) -> None:
    with no_warning(), xr.open_datatree(store.path, engine="zarr") as tree:
        assert set(tree["manifest"].children) == set(FIELDS)
        for name in FIELDS:
            assert same_bits(tree[name].values, VALUES[name])
        shards = tree["manifest/x/nbytes"].values
        assert shards.tolist() == store.manifest("x").nbytes.tolist()


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_writes_what_it_read_to_netcdf(store: Store, tmp_path: Path, engine: str) -> None:
    foreign = {"f2", "c8"}  # netCDF has no half floats and no complex numbers
    with no_warning():
        with xr.open_zarr(store.path) as dataset:
            dataset.drop_vars(foreign).to_netcdf(tmp_path / "copy.nc", engine=engine)
        with xr.open_dataset(tmp_path / "copy.nc", engine=engine) as read:
            for name in FIELDS.keys() - foreign:
                assert same_bits(read[name].values, VALUES[name])
            assert read["x"].attrs["long_name"] == "what goes in"
            assert read.attrs["parbake_digest"] == store.digest
            assert {"f0", "time"} <= set(read.coords)


def test_half_floats_reach_netcdf_as_float32(store: Store, tmp_path: Path) -> None:
    with no_warning():
        with xr.open_zarr(store.path) as dataset:
            dataset[["f2"]].astype("f4").to_netcdf(tmp_path / "half.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / "half.nc", engine="h5netcdf") as read:
            assert same_bits(read["f2"].values, VALUES["f2"].astype("f4"))


def test_a_datatree_goes_to_netcdf(store: Store, tmp_path: Path) -> None:
    with no_warning():
        with xr.open_datatree(store.path, engine="zarr") as tree:
            tree.to_dataset().drop_vars(["f2", "c8"]).to_netcdf(tmp_path / "root.nc", engine="h5netcdf")
            tree["manifest"].to_netcdf(tmp_path / "manifest.nc", engine="h5netcdf")
        with xr.open_datatree(tmp_path / "manifest.nc", engine="h5netcdf") as read:
            assert set(read["manifest"].children) == set(FIELDS)


@pytest.mark.parametrize("consolidated", [True, False])
def test_attributes_that_travelled_make_no_store(store: Store, tmp_path: Path, consolidated: bool) -> None:
    copied = tmp_path / "copied.zarr"
    with xr.open_zarr(store.path) as dataset, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")  # zarr's, of what xarray writes
        warnings.filterwarnings("error", "(?!Consolidated)")
        dataset.drop_encoding().to_zarr(copied, consolidated=consolidated)
    with xr.open_zarr(copied, consolidated=consolidated) as read:
        assert read.attrs["parbake_digest"] == store.digest  # the trap: the keys came along
        assert same_bits(read["x"].values, VALUES["x"])
    with open_store(copied) as foreign:
        assert foreign.is_foreign
        assert not foreign.freshness(arrays(VALUES, FIELDS))
        assert foreign.provenance == {}
        assert same_bits(foreign["x"][:], VALUES["x"])
    for rebuild in (True, False):
        with pytest.raises(NotAStoreError, match="not baked by parbake"):
            bake(arrays(VALUES, FIELDS), copied, rebuild=rebuild, progress=False)


def test_a_copied_tree_is_foreign(store: Store, tmp_path: Path) -> None:
    """xarray copies even the seal and the manifest; what it writes has attributes that ours have not."""
    copied = tmp_path / "tree.zarr"
    with xr.open_datatree(store.path, engine="zarr") as tree, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree.to_zarr(copied)
    with pytest.warns(StoreWarning, match="left out: manifest"):
        foreign = open_store(copied)
    with foreign:
        assert foreign.is_foreign
        assert not foreign.freshness(arrays(VALUES, FIELDS))
        for name in FIELDS:
            assert same_bits(foreign[name][:], VALUES[name])


def test_a_description_edited_with_zarr_python(copy: Path) -> None:
    zarr.open_array(copy / "x").attrs["long_name"] = "what came in"
    with open_store(copy) as edited:
        assert [d.found for d in edited.verify().damaged] == ["description edited since the bake"]
        assert same_bits(edited["x"][:], VALUES["x"])


def test_a_title_given_with_zarr_python(copy: Path) -> None:
    group = zarr.open_group(copy)
    group.attrs["title"] = "amplifier, channel A"
    assert json.loads((copy / "zarr.json").read_text())["attributes"]["title"] == "amplifier, channel A"
    with open_store(copy) as edited:
        assert edited.edited
        assert edited.verify()
        assert same_bits(edited["x"][:], VALUES["x"])


@pytest.mark.parametrize("attribute", ["parbake_keys", "parbake_samples", "parbake_provenance"])
def test_keys_edited_with_zarr_python(copy: Path, attribute: str) -> None:
    group = zarr.open_group(copy)
    value = group.attrs[attribute]
    group.attrs[attribute] = value - 1 if isinstance(value, int) else value.replace("1", "2", 1)
    with pytest.raises(DamagedStoreError, match="does not match its seal"):
        open_store(copy)


def test_units_edited_with_zarr_python(copy: Path) -> None:
    zarr.open_array(copy / "x").attrs["units"] = "mV"
    with open_store(copy) as edited:
        faults = edited.verify().damaged
    assert [(d.file, d.found) for d in faults] == [("x/zarr.json", "differs from the sealed copy")]


# ---- nothing is left out


@pytest.fixture(scope="module", params=CODECS)
def zeros(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    fields = {name: FIELDS[name] for name in ("f8", "f2", "big_i2", "u1", "flags", "x", "f0", "voiced")}
    values = {name: np.zeros_like(VALUES[name]) for name in fields}
    path = tmp_path_factory.mktemp("zeros") / f"{request.param}.zarr"
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        store = bake(arrays(values, fields), path, codec=request.param, progress=False)
    with store:
        yield store


def test_all_zero_chunks_are_written(zeros: Store) -> None:
    for name, field in zeros.fields.items():
        layout = field.layout
        for shard in range(layout.shard_count(SAMPLES)):
            file = zeros.path.joinpath(name, "c", str(shard), *["0"] * len(field.shape)).read_bytes()
            index = np.frombuffer(file[-4 - 16 * layout.chunks_per_shard : -4], "<u8").reshape(-1, 2)
            valid = min(layout.shard_samples, SAMPLES - shard * layout.shard_samples)
            present = (index != 2**64 - 1).all(axis=1)
            assert present.sum() == -(-valid // layout.chunk_samples)
            assert (index[present, 0] % 64 == 0).all()


def test_zeros_are_read_as_zeros_and_what_is_missing_as_nan(zeros: Store, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(zeros.path, tmp_path / "copy.zarr"))
    with no_warning():
        group = zarr.open_group(copied, mode="r")
        for name, field in zeros.fields.items():
            array = group[name]
            assert not np.asarray(array[:]).any()
            assert bool(np.isnan(array.fill_value)) == (field.dtype.kind in "fc")
        shutil.rmtree(copied / "x" / "c" / "1")
        assert np.isnan(group["x"][8:16]).all()
        assert not group["x"][:8].any()
    with open_store(copied) as store:
        assert not store["x"][:8].any()
        with pytest.raises(DamagedStoreError, match=r"field 'x'.*\(samples 8-.*missing"):
            store.read([8])
        with pytest.raises(DamagedStoreError):
            store["x"][:]


# ---- the layout as shipped


def test_several_shards_of_the_true_size(tmp_path: Path) -> None:
    samples, length = 131, 80_000
    wave = np.sin(np.arange(length + samples, dtype="f8") / 9).astype("f4")
    x = np.lib.stride_tricks.sliding_window_view(wave, length)[:samples]
    level = np.arange(samples, dtype="f4")
    fields = {"x": Field((length,), "f4", ("time",)), "level": Field((), "f4", ())}
    path = tmp_path / "true.zarr"
    with bake(arrays({"x": x, "level": level}, fields), path, progress=False) as store:
        assert store.layout.slab_samples == 128
        assert store.layout.fields["x"].chunk_samples == 1
        assert len(store.manifest("x").nbytes) == 2
        assert same_bits(store["x"][120:], x[120:])
        assert store.verify()
    with no_warning():
        group = zarr.open_group(path, mode="r")
        assert same_bits(group["x"][125:], x[125:])
        assert same_bits(group["level"][:], level)
        with xr.open_zarr(path) as dataset:
            assert same_bits(dataset["x"].isel(sample=slice(127, 130)).values, x[127:130])
        kvstore = {"driver": "file", "path": str(path / "x")}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()
        assert same_bits(array.read().result(), x)
