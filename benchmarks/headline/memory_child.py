"""One epoch of a light student in a process of its own; prints its peaks of memory.

memory_child.py "list in RAM" cached_train.pt; memory_child.py BatchLoader|DataLoader train.zarr
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.utils.data import DataLoader

import parbake

BATCH = 64
EVERY_S = 0.01
FIELDS = ("x", "y", "f0", "dB")


def resident() -> dict[str, int]:
    """Bytes now, from the kernel: private (anonymous and shared memory) and mapped (pages of files)."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines if words[0].startswith("Rss")}
    private, mapped = kib["RssAnon"] + kib["RssShmem"], kib["RssFile"]
    return {
        "private_nbytes": private * 1024,
        "mapped_nbytes": mapped * 1024,
        "resident_nbytes": (private + mapped) * 1024,
    }


class Peaks:
    """Looks every ``EVERY_S`` seconds while its context lasts; ``beyond``: the peaks over what was before."""

    def __init__(self) -> None:
        self._before = resident()
        self._most = dict(self._before)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _look(self) -> None:
        for name, value in resident().items():
            self._most[name] = max(self._most[name], value)

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            self._look()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def beyond(self) -> dict[str, int]:
        return {name: value - self._before[name] for name, value in self._most.items()}


def batches_of(way: str, path: str) -> Iterable[Any]:
    if way == "list in RAM":
        return DataLoader(torch.load(path), batch_size=BATCH, shuffle=True)
    dataset = parbake.StoreDataset(path, FIELDS, as_tuple=True)
    if way == "DataLoader":
        return DataLoader(dataset, batch_size=BATCH, shuffle=True)
    return parbake.BatchLoader(dataset, BATCH, shuffle=True)


def train(batches: Iterable[Any]) -> None:
    student = nn.Conv1d(1, 1, 3, padding=1)
    weights = tuple(student.parameters())
    for x, y, _f0_hz, _level_db in batches:
        loss = (student(x.float().transpose(1, 2)) - y.float().transpose(1, 2)).square().mean()
        with torch.no_grad():  # by hand: importing torch.optim takes longer than all else on few samples
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight -= 1e-3 * gradient


def main() -> None:
    way, path = sys.argv[1:]
    torch.set_num_threads(1)
    for name in ("StoreDataset", "BatchLoader"):  # imported now, in all ways alike
        getattr(parbake, name)
    train([(torch.zeros(BATCH, 100, 1), torch.zeros(BATCH, 100, 1), 0, 0)])  # what torch loads at first use
    with Peaks() as peaks:
        train(batches_of(way, path))
    print(json.dumps(peaks.beyond()))


if __name__ == "__main__":
    main()
