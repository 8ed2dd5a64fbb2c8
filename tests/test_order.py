"""The order of samples: permutations, blocks and shares, as arithmetic on indices."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from parbake.errors import RecipeError
from parbake.loaders.order import N_MAX, BlockOrder, Share, Uneven, default_span, permuted

UNLIKELY = 1e-6  # of a fair shuffle; the seeds are fixed, so what passes once passes always

orders = st.builds(
    BlockOrder, st.integers(1, 2000), st.integers(1, 300), st.integers(1, 40), st.integers(-(2**70), 2**70)
)
epochs = st.integers(0, 2**40)


def epoch_of(order: BlockOrder, epoch: int = 0) -> np.ndarray:
    return order.at(np.arange(order.n), epoch)


def assert_fair(counts: np.ndarray) -> None:
    assert stats.chisquare(counts, axis=None).pvalue > UNLIKELY


# ---- full permutations


@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 1000, 2**15, 2**15 + 1, 40_000])
def test_every_sample_comes_once_an_epoch(n: int) -> None:
    for seed in range(3):
        samples = permuted(np.arange(n), n, seed, epoch=seed)
        assert samples.dtype == np.int64
        np.testing.assert_array_equal(np.sort(samples), np.arange(n))


def test_the_order_is_the_same_in_every_version_and_on_every_machine() -> None:
    """A run resumed after an update would else repeat some samples and never see others."""
    assert permuted(np.arange(12), 12, 7, 3).tolist() == [10, 1, 8, 7, 11, 3, 9, 2, 0, 4, 5, 6]
    wide = permuted(np.array([0, 1, 2, 10**12 - 1]), 10**12, 7, 3)
    assert wide.tolist() == [827902879844, 590927283838, 111394587796, 169092790621]
    blocks = epoch_of(BlockOrder(14, 4, 2, 7), 3)
    assert blocks.tolist() == [7, 0, 2, 6, 4, 3, 5, 1, 11, 12, 13, 10, 8, 9]


@settings(deadline=None)
@given(st.integers(1, N_MAX), st.integers(), epochs, st.data())
def test_a_position_gives_its_sample_whatever_it_is_asked_with(
    n: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=40, unique=True))
    samples = permuted(np.array(positions), n, seed, epoch)
    assert len(set(samples.tolist())) == len(positions)
    assert samples.min() >= 0
    assert samples.max() < n
    assert permuted(np.array(positions[-1:]), n, seed, epoch).tolist() == samples[-1:].tolist()


def test_many_positions_give_what_each_gives_alone() -> None:
    positions = np.arange(0, 100_000, 7)
    samples = permuted(positions, 100_000, 1, 2)
    few = np.array([0, 1, 9_000, 14_000])
    np.testing.assert_array_equal(permuted(positions[few], 100_000, 1, 2), samples[few])


def test_seeds_epochs_and_blocks_have_orders_of_their_own() -> None:
    positions = np.arange(1000)
    found = [permuted(positions, 1000, seed, epoch) for seed, epoch in product(range(-2, 4), range(5))]
    for a, b in product(range(len(found)), repeat=2):
        if a != b:
            assert (found[a] == found[b]).sum() < 12  # one is expected


@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_permutations_of_a_few_samples_are_equally_likely(n: int) -> None:
    counts = Counter(tuple(permuted(np.arange(n), n, seed, seed % 7).tolist()) for seed in range(800))
    assert_fair(np.array([counts[order] for order in permutations(range(n))]))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_permutations_within_a_run_are_equally_likely(size: int) -> None:
    runs = 100 * math.factorial(size)
    order = BlockOrder(runs * size, size, 1)
    codes = epoch_of(order).reshape(runs, size) % size @ size ** np.arange(size)
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == math.factorial(size)
    assert_fair(counts)


@pytest.mark.parametrize("n", [100, 128, 1000, 2**16, 50_000])
def test_samples_and_their_neighbours_land_anywhere(n: int) -> None:
    """Where a sample lands, where its neighbour lands beside it, and how far apart, are all even."""
    bins = 10 if n < 2000 else 32
    where, pairs, steps = np.zeros((bins, bins)), np.zeros((bins, bins)), np.zeros(bins)
    for epoch in range(max(2, 40_000 // n)):
        samples = permuted(np.arange(n), n, 5, epoch)
        to = samples * bins // n
        where += np.histogram2d(np.arange(n) * bins // n, to, bins)[0]
        pairs += np.histogram2d(to[:-1:2], to[1::2], bins)[0]
        steps += np.bincount((np.diff(samples)[::2] % n - 1) * bins // (n - 1), minlength=bins)
    even = np.outer(np.bincount(np.arange(n) * bins // n), np.bincount(np.arange(n) * bins // n)) / n
    for found in (where, pairs):
        expected = even * found.sum() / even.sum()
        assert stats.chi2.sf(((found - expected) ** 2 / expected).sum(), (bins - 1) ** 2) > UNLIKELY
        # nor evener than chance, as a grid would be
        assert stats.chi2.cdf(((found - expected) ** 2 / expected).sum(), (bins - 1) ** 2) > UNLIKELY
    widths = np.bincount(np.arange(n - 1) * bins // (n - 1))
    assert stats.chisquare(steps, widths * steps.sum() / widths.sum()).pvalue > UNLIKELY


@pytest.mark.parametrize("n", [8, 16, 60, 64, 256])
def test_odd_permutations_are_as_likely_as_even_ones(n: int) -> None:
    odd = 0
    for seed in range(300):
        samples = permuted(np.arange(n), n, seed, 0).tolist()
        cycles, seen = 0, [False] * n
        for first in range(n):
            cycles += not seen[first]
            while not seen[first]:
                seen[first] = True
                first = samples[first]
        odd += (n - cycles) % 2
    assert stats.binomtest(odd, 300).pvalue > UNLIKELY


@pytest.mark.parametrize("position", [-1, 10, 2**62])
def test_positions_beyond_the_epoch_are_refused(position: int) -> None:
    for at in (lambda p: permuted(p, 10, 0, 0), lambda p: BlockOrder(10, 2, 2).at(p, 0)):
        with pytest.raises(IndexError, match=rf"position {position} of an epoch of 10"):
            at(np.array([3, position]))


def test_no_positions_give_no_samples() -> None:
    assert permuted(np.array([]), 10, 0, 0).tolist() == []
    assert BlockOrder(10, 3, 2).at(np.array([], np.int64), 0).tolist() == []


@pytest.mark.parametrize("n", [0, -1, N_MAX + 1, 2.0, None])
def test_a_wrong_number_of_samples_is_refused(n: int) -> None:
    with pytest.raises(RecipeError, match="n="):
        permuted(np.arange(1), n, 0, 0)


def test_positions_that_are_no_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        permuted(np.array([0.0]), 10, 0, 0)


# ---- blocks


@pytest.mark.parametrize("n", range(1, 26))
def test_a_short_last_block_lands_anywhere_and_nothing_is_lost(n: int) -> None:
    for block, span, epoch in product((1, 2, 3, 4, 7, 40), (1, 2, 3, 5, 40), range(3)):
        samples = epoch_of(BlockOrder(n, block, span), epoch)
        np.testing.assert_array_equal(np.sort(samples), np.arange(n))


@settings(deadline=None)
@given(orders, epochs)
def test_each_run_reads_whole_blocks_of_its_own(order: BlockOrder, epoch: int) -> None:
    samples = epoch_of(order, epoch)
    np.testing.assert_array_equal(np.sort(samples), np.arange(order.n))
    runs = order.runs_at(np.arange(order.n), epoch)
    assert (np.diff(runs) >= 0).all()
    blocks = [set((samples[runs == run] // order.block).tolist()) for run in range(order.runs)]
    sizes = list(map(len, blocks))
    assert sum(sizes) == order.blocks  # no block in two
    assert max(sizes) <= order.span
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(orders, epochs, st.randoms(use_true_random=False))
def test_a_position_in_blocks_gives_its_sample_whatever_it_is_asked_with(
    order: BlockOrder, epoch: int, random: object
) -> None:
    positions = np.array(random.sample(range(order.n), min(order.n, 20)))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(order.at(positions, epoch), epoch_of(order, epoch)[positions])
    np.testing.assert_array_equal(
        order.runs_at(positions, epoch), order.runs_at(np.arange(order.n), epoch)[positions]
    )


def test_nothing_grows_with_the_number_of_samples() -> None:
    order = BlockOrder(2**50 + 11, 2**13, 1000, seed=1)
    positions = np.concatenate([np.arange(50), 2**49 + np.arange(50), order.n - 1 - np.arange(50)])
    samples = order.at(positions, 2)
    assert len(set(samples.tolist())) == 150
    assert samples.min() >= 0
    assert samples.max() < order.n
    for part in (slice(0, 50), slice(50, 100), slice(100, 150)):
        assert len(set((samples[part] // order.block).tolist())) > 25  # of 50 samples, from 1000 blocks


def test_the_short_block_has_no_favourite_place() -> None:
    order = BlockOrder(4 * 9 + 1, 4, 1)
    places = [int(np.flatnonzero(epoch_of(order, epoch) == 36)[0]) // 4 for epoch in range(300)]
    assert_fair(np.bincount(places, minlength=10))


def test_blocks_land_anywhere() -> None:
    order = BlockOrder(4 * 9 + 1, 4, 1)
    firsts = [int(epoch_of(order, epoch)[0]) // 4 for epoch in range(300)]
    assert_fair(np.bincount(firsts, minlength=10))


def test_runs_are_permuted_each_in_its_own_way() -> None:
    samples = epoch_of(BlockOrder(64 * 40, 64, 1)).reshape(40, 64) % 64
    for a, b in permutations(range(40), 2):
        assert (samples[a] == samples[b]).sum() < 10  # one is expected


def test_blocks_of_one_sample_are_a_full_permutation() -> None:
    order = BlockOrder(1000, 1, 5)
    assert order.variance_ratio(64) == pytest.approx(1)
    assert default_span(10**6, 1, 64) == 1


def measured_ratio(order: BlockOrder, batch_size: int) -> float:
    """The variance of batch means over 100 epochs, over the formula for drawing without replacement."""
    n, mean = order.n, (order.n - 1) / 2
    of_epochs = []
    for epoch in range(100):
        batches = epoch_of(order, epoch)[: n // batch_size * batch_size].reshape(-1, batch_size)
        of_epochs.append(np.mean((batches.mean(axis=1) - mean) ** 2))
    return float(np.mean(of_epochs) / ((n**2 - 1) / 12 / batch_size * (n - batch_size) / (n - 1)))


@pytest.mark.parametrize(("n", "block", "batch_size"), [(30_003, 8, 16), (20_000, 4, 32), (12_000, 16, 8)])
def test_at_the_default_span_batches_vary_as_in_a_true_permutation(
    n: int, block: int, batch_size: int
) -> None:
    span = default_span(n, block, batch_size)
    order = BlockOrder(n, block, span)
    assert order.runs > 2
    assert measured_ratio(order, batch_size) == pytest.approx(1, abs=0.05)
    narrow = BlockOrder(n, block, span // 20)
    assert narrow.variance_ratio(batch_size) > 1.3
    assert measured_ratio(narrow, batch_size) == pytest.approx(narrow.variance_ratio(batch_size), rel=0.05)


def test_the_measure_holds_for_batches_of_several_runs() -> None:
    order = BlockOrder(12_000, 4, 5)
    assert order.variance_ratio(64) == pytest.approx(measured_ratio(order, 64), rel=0.06)
    assert order.variance_ratio(64) > 2


@pytest.mark.parametrize(("blocks", "block", "span"), [(3, 2, 2), (3, 2, 1), (3, 3, 1), (4, 2, 2)])
def test_the_measure_is_that_of_all_orders_there_are(blocks: int, block: int, span: int) -> None:
    """Pairs at adjoining positions, in every order of blocks and of the samples in each run."""
    order = BlockOrder(blocks * block, block, span)
    runs = order.runs_at(np.arange(order.n), 0)
    squares, count = 0.0, 0
    for of_blocks in permutations(range(blocks)):
        samples = np.concatenate([np.arange(b * block, (b + 1) * block) for b in of_blocks])
        of_runs = [list(permutations(samples[runs == run].tolist())) for run in range(order.runs)]
        for parts in product(*of_runs):
            whole = [sample for part in parts for sample in part]
            means = [(a + b) / 2 - (order.n - 1) / 2 for a, b in pairwise(whole)]
            squares, count = squares + sum(mean**2 for mean in means), count + len(means)
    true = (order.n**2 - 1) / 12 / 2 * (order.n - 2) / (order.n - 1)
    assert order.variance_ratio(2) == pytest.approx(squares / count / true)


def test_the_measure_of_one_run_or_one_batch_is_one() -> None:
    assert BlockOrder(1000, 10, 100).variance_ratio(64) == 1
    assert BlockOrder(1000, 10, 3).variance_ratio(1000) == 1
    assert BlockOrder(1000, 10, 3).variance_ratio(1) == pytest.approx(1)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 20), st.integers(1, 30))
def test_the_default_span_is_the_least_that_is_even_enough(n: int, block: int, batch_size: int) -> None:
    span = default_span(n, block, batch_size)
    assert BlockOrder(n, block, span).variance_ratio(batch_size) <= 1.025
    if span > 1:
        assert BlockOrder(n, block, span - 1).variance_ratio(batch_size) > 1.025


@pytest.mark.parametrize(
    "arguments",
    [(0, 1, 1), (10, 0, 1), (10, 1, 0), (10, -2, 1), (10, 1.5, 1), (10, 1, 1, "a"), (10, 1, 1, None)],
)
def test_an_impossible_order_is_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match=r"^(n|block|span|seed)="):
        BlockOrder(*arguments)


def test_a_batch_size_of_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="batch_size=0"):
        BlockOrder(10, 2, 2).variance_ratio(0)


# ---- shares

unevens = st.sampled_from(["pad", "drop"])


def all_positions(n: int, start: int, batch_size: int, ranks: int, uneven: Uneven) -> list[list[int]]:
    shares = [Share(n, start, batch_size, rank, ranks, uneven) for rank in range(ranks)]
    return [share.positions(0, len(share)).tolist() for share in shares]


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 200), st.integers(1, 12), st.integers(1, 7), unevens)
def test_ranks_together_take_everything_once(
    n: int, start: int, batch_size: int, ranks: int, uneven: Uneven
) -> None:
    start = min(start, n)
    by_rank = all_positions(n, start, batch_size, ranks, uneven)
    assert len({len(own) for own in by_rank}) == 1
    taken = Counter(position for own in by_rank for position in own)
    short = (n - start) % ranks
    if uneven == "drop":
        assert taken == Counter(range(start, n - short))
    else:
        repeated = Counter(i % n for i in range((ranks - short) % ranks))
        assert taken == Counter(range(start, n)) + repeated


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 7), unevens, st.data())
def test_any_ranks_and_batches_go_on_with_what_was_not_delivered(
    n: int, batch_size: int, ranks: int, uneven: Uneven, data: st.DataObject
) -> None:
    shares = [Share(n, 0, batch_size, rank, ranks, uneven) for rank in range(ranks)]
    count = batch_size * data.draw(st.integers(0, len(shares[0]) // batch_size))
    before = [position for share in shares for position in share.positions(0, count).tolist()]
    start = shares[0].delivered(count)
    if start < n:  # else the end was reached, and what was dropped is not read any more
        assert sorted(before) == list(range(start))
    again = data.draw(st.integers(1, 7))
    after = [p for own in all_positions(n, start, data.draw(st.integers(1, 12)), again, "drop") for p in own]
    assert sorted(after) == list(range(start, n - (n - start) % again))


def test_batches_go_to_the_ranks_in_turn_and_the_end_is_shared() -> None:
    assert all_positions(23, 0, 4, 2, "drop") == [
        [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18],
        [4, 5, 6, 7, 12, 13, 14, 15, 19, 20, 21],
    ]
    assert all_positions(23, 0, 4, 2, "pad") == [
        [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19],
        [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 0],
    ]


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 5), unevens, st.data())
def test_a_share_can_be_had_in_parts(
    n: int, batch_size: int, ranks: int, uneven: Uneven, data: st.DataObject
) -> None:
    share = Share(n, 0, batch_size, ranks - 1, ranks, uneven)
    first, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(share))] * 2)))
    whole = share.positions(0, len(share))
    np.testing.assert_array_equal(share.positions(first, stop), whole[first:stop])


def test_one_rank_needs_no_word_on_uneven_ends() -> None:
    share = Share(10, 3, 4)
    assert share.positions(0, len(share)).tolist() == list(range(3, 10))
    assert [share.delivered(count) for count in (0, 1, 4, 7)] == [3, 4, 7, 10]


def test_several_ranks_must_say_what_happens_to_uneven_ends() -> None:
    for n in (8, 9):  # also where it comes out even: the store may grow, and a resume starts anywhere
        with pytest.raises(RecipeError, match=r"uneven=None for 2 ranks; 'pad' repeats samples, 'drop'"):
            Share(n, 0, 4, 0, 2)
    with pytest.raises(RecipeError, match="uneven='fill'"):
        Share(8, 0, 4, uneven="fill")  # type: ignore[arg-type]


def test_part_of_a_batch_is_no_place_to_resume_at_with_several_ranks() -> None:
    share = Share(100, 0, 8, 0, 2, "drop")
    assert share.delivered(16) == 32
    with pytest.raises(RecipeError, match="12 samples delivered are no whole batches of 8 on 2 ranks"):
        share.delivered(12)
    with pytest.raises(RecipeError, match="samples delivered=51; 0 to 50"):
        share.delivered(51)


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 0, 1),
        (5, 6, 1),
        (5, -1, 1),
        (5, 0, 0),
        (5, 0, 1, 2, 2, "pad"),
        (5, 0, 1, -1, 2, "pad"),
        (5, 0, 1, 0, 0),
    ],
)
def test_an_impossible_share_is_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="is possible"):
        Share(*arguments)


def test_samples_beyond_a_share_are_refused() -> None:
    with pytest.raises(IndexError, match="samples 0 to 11 of a share of 10"):
        Share(10, 0, 4).positions(0, 11)
