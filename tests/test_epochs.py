"""What all loaders promise of their batches and their order, however these are read."""

from __future__ import annotations

import itertools
import json
import math
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import SAMPLES, assert_batches_of, assert_same, never_dry, numbers, ordinary
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from parbake.errors import RecipeError
from parbake.loaders.batch_loader import BatchLoader
from parbake.loaders.block_shuffle import BlockShuffle
from parbake.loaders.dataset import StoreDataset
from parbake.loaders.epochs import EpochLoader, draw_seed
from parbake.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:parbake. all")  # tests keep what they look at

Make = Callable[..., Any]  # a loader of (dataset, batch_size, ...)


def in_process(dataset: StoreDataset, *arguments: Any, **options: Any) -> EpochLoader:
    return dataset.loader(*arguments, num_workers=0, **options)


def with_workers(dataset: StoreDataset, *arguments: Any, **options: Any) -> EpochLoader:
    return dataset.loader(*arguments, num_workers=2, multiprocessing_context="fork", **options)


def with_threads(dataset: StoreDataset, *arguments: Any, **options: Any) -> EpochLoader:
    return BatchLoader(dataset, *arguments, threads=2, prefetch=3, **options)


KINDS: list[Make] = [in_process, with_workers, with_threads]
every_kind = pytest.mark.parametrize("make", KINDS)
cheap_kinds = pytest.mark.parametrize("make", [in_process, with_threads])  # the order is one piece of code


# ---- batches equal torch's own

Point = namedtuple("Point", "wave where")


def double(sample: Any) -> Any:
    return {**sample, "wave": sample["wave"].double() * 2}


def various(sample: Any) -> Any:
    return {
        "text": f"sample {int(sample['index'])}",
        "numbers": (1, 2.5, True),
        "array": sample["wave"].numpy()[:3],
        "point": Point(sample["wave"][0], [sample["f0"]]),
        "nothing": sample["wave"][:0],
        "complex": sample["level"][0] * torch.tensor(1j),
    }


def one_tensor(sample: Any) -> Any:
    return sample["wave"].T


def huge(sample: Any) -> Any:
    return {"wave": sample["wave"].double().repeat(40, 1), "f0": sample["f0"]}


def with_gradient(sample: Any) -> Any:
    return {"wave": torch.nn.Parameter(sample["wave"]), "f0": sample["f0"]}


def swap_in_place(batch: Any) -> Any:
    batch["wave"].neg_()
    batch["count"] = batch["count"].float().mean(dim=1)
    batch["again"] = batch["wave"]
    batch["turned"] = batch["wave"].transpose(1, 2)
    return batch


def first_two(batch: Any) -> Any:
    return batch[0] * 2, batch[1]


@every_kind
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"as_tuple": True},
        {"fields": ("f0", "wave"), "with_index": False},
        {"transform": double},
        {"transform": various},
        {"transform": one_tensor},
        {"transform": huge},
        {"batch_transform": swap_in_place},
        {"batch_transform": swap_in_place, "transform": one_tensor},
        {"batch_transform": first_two, "as_tuple": True},
        {"batch_transform": first_two, "as_tuple": True, "transform": tuple},
    ],
    ids=lambda options: "-".join(getattr(value, "__name__", name) for name, value in options.items()),
)
def test_batches_equal_those_of_torch(store: Store, make: Make, options: dict[str, Any]) -> None:
    ds = StoreDataset(store, **{"with_index": True} | options)
    loader = make(ds, 7)
    wanted = ordinary(ds, 7)
    assert len(loader) == len(wanted) == 5
    for _ in range(2):
        assert_same(list(itertools.islice(loader, 2)), wanted[:2])
    assert_same(list(loader), wanted)


@cheap_kinds
def test_gradients_come_as_from_torch(store: Store, make: Make) -> None:
    ds = StoreDataset(store, transform=with_gradient)
    for batch, wanted in zip(make(ds, 7), ordinary(ds, 7), strict=True):
        assert batch["wave"].requires_grad == wanted["wave"].requires_grad
        assert torch.equal(batch["wave"], wanted["wave"])


@every_kind
def test_what_a_loop_changes_shows_nowhere_else(ds: StoreDataset, make: Make) -> None:
    loader = make(ds, 7, shuffle=True)
    for _ in range(3):
        batches = []
        for batch in loader:
            number = batch["index"].tolist()
            wanted = ds.store.read(number)["wave"]
            np.testing.assert_array_equal(batch["wave"].numpy(), wanted)
            for tensor in batch.values():
                tensor.fill_(1)
            batches.append(number)
        assert sorted(itertools.chain(*batches)) == list(range(SAMPLES))


@every_kind
def test_an_epoch_that_is_kept_does_not_change(ds: StoreDataset, make: Make) -> None:
    loader = make(ds, 2, shuffle=True)
    kept = list(loader)
    order = numbers(kept)
    others = [numbers(loader) for _ in range(3)]
    assert_batches_of(ds.store, kept, order)
    assert len({tuple(one) for one in [order, *others]}) == 4


@every_kind
def test_a_ring_that_runs_dry_is_told_once(ds: StoreDataset, make: Make) -> None:
    loader = make(ds, 2)
    with pytest.warns(UserWarning, match="all .* slots of this loader are in use") as told:
        kept = [list(loader), list(loader)]
    assert len(told) == 1
    assert numbers(kept[0]) == numbers(kept[1]) == list(range(SAMPLES))


@every_kind
@never_dry()
def test_loops_that_hold_their_last_batch_find_slots(ds: StoreDataset, make: Make) -> None:
    loader = make(ds, 2)
    for _ in range(3):
        for batch in loader:
            assert len(batch) == 5
    for one, other in zip(loader, loader, strict=True):
        assert one.keys() == other.keys()
    del one, other
    for _ in range(3):
        for pair in zip(loader, range(2), strict=False):  # left early
            assert len(pair) == 2


@every_kind
def test_two_iterations_at_a_time_are_two_epochs(ds: StoreDataset, make: Make) -> None:
    loader = make(ds, 7, shuffle=True)
    alone = make(ds, 7, shuffle=True)
    wanted = [numbers(alone) for _ in range(5)]
    for first in (0, 2):
        pairs = list(zip(loader, loader, strict=True))
        for epoch, side in enumerate(zip(*pairs, strict=True), first):
            assert_batches_of(ds.store, side, wanted[epoch])
    assert numbers(loader) == wanted[4]


@every_kind
def test_drop_last(ds: StoreDataset, make: Make) -> None:
    loader = make(ds, 7, drop_last=True)
    assert len(loader) == 4
    assert numbers(loader) == list(range(28))
    assert numbers(make(ds, 31, drop_last=True)) == []
    assert loader.state_dict()["epoch"] == 1


# ---- order


@every_kind
def test_each_iteration_is_the_next_epoch(ds: StoreDataset, make: Make) -> None:
    wanted = [list(BlockShuffle(ds, 1, batch_size=7, seed=5)) for _ in range(1)]
    sampler = BlockShuffle(ds, 1, batch_size=7, seed=5)
    for epoch in range(1, 5):
        sampler.set_epoch(epoch)
        wanted.append(list(sampler))
    loader = make(ds, 7, shuffle=True, seed=5)
    assert numbers(loader) == wanted[0]
    assert numbers(itertools.islice(loader, 2)) == wanted[1][:14]
    assert numbers(loader) == wanted[2]
    iter(loader)
    assert numbers(loader) == wanted[4]
    loader.set_epoch(1)
    assert numbers(loader) == wanted[1]
    assert numbers(loader) == wanted[2]


@cheap_kinds
def test_an_epoch_that_was_left_can_be_asked_for_again(ds: StoreDataset, make: Make) -> None:
    loader = make(ds, 7, shuffle=True)
    wanted = numbers(loader)
    loader.set_epoch(0)
    assert numbers(itertools.islice(loader, 2)) == wanted[:14]
    loader.set_epoch(0)
    assert numbers(loader) == wanted


@cheap_kinds
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("done", [0, 1, 4, 5])
def test_a_run_goes_on_where_it_was_with_another_batch_size(
    ds: StoreDataset, make: Make, shuffle: bool, done: int
) -> None:
    loader = make(ds, 7, shuffle=shuffle, seed=3)
    epochs = [numbers(loader) for _ in range(3)]
    loader.set_epoch(1)
    numbers(itertools.islice(loader, done))
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = make(ds, 4, shuffle=shuffle, seed=3)
    resumed.load_state_dict(state)
    if done < 5:
        resumed.set_epoch(1)  # says nothing new
        assert len(resumed) == math.ceil((SAMPLES - 7 * done) / 4)
        assert numbers(resumed) == epochs[1][7 * done :]
    assert numbers(resumed) == epochs[2]


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=6),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
)
def test_a_run_that_stops_anywhere_gives_what_one_without_stops_does(
    store: Store, steps: list[tuple[int, bool]], drop_last: bool, shuffle: bool
) -> None:
    """Stop after so many batches, then resume from the state, or begin the next epoch."""
    ds = StoreDataset(store, ("f0",), with_index=True)

    def make() -> EpochLoader:
        return ds.loader(7, shuffle, num_workers=0, drop_last=drop_last, seed=1)

    loader, place, epoch = make(), 0, 0
    straight = make()
    wanted = [numbers(straight) for _ in range(len(steps) + 1)]
    for count, resume in steps:
        batches = numbers(itertools.islice(loader, count))
        assert batches == wanted[epoch][place : place + 7 * count]
        place += len(batches)
        if resume:
            state = loader.state_dict()
            loader = make()
            loader.load_state_dict(state)
        if place == len(wanted[epoch]) or not resume:
            place, epoch = 0, epoch + 1


@every_kind
def test_state_counts_what_was_delivered_not_what_was_read_ahead(ds: StoreDataset, make: Make) -> None:
    loader = make(ds, 7, shuffle=True)
    batches = iter(loader)
    assert loader.state_dict()["delivered"] == 0
    for count in range(1, 5):
        next(batches)
        assert (loader.state_dict()["epoch"], loader.state_dict()["delivered"]) == (0, 7 * count)
    next(batches)
    assert (loader.state_dict()["epoch"], loader.state_dict()["delivered"]) == (1, 0)


@cheap_kinds
def test_an_iteration_that_was_overtaken_counts_no_more(ds: StoreDataset, make: Make) -> None:
    loader = make(ds, 7, shuffle=True)
    old = iter(loader)
    next(old)
    new = iter(loader)
    next(new)
    next(old)
    assert (loader.state_dict()["epoch"], loader.state_dict()["delivered"]) == (1, 7)
    loader.set_epoch(4)
    next(new)
    assert (loader.state_dict()["epoch"], loader.state_dict()["delivered"]) == (4, 0)


@cheap_kinds
def test_states_of_another_order_are_refused(ds: StoreDataset, make: Make) -> None:
    shuffled, straight = (make(ds, 7, shuffle=shuffle).state_dict() for shuffle in (True, False))
    with pytest.raises(RecipeError, match="block None"):
        make(ds, 7, shuffle=True).load_state_dict(straight)
    with pytest.raises(RecipeError, match="of shuffled samples"):
        make(ds, 7).load_state_dict(shuffled)
    with pytest.raises(RecipeError, match="seed 0 where this sampler has 1"):
        make(ds, 7, shuffle=True, seed=1).load_state_dict(shuffled)
    with pytest.raises(RecipeError, match="'digest' is missing"):
        make(ds, 7).load_state_dict({key: straight[key] for key in straight if key != "digest"})


# ---- samplers


@every_kind
def test_a_block_shuffle_gives_the_order_and_is_told_what_arrived(ds: StoreDataset, make: Make) -> None:
    wanted = list(BlockShuffle(ds, 4, 2, batch_size=7, seed=2))
    sampler = BlockShuffle(ds, 4, 2, batch_size=7, seed=2)
    loader = make(ds, 7, sampler=sampler)
    assert numbers(itertools.islice(loader, 3)) == wanted[:21]
    assert sampler.state_dict() == loader.state_dict()
    assert sampler.state_dict()["delivered"] == 21
    other = make(ds, 7, sampler=BlockShuffle(ds, 4, 2, batch_size=7, seed=2))
    other.load_state_dict(loader.state_dict())
    assert numbers(other) == wanted[21:]


@cheap_kinds
@pytest.mark.parametrize("uneven", ["pad", "drop"])
def test_ranks_share_an_epoch_and_resume_as_fewer(ds: StoreDataset, make: Make, uneven: Any) -> None:
    whole = list(BlockShuffle(ds, 1, batch_size=3, seed=2))
    loaders = [
        make(ds, 3, sampler=BlockShuffle(ds, 1, batch_size=3, seed=2, rank=rank, ranks=4, uneven=uneven))
        for rank in range(4)
    ]
    seen = [number for loader in loaders for number in numbers(itertools.islice(loader, 2))]
    assert sorted(seen) == sorted(whole[:24])
    states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states)
    alone = make(ds, 5, sampler=BlockShuffle(ds, 1, batch_size=5, seed=2))
    alone.load_state_dict(states[0])
    assert numbers(alone) == whole[24:]
    rest = [numbers(loader) for loader in loaders]  # of epoch 1
    assert len({len(one) for one in rest}) == 1


@cheap_kinds
def test_a_sampler_that_was_resumed_itself_goes_on(ds: StoreDataset, make: Make) -> None:
    wanted = list(BlockShuffle(ds, 1, batch_size=7))
    sampler = BlockShuffle(ds, 1, batch_size=7)
    sampler.load_state_dict(sampler.state_dict() | {"delivered": 14})
    assert numbers(make(ds, 7, sampler=sampler)) == wanted[14:]


@every_kind
def test_any_iterable_of_numbers_is_a_sampler(ds: StoreDataset, make: Make) -> None:
    order = [3, 3, -1, 7, 0, 29, 12, 3]
    loader = make(ds, 3, sampler=order)
    assert len(loader) == 3
    for _ in range(2):
        assert_batches_of(ds.store, loader, [29 if number == -1 else number for number in order])
    for sampler in (
        RandomSampler(ds),
        SubsetRandomSampler([4, 9, 2]),
        WeightedRandomSampler([1.0] * SAMPLES, 11),
        torch.tensor([5, 1, 2]),
        np.arange(4),
        iter([5, 6]),
    ):
        assert len(numbers(make(ds, 4, sampler=sampler))) == len(list(sampler)) or not list(sampler)


@cheap_kinds
def test_the_epoch_reaches_a_sampler_that_takes_it(ds: StoreDataset, make: Make) -> None:
    def sampler() -> DistributedSampler[Any]:
        return DistributedSampler(ds, 2, 1, seed=4)

    loader, own = make(ds, 4, sampler=sampler()), sampler()
    for epoch in (0, 3):
        loader.set_epoch(epoch)
        own.set_epoch(epoch)
        assert numbers(loader) == list(own)


@cheap_kinds
def test_other_samplers_have_no_state(ds: StoreDataset, make: Make) -> None:
    loader = make(ds, 7, sampler=RandomSampler(ds))
    for refused in (loader.state_dict, lambda: loader.load_state_dict({})):
        with pytest.raises(RecipeError, match="order of RandomSampler cannot be saved"):
            refused()


def _until_it_fails(ds: StoreDataset) -> Iterator[int]:
    yield from range(7)
    raise OSError("the list of samples is gone")


@every_kind
def test_what_a_sampler_does_wrong_is_told(ds: StoreDataset, make: Make) -> None:
    with pytest.raises(OSError, match="list of samples is gone"):
        list(make(ds, 3, sampler=_until_it_fails(ds)))
    with pytest.raises(IndexError, match="sample 30 of a store of 30"):
        list(make(ds, 3, sampler=[1, 30]))
    with pytest.raises(TypeError):
        list(make(ds, 3, sampler=[1.5]))


# ---- options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5 is no integer"),
        ({"seed": "a"}, "seed='a' is no integer"),
        ({"shuffle": True, "sampler": [1]}, "both say the order"),
    ],
    ids=str,
)
@cheap_kinds
def test_options_that_cannot_be(ds: StoreDataset, make: Make, options: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        make(ds, **{"batch_size": 7} | options)


@cheap_kinds
def test_a_sampler_must_fit_its_loader(ds: StoreDataset, make: Make) -> None:
    ranked = BlockShuffle(ds, 1, batch_size=3, ranks=2, uneven="pad")
    with pytest.raises(RecipeError, match="batch_size=7 where the sampler shares out batches of 3"):
        make(ds, 7, sampler=ranked)
    with pytest.raises(RecipeError, match="seed=1 where the sampler has seed 0"):
        make(ds, 7, sampler=BlockShuffle(ds, 1, batch_size=7), seed=1)


def test_draws_depend_on_seed_and_epoch_alone() -> None:
    draws = {(seed, epoch): draw_seed(seed, epoch) for seed in range(9) for epoch in range(9)}
    assert len(set(draws.values())) == 81
    assert all(0 <= draw < 2**63 for draw in draws.values())
    # of all versions: what was resumed must go on alike
    assert draws[3, 5] == draw_seed(3, 5) == 4349084659664773726


@cheap_kinds
@pytest.mark.parametrize("shuffle", [True, False])
def test_what_is_no_state_is_refused(ds: StoreDataset, make: Make, shuffle: bool) -> None:
    loader = make(ds, 7, shuffle=shuffle)
    assert "batches of 7 from <parbake.StoreDataset" in repr(loader)
    for state in (None, [], "epoch"):
        with pytest.raises(RecipeError, match="a dict is needed"):
            loader.load_state_dict(state)  # type: ignore[arg-type]


@every_kind
def test_a_batch_size_beyond_the_samples_is_one_batch(ds: StoreDataset, make: Make) -> None:
    """Room is made for the samples that there are."""
    assert_same(list(make(ds, 10**12)), ordinary(ds, 10**12))
    assert numbers(make(ds, 10**12, sampler=[3, 1] * SAMPLES)) == [3, 1] * SAMPLES


@cheap_kinds
def test_more_than_there_is_memory_for_is_refused(ds: StoreDataset, make: Make) -> None:
    endless = (number for number in itertools.repeat(0))  # nobody knows how long a batch will be
    for batch_size in (10**12, 10**18):
        with pytest.raises(RecipeError, match=r"do not fit into memory .*; choose a smaller batch_size"):
            iter(make(ds, batch_size, sampler=endless))
