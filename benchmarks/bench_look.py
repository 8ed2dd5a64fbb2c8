"""Looking at stores: the notebook view and ``inspect`` of ten million samples; how fast parbake starts."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench_start import Points
from common import interleaved, ratio, show, workspace

import parbake

FEW, MANY = 1_000, 10_000_000
ROUNDS = 15


def python(*arguments: str) -> Callable[[], object]:
    """A fresh interpreter, warm files."""
    return partial(subprocess.run, [sys.executable, *arguments], capture_output=True, check=True)


def main() -> None:
    with workspace() as folder:
        paths = {samples: folder / f"{samples}.zarr" for samples in (FEW, MANY)}
        for samples, path in paths.items():
            parbake.bake(Points(samples), path, progress=False).close()
        notebook_view(paths)
        starting(paths)


def notebook_view(paths: dict[int, Path]) -> None:
    """``_repr_html_`` of a store that was just opened, and again of the same one."""

    def first(path: Path) -> int:
        with parbake.open_store(path) as store:
            return len(store._repr_html_().encode())

    nbytes = {samples: first(path) for samples, path in paths.items()}
    taken = interleaved({str(n): partial(first, path) for n, path in paths.items()}, ROUNDS)
    with parbake.open_store(paths[MANY]) as store:
        again = interleaved({"again": store._repr_html_}, ROUNDS)["again"]
    many = [1e3 * seconds for seconds in taken[str(MANY)]]
    show("open and _repr_html_, ten million samples: ms", statistics.median(many), "aim: 50")
    show("the same, slowest: ms", max(many), "aim: 50")
    show("the same, ten million / a thousand samples: time", ratio(taken[str(MANY)], taken[str(FEW)]))
    show("_repr_html_ of an open store, again: ms", 1e3 * statistics.median(again))
    show("_repr_html_, ten million samples: kB", nbytes[MANY] / 1e3, "aim: 200")


def starting(paths: dict[int, Path]) -> None:
    """Processes from start to end."""
    runs = {
        "nothing": python("-c", ""),
        "numpy": python("-c", "import numpy"),
        "import": python("-c", "import parbake"),
        "help": python("-m", "parbake", "--help"),
        "inspect": python("-m", "parbake", "inspect", str(paths[MANY])),
        "inspect few": python("-m", "parbake", "inspect", str(paths[FEW])),
    }
    taken = interleaved(runs, ROUNDS)
    show("import parbake / import numpy: time", ratio(taken["import"], taken["numpy"]), "aim: 1.6")
    show("parbake --help / import numpy: time", ratio(taken["help"], taken["numpy"]), "aim: 2.5")
    show("import numpy / an empty program: time", ratio(taken["numpy"], taken["nothing"]))
    show("inspect, ten million samples: s", statistics.median(taken["inspect"]), "aim: 1")
    show("inspect / parbake --help: time", ratio(taken["inspect"], taken["help"]))
    show("inspect, ten million / a thousand samples: time", ratio(taken["inspect"], taken["inspect few"]))


if __name__ == "__main__":
    main()
