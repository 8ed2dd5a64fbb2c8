"""Mesh pairs: a whole bake beside SciPy per field and step, and how soon a cached pair is open again.

``--data FOLDER`` holds coarse.npz, medium.npz, fine.npz, finest.npz, as for bench_interpolate.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
from bench_interpolate import STEPS, cylinder_pairs, per_field_and_step
from common import show, workspace

NAMES = ("coarse", "medium", "fine", "finest")
SECOND = """
import sys, time
import parbake, parbake.progress, pydantic, numcodecs.blosc, zlib
from parbake.producers import MeshPair
from parbake.producers.cached import cached
import parbake.producers.meshes.pair
for name in ("TypeAdapter", "BeforeValidator", "StrictBool", "ValidationError", "ConfigDict"):
    getattr(pydantic, name)
began = time.perf_counter()
store = cached(MeshPair(sys.argv[1], sys.argv[2]), sys.argv[3], progress=False, rehash=len(sys.argv) > 4)
taken = time.perf_counter() - began
assert store.samples == 1000
print(taken)
"""


def lengthen(data: Path, folder: Path) -> None:
    """The series of ``data`` with their steps repeated to 1,000."""
    for name in NAMES:
        loaded = dict(np.load(data / f"{name}.npz"))
        loaded["fields"] = np.tile(loaded["fields"], (STEPS // len(loaded["times"]), 1, 1))
        loaded["times"] = np.arange(STEPS) * 0.025
        np.savez(folder / f"{name}.npz", **loaded)
    time.sleep(2.5)  # hashes of files are remembered once these are two seconds old


def bake_all(folder: Path) -> float:
    """Seconds of baking all pairs, operators and hashing included."""
    from parbake.producers import MeshPair
    from parbake.producers.cached import cached

    began = time.perf_counter()
    for one, other in combinations(NAMES, 2):
        pair = MeshPair(folder / f"{one}.npz", folder / f"{other}.npz")
        cached(pair, folder / "cache", progress=False).close()
    return time.perf_counter() - began


def second_call_s(folder: Path, *rehash: str) -> float:
    """Median seconds of ``cached`` in fresh processes, imports apart."""
    files = [str(folder / f"{name}.npz") for name in ("fine", "finest")]
    run = [sys.executable, "-c", SECOND, *files, str(folder / "cache"), *rehash]
    taken = [float(subprocess.run(run, capture_output=True, text=True, check=True).stdout) for _ in range(7)]
    return float(np.median(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parents[2] / "shared/data/cylinder"
    parser.add_argument("--data", type=Path, default=default)
    data = parser.parse_args().data
    if not data.is_dir():
        print(f"{data} is absent; nothing to measure")
        return
    with workspace() as folder:
        os.environ["PARBAKE_CACHE"] = str(folder / "home")
        lengthen(data, folder)
        scipy_s = sum(per_field_and_step(pair) for pair in cylinder_pairs(data))
        bake_s = bake_all(folder)
        print(
            f"six pairs, {STEPS:,} steps, 4 fields: SciPy {scipy_s:,.0f} s (scaled up), bake {bake_s:.1f} s"
        )
        show("whole bake, over LinearNDInterpolator per field and step", scipy_s / bake_s, "aim: 60")
        show(
            "second cached() of the finest pair, ms, hashes remembered",
            1e3 * second_call_s(folder),
            "aim: 50",
        )
        show("the same, files hashed again, ms", 1e3 * second_call_s(folder, "rehash"))


if __name__ == "__main__":
    main()
