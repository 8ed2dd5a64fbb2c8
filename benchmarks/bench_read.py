"""Random batches against what bounds them: 2,000 samples of 2 x 52,920 float32, a million of 256.

Warm, one process, buffers reused, one or two threads. Ratios are speeds: ours over the bound's.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import BATCH, LENGTH, SAMPLES, Tones, Vectors, interleaved, ratio, seconds, show, workspace

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
    def __init__(self, store: Store, threads: int = 1) -> None:
        super().__init__()
        self.store, self.threads = store, threads

    def batch(self, index: np.ndarray) -> None:
        self.store.read(index, out=self.out, threads=self.threads)


class Bound(Reader):
    """A bare loop over rows, one half of a batch in each of two threads or all in one."""

    pool = ThreadPoolExecutor(1)

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.threads = threads

    def batch(self, index: np.ndarray) -> None:
        for name, out in self.out.items():
            target, samples = out.reshape(len(index), -1), index.tolist()
            if self.threads == 1:
                self.rows(name, samples, target)
                continue
            later = self.pool.submit(self.rows, name, samples[BATCH // 2 :], target[BATCH // 2 :])
            self.rows(name, samples[: BATCH // 2], target[: BATCH // 2])
            later.result()

    def rows(self, name: str, samples: list[int], target: np.ndarray) -> None:
        raise NotImplementedError


class Rows(Bound):
    """Copying the same rows, one array each."""

    def __init__(self, arrays: dict[str, list[np.ndarray]], threads: int = 1) -> None:
        super().__init__(threads)
        self.arrays = arrays

    def rows(self, name: str, samples: list[int], target: np.ndarray) -> None:
        array = self.arrays[name]
        for row, sample in zip(target, samples, strict=True):
            row[...] = array[sample]


class Samples(Reader):
    """Copying the same samples out of a list of arrays in RAM, as a pickled list is loaded."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.samples = [{name: array[i].copy() for name, array in arrays.items()} for i in range(SAMPLES)]

    def batch(self, index: np.ndarray) -> None:
        for row, sample in enumerate(index.tolist()):
            for name, values in self.samples[sample].items():
                self.out[name][row] = values


def bodies(store: Store, name: str) -> Iterator[np.ndarray]:
    """The compressed chunks of a field, in RAM."""
    field = store.reader.maps[name]
    for shard in range(field.layout.shard_count(field.samples)):
        source = store.reader.source(name, shard)
        index = field.scan(source, shard)
        for offset, nbytes in zip(index.offset, index.nbytes, strict=True):
            if offset >= 0:
                yield source.get(offset, offset + nbytes - 4).copy()


class Decoder(Bound):
    """Calling the decoder alone on the same chunks, already in RAM."""

    def __init__(self, store: Store, threads: int = 1) -> None:
        super().__init__(threads)
        from numcodecs import blosc

        self.decompress = blosc.decompress
        self.bodies = {name: list(bodies(store, name)) for name in store}
        assert all(chain_of(field.layout).name == "lz4" for field in store.fields.values())

    def rows(self, name: str, samples: list[int], target: np.ndarray) -> None:
        bodies = self.bodies[name]
        for row, sample in zip(target, samples, strict=True):
            self.decompress(bodies[sample], row)


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


def small_samples(folder: Path) -> None:
    """A million samples of 256 float32, batches of 1,024, against NumPy's indexing of one memory map."""
    stores = {
        c: parbake.bake(Vectors(), folder / f"{c}.zarr", codec=c, progress=False) for c in ("raw", "lz4")
    }
    count, width = stores["raw"]["v"].shape
    with (folder / "flat").open("wb") as flat:
        for start in range(0, count, 65_536):
            flat.write(stores["raw"]["v"][start : start + 65_536].data)
    flat_map = np.memmap(folder / "flat", np.float32, "r", shape=(count, width))
    kept = parbake.open_store(folder / "lz4.zarr", cache_nbytes=2 << 30)
    blocks = parbake.BlockShuffle(parbake.StoreDataset(kept), batch_size=1024)
    out = {"v": np.empty((1024, width), np.float32)}
    random = np.random.default_rng(3)

    def batches(
        run: Callable[[np.ndarray], object], number: int, order: np.ndarray | None = None
    ) -> Callable[[], None]:
        def go() -> None:
            samples = random.integers(0, count, number * 1024) if order is None else order
            for batch in samples.reshape(-1, 1024):
                run(batch)

        return go

    shuffled = np.fromiter(blocks, np.int64)[: count // 1024 * 1024]
    runs = {
        "fancy": batches(lambda batch: flat_map[batch], 60),
        "raw": batches(lambda batch: stores["raw"].read(batch, out=out), 60),
        "lz4": batches(lambda batch: stores["lz4"].read(batch, out=out), 2),
        "lz4 in blocks": batches(lambda batch: kept.read(batch, out=out), 0, shuffled),
    }
    for warm in ("fancy", "raw"):
        batches(
            flat_map.__getitem__ if warm == "fancy" else lambda b: stores["raw"].read(b, out=out), 0, shuffled
        )()
    first = seconds(runs["lz4 in blocks"])
    taken = interleaved({name: run for name, run in runs.items() if name != "lz4 in blocks"}, ROUNDS)
    show(
        "  a million of 256 float32, batches of 1,024: NumPy's indexing, samples/s",
        60 * 1024 / float(np.median(taken["fancy"])),
    )
    show("raw / NumPy's indexing", ratio(taken["fancy"], taken["raw"]), "aim: 0.8")
    show("lz4, random, 32 MiB kept / NumPy's indexing", ratio(taken["fancy"], taken["lz4"]) / 30)
    fancy = float(np.median(taken["fancy"])) / (60 * 1024)
    show("lz4, an epoch of BlockShuffle, each chunk decoded once / the same", fancy * len(shuffled) / first)


def main() -> None:
    warnings.simplefilter("ignore")
    with workspace() as folder:
        small_samples(folder)
    with workspace() as folder:
        stores = {
            codec: parbake.bake(Tones(), folder / f"{codec}.zarr", codec=codec, progress=False)
            for codec in ("raw", "lz4")
        }
        arrays = {name: array[:] for name, array in stores["raw"].items()}
        rows = {name: list(array.reshape(SAMPLES, -1)) for name, array in arrays.items()}
        view = stores["raw"].reader.view
        maps = {name: [view(name, i, i + 1).reshape(-1) for i in range(SAMPLES)] for name in arrays}
        runs: dict[str, Reader] = {
            "rows": Rows(rows),
            "rows, two threads": Rows(rows, 2),
            "rows of the maps": Rows(maps),
            "samples": Samples(arrays),
            "raw": Ours(stores["raw"]),
            "raw, two threads": Ours(stores["raw"], 2),
            "decoder": Decoder(stores["lz4"]),
            "decoder, two threads": Decoder(stores["lz4"], 2),
            "lz4": Ours(stores["lz4"]),
            "lz4, two threads": Ours(stores["lz4"], 2),
        }
        for run in runs.values():  # warm: pages mapped, checksums done
            for first in range(0, SAMPLES - BATCH + 1, BATCH):
                run.batch(np.arange(first, first + BATCH))
        taken = interleaved(runs, ROUNDS)
        for name, times in taken.items():
            show(f"  {name}: samples/s", BATCH * BATCHES / float(np.median(times)))
        show("raw / rows in RAM", ratio(taken["rows"], taken["raw"]), "aim: 0.9")
        show(
            "a bare loop over rows of our maps / rows in RAM", ratio(taken["rows"], taken["rows of the maps"])
        )
        show(
            "raw, two threads / rows in RAM, one",
            ratio(taken["rows"], taken["raw, two threads"]),
            "aim: more",
        )
        show("rows in RAM, two threads / one", ratio(taken["rows"], taken["rows, two threads"]))
        show("raw / a list of samples in RAM", ratio(taken["samples"], taken["raw"]))
        show("lz4 / decoder alone", ratio(taken["decoder"], taken["lz4"]), "aim: 0.9")
        show(
            "lz4, two threads / decoder, one", ratio(taken["decoder"], taken["lz4, two threads"]), "aim: 1.7"
        )
        show("decoder, two threads / one", ratio(taken["decoder"], taken["decoder, two threads"]))
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
