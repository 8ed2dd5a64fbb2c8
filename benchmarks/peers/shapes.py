"""The shapes that are compared, their samples on disk, and the orders in which they are read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Blocks = Callable[[int, int], Mapping[str, NDArray]]  # start, stop -> {field: [stop - start, *shape]}
_POOL = 256  # different images; their copies are shifted


@dataclass(frozen=True)
class Shape:
    """What one sample is, how many there are, and how many are read together.

    ``samples`` are a multiple of ``batch`` times the workers, so that no loader pads or drops any.
    """

    key: str
    title: str
    fields: Mapping[str, tuple[tuple[int, ...], str]]  # shape of one sample, dtype
    samples: int
    batch: int
    block: Callable[[], Blocks]

    def scaled(self, scale: float) -> int:
        """A number of samples in the proportion ``scale``, at least four batches."""
        return max(2, round(self.samples * scale / self.batch / 2)) * self.batch * 2


def _tones() -> Blocks:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from common import Tones

    tones = Tones()

    def block(start: int, stop: int) -> Mapping[str, NDArray]:
        return {name: array[:, :, 0] for name, array in tones.produce(start, stop, ("x", "y")).items()}

    return block


def _meshes() -> Blocks:
    """Sums of eight waves over nodes whose amplitudes change slowly in time, 40 steps of 4 channels."""
    rng = np.random.default_rng(0)
    position = np.linspace(0, 2 * np.pi, 43_200, dtype=np.float32)
    waves = [[np.sin(rng.uniform(1, 20) * position + rng.uniform(0, 6)) for _ in range(4)] for _ in range(8)]
    basis = np.stack([np.stack(wave, axis=-1) for wave in waves]).reshape(8, -1).astype(np.float32)
    step = np.arange(40)[:, None]

    def block(start: int, stop: int) -> Mapping[str, NDArray]:
        phase = np.arange(start, stop)[:, None, None] + np.arange(8)
        amplitude = np.sin(0.05 * step * (1 + np.arange(8)) + phase).astype(np.float32)
        return {"fields": (amplitude @ basis).reshape(-1, 40, 43_200, 4)}

    return block


def _vectors() -> Blocks:
    """Standard normal numbers: embeddings do not compress either."""

    def block(start: int, stop: int) -> Mapping[str, NDArray]:
        return {"x": np.random.default_rng(start).standard_normal((stop - start, 256), np.float32)}

    return block


def _images() -> Blocks:
    """Smooth pictures of 12 bits with a little noise, as a scanner gives them."""
    rng = np.random.default_rng(0)
    line = np.linspace(0, 2 * np.pi, 224)
    frequency = rng.uniform(0.5, 4, (2, _POOL, 3, 1, 1))
    smooth = np.sin(frequency[0] * line[:, None]) * np.cos(frequency[1] * line)
    pool = (2_000 * (1 + smooth) + rng.normal(0, 8, smooth.shape)).astype(np.int16)

    def block(start: int, stop: int) -> Mapping[str, NDArray]:
        images = [np.roll(pool[i % _POOL], i // _POOL, axis=-1) for i in range(start, stop)]
        return {"image": np.stack(images)}

    return block


SHAPES = {
    shape.key: shape
    for shape in (
        Shape(
            "a",
            "audio pairs, 2 x 52,920 float32",
            {"x": ((52_920,), "float32"), "y": ((52_920,), "float32")},
            2_048,
            64,
            _tones,
        ),
        Shape(
            "b",
            "mesh steps, 40 x 43,200 x 4 float32",
            {"fields": ((40, 43_200, 4), "float32")},
            32,
            4,
            _meshes,
        ),
        Shape("c", "vectors of 256 float32", {"x": ((256,), "float32")}, 1_048_576, 1_024, _vectors),
        Shape("d", "images, 3 x 224 x 224 int16", {"image": ((3, 224, 224), "int16")}, 2_048, 64, _images),
    )
}


@dataclass(frozen=True)
class Source:
    """The samples as ``source/<field>.npy`` under ``work``, and ``checksums.npy``, uint64 for each sample."""

    work: Path
    batch: int

    @property
    def folder(self) -> Path:
        return self.work / "source"

    def arrays(self) -> dict[str, NDArray]:
        """Read-only maps {field: [samples, *shape]}; whoever keeps one keeps its pages in memory."""
        return {path.stem: np.load(path, mmap_mode="r") for path in sorted(self.folder.glob("*.npy"))}

    def checksums(self) -> NDArray[np.uint64]:
        return np.load(self.work / "checksums.npy")

    def blocks(self) -> Iterator[tuple[int, dict[str, NDArray]]]:
        """All samples in order, a batch at a time, with the number of the first."""
        arrays = self.arrays()
        samples = len(next(iter(arrays.values())))
        for start in range(0, samples, self.batch):
            yield start, {name: array[start : start + self.batch] for name, array in arrays.items()}

    def rows(self) -> Iterator[dict[str, NDArray]]:
        """All samples in order, one at a time."""
        for _, block in self.blocks():
            for row in range(len(next(iter(block.values())))):
                yield {name: array[row] for name, array in block.items()}


def make_source(shape: Shape, samples: int, work: Path) -> Source:
    """Compute the samples of ``shape`` and write them below ``work``."""
    source = Source(work, shape.batch)
    source.folder.mkdir(parents=True)
    maps = {
        name: np.lib.format.open_memmap(source.folder / f"{name}.npy", "w+", dtype, (samples, *form))
        for name, (form, dtype) in shape.fields.items()
    }
    block = shape.block()
    checksums = np.zeros(samples, np.uint64)
    for start in range(0, samples, shape.batch):
        stop = start + shape.batch
        for name, array in block(start, stop).items():
            maps[name][start:stop] = array
            lanes = np.ascontiguousarray(array).reshape(stop - start, -1).view(np.uint64)
            checksums[start:stop] += lanes.sum(axis=1)
    np.save(work / "checksums.npy", checksums)
    return source


def orders(samples: int, batch: int, seed: int) -> NDArray[np.int64]:
    """A permutation of all samples as batches, [samples / batch, batch]."""
    return np.random.default_rng(seed).permutation(samples).reshape(-1, batch)
