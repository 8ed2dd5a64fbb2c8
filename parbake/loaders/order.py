"""The order of samples as arithmetic on indices: nothing here grows with the number of samples.

``permuted`` is a pseudo-random permutation, ``BlockOrder`` one that stays within a span of blocks for a
while, ``Share`` what one of several ranks takes of an order. Positions count the samples of an epoch in the
order in which they are read; all results depend on the arguments alone, not on a generator's stream.
"""

from __future__ import annotations

import bisect
import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.errors import RecipeError

Uneven: TypeAlias = Literal["pad", "drop"]

N_MAX = 2**62  # samples; leaves room for sums of two indices in int64
VARIANCE_RATIO_MAX = 1.025  # at the default span; what 100 epochs show scatters around it, within 1.05
_ROUNDS, _ROUNDS_NARROW = 8, 24  # halves of one bit mix slowly: with 8, permutations of 5 are visibly uneven
_NARROW_BITS = 7
_PIECE = 1 << 14  # indices permuted together: their scratch arrays stay in the cache


def checked_integer(name: str, value: int, low: int | None, high: int | None) -> int:
    """``value`` as a Python integer within [low, high]. Raises RecipeError."""
    try:
        number = operator.index(value)
    except TypeError:
        raise RecipeError(f"{name}={value!r} is no integer") from None
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise RecipeError(f"{name}={number}; {bounds} is possible")
    return number


def permuted(positions: NDArray[np.integer], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The samples at ``positions`` of a pseudo-random permutation of range(n): int64 [len(positions)].

    A Feistel network on the smallest 2^k >= n, and again where it leaves the range (cycle walking; Black and
    Rogaway 2002), so that no index costs more than two evaluations on average.

    Raises IndexError for positions beyond n, RecipeError for an n out of range.
    """
    n = checked_integer("n", n, 1, N_MAX)
    return _walked(_within(positions, n), n, _keys("samples", seed, epoch))


@dataclass(frozen=True)
class BlockOrder:
    """A shuffle of ``n`` samples that reads them from at most ``span`` blocks of ``block`` at a time.

    Blocks of adjoining samples (the last may be short) are permuted and cut into runs of at most ``span``,
    whose sizes differ by one block at most; the samples of each run are permuted among themselves.
    ``block=1`` is a full permutation. Raises RecipeError.
    """

    n: int
    block: int
    span: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n", "block", "span"):
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), 1, N_MAX))
        object.__setattr__(self, "seed", checked_integer("seed", self.seed, None, None))

    @cached_property
    def blocks(self) -> int:
        return -(-self.n // self.block)

    @cached_property
    def runs(self) -> int:
        return -(-self.blocks // self.span)

    @cached_property
    def _gap(self) -> int:
        """Samples that the last block lacks."""
        return self.blocks * self.block - self.n

    @cached_property
    def _run_blocks(self) -> int:
        """Blocks of a short run; ``_long_runs`` runs, the first ones, have one more."""
        return self.blocks // self.runs

    @cached_property
    def _long_runs(self) -> int:
        return self.blocks % self.runs

    def at(self, positions: NDArray[np.integer], epoch: int) -> NDArray[np.int64]:
        """The samples at ``positions`` of an epoch, int64 [len(positions)]. Raises IndexError."""
        short = self._short_place(epoch)
        place, run = self._placed(_within(positions, self.n), short)
        first = self._first_place(run)
        start = first * self.block  # of the run, in samples, as if every block were whole
        has_short = (first <= short) & (short < self._first_place(run + 1))
        size = (self._first_place(run + 1) - first) * self.block - has_short * self._gap
        place = place - start
        keys = _keys("runs", self.seed, epoch)
        widths = (self._run_blocks * self.block, (self._run_blocks + 1) * self.block)
        for one in sorted({width - gap for width in widths for gap in (0, self._gap)}):
            rows = np.flatnonzero(size == one)
            place[rows] = _walked(place[rows], one, keys, run[rows])
        place += start
        place += self._gap * (has_short & (place >= (short + 1) * self.block - self._gap))
        slot, within = np.divmod(place, self.block)
        blocks: NDArray[np.int64] = self._blocks_at(slot, short, epoch)
        return blocks * self.block + within

    def runs_at(self, positions: NDArray[np.integer], epoch: int) -> NDArray[np.int64]:
        """The run that each of ``positions`` lies in, int64 [len(positions)], ascending with the position."""
        return self._placed(_within(positions, self.n), self._short_place(epoch))[1]

    def variance_ratio(self, batch_size: int) -> float:
        """How far this is from a true permutation: 1 where it cannot be told by the means of batches.

        The variance of the mean index of ``batch_size`` samples at adjoining positions, over that under a
        true permutation. Analytic: the mean over all such windows, a short last block taken as a whole one.
        Roughly 1 + (batch_size - 1) (1 - 1 / block) / (blocks in a run), and 1 for one run.
        """
        batch_size = checked_integer("batch_size", batch_size, 1, None)
        b, blocks, n = self.block, self.blocks, self.blocks * self.block
        if batch_size >= self.n or self.runs == 1:
            return 1.0
        total = (n**2 - 1) / 12  # variance of an index
        between, inside = b**2 * (blocks**2 - 1) / 12, (b**2 - 1) / 12  # of a block's mean, within a block
        apart = -between / (blocks - 1)  # covariance of two samples of different blocks
        together = between - inside / max(b - 1, 1)
        lag = np.arange(1, batch_size)
        weight = 2.0 * (batch_size - lag)  # ordered pairs of a batch that lie ``lag`` positions apart
        covariance = np.full(len(lag), apart)
        counts = ((self._long_runs, self._run_blocks + 1), (self.runs - self._long_runs, self._run_blocks))
        for count, run_blocks in counts:
            samples = run_blocks * b
            same_block = (b - 1) / max(samples - 1, 1)
            in_one_run = count * np.maximum(samples - lag, 0) / (n - lag)
            covariance += in_one_run * same_block * (together - apart)
        variance = (batch_size * total + float(weight @ covariance)) / batch_size**2
        return variance / (total / batch_size * (n - batch_size) / (n - 1))

    def _short_place(self, epoch: int) -> int:
        """Where the short last block stands among the permuted ones; the whole blocks go round it."""
        if not self._gap:
            return self.blocks  # nowhere
        return _draw("last", self.seed, epoch) % self.blocks

    def _first_place(self, run: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first of a run's places in the order of blocks."""
        return run * self._run_blocks + np.minimum(run, self._long_runs)

    def _placed(
        self, positions: NDArray[np.int64], short: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions as if the run with the short block had its gap at its end, and the run of each."""
        place = positions
        if self._gap:
            end = int(self._first_place(self._run_of(np.array([short])) + 1)[0]) * self.block
            place = np.where(positions < end - self._gap, positions, positions + self._gap)
        return place, self._run_of(place // self.block)

    def _run_of(self, slot: NDArray[np.int64]) -> NDArray[np.int64]:
        edge = self._long_runs * (self._run_blocks + 1)
        later = self._long_runs + (slot - edge) // self._run_blocks
        run: NDArray[np.int64] = np.where(slot < edge, slot // (self._run_blocks + 1), later)
        return run

    def _blocks_at(self, slot: NDArray[np.int64], short: int, epoch: int) -> NDArray[np.int64]:
        whole = max(self.n // self.block, 1)
        is_short = slot == short
        number = np.where(is_short, 0, slot - (slot > short))
        return np.where(is_short, self.blocks - 1, _walked(number, whole, _keys("blocks", self.seed, epoch)))


def default_span(n: int, block: int, batch_size: int) -> int:
    """The least span of blocks whose ``variance_ratio`` is at most 1.025: about 40 times ``batch_size``.

    All blocks where there are few. ``batch_size``: of all ranks together.
    """
    blocks = BlockOrder(n, block, 1).blocks

    def spanned(runs: int) -> int:
        return -(-blocks // runs)

    def ratio(runs: int) -> float:
        return BlockOrder(n, block, spanned(runs)).variance_ratio(batch_size)

    return spanned(max(bisect.bisect_right(range(1, blocks + 1), VARIANCE_RATIO_MAX, key=ratio), 1))


@dataclass(frozen=True)
class Share:
    """What one of ``ranks`` takes of the positions [start, n) of an epoch; the same number for each.

    Batches of ``batch_size`` adjoining positions go to the ranks in turn, so that after equally many batches
    everywhere what has been read is a stretch without holes, from which any number of ranks can go on. The
    end, less than a batch for each, is shared out evenly; the up to ``ranks - 1`` samples by which that does
    not come out even are dropped, or padded by repeating the first of the epoch: ``uneven``, which more than
    one rank must say. Raises RecipeError.
    """

    n: int
    start: int
    batch_size: int
    rank: int = 0
    ranks: int = 1
    uneven: Uneven | None = None

    def __post_init__(self) -> None:
        checked_integer("n", self.n, 1, N_MAX)
        checked_integer("start", self.start, 0, self.n)
        checked_integer("batch_size", self.batch_size, 1, None)
        checked_integer("ranks", self.ranks, 1, None)
        checked_integer("rank", self.rank, 0, self.ranks - 1)
        if self.uneven not in ("pad", "drop") and (self.ranks > 1 or self.uneven is not None):
            raise RecipeError(
                f"uneven={self.uneven!r} for {self.ranks} ranks; 'pad' repeats samples, 'drop' leaves some "
                "out, where their number is no multiple of ranks"
            )

    @property
    def _rounds(self) -> int:
        """Whole batches of each rank."""
        return (self.n - self.start) // (self.batch_size * self.ranks)

    @property
    def _end(self) -> int:
        """Samples of each rank after its whole batches."""
        left = (self.n - self.start) % (self.batch_size * self.ranks)
        return -(-left // self.ranks) if self.uneven == "pad" else left // self.ranks

    def __len__(self) -> int:
        """Samples of this rank."""
        return self._rounds * self.batch_size + self._end

    def positions(self, first: int, stop: int) -> NDArray[np.int64]:
        """Positions in the epoch of this rank's own samples [first, stop), int64. Raises IndexError."""
        if not 0 <= first <= stop <= len(self):
            raise IndexError(f"samples {first} to {stop} of a share of {len(self)}")
        own = np.arange(first, stop)
        batch, within = np.divmod(own, self.batch_size)
        width = np.where(batch < self._rounds, self.batch_size, self._end)
        round_start = self.start + batch * self.batch_size * self.ranks
        positions: NDArray[np.int64] = (round_start + self.rank * width + within) % self.n
        return positions

    def delivered(self, count: int) -> int:
        """Samples of the epoch that are done once each rank has delivered ``count`` of its own.

        Raises RecipeError for what is no whole number of batches, where there are several ranks: what was
        read then has holes.
        """
        checked_integer("samples delivered", count, 0, len(self))
        if count and count == len(self):
            return self.n
        if self.ranks > 1 and count % self.batch_size:
            raise RecipeError(
                f"{count} samples delivered are no whole batches of {self.batch_size} on {self.ranks} ranks; "
                "give the sampler the loader's batch_size and count whole batches"
            )
        return self.start + count * self.ranks


def _within(positions: NDArray[np.integer] | Sequence[int], n: int) -> NDArray[np.int64]:
    array = np.asarray(positions)
    if not array.size:
        return np.empty(0, np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"positions of {array.ndim} axes and dtype {array.dtype}; give integers on one axis")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= n:
        raise IndexError(f"position {high if high >= n else low} of an epoch of {n}")
    indices: NDArray[np.int64] = array.astype(np.int64)
    return indices


def window_starts(samples: NDArray[np.int64], choices: int, draw: int) -> NDArray[np.int64]:
    """Where a window begins in each of ``samples``: int64 in range(choices), uniform, set by ``draw``."""
    keys = _keys("windows", draw, 0)
    high = _mixed_tweak(samples, keys[0])
    low = _hashed(high ^ keys[1])
    both = (high.astype(np.uint64) << np.uint64(32)) | low
    starts: NDArray[np.int64] = (both % np.uint64(choices)).astype(np.int64)
    return starts


# ---- the keyed bijection


def _bytes(purpose: str, seed: int, epoch: int, count: int) -> bytes:
    text = f"parbake order 1|{purpose}|{operator.index(seed)}|{operator.index(epoch)}"
    return hashlib.shake_256(text.encode()).digest(count)


def _draw(purpose: str, seed: int, epoch: int) -> int:
    """A number of 128 bits: its remainders are as good as uniform."""
    return int.from_bytes(_bytes(purpose, seed, epoch, 16), "little")


def _keys(purpose: str, seed: int, epoch: int) -> NDArray[np.uint32]:
    """A key for each round, one for the tweak and one for the end."""
    return np.frombuffer(_bytes(purpose, seed, epoch, 4 * (_ROUNDS_NARROW + 2)), "<u4").astype(np.uint32)


def _walked(
    x: NDArray[np.int64], n: int, keys: NDArray[np.uint32], tweak: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """``x``, in range(n), under a bijection on range(n); another one for each value of ``tweak``."""
    bits = (n - 1).bit_length()
    result = np.empty(len(x), np.int64)
    for start in range(0, len(x), _PIECE):
        piece = slice(start, start + _PIECE)
        mixed = None if tweak is None else _mixed_tweak(tweak[piece], keys[-2])
        y = _feistel(x[piece], bits, keys, mixed)
        out = np.flatnonzero(y >= n)
        while out.size:
            y[out] = again = _feistel(y[out], bits, keys, None if mixed is None else mixed[out])
            out = out[again >= n]
        result[piece] = y
    return result


def _mixed_tweak(tweak: NDArray[np.int64], key: np.uint32) -> NDArray[np.uint32]:
    low, high = tweak.astype(np.uint32), (tweak >> 32).astype(np.uint32)
    return _hashed(low ^ _hashed(high ^ key))


def _feistel(
    x: NDArray[np.int64], bits: int, keys: NDArray[np.uint32], tweak: NDArray[np.uint32] | None
) -> NDArray[np.int64]:
    """A permutation of range(2^bits), chosen by the keys: each round changes one half by the other."""
    low_bits = (bits + 1) // 2
    low_mask, high_mask = np.uint32((1 << low_bits) - 1), np.uint32((1 << (bits - low_bits)) - 1)
    high, low = (x >> low_bits).astype(np.uint32), x.astype(np.uint32) & low_mask
    for number, key in enumerate(keys[: _ROUNDS if bits > _NARROW_BITS else _ROUNDS_NARROW]):
        source, target, mask = (high, low, low_mask) if number % 2 else (low, high, high_mask)
        mixed = source ^ key
        if tweak is not None:
            mixed ^= tweak
        mixed = _hashed(mixed)
        mixed &= mask
        target ^= mixed
    y = high.astype(np.int64)
    y <<= low_bits
    y |= low
    # a network of two wide halves gives even permutations only; adding an odd number makes an odd one
    y += int(keys[-1])
    y &= (1 << bits) - 1
    return y


def _hashed(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A bijective mix of 32 bits, in place ("lowbias32" of Wellons, hash-prospector, 2018)."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x
