"""One run over all six mesh pairs in a process of its own; prints seconds by way, imports not counted.

mesh_child.py pickle FOLDER; mesh_child.py bake|open FOLDER CACHE
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

PAIRS = tuple(combinations(("coarse", "medium", "fine", "finest"), 2))
READ_STEPS = 16


def load_pickles(folder: Path) -> dict[str, float]:
    began = time.perf_counter()
    for file in sorted(folder.glob("*.pkl")):
        with file.open("rb") as opened:
            pickle.load(opened)
    return {"pickle.load": time.perf_counter() - began}


def make_or_open(job: str, folder: Path, cache: Path) -> dict[str, float]:
    """``open``: also the seconds of opening and then reading every step of every pair once."""
    with tempfile.TemporaryDirectory() as name:
        _once_in_small(Path(name))
    began = time.perf_counter()
    stores = [cached_pair(folder / f"{one}.npz", folder / f"{other}.npz", cache) for one, other in PAIRS]
    opened = time.perf_counter() - began
    if job == "bake":
        return {"bake": opened}
    for store in stores:
        for start in range(0, store.samples, READ_STEPS):
            store.read(range(start, min(start + READ_STEPS, store.samples)))
    return {"open": opened, "open and read": time.perf_counter() - began}


def cached_pair(source: Path, target: Path, cache: Path) -> Any:
    import parbake
    from parbake.producers import MeshPair

    return parbake.cached(MeshPair(source, target), cache, progress=False)


def _once_in_small(folder: Path) -> None:
    """Bakes and opens one triangle, so that all that is imported at first use is there."""
    np.savez(
        folder / "triangle.npz",
        points=np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        cells=np.array([[0, 1, 2]]),
        times=np.arange(2.0),
        fields=np.zeros((2, 3, 1), np.float32),
        field_names=np.array(["p"]),
    )
    for _ in range(2):
        store = cached_pair(folder / "triangle.npz", folder / "triangle.npz", folder / "cache")
        store.read(range(2))
        store.close()


def main() -> None:
    job, *folders = sys.argv[1:]
    first, last = Path(folders[0]), Path(folders[-1])
    print(json.dumps(load_pickles(first) if job == "pickle" else make_or_open(job, first, last)))


if __name__ == "__main__":
    main()
