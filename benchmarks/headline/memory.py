"""Memory of a training run: from a store, and from a list of tensors in RAM, for few and for many samples."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import parbake

CHILD = Path(__file__).with_name("memory_child.py")
LIST, BATCH_LOADER, DATA_LOADER = "list in RAM", "BatchLoader", "DataLoader"


@dataclass(frozen=True)
class Scale:
    """``steps``: of x and of y each; ``ways``: what is measured."""

    samples: tuple[int, int]
    steps: int
    ways: tuple[str, ...]


FULL = Scale((2_000, 20_000), 5_292, (LIST, BATCH_LOADER, DATA_LOADER))  # 0.12 s: a tenth of the guide's
QUICK = Scale((20, 200), 500, (LIST, BATCH_LOADER))


@dataclass(frozen=True)
class Row:
    """Peaks in bytes beyond what the process had after its imports; ``resident``: the sum at its peak."""

    way: str
    samples: int
    file_nbytes: int
    private_nbytes: int
    mapped_nbytes: int
    resident_nbytes: int


@dataclass(frozen=True)
class Result:
    steps: int
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Result:
        return cls(stored["steps"], tuple(Row(**row) for row in stored["rows"]))

    def row(self, way: str, samples: int) -> Row:
        return next(r for r in self.rows if (r.way, r.samples) == (way, samples))


def noise(index: int, steps: int) -> dict[str, NDArray[np.float32] | float]:
    """Noise x and its clipped form y: memory does not depend on what they are."""
    x = np.random.default_rng(index).standard_normal((steps, 1), np.float32)
    return {"x": x, "y": np.tanh(x), "f0": float(index), "dB": -float(index)}


def measure(folder: Path, quick: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Peaks of one epoch, each in a fresh process."""
    scale = QUICK if quick else FULL
    rows = []
    for samples in scale.samples:
        tell(f"memory: {samples:,} samples: writing them")
        path, listed = folder / "noise.zarr", folder / "cached_train.pt"
        producer = parbake.from_function(partial(noise, steps=scale.steps), samples)
        with parbake.bake(producer, path, progress=False) as store:
            _save_list(store, listed)
        for way in scale.ways:
            tell(f"memory: {samples:,} samples: {way}")
            file = listed if way == LIST else path
            rows.append(Row(way, samples, _file_nbytes(file), **_peaks(way, file)))
        listed.unlink()
        shutil.rmtree(path)
    return asdict(Result(scale.steps, tuple(rows)))


def _save_list(store: parbake.Store, path: Path) -> None:
    """The guide's cached_train.pt: a list of tuples (x, y, f0, dB) of float64 tensors."""
    samples = []
    for start in range(0, store.samples, 64):
        batch = store.read(range(start, min(start + 64, store.samples)))
        for i in range(len(batch["x"])):
            parts = (batch[name][i].astype(np.float64) for name in ("x", "y", "f0", "dB"))
            samples.append(tuple(torch.tensor(part) for part in parts))
    torch.save(samples, path)


def _file_nbytes(path: Path) -> int:
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())


def _peaks(way: str, path: Path) -> dict[str, int]:
    run = [sys.executable, str(CHILD), way, str(path)]
    return dict(json.loads(subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout))
