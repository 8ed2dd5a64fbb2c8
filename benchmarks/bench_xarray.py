"""Random samples through xarray's engine "parbake" over its engine "zarr", and the mean by dask.

1,000 samples of 2 x 52,920 float32 in one directory, warm; medians of interleaved rounds. Ratios are speeds:
one sample at a time (``isel(sample=i).values``), 64 random ones in one ``isel``, and the mean of all with
chunks as each engine proposes them (``chunks={}``), and with chunks of a slab for both; and what is left of
our own reader's speed with xarray around it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from common import LENGTH, Tones, interleaved, ratio, show, workspace

import parbake

SAMPLES, BATCH, SINGLE, ROUNDS, MEANS = 1_000, 64, 64, 11, 3
FIELDS = ("x", "y")


def opened(path: Path, engine: str) -> xr.Dataset:
    return xr.open_dataset(path, engine=engine, cache=False)


def one_by_one(dataset: xr.Dataset) -> Callable[[], None]:
    rng = np.random.default_rng(1)

    def read() -> None:
        for sample in rng.integers(0, SAMPLES, SINGLE).tolist():
            for name in FIELDS:
                _ = dataset[name].isel(sample=sample).values

    return read


def at_once(dataset: xr.Dataset) -> Callable[[], None]:
    rng = np.random.default_rng(1)

    def read() -> None:
        samples = rng.permutation(SAMPLES)[:BATCH]
        for name in FIELDS:
            _ = dataset[name].isel(sample=samples).values

    return read


def by_store(store: parbake.Store) -> Callable[[], None]:
    rng = np.random.default_rng(1)

    def read() -> None:
        for sample in rng.integers(0, SAMPLES, SINGLE).tolist():
            for name in FIELDS:
                _ = store[name][sample]

    return read


def mean(path: Path, engine: str, chunks: dict[str, int]) -> Callable[[], None]:
    def run() -> None:
        with xr.open_dataset(path, engine=engine, chunks=chunks) as dataset:
            dataset["x"].mean("sample").compute()

    return run


def bench(codec: str, path: Path) -> None:
    ours, theirs = opened(path, "parbake"), opened(path, "zarr")
    for sample in range(SAMPLES):  # every chunk checked
        ours["x"].isel(sample=sample).load(), ours["y"].isel(sample=sample).load()
    for what, make in (("one at a time", one_by_one), (f"{BATCH} in one isel", at_once)):
        taken = interleaved({"parbake": make(ours), "zarr": make(theirs)}, ROUNDS)
        show(f"{codec}: {what}, parbake / zarr", ratio(taken["zarr"], taken["parbake"]), "aim 10")
    with parbake.open_store(path) as store:
        store.read(range(SAMPLES))
        taken = interleaved({"store": by_store(store), "parbake": one_by_one(ours)}, ROUNDS)
    show(
        f"{codec}: one at a time, through xarray / the store itself", ratio(taken["store"], taken["parbake"])
    )
    slab = ours["x"].encoding["preferred_chunks"]["sample"]
    for what, chunks in (("as proposed", {}), ("of a slab", {"sample": slab})):
        runs = {engine: mean(path, engine, chunks) for engine in ("parbake", "zarr")}
        taken = interleaved(runs, MEANS)
        show(f"{codec}: dask's mean, chunks {what}, parbake / zarr", ratio(taken["zarr"], taken["parbake"]))


def main() -> None:
    with workspace() as folder:
        for codec in ("raw", "lz4"):
            path = folder / f"{codec}.zarr"
            parbake.bake(Tones(SAMPLES, LENGTH), path, codec=codec, progress=False).close()
            bench(codec, path)


if __name__ == "__main__":
    main()
