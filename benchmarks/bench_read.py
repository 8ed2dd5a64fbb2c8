"""Random batches of 64 from 2,000 samples of 2 x 52,920 float32: ours against what bounds it.

Warm, one process, one thread, buffers reused. Ratios are speeds: ours over the bound's.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from common import BATCH, LENGTH, SAMPLES, Tones, interleaved, ratio, seconds, show, workspace

import parbake
from parbake.store.codecs import chain_of
from parbake.store.store import Store

BATCHES = 16
ROUNDS = 15


def orders(rounds: int = ROUNDS) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.permutation(SAMPLES)[: BATCH * BATCHES].reshape(BATCHES, BATCH) for _ in range(rounds)]


def buffers() -> dict[str, np.ndarray]:
    return {name: np.empty((BATCH, LENGTH, 1), np.float32) for name in ("x", "y")}


class Reader:
    """Random batches, a new permutation at every call."""

    def __init__(self) -> None:
        self.out = buffers()
        self._orders = iter(orders())

    def __call__(self) -> None:
        for batch in next(self._orders):
            self.batch(batch)

    def batch(self, index: np.ndarray) -> None:
        raise NotImplementedError


class Ours(Reader):
    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    def batch(self, index: np.ndarray) -> None:
        self.store.read(index, out=self.out)


class Rows(Reader):
    """Copying the same rows out of arrays in RAM."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.arrays = arrays

    def batch(self, index: np.ndarray) -> None:
        for name, array in self.arrays.items():
            target = self.out[name]
            for row, sample in enumerate(index.tolist()):
                target[row] = array[sample]


class Samples(Reader):
    """Copying the same samples out of a list of arrays in RAM, as a pickled list is loaded."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.samples = [{name: array[i].copy() for name, array in arrays.items()} for i in range(SAMPLES)]

    def batch(self, index: np.ndarray) -> None:
        for row, sample in enumerate(index.tolist()):
            for name, values in self.samples[sample].items():
                self.out[name][row] = values


class Decoder(Reader):
    """Calling the decoder alone on the same chunks, already in RAM."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        from numcodecs import blosc

        self.decompress = blosc.decompress
        self.bodies = {
            name: [store.reader.payload(name, chunk)[:-4].copy() for chunk in range(SAMPLES)]
            for name in store
        }
        assert all(chain_of(field.layout).name == "lz4" for field in store.fields.values())

    def batch(self, index: np.ndarray) -> None:
        for name, bodies in self.bodies.items():
            target = self.out[name]
            for row, sample in enumerate(index.tolist()):
                self.decompress(bodies[sample], target[row])


def zarr_python(path: Path) -> tuple[float, float]:
    """Seconds a sample of zarr-python, row by row and by batched ``oindex``; few batches, it is slow."""
    import zarr

    group = zarr.open_group(path, mode="r")
    arrays = {name: group[name] for name in ("x", "y")}
    batches = orders(1)[0][:4]
    rows = seconds(lambda: [array[int(i)] for batch in batches for i in batch for array in arrays.values()])
    oindex = seconds(lambda: [array.oindex[np.sort(batch)] for batch in batches for array in arrays.values()])
    return rows / batches.size, oindex / batches.size


FIRST_EPOCH = """
import sys, time, numpy as np, parbake
store = parbake.open_store(sys.argv[1])
out = {name: np.zeros((64, *store[name].shape[1:]), np.float32) for name in store}
order = np.random.default_rng(2).permutation(store.samples)[: store.samples // 64 * 64].reshape(-1, 64)
for epoch in range(3):
    began = time.perf_counter()
    for batch in order:
        store.read(batch, out=out)
    print(order.size / (time.perf_counter() - began))
"""


def first_epoch(path: Path) -> list[float]:
    """Samples/s of the first, second and third epoch of a fresh process."""
    run = [sys.executable, "-c", FIRST_EPOCH, str(path)]
    return [
        float(line) for line in subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    ]


def main() -> None:
    warnings.simplefilter("ignore")
    with workspace() as folder:
        stores = {
            codec: parbake.bake(Tones(), folder / f"{codec}.zarr", codec=codec, progress=False)
            for codec in ("raw", "lz4")
        }
        arrays = {name: array[:] for name, array in stores["raw"].items()}
        runs: dict[str, Reader] = {
            "rows": Rows(arrays),
            "samples": Samples(arrays),
            "raw": Ours(stores["raw"]),
            "decoder": Decoder(stores["lz4"]),
            "lz4": Ours(stores["lz4"]),
        }
        for run in runs.values():  # warm: pages mapped, checksums done
            for first in range(0, SAMPLES - BATCH + 1, BATCH):
                run.batch(np.arange(first, first + BATCH))
        taken = interleaved(runs, ROUNDS)
        for name, times in taken.items():
            show(f"  {name}: samples/s", BATCH * BATCHES / float(np.median(times)))
        show("raw / rows in RAM", ratio(taken["rows"], taken["raw"]), "aim: 0.8")
        show("raw / a list of samples in RAM", ratio(taken["samples"], taken["raw"]))
        show("lz4 / decoder alone", ratio(taken["decoder"], taken["lz4"]), "aim: 0.8")
        for codec in stores:
            first, *later = first_epoch(folder / f"{codec}.zarr")
            show(f"{codec}: first epoch of a fresh process / later ones", first / float(np.median(later)))
        for codec in stores:
            rows, oindex = zarr_python(folder / f"{codec}.zarr")
            ours = float(np.median(taken[codec])) / (BATCH * BATCHES)
            show(f"  zarr-python, {codec}, row by row: samples/s", 1 / rows)
            show(f"  zarr-python, {codec}, batched oindex: samples/s", 1 / oindex)
            show(f"{codec} / the better of zarr-python's", min(rows, oindex) / ours, "aim: 12")


if __name__ == "__main__":
    main()
