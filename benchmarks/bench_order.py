"""What an order costs: indices a second of permutations and samplers, and how even batches are.

Index-to-index orders hold no array; NumPy's permutation holds one of n, and is the bound. The measure of a
block order is the variance of the mean index of batches over 100 epochs, over a true permutation's.
"""

from __future__ import annotations

import numpy as np
from common import interleaved, seconds, show

from parbake.loaders.block_shuffle import BlockShuffle
from parbake.loaders.order import BlockOrder, default_span, permuted

ROUNDS = 7
BATCH = 64
EPOCHS = 100
SIZES = (2**20, 1_500_000, 2**20 + 1)  # the fewest, a common and the most evaluations an index


def speeds(n: int) -> None:
    positions = np.arange(n)
    full, blocks = np.random.default_rng(0), BlockOrder(n, 16, default_span(n, 16, BATCH))
    runs = {
        "numpy's permutation": lambda: full.permutation(n),
        "permuted": lambda: permuted(positions, n, 0, 0),
        "permuted, batches of 64": lambda: [
            permuted(positions[i : i + BATCH], n, 0, 0) for i in range(0, 1000 * BATCH, BATCH)
        ],
        "BlockOrder": lambda: blocks.at(positions, 0),
    }
    for name, taken in interleaved(runs, ROUNDS).items():
        count = 1000 * BATCH if "batches" in name else n
        show(f"  n = {n:,}: {name}: million indices/s", count / float(np.median(taken)) / 1e6)


def sampler_speed(n: int) -> None:
    sampler = BlockShuffle(n, 16, batch_size=BATCH)
    show(f"  n = {n:,}: BlockShuffle, as Python numbers: million/s", n / seconds(lambda: list(sampler)) / 1e6)
    far = BlockShuffle(10**12, 16, 2560, batch_size=BATCH)
    far.delivered(10**11)
    first = seconds(lambda: next(iter(far)))
    show("  resuming at sample 10^11 of 10^12: first number after, ms", first * 1e3)


def measure(n: int, block: int, span: int) -> tuple[float, float]:
    """The variance ratio of a block order and of ``permuted``, each over EPOCHS epochs."""
    order, positions, mean = BlockOrder(n, block, span), np.arange(n // BATCH * BATCH), (n - 1) / 2
    true = (n**2 - 1) / 12 / BATCH * (n - BATCH) / (n - 1)
    blocked, full = [], []
    for epoch in range(EPOCHS):
        for found, samples in (
            (blocked, order.at(positions, epoch)),
            (full, permuted(positions, n, 0, epoch)),
        ):
            found.append(np.mean((samples.reshape(-1, BATCH).mean(axis=1) - mean) ** 2))
    return float(np.mean(blocked) / true), float(np.mean(full) / true)


def main() -> None:
    for n in SIZES:
        speeds(n)
    sampler_speed(1_500_000)
    n = 200_000
    for block in (2, 16, 64):
        default = default_span(n, block, BATCH)
        for span in (default, max(default // 8, 1)):
            blocked, full = measure(n, block, span)
            expected = BlockOrder(n, block, span).variance_ratio(BATCH)
            named = f"n = {n:,}, blocks of {block}, span {span}{' (default)' if span == default else ''}"
            aim = f"expected: {expected:.3f}" + (", aim: 1.05" if span == default else "")
            show(f"  {named}: variance ratio", blocked, aim)
            show("    a full permutation, measured in the same way", full, "expected: 1.000")


if __name__ == "__main__":
    main()
