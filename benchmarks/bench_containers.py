"""Random batches from a zip and an HDF5 file over the directory's; converting over copying.

2,000 samples of 2 x 52,920 float32, batches of 64, warm. Ratios are speeds. Copying: ``cp -r`` of the source,
as it is and followed by ``sync`` of what it wrote, since ``convert`` leaves nothing that a power cut would
lose.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from common import BATCH, LENGTH, SAMPLES, Tones, interleaved, ratio, seconds, show, workspace

import parbake
from parbake.producers.convert import convert
from parbake.store.store import Store

BATCHES, ROUNDS, COPIES = 16, 11, 5
SUFFIXES = {"zip": ".zarr.zip", "HDF5": ".h5"}


def reading(store: Store) -> Callable[[], None]:
    out = {name: np.empty((BATCH, LENGTH, 1), np.float32) for name in ("x", "y")}
    rng = np.random.default_rng(1)

    def read() -> None:
        order = rng.permutation(SAMPLES)[: BATCH * BATCHES].reshape(BATCHES, BATCH)
        for batch in order:
            store.read(batch, out=out)

    return read


def bench_reading(codec: str, paths: dict[str, Path]) -> None:
    stores = {name: parbake.open_store(path) for name, path in paths.items()}
    for store in stores.values():
        store.read(range(SAMPLES))  # every chunk checked
    runs = {name: reading(store) for name, store in stores.items()}
    taken = interleaved(runs, ROUNDS)
    for name in SUFFIXES:
        show(f"{codec}: reading {name} / directory", ratio(taken["directory"], taken[name]), "aim 0.9")


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def copied(source: Path, target: Path, sync: bool) -> Callable[[], None]:
    def copy() -> None:
        subprocess.run(["cp", "-r", source, target], check=True)
        if sync:
            files = [file for file in target.rglob("*") if file.is_file()] if target.is_dir() else [target]
            subprocess.run(["sync", *files], check=True)

    return copy


def converted(source: Path, target: Path) -> None:
    convert(source, target, progress=False).close()


def bench_converting(codec: str, paths: dict[str, Path], folder: Path) -> None:
    names = [("directory", "zip"), ("directory", "HDF5"), ("zip", "directory"), ("HDF5", "directory")]
    for source, target in names:
        path = folder / f"converted{SUFFIXES.get(target, '.zarr')}"
        runs: dict[str, Callable[[], None]] = {
            "cp": copied(paths[source], folder / "copied", sync=False),
            "cp and sync": copied(paths[source], folder / "copied", sync=True),
            "convert": partial(converted, paths[source], path),
        }
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(COPIES):
            for name, run in runs.items():
                remove(folder / "copied")
                remove(path)
                os.sync()
                taken[name].append(seconds(run))
        for name, aim in (("cp", "aim 0.7"), ("cp and sync", "")):
            show(f"{codec}: {source} to {target} / {name}", ratio(taken[name], taken["convert"]), aim)


def main() -> None:
    with workspace() as folder:
        for codec in ("raw", "lz4"):
            paths = {"directory": folder / f"{codec}.zarr"}
            parbake.bake(Tones(), paths["directory"], codec=codec, progress=False).close()
            for name, suffix in SUFFIXES.items():
                paths[name] = paths["directory"].with_suffix(suffix)
                convert(paths["directory"], paths[name], progress=False).close()
            bench_reading(codec, paths)
            bench_converting(codec, paths, folder)
            for path in paths.values():
                remove(path)


if __name__ == "__main__":
    main()
