"""Random rows of HDF5 files that h5py wrote, by parbake and by h5py: 2,000 x 16,384 float32, batches of 64.

Warm, two worker processes, each with its share and a reused buffer. Ratios are speeds: ours over h5py's.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
from common import BATCH, interleaved, ratio, show, workspace

from parbake.store.chunks import Access
from parbake.store.foreign.hdf5 import open_contents
from parbake.store.reader import CACHE_NBYTES, Reader

SAMPLES, LENGTH, BATCHES, ROUNDS, WORKERS = 2_000, 16_384, 8, 5, 2
LAYOUTS: dict[str, tuple[dict[str, object], str]] = {
    "chunks [1, 16384], gzip and shuffle": (
        {"chunks": (1, LENGTH), "compression": "gzip", "shuffle": True},
        "aim 2",
    ),
    "chunks as h5py guesses, gzip and shuffle": (
        {"chunks": True, "compression": "gzip", "shuffle": True},
        "aim 2",
    ),
    "contiguous": ({}, "aim 3"),
}


def rows() -> np.ndarray:
    """Tones with noise, of 16 bits: about as compressible as a recording."""
    rng = np.random.default_rng(0)
    time = np.arange(LENGTH) / 44_100
    f0_hz = rng.uniform(50, 2_000, (SAMPLES, 1))
    found = np.sin(2 * np.pi * f0_hz * time) + 0.01 * rng.standard_normal((SAMPLES, LENGTH))
    return (np.round(found * 2**13) / 2**13).astype(np.float32)


def by_parbake(path: Path) -> Callable[[np.ndarray, np.ndarray], None]:
    contents = open_contents(path)
    reader = Reader(contents.maps, Access(contents.files, "first", True, ""), CACHE_NBYTES)
    return lambda index, out: reader.read_field("x", index, out)


def by_h5py(path: Path) -> Callable[[np.ndarray, np.ndarray], None]:
    dataset = h5py.File(path)["x"]

    def read(index: np.ndarray, out: np.ndarray) -> None:
        for row, sample in enumerate(index.tolist()):  # faster than one selection of many rows
            dataset.read_direct(out, np.s_[sample], np.s_[row])

    return read


def worker(
    make: Callable[[Path], Callable[[np.ndarray, np.ndarray], None]], path: Path, pipe: Connection
) -> None:
    read, out = make(path), np.empty((BATCH, LENGTH), np.float32)
    read(np.arange(BATCH), out)
    pipe.send(None)
    while (seed := pipe.recv()) is not None:
        order = np.random.default_rng(seed).permutation(SAMPLES)
        for batch in order[: BATCH * BATCHES].reshape(BATCHES, BATCH):
            read(batch, out)
        pipe.send(float(out[0, 0]))


class Workers:
    """Processes that read at the same time; a call is one round of each."""

    def __init__(self, make: Callable[[Path], Callable[[np.ndarray, np.ndarray], None]], path: Path) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipes = []
        self.round = 0
        for _ in range(WORKERS):
            here, there = fork.Pipe()
            fork.Process(target=worker, args=(make, path, there), daemon=True).start()
            here.recv()
            self.pipes.append(here)

    def __call__(self) -> None:
        self.round += 1
        for number, pipe in enumerate(self.pipes):
            pipe.send(self.round * WORKERS + number)
        for pipe in self.pipes:
            pipe.recv()

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)


def main() -> None:
    data = rows()
    with workspace() as folder:
        for number, (name, (made, aim)) in enumerate(LAYOUTS.items()):
            path = folder / f"{number}.h5"
            with h5py.File(path, "w") as file:
                dataset = file.create_dataset("x", data=data, **made)
                print(
                    f"{name}: {dataset.chunks}, {dataset.id.get_storage_size() / data.nbytes:.2f} of the size"
                )
            runs = {"ours": Workers(by_parbake, path), "h5py": Workers(by_h5py, path)}
            taken = interleaved(runs, ROUNDS + 1)
            for one in runs.values():
                one.close()
            show(name, ratio(taken["h5py"][1:], taken["ours"][1:]), aim)
            best = {who: BATCH * BATCHES * WORKERS / min(times) for who, times in taken.items()}
            print("   rows/s: " + ", ".join(f"{who} {rate:,.0f}" for who, rate in best.items()))


if __name__ == "__main__":
    main()
