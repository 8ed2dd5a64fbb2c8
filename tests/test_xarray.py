"""Stores in xarray: every way of indexing against NumPy's, lazily, in all containers; trees; copies."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from bakery import Loaf, same, tiny_slabs
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from xarray.core import indexing

from parbake.browse import xarrays
from parbake.browse.engine import ParbakeBackend
from parbake.errors import NotAStoreError, RecipeError, StoreNotFoundError, StoreWarning
from parbake.producers.bake import bake
from parbake.producers.convert import convert
from parbake.producers.function import FunctionProducer
from parbake.store.layout import Coord, Field
from parbake.store.store import Store, open_store

SUFFIXES = (".zarr", ".zarr.zip", ".h5")
LOAF = Loaf()
VALUES = LOAF.values()
LONG = np.random.default_rng(0).standard_normal((7, 30, 3, 5)).astype("f4")


def long_samples() -> FunctionProducer:
    """Samples of a chunk each, of which windows are read."""
    field = Field(
        LONG.shape[1:],
        "f4",
        ("time", "channel", "mode"),
        units="V",
        description="what came out",
        coords={
            "time": Coord(np.arange(30) / 10, "s"),
            "depth": Coord(np.arange(30.0), "m", dim="time"),
            "channel": Coord(["v x", "p", "T"]),
        },
    )
    return FunctionProducer(
        lambda i: {"u": LONG[i], "f0": i * 0.5},
        7,
        {"u": field, "f0": Field((), "f8", ())},
        {"v": 1},
        visible=False,
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Loaves ``raw`` and ``lz4`` and the long samples, of tiny slabs, in every container."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        tiny_slabs(patch)
        for codec in ("raw", "lz4"):
            bake(LOAF, folder / f"{codec}.zarr", codec=codec, progress=False).close()
            bake(long_samples(), folder / f"long-{codec}.zarr", codec=codec, progress=False).close()
        for path in list(folder.glob("*.zarr")):
            for suffix in SUFFIXES[1:]:
                convert(path, path.with_suffix(suffix), progress=False).close()
        yield folder


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Consolidated metadata")  # zarr's, of what xarray writes
        yield


def opened(path: Path, **options: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine="parbake", **options)


class Log:
    """The samples and windows that are read of a store."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.samples: list[int] = []
        self.windows: list[tuple[int, int, int]] = []
        read = Store.read

        def logged(store: Store, index: Any, *arguments: Any, **named: Any) -> Any:
            self.samples += np.arange(store.samples)[index].tolist()
            for window in (named.get("windows") or {}).values():
                self.windows.append((window.axis, int(window.starts[0]), window.length))
            return read(store, index, *arguments, **named)

        monkeypatch.setattr(Store, "read", logged)


# ---- what it looks like


@pytest.mark.parametrize("name", ["raw", "lz4", "long-raw"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_dataset_is_as_xarray_shows_the_directory_itself(stores: Path, name: str, suffix: str) -> None:
    with (
        xr.open_zarr(stores / f"{name}.zarr", chunks=None) as plain,
        opened(stores / f"{name}{suffix}") as ours,
    ):
        if "channel" in plain.coords and "labels" in plain["channel"].attrs:
            labels = json.loads(plain["channel"].attrs["labels"])
            plain = plain.assign_coords(channel=("channel", np.array(labels, object)))
        assert set(ours.coords) == set(plain.coords)
        # what results would carry on is not told: the seal, provenance, statistics
        told = ("parbake_producer", "parbake_keys", "parbake_digest")
        plain.attrs = {name: plain.attrs[name] for name in told}
        for variable in plain.variables.values():
            variable.attrs = {
                k: v for k, v in variable.attrs.items() if k != "statistics" and not k.startswith("parbake_")
            }
        xr.testing.assert_identical(ours.load(), plain.load())


def test_fields_have_dims_units_names_and_keys(stores: Path) -> None:
    with opened(stores / "long-lz4.zarr") as dataset, open_store(stores / "long-lz4.zarr") as store:
        assert dataset["u"].dims == ("sample", "time", "channel", "mode")
        assert (dataset["u"].attrs["units"], dataset["u"].attrs["long_name"]) == ("V", "what came out")
        assert dataset["time"].dtype == np.float64  # "s" makes no timedelta
        assert dataset["time"].attrs == {"units": "s"}
        assert dataset["depth"].dims == ("time",)
        assert dataset["channel"].values.tolist() == ["v x", "p", "T"]
        assert dataset["f0"].dims == ("sample",)
        assert json.loads(dataset.attrs["parbake_keys"]) == store.invalidation_keys.shared
        assert dataset.attrs["parbake_digest"] == store.digest
        assert dataset.encoding["source"] == str(store.path)


def test_a_store_of_scalars_has_them_as_variables(tmp_path: Path) -> None:
    with bake(Loaf(only=("f0", "level")), tmp_path / "s.zarr", progress=False) as store:
        assert set(store.to_xarray().data_vars) == {"f0", "level"}
    with xr.open_zarr(tmp_path / "s.zarr") as plain:
        assert set(plain.data_vars) == {"f0", "level"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_view_shows_its_samples(stores: Path, suffix: str) -> None:
    with open_store(stores / f"raw{suffix}") as store:
        dataset = store.first(7).to_xarray()
        assert dataset.sizes["sample"] == 7
        for name, values in VALUES.items():
            assert same(dataset[name].values, values[:7])
        assert same(dataset["wave"][-1].values, VALUES["wave"][6])


def test_a_file_of_others_is_a_dataset(tmp_path: Path) -> None:
    values = np.arange(24, dtype=">i2").reshape(4, 3, 2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = values
        file["u"].attrs["units"] = "days since 2000-01-01"
        for axis, name in enumerate(("run", "x", "y")):
            file["u"].dims[axis].label = name
    with pytest.warns(StoreWarning, match="times are numbers"):
        store = open_store(tmp_path / "a.h5")
    with store:
        dataset = store.to_xarray()
        assert same(dataset["u"].values, values.astype("i2"))
        assert dataset["u"].attrs["units"] == "days since 2000-01-01"
        assert dataset["u"].dims == ("sample", *store.fields["u"].dims)
    with pytest.warns(StoreWarning), opened(tmp_path / "a.h5", sample_dim="y") as dataset:
        assert dataset["u"].isel(sample=-1).values.tolist() == values[..., -1].tolist()


def test_plain_xarray_needs_no_engine_of_ours(stores: Path) -> None:
    archive = zarr.storage.ZipStore(stores / "long-raw.zarr.zip", mode="r")
    with contextlib.ExitStack() as stack:
        wanted = stack.enter_context(opened(stores / "long-raw.zarr")).load()
        for plain in (
            xr.open_zarr(archive, chunks=None),
            xr.open_dataset(stores / "long-raw.zarr"),
            xr.open_dataset(stores / "long-raw.h5", engine="h5netcdf"),
            xr.open_datatree(stores / "long-raw.zarr").to_dataset(),
        ):
            stack.callback(plain.close)
            assert json.loads(plain["channel"].attrs["labels"]) == wanted["channel"].values.tolist()
            assert plain["u"].attrs["units"] == "V"
            assert plain["time"].attrs["units"] == "s"
            xr.testing.assert_equal(plain.drop_vars("channel").load(), wanted.drop_vars("channel"))


# ---- lazily


def test_opening_reads_no_sample(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(open_store(stores / "raw.zarr"), monkeypatch)
    with opened(stores / "raw.zarr") as dataset:
        repr(dataset)
        dataset.isel(sample=[3, 1])["wave"]
        dataset.chunk()
        assert log.samples == []
        dataset["f0"].load()
        assert log.samples == list(range(30))


@pytest.mark.parametrize(
    ("take", "samples"),
    [
        (lambda d: d.isel(sample=4), [4]),
        (lambda d: d.isel(sample=-1), [6]),
        (lambda d: d.isel(sample=slice(5, None, -2)), [5, 3, 1]),
        (lambda d: d.isel(sample=[6, 0, 6]), [6, 0, 6]),
        (lambda d: d.isel(sample=np.array([True, False] * 3 + [True])), [0, 2, 4, 6]),
        (lambda d: d.isel(sample=xr.DataArray([[5, 2], [2, 5]], dims=("a", "b"))), [2, 5]),
        (lambda d: d.isel(sample=slice(2, 6)).isel(sample=slice(1, 3)), [3, 4]),
        (lambda d: d.isel(sample=slice(3, 3)), []),
    ],
)
def test_the_samples_wanted_are_read_and_no_others(
    stores: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Any], Any], samples: list[int]
) -> None:
    with opened(stores / "long-lz4.zarr") as dataset:
        log = Log(open_store(stores / "raw.zarr"), monkeypatch)
        found = take(dataset["u"]).values
        assert sorted(log.samples) == sorted(samples)
        assert same(found, take(xr.DataArray(LONG, dims=dataset["u"].dims)).values)


@pytest.mark.parametrize(
    ("take", "window"),
    [
        (lambda d: d.isel(time=slice(4, 9)), (0, 4, 5)),
        (lambda d: d.isel(time=slice(3, 20), channel=1), (1, 1, 1)),
        (lambda d: d.isel(time=[8, 3, 8]), (0, 3, 6)),
        (lambda d: d.isel(time=slice(20, 10, -4)), (0, 12, 9)),
        (lambda d: d.sel(time=slice(0.5, 0.7)), (0, 5, 3)),
        (lambda d: d.sel(channel="p"), (1, 1, 1)),
        (
            lambda d: d.isel(sample=xr.DataArray([0, 6], dims="p"), time=xr.DataArray([7, 9], dims="p")),
            (0, 7, 3),
        ),
    ],
)
def test_a_part_of_each_sample_is_read_as_a_window(
    stores: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Any], Any], window: tuple[int, int, int]
) -> None:
    with opened(stores / "long-raw.zarr") as dataset:
        wanted = take(dataset["u"].copy(data=LONG)).values
        log = Log(open_store(stores / "raw.zarr"), monkeypatch)
        assert same(take(dataset["u"]).values, wanted)
        assert log.windows == [window]


def test_a_few_points_of_many_samples_take_little_memory(
    stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xarrays, "_BATCH_NBYTES", 4_000)  # three samples of 1,800 bytes, or two
    with opened(stores / "long-lz4.zarr") as dataset:
        most: list[int] = []
        read = Store.read

        def logged(store: Store, index: Any, *arguments: Any, **named: Any) -> Any:
            found = read(store, index, *arguments, **named)
            most.append(found["u"].nbytes)
            return found

        monkeypatch.setattr(Store, "read", logged)
        points = {
            "sample": xr.DataArray([6, 0, 3, 3, 5, 0], dims="p"),
            "time": xr.DataArray([29, 0, 7, 8, 8, 1], dims="p"),
        }
        assert same(dataset["u"].isel(points).values, LONG[[6, 0, 3, 3, 5, 0], [29, 0, 7, 8, 8, 1]])
        ends = dataset["u"].isel(time=[0, 29], channel=[2, 0], mode=4)
        assert same(ends.values, LONG[:, [0, 29]][:, :, [2, 0], 4])
        along = dataset["u"].isel(time=points["time"], channel=0)
        assert same(along.transpose("sample", "p", "mode").values, LONG[:, [29, 0, 7, 8, 8, 1], 0])
        assert max(most) <= 4_000
        assert len(most) == 5


# ---- as NumPy indexes


@st.composite
def axis_index(draw: st.DrawFn, length: int) -> Any:
    """What one axis of a block is indexed with."""
    ends = st.none() | st.integers(-length - 1, length + 1)
    steps = st.none() | st.sampled_from([-3, -2, -1, 1, 2, 5])
    return draw(
        st.integers(-length, length - 1)
        | st.builds(slice, ends, ends, steps)
        | st.lists(st.integers(-length, length - 1), max_size=6).map(lambda n: np.array(n, np.int64))
    )


def orthogonal(array: NDArray[Any], index: Sequence[Any]) -> NDArray[Any]:
    """By NumPy, an axis at a time."""
    for axis, one in reversed(list(enumerate(index))):
        array = array[(slice(None),) * axis + (one,)]
    return array


@pytest.fixture(scope="module")
def lazy(stores: Path) -> Iterator[dict[str, tuple[xarrays.LazyField, NDArray[Any]]]]:
    """Arrays of every kind that the reader has: windows, gathered, decoded; of either byte order."""
    kinds = {
        "window": ("long-raw.zarr", "u", LONG),
        "packed": ("long-lz4.h5", "u", LONG),
        "gathered": ("raw.zarr", "wave", VALUES["wave"]),
        "shared": ("lz4.zarr.zip", "wave", VALUES["wave"]),
        "scalar": ("raw.zarr", "f0", VALUES["f0"]),
    }
    with contextlib.ExitStack() as stack:
        lazy = {}
        for kind, (file, name, values) in kinds.items():
            store = stack.enter_context(open_store(stores / file))
            lazy[kind] = xarrays.LazyField(store, store.fields[name]), values
        yield lazy


KINDS = ("window", "packed", "gathered", "shared", "scalar")


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.sampled_from([100, 1_000, 10**9]))
def test_blocks_are_what_numpy_gives(lazy: Any, data: st.DataObject, kind: str, batch: int) -> None:
    field, values = lazy[kind]
    index = tuple(data.draw(axis_index(length)) for length in values.shape)
    basic = all(not isinstance(one, np.ndarray) for one in index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xarrays, "_BATCH_NBYTES", batch)
        found = field[indexing.BasicIndexer(index) if basic else indexing.OuterIndexer(index)]
    assert same(found, orthogonal(values, index))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.sampled_from([100, 1_000, 10**9]))
def test_points_are_what_numpy_gives(lazy: Any, data: st.DataObject, kind: str, batch: int) -> None:
    field, values = lazy[kind]
    shape = data.draw(st.sampled_from([(0,), (1,), (4,), (2, 3), (3, 1)]))
    index: list[Any] = []
    for length in values.shape:
        own = tuple(data.draw(st.sampled_from([1, n])) for n in shape)
        numbers = st.lists(
            st.integers(-length, length - 1), min_size=int(np.prod(own)), max_size=int(np.prod(own))
        )
        ends = st.none() | st.integers(0, length)
        slices = st.builds(slice, ends, ends, st.sampled_from([None, 2, -1]))
        index.append(data.draw(slices | numbers.map(lambda n, own=own: np.array(n, np.int64).reshape(own))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xarrays, "_BATCH_NBYTES", batch)
        found = field[indexing.VectorizedIndexer(tuple(index))]
    # by NumPy: slices first, then the arrays on axes moved to the front
    slices_at = [axis for axis, one in enumerate(index) if isinstance(one, slice)]
    cut = values[tuple(one if isinstance(one, slice) else slice(None) for one in index)]
    arrays_at = [axis for axis in range(values.ndim) if axis not in slices_at]
    arrays = tuple(index[axis] for axis in arrays_at)
    wanted = np.moveaxis(cut, arrays_at, range(len(arrays_at)))
    assert same(found, wanted[arrays] if arrays else wanted)


def test_an_index_beyond_the_samples_is_refused(stores: Path) -> None:
    with opened(stores / "raw.zarr") as dataset:
        for index in (30, [0, 30]):  # xarray itself takes -31 for -1
            with pytest.raises(IndexError):
                dataset["wave"].isel(sample=index).load()


# ---- what one does with datasets


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_computations_are_those_of_the_arrays(stores: Path, suffix: str) -> None:
    memory = xr.Dataset({"wave": (("sample", "time", "channel"), VALUES["wave"])})
    memory = memory.assign_coords(f0=("sample", VALUES["f0"]))
    with opened(stores / f"lz4{suffix}") as dataset:
        wave = dataset["wave"].drop_attrs()
        for do in (
            lambda d: d.mean("sample"),
            lambda d: d.where(d > 0, 0).max("time"),
            lambda d: d.transpose("channel", "sample", "time"),
            lambda d: d.groupby("f0").mean(),
            lambda d: d.sortby("f0", ascending=False)[:3],
            lambda d: d.where(d["f0"] > 5, drop=True),
        ):
            found, wanted = do(wave).values, do(memory["wave"]).values
            np.testing.assert_array_equal(found, wanted)
        level = dataset.set_coords("level").isel(sample=9)
        assert level["level"].values.tolist() == [9.0, -9.0]


def test_what_is_assigned_stays_in_memory(stores: Path) -> None:
    with opened(stores / "raw.zarr") as dataset:
        dataset["wave"][0] = 0
        assert not dataset["wave"][0].values.any()
    with opened(stores / "raw.zarr") as dataset:
        assert same(dataset["wave"].values, VALUES["wave"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_chunks_are_slabs_in_all_variables(stores: Path, suffix: str) -> None:
    with opened(stores / f"raw{suffix}", chunks={}) as dataset:
        assert dataset.chunks["sample"] == (8, 8, 8, 6)
        assert dataset["wave"].chunks == ((8, 8, 8, 6), (24,), (2,))
        with dask.config.set(scheduler="threads", num_workers=4):
            for name, values in VALUES.items():
                assert same(dataset[name].values, values)
            np.testing.assert_allclose(dataset["wave"].mean("sample"), VALUES["wave"].mean(0), atol=1e-6)


def test_names_of_chunks_tell_stores_apart(stores: Path) -> None:
    def name(path: Path, samples: int = 30, field: str = "wave") -> str:
        with open_store(path) as store:
            return str(dask.base.tokenize(xarrays.LazyField(store.first(samples), store.fields[field])))

    raw = stores / "raw.zarr"
    assert name(raw) == name(raw)
    assert len({name(raw), name(stores / "lz4.zarr"), name(raw, 9), name(raw, field="count")}) == 4


def test_threads_read_one_dataset(stores: Path) -> None:
    with (
        opened(stores / "lz4.zarr.zip", cache=False) as dataset,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        order = np.random.default_rng(0).integers(0, 30, 200).tolist()
        found = list(pool.map(lambda i: dataset["wave"].isel(sample=i).values, order))
        assert same(np.stack(found), VALUES["wave"][order])


def test_a_dataset_loads_asynchronously(stores: Path) -> None:
    with opened(stores / "raw.zarr") as dataset:
        found = asyncio.run(dataset[["wave"]].load_async())
        assert same(found["wave"].values, VALUES["wave"])


def _read_in_a_child(dataset: xr.Dataset) -> NDArray[Any]:
    found: NDArray[Any] = dataset["wave"].isel(sample=[20, 3]).values
    return found


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pickle_opens_the_store_again(stores: Path, suffix: str) -> None:
    with opened(stores / f"raw{suffix}") as dataset:
        content = pickle.dumps(dataset.isel(sample=slice(5, None)))
    assert len(content) < 40_000  # no samples, and one store for all its fields
    again = pickle.loads(content)
    assert same(again["wave"].values, VALUES["wave"][5:])
    assert same(again["level"].values, VALUES["level"][5:])


def test_a_spawned_process_reads_a_dataset(stores: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with opened(stores / "raw.zarr") as dataset, concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        assert same(pool.submit(_read_in_a_child, dataset).result(), VALUES["wave"][[20, 3]])


def test_a_dataset_closes_its_store_and_no_other(stores: Path) -> None:
    with opened(stores / "raw.zarr") as dataset:
        pass
    with pytest.raises(ValueError, match="closed"):
        dataset["wave"].load()
    with open_store(stores / "raw.zarr") as store:
        store.to_xarray().close()
        assert same(store["wave"][3], VALUES["wave"][3])


# ---- the engine


def test_variables_that_are_dropped(stores: Path) -> None:
    with opened(stores / "raw.zarr", drop_variables="count") as dataset:
        assert set(dataset.data_vars) == {"wave"}
    with opened(stores / "raw.zarr", drop_variables=["wave", "f0", "nothing"]) as dataset:
        assert set(dataset.variables) == {"count", "level", "time"}


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        opened(tmp_path / "nothing.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAStoreError):
        opened(tmp_path / "empty")


def guesses(path: Path, tree: bool = False) -> str:
    return str(xr.backends.plugins.guess_engine(str(path), must_support_groups=tree))


def test_no_other_engine_loses_what_it_opens(stores: Path, tmp_path: Path) -> None:
    assert guesses(stores / "raw.zarr") == guesses(stores / "raw.zarr/", tree=True) == "zarr"
    assert guesses(stores / "raw.h5") in ("netcdf4", "h5netcdf")
    xr.Dataset({"a": 1}).to_zarr(tmp_path / "others")
    (tmp_path / "text.zip").write_text("no archive")
    backend = ParbakeBackend()
    for mine in ("others", "text.zip", "nothing", "."):
        assert not backend.guess_can_open(tmp_path / mine)
    assert not backend.guess_can_open("https://example.org/raw.zip")
    assert not backend.guess_can_open(b"bytes")


def test_what_no_other_engine_opens_needs_no_name(stores: Path, tmp_path: Path) -> None:
    shutil.copytree(stores / "raw.zarr", tmp_path / "plain")
    shutil.copytree(stores / "raw.zarr", tmp_path / "runs" / "train.zarr")
    for path in (stores / "raw.zarr.zip", tmp_path / "plain"):
        with xr.open_dataset(path) as dataset:
            assert same(dataset["count"][4].values, VALUES["count"][4])
    with xr.open_datatree(tmp_path / "runs") as tree:
        assert set(tree.children) == {"train"}


# ---- trees


@pytest.fixture
def runs(stores: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    shutil.copytree(stores / "raw.zarr", folder / "train.zarr")
    shutil.copy(stores / "lz4.h5", folder / "val.h5")
    shutil.copy(stores / "long-raw.zarr.zip", folder / "test.zarr.zip")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_folder_of_stores_is_a_tree(runs: Path) -> None:
    with xr.open_datatree(runs, engine="parbake") as tree:
        assert set(tree.children) == {"train", "val", "test"}
        assert not tree.to_dataset().variables
        assert same(tree["val/wave"].isel(sample=2).values, VALUES["wave"][2])
        assert same(tree["test"]["u"].sel(channel="T").values, LONG[:, :, 2])
        node = tree["train"]
    with pytest.raises(ValueError, match="closed"):
        node["wave"].load()
    with xr.open_datatree(runs, engine="parbake", chunks={}) as tree:
        assert tree["train/wave"].chunks is not None
        assert same(tree["train/wave"].values, VALUES["wave"])


def test_groups_of_a_folder_and_of_a_store(runs: Path) -> None:
    groups = xr.open_groups(runs, engine="parbake")
    assert set(groups) == {"/", "/train", "/val", "/test"}
    for group in groups.values():
        group.close()
    with xr.open_datatree(runs / "val.h5", engine="parbake") as tree:
        assert tree.groups == ("/",)
        assert same(tree["count"].values, VALUES["count"])


def test_a_folder_is_no_single_dataset(runs: Path) -> None:
    with pytest.raises(RecipeError, match="open_datatree"):
        opened(runs)


def test_stores_of_one_name_keep_their_suffixes(runs: Path) -> None:
    shutil.copy(runs / "val.h5", runs / "train.h5")
    with xr.open_datatree(runs, engine="parbake") as tree:
        assert set(tree.children) == {"train.zarr", "train.h5", "val", "test"}


def test_operators_between_meshes_are_left_out(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loaf, "name", "mesh-operator")
    bake(Loaf(only=("f0",)), runs / "operators" / "kept.zarr", progress=False).close()
    shutil.copytree(runs / "operators" / "kept.zarr", runs / "kept.zarr")
    with xr.open_datatree(runs, engine="parbake") as tree:
        assert set(tree.children) == {"train", "val", "test"}
    with xr.open_datatree(runs / "operators", engine="parbake") as tree:  # nothing else to show
        assert set(tree.children) == {"kept"}


def test_what_is_unfinished_or_broken_is_left_out_and_told(runs: Path) -> None:
    root = runs / "train.zarr" / "zarr.json"
    root.write_text(root.read_text().replace('"sample"', '"simple"'))

    def interrupt(start: int, stop: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bake(Loaf(trap=interrupt), runs / "more.zarr", progress=False)
    with pytest.warns(StoreWarning) as told, xr.open_datatree(runs, engine="parbake") as tree:
        assert set(tree.children) == {"val", "test"}
    assert sorted(str(one.message).rpartition("/")[2] for one in told) == [
        "more.zarr: unfinished, left out",
        "train.zarr: broken, left out",
    ]


# ---- copies


def selections(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    with xr.set_options(keep_attrs=True):
        return {
            "whole": dataset,
            "mean": dataset.mean("sample"),
            "some": dataset.isel(sample=[5, 1]),
            "one": dataset.isel(sample=3),
        }


@pytest.mark.parametrize(("name", "chunks"), [("raw", {}), ("long-lz4", None)])
@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4", "scipy", "zarr"])
def test_what_is_computed_is_saved_and_no_fresh_store(
    stores: Path, tmp_path: Path, name: str, engine: Any, chunks: Any
) -> None:
    producer = LOAF if name == "raw" else long_samples()
    with opened(stores / f"{name}.zarr", chunks=chunks) as dataset:
        for what, selected in selections(dataset).items():
            path = tmp_path / f"{what}.{'zarr' if engine == 'zarr' else 'nc'}"
            if engine == "zarr":
                selected.to_zarr(path)
            else:
                selected.to_netcdf(path, engine=engine)
            with xr.open_dataset(path, engine=engine) as read:
                xr.testing.assert_equal(read.load(), selected.compute())
                assert read.attrs["parbake_digest"] == dataset.attrs["parbake_digest"]  # the trap
            if engine == "scipy":
                with pytest.raises(NotAStoreError, match="NetCDF-3"):
                    open_store(path)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", StoreWarning)
                copied = open_store(path)
            with copied:
                assert copied.is_foreign
                assert not copied.freshness(producer)
                copied.read(slice(None))


def test_a_tree_is_saved(runs: Path, tmp_path: Path) -> None:
    with xr.open_datatree(runs, engine="parbake") as tree:
        tree.to_zarr(tmp_path / "tree.zarr")
        tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
        for path, engine in (("tree.zarr", "zarr"), ("tree.nc", "h5netcdf")):
            with xr.open_datatree(tmp_path / path, engine=engine) as read:
                assert set(read.children) == {"train", "val", "test"}
                assert same(read["val/count"].values, VALUES["count"])
                assert same(read["test/u"].values, LONG)


@pytest.mark.parametrize("encoded", [True, False])
def test_a_tree_copied_with_its_manifest_is_foreign(stores: Path, tmp_path: Path, encoded: bool) -> None:
    """Without parbake's engine: xarray copies keys, seal and manifest, and the layout of the arrays."""
    with xr.open_datatree(stores / "raw.zarr", engine="zarr") as tree:
        assert "manifest" in tree.children
        copy = tree if encoded else tree.map_over_datasets(lambda dataset: dataset.drop_encoding())
        copy.to_zarr(tmp_path / "copy.zarr")
    with pytest.warns(StoreWarning, match="left out: manifest"):
        copied = open_store(tmp_path / "copy.zarr")
    with copied:
        assert copied.is_foreign
        assert not copied.freshness(LOAF)
        assert same(copied["wave"][:], VALUES["wave"])
    with pytest.raises(NotAStoreError, match="not baked by parbake"):
        bake(LOAF, tmp_path / "copy.zarr", progress=False)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_an_hdf5_tree_copied_with_its_manifest_is_foreign(stores: Path, tmp_path: Path, engine: Any) -> None:
    with xr.open_datatree(stores / "raw.h5", engine=engine) as tree:
        assert "document" in tree["manifest"]
        tree.to_netcdf(tmp_path / "copy.nc", engine=engine)
    with pytest.warns(StoreWarning, match="left out: manifest"):
        copied = open_store(tmp_path / "copy.nc")
    with copied:
        assert copied.is_foreign
        assert not copied.freshness(LOAF)
        assert same(copied["wave"][:], VALUES["wave"])


def test_without_xarray_the_extra_is_named(stores: Path) -> None:
    script = (
        "import sys; sys.modules['xarray'] = None; import parbake\n"
        "try: parbake.open_store(sys.argv[1]).to_xarray()\n"
        "except parbake.RecipeError as error: print(error)"
    )
    path = next(iter(sorted(stores.glob("*.zarr"))))
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert "pip install 'parbake[xarray]'" in done.stdout
