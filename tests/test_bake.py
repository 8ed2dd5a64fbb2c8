"""What a bake takes from a producer, keeps of an older store, tells meanwhile and records."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bakery import SLAB, Loaf, assert_holds, calls, leftovers, shard_bytes
from numpy.typing import NDArray

from parbake.errors import NotReproducibleError, ProducerError, RecipeError, StaleStoreError
from parbake.producers import bake as bake_module
from parbake.producers import reporting
from parbake.producers.bake import bake, repair
from parbake.producers.reporting import Progress
from parbake.store import publish
from parbake.store.layout import Field
from parbake.store.store import Store, open_store

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def target(folder: Path) -> Path:
    return folder / "train.zarr"


# ---- what a producer may give


@dataclass(frozen=True)
class Given:
    """One field, from whatever ``give(start, stop)`` returns."""

    give: Callable[[int, int], Any]
    dtype: str = "float32"
    shape: tuple[int, ...] = (5, 4)
    allow_nan: bool = False
    samples: int = 20
    batch_size: int = 3
    name: str = "given"
    version: int = 1

    def schema(self) -> Mapping[str, Field]:
        dims = tuple(f"d{axis}" for axis in range(len(self.shape)))
        return {"v": Field(self.shape, self.dtype, dims, allow_nan=self.allow_nan)}

    def invalidation_keys(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        return self.samples

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> Any:
        return {"v": self.give(start, stop)}


VALUES = np.random.default_rng(7).standard_normal((20, 5, 4)).astype(np.float32)
_reused = np.zeros((3, 5, 4), np.float32)


def _torch(start: int, stop: int) -> Any:
    import torch

    return torch.tensor(VALUES[start:stop], requires_grad=True)


def _torch_permuted(start: int, stop: int) -> Any:
    import torch

    return torch.tensor(VALUES[start:stop].transpose(2, 0, 1).copy()).permute(1, 2, 0)


def _overwritten(start: int, stop: int) -> NDArray[np.float32]:
    _reused[:] = np.nan
    _reused[: stop - start] = VALUES[start:stop]
    return _reused[: stop - start]


GIVEN: dict[str, Callable[[int, int], Any]] = {
    "array": lambda start, stop: VALUES[start:stop].copy(),
    "view": lambda start, stop: VALUES[start:stop],
    "one buffer, overwritten": _overwritten,
    "strided": lambda start, stop: np.repeat(VALUES, 2, axis=1)[start:stop, ::2],
    "backwards": lambda start, stop: VALUES[::-1].copy()[::-1][start:stop],
    "fortran": lambda start, stop: np.asfortranarray(VALUES[start:stop]),
    "big-endian": lambda start, stop: VALUES[start:stop].astype(">f4"),
    "read-only": lambda start, stop: np.broadcast_to(VALUES[start:stop], (stop - start, 5, 4)),
    "list of arrays": lambda start, stop: list(VALUES[start:stop]),
    "torch": _torch,
    "torch, permuted": _torch_permuted,
}


@pytest.fixture
def plain_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions above differ by source, which is no matter here."""
    from parbake.store.keys import Keys

    def keys(producer: Given, *, rehash: bool = False) -> Any:
        schema = dict(producer.schema())
        own = {name: {"allow_nan": f.allow_nan, "dtype": f.dtype.str} for name, f in schema.items()}
        return Keys({"producer": "given", "version": 1, "keys": {}}, own), schema

    monkeypatch.setattr(bake_module, "producer_keys", keys)


@pytest.mark.usefixtures("plain_keys")
@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
@pytest.mark.parametrize("kind", GIVEN)
def test_any_form_of_array_is_taken(kind: str, dtype: str, target: Path) -> None:
    with bake(Given(GIVEN[kind], dtype), target, progress=False) as store:
        np.testing.assert_array_equal(np.asarray(store["v"]), VALUES)
        assert store.verify()


@pytest.mark.usefixtures("plain_keys")
def test_bfloat16_is_stored_as_float32(target: Path) -> None:
    import torch

    rounded = torch.tensor(VALUES).to(torch.bfloat16)
    with bake(Given(lambda a, b: rounded[a:b]), target, progress=False) as store:
        np.testing.assert_array_equal(np.asarray(store["v"]), rounded.float().numpy())


def _with_nan(start: int, stop: int) -> NDArray[np.float32]:
    values = VALUES[start:stop].copy()
    if start <= 13 < stop:
        values[13 - start, 2, 1] = np.nan
    return values


def _ragged(start: int, stop: int) -> list[Any]:
    return [np.zeros(5 + index % 2) for index in range(start, stop)]


def _complex_view(start: int, stop: int) -> Any:
    import torch

    return torch.zeros(stop - start, 5, 4, dtype=torch.float32).to_sparse()


REFUSED: dict[str, tuple[Callable[[int, int], Any], str]] = {
    "NaN": (
        _with_nan,
        r"samples 12-14: field 'v' has NaN in 1 of them, first in sample 13; .*allow_nan=True",
    ),
    "shape": (
        lambda a, b: VALUES[a:b, :4],
        r"samples 0-2: field 'v' has shape \[3, 4, 4\] where \[3, 5, 4\]",
    ),
    "too few": (lambda a, b: VALUES[a : b - 1], r"has shape \[2, 5, 4\] where \[3, 5, 4\]"),
    "dtype": (lambda a, b: VALUES[a:b].astype(float), r"dtype float64 where float32 is declared"),
    "ragged": (_ragged, r"is ragged \(lengths 5 to 6\); pad it"),
    "objects": (lambda a, b: [None] * (b - a), r"gives list, not an array of numbers"),
    "a tensor without storage": (_complex_view, r"samples 0-2: "),
}


@pytest.mark.usefixtures("plain_keys")
@pytest.mark.parametrize("kind", REFUSED)
def test_output_that_does_not_fit_is_refused_in_one_line(kind: str, target: Path) -> None:
    give, text = REFUSED[kind]
    with pytest.raises(ProducerError, match=text) as caught:
        bake(Given(give), target, progress=False)
    assert str(caught.value).startswith("given: ")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("plain_keys")
def test_refused_nan_keeps_what_was_baked_before(target: Path) -> None:
    starts = []

    def give(start: int, stop: int) -> NDArray[np.float32]:
        starts.append(start)
        return _with_nan(start, stop) if len(starts) < 100 else VALUES[start:stop]

    with pytest.raises(ProducerError):
        bake(Given(give), target, progress=False)
    assert starts[-1] == 12
    starts[:] = [-1] * 100
    with bake(Given(give), target, progress=False) as store:
        np.testing.assert_array_equal(np.asarray(store["v"]), VALUES)
    assert starts[100] == 12


@pytest.mark.usefixtures("plain_keys")
def test_nan_is_data_where_the_field_allows_it(target: Path) -> None:
    with bake(Given(_with_nan, allow_nan=True), target, progress=False) as store:
        np.testing.assert_array_equal(np.asarray(store["v"]), _with_nan(0, 20))


@pytest.mark.usefixtures("plain_keys")
@pytest.mark.parametrize("given", [None, {}, {"w": VALUES}], ids=["None", "nothing", "another field"])
def test_produce_must_give_the_fields(given: Any, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Given, "produce", lambda *_: given)
    with pytest.raises(ProducerError, match=r"^given: samples 0-2: produce\(\) gives "):
        bake(Given(_with_nan), target, progress=False)


# ---- what is kept


def test_growth_bakes_only_what_is_missing(target: Path, folder: Path) -> None:
    expected = shard_bytes(bake(Loaf(60), folder / "undisturbed", progress=False).path)
    bake(Loaf(20), target, progress=False).close()
    log = folder / "log"
    with bake(Loaf(60, log=log), target, progress=False) as store:
        assert_holds(store, Loaf(60))
    assert min(start for start, _, _ in calls(log)) == 20
    assert sum(stop - start for start, stop, _ in calls(log)) == 40
    assert shard_bytes(target) == expected
    with bake(Loaf(20, log=log), target, progress=False) as store:  # fewer: the same store, shown in part
        assert (store.samples, store.stored_samples) == (20, 60)
    assert sum(stop - start for start, stop, _ in calls(log)) == 40


def test_one_changed_field_is_baked_alone(target: Path, folder: Path) -> None:
    bake(Loaf(30), target, progress=False).close()
    log = folder / "log"
    with pytest.raises(StaleStoreError, match=r"field 'count': gain: 1 -> 2"):
        bake(Loaf(30, gain=2, log=log), target, progress=False)
    assert calls(log) == []
    before = shard_bytes(target)
    with bake(Loaf(45, gain=2, log=log), target, rebuild=True, progress=False) as store:
        assert_holds(store, Loaf(45, gain=2))
    assert {fields for _, stop, fields in calls(log) if stop <= 30} == {"count"}
    assert {fields for start, _, fields in calls(log) if start >= 30} == {"count,f0,level,wave"}
    after = shard_bytes(target)
    assert all(after[f"wave/c/{slab}/0/0"] == before[f"wave/c/{slab}/0/0"] for slab in range(3))


def test_stale_fields_and_missing_samples_stop_and_resume_without_loss(target: Path, folder: Path) -> None:
    """In one slab first one field is produced, then all: both stretches are spooled."""
    bake(Loaf(20), target, progress=False).close()
    log = folder / "log"

    def trap(start: int, stop: int) -> None:
        if start == 21:
            raise ValueError("stop")

    with pytest.raises(ProducerError):
        bake(Loaf(24, gain=2, trap=trap), target, rebuild=True, progress=False)
    with bake(Loaf(24, gain=2, log=log), target, rebuild=True, progress=False) as store:
        assert_holds(store, Loaf(24, gain=2))
    assert [(start, stop) for start, stop, _ in calls(log)] == [(21, 24)]


def test_fresh_store_is_not_baked_again_unless_rebuilt(target: Path, folder: Path) -> None:
    log = folder / "log"
    for count, rebuild in ((12, False), (12, False), (24, True)):
        with bake(Loaf(log=log), target, rebuild=rebuild, progress=False) as store:
            assert_holds(store, Loaf())
        assert len(calls(log)) == count
    with pytest.raises(RecipeError, match="is baked with codec 'lz4'"):
        bake(Loaf(), target, codec="zstd", progress=False)
    with bake(Loaf(), target, codec="zstd", rebuild=True, progress=False) as store:
        assert store.provenance["codec"] == "zstd"
        assert_holds(store, Loaf())


def test_growth_after_an_accepted_source_is_readable(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old shards carry the older source in their headers."""
    keys = bake_module.producer_keys

    def edited(producer: Any, **options: Any) -> Any:
        found, schema = keys(producer, **options)
        return replace(found, shared={**found.shared, "source": {"bakery.Loaf": "edited"}}), schema

    bake(Loaf(20), target, progress=False).close()
    monkeypatch.setattr(bake_module, "producer_keys", edited)
    with pytest.raises(StaleStoreError, match="source"):
        bake(Loaf(20), target, progress=False)
    bake(Loaf(20), target, accept_source=True, progress=False).close()
    for samples in (40, 60):
        with bake(Loaf(samples), target, progress=False) as store:
            assert_holds(store, Loaf(samples))
            assert len(store.provenance["accepted_source"]) == 1


# ---- repair


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0x20
    file.unlink()  # it may be linked elsewhere
    file.write_bytes(content)


ALL_SLABS = set(range(8))
DAMAGE: dict[str, tuple[str, str, set[int]]] = {  # file, fields and slabs that are produced again
    "shard": ("wave/c/3/0/0", "wave", {3}),
    "partial last shard": ("count/c/7/0", "count", {7}),
    "scalar chunk": ("f0/c/0", "f0", {0, 1}),
    "coordinate": ("time/c/0", "", set()),
    "manifest": ("manifest/wave/crc32c/c/0", "wave", ALL_SLABS),
    "array metadata": ("wave/zarr.json", "", set()),
}


@pytest.mark.parametrize("missing", [False, True], ids=["flipped", "missing"])
@pytest.mark.parametrize("what", DAMAGE)
def test_repair_bakes_only_what_is_damaged(what: str, missing: bool, target: Path, folder: Path) -> None:
    file, fields, damaged = DAMAGE[what]
    bake(Loaf(60), target, progress=False, batch_size=5).close()
    whole = shard_bytes(target)
    if missing:
        (target / file).unlink()
        damaged = set(range(4)) if what == "scalar chunk" else damaged  # the whole shard
    else:
        flip(target / file)
    with open_store(target) as store:
        assert not store.verify()
    log = folder / "log"
    with repair(Loaf(60, log=log), target, progress=False) as store:
        assert_holds(store, Loaf(60))
        assert "accepted_drift" not in store.provenance["bakes"][-1]
    assert shard_bytes(target) == whole
    assert {produced for _, _, produced in calls(log)} == ({fields} if fields else set())
    assert {start // SLAB for start, _, _ in calls(log)} == damaged
    assert all(start % SLAB == 0 or start % 5 == 0 for start, _, _ in calls(log))  # the recorded grid
    assert leftovers(target) == []


def test_repair_keeps_to_the_grid_of_each_field(target: Path, folder: Path) -> None:
    bake(Loaf(16), target, batch_size=4, progress=False).close()
    bake(Loaf(16, gain=2), target, batch_size=3, rebuild=True, progress=False).close()
    grids = {"wave": [(8, 12), (12, 16)], "count": [(8, 9), (9, 12), (12, 15), (15, 16)]}
    for name, grid in grids.items():
        flip(next(file for file in (target / name / "c" / "1").rglob("*") if file.is_file()))
        log = folder / f"{name}.log"
        with repair(Loaf(16, gain=2, log=log), target, progress=False) as store:
            assert_holds(store, Loaf(16, gain=2))
        assert calls(log) == [(*batch, name) for batch in grid]


def test_repair_of_a_whole_store_does_nothing(target: Path, folder: Path) -> None:
    bake(Loaf(), target, progress=False).close()
    inode = target.stat().st_ino
    repair(Loaf(log=folder / "log"), target, progress=False).close()
    assert target.stat().st_ino == inode
    assert calls(folder / "log") == []


def test_repair_by_another_recipe_is_refused(target: Path) -> None:
    bake(Loaf(), target, progress=False).close()
    with pytest.raises(StaleStoreError, match="seed: 0 -> 1"):
        repair(Loaf(seed=1), target, progress=False)
    with pytest.raises(RecipeError, match="holds 30 samples, the recipe gives only 20"):
        repair(Loaf(20), target, progress=False)


def test_drift_is_refused_then_accepted_and_recorded(target: Path, folder: Path) -> None:
    bake(Loaf(40), target, progress=False).close()
    flip(target / "wave/c/1/0/0")
    damaged = (target / "wave/c/1/0/0").read_bytes()
    for _ in range(2):
        with pytest.raises(NotReproducibleError, match=r"field 'wave', shard 1: .*--accept-drift"):
            repair(Loaf(40, drift=0.5), target, progress=False)
        assert (target / "wave/c/1/0/0").read_bytes() == damaged
    template = folder / "template.zarr"
    with bake(Loaf(40), template, progress=False) as undisturbed:
        right = shard_bytes(undisturbed.path)
    with repair(Loaf(40, drift=0.5), target, accept_drift=True, progress=False) as store:
        assert store.verify()
        np.testing.assert_array_equal(store["wave"][8:16], Loaf(40, drift=0.5).values()["wave"][8:16])
        np.testing.assert_array_equal(store["wave"][:8], Loaf(40).values()["wave"][:8])
        assert store.provenance["bakes"][-1]["accepted_drift"] == ["wave, shard 1"]
        assert store.statistics["wave"]["max"] == float(np.asarray(store["wave"]).max())
    changed = {name for name, content in shard_bytes(target).items() if content != right[name]}
    assert changed == {"wave/c/1/0/0"}


def test_refused_drift_leaves_nothing_to_a_repair_that_is_right(target: Path) -> None:
    bake(Loaf(40), target, progress=False).close()
    flip(target / "wave/c/1/0/0")
    with pytest.raises(NotReproducibleError):
        repair(Loaf(40, drift=0.5), target, progress=False)
    with repair(Loaf(40), target, progress=False) as store:
        assert_holds(store, Loaf(40))


# ---- provenance


def _stretches(store: Store, name: str) -> list[tuple[int, int, int]]:
    return [
        (s["start"], s["stop"], s["batch_size"]) for s in store.provenance["segments"] if name in s["fields"]
    ]


def test_provenance_tells_how_each_sample_came_to_be(target: Path) -> None:
    with bake(Loaf(20), target, command="first", progress=False) as store:
        assert all(_stretches(store, name) == [(0, 20, 3)] for name in store.fields)
        environment = store.provenance["segments"][0]["environment"]
        assert environment["device"] == "cpu"
        assert environment["versions"]["numpy"] == np.__version__
    with bake(Loaf(60), target, batch_size=7, command="grown", progress=False) as store:
        assert _stretches(store, "wave") == [(0, 20, 3), (20, 60, 7)]
    with bake(Loaf(60, gain=2), target, batch_size=4, rebuild=True, command="field", progress=False) as store:
        assert _stretches(store, "wave") == [(0, 20, 3), (20, 60, 7)]
        assert _stretches(store, "count") == [(0, 60, 4)]
    flip(target / "count/c/2/0")
    with repair(Loaf(60, gain=2), target, command="repaired", progress=False) as store:
        assert _stretches(store, "wave") == [(0, 20, 3), (20, 60, 7)]
        assert _stretches(store, "count") == [(0, 60, 4)]
        bakes = store.provenance["bakes"]
        assert [one["command"] for one in bakes] == ["first", "grown", "field", "repaired"]
        assert [one["samples"] for one in bakes] == [20, 60, 60, 60]
        assert all(one["began"] <= one["ended"] and one["seconds"] >= 0 for one in bakes)
        assert_holds(store, Loaf(60, gain=2))
    with bake(Loaf(60), target, rebuild=True, batch_size=3, progress=False) as store:
        assert len(store.provenance["bakes"]) == 5
        assert _stretches(store, "wave") == [(0, 20, 3), (20, 60, 7)]
    with bake(Loaf(60), target, rebuild=True, batch_size=3, progress=False) as store:  # wholly
        assert len(store.provenance["bakes"]) == 1
        assert _stretches(store, "wave") == [(0, 60, 3)]


def test_resumed_bake_keeps_its_beginning_and_its_batch_size(target: Path) -> None:
    def trap(start: int, stop: int) -> None:
        raise ValueError("stop") if start == 20 else None

    with pytest.raises(ProducerError):
        bake(Loaf(40, trap=trap), target, batch_size=5, progress=False)
    (plan,) = publish.staging_root(target).glob("*/plan.json")
    began = json.loads(plan.read_bytes())["began"]
    with bake(Loaf(40), target, command="again", progress=False) as store:
        assert _stretches(store, "wave") == [(0, 40, 5)]
        (only,) = store.provenance["bakes"]
        assert (only["began"], only["command"]) == (began, "again")
        assert_holds(store, Loaf(40))


# ---- progress


def test_progress_tells_what_this_bake_does(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bake(Loaf(20), target, progress=False).close()
    seconds = iter(range(10_000))  # each look at the clock a second later: nothing is left untold
    monkeypatch.setattr(reporting.time, "monotonic", lambda: float(next(seconds)))
    told: list[Progress] = []
    bake(Loaf(60), target, progress=told.append).close()
    assert [one.samples_total for one in told] == [40] * len(told)
    done = [one.samples_done for one in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 40)
    assert len(set(done)) > 5
    assert [one.finished for one in told] == [False] * (len(told) - 1) + [True]
    nbytes = [one.nbytes_written for one in told]
    assert nbytes == sorted(nbytes)
    assert nbytes[0] == 0
    assert 0 < nbytes[-1] < 60 * 500  # what was linked does not count
    assert {one.what for one in told} == {str(target)}
    assert told[0].seconds_left is None
    assert told[-1].seconds_left == 0
    told.clear()
    bake(Loaf(60), target, progress=told.append).close()
    assert told == []


def test_a_slow_batch_is_told_once_with_what_a_kill_loses(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[str] = []

    def report(progress: Progress) -> None:
        if progress.notice:
            notices.append(progress.notice)

    bake(Loaf(20), target, batch_size=1, progress=report).close()
    monkeypatch.setattr(bake_module, "SLOW_BATCH_S", 0.0)
    bake(Loaf(40), target, batch_size=1, progress=report).close()  # nothing narrower to advise
    assert notices == []
    bake(Loaf(60), target, batch_size=3, progress=report).close()
    assert [text.split(" took")[0] for text in notices] == ["2 samples"]  # 40 and 41 end a batch of the grid
    assert "--batch-size" in notices[0]


def test_no_progress_is_silent(target: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bake(Loaf(), target, progress=False).close()
    repair(Loaf(), target, progress=False).close()
    assert capfd.readouterr() == ("", "")


def test_progress_that_raises_ends_the_bake_without_loss(
    target: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(10_000))
    monkeypatch.setattr(reporting.time, "monotonic", lambda: float(next(seconds)))

    def report(progress: Progress) -> None:
        if progress.samples_done:
            raise RuntimeError("the bar broke")

    log = folder / "log"
    with pytest.raises(RuntimeError, match="the bar broke"):
        bake(Loaf(60), target, progress=report)
    with bake(Loaf(60, log=log), target, progress=False) as store:
        assert_holds(store, Loaf(60))
    assert calls(log)[0][0] == 3


# ---- memory

MEMORY = """
import resource, sys
import numpy as np
from parbake.producers import bake as bake_module
from parbake.store import layout
from parbake.store.layout import Field
layout.SHARD_NBYTES = {slab_nbytes}

class Noise:
    name, version, batch_size = "noise", 1, 16
    def __init__(self, samples): self.samples = samples
    def schema(self): return {{"v": Field((16384,), "float32", ("time",)), "n": Field((), "int64", ())}}
    def invalidation_keys(self): return {{}}
    def __len__(self): return self.samples
    def produce(self, start, stop, fields):
        values = np.random.default_rng(start).random((stop - start, 16384), np.float32)
        return {{"v": values, "n": np.arange(start, stop)}}

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

samples = int(sys.argv[1])
bake_module.bake(Noise(1), sys.argv[2] + "/one.zarr", progress=False).close()  # imports, threads
before = peak()
bake_module.bake(Noise(samples), sys.argv[2] + "/all.zarr", progress=False).close()
print(peak() - before)
"""


def test_memory_is_two_slabs_however_many_samples(folder: Path) -> None:
    slab_nbytes = 8 * 1024**2
    slab_samples = slab_nbytes // 65536
    script = folder / "memory.py"  # a file: the source of the producer is a key
    script.write_text(MEMORY.format(slab_nbytes=slab_nbytes))
    grown = []
    for slabs in (4, 12):
        out = folder / str(slabs)
        command = [sys.executable, str(script), str(slabs * slab_samples), str(out)]
        environment = {"PYTHONPATH": str(Path(bake_module.__file__).parents[2]), "PATH": "/usr/bin:/bin"}
        found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        grown.append(int(found.stdout))
    in_flight_nbytes = 32 * 1024**2
    assert grown[0] < 2 * slab_nbytes + in_flight_nbytes + 16 * 1024**2
    assert abs(grown[1] - grown[0]) < slab_nbytes
