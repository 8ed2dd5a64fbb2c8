"""Several stores as one: the samples of the parts, one after the other, in every way that a store is read."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bakery import FIELDS, Loaf, refusal, tiny_slabs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, Subset, random_split

import parbake
from parbake.errors import DamagedStoreError, StoreNotFoundError
from parbake.loaders.batch_loader import BatchLoader
from parbake.loaders.block_shuffle import BlockShuffle
from parbake.loaders.dataset import StoreDataset
from parbake.producers.bake import bake
from parbake.producers.computed import ComputedStore
from parbake.store import layout
from parbake.store.codecs import Chain
from parbake.store.concatenated import Concatenated, concatenated
from parbake.store.layout import Field
from parbake.store.reader import Reader
from parbake.store.samples import Samples
from parbake.store.store import open_store

LOAVES = (Loaf(samples=13), Loaf(samples=8, seed=1), Loaf(samples=20, seed=2), Loaf(samples=1, seed=3))
COUNTS = [len(loaf) for loaf in LOAVES]
SAMPLES = sum(COUNTS)
VALUES = {name: np.concatenate([loaf.values()[name] for loaf in LOAVES]) for name in FIELDS}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """A store of each loaf, in turn of codec lz4 and raw."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        tiny_slabs(patch)
        for number, loaf in enumerate(LOAVES):
            codec = ("lz4", "raw")[number % 2]
            bake(loaf, folder / f"{number}.zarr", codec=codec, progress=False).close()
        yield [folder / f"{number}.zarr" for number in range(len(LOAVES))]


@pytest.fixture
def both(paths: list[Path]) -> Iterator[Concatenated]:
    """Stores and one that computes."""
    with concatenated([*paths[:-1], ComputedStore(LOAVES[-1])]) as whole:
        yield whole


def assert_equal(found: Mapping[str, NDArray[Any]], index: Any, names: Sequence[str] = FIELDS) -> None:
    assert list(found) == list(names)
    for name in names:
        wanted = VALUES[name][index]
        assert found[name].dtype == wanted.dtype
        np.testing.assert_array_equal(found[name], wanted, strict=True)


# ---- reading

indices = st.lists(st.integers(-SAMPLES, SAMPLES - 1), max_size=60) | st.builds(
    lambda start, length, step: list(range(SAMPLES))[start : start + length : step],
    st.integers(0, SAMPLES),
    st.integers(0, SAMPLES),
    st.integers(1, 3),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(indices, st.lists(st.sampled_from(FIELDS), unique=True, min_size=1))
def test_any_order_with_repeats_is_that_of_the_joined_values(
    both: Concatenated, index: list[int], names: list[str]
) -> None:
    rows = np.array(index, np.int64)
    assert_equal(both.read(index, names), rows, names)
    out = {
        name: np.full((len(index), *VALUES[name].shape[1:]), 77, VALUES[name].dtype)
        for name in (*names, "f0")
    }
    given_out = dict(out)
    result = both.read(rows, names, out)
    assert all(result[name] is given_out[name] for name in names)
    assert_equal(result, rows, names)


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(10, 30),
        slice(-5, None),
        slice(40, 2, -3),
        range(12, 22),
        np.arange(SAMPLES) % 3 == 1,
    ],
    ids=str,
)
def test_slices_ranges_and_masks(both: Concatenated, index: Any) -> None:
    assert_equal(both.read(index), index if not isinstance(index, range) else np.array(index))


def test_a_field_is_indexed_as_that_of_a_store(both: Concatenated) -> None:
    assert both["wave"].shape == (SAMPLES, 24, 2)
    assert both["wave"].dtype == both.fields["wave"].dtype == np.dtype("=f4")  # stored big-endian
    np.testing.assert_array_equal(both["wave"][-2, 3:5], VALUES["wave"][-2, 3:5])
    np.testing.assert_array_equal(np.asarray(both["level"]), VALUES["level"])
    assert (len(both), both.samples, list(both)) == (4, SAMPLES, list(FIELDS))


def test_beyond_the_samples_is_an_error(both: Concatenated) -> None:
    for index in ([SAMPLES], [-SAMPLES - 1]):
        with pytest.raises(IndexError, match=f"of a store of {SAMPLES}"):
            both.read(index)


def test_chunks_that_samples_share_decode_once(both: Concatenated, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = list[bytes]()
    decode = Chain.decode

    def counted(chain: Chain, payload: NDArray[Any], out: NDArray[Any]) -> None:
        decoded.append(payload.tobytes())
        decode(chain, payload, out)

    monkeypatch.setattr(Chain, "decode", counted)
    shuffled = np.random.default_rng(0).permutation(SAMPLES)
    assert_equal(both.read(shuffled, ("wave", "count")), shuffled, ("wave", "count"))
    assert len(decoded) == len(set(decoded)) > 10


@dataclass(frozen=True)
class Alone:
    """Samples of one chunk each."""

    samples: int
    name: str = "alone"
    version: int = 1

    def schema(self) -> Mapping[str, Field]:
        return {"x": Field((400,), "float32", ("time",))}

    def invalidation_keys(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        return self.samples

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        return {"x": np.repeat(np.arange(start, stop, dtype=np.float32), 400).reshape(-1, 400)}


@pytest.fixture
def alone(tmp_path: Path, tiny: None) -> Iterator[Concatenated]:
    for number in (0, 1):
        bake(Alone(5 + number), tmp_path / f"{number}.zarr", progress=False).close()
    with concatenated([tmp_path / "0.zarr", tmp_path / "1.zarr"]) as whole:
        assert whole.fields["x"].layout.chunk_samples == 1
        yield whole


def test_samples_with_a_chunk_each_are_read_without_a_copy(
    alone: Concatenated, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[NDArray[Any]] = []
    part = type(alone.parts[0])
    read = part.read

    def watched(self: Samples, index: Any, fields: Any = None, out: Any = None, **options: Any) -> Any:
        given.append(out["x"])
        return read(self, index, fields, out, **options)

    monkeypatch.setattr(part, "read", watched)
    index = [10, 0, 1, 7, 7, 4, -11, 2]
    out = {"x": np.empty((len(index), 400), np.float32)}
    alone.read(index, None, out)
    values = np.array([*range(5), *range(6)], np.float32)
    np.testing.assert_array_equal(out["x"], np.repeat(values[index], 400).reshape(-1, 400))
    assert all(np.shares_memory(array, out["x"]) for array in given)
    assert sum(map(len, given)) == len(index)


def test_a_producer_computes_each_sample_of_a_batch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though some fields have a chunk a sample and others share them."""
    monkeypatch.setattr(layout, "CHUNK_NBYTES", 100)
    log = tmp_path / "log"
    one, other = (ComputedStore(Loaf(samples=5, seed=seed, log=log)) for seed in (0, 1))
    concatenated([concatenated([one, other]), one]).read([0, 5, 1, 6, 2, 7])
    assert [line.split()[:2] for line in log.read_text().splitlines()] == [["0", "3"]] * 2


def test_only_the_fields_that_it_shows_are_asked_for(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Reader, "will_need", lambda _, name, index: asked.append(name))
    with concatenated(paths, ("f0",)) as whole:
        whole.will_need([0])
    assert asked == ["f0"]


def test_fewer_samples_end_within_any_part(both: Concatenated) -> None:
    for samples in (1, 12, 13, 14, 21, 41, SAMPLES):
        shown = both.first(samples)
        assert shown.samples == samples
        assert_equal(shown.read(slice(None)), slice(0, samples))
        with pytest.raises(IndexError):
            shown.read([samples])
    for samples in (0, -1, SAMPLES + 1):
        with pytest.raises(IndexError, match=f"{samples} of {SAMPLES} samples"):
            both.first(samples)


def test_parts_may_be_concatenated_themselves(both: Concatenated) -> None:
    twice = concatenated([both, both.first(14)])
    index = [SAMPLES + 13, 3, SAMPLES, -1, 20]
    assert_equal(twice.read(index), [13, 3, 0, 13, 20])


# ---- knowing


def test_statistics_are_those_of_all_samples(both: Concatenated) -> None:
    for name, found in both.statistics.items():
        wanted = VALUES[name].astype(np.float64)
        assert (found["count"], found["nonfinite"]) == (wanted.size, 0)
        assert (found["min"], found["max"]) == (wanted.min(), wanted.max())
        assert found["mean"] == pytest.approx(wanted.mean(), rel=1e-6, abs=1e-9)
        assert found["std"] == pytest.approx(wanted.std(), rel=1e-6)
        assert ("channels" in found) == (name == "wave")
    assert both.statistics["wave"]["channels"]["max"] == VALUES["wave"].max((0, 1)).tolist()


def test_the_digest_tells_parts_their_order_and_lengths_apart(paths: list[Path]) -> None:
    stores = [open_store(path) for path in paths[:2]]
    digests = {
        concatenated(parts).digest
        for parts in (stores, stores[::-1], stores[:1], [stores[0], stores[1].first(3)], [*stores, stores[0]])
    }
    assert len(digests) == 5
    assert concatenated(paths[:2]).digest in digests


def test_freshness_is_refused_with_what_to_do(both: Concatenated, paths: list[Path]) -> None:
    for call in (lambda: both.freshness(LOAVES[0]), lambda: StoreDataset(paths, expect=LOAVES[0])):
        assert "several stores have no one producer" in refusal(call)


def test_where_it_is_names_the_parts(both: Concatenated, paths: list[Path]) -> None:
    assert concatenated(paths[:2]).path == f"{paths[0]} + {paths[1]}"
    assert both.path == f"{paths[0]} + 3 more stores"
    assert "wave [42, 24, 2] float32" in repr(both)


# ---- what is refused


@dataclass(frozen=True)
class Odd(Alone):
    """Like Alone but for one thing."""

    fields: tuple[tuple[str, Field], ...] = ()

    def schema(self) -> Mapping[str, Field]:
        return dict(self.fields)


def odd(**fields: Field) -> ComputedStore:
    return ComputedStore(Odd(5, fields=tuple(fields.items())))


ONE = Field((400,), "float32", ("time",), units="V")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            Field((401,), "float32", ("time",)),
            "field 'x': shape (400,) in computed alone, (401,) in computed",
        ),
        (Field((400,), "float64", ("time",)), "field 'x': dtype float32 in computed alone, float64 in"),
        (Field((400,), "float32", ("node",)), "field 'x': dims ('time',) in computed alone, ('node',) in"),
        (Field((400,), "float32", ("time",), units="mV"), "field 'x': units V in computed alone, mV in"),
    ],
)
def test_fields_that_differ_are_refused_with_both(other: Field, message: str) -> None:
    assert message in refusal(lambda: concatenated([odd(x=ONE), odd(x=ONE), odd(x=other)]))


def test_byte_order_and_unknown_units_are_no_difference() -> None:
    swapped, unknown = Field((400,), ">f4", ("time",), units="V"), Field((400,), "<f4", ("time",))
    whole = concatenated([odd(x=unknown), odd(x=swapped), odd(x=ONE), odd(x=unknown)])
    assert (whole["x"].dtype, whole.fields["x"].units) == (np.dtype("=f4"), "V")
    millivolts = Field((400,), "<f4", ("time",), units="mV")
    assert "units V" in refusal(lambda: concatenated([odd(x=unknown), odd(x=ONE), odd(x=millivolts)]))


def test_fields_that_not_all_have_are_refused_unless_others_are_chosen(paths: list[Path]) -> None:
    lone = ComputedStore(Loaf(samples=5, only=("f0", "wave")))
    for parts in ([paths[0], lone], [lone, paths[0]]):
        text = refusal(lambda parts=parts: concatenated(parts))  # type: ignore[misc]
        assert f"computed loaf: no field 'count', which {paths[0]} has; choose of those that all have" in text
        assert StoreDataset(parts, ("f0", "wave"))[-1]["f0"].shape == ()
    assert concatenated([paths[0], lone], ["wave"]).read([0, -1])["wave"].shape == (2, 24, 2)
    assert "computed loaf: no field 'count'; there are" in refusal(
        lambda: StoreDataset([paths[0], lone], "count")
    )
    strange = odd(x=ONE)
    assert "they share none" in refusal(lambda: concatenated([lone, strange]))


def test_what_are_no_stores_is_refused(paths: list[Path]) -> None:
    assert "no stores were given" in refusal(lambda: concatenated([]))
    for one in (str(paths[0]), open_store(paths[0]), 7):
        assert "concatenated takes a list of open stores and paths" in refusal(
            lambda one=one: concatenated(one)  # type: ignore[misc]
        )
    assert "concatenated takes open stores and paths, not int" in refusal(
        lambda: concatenated([paths[0], 7])  # type: ignore[list-item]
    )


def test_a_store_that_cannot_be_opened_leaves_none_open(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    store = type(open_store(paths[0]))
    close = store.close
    monkeypatch.setattr(store, "close", lambda self: (opened.append(self.path), close(self))[1])
    with pytest.raises(StoreNotFoundError):
        concatenated([paths[0], paths[1], "missing.zarr"])
    assert opened == [paths[1], paths[0]]


def test_closing_closes_every_part(paths: list[Path]) -> None:
    with concatenated(paths) as whole:
        whole.read([0, -1])
    for part in whole.parts:
        with pytest.raises(ValueError, match="closed"):
            part.read([0])


def test_damage_is_told_with_the_part_and_its_own_samples(alone: Concatenated) -> None:
    file = alone.parts[1].path / "x" / "c" / "0" / "0"  # type: ignore[operator]
    data = bytearray(file.read_bytes())
    data[70] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedStoreError, match=r"1\.zarr: field 'x', chunk 0 \(samples 0-0\)"):
        alone.read([4, 5, 6])


# ---- in loaders


def test_it_pickles(both: Concatenated) -> None:
    again = pickle.loads(pickle.dumps(both.first(30)))
    assert_equal(again.read([29, 0]), [29, 0])
    assert again.digest == both.first(30).digest


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_dataset_of_several_stores_loads_in_workers(paths: list[Path], context: str) -> None:
    dataset = parbake.StoreDataset(
        [*map(str, paths[:2]), open_store(paths[2])], ("wave", "f0"), with_index=True
    )
    assert len(dataset) == SAMPLES - 1
    loader = DataLoader(dataset, 7, shuffle=True, num_workers=2, multiprocessing_context=context)
    seen = []
    for batch in loader:
        assert_equal({name: batch[name].numpy() for name in ("wave", "f0")}, batch["index"], ("wave", "f0"))
        seen += batch["index"].tolist()
    assert sorted(seen) == list(range(SAMPLES - 1))


def test_our_own_loaders_read_several_stores(paths: list[Path]) -> None:
    dataset = StoreDataset(paths, ("wave", "count"), with_index=True)
    with BatchLoader(dataset, 7, shuffle=True) as threads:
        for loader in (threads, dataset.loader(7, shuffle=True, num_workers=1)):
            seen = []
            for batch in loader:
                read = {name: batch[name].numpy() for name in ("wave", "count")}
                assert_equal(read, batch["index"], ("wave", "count"))
                seen += batch["index"].tolist()
            assert sorted(seen) == list(range(SAMPLES))


def test_blocks_are_as_long_as_the_longest_chunk(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHUNK_NBYTES", 800)
    both = concatenated([*paths, ComputedStore(Loaf(samples=5))])
    sampler = BlockShuffle(StoreDataset(both), batch_size=5, seed=1)
    assert sampler.order.block == 8  # 4 in the stores
    assert sampler.state_dict()["digest"] == both.digest
    assert sorted(sampler) == list(range(SAMPLES + 5))


def torchs(path: Callable[[int], StoreDataset]) -> dict[str, tuple[Any, Any, list[int]]]:
    """Ways to join and to part datasets: dataset, sampler, the rows it must give, sorted."""
    joined = ConcatDataset([path(0), path(2)])
    rows = [*range(13), *range(21, 41)]
    part, rest = random_split(joined, [20, 13], torch.Generator().manual_seed(1))
    share = DistributedSampler(joined, num_replicas=3, rank=1, shuffle=True, seed=4)
    return {
        "concat": (joined, None, rows),
        "subset": (Subset(joined, [30, 2, 14]), None, [rows[i] for i in (2, 14, 30)]),
        "split": (part, None, sorted(rows[i] for i in part.indices)),
        "rest": (rest, None, sorted(rows[i] for i in rest.indices)),
        "share": (joined, share, sorted(rows[i] for i in share)),
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["concat", "subset", "split", "rest", "share"])
def test_torchs_own_ways_to_join_and_part_work(paths: list[Path], way: str, workers: int) -> None:
    datasets = torchs(lambda number: StoreDataset(paths[number], ("wave", "level")))
    dataset, sampler, rows = datasets[way]
    loader = DataLoader(dataset, 6, sampler=sampler, num_workers=workers)
    read = [
        wave.tobytes() + level.tobytes()
        for batch in loader
        for wave, level in zip(batch["wave"].numpy(), batch["level"].numpy(), strict=True)
    ]
    assert sorted(read) == sorted(VALUES["wave"][i].tobytes() + VALUES["level"][i].tobytes() for i in rows)
