"""Writing: against zarr-python, against bare encode-and-write, around a real LSTM; peak memory.

Ratios are speeds (ours over the other's) unless said otherwise.
"""

from __future__ import annotations

import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import BATCH, LENGTH, Tones, interleaved, peak_nbytes, ratio, show, workspace

import parbake
from parbake.store.codecs import Chain
from parbake.store.layout import plan_layout

ROUNDS = 3
TEACHER = Path(__file__).resolve().parents[2] / "shared/data/teachers/broadcast_lstm_teacher.json"


def ours(folder: Path, samples: int) -> None:
    parbake.bake(Tones(samples), fresh(folder), codec="lz4", progress=False).close()


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def bare(folder: Path, samples: int) -> None:
    """Encode each chunk in two threads, write, sync: what no baker can do without."""
    fresh(folder).mkdir()
    chain, slab = Chain("lz4", np.dtype("<f4")), plan_layout(Tones().schema(), "lz4").slab_samples
    tones = Tones(samples)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, samples, slab):
            files = {name: (folder / f"{name}{start}").open("wb") for name in ("x", "y")}
            for first in range(start, min(start + slab, samples), BATCH):
                batch = tones.produce(first, min(first + BATCH, start + slab, samples), ("x", "y"))
                for name, file in files.items():
                    for body, crc in pool.map(chain.encode, batch[name]):
                        file.write(body)
                        file.write(crc)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
                file.close()


def zarr_python(folder: Path, samples: int) -> None:
    """The same arrays, chunks, shards and codecs, a shard at a time."""
    import zarr
    from zarr.codecs import BloscCodec

    group = zarr.open_group(fresh(folder), mode="w")
    slab = plan_layout(Tones().schema(), "lz4").slab_samples
    arrays = {
        name: group.create_array(
            name,
            shape=(samples, LENGTH, 1),
            chunks=(1, LENGTH, 1),
            shards=(slab, LENGTH, 1),
            dtype="float32",
            compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4)],
        )
        for name in ("x", "y")
    }
    for start in range(0, samples, slab):
        stop = min(start + slab, samples)
        parts = [
            Tones(samples).produce(a, min(a + BATCH, stop), ("x", "y")) for a in range(start, stop, BATCH)
        ]
        for name, array in arrays.items():
            array[start:stop] = np.concatenate([part[name] for part in parts])


MADE = """
import sys
sys.path.insert(0, "benchmarks")
from common import Tones
producer = Tones(int(sys.argv[2]))
"""


def teacher_overhead(folder: Path) -> float:
    """Time of baking the LSTM teacher over the time of running it and throwing its output away."""
    from parbake.producers.audio.sine import SineTeacher

    teacher = SineTeacher(teacher=TEACHER if TEACHER.exists() else None, num_samples=256)
    if not TEACHER.exists():
        print("  the real teacher is absent: the built-in one instead")
    names = tuple(teacher.schema())
    teacher.produce(0, 8, names)

    def discard() -> None:
        for start in range(0, len(teacher), BATCH):
            teacher.produce(start, start + BATCH, names)

    def bake() -> None:
        parbake.bake(teacher, fresh(folder), progress=False).close()

    taken = interleaved({"discard": discard, "bake": bake}, 5)
    return ratio(taken["bake"], taken["discard"])


def main() -> None:
    warnings.simplefilter("ignore")
    samples = 4_096  # 16 slabs: what is done once does not count
    with workspace() as folder:
        runs = {
            "bare": lambda: bare(folder / "bare", samples),
            "ours": lambda: ours(folder / "ours.zarr", samples),
            "zarr": lambda: zarr_python(folder / "zarr.zarr", samples),
        }
        for run in runs.values():
            run()
        taken = interleaved(runs, ROUNDS)
        for name, times in taken.items():
            show(f"  {name}: MB/s before compression", samples * LENGTH * 8 / 1e6 / float(np.median(times)))
        show("lz4 shards / zarr-python", ratio(taken["zarr"], taken["ours"]), "aim: 3")
        show(
            "a producer that costs nothing / bare encode and write",
            ratio(taken["bare"], taken["ours"]),
            "aim: 0.8",
        )
        slab = 2 * plan_layout(Tones().schema(), "lz4").slab_samples * LENGTH * 4
        for count in (1_024, 4_096):
            show(
                f"peak memory of baking {count} samples, in slabs",
                peak_nbytes(MADE, fresh(folder / "peak"), count) / slab,
                "aim: 2",
            )
        show(
            "LSTM teacher: time of the bake / of running it",
            teacher_overhead(folder / "teacher.zarr"),
            "aim: 1.05",
        )


if __name__ == "__main__":
    main()
