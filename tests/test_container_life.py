"""The life of a store in each container: baked, grown, repaired, killed, damaged, listed, cleared, loaded."""

from __future__ import annotations

import errno
import json
import linecache
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from bakery import KillAt, Listed, Loaf, assert_holds, calls, ended, leftovers, start_child, tiny_slabs
from click.testing import CliRunner, Result
from torch.utils.data import DataLoader

import parbake
from parbake.cli import main
from parbake.errors import (
    DamagedStoreError,
    NoSpaceError,
    NotAStoreError,
    ParbakeError,
    StaleStoreError,
    StoreReplacedError,
)
from parbake.loaders.batch_loader import BatchLoader
from parbake.loaders.dataset import StoreDataset
from parbake.producers import bake as bake_module
from parbake.producers.bake import bake, repair
from parbake.store import publish
from parbake.store import store as opening
from parbake.store.concatenated import concatenated
from parbake.store.containers import container_of
from parbake.store.keys import Keys
from parbake.store.layout import Field
from parbake.store.store import Store, open_store

SUFFIXES = (".zarr", ".zarr.zip", ".h5")
FILES = SUFFIXES[1:]
WAVE_CHUNKS = 4  # in a shard


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny slabs, and the keys of producers captured once."""
    tiny_slabs(monkeypatch)
    monkeypatch.setattr(opening, "producer_keys", bake_module.producer_keys)


@pytest.fixture(params=SUFFIXES)
def target(request: pytest.FixtureRequest, folder: Path) -> Path:
    return folder / f"train{request.param}"


def quietly(loaf: Loaf, target: Path, **options: Any) -> None:
    bake(loaf, target, progress=False, **options).close()


def shards(path: Path) -> dict[tuple[str, int], bytes]:
    """The bytes of every shard, as they lie in a directory."""
    with open_store(path) as store:
        return {
            (name, number): (source := store.shard(name, number)).get(0, source.nbytes).tobytes()
            for name, field in store.fields.items()
            for number in range(field.layout.shard_count(store.stored_samples))
        }


def undisturbed(folder: Path, loaf: Loaf, **options: Any) -> dict[tuple[str, int], bytes]:
    path = folder / "undisturbed.zarr"
    quietly(loaf, path, **options)
    found = shards(path)
    shutil.rmtree(path)
    return found


def removed(target: Path) -> None:
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


# ---- baked, grown, rebuilt


def test_the_container_is_the_one_of_the_name(target: Path) -> None:
    with bake(Loaf(), target, progress=False) as store:
        assert store.path == target
        assert_holds(store, Loaf())
    if target.suffix == ".zip":
        assert zipfile.ZipFile(target).testzip() is None
    elif target.suffix == ".h5":
        with h5py.File(target) as file:
            assert file["wave"].shape == (30, 24, 2)
    else:
        assert (target / "zarr.json").is_file()
    assert leftovers(target) == []


def test_baked_again_nothing_is_baked(target: Path) -> None:
    quietly(Loaf(), target)
    before = target.stat()
    log = target.parent / "log"
    with bake(Loaf(20, log=log), target, progress=False) as store:
        assert store.samples == 20
        assert store.stored_samples == 30
    assert not log.exists()
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_growth_bakes_only_what_is_missing(target: Path) -> None:
    quietly(Loaf(20), target)
    held = open_store(target)
    held.read(slice(None))  # a directory keeps only what was opened
    seen = []

    def trap(start: int, stop: int) -> None:
        with open_store(target) as old:
            seen.append(old.samples)

    log = target.parent / "log"
    with bake(Loaf(45, log=log, trap=trap), target, progress=False) as grown:
        assert_holds(grown, Loaf(45))
    assert min(start for start, _, _ in calls(log)) == 20
    assert sum(stop - start for start, stop, _ in calls(log)) == 25
    assert set(seen) == {20}
    with held:
        found = held.read(slice(None))
        for name, values in Loaf(20).values().items():
            np.testing.assert_array_equal(found[name], values)
    assert leftovers(target) == []


def test_a_grown_store_has_the_shards_of_one_baked_at_once(target: Path) -> None:
    quietly(Loaf(17), target)
    quietly(Loaf(45), target)
    grown = shards(target)
    for place, content in undisturbed(target.parent, Loaf(45)).items():
        assert grown[place] == content


def test_a_stale_store_is_replaced_when_it_is_asked_for(target: Path) -> None:
    quietly(Loaf(), target)
    with pytest.raises(StaleStoreError, match="seed: 0 -> 1"):
        quietly(Loaf(seed=1), target)
    with pytest.raises(StaleStoreError, match="seed: 0 -> 1"):
        open_store(target, expect=Loaf(seed=1))
    with open_store(target) as store:
        pickled = pickle.dumps(store)
        assert_holds(pickle.loads(pickled), Loaf())
        quietly(Loaf(seed=1), target, rebuild=True)
        with pytest.raises(StoreReplacedError):
            pickle.loads(pickled)
    with open_store(target, expect=Loaf(20, seed=1)) as store:
        assert_holds(store, Loaf(20, seed=1))
    assert leftovers(target) == []


def test_one_changed_field_is_baked_alone(target: Path) -> None:
    quietly(Loaf(20), target)
    before, log = shards(target), target.parent / "log"
    with bake(Loaf(20, gain=2, log=log), target, rebuild=True, progress=False) as store:
        assert_holds(store, Loaf(20, gain=2))
    assert {fields for _, _, fields in calls(log)} == {"count"}
    after = shards(target)
    assert {place for place in after if after[place] != before[place]} == {("count", n) for n in range(3)}


def test_accepted_source_is_recorded_in_every_container(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quietly(Loaf(20), target)
    real = bake_module.producer_keys

    def changed(producer: Any, *, rehash: bool = False) -> tuple[Keys, dict[str, Field]]:
        found, schema = real(producer, rehash=rehash)
        return Keys({**found.shared, "source": {"loaf": "a" * 64}}, found.fields), schema

    for module in (bake_module, opening):
        monkeypatch.setattr(module, "producer_keys", changed)
    with pytest.raises(StaleStoreError, match="source"):
        quietly(Loaf(20), target)
    before, log = shards(target), target.parent / "log"
    held = open_store(target)
    with bake(Loaf(20, log=log), target, accept_source=True, progress=False) as store:
        assert len(store.provenance["accepted_source"]) == 1
        assert store.freshness(Loaf(20))
        assert_holds(store, Loaf(20))
    held.close()
    assert not log.exists()
    assert shards(target) == before
    quietly(Loaf(33, log=log), target)
    assert min(start for start, _, _ in calls(log)) == 20
    with open_store(target) as grown:
        assert_holds(grown, Loaf(33))


@dataclass(frozen=True)
class Drawn(Loaf):
    """Draws its seed."""

    seed: Any = "fresh"


def test_a_seed_that_is_drawn_stays(target: Path) -> None:
    def trap(start: int, stop: int) -> None:
        if start >= 8 and stopping:
            raise KeyboardInterrupt

    def values(self: Drawn) -> dict[str, Any]:
        return Loaf(self.samples, seed=self.seed % 1000).values()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawn, "values", values)
        stopping = True
        with pytest.raises(KeyboardInterrupt):
            quietly(Drawn(20, trap=trap), target)
        plan = json.loads(next(publish.staging_root(target).glob("*/plan.json")).read_bytes())
        stopping = False
        for samples in (20, 33):
            with bake(Drawn(samples, trap=trap), target, progress=False) as store:
                assert store.provenance["seed_drawn"] == plan["seed_drawn"]
                assert_holds(store, Drawn(samples, seed=plan["seed_drawn"]))


# ---- damage: one contract over the containers


def chunk_bodies(store: Path, field: str, shard: int) -> list[bytes]:
    """Of a directory: the chunks of a shard, by its own index, without their checksums."""
    (file,) = [f for f in (store / field / "c" / str(shard)).rglob("*") if f.is_file()]
    content = file.read_bytes()
    count = WAVE_CHUNKS
    index = struct.unpack(f"<{2 * count}Q", content[-16 * count - 4 : -4])
    return [
        content[offset : offset + nbytes - 4]
        for offset, nbytes in zip(index[::2], index[1::2], strict=True)
        if offset != 2**64 - 1
    ]


class Patient:
    """A raw store in some container; ``places[shard][chunk]``: where the bodies of ``wave`` lie."""

    def __init__(self, target: Path) -> None:
        reference = target.with_name("reference.zarr")
        quietly(Loaf(20), reference, codec="raw")
        quietly(Loaf(20), target, codec="raw")
        self.path = target
        self.places = []
        for shard in range(2):
            file = next((target / "wave" / "c" / str(shard)).rglob("0")) if target.is_dir() else target
            while file.is_dir():
                file /= "0"
            content = file.read_bytes()
            found = []
            for body in chunk_bodies(reference, "wave", shard):
                assert content.count(body) == 1
                found.append((file, content.index(body), len(body)))
            self.places.append(found)

    def read(self, shard: int, chunk: int, extra: int = 0) -> bytes:
        file, start, nbytes = self.places[shard][chunk]
        return file.read_bytes()[start : start + nbytes + extra]

    def write(self, shard: int, chunk: int, new: bytes) -> None:
        file, start, _ = self.places[shard][chunk]
        with file.open("r+b") as opened:
            opened.seek(start)
            opened.write(new)


def flip(patient: Patient) -> None:
    body = bytearray(patient.read(0, 1))
    body[100] ^= 0x20
    patient.write(0, 1, bytes(body))


def zero(patient: Patient) -> None:
    """With its checksums: the CRC-32C or Fletcher-32 after it."""
    patient.write(0, 1, bytes(len(patient.read(0, 1, 4))))


def exchange_chunks(patient: Patient) -> None:
    one, other = patient.read(0, 1, 4), patient.read(0, 2, 4)
    patient.write(0, 1, other)
    patient.write(0, 2, one)


def exchange_shards(patient: Patient) -> None:
    """Whole files of a directory, whole members of a zip; in HDF5, which has no shards, all their chunks."""
    first, second = patient.places[0][0], patient.places[1][0]
    if patient.path.suffix == ".h5":
        for chunk in range(WAVE_CHUNKS):
            one, other = patient.read(0, chunk, 4), patient.read(1, chunk, 4)
            patient.write(0, chunk, other)
            patient.write(1, chunk, one)
        return
    contents = []
    for number, (file, start, _) in enumerate((first, second)):
        shard = shards_of_wave[number]
        begin = start - shard.index(patient.read(number, 0))
        contents.append((file, begin, shard))
    for (file, begin, _), (_, _, other) in zip(contents, contents[::-1], strict=True):
        with file.open("r+b") as opened:
            opened.seek(begin)
            opened.write(other)


shards_of_wave: list[bytes] = []
DAMAGES = {
    "flipped": (flip, range(2, 4), True),
    "zeroed": (zero, range(2, 4), True),
    "exchanged chunks": (exchange_chunks, range(2, 6), False),
    "exchanged shards": (exchange_shards, range(16), True),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_repaired_in_every_container(name: str, target: Path) -> None:
    spoil, samples, read_tells = DAMAGES[name]
    patient = Patient(target)
    before = shards(target)
    shards_of_wave[:] = [before["wave", 0], before["wave", 1]]
    spoil(patient)
    with open_store(target) as store:
        report = store.verify()
        assert not report
        blamed = {n for d in report.damaged if d.field == "wave" for n in range(d.start, d.stop)}
        assert set(samples) <= blamed
        assert {d.field for d in report.damaged if d.start < d.stop} == {"wave"}
        assert all("\n" not in str(damage) for damage in report.damaged)
        for sample in range(20):
            try:
                found = store.read([sample], ["wave"])["wave"]
            except DamagedStoreError as error:
                text = str(error)
                assert sample in samples
                assert "\n" not in text
                for part in (str(target), "'wave'", "samples"):
                    assert part in text
            else:
                if read_tells or target.suffix == ".h5":  # within a shard only its own checksum tells
                    assert sample not in samples
                    np.testing.assert_array_equal(found[0], Loaf(20).values()["wave"][sample])
    log = target.parent / "log"
    with repair(Loaf(20, log=log), target, progress=False) as mended:
        assert_holds(mended, Loaf(20))
    assert {fields for _, _, fields in calls(log)} == {"wave"}
    assert max(stop for _, stop, _ in calls(log)) <= 16
    assert shards(target) == before
    assert leftovers(target) == []


# ---- killed, full, two at once


@pytest.mark.parametrize("old", [None, Loaf(20)], ids=["bake", "growth"])
@pytest.mark.parametrize("suffix", FILES)
def test_killed_while_packing_the_same_command_goes_on(suffix: str, old: Loaf | None, folder: Path) -> None:
    target, log = folder / f"train{suffix}", folder / "log"
    template = folder / f"template{suffix}"
    loaf = Loaf(33, log=log)
    expected = undisturbed(folder, Loaf(33))
    if old is not None:
        quietly(old, template)

    def begin() -> None:
        shutil.rmtree(publish.staging_root(target), ignore_errors=True)
        removed(target)
        log.unlink(missing_ok=True)
        if old is not None:
            shutil.copyfile(template, target)

    def child(watch: KillAt) -> int:
        def killed() -> None:
            watch.install()
            quietly(loaf, target)

        return ended(start_child(killed))

    begin()
    assert child(Listed(folder / "calls")) == 0
    listed = (folder / "calls").read_text().splitlines()
    packing = next(number for number, line in enumerate(listed, 1) if "store/zarr.json" in line)
    seen = set()
    swap = next(number for number, line in enumerate(listed, 1) if "swap.json" in line)
    for moment in (packing // 3, packing, (packing + swap) // 2, swap - 1, swap + 2, swap + 4):
        begin()
        assert child(KillAt(moment)) == -signal.SIGKILL
        produced = sum(stop - start for start, stop, _ in calls(log))
        if target.exists():
            with open_store(target) as found:
                seen.add(found.samples)
                assert_holds(found, Loaf(found.samples))
        else:
            seen.add(0)
        quietly(loaf, target)
        with open_store(target) as store:
            assert_holds(store, Loaf(33))
        assert shards(target) == expected, listed[moment - 1]
        if moment >= packing:  # all was baked: nothing is produced again
            assert sum(stop - start for start, stop, _ in calls(log)) == produced
        with publish.baking_lock(target, pytest.fail):
            publish.finish_swap(target)
        assert leftovers(target) == [], listed[moment - 1]
    assert seen == {0 if old is None else 20, 33}


@pytest.mark.parametrize("old", [None, Loaf(20)], ids=["bake", "growth"])
@pytest.mark.parametrize("suffix", FILES)
def test_a_full_disk_while_packing_keeps_what_was_baked(
    suffix: str, old: Loaf | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, log = folder / f"train{suffix}", folder / "log"
    if old is not None:
        quietly(old, target)
    before = target.read_bytes() if old is not None else None
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if f"packed{target.suffix}" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(NoSpaceError, match="what was baked is kept") as caught:
            quietly(Loaf(33, log=log), target)
    assert str(target) in str(caught.value)
    assert (target.read_bytes() if target.exists() else None) == before
    assert not list(folder.rglob("*packed*"))
    produced = calls(log)
    quietly(Loaf(33, log=log), target)
    assert calls(log) == produced
    with open_store(target) as store:
        assert_holds(store, Loaf(33))
    assert leftovers(target) == []


@pytest.mark.parametrize("suffix", FILES)
def test_what_took_the_path_before_an_interrupted_swap_is_finished_stays(
    suffix: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / f"train{suffix}"
    quietly(Loaf(20), target)
    with monkeypatch.context() as patch:
        patch.setattr(publish, "_swap", lambda staging, target: os._exit(9))
        assert ended(start_child(lambda: quietly(Loaf(20, seed=1), target, rebuild=True))) == 9
    with open_store(target) as store:
        assert_holds(store, Loaf(20))
    kept = Path(shutil.copytree(publish.staging_root(target), folder / "kept"))
    with publish.baking_lock(target, pytest.fail):
        publish.finish_swap(target)
    with open_store(target) as store:
        assert_holds(store, Loaf(20, seed=1))
    assert leftovers(target) == []
    target.unlink()
    target.write_text("mine")
    shutil.copytree(kept, publish.staging_root(target))
    with pytest.raises(NotAStoreError):
        quietly(Loaf(20, seed=1), target, rebuild=True)
    with publish.baking_lock(target, pytest.fail):
        publish.finish_swap(target)
    assert target.read_text() == "mine"


def test_two_bakers_at_once_bake_once(target: Path) -> None:
    log = target.parent / "log"
    children = [start_child(lambda: quietly(Loaf(33, log=log), target)) for _ in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    assert sum(stop - start for start, stop, _ in calls(log)) == 33
    with open_store(target) as store:
        assert_holds(store, Loaf(33))
    assert leftovers(target) == []


# ---- what is not ours is never replaced


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def a_text(path: Path) -> None:
    path.write_text("mine")


def nothing_in_it(path: Path) -> None:
    path.touch()


def a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"mine" * 100)


def a_zip_with_zarr_in_it(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')


def a_zip_with_broken_zarr_in_it(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zarr.json", b'{"zarr_format": 3, "node_')


def a_cut_zip(path: Path) -> None:
    a_zip(path)
    path.write_bytes(path.read_bytes()[:-9])


def an_hdf5_file(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["pressure"] = np.arange(30)


def a_broken_hdf5_file(path: Path) -> None:
    an_hdf5_file(path)
    path.write_bytes(path.read_bytes()[:200])


def an_hdf5_file_that_copied_attributes(path: Path) -> None:
    quietly(Loaf(8), path.with_name("ours.h5"))
    with h5py.File(path.with_name("ours.h5")) as ours, h5py.File(path, "w") as file:
        for name, value in ours.attrs.items():
            file.attrs[name] = value
        file["pressure"] = np.arange(30)
    path.with_name("ours.h5").unlink()


THEIRS = (
    *(a_folder, a_text, nothing_in_it, a_zip, a_zip_with_zarr_in_it, a_zip_with_broken_zarr_in_it, a_cut_zip),
    *(an_hdf5_file, a_broken_hdf5_file, an_hdf5_file_that_copied_attributes),
)


@pytest.mark.parametrize("theirs", THEIRS)
def test_what_others_put_there_is_never_replaced(theirs: Callable[[Path], None], target: Path) -> None:
    theirs(target)
    before = {file: file.read_bytes() for file in [target, *target.rglob("*")] if file.is_file()}
    for rebuild in (False, True):
        with pytest.raises(ParbakeError) as caught:
            quietly(Loaf(8), target, rebuild=rebuild)
        assert str(target) in str(caught.value)
        assert "\n" not in str(caught.value)
    run("clear", target.parent, "--all", "--yes")
    assert {file: file.read_bytes() for file in [target, *target.rglob("*")] if file.is_file()} == before
    assert leftovers(target) == []


# ---- the command line


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, args)), prog_name="parbake")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def said(*args: object, code: int = 0) -> Any:
    return json.loads(run(*args, "--json", code=code).stdout)


RAMP = '''
from dataclasses import dataclass
import numpy as np
from parbake.store.layout import Field

@dataclass(frozen=True)
class Ramp:
    """Lines."""
    samples: int = 20
    slope: float = 1.0
    name = "ramp"
    version = 1
    def schema(self):
        return {"x": Field((50,), "float32", ("time",))}
    def invalidation_keys(self):
        return {"slope": self.slope}
    def __len__(self):
        return self.samples
    def produce(self, start, stop, fields):
        return {"x": (self.slope * (np.arange(50) + np.arange(start, stop)[:, None])).astype("f4")}
'''


def test_every_verb_knows_every_container(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = target.parent
    (folder / "ramp_of_lives.py").write_text(RAMP)
    monkeypatch.delitem(sys.modules, "ramp_of_lives", raising=False)
    linecache.clearcache()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    ramp, name = "ramp_of_lives:Ramp", target.name
    predicted = said("build", ramp, "-o", name, "--dry-run")
    assert predicted["samples"] == 20
    assert not target.exists()
    assert said("build", ramp, "-o", name, "--codec", "raw")["samples_baked"] == 20
    assert said("build", ramp, "-o", name, "--samples", "30")["samples_baked"] == 10
    assert run("check", name, ramp).stdout
    assert "slope: 1.0 -> 2.0" in run("check", name, ramp, "--slope", "2", code=1).stdout
    assert said("inspect", name)["samples"] == 30
    assert run("inspect", name).stdout.startswith(f"{name}: 30 samples of ramp")
    (listed,) = said("ls", ".")["stores"]
    assert (listed["path"], listed["samples"], listed["state"]) == (name, 30, "complete")
    assert listed["nbytes_stored"] == sum(
        f.stat().st_size for f in [target, *target.rglob("*")] if f.is_file()
    )
    assert run("verify", name).stdout
    body = (np.arange(50) + 3).astype("<f4").tobytes()
    file = target / "x" / "c" / "0" / "0" if target.is_dir() else target
    content = bytearray(file.read_bytes())
    assert content.count(body) == 1
    content[content.index(body) + 50] ^= 1
    file.write_bytes(content)
    result = run("verify", name, code=1)
    assert "field 'x', samples" in result.stdout
    run("verify", name, "--repair", f"{ramp} --samples 30")
    run("verify", name)
    assert said("bench", name, "--batch-size", "4", "--workers", "0", "--seconds", "0.05")
    with open_store(target):
        assert "being read; left alone" in CliRunner().invoke(main, ["clear", ".", "--all", "--yes"]).stderr
        assert target.exists()
    assert said("ls", ".")["stores"]
    run("clear", ".", "--older-than", "1d", "--yes")
    assert target.exists()
    run("clear", ".", "--all", "--yes")
    assert not target.exists()
    assert leftovers(target) == []


def test_an_unfinished_bake_is_told_and_cleared(target: Path) -> None:
    def trap(start: int, stop: int) -> None:
        if start >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quietly(Loaf(30, trap=trap), target)
    assert not target.exists()
    assert "unfinished bake: 2 of 4 slabs" in run("inspect", target, code=1).output
    (listed,) = said("ls", target.parent)["stores"]
    assert (listed["state"], Path(listed["path"]).name) == ("unfinished", target.name)
    run("clear", target.parent, "--partial", "--yes")
    assert leftovers(target) == []


# ---- loaders


def assert_batches(batches: Iterator[Any]) -> None:
    wanted = Loaf(30).values()
    seen = 0
    for batch in batches:
        index = batch["index"].numpy()
        seen += len(index)
        for name, values in wanted.items():
            np.testing.assert_array_equal(batch[name].numpy(), values[index])
    assert seen == 30


def test_loaders_of_processes_and_threads_read_every_container(target: Path) -> None:
    quietly(Loaf(30), target)
    ds = StoreDataset(target, with_index=True)
    assert ds[3]["wave"].dtype == torch.float32
    assert_batches(iter(DataLoader(ds, batch_size=7, shuffle=True, num_workers=2)))
    assert_batches(iter(BatchLoader(ds, batch_size=7, shuffle=True)))
    assert_batches(iter(ds.loader(batch_size=7, shuffle=True, num_workers=2)))


def test_a_spawned_worker_opens_every_container(folder: Path) -> None:
    for suffix in SUFFIXES:
        quietly(Loaf(30), folder / f"a{suffix}")
    stores = [open_store(folder / f"a{suffix}") for suffix in SUFFIXES]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        sums = pool.map(total, stores)
    assert sums == [float(Loaf(30).values()["wave"].astype("f8").sum())] * 3


def total(store: Store) -> float:
    return float(store.read(slice(None))["wave"].astype("f8").sum())


def test_stores_of_mixed_containers_are_one(folder: Path) -> None:
    parts = []
    for seed, suffix in enumerate(SUFFIXES):
        quietly(Loaf(10, seed=seed), folder / f"a{suffix}")
        parts.append(open_store(folder / f"a{suffix}"))
    whole = concatenated(parts)
    wanted = np.concatenate([Loaf(10, seed=seed).values()["wave"] for seed in range(3)])
    np.testing.assert_array_equal(whole.read(slice(None))["wave"], wanted)
    index = np.array([25, 3, 12, 29, 0])
    np.testing.assert_array_equal(whole.read(index)["wave"], wanted[index])
    ds = StoreDataset(whole, with_index=True)
    np.testing.assert_array_equal(ds[25]["wave"].numpy(), wanted[25])


def test_cached_keeps_directories(folder: Path) -> None:
    with parbake.cached(Loaf(20), folder, progress=False) as store:
        assert container_of(store.path) == "directory"
        assert store.path.suffix == ".zarr"
    log = folder / "log"
    with parbake.cached(replace(Loaf(20), log=log), folder, progress=False) as store:
        assert_holds(store, Loaf(20))
    assert not log.exists()
