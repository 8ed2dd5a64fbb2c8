"""``convert`` and ``diff``: any container and codec into any other, files of others, legacy caches."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from bakery import KillAt, Listed, Loaf, assert_holds, ended, leftovers, start_child, tiny_slabs
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from parbake.cli import main
from parbake.errors import (
    DamagedStoreError,
    NoSpaceError,
    NotAStoreError,
    ParbakeError,
    RecipeError,
    StaleStoreError,
    StoreNotFoundError,
)
from parbake.producers import bake as bake_module
from parbake.producers import convert as converting
from parbake.producers.bake import bake, repair
from parbake.producers.convert import convert
from parbake.producers.reporting import Progress
from parbake.store import pack as packing
from parbake.store import publish
from parbake.store import store as opening
from parbake.store.containers import container_of
from parbake.store.differences import compare_stores
from parbake.store.hdf5_write import FilterInTheWayError
from parbake.store.store import Store, open_store

SUFFIXES = (".zarr", ".zarr.zip", ".h5")
PAIRS = [(one, other) for one in SUFFIXES for other in SUFFIXES]
CODECS = ("raw", "lz4", "zstd")
LOAF = Loaf(30)


def small(patch: pytest.MonkeyPatch) -> None:
    """Tiny slabs, and the keys of producers captured once."""
    tiny_slabs(patch)
    for module in (converting, opening):
        patch.setattr(module, "producer_keys", bake_module.producer_keys)


@pytest.fixture(autouse=True)
def small_here(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same bake as ``CODEC.SUFFIX``: only the directories were baked."""
    folder = tmp_path_factory.mktemp("convert")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        for codec in CODECS:
            bake(LOAF, folder / f"{codec}.zarr", codec=codec, progress=False).close()
            for suffix in SUFFIXES[1:]:
                quietly(folder / f"{codec}.zarr", folder / f"{codec}{suffix}")
    return folder


def quietly(source: Path, target: Path, **options: Any) -> None:
    convert(source, target, progress=False, **options).close()


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, args)), prog_name="parbake")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def refused(call: Callable[[], object], error: type[ParbakeError]) -> str:
    """The one line with which ``call`` refuses."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def files_of(store: Path) -> dict[str, bytes]:
    """Every file of a directory, by its name in it."""
    return {str(f.relative_to(store)): f.read_bytes() for f in sorted(store.rglob("*")) if f.is_file()}


def assert_nothing_at(target: Path) -> None:
    assert not target.exists()
    assert leftovers(target) == []


def damage(path: Path) -> None:
    """Flip a byte of the payload of a chunk of ``wave``, in whatever container."""
    with open_store(path) as store:
        payload = (
            store.reader.source("wave", 1) if store.contents.sealed.shard is None else store.shard("wave", 1)
        )
        index = payload.get(payload.nbytes - 68, payload.nbytes - 4).view("<u8")
        body = payload.get(int(index[0]), int(index[0] + index[1]) - 4).tobytes()
    file = path / "wave" / "c" / "1" / "0" / "0" if path.is_dir() else path
    content = bytearray(file.read_bytes())
    assert content.count(body) == 1
    content[content.index(body) + len(body) // 2] ^= 4
    file.write_bytes(content)


# ---- stores of ours


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("there", "back"), PAIRS)
def test_a_round_trip_gives_the_same_files(
    stores: Path, tmp_path: Path, codec: str, there: str, back: str
) -> None:
    """Through two containers and back into a directory."""
    origin = stores / f"{codec}.zarr"
    quietly(stores / f"{codec}{there}", tmp_path / f"one{back}")
    quietly(tmp_path / f"one{back}", tmp_path / "two.zarr")
    assert files_of(tmp_path / "two.zarr") == files_of(origin)
    assert leftovers(tmp_path / f"one{back}") == []
    with open_store(tmp_path / f"one{back}") as one, open_store(origin) as wanted:
        assert container_of(one.path) == container_of(Path(f"x{back}"))
        assert one.contents.version == wanted.contents.version
        assert one.provenance == wanted.provenance
        assert one.statistics == wanted.statistics
        assert one.freshness(LOAF)
        assert compare_stores(one, wanted)
        assert_holds(one, LOAF)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_equal_stores_are_equal_files(stores: Path, tmp_path: Path, suffix: str) -> None:
    """Whatever they were made from."""
    for number, source in enumerate(SUFFIXES):
        quietly(stores / f"lz4{source}", tmp_path / f"{number}{suffix}")
    contents = {file.read_bytes() for file in tmp_path.iterdir()}
    assert len(contents) == 1


@pytest.mark.parametrize(("there", "back"), PAIRS)
def test_another_codec_keeps_samples_keys_and_provenance(
    stores: Path, tmp_path: Path, there: str, back: str
) -> None:
    source, target = stores / f"lz4{there}", tmp_path / f"small{back}"
    quietly(source, target, codec="zstd", command="parbake convert ...")
    assert leftovers(target) == []
    with open_store(source) as old, open_store(target) as new:
        assert compare_stores(old, new)
        assert new.provenance["codec"] == "zstd"
        assert new.provenance["bakes"][:-1] == old.provenance["bakes"]
        assert new.provenance["bakes"][-1]["converted"] == {"file": str(source)}
        assert new.provenance["bakes"][-1]["command"] == "parbake convert ..."
        for key in ("segments", "recipe", "seed_drawn", "batch_size"):
            assert new.provenance[key] == old.provenance[key], key
        assert new.statistics == old.statistics
        assert new.freshness(LOAF)
        assert_holds(new, LOAF)
    log = tmp_path / "log"
    bake(Loaf(30, log=log), target, progress=False).close()
    assert not log.exists()  # fresh: nothing was baked
    damage(target)
    with repair(LOAF, target, progress=False) as mended:
        assert_holds(mended, LOAF)
    bake(Loaf(40), target, progress=False).close()
    with open_store(target) as grown:
        assert_holds(grown, Loaf(40))


def test_a_codec_that_is_the_same_moves_chunks(stores: Path, tmp_path: Path) -> None:
    quietly(stores / "lz4.h5", tmp_path / "a.zarr", codec="lz4")
    assert files_of(tmp_path / "a.zarr") == files_of(stores / "lz4.zarr")


@dataclass(frozen=True)
class Drawn(Loaf):
    """Draws its seed."""

    seed: Any = "fresh"
    name = "drawn"

    def values(self) -> dict[str, NDArray[Any]]:
        return Loaf(self.samples, seed=self.seed % 1000).values()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("codec", [None, "raw"])
def test_a_seed_that_was_drawn_stays_drawn(
    tmp_path: Path, suffix: str, codec: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bake(Drawn(12), tmp_path / "a.zarr", progress=False) as store:
        seed = store.provenance["seed_drawn"]
    target = tmp_path / f"b{suffix}"
    quietly(tmp_path / "a.zarr", target, codec=codec)
    with bake(Drawn(20), target, progress=False) as grown:
        assert grown.provenance["seed_drawn"] == seed
        assert_holds(grown, Drawn(20, seed=seed))
    damage(target)
    with repair(Drawn(20), target, progress=False) as mended:
        assert_holds(mended, Drawn(20, seed=seed))


@dataclass(frozen=True)
class Telling(Loaf):
    """Has something to tell of its samples."""

    notices: tuple[str, ...] = ("two steps have no partner",)


@pytest.mark.parametrize("codec", [None, "raw"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_was_told_of_samples_is_kept(tmp_path: Path, suffix: str, codec: str | None) -> None:
    bake(Telling(12), tmp_path / "a.zarr", progress=False).close()
    with convert(tmp_path / "a.zarr", tmp_path / f"b{suffix}", codec=codec, progress=False) as store:
        assert store.provenance["notices"] == list(Telling.notices)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_xarray_opens_every_container(stores: Path, tmp_path: Path, suffix: str) -> None:
    with open_store(stores / "raw.zarr") as store:
        wanted = store.to_xarray().load()
    with open_store(stores / f"raw{suffix}") as store, warnings.catch_warnings():
        warnings.simplefilter("error")
        found = store.first(7).to_xarray().load()
    assert found.equals(wanted.isel(sample=slice(7)))
    assert list(found.coords) == list(wanted.coords)


def test_xarray_opens_a_zip_of_a_folder(stores: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "a.zarr"), "zip", stores, "raw.zarr")
    with (
        zipfile.ZipFile(tmp_path / "a.zarr.zip") as packed,
        zipfile.ZipFile(tmp_path / "b.zip", "w") as stored,
    ):
        for member in packed.namelist():
            stored.writestr(member, packed.read(member))
    with open_store(tmp_path / "b.zip") as store, open_store(stores / "raw.zarr") as folder:
        assert store.to_xarray().equals(folder.to_xarray())


@pytest.mark.parametrize(("there", "back"), [(".zarr.zip", ".h5"), (".h5", ".zarr.zip"), (".zarr", ".zarr")])
def test_a_store_that_was_edited_stays_edited(stores: Path, tmp_path: Path, there: str, back: str) -> None:
    edited = Path(shutil.copytree(stores / "lz4.zarr", tmp_path / "edited.zarr"))
    group = zarr.open_group(edited, mode="r+", use_consolidated=True)
    group.attrs["title"] = "for the paper"
    zarr.consolidate_metadata(edited)
    with open_store(edited) as store:
        assert store.edited
    quietly(edited, tmp_path / f"b{there}")
    quietly(tmp_path / f"b{there}", tmp_path / f"c{back}")
    quietly(tmp_path / f"c{back}", tmp_path / "d.zarr")
    for name in (f"b{there}", f"c{back}", "d.zarr"):
        with open_store(tmp_path / name) as store:
            assert store.edited, name
            assert store.freshness(LOAF)
            assert store.sealed.root["attributes"]["title"] == "for the paper"
            assert store.verify()


# ---- what cannot be


@pytest.mark.parametrize("codec", [None, "raw"])
@pytest.mark.parametrize(("there", "back"), PAIRS)
def test_a_damaged_source_is_refused(
    stores: Path, tmp_path: Path, there: str, back: str, codec: str | None
) -> None:
    source = tmp_path / f"a{there}"
    quietly(stores / f"lz4{there}", source)
    damage(source)
    target = tmp_path / f"b{back}"
    text = refused(lambda: quietly(source, target, codec=codec), DamagedStoreError)
    for part in (str(source), "'wave'"):
        assert part in text
    assert f"{target}.baking" not in text
    if codec is None:
        assert_nothing_at(target)
    assert not target.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_there_stays(stores: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"b{suffix}"
    for source in (stores / "lz4.zarr", stores / "lz4.h5"):
        target.write_text("mine")
        assert "there is something already" in refused(lambda s=source: quietly(s, target), RecipeError)
        assert target.read_text() == "mine"
        target.unlink()
        target.mkdir()
        assert "there is something already" in refused(lambda s=source: quietly(s, target), RecipeError)
        target.rmdir()
    quietly(stores / "lz4.zarr", target)
    before = target.stat()
    assert "there is something already" in refused(lambda: quietly(target, target), RecipeError)
    assert target.stat() == before


def test_what_appears_while_waiting_stays(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another made it between the first look and the lock."""
    finish = publish.finish_swap

    def meanwhile(target: Path) -> None:
        finish(target)
        shutil.copyfile(other, target)

    monkeypatch.setattr(publish, "finish_swap", meanwhile)
    target, other = tmp_path / "b.h5", tmp_path / "other.h5"
    other.write_text("mine")
    for options in ({}, {"codec": "raw"}):
        text = refused(lambda o=options: quietly(stores / "lz4.zarr", target, **o), ParbakeError)
        assert str(target) in text
        assert target.read_text() == "mine"
        target.unlink()
    shutil.copyfile(stores / "lz4.h5", other)  # the very same: nothing is left to do
    quietly(stores / "lz4.zarr", target)
    target.unlink()
    shutil.copyfile(stores / "raw.h5", other)
    assert "something already" in refused(lambda: quietly(stores / "lz4.zarr", target), RecipeError)
    assert target.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("options", [{}, {"codec": "raw"}])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_appears_while_it_is_made_stays(
    stores: Path, tmp_path: Path, suffix: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, swap_in = tmp_path / f"b{suffix}", publish.swap_in

    def meanwhile(*args: Any) -> None:
        target.mkdir()
        (target / "mine").write_text("mine")
        swap_in(*args)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "swap_in", meanwhile)
        text = refused(lambda: quietly(stores / "lz4.zarr", target, **options), NotAStoreError)
    assert str(target) in text
    assert (target / "mine").read_text() == "mine"
    shutil.rmtree(target)
    quietly(stores / "lz4.zarr", target, **options)


def test_a_fresh_process_that_packs_is_told_of_when_it_dies(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_the_way(*args: Any, **options: Any) -> None:
        raise FilterInTheWayError

    def killed(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], -9, "", "")

    monkeypatch.setattr(packing, "write_hdf5", in_the_way)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", killed)
        assert "-9" in refused(lambda: quietly(stores / "lz4.zarr", tmp_path / "b.h5"), DamagedStoreError)
    source = Path(shutil.copytree(stores / "lz4.zarr", tmp_path / "a.zarr"))
    real = subprocess.run

    def baked_again(*args: Any, **options: Any) -> Any:
        shutil.rmtree(source)
        shutil.copytree(stores / "raw.zarr", source)
        return real(*args, **options)

    monkeypatch.setattr(subprocess, "run", baked_again)
    assert "baked again" in refused(lambda: quietly(source, tmp_path / "b.h5"), DamagedStoreError)
    assert_nothing_at(tmp_path / "b.h5")


def test_a_target_inside_its_source_is_refused(stores: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(stores / "lz4.zarr", tmp_path / "a.zarr"))
    before = files_of(source)
    (tmp_path / "link.zarr").symlink_to(source)
    for name in ("a.zarr/in.zarr", "a.zarr/x/in.h5", "link.zarr/in.zarr.zip"):
        for path in (source, tmp_path / "link.zarr"):
            text = refused(lambda s=path, n=name: quietly(s, tmp_path / n), RecipeError)
            assert "lies in" in text
    assert files_of(source) == before
    assert sorted(os.listdir(source)) == sorted(os.listdir(stores / "lz4.zarr"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_source_that_is_no_store_is_refused(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / "out" / f"b{suffix}"
    nothing = tmp_path / f"a{suffix}"
    assert str(nothing) in refused(lambda: quietly(nothing, target), StoreNotFoundError)
    nothing.write_text("no store at all")
    assert str(nothing) in refused(lambda: quietly(nothing, target), NotAStoreError)
    assert not target.exists()
    assert not target.parent.exists() or not list(target.parent.iterdir())


def test_stores_of_ours_keep_their_own_fields_and_keys(stores: Path, tmp_path: Path) -> None:
    for options in ({"fields": ("wave",)}, {"recipe": LOAF}, {"sample_dim": "time"}):
        text = refused(lambda o=options: quietly(stores / "lz4.h5", tmp_path / "b.zarr", **o), RecipeError)
        assert "a store of parbake's" in text
    assert_nothing_at(tmp_path / "b.zarr")


# ---- killed and full


JOBS: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "zip": ("lz4.zarr", ".zarr.zip", {}),
    "HDF5": ("lz4.zarr.zip", ".h5", {}),
    "directory": ("lz4.h5", ".zarr", {}),
    "recoded": ("lz4.zarr", ".h5", {"codec": "raw"}),
}


@pytest.mark.parametrize("name", JOBS)
def test_killed_before_a_change_of_the_disk_leaves_nothing_under_the_name(
    stores: Path, folder: Path, name: str
) -> None:
    """Some calls before the swap, and all around it; the next run ends what the killed one began."""
    source, suffix, options = JOBS[name]
    target = folder / f"b{suffix}"

    def child(watch: KillAt) -> int:
        def killed() -> None:
            watch.install()
            quietly(stores / source, target, **options)

        return ended(start_child(killed))

    assert child(Listed(folder / "calls")) == 0
    with open_store(target) as store:
        wanted = shard_bytes_of(store)
    listed = (folder / "calls").read_text().splitlines()
    swap = next(number for number, line in enumerate(listed, 1) if "swap.json" in line)
    moments = list(range(swap - 1, min(swap + 5, len(listed) + 1)))
    moments += range(3, swap - 2, max(1, (swap - 2) // 3))
    seen = set()
    for moment in moments:
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        assert child(KillAt(moment)) == -signal.SIGKILL
        seen.add(target.exists())
        if not target.exists():
            quietly(stores / source, target, **options)
            assert leftovers(target) == [], listed[moment - 1]
        with open_store(target) as store:
            assert_holds(store, LOAF)
            assert shard_bytes_of(store) == wanted
        with publish.baking_lock(target, pytest.fail):  # whoever bakes next removes what the kill left
            publish.finish_swap(target)
        assert leftovers(target) == [], listed[moment - 1]
    assert seen == {True, False}


def shard_bytes_of(store: Store) -> dict[tuple[str, int], bytes]:
    return {
        (name, number): (source := store.shard(name, number)).get(0, source.nbytes).tobytes()
        for name, field in store.fields.items()
        for number in range(field.layout.shard_count(store.stored_samples))
    }


@pytest.mark.parametrize("name", JOBS)
def test_a_full_disk_leaves_nothing_under_the_name(
    stores: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, suffix, options = JOBS[name]
    target = tmp_path / f"b{suffix}"
    with monkeypatch.context() as patch:
        full_disk(patch)
        text = refused(lambda: quietly(stores / source, target, **options), NoSpaceError)
        assert str(target) in text
    assert not target.exists()
    assert not list(tmp_path.rglob(".*.tmp"))
    if not options:
        assert_nothing_at(target)
    quietly(stores / source, target, **options)
    assert leftovers(target) == []


def full_disk(patch: pytest.MonkeyPatch) -> None:
    """No file of a container reaches the disk any more."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    patch.setattr(os, "fsync", fsync)


# ---- progress


@pytest.mark.parametrize("options", [{}, {"codec": "raw"}])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_progress_is_told(
    stores: Path, tmp_path: Path, suffix: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, there in enumerate(SUFFIXES):
        told: list[Progress] = []
        target = tmp_path / f"{number}{suffix}"
        convert(stores / f"lz4{there}", target, progress=told.append, **options).close()
        assert told[-1].samples_total == 30
        assert told[-1].finished
        assert not any(one.finished for one in told[:-1])
        done = [one.samples_done for one in told]
        assert done == sorted(done)
        assert done[-1] == 30
        assert told[-1].nbytes_written > 0


# ---- files that others wrote


X = np.sin(np.arange(20 * 12, dtype=">f4").reshape(20, 12)).astype(">f4")
X[3, 4] = np.nan
COUNT = np.arange(20, dtype="int16") - 7
TIME = np.arange(12) / 8_000


def dataset() -> xr.Dataset:
    return xr.Dataset(
        {
            "x": (("sample", "time"), X, {"units": "V", "long_name": "pressure"}),
            "count": (("sample",), COUNT),
        },
        coords={"time": ("time", TIME, {"units": "s"})},
    )


def zarr_v2(path: Path) -> Path:
    dataset().to_zarr(path, zarr_format=2)
    return path


def zarr_v3(path: Path) -> Path:
    dataset().to_zarr(path, zarr_format=3)
    return path


def netcdf(path: Path) -> Path:
    dataset().to_netcdf(path.with_suffix(".nc"), engine="h5netcdf")
    return path.with_suffix(".nc")


def hdf5(path: Path) -> Path:
    path = path.with_suffix(".h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X, chunks=(3, 12), compression="gzip").attrs["units"] = "V"
        file.create_dataset("count", data=COUNT)
    return path


FOREIGN = {"zarr v2": zarr_v2, "zarr v3": zarr_v3, "netcdf": netcdf, "hdf5": hdf5}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", FOREIGN)
def test_a_file_of_others_becomes_a_store_with_its_values(form: str, suffix: str, tmp_path: Path) -> None:
    source, target = FOREIGN[form](tmp_path / "theirs"), tmp_path / f"ours{suffix}"
    quietly(source, target)
    with open_store(target) as store:
        assert store["x"][:].tobytes() == X.astype("<f4").tobytes()
        assert store["count"][:].tobytes() == COUNT.tobytes()
        assert store.fields["x"].units == "V"
        if form != "hdf5":
            assert store.fields["x"].dims == ("time",)
            assert store.fields["x"].description == "pressure"
            np.testing.assert_array_equal(store.coords["time"].values, TIME)
            assert store.coords["time"].units == "s"
        assert store.invalidation_keys.shared["keys"]["depends_on"] == "unknown"
        assert store.provenance["bakes"][0]["converted"] == {
            "file": str(source),
            "keys_vouched": False,
            "notices": [],
        }
        assert not store.freshness(LOAF)
        assert store.verify()
    result = run("diff", source, target)
    assert result.stdout == "equal\n"
    assert result.stderr.count(f"{source}: its keys are unknown") == 1
    assert str(target) not in result.stderr
    found = json.loads(run("diff", source, target, "--json").stdout)
    assert (found["equal"], found["keys"], found["keys_unknown"]) == (True, [], [0])
    quietly(source, tmp_path / "x.zarr", fields=("x",))
    with open_store(tmp_path / "x.zarr") as store:
        assert list(store.fields) == ["x"]


def test_arrays_in_groups_get_plain_names(tmp_path: Path) -> None:
    source = tmp_path / "theirs.h5"
    with h5py.File(source, "w") as file:
        file["run/1/x"] = X
        file["count"] = COUNT
    quietly(source, tmp_path / "a.zarr.zip")
    with open_store(tmp_path / "a.zarr.zip") as store:
        assert sorted(store.fields) == ["count", "run_1_x"]
        assert store["run_1_x"][:].tobytes() == X.astype("<f4").tobytes()
    assert run("diff", source, tmp_path / "a.zarr.zip").stdout == "equal\n"
    with h5py.File(source, "a") as file:
        file["run_1_x"] = X
    text = refused(lambda: quietly(source, tmp_path / "b.zarr"), RecipeError)
    assert "run/1/x" in text
    assert "--fields" in text
    assert_nothing_at(tmp_path / "b.zarr")


def test_a_damaged_file_of_others_is_refused(tmp_path: Path) -> None:
    source = hdf5(tmp_path / "theirs")
    with h5py.File(source) as file:
        place = file["x"].id.get_chunk_info(2)
    content = bytearray(source.read_bytes())
    content[place.byte_offset + place.size // 2] ^= 0xFF
    source.write_bytes(content)
    text = refused(lambda: quietly(source, tmp_path / "a.zarr"), ParbakeError)
    assert "x" in text
    assert not (tmp_path / "a.zarr").exists()


# ---- legacy caches


def pt(folder: Path, samples: int = 20, **changed: NDArray[Any]) -> Path:
    values = {**Loaf(samples).values(), **changed}
    content = [
        tuple(torch.from_numpy(np.array(values[name][i])) for name in values)
        for i in range(len(values["wave"]))
    ]
    torch.save(content, folder / "cached.pt")
    return folder / "cached.pt"


def pkl(folder: Path, samples: int = 20, **changed: NDArray[Any]) -> Path:
    values = {**Loaf(samples).values(), **changed}
    content = [{name: values[name][i] for name in values} for i in range(len(values["wave"]))]
    (folder / "cached.pkl").write_bytes(pickle.dumps(content))
    return folder / "cached.pkl"


NAMES = tuple(Loaf().values())
LEGACY = {"pt": pt, "pkl": pkl}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", LEGACY)
def test_a_legacy_cache_is_nobodys(kind: str, suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"a{suffix}"
    run("convert", LEGACY[kind](tmp_path), target, *(("--fields", ",".join(NAMES)) if kind == "pt" else ()))
    with open_store(target) as store:
        for name, values in Loaf(20).values().items():
            np.testing.assert_array_equal(store[name][:], values)
        assert not store.freshness(Loaf(20))
        assert store.provenance["bakes"][0]["converted"]["keys_vouched"] is False


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", LEGACY)
def test_a_recipe_that_is_vouched_for_makes_it_fresh(kind: str, suffix: str, tmp_path: Path) -> None:
    source, target = LEGACY[kind](tmp_path), tmp_path / f"a{suffix}"
    quietly(source, target, recipe=Loaf(20), fields=NAMES if kind == "pt" else None)
    with open_store(target, expect=Loaf(20)) as store:
        assert_holds(store, Loaf(20))
        assert store.fields["wave"].dims == ("time", "channel")
        assert store.coords["time"].units == "s"
        assert store.provenance["bakes"][0]["converted"] == {
            "file": str(source),
            "keys_vouched": True,
            "notices": [],
        }
        assert not store.freshness(Loaf(20, seed=1))
    with pytest.raises(StaleStoreError, match="seed: 0 -> 1"):
        bake(Loaf(20, seed=1), target, progress=False)
    damage(target)
    with repair(Loaf(20), target, progress=False) as mended:
        assert_holds(mended, Loaf(20))
    with bake(Loaf(33), target, progress=False) as grown:
        assert_holds(grown, Loaf(33))


@pytest.mark.parametrize("kind", LEGACY)
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"count": Loaf(20).values()["count"][:, 1:]}, "[39]"),
        ({"count": Loaf(20).values()["count"].astype("int32")}, "int32"),
        ({"wave": np.full((20, 24, 2), np.nan, "f4")}, "NaN"),
    ],
)
def test_values_that_do_not_fit_the_recipe_are_refused(
    kind: str, changed: dict[str, NDArray[Any]], said: str, tmp_path: Path
) -> None:
    source = LEGACY[kind](tmp_path, **changed)
    names = NAMES if kind == "pt" else None
    text = refused(lambda: quietly(source, tmp_path / "a.h5", recipe=Loaf(20), fields=names), ParbakeError)
    assert said in text
    assert next(iter(changed)) in text
    assert not (tmp_path / "a.h5").exists()


class StoppedError(Exception):
    """Stands for Ctrl-C."""


def stopped(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    """Runs ``call`` until all slabs are baked, and no further."""

    def publish_store(job: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(bake_module, "publish_store", publish_store)
        with pytest.raises(StoppedError):
            call()


def test_vouched_samples_never_enter_a_bake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor those of a bake a conversion: neither resumes the other."""
    source, target = pkl(tmp_path, wave=Loaf(20, drift=0.5).values()["wave"]), tmp_path / "a.zarr"
    stopped(monkeypatch, lambda: quietly(source, target, recipe=Loaf(20)))
    with bake(Loaf(20), target, progress=False) as store:
        assert_holds(store, Loaf(20))


def test_a_conversion_does_not_resume_that_of_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        zarr.save_array(tmp_path / name, np.full((20, 64), value))
    target = tmp_path / "c.zarr"
    stopped(monkeypatch, lambda: quietly(tmp_path / "a", target))
    zarr.open_array(tmp_path / "a", mode="r+")[:] = 3.0  # has changed meanwhile
    assert "written is not what was read" in refused(
        lambda: quietly(tmp_path / "a", target), DamagedStoreError
    )
    quietly(tmp_path / "a", target)
    with open_store(target) as store:
        assert (store["data"][:] == 3).all()
    shutil.rmtree(target)
    stopped(monkeypatch, lambda: quietly(tmp_path / "a", target))
    quietly(tmp_path / "b", target)
    with open_store(target) as store:
        assert (store["data"][:] == 2).all()


def test_samples_of_an_unknown_seed_get_no_others_beside_them(tmp_path: Path) -> None:
    quietly(pkl(tmp_path), tmp_path / "a.zarr", recipe=Drawn(20))
    for call in (
        lambda: bake(Drawn(30), tmp_path / "a.zarr", progress=False),
        lambda: damage(tmp_path / "a.zarr") or repair(Drawn(20), tmp_path / "a.zarr", progress=False),
    ):
        assert "seed that its samples were drawn with" in refused(call, RecipeError)


# ---- the command line


def test_convert_says_what_it_made_in_one_line(stores: Path, tmp_path: Path) -> None:
    result = run("convert", stores / "lz4.zarr", tmp_path / "a.h5")
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{tmp_path / 'a.h5'}: 30 samples, ")
    assert line.endswith(f"from {stores / 'lz4.zarr'}")
    said = json.loads(
        run("convert", tmp_path / "a.h5", tmp_path / "b.zarr", "--codec", "raw", "--json").stdout
    )
    with open_store(tmp_path / "b.zarr") as store:
        assert said["digest"] == store.digest
        assert store.provenance["bakes"][-1]["command"].startswith("parbake convert ")
    assert (said["path"], said["source"]) == (str(tmp_path / "b.zarr"), str(tmp_path / "a.h5"))
    assert said["samples"] == 30
    assert said["nbytes_raw"] == 30 * (24 * 2 * 4 + 40 * 2 + 4 + 16)
    assert said["ratio"] == pytest.approx(said["nbytes_raw"] / said["nbytes_stored"])


def test_exit_codes_of_convert(stores: Path, tmp_path: Path) -> None:
    source, target = stores / "lz4.zarr", tmp_path / "a.h5"
    for args, code in (
        ((tmp_path / "nothing", target), 1),
        ((source, stores / "raw.h5"), 2),
        ((source, target, "--fields", "wave"), 2),
        ((source, target, "--codec", "best"), 2),
        ((source, target, "--keys", "'"), 2),
        ((source,), 2),
    ):
        result = run("convert", *args, code=code)
        (line,) = result.stderr.splitlines()
        assert line.startswith("parbake: error: ")
        assert result.stdout == ""
    assert_nothing_at(target)


def test_diff_says_equal_or_each_difference(stores: Path, tmp_path: Path) -> None:
    result = run("diff", stores / "lz4.h5", stores / "raw.zarr.zip")
    assert (result.stdout, result.stderr) == ("equal\n", "")
    bake(Loaf(30, gain=2), tmp_path / "b.h5", progress=False).close()
    result = run("diff", stores / "lz4.zarr", tmp_path / "b.h5", code=1)
    assert result.stdout.splitlines()[0] == "field 'count': gain: 1 -> 2"
    assert "field 'count': 29 of 30 samples differ (1, 2, 3, 4, 5, ...)" in result.stdout
    said = json.loads(run("diff", stores / "lz4.zarr", tmp_path / "b.h5", "--json", code=1).stdout)
    assert said["equal"] is False
    assert said["samples"][0]["field"] == "count"
    run("diff", stores / "lz4.zarr", tmp_path / "nothing", code=1)
    run("diff", stores / "lz4.zarr", code=2)


def test_keys_of_two_files_of_others_are_told_as_unknown(tmp_path: Path) -> None:
    one = hdf5(tmp_path / "one")
    other = Path(shutil.copy(one, tmp_path / "two.h5"))
    result = run("diff", one, other)
    assert result.stdout == "equal\n"
    assert result.stderr.count("its keys are unknown") == 2


@pytest.mark.parametrize("verb", ["convert", "diff"])
def test_help_tells_what_it_takes(verb: str) -> None:
    text = run(verb, "--help").stdout
    for word in {
        "convert": ("SRC", "DST", ".zip", ".h5", "--codec", "--fields", "--keys"),
        "diff": ("A B", "1"),
    }[verb]:
        assert word in text


# ---- memory


MEMORY = """
import sys, threading
from pathlib import Path
from parbake.producers.convert import convert
from parbake.store.store import open_store
import h5py, numcodecs.blosc, numcodecs.fletcher32, crc32c
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) * 1024
peak = start = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
convert(sys.argv[1], sys.argv[2], codec=sys.argv[3] or None, progress=False).close()
done.set()
watcher.join()
print(peak - start)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of 200 MB in four shards; samples of 6 MB, so that a batch of the default 64 is longer."""
    from parbake.producers.function import from_function
    from parbake.store.layout import Field

    path = tmp_path_factory.mktemp("large") / "a.zarr"
    schema = {"x": Field((1_500_000,), "float32", ("time",))}
    line = np.arange(1_500_000, dtype="f4")
    producer = from_function(lambda i: {"x": line + i}, 34, schema=schema, invalidation_keys={})
    bake(producer, path, codec="raw", progress=False).close()
    yield path
    shutil.rmtree(path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(("suffix", "codec"), [(".zarr.zip", ""), (".h5", ""), (".zarr", ""), (".h5", "lz4")])
def test_a_large_store_is_never_held(large: Path, tmp_path: Path, suffix: str, codec: str) -> None:
    target = tmp_path / f"b{suffix}"
    command = [sys.executable, "-c", MEMORY, str(large), str(target), codec]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert int(done.stdout) < 170e6  # two shards of an HDF5 file are put together at a time to be checked


# ---- names, and what is told of files of others


@pytest.mark.parametrize("name", ["b.tar", "b.mat", "b.PT", "b.npz"])
def test_a_name_of_another_format_is_no_directory(stores: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    assert "choose another name" in refused(lambda: quietly(stores / "raw.h5", target), RecipeError)
    assert "choose another name" in refused(lambda: bake(LOAF, target, progress=False), RecipeError)
    assert not target.exists()


def test_no_store_is_made_within_a_store(stores: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer.zarr"
    quietly(stores / "raw.zarr", outer)
    for inner in (outer / "inner.zarr", outer / "deep" / "inner.h5"):
        assert "lies in the store" in refused(lambda at=inner: quietly(stores / "raw.h5", at), RecipeError)
        assert "lies in the store" in refused(lambda at=inner: bake(LOAF, at, progress=False), RecipeError)
    assert files_of(outer) == files_of(stores / "raw.zarr")


def test_unknown_keys_are_told_without_a_recipe(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(6.0)
    quietly(tmp_path / "a.h5", tmp_path / "b.zarr")
    for name in ("a.h5", "b.zarr"):
        assert run("check", tmp_path / name, code=1).stdout.startswith("keys: unknown")
        assert json.loads(run("check", tmp_path / name, "--json", code=1).stdout)["fresh"] is False


@pytest.mark.parametrize("form", ["h5", "zarr"])
def test_values_that_stand_for_none_are_told_and_noted(tmp_path: Path, form: str) -> None:
    values = xr.Dataset({"T": ("time", np.array([0, -9999, 3], "i4")), "U": ("time", np.ones(3, "f4"))})
    values["T"].attrs["_FillValue"] = np.int32(-9999)
    values["U"].attrs["_FillValue"] = np.float32(np.nan)  # says nothing that NaN does not
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "h5":
            values.to_netcdf(tmp_path / "a.h5", engine="h5netcdf")
        else:
            values.to_zarr(tmp_path / "a.zarr", zarr_format=3)
    told = run("convert", tmp_path / f"a.{form}", tmp_path / "b.zarr").stderr
    assert "not applied: 'T' (_FillValue)" in told
    assert "'U'" not in told
    with open_store(tmp_path / "b.zarr") as store:
        [noted] = store.provenance["bakes"][0]["converted"]["notices"]
        assert noted in told
    assert "not applied" in run("inspect", tmp_path / "b.zarr").stdout


def test_verify_checks_an_archive_as_other_readers_do(stores: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(stores / "raw.zarr.zip", tmp_path / "a.zarr.zip"))
    with zipfile.ZipFile(path) as archive:
        crc = archive.getinfo("zarr.json").CRC.to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(crc, bytes(4)))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() == "zarr.json"
    with open_store(path) as store:
        assert [damage.file for damage in store.verify().damaged] == ["zarr.json"]
