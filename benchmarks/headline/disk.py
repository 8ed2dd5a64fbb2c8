"""Bytes a sample on disk: the guide's pickle of float64 tensors, and stores of the same tones."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import parbake
from headline.tasks import Task, tasks

FIELDS = ("x", "y", "f0", "dB")  # of a tuple of the guide's cache
PROJECTED = (1_600, 10_000, 50_000, 100_000)  # the guide's table
GUIDE_TABLE = ("80 MB", "500 MB", "2.5 GB", "5 GB")
GUIDE_NBYTES = 50_000  # a sample, as the guide says
TORCH_SAVE, PICKLE = "torch.save, float64", "pickle of arrays, float64"
STORES = {  # name: dtype, codec, suffix
    "Zarr raw, float64": ("float64", "raw", ".zarr"),
    "Zarr lz4, float64": ("float64", "lz4", ".zarr"),
    "Zarr raw": ("float32", "raw", ".zarr"),
    "Zarr lz4": ("float32", "lz4", ".zarr"),
    "Zarr zstd": ("float32", "zstd", ".zarr"),
    "HDF5 raw": ("float32", "raw", ".h5"),
    "HDF5 lz4": ("float32", "lz4", ".h5"),
    "HDF5 zstd": ("float32", "zstd", ".h5"),
}

Arrays = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Tones:
    """What one teacher's caches take; ``nbytes`` by name, a sample; ``steps``: of x and of y each."""

    teacher: str
    samples: int
    steps: int
    sample_rate_hz: float
    nbytes: dict[str, float]


@dataclass(frozen=True)
class Result:
    tones: tuple[Tones, ...]

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Result:
        return cls(tuple(Tones(**tones) for tones in stored["tones"]))


def kept(index: int, arrays: Arrays, dtype: str) -> dict[str, NDArray[Any]]:
    """Sample ``index`` of ``arrays`` [sample, ...], its signals as ``dtype``."""
    sample = {name: arrays[name][index] for name in FIELDS}
    return sample | {name: sample[name].astype(dtype) for name in ("x", "y")}


def measure(folder: Path, quick: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    samples = 2 if quick else 128
    found = []
    for task in tasks(quick):
        tell(f"disk: {task.name}: {samples} tones")
        producer = task.producer(samples, "teacher", "float64")
        batches = [producer.produce(i, min(i + 64, samples), FIELDS) for i in range(0, samples, 64)]
        arrays = {name: np.concatenate([np.asarray(batch[name]) for batch in batches]) for name in FIELDS}
        nbytes = {name: count / samples for name, count in _pickled(folder, arrays).items()}
        for name, (dtype, codec, suffix) in STORES.items():
            tell(f"disk: {task.name}: {name}")
            copied = parbake.from_function(partial(kept, arrays=arrays, dtype=dtype), samples)
            nbytes[name] = _stored(folder / f"kept{suffix}", copied, codec) / samples
        found.append(_tones(task, producer.sample_rate, arrays, nbytes))
    return asdict(Result(tuple(found)))


def _tones(task: Task, sample_rate_hz: float, arrays: Arrays, nbytes: dict[str, float]) -> Tones:
    samples, steps = arrays["x"].shape[:2]
    return Tones(task.name, samples, steps, sample_rate_hz, nbytes)


def _pickled(folder: Path, arrays: Arrays) -> dict[str, int]:
    """Bytes of a list of tuples, as the guide's cached_train.pt; and of the same as NumPy arrays."""
    samples = [tuple(arrays[name][i] for name in FIELDS) for i in range(len(arrays["x"]))]
    tensors = [tuple(torch.tensor(part) for part in sample) for sample in samples]
    torch.save(tensors, folder / "cached.pt")
    (folder / "cached.pkl").write_bytes(pickle.dumps(samples))
    sizes = {
        way: (folder / f"cached.{end}").stat().st_size for way, end in ((TORCH_SAVE, "pt"), (PICKLE, "pkl"))
    }
    for end in ("pt", "pkl"):
        (folder / f"cached.{end}").unlink()
    return sizes


def _stored(path: Path, producer: parbake.Producer, codec: str) -> int:
    """Bytes of a whole store, metadata and checksums included."""
    parbake.bake(producer, path, codec=codec, progress=False).close()
    if path.is_file():
        nbytes = path.stat().st_size
        path.unlink()
    else:
        nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path)
    return nbytes
