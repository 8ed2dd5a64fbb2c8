"""What the benchmarks share: a cheap audio-like producer, and ratios of interleaved runs."""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parbake import Field

SAMPLES, LENGTH, BATCH = 2_000, 52_920, 64


@dataclass(frozen=True)
class Tones:
    """``samples`` pairs of a tone x and its distortion y, float32 [length, 1]; computed once, then free."""

    samples: int = SAMPLES
    length: int = LENGTH
    batch_size: int = BATCH
    name = "tones"
    version = 1

    def schema(self) -> Mapping[str, Field]:
        return {name: Field((self.length, 1), "float32", ("time", "channel")) for name in ("x", "y")}

    def invalidation_keys(self) -> Mapping[str, object]:
        return {"length": self.length}

    def __len__(self) -> int:
        return self.samples

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        x, y = _pool(self.length)
        first = start % (len(x) // 2)
        return {"x": x[first : first + stop - start], "y": y[first : first + stop - start]}


@dataclass(frozen=True)
class Vectors:
    """``samples`` random walks v, float32 [256]."""

    samples: int = 1_000_000
    batch_size: int = 8_192
    name = "vectors"
    version = 1

    def schema(self) -> Mapping[str, Field]:
        return {"v": Field((256,), "float32", ("step",))}

    def invalidation_keys(self) -> Mapping[str, object]:
        return {}

    def __len__(self) -> int:
        return self.samples

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        steps = np.random.default_rng(start).standard_normal((stop - start, 256), np.float32)
        return {"v": steps.cumsum(axis=1, dtype=np.float32)}


@functools.cache
def _pool(length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """512 tones, MIDI notes 21 to 127 at random levels, at 44.1 kHz, and a soft clipper's answer."""
    rng = np.random.default_rng(0)
    f0_hz = 440 * 2 ** ((rng.uniform(21, 127, 512) - 69) / 12)
    phase = 2 * np.pi * rng.uniform(size=512)
    time_s = np.arange(length) / 44_100
    x = rng.uniform(size=(512, 1)) * np.sin(2 * np.pi * f0_hz[:, None] * time_s + phase[:, None])
    y = np.tanh(4 * x + 0.3) - np.tanh(0.3)
    return x.astype(np.float32)[..., None], y.astype(np.float32)[..., None]


_PEAK = """
import parbake, parbake.progress, parbake.producers.bake, numcodecs.blosc
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
producer.produce(0, 64, ("x", "y"))
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of making the tones
before = peak()
parbake.bake(producer, sys.argv[1], progress=False)
print(peak() - before)
"""


def peak_nbytes(made: str, folder: Path, samples: int) -> int:
    """Memory that baking takes beyond the producer's own, in a fresh process.

    ``made``: code that imports sys and makes ``producer``, of ``int(sys.argv[2])`` samples.
    """
    run = [sys.executable, "-c", made + _PEAK, str(folder), str(samples)]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, taken in turn, so that drift of the machine meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    return taken


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median of the pairwise ratios."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def show(what: str, value: float, aim: str = "") -> None:
    print(f"{what:<74}{value:>8.2f}  {aim}", flush=True)


@contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder on the disk that the current folder lies on."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        yield Path(folder)
