"""Get or bake, samples computed on the fly, and what may be cleared from a folder of stores."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from bakery import Loaf, assert_holds, calls
from click.testing import CliRunner, Result

import parbake
from parbake import RecipeError, StoreDataset
from parbake.cli import main
from parbake.human import parsed_duration, parsed_size
from parbake.producers import SineTeacher
from parbake.producers import bake as bake_module
from parbake.producers.cached import cached
from parbake.producers.computed import ComputedStore
from parbake.producers.reporting import Progress
from parbake.store import clear
from parbake.store.cache import list_stores
from parbake.store.publish import baking_lock
from parbake.store.store import Store, open_store

pytestmark = pytest.mark.usefixtures("tiny")


def stored(producer: Loaf, folder: Path, **options: object) -> Store:
    store = cached(producer, folder, progress=False, **options)  # type: ignore[arg-type]
    assert isinstance(store, Store)
    return store


# ---- get or bake


def test_first_use_bakes_and_later_ones_open(folder: Path) -> None:
    log = folder / "log"
    with stored(Loaf(20, log=log), folder / "cache") as store:
        assert_holds(store, Loaf(20))
    made = len(calls(log))
    with stored(Loaf(20, log=log), folder / "cache") as store:
        assert_holds(store, Loaf(20))
    with stored(Loaf(7, log=log), folder / "cache") as store:  # fewer: a view of the same
        assert store.samples == 7
    assert len(calls(log)) == made
    with stored(Loaf(30, log=log), folder / "cache") as store:  # more: it grows
        assert_holds(store, Loaf(30))
    assert len(list_stores(folder / "cache")) == 1


def test_other_keys_have_a_store_of_their_own(folder: Path) -> None:
    for producer in (Loaf(20), Loaf(20, seed=5), Loaf(20, gain=3)):
        with stored(producer, folder) as store:
            assert_holds(store, producer)
    assert len(list_stores(folder)) == 3


def test_the_folder_is_that_of_the_environment_unless_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARBAKE_CACHE", str(folder / "there"))
    with cached(Loaf(8), progress=False) as store:
        assert Path(store.path).parent == folder / "there"
    config = {"use_cache": True, "cache_dir": str(folder / "here")}  # as in a training's config.yaml
    with cached(Loaf(8), **config, progress=False) as store:  # type: ignore[arg-type]
        assert Path(store.path).parent == folder / "here"
    with cached(Loaf(8), **{**config, "use_cache": False}) as store:  # type: ignore[arg-type]
        assert isinstance(store, ComputedStore)


def _cache_it(folder: Path, log: Path, monkeypatch: pytest.MonkeyPatch, told: object) -> None:
    def report(progress: Progress) -> None:
        if progress.notice:
            told.put(progress.notice)  # type: ignore[attr-defined]

    cached(Loaf(20, log=log, trap=lambda *_: time.sleep(0.02)), folder, progress=report).close()


def test_two_processes_at_once_bake_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = multiprocessing.get_context("fork")
    told, log = fork.SimpleQueue(), folder / "log"
    children = [
        fork.Process(target=_cache_it, args=(folder / "cache", log, monkeypatch, told)) for _ in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    batches = calls(log)
    assert len(batches) == len(set(batches))
    if not told.empty():  # else the first was done before the second looked
        assert "being baked by process" in told.get()


def _use_read_only(folder: Path, told: object) -> None:
    try:
        if os.geteuid() == 0:
            os.setuid(65_534)  # root may write anywhere
        with stored(Loaf(20), folder) as store:
            assert_holds(store, Loaf(20))
        with pytest.raises(RecipeError, match="cannot write in"):
            stored(Loaf(20, seed=9), folder)
        told.put("served")  # type: ignore[attr-defined]
    except BaseException as error:
        told.put(repr(error))  # type: ignore[attr-defined]


def test_a_read_only_folder_serves_what_is_in_it(folder: Path) -> None:
    stored(Loaf(20), folder / "cache").close()
    folder.chmod(0o755)
    (folder / "cache").chmod(0o555)
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()
    child = fork.Process(target=_use_read_only, args=(folder / "cache", told))
    child.start()
    child.join(60)
    (folder / "cache").chmod(0o755)
    assert told.get() == "served"


def test_a_folder_that_cannot_be_made_is_one_line(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot write in"):
        stored(Loaf(20), folder / "file" / "cache")


# ---- computed on the fly


def test_computed_samples_are_those_of_the_store_through_the_same_interface(folder: Path) -> None:
    computed = cached(Loaf(20), use_cache=False)
    assert isinstance(computed, ComputedStore)
    with stored(Loaf(20), folder) as store:
        for index in ([5, 3, 5, 19], slice(2, 9), range(19, 0, -4), [-1], np.arange(20) % 3 == 0, []):
            expected, found = store.read(index), computed.read(index)
            assert expected.keys() == found.keys()
            for name, array in expected.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(computed["wave"][3], store["wave"][3])
        assert computed.samples == store.samples
        assert computed.digest == store.digest
        assert computed.freshness(Loaf(20))
        assert not computed.freshness(Loaf(20, seed=4))
        assert computed.statistics.keys() == store.statistics.keys()
        assert computed.first(4).samples == 4
        for a, b in zip(StoreDataset(computed), StoreDataset(store), strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
        loader = torch.utils.data.DataLoader(StoreDataset(computed, "wave"), batch_size=7, num_workers=1)
        loaded = torch.cat([batch["wave"] for batch in loader])
        np.testing.assert_array_equal(loaded.numpy(), store["wave"][:])
    with pytest.raises(IndexError):
        computed.read([20])
    with pytest.raises(RecipeError, match="no field 'z'"):
        computed.read([0], ["z"])
    assert pickle.loads(pickle.dumps(computed)).samples == 20


def test_computing_asks_for_what_is_read_and_no_more(folder: Path) -> None:
    log = folder / "log"
    computed = cached(Loaf(20, log=log), use_cache=False)
    computed.read([4, 5, 6, 7, 8, 2, 4], ["wave"])
    assert [call[:2] for call in calls(log)] == [(2, 3), (4, 7), (7, 9)]  # batches of three at most


# ---- cleared


def run(*args: str | Path, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], input=answer)


def three(folder: Path) -> dict[str, Path]:
    """Stores a, b and c of different sizes, c used last."""
    paths = {}
    for age, (name, samples) in enumerate({"c": 10, "b": 40, "a": 20}.items()):
        paths[name] = folder / f"{name}.zarr"
        bake_module.bake(Loaf(samples), paths[name], progress=False).close()
        used = time.time() - 86_400 * 10 * age
        os.utime(paths[name] / "zarr.json", (used, used))
    return paths


def left(folder: Path) -> set[str]:
    return {store.path.stem for store in list_stores(folder)}


def test_nothing_goes_unless_said_and_confirmed(folder: Path) -> None:
    three(folder)
    assert run("clear", folder).exit_code == 2
    assert run("clear", folder, "--all", answer="n\n").exit_code == 1
    assert left(folder) == {"a", "b", "c"}
    assert run("clear", folder, "--all", answer="y\n").exit_code == 0
    assert left(folder) == set()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "remaining"),
    [
        (("--older-than", "15d"), {"b", "c"}),
        (("--older-than", "5 days"), {"c"}),
        (("--older-than", "30d"), {"a", "b", "c"}),
        (("--max-size", "1GB"), {"a", "b", "c"}),
        (("--max-size", "0"), set()),
        (("--older-than", "15d", "--max-size", "0"), set()),
    ],
)
def test_old_and_large_stores_go(folder: Path, options: tuple[str, ...], remaining: set[str]) -> None:
    three(folder)
    result = run("clear", folder, *options, "--yes", "--json")
    assert result.exit_code == 0, result.output
    assert left(folder) == remaining


def test_a_size_limit_takes_the_least_recently_used_first(folder: Path) -> None:
    three(folder)
    sizes = {store.path.stem: store.nbytes_stored for store in list_stores(folder)}
    limit = sizes["b"] + sizes["c"]
    assert run("clear", folder, "--max-size", str(limit), "-y").exit_code == 0
    assert left(folder) == {"b", "c"}


def test_use_through_the_cache_counts_as_use(folder: Path) -> None:
    stored(Loaf(20), folder).close()
    [before] = list_stores(folder)
    old = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    os.utime(before.path / "zarr.json", (old, old))
    stored(Loaf(20), folder).close()
    [after] = list_stores(folder)
    assert after.last_used is not None
    assert after.last_used.year > 2020


def test_stale_stores_of_a_recipe_go_and_the_fresh_one_stays(folder: Path) -> None:
    common = ("--duration", "0.01", "--num-samples", "8", "--cache", folder)
    for level in ("0", "-6", "-12"):
        assert run("build", "sine-teacher", "--db-max", level, *common).exit_code == 0
    bake_module.bake(Loaf(8), folder / "other.zarr", progress=False).close()
    result = run("clear", folder, "--stale", "sine-teacher --duration 0.01 --db-max -6", "--yes")
    assert result.exit_code == 0, result.output
    kept = [s for s in list_stores(folder) if s.producer == "sine-teacher"]
    assert len(kept) == 1
    with open_store(kept[0].path) as store:
        assert store.invalidation_keys.shared["keys"]["db_max"] == -6  # type: ignore[index, call-overload]
    assert (folder / "other.zarr").is_dir()


def test_unfinished_bakes_go_and_their_stores_stay(folder: Path) -> None:
    path = folder / "s.zarr"
    bake_module.bake(Loaf(20), path, progress=False).close()

    def stop(start: int, _: int) -> None:
        if start >= 30:
            raise RuntimeError("stop")

    with pytest.raises(parbake.ProducerError):
        bake_module.bake(Loaf(60, trap=stop), path, progress=False)
    assert list_stores(folder)[0].slabs is not None
    assert run("clear", folder, "--partial", "--yes").exit_code == 0
    assert list_stores(folder)[0].slabs is None
    with open_store(path) as store:
        assert_holds(store, Loaf(20))


def test_what_is_read_or_baked_or_not_ours_stays(folder: Path) -> None:
    paths = three(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "zarr.json").write_text("{}")
    (paths["b"] / "mine.txt").write_text("important")
    (folder / "link.zarr").symlink_to(paths["a"])
    with open_store(paths["a"]) as store, baking_lock(paths["c"], lambda _: None):
        result = run("clear", folder, "--all", "--yes")
        assert_holds(store, Loaf(20))
    assert result.exit_code == 1
    for text in ("being read", "being baked by process", "mine.txt", "a link"):
        assert text in result.output
    assert left(folder) == {"a", "b", "c", "link"}
    assert (folder / "notes" / "zarr.json").exists()
    root = paths["b"] / "zarr.json"
    whole = root.read_text()
    root.write_text(whole.replace('"parbake_samples":40', '"parbake_samples":41'))
    assert {s.path.stem: s.state for s in list_stores(folder)}["b"] == "broken"
    assert run("clear", folder, "--max-size", "0", "--yes").exit_code == 1  # also of a broken one
    assert (paths["b"] / "mine.txt").exists()
    (paths["b"] / "mine.txt").unlink()
    (folder / "link.zarr").unlink()
    assert run("clear", folder, "--all", "--yes").exit_code == 0
    assert left(folder) == set()


def test_a_folder_of_ones_own_beside_an_unfinished_bake_stays(folder: Path) -> None:
    path = folder / "s.zarr"

    def stop(start: int, _: int) -> None:
        if start >= 8:
            raise RuntimeError("stop")

    with pytest.raises(parbake.ProducerError):
        bake_module.bake(Loaf(60, trap=stop), path, progress=False)
    path.mkdir()
    (path / "thesis.txt").write_text("important")
    result = run("clear", folder, "--all", "--yes")
    assert result.exit_code == 1
    assert "not a store; left alone" in result.output
    assert (path / "thesis.txt").read_text() == "important"
    assert run("clear", folder, "--partial", "--yes").exit_code == 0
    assert [child.name for child in folder.iterdir() if child.is_dir()] == ["s.zarr"]


def _clear_as_another(folder: Path, told: object) -> None:
    try:
        run("clear", folder, "--max-size", "1TB", "--yes")  # imports what root may read only
        if os.geteuid() == 0:
            os.setuid(65_534)
        result = run("clear", folder, "--all", "--yes", "--json")
        told.put((result.exit_code, json.loads(result.stdout), result.stderr))  # type: ignore[attr-defined]
    except BaseException as error:
        told.put(repr(error))  # type: ignore[attr-defined]


def test_a_store_that_cannot_be_removed_stays_whole(folder: Path) -> None:
    paths = three(folder)
    for mine in (folder, paths["a"], *paths["a"].rglob("*")):
        mine.chmod(0o777)
    for found in (paths["b"], paths["c"]):
        found.chmod(0o555)
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()
    child = fork.Process(target=_clear_as_another, args=(folder, told))
    child.start()
    child.join(60)
    exit_code, said, _ = told.get()
    for found in (paths["b"], paths["c"]):
        found.chmod(0o755)
    assert exit_code == 1
    assert left(folder) == {"b", "c"}
    assert "no permission" in json.dumps(said)
    for name in ("b", "c"):
        with open_store(paths[name]) as store:
            assert store.verify()


def test_what_an_interrupted_removal_left_goes_with_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = three(folder)["a"]

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clear.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clear.remove_store(path)
    assert {store.path.stem for store in list_stores(folder)} == {"b", "c"}
    assert run("clear", folder, "--max-size", "1TB", "--yes").exit_code == 0
    assert {child.name for child in folder.iterdir() if child.is_dir()} == {"b.zarr", "c.zarr"}


def test_a_store_in_another_process_counts_as_read(folder: Path) -> None:
    path = three(folder)["a"]
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    store = open_store(path)

    def hold() -> None:
        there.send(store["f0"][0])
        there.recv()

    child = fork.Process(target=hold)
    child.start()
    here.recv()
    store.close()  # only the child has it now
    with pytest.raises(clear.InUseError, match="being read"):
        clear.remove_store(path)
    here.send(None)
    child.join(30)
    clear.remove_store(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("10GB", 10**10), ("1.5 MiB", 1_572_864), ("7", 7), ("2k", 2000), ("3 TB", 3 * 10**12)],
)
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert parsed_size(text) == nbytes


@pytest.mark.parametrize(("text", "seconds"), [("30d", 2_592_000), ("12 hours", 43_200), ("1.5h", 5400)])
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parsed_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-3d", "10 parsecs", "1GBB", "nan", "infGB", "1e30"])
def test_other_sizes_and_durations_are_refused(text: str) -> None:
    for parse in (parsed_size, parsed_duration):
        with pytest.raises(ValueError, match=r".*"):
            parse(text)


def test_a_fresh_seed_is_drawn_once_for_computed_samples() -> None:
    teacher = SineTeacher(seed="fresh", duration=0.01, num_samples=4)
    first, second = (cached(teacher, use_cache=False) for _ in range(2))
    np.testing.assert_array_equal(first["f0"][:], first["f0"][:])
    assert (first["f0"][:] != second["f0"][:]).all()
