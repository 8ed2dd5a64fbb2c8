"""The results as tables, one sentence and one plot in a Markdown page."""

from __future__ import annotations

import math
import os
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from measures import MEASURES
from readers import COPY_LIMIT, Reader
from shapes import Shape

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"
PLOT = "peers.png"
HEADER = """\
## Beside other ways of reading

Written by `benchmarks/peers` on {machine}. {versions}.

Samples/s, and in brackets the speed over the *copy limit*: copying the same random rows out of arrays in RAM
into reused buffers. Medians of {rounds} rounds, of half as many in the last two columns; every reader has its
turn in each round, and a round is an epoch, or as much of one as its time allows. Bold: the fastest that is
no bound. Every batch is summed up, bounds included, and the sums are compared with the source; *not looked
at* is the same without the sum.

- *random*, *sequential*: in the process itself, files in the page cache. Single rows are gathered in reused
  buffers. Torch's threads wait passively (`OMP_WAIT_POLICY`), lest other work on the machine stall collation.
- *2 workers*: the loader that each library recommends, or torch's; counted from when each has given a batch.
- *fresh process*: opening and the first epoch, in random order where the reader has one, without the imports.
- *cold files*: the same after the files were dropped from the page cache of this system. What lies below it
  may still hold them."""
_COLOURS = {"bound": "#999999", "ours": "#c8553d", "plain": "#588157", "library": "#3d6fa8"}


class Results:
    """Speeds of each reader in each measure, samples/s, and the reasons for what is missing."""

    def __init__(self, shape: Shape, samples: int, readers: Sequence[Reader]) -> None:
        self.shape = shape
        self.samples = samples
        self.readers = tuple(readers)
        self.versions: dict[str, dict[str, str]] = defaultdict(dict)  # by environment and package
        self._speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._reasons: dict[tuple[str, str], tuple[str, bool]] = {}

    def add(self, reader: Reader, measure: str, speed: float) -> None:
        self._speeds[reader.name, measure].append(speed)

    def note(self, reader: Reader, measure: str, reason: str, *, failed: bool) -> None:
        """Say why there is no number; ``measure`` "all" stands for every one."""
        self._reasons[reader.name, measure] = (reason, failed)

    def has_failed(self, reader: Reader, measure: str) -> bool:
        return (reader.name, measure) in self._reasons

    def speed(self, reader: Reader, measure: str) -> float | None:
        """The median over the rounds; None where there is none or where a round failed."""
        if self.has_failed(reader, measure):
            return None
        speeds = self._speeds.get((reader.name, measure))
        return median(speeds) if speeds else None

    def reasons(self) -> list[str]:
        """Why numbers are missing, one line for each cause; bounds aside where they have no such way."""
        alike: dict[tuple[str, str], list[str]] = defaultdict(list)
        bounds = {reader.name for reader in self.readers if reader.kind == "bound"}
        for (name, measure), (text, failed) in self._reasons.items():
            if failed or name not in bounds:
                alike[MEASURES.get(measure, "all"), text].append(name)
        return [f"{what}: {'; '.join(names)}: {text}" for (what, text), names in alike.items()]

    def fastest(self, measure: str, *kinds: str) -> tuple[Reader, float] | None:
        """The fastest reader of these kinds in one measure."""
        speeds = [(r, s) for r in self.readers if r.kind in kinds and (s := self.speed(r, measure))]
        return max(speeds, key=lambda pair: pair[1], default=None)


def number(value: float) -> str:
    """Three digits that mean something, with thousands apart."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value < 100 else 0
    return f"{float(f'{value:.3g}'):,.{digits}f}"


def cell(results: Results, reader: Reader, measure: str) -> str:
    """Samples/s and, in brackets, over the copy limit; bold where nobody but a bound is faster."""
    speed = results.speed(reader, measure)
    if speed is None:
        return "-"
    limit = results.speed(COPY_LIMIT, "random")
    text = number(speed) + (f" ({speed / limit:.2g})" if limit else "")
    best = results.fastest(measure, "ours", "plain", "library")
    return f"**{text}**" if best is not None and best[0].name == reader.name else text


def sentence(results: Results, measure: str) -> str:
    """The fastest dataset library, and ours over it."""
    library, ours = results.fastest(measure, "library"), results.fastest(measure, "ours")
    if library is None or ours is None:
        return ""
    plain = results.fastest(measure, "plain")
    said = (
        f"{MEASURES[measure].capitalize()}: the fastest dataset library is {library[0].name} with "
        f"{number(library[1])} samples/s; {ours[0].name} over it: **{ours[1] / library[1]:.2f}**"
    )
    return said + (f"; over {plain[0].name}: {ours[1] / plain[1]:.2f}." if plain else ".")


def table(results: Results) -> str:
    order = sorted(results.readers, key=lambda reader: -(results.speed(reader, "random") or 0))
    groups = [
        [reader for reader in order if (reader.kind == "bound") == bound and _has_numbers(results, reader)]
        for bound in (True, False)
    ]
    lines = ["| samples/s (over the copy limit) | " + " | ".join(MEASURES.values()) + " |"]
    lines.append("|---" * (len(MEASURES) + 1) + "|")
    for reader in groups[0] + groups[1]:
        name = f"*{reader.name}*" if reader.kind == "bound" else reader.name
        lines.append(
            f"| {name} | " + " | ".join(cell(results, reader, measure) for measure in MEASURES) + " |"
        )
    return "\n".join(lines)


def _has_numbers(results: Results, reader: Reader) -> bool:
    return any(results.speed(reader, measure) for measure in MEASURES)


def section(results: Results) -> str:
    shape = results.shape
    parts = [f"### {shape.title}: {results.samples:,} samples, batches of {shape.batch:,}"]
    said = [sentence(results, measure) for measure in ("random", "sequential", "workers", "cold")]
    parts.append("\n".join(f"- {line}" for line in said if line))
    parts.append(table(results))
    if reasons := results.reasons():
        parts.append("Not measured:\n\n" + "\n".join(f"- {line}" for line in reasons))
    return "\n\n".join(part for part in parts if part)


def machine(folder: Path) -> str:
    """Cores, memory, kernel and file system, without the machine's name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    _, file_system = max(
        (mount[1], mount[2]) for mount in mounts if Path(mount[1]) in (folder, *folder.parents)
    )
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return (
        f"{len(os.sched_getaffinity(0))} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}, "
        f"{file_system}, Python {platform.python_version()}"
    )


def listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))


def header(results: Sequence[Results], rounds: int) -> str:
    versions: dict[str, dict[str, str]] = {"driver": {}, "shared": {}, "mds": {}}
    for result in results:
        for environment, found in result.versions.items():
            versions[environment] |= found
    apart = f"; in an environment of their own {listed(versions['mds'])}" if versions["mds"] else ""
    return HEADER.format(
        machine=machine(Path.cwd().resolve()),
        versions=listed(versions["driver"] | versions["shared"]) + apart,
        rounds=rounds,
    )


def plot(results: Sequence[Results], path: Path) -> None:
    """Bars of random batches and of two workers, one picture for all shapes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(7 * columns, 6.5 * rows), squeeze=False)
    for ax in axes.flat[len(results) :]:
        ax.set_visible(False)
    for ax, result in zip(axes.flat, results, strict=False):
        shown = [r for r in result.readers if result.speed(r, "random") or result.speed(r, "workers")]
        shown.sort(key=lambda r: max(result.speed(r, "random") or 0, result.speed(r, "workers") or 0))
        for place, reader in enumerate(shown):
            for measure, shift, alpha in (("random", 0.2, 1.0), ("workers", -0.2, 0.5)):
                if speed := result.speed(reader, measure):
                    ax.barh(place + shift, speed, 0.4, color=_COLOURS[reader.kind], alpha=alpha)
        ax.set_yticks(range(len(shown)), [reader.name for reader in shown], fontsize=7)
        ax.set_xscale("log")
        ax.set_xlabel("samples/s")
        ax.set_title(result.shape.title, fontsize=10)
        ax.grid(axis="x", alpha=0.3)
    names = {"bound": "bound", "ours": "parbake", "plain": "no library", "library": "dataset library"}
    marks = [Patch(color=_COLOURS[kind], label=name) for kind, name in names.items()]
    marks += [Patch(color="#000000", label="random"), Patch(color="#000000", alpha=0.5, label="2 workers")]
    figure.legend(handles=marks, loc="lower center", ncols=6, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=60)
    plt.close(figure)


def write_report(path: Path, results: Sequence[Results], rounds: int) -> None:
    """Put tables and plot between the marks of the page, at its end where it has none."""
    plot(results, path.parent / "images" / PLOT)
    parts = [header(results, rounds), f"![random batches and two workers, samples/s](images/{PLOT})"]
    text = "\n\n".join([*parts, *map(section, results)])
    page = path.read_text() if path.exists() else ""
    before, found, rest = page.partition(BEGIN)
    if not found:
        before, rest = page.rstrip("\n") + "\n\n" if page else "", ""
    after = rest.partition(END)[2] or "\n"
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
