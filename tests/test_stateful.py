"""torchdata's StatefulDataLoader: what it resumes of our datasets and samplers, which is what it allows."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from bakery import Loaf, tiny_slabs
from torch.utils.data import DistributedSampler

from parbake.loaders.block_shuffle import BlockShuffle
from parbake.loaders.dataset import StoreDataset
from parbake.producers.bake import bake

StatefulDataLoader = pytest.importorskip(
    "torchdata.stateful_dataloader", reason="needs torchdata"
).StatefulDataLoader

LOAVES = (Loaf(samples=40), Loaf(samples=21, seed=1))
WAVE = np.concatenate([loaf.values()["wave"] for loaf in LOAVES])
SAMPLES = len(WAVE)
BATCH = 8
EPOCH = -(-SAMPLES // BATCH)  # batches

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreDataset]:
    """Of two stores."""
    folder = tmp_path_factory.mktemp("loaves")
    with pytest.MonkeyPatch.context() as patch:
        tiny_slabs(patch)
        stores = [bake(loaf, folder / f"{loaf.seed}.zarr", progress=False) for loaf in LOAVES]
        dataset = StoreDataset(stores, ("wave",), with_index=True)
        yield dataset
        dataset.store.close()


def rows(batch: dict[str, torch.Tensor]) -> list[int]:
    """The numbers of a batch's samples, which must be what the batch holds."""
    np.testing.assert_array_equal(batch["wave"].numpy(), WAVE[batch["index"]])
    return batch["index"].tolist()


def sequential(dataset: StoreDataset, **options: Any) -> Any:
    return StatefulDataLoader(dataset, BATCH, **options)


def shuffled(dataset: StoreDataset, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    return StatefulDataLoader(dataset, BATCH, shuffle=True, generator=generator, **options)


def block_shuffled(dataset: StoreDataset, **options: Any) -> Any:
    sampler = BlockShuffle(dataset, span=2, batch_size=BATCH, seed=1)
    return StatefulDataLoader(dataset, BATCH, sampler=sampler, **options)


def every(dataset: StoreDataset, **options: Any) -> Any:
    """With a state of every third batch only, from which it reads on."""
    return block_shuffled(dataset, snapshot_every_n_steps=3, **options)


Make = Callable[..., Any]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [sequential, shuffled, block_shuffled, every])
def test_a_run_resumes_after_any_batch_with_as_many_workers(
    dataset: StoreDataset, make: Make, workers: int
) -> None:
    make = partial(make, num_workers=workers)
    whole = [rows(batch) for batch in make(dataset)]
    assert sorted(chain(*whole)) == list(range(SAMPLES))
    for stop in (1, 4, EPOCH):
        begun = make(dataset)
        iterator = iter(begun)
        read = [rows(next(iterator)) for _ in range(stop)]
        state = pickle.loads(pickle.dumps(begun.state_dict()))  # while workers have read ahead
        del iterator, begun
        resumed = make(dataset)
        resumed.load_state_dict(state)
        assert read + [rows(batch) for batch in resumed] == whole
        assert sorted(chain(*map(rows, resumed))) == list(range(SAMPLES))


def test_a_later_epoch_resumes_in_its_own_order(dataset: StoreDataset) -> None:
    loader = block_shuffled(dataset)
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        epochs.append([rows(batch) for batch in loader])
    assert epochs[0] != epochs[1] != epochs[2]
    loader.sampler.set_epoch(1)
    iterator = iter(loader)
    read = [rows(next(iterator)) for _ in range(5)]
    resumed = block_shuffled(dataset)
    resumed.load_state_dict(loader.state_dict())
    resumed.sampler.set_epoch(1)  # as a loop over epochs that was begun again does
    assert read + [rows(batch) for batch in resumed] == epochs[1]
    resumed.sampler.set_epoch(2)
    assert [rows(batch) for batch in resumed] == epochs[2]


def test_each_rank_resumes_its_own_share(dataset: StoreDataset) -> None:
    def made(rank: int, kind: str) -> Any:
        if kind == "blocks":
            sampler: Any = BlockShuffle(dataset, batch_size=BATCH, rank=rank, ranks=2, uneven="pad")
        else:
            sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, seed=2)
        return StatefulDataLoader(dataset, BATCH, sampler=sampler, num_workers=1)

    for kind in ("blocks", "torch's own"):
        read = list[int]()
        for rank in range(2):
            begun = made(rank, kind)
            iterator = iter(begun)
            share = rows(next(iterator)) + rows(next(iterator))
            resumed = made(rank, kind)
            resumed.load_state_dict(begun.state_dict())
            share += chain(*map(rows, resumed))
            assert share == list(chain(*map(rows, made(rank, kind))))
            read += share
        assert sorted(set(read)) == list(range(SAMPLES))
        assert len(read) == SAMPLES + 1  # one is padded


def test_another_number_of_workers_is_torchdatas_to_refuse_and_not_a_samplers(dataset: StoreDataset) -> None:
    whole = [rows(batch) for batch in block_shuffled(dataset)]
    begun = block_shuffled(dataset, num_workers=2)
    read = []
    for batch in begun:
        read.append(rows(batch))
        begun.sampler.delivered(len(read[-1]))
        if len(read) == 3:
            break
    other = block_shuffled(dataset, num_workers=1)
    other.load_state_dict(begun.state_dict())
    with pytest.raises(AssertionError):
        next(iter(other))
    fresh = block_shuffled(dataset, num_workers=1)
    fresh.sampler.load_state_dict(begun.sampler.state_dict())
    assert read + [rows(batch) for batch in fresh] == whole


def test_batches_are_whole_and_not_copied_sample_by_sample(
    dataset: StoreDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    store_read = type(dataset.store).read

    def watched(self: Any, index: Any, fields: Any = None, out: Any = None, **options: Any) -> Any:
        read.append((len(index), out["wave"].ctypes.data))
        return store_read(self, index, fields, out, **options)

    monkeypatch.setattr(type(dataset.store), "read", watched)
    batches = [(len(batch["wave"]), batch["wave"].data_ptr()) for batch in block_shuffled(dataset)]
    assert batches == read
