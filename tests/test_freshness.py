"""When a store is fresh, what a bake then does, and what it leaves as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from parbake.errors import RecipeError, StaleStoreError
from parbake.producers import bake as bake_module
from parbake.producers.bake import bake, repair
from parbake.store import keys as keys_module
from parbake.store import layout
from parbake.store.keys import ABSENT, Keys
from parbake.store.layout import Field
from parbake.store.store import Store, open_store

SLAB = 256  # samples


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_NBYTES", SLAB * 80)
    monkeypatch.setattr(layout, "SCALAR_CHUNK_SAMPLES", 1024)
    monkeypatch.setattr(layout, "SCALAR_SHARD_SAMPLES", 4096)


Call = tuple[int, int, tuple[str, ...]]


@dataclass(frozen=True)
class Tones:
    """Field ``x`` grows with the sample and ``rate``, ``y`` with its own ``gain``; ``level`` is a scalar."""

    samples: int = 1000
    rate: float = 1.0
    gain: float = 1.0
    names: tuple[str, ...] = ("x", "y", "level")
    seed: int | Literal["fresh"] = 0
    calls: list[Call] = field(default_factory=list, compare=False)
    batch_size: int = 100

    @property
    def name(self) -> str:
        return "tones"

    @property
    def version(self) -> int:
        return 1

    def schema(self) -> Mapping[str, Field]:
        all_ = {
            "x": Field((20,), "<f4", ("time",)),
            "y": Field((20,), "<f4", ("time",), keys={"gain": self.gain}),
            "level": Field((), "<f8", ()),
        }
        return {name: all_[name] for name in self.names}

    def invalidation_keys(self) -> Mapping[str, Any]:
        return {"rate": self.rate, "seed": self.seed}

    def __len__(self) -> int:
        return self.samples

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> Mapping[str, Any]:
        self.calls.append((start, stop, tuple(fields)))
        assert self.seed != "fresh"
        index = np.arange(start, stop, dtype="f8") + float(self.seed % 97)
        wave = np.tile(index[:, None] * self.rate, 20).astype("f4")
        values = {"x": wave, "y": wave * np.float32(self.gain), "level": index}
        return {name: values[name] for name in fields}


def quietly(producer: Tones, path: Path, **options: Any) -> Store:
    return bake(producer, path, progress=False, **options)


def produced(producer: Tones) -> int:
    return sum(stop - start for start, stop, _ in producer.calls)


def files_of(path: Path) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every file of a store."""
    found = (f for f in path.rglob("*") if f.is_file())
    return {str(f.relative_to(path)): (f.stat().st_ino, f.read_bytes()) for f in found}


def assert_holds(store: Store, producer: Tones) -> None:
    """Every value is what the producer gives."""
    wanted = replace(producer, calls=[]).produce(0, len(producer), producer.names)
    assert sorted(store) == sorted(producer.names)
    for name in producer.names:
        np.testing.assert_array_equal(store[name][:], wanted[name])


def spans(segments: Sequence[Mapping[str, Any]]) -> set[tuple[str, int, int, int]]:
    return {(name, s["start"], s["stop"], s["batch_size"]) for s in segments for name in s["fields"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.zarr"


# ---- fresh


def test_fresh_store_is_opened_and_nothing_is_produced(path: Path) -> None:
    first = Tones()
    quietly(first, path).close()
    assert produced(first) == 1000
    before = files_of(path)
    again = Tones()
    with quietly(again, path) as store:
        assert_holds(store, again)
        assert store.freshness(again)
    assert again.calls == []
    assert files_of(path) == before


def test_expected_producer_opens_the_store_or_names_the_change(path: Path) -> None:
    quietly(Tones(), path).close()
    with open_store(path, expect=Tones(samples=400)) as store:
        assert store.samples == 400
    with pytest.raises(StaleStoreError, match=r"a\.zarr: stale: rate: 1\.0 -> 2\.0; ") as caught:
        open_store(path, expect=Tones(rate=2.0))
    [change] = caught.value.changes
    assert (change.field, change.path, change.stored, change.wanted) == (None, "rate", 1.0, 2.0)
    with pytest.raises(StaleStoreError, match="samples: 1000 -> 1001"):
        open_store(path, expect=Tones(samples=1001))


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"codec": "lz4"}, {"rehash": True}])
def test_options_that_change_no_value_leave_a_store_fresh(path: Path, options: dict[str, Any]) -> None:
    quietly(Tones(), path).close()
    again = Tones()
    quietly(again, path, **options).close()
    assert again.calls == []


# ---- growth


def test_growth_bakes_only_the_missing_samples(path: Path) -> None:
    quietly(Tones(1000), path).close()
    before = files_of(path)
    more = Tones(5000)
    with quietly(more, path) as store:
        assert_holds(store, more)
    assert produced(more) == 4000
    assert min(start for start, _, _ in more.calls) == 1000
    after = files_of(path)
    for slab in range(3):  # whole before: the same files
        assert after[f"x/c/{slab}/0"] == before[f"x/c/{slab}/0"]
    assert after["x/c/3/0"] != before["x/c/3/0"]


def test_fewer_samples_give_a_store_of_just_those(path: Path) -> None:
    quietly(Tones(5000), path).close()
    fewer = Tones(1000)
    with quietly(fewer, path) as store:
        assert fewer.calls == []
        assert (store.samples, store.stored_samples, len(store["x"])) == (1000, 5000, 1000)
        assert_holds(store, fewer)
        assert store.statistics["level"]["count"] == 1000
        assert store.statistics["level"]["max"] == 999
        assert store["level"][-1] == 999
        for index in (1000, -1001, [0, 4999]):
            with pytest.raises(IndexError):
                store.read([index] if isinstance(index, int) else index)
    with open_store(path) as store:
        assert store.statistics["level"]["max"] == 4999


def test_growth_in_steps_gives_the_values_of_one_bake(path: Path, tmp_path: Path) -> None:
    for samples in (1, 200, 256, 257, 700, 1024, 1500):
        more = Tones(samples)
        with quietly(more, path, batch_size=samples % 90 + 1) as store:
            assert_holds(store, more)
    with quietly(Tones(1500), tmp_path / "b.zarr") as whole, open_store(path) as grown:
        assert grown.statistics == whole.statistics
        assert grown.invalidation_keys == whole.invalidation_keys


def test_growth_keeps_the_recorded_batch_size_and_codec(path: Path) -> None:
    quietly(Tones(100), path, batch_size=16, codec="zstd").close()
    more = Tones(300)
    with quietly(more, path) as store:
        assert store.provenance["codec"] == "zstd"
    assert {stop - start for start, stop, _ in more.calls} == {12, 16}


# ---- stale


def test_stale_store_is_an_error_that_names_every_change_and_leaves_it_as_it_was(path: Path) -> None:
    quietly(Tones(), path).close()
    before = files_of(path)
    other = Tones(rate=2.0, gain=3.0)
    with pytest.raises(StaleStoreError) as caught:
        quietly(other, path)
    assert [str(change) for change in caught.value.changes] == [
        "rate: 1.0 -> 2.0",
        "field 'y': gain: 1.0 -> 3.0",
    ]
    assert "--rebuild" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert other.calls == []
    assert files_of(path) == before
    assert {f.name for f in path.parent.iterdir()} <= {"a.zarr", "a.zarr.lock"}


def test_rebuild_after_a_shared_change_bakes_all_again(path: Path) -> None:
    quietly(Tones(), path).close()
    changed = Tones(rate=2.0)
    with quietly(changed, path, rebuild=True) as store:
        assert_holds(store, changed)
    assert produced(changed) == 1000
    with pytest.raises(StaleStoreError, match=r"rate: 2\.0 -> 1\.0"):
        quietly(Tones(), path)


def test_rebuild_of_a_fresh_store_bakes_all_again(path: Path) -> None:
    quietly(Tones(), path).close()
    again = Tones()
    quietly(again, path, rebuild=True).close()
    assert produced(again) == 1000


def test_old_store_can_be_read_while_it_is_rebuilt(path: Path) -> None:
    class Reading(list[Call]):
        def append(self, call: Call) -> None:
            super().append(call)
            with open_store(path) as store:
                assert_holds(store, Tones())

    quietly(Tones(), path).close()
    changed = Tones(rate=2.0, calls=Reading())
    with open_store(path) as old:
        assert_holds(old, Tones())
        quietly(changed, path, rebuild=True).close()
        assert_holds(old, Tones())  # what was open stays what it was
    assert produced(changed) == 1000


# ---- fields


def test_one_changed_field_is_baked_again_alone(path: Path) -> None:
    quietly(Tones(), path).close()
    before = files_of(path)
    changed = Tones(gain=2.0)
    with pytest.raises(StaleStoreError, match=r"field 'y': gain: 1\.0 -> 2\.0"):
        quietly(changed, path)
    with quietly(changed, path, rebuild=True) as store:
        assert_holds(store, changed)
    assert {fields for _, _, fields in changed.calls} == {("y",)}
    assert produced(changed) == 1000
    after = files_of(path)
    assert [after[f"x/c/{slab}/0"] for slab in range(3)] == [before[f"x/c/{slab}/0"] for slab in range(3)]
    assert all(after[f"y/c/{slab}/0"][0] != before[f"y/c/{slab}/0"][0] for slab in range(4))


def test_changed_field_and_growth_at_once(path: Path) -> None:
    quietly(Tones(700), path).close()
    changed = Tones(1300, gain=2.0)
    with quietly(changed, path, rebuild=True) as store:
        assert_holds(store, changed)
    asked = {name: sum(b - a for a, b, f in changed.calls if name in f) for name in changed.names}
    assert asked == {"x": 600, "y": 1300, "level": 600}


@pytest.mark.parametrize(("one", "other"), [(("x", "level"), ("x", "y", "level")), (("x", "y"), ("x",))])
def test_added_and_removed_fields_are_changes_of_those_alone(
    path: Path, one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    quietly(Tones(names=one), path).close()
    changed = Tones(names=other)
    expected = f"{ABSENT} -> baked" if len(other) > len(one) else f"baked -> {ABSENT}"
    with pytest.raises(StaleStoreError, match=r"field 'y': field: ") as caught:
        quietly(changed, path)
    assert expected in str(caught.value)
    with quietly(changed, path, rebuild=True) as store:
        assert_holds(store, changed)
    assert {name for _, _, fields in changed.calls for name in fields} == set(other) - set(one)


def test_repair_of_a_store_with_fields_of_two_grids_gives_the_same_bytes(path: Path) -> None:
    quietly(Tones(700), path, batch_size=64).close()
    quietly(Tones(700, gain=2.0), path, rebuild=True, batch_size=48).close()
    before = {name: content for name, (_, content) in files_of(path).items() if "/c/" in name}
    for name in ("x/c/1/0", "y/c/1/0"):
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)
    again = Tones(700, gain=2.0)
    repair(again, path, progress=False).close()
    assert {name: content for name, (_, content) in files_of(path).items() if "/c/" in name} == before
    sizes = {name: {b - a for a, b, f in again.calls if f == (name,)} for name in "xy"}
    assert (64 in sizes["x"], 48 in sizes["y"]) == (True, True)


def test_repair_records_the_grid_of_each_field_as_it_was(path: Path) -> None:
    quietly(Tones(700), path, batch_size=64).close()
    with quietly(Tones(700, gain=2.0), path, rebuild=True, batch_size=48) as store:
        before = spans(store.provenance["segments"])
    for name in ("x/c/1/0", "y/c/1/0"):
        (path / name).write_bytes(b"")
    with repair(Tones(700, gain=2.0), path, progress=False) as store:
        assert spans(store.provenance["segments"]) == before


# ---- codec


def test_another_codec_needs_a_rebuild(path: Path) -> None:
    quietly(Tones(), path).close()
    with pytest.raises(RecipeError, match=r"'lz4'.*--rebuild"):
        quietly(Tones(), path, codec="raw")
    with quietly(Tones(), path, codec="raw", rebuild=True) as store:
        assert store.provenance["codec"] == "raw"
        assert_holds(store, Tones())


# ---- source


def edited(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """From now on the producer's source is another."""
    real = keys_module.producer_keys

    def keys(producer: Any, *, rehash: bool = False) -> tuple[Keys, dict[str, Field]]:
        found, schema = real(producer, rehash=rehash)
        return Keys({**found.shared, "source": {"tones": text}}, found.fields), schema

    for module in (bake_module, "parbake.store.store"):
        target = f"{module}.producer_keys" if isinstance(module, str) else f"{module.__name__}.producer_keys"
        monkeypatch.setattr(target, keys)


def test_changed_source_is_stale_until_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quietly(Tones(), path).close()
    edited(monkeypatch, "a" * 64)
    with pytest.raises(StaleStoreError, match="source"):
        quietly(Tones(), path)
    again = Tones()
    with quietly(again, path, accept_source=True) as store:
        assert again.calls == []
        assert len(store.provenance["accepted_source"]) == 1
        assert store.verify()
    with quietly(again, path) as store:  # recorded: it need not be said again
        assert store.freshness(again)
    assert again.calls == []


def test_accepted_source_keeps_no_other_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quietly(Tones(), path).close()
    edited(monkeypatch, "a" * 64)
    with pytest.raises(StaleStoreError, match=r"rate: 1\.0 -> 2\.0"):
        quietly(Tones(rate=2.0), path, accept_source=True)
    quietly(Tones(), path, accept_source=True).close()
    with pytest.raises(StaleStoreError, match=r"rate: 1\.0 -> 2\.0"):
        quietly(Tones(rate=2.0), path)
    edited(monkeypatch, "b" * 64)
    with pytest.raises(StaleStoreError, match="source"):
        quietly(Tones(), path)


@pytest.mark.parametrize("said_again", [True, False])
def test_store_of_accepted_source_grows(
    path: Path, monkeypatch: pytest.MonkeyPatch, said_again: bool
) -> None:
    quietly(Tones(700), path).close()
    edited(monkeypatch, "a" * 64)
    quietly(Tones(700), path, accept_source=True).close()
    more = Tones(1300)
    with quietly(more, path, accept_source=said_again) as store:
        assert produced(more) == 600
        assert_holds(store, more)
        assert store.verify()
    last = Tones(1300)
    quietly(last, path).close()
    assert last.calls == []


def test_rebuild_after_accepted_source_forgets_the_acceptance(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quietly(Tones(), path).close()
    edited(monkeypatch, "a" * 64)
    quietly(Tones(), path, accept_source=True).close()
    with quietly(Tones(), path, rebuild=True) as store:
        assert store.provenance["accepted_source"] == []
        assert store.freshness(Tones())


def test_one_field_baked_again_over_accepted_source_is_not_taken_for_the_older(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quietly(Tones(), path).close()
    edited(monkeypatch, "a" * 64)
    quietly(Tones(), path, accept_source=True).close()
    changed = Tones(gain=2.0)
    with quietly(changed, path, rebuild=True) as store:
        assert_holds(store, changed)
        assert store.verify()
        assert store.freshness(changed)


# ---- seed="fresh"


def drawn(store: Store) -> int:
    seed = store.provenance["seed_drawn"]
    assert isinstance(seed, int)
    return seed


def test_fresh_seed_is_drawn_once_and_kept_by_growth(path: Path) -> None:
    with quietly(Tones(300, seed="fresh"), path) as store:
        seed = drawn(store)
        assert store.invalidation_keys.shared["keys"]["seed"] == "fresh"
        assert_holds(store, Tones(300, seed=seed))
    with quietly(Tones(900, seed="fresh"), path) as store:
        assert drawn(store) == seed
        assert_holds(store, Tones(900, seed=seed))
    with quietly(Tones(900, seed="fresh", gain=2.0), path, rebuild=True) as store:
        assert drawn(store) == seed  # x is kept, and y must match it
        assert_holds(store, Tones(900, seed=seed, gain=2.0))


def test_rebuild_of_a_fresh_seed_draws_anew(path: Path) -> None:
    with quietly(Tones(300, seed="fresh"), path) as store:
        seed = drawn(store)
    with quietly(Tones(300, seed="fresh"), path, rebuild=True) as store:
        assert drawn(store) != seed
        assert_holds(store, Tones(300, seed=drawn(store)))


def test_explicit_seed_does_not_match_a_drawn_one(path: Path) -> None:
    with quietly(Tones(300, seed="fresh"), path) as store:
        seed = drawn(store)
    with pytest.raises(StaleStoreError, match=f"seed: fresh -> {seed}"):
        quietly(Tones(300, seed=seed), path)
    with pytest.raises(StaleStoreError, match="seed: fresh -> 0"):
        open_store(path, expect=Tones(300))


class InterruptedBakeError(Exception):
    pass


@dataclass(frozen=True)
class Failing(Tones):
    """Stops before sample 600."""

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> Mapping[str, Any]:
        if start >= 600 and not self.calls[0][2] == ("go",):
            raise InterruptedBakeError
        return super().produce(start, stop, fields)


def test_resumed_bake_goes_on_with_the_seed_drawn(path: Path) -> None:
    first = Failing(1000, seed="fresh", calls=[(0, 0, ())])
    with pytest.raises(Exception, match="InterruptedBakeError"):
        quietly(first, path)
    second = Failing(1000, seed="fresh", calls=[(0, 0, ("go",))])
    with quietly(second, path) as store:
        assert produced(second) < 1000
        wanted = Tones(1000, seed=drawn(store))
        assert_holds(store, wanted)
