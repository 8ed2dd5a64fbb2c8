"""From a fresh process to the first shuffled batch: ten million real samples against a thousand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import interleaved, ratio, show, workspace

import parbake
from parbake import Field


@dataclass(frozen=True)
class Points:
    """Tiny samples, so that ten million of them are quickly baked: 64 float32 and two scalars."""

    samples: int
    name = "points"
    version = 1
    batch_size = 65_536

    def schema(self) -> Mapping[str, Field]:
        scalars = {name: Field((), "float64", ()) for name in ("f0", "dB")}
        return {"x": Field((64,), "float32", ("time",)), **scalars}

    def invalidation_keys(self) -> Mapping[str, object]:
        return {}

    def __len__(self) -> int:
        return self.samples

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, np.ndarray]:
        index = np.arange(start, stop)
        return {
            "x": np.broadcast_to(index[:, None].astype(np.float32), (stop - start, 64)),
            "f0": index.astype(np.float64),
            "dB": -index.astype(np.float64),
        }


START = """
import json, sys, time
began = time.perf_counter()
import torch, parbake
imported = time.perf_counter()
dataset = parbake.StoreDataset(sys.argv[1])
loader = torch.utils.data.DataLoader(dataset, batch_size=64, sampler=(
    torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=64)))
batch = next(iter(loader))
assert (batch["x"][:, 0].double() == batch["f0"].float().double()).all()
done = time.perf_counter()
lines = [line.split() for line in open("/proc/self/status") if line.startswith("Rss")]
rss = {name: int(kib) / 1024 for name, kib, _ in lines}
print(json.dumps([done - began, done - imported, rss["RssAnon:"], rss["RssFile:"]]))
"""


def start(path: Path) -> list[float]:
    """Seconds in all, seconds after imports, MiB of memory of its own, MiB of files mapped."""
    run = subprocess.run([sys.executable, "-c", START, str(path)], capture_output=True, text=True, check=True)
    return list(json.loads(run.stdout))


def main() -> None:
    with workspace() as folder:
        paths = {n: folder / f"{n}.zarr" for n in (1_000, 10_000_000)}
        for samples, path in paths.items():
            parbake.bake(Points(samples), path, progress=False).close()
        found: dict[int, list[list[float]]] = {n: [] for n in paths}
        interleaved({str(n): lambda n=n: found[n].append(start(paths[n])) for n in paths}, 7)  # type: ignore[misc]
        small, large = (np.array(found[n]) for n in paths)
        show(
            "start to first batch, ten million / a thousand: time", ratio(large[:, 0], small[:, 0]), "aim: 2"
        )
        show("the same without the imports: time", ratio(large[:, 1], small[:, 1]))
        show("the same: MiB of memory more", float(np.median(large[:, 2] - small[:, 2])), "aim: 100")
        show("the same: MiB of page cache mapped more", float(np.median(large[:, 3] - small[:, 3])))


if __name__ == "__main__":
    main()
