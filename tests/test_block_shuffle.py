"""BlockShuffle: an order for torch's DataLoader that reads a few blocks at a time and resumes anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bakery import Loaf, tiny_slabs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from parbake.errors import RecipeError
from parbake.loaders.block_shuffle import BlockShuffle
from parbake.loaders.dataset import StoreDataset
from parbake.loaders.order import default_span
from parbake.producers.bake import bake
from parbake.producers.computed import ComputedStore
from parbake.store.codecs import Chain
from parbake.store.store import Store

SAMPLES = 61  # the last block is short
CHUNK = {"wave": 2, "count": 4}  # samples, as tiny_slabs cuts them


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    tiny_slabs(monkeypatch)
    with bake(Loaf(samples=SAMPLES), tmp_path / "loaf.zarr", progress=False) as opened:
        assert {name: opened.fields[name].layout.chunk_samples for name in CHUNK} == CHUNK
        yield opened


def shuffle(**options: Any) -> BlockShuffle:
    return BlockShuffle(**({"samples": 100, "block": 4, "span": 3, "batch_size": 8} | options))


# ---- the order


def test_every_sample_comes_once_an_epoch_and_each_epoch_differs() -> None:
    sampler = shuffle()
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(100))
        assert list(sampler) == epochs[-1]
    assert len(set(map(tuple, epochs))) == 3
    assert list(shuffle()) == epochs[0]
    assert list(shuffle(seed=1)) != epochs[0]
    assert all(type(sample) is int for sample in epochs[0])


def test_the_order_is_that_of_its_block_order_however_long() -> None:
    sampler = shuffle(samples=10_000, seed=3)
    assert list(sampler) == sampler.order.at(np.arange(10_000), 0).tolist()


def test_blocks_are_the_largest_chunk_of_the_chosen_fields_but_for_scalars(store: Store) -> None:
    blocks = {
        fields: BlockShuffle(StoreDataset(store, fields), batch_size=4).order.block
        for fields in (("wave",), ("wave", "count"), ("wave", "f0"), ("f0", "level"))
    }
    assert list(blocks.values()) == [2, 4, 2, 1]
    assert BlockShuffle(StoreDataset(store), 6, batch_size=4).order.block == 6


def test_a_dataset_that_computes_has_the_order_of_its_store(store: Store) -> None:
    computed = ComputedStore(Loaf(samples=SAMPLES))
    samplers = [BlockShuffle(StoreDataset(one), batch_size=4) for one in (store, computed)]
    assert list(samplers[0]) == list(samplers[1])
    assert samplers[0].state_dict() == samplers[1].state_dict()


def test_the_default_span_counts_the_batches_of_all_ranks() -> None:
    sampler = BlockShuffle(100_000, 8, batch_size=4, rank=1, ranks=4, uneven="pad")
    assert sampler.order.span == default_span(100_000, 8, 16)
    assert 1.02 < sampler.variance_ratio <= 1.025


def test_each_chunk_is_read_within_one_run_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a cache of one run, ``span`` blocks, decodes each chunk once."""
    store.reader.cache_nbytes = 0
    dataset = StoreDataset(store, ("wave", "count"))
    sampler = BlockShuffle(dataset, span=3, batch_size=5, seed=2)
    positions = np.arange(SAMPLES)
    runs = sampler.order.runs_at(positions, epoch=0)
    order = list(sampler)
    decoded = Counter[bytes]()
    decode = Chain.decode

    def counted(chain: Chain, payload: np.ndarray, out: np.ndarray) -> None:
        decoded[payload.tobytes()] += 1  # no two chunks are alike
        decode(chain, payload, out)

    monkeypatch.setattr(Chain, "decode", counted)
    chunks = sum(-(-SAMPLES // chunk) for chunk in CHUNK.values())
    for run in range(sampler.order.runs):
        dataset.__getitems__([order[position] for position in positions[runs == run]])
    assert len(decoded) == chunks
    assert set(decoded.values()) == {1}
    decoded.clear()
    for start in range(0, SAMPLES, 5):
        dataset.__getitems__(order[start : start + 5])
    assert len(decoded) == chunks
    assert max(decoded.values()) > 1  # for want of such a cache


# ---- in torch's DataLoader


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_reads_in_this_order(store: Store, workers: int) -> None:
    dataset = StoreDataset(store, ("f0",), with_index=True)
    sampler = BlockShuffle(dataset, 4, 2, batch_size=8, seed=1)
    loader = DataLoader(dataset, 8, sampler=sampler, num_workers=workers)
    assert len(loader) == 8
    read = [batch["index"].tolist() for batch in loader]
    assert [len(batch) for batch in read] == [8] * 7 + [5]
    assert [index for batch in read for index in batch] == list(shuffle(samples=SAMPLES, span=2, seed=1))


def test_a_run_resumes_within_an_epoch_with_other_workers_batches_and_ranks(store: Store) -> None:
    dataset = StoreDataset(store, ("f0",), with_index=True)
    undisturbed = list(BlockShuffle(dataset, 4, batch_size=8, seed=1))
    sampler = BlockShuffle(dataset, 4, batch_size=8, seed=1)
    seen = []
    for number, batch in enumerate(DataLoader(dataset, 8, sampler=sampler, num_workers=2)):
        seen += batch["index"].tolist()
        sampler.delivered(len(batch["index"]))
        if number == 2:
            break
    state = json.loads(json.dumps(sampler.state_dict()))
    assert state["delivered"] == 24
    rest: list[int] = []
    for rank in range(2):
        resumed = BlockShuffle(dataset, 4, batch_size=5, seed=1, rank=rank, ranks=2, uneven="drop")
        resumed.load_state_dict(state)
        loader = DataLoader(dataset, 5, sampler=resumed)
        assert len(loader) == 4
        rest += [index for batch in loader for index in batch["index"].tolist()]
    assert seen == undisturbed[:24]
    assert Counter(seen + rest) == Counter(undisturbed[:60])  # 37 are left, for two


# ---- state


def test_only_what_was_delivered_counts() -> None:
    sampler = shuffle()
    iterator = iter(sampler)
    taken = [next(iterator) for _ in range(64)]  # a loader's workers run ahead
    assert sampler.state_dict()["delivered"] == 0
    sampler.delivered(8)
    sampler.delivered(8)
    resumed = shuffle()
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed)[:48] == taken[16:]
    assert list(iterator) == list(shuffle())[64:]  # goes on undisturbed


def test_an_iteration_goes_on_from_what_was_delivered() -> None:
    sampler = shuffle()
    whole = list(sampler)
    assert len(sampler) == 100
    sampler.delivered(16)
    assert len(sampler) == 100  # of the iteration under way
    assert list(sampler) == whole[16:]
    assert len(sampler) == 84
    sampler.delivered(24)
    assert sampler.state_dict()["delivered"] == 40
    sampler.set_epoch(0)  # where it is
    assert list(sampler) == whole[40:]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.integers(1, 9), st.sampled_from(["pad", "drop"]), st.data())
def test_a_chain_of_resumes_delivers_each_epoch_once(
    n: int, block: int, uneven: Any, data: st.DataObject
) -> None:
    """Stopped after any batch, again and again, each time with other ranks and batches."""
    state, seen, ranks = None, list[int](), 1
    while True:
        ranks, batch_size = data.draw(st.integers(1, 4)), data.draw(st.integers(3, 20))
        samplers = [
            BlockShuffle(n, block, 2, batch_size=batch_size, seed=5, rank=rank, ranks=ranks, uneven=uneven)
            for rank in range(ranks)
        ]
        for sampler in samplers:
            if state is not None:
                sampler.load_state_dict(state)
        own = [list(sampler) for sampler in samplers]
        stop = min(batch_size * data.draw(st.integers(1, 4)), len(own[0]))
        for sampler, samples in zip(samplers, own, strict=True):
            seen += samples[:stop]
            if samples:
                sampler.delivered(stop)
        assert len({json.dumps(sampler.state_dict()) for sampler in samplers}) == 1
        state = samplers[0].state_dict()
        if state["epoch"] == 1:
            break
    assert state["delivered"] == 0
    counts = Counter(seen)
    if uneven == "drop":
        assert max(counts.values(), default=1) == 1
        assert n - len(counts) < ranks
    else:
        assert set(counts) == set(range(n))
        assert counts.total() - n < ranks


def test_after_the_last_delivery_comes_the_next_epoch() -> None:
    sampler = shuffle(batch_size=50)
    first = list(sampler)
    sampler.delivered(50)
    sampler.delivered(50)
    assert (sampler.epoch, sampler.state_dict()["delivered"]) == (1, 0)
    second = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == second != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_a_resume_with_less_left_than_ranks_drops_it_and_goes_on() -> None:
    one = shuffle(samples=10, batch_size=8)
    list(one)
    one.delivered(8)
    two = shuffle(samples=10, rank=1, ranks=3, uneven="drop")
    two.load_state_dict(one.state_dict())
    assert (len(two), list(two)) == (0, [])
    assert two.epoch == 1
    assert len(list(two)) == 3


def test_a_resumed_run_keeps_its_blocks_where_no_others_are_asked_for() -> None:
    old = BlockShuffle(50_000, 4, batch_size=16)
    old.delivered(160)
    new = BlockShuffle(50_000, 4, batch_size=64)
    assert new.order.span > old.order.span
    new.load_state_dict(old.state_dict())
    assert new.order == old.order
    assert list(new) == list(old)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed 0 where this sampler has 1"),
        ({"samples": 101}, "n 100 where this sampler has 101"),
        ({"block": 5}, "block 4 where this sampler has 5"),
        ({"span": 2}, "span 3 where this sampler has 2"),
    ],
)
def test_the_state_of_another_order_is_refused(options: dict[str, Any], message: str) -> None:
    sampler = shuffle(**options)
    sampler.delivered(8)
    before = sampler.state_dict()
    with pytest.raises(RecipeError, match=message) as caught:
        sampler.load_state_dict(shuffle().state_dict())
    assert "\n" not in str(caught.value)
    assert sampler.state_dict() == before


def test_the_state_of_another_store_is_refused(store: Store) -> None:
    sampler = BlockShuffle(StoreDataset(store), batch_size=4)
    state = sampler.state_dict()
    assert state["digest"] == store.digest
    sampler.load_state_dict(state)
    for digest in ("0" * 64, None):
        with pytest.raises(RecipeError, match=f"digest {digest!r} where this sampler has '{store.digest}'"):
            sampler.load_state_dict(state | {"digest": digest})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delivered": 101}, "delivered=101; 0 to 100"),
        ({"delivered": -1}, "delivered=-1"),
        ({"delivered": "8"}, "delivered='8' is no integer"),
        ({"epoch": -1}, "epoch=-1"),
        ({"epoch": None}, "epoch=None"),
        ({"span": 0}, "span"),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    sampler = BlockShuffle(100, 4, batch_size=8)
    before = sampler.state_dict()
    with pytest.raises(RecipeError, match=message):
        sampler.load_state_dict(before | change)
    assert sampler.state_dict() == before


def test_somebody_elses_state_is_refused() -> None:
    with pytest.raises(RecipeError, match="'seed' is missing; is this the state of a BlockShuffle"):
        shuffle().load_state_dict({"yielded": 8})


# ---- what is refused


def test_more_than_there_is_cannot_be_delivered() -> None:
    sampler = shuffle()
    for count in (101, -1):
        with pytest.raises(RecipeError, match="samples delivered"):
            sampler.delivered(count)


def test_part_of_a_batch_cannot_be_delivered_by_several_ranks() -> None:
    sampler = shuffle(ranks=2, uneven="drop")
    sampler.delivered(8)
    with pytest.raises(RecipeError, match="11 samples delivered are no whole batches of 8 on 2 ranks"):
        sampler.delivered(3)


def test_a_number_of_samples_needs_a_block() -> None:
    with pytest.raises(
        RecipeError, match=r"BlockShuffle\(100\): a number of samples has no chunks; give block"
    ):
        BlockShuffle(100, batch_size=8)


def test_other_datasets_are_refused_with_what_to_do(store: Store) -> None:
    with pytest.raises(RecipeError, match="not Subset; for a part of a dataset give its length, and block"):
        BlockShuffle(Subset(StoreDataset(store), range(5)), batch_size=2)  # type: ignore[arg-type]


def test_several_ranks_must_say_what_happens_to_uneven_ends() -> None:
    with pytest.raises(RecipeError, match="uneven=None for 2 ranks"):
        shuffle(ranks=2)


def test_no_torch_is_needed() -> None:
    code = "import sys, parbake.loaders.block_shuffle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# ---- torchdata


def loaded_as_torchdata_does(sampler: BlockShuffle, saved: tuple[Any, Any]) -> list[int]:
    """The rest of an epoch: the sampler's state is loaded, then that of a new iterator."""
    sampler.load_state_dict(saved[0])
    iterator = iter(sampler)
    iterator.load_state_dict(saved[1])  # type: ignore[attr-defined]
    return list(iterator)


def test_the_state_of_an_iteration_is_what_it_gave() -> None:
    sampler = shuffle(ranks=2, rank=1, uneven="pad")
    sampler.set_epoch(4)
    whole = list(sampler)
    iterator = iter(sampler)
    assert [next(iterator) for _ in range(13)] == whole[:13]
    saved = json.loads(json.dumps((sampler.state_dict(), iterator.state_dict())))  # type: ignore[attr-defined]
    assert list(iterator) == whole[13:]
    assert loaded_as_torchdata_does(shuffle(ranks=2, rank=1, uneven="pad"), saved) == whole[13:]
    for other in ({"batch_size": 4, "ranks": 2, "uneven": "pad"}, {"ranks": 1}):
        with pytest.raises(RecipeError, match="loader state: of 2 ranks with batches of 8 where there are"):
            loaded_as_torchdata_does(shuffle(**other), saved)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_resumes_within_an_epoch(store: Store, workers: int) -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")
    dataset = StoreDataset(store, ("f0",), with_index=True)

    def loader() -> Any:
        sampler = BlockShuffle(dataset, 4, 2, batch_size=8, seed=1)
        return torchdata.StatefulDataLoader(dataset, 8, sampler=sampler, num_workers=workers)

    whole = [batch["index"].tolist() for batch in loader()]
    begun = loader()
    iterator = iter(begun)
    read = [next(iterator)["index"].tolist() for _ in range(3)]
    resumed = loader()
    resumed.load_state_dict(begun.state_dict())
    assert read + [batch["index"].tolist() for batch in resumed] == whole
    assert [batch["index"].tolist() for batch in resumed] == whole  # the next time from the beginning
