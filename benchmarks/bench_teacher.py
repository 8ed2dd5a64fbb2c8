"""Any network as producer: around one that costs nothing against bare encode and write; peak memory.

The ratio is a speed, ours over the other's.
"""

from __future__ import annotations

import shutil

import numpy as np
from bench_write import bare, fresh
from common import LENGTH, interleaved, peak_nbytes, ratio, show, workspace

import parbake

ROUNDS = 5
SAMPLES = 4_096

FREE = """
import sys
sys.path.insert(0, "benchmarks")
import numpy as np, torch
from common import BATCH, LENGTH, _pool
from parbake.producers import Teacher

x, y = (torch.from_numpy(values) for values in _pool(LENGTH))

class Free(torch.nn.Module):
    "Gives what is there already: views of 512 tones."
    def forward(self, index):
        first = int(index[0]) % (len(x) // 2)
        return {"x": x[first : first + len(index)], "y": y[first : first + len(index)]}
"""
MADE = (
    FREE
    + """
producer = Teacher(Free().eval(), range(int(sys.argv[2])), keys={"tones": 1})
"""
)


def main() -> None:
    names: dict[str, object] = {}
    exec(FREE, names)
    free, teacher = names["Free"], names["Teacher"]
    with workspace() as folder:

        def ours() -> None:
            shutil.rmtree(folder / "ours.zarr", ignore_errors=True)
            made = teacher(free().eval(), range(SAMPLES), keys={"tones": 1})  # type: ignore[operator]
            parbake.bake(made, folder / "ours.zarr", progress=False).close()

        runs = {"bare": lambda: bare(folder / "bare", SAMPLES), "ours": ours}
        for run in runs.values():
            run()
        taken = interleaved(runs, ROUNDS)
        for name, times in taken.items():
            show(f"  {name}: MB/s before compression", SAMPLES * LENGTH * 8 / 1e6 / float(np.median(times)))
        show(
            "a network that costs nothing / bare encode and write",
            ratio(taken["bare"], taken["ours"]),
            "aim: 0.8",
        )
        few, many = (peak_nbytes(MADE, fresh(folder / "peak"), count) for count in (1_024, 4_096))
        show("peak memory of 4,096 samples over that of 1,024", many / few, "aim: 1")


if __name__ == "__main__":
    main()
