"""Loaders side by side: slots over fresh shared memory, and threads beside a training step.

Pairs of 2 x 52,920 float32. With worker processes a batch is summed, as a step would read it, or left
untouched, as if it went straight to a device. The training step is matrix products on one torch thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from common import BATCH, SAMPLES, Tones, interleaved, ratio, show, workspace
from torch.utils.data import DataLoader

from parbake import StoreDataset, bake
from parbake.loaders.batch_loader import BatchLoader

ROUNDS = 7
STEP_S = 0.020


def epoch(loader: Iterable[dict[str, torch.Tensor]], touch: bool) -> None:
    for batch in loader:
        if touch:
            for tensor in batch.values():
                tensor.sum()


def workers(path: Path) -> None:
    """``dataset.loader`` over torch's own, each with two workers that stay."""
    dataset = StoreDataset(path)
    loaders: dict[str, Iterable[dict[str, torch.Tensor]]] = {
        "DataLoader, 2 workers": DataLoader(
            dataset, BATCH, shuffle=True, num_workers=2, persistent_workers=True
        ),
        "DataLoader, no workers": DataLoader(dataset, BATCH, shuffle=True),
        "dataset.loader, 2 workers": dataset.loader(BATCH, shuffle=True, num_workers=2),
        "dataset.loader, no workers": dataset.loader(BATCH, shuffle=True, num_workers=0),
        "BatchLoader, 1 thread": BatchLoader(dataset, BATCH, shuffle=True),
        "BatchLoader, 2 threads": BatchLoader(dataset, BATCH, shuffle=True, threads=2),
    }
    for touch in (True, False):
        runs = {
            name: lambda loader=loader, touch=touch: epoch(loader, touch)  # type: ignore[misc]
            for name, loader in loaders.items()
        }
        interleaved(runs, 1)  # starts workers and touches memory
        taken = interleaved(runs, ROUNDS)
        print(f" every batch {'summed' if touch else 'untouched'}")
        for name, times in taken.items():
            show(f"  {name}: samples/s", SAMPLES / statistics.median(times))
        plain, alone, shared, slots, *_ = taken.values()
        show("  dataset.loader over DataLoader", ratio(plain, shared), "aim: 6" if touch else "")
        show("  the same without workers", ratio(alone, slots))


def training_step() -> Callable[[], object]:
    """Matrix products that take ``STEP_S`` together."""
    a = torch.rand(256, 256)
    began = time.perf_counter()
    for _ in range(200):
        a @ a
    count = round(STEP_S / ((time.perf_counter() - began) / 200))
    return lambda: [a @ a for _ in range(count)]


class Timed:
    """How long a dataset takes to read its batches, noted where they are read."""

    def __init__(self, dataset: StoreDataset) -> None:
        self.taken: list[float] = []
        self._read = dataset._batch
        dataset._batch = self  # type: ignore[assignment, method-assign]

    def __call__(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        batch = self._read(*arguments)
        self.taken.append(time.perf_counter() - began)
        return batch


def beside_a_step(path: Path) -> None:
    """One thread that reads while the loop computes, over the same thread while the loop only waits."""
    torch.set_num_threads(1)
    dataset, step = StoreDataset(path), training_step()
    timed = Timed(dataset)
    loader = BatchLoader(dataset, BATCH, shuffle=True)

    def loop(compute: bool) -> tuple[float, float, float]:
        """Seconds in the loop, seconds of it that waited after the first batch, seconds to read a batch."""
        timed.taken.clear()
        batches = iter(loader)
        next(batches)
        began, waited = time.perf_counter(), 0.0
        while True:
            if compute:
                step()
            asked = time.perf_counter()
            if next(batches, None) is None:
                break
            waited += time.perf_counter() - asked
        return time.perf_counter() - began, waited, statistics.median(timed.taken)

    loop(True)
    found = [(loop(False), loop(True)) for _ in range(ROUNDS)]
    alone, beside = ([pair[side] for pair in found] for side in (0, 1))
    show("  alone: samples/s", BATCH / statistics.median(read for _, _, read in alone))
    show("  beside a step of 20 ms: samples/s", BATCH / statistics.median(read for _, _, read in beside))
    both = ratio([read for _, _, read in alone], [read for _, _, read in beside])
    show("  its speed beside a step, over its speed alone", both, "aim: 0.8")
    share = statistics.median(waited / whole for whole, waited, _ in beside)
    show("  share of the loop that waits for data, %", 100 * share, "aim: below 2")


def main() -> None:
    with workspace() as folder:
        for codec in ("raw", "lz4"):
            bake(Tones(), folder / f"{codec}.zarr", codec=codec, progress=False).close()
        for codec in ("raw", "lz4"):
            print(codec)
            workers(folder / f"{codec}.zarr")
        print("lz4, BatchLoader with one thread")
        beside_a_step(folder / "lz4.zarr")


if __name__ == "__main__":
    main()
