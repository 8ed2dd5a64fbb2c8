"""parbake and its peers on the same samples, in one run: ``.venv/bin/python benchmarks/peers``."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from processes import Child, FailedError, NotAvailableError, Place, child, dropped, synced, warmed
from readers import COPY_LIMIT, READERS, Reader, writer_of
from report import Results, write_report
from shapes import SHAPES, Shape, make_source

ROOT = Path(__file__).parent.parent.parent
WRITING_S, WARMING_S = 1_800, 20


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Run:
    """One shape: its readers are written, opened, measured round by round, and removed."""

    def __init__(self, shape: Shape, readers: tuple[Reader, ...], place: Place, samples: int) -> None:
        self.place = place
        self.readers = list(readers)
        self.results = Results(shape, samples, readers)

    def attempt(self, reader: Reader, measure: str, run: Callable[[], dict[str, float]]) -> None:
        """Note the speed that ``run`` finds, or why it finds none."""
        try:
            taken = run()
        except FailedError as reason:
            say(f"    {reader.name}: {reason}")
            self.results.note(reader, measure, str(reason), failed=not isinstance(reason, NotAvailableError))
        else:
            speed = taken["samples"] / taken["seconds"]
            say(f"    {reader.name}: {speed:,.0f} samples/s")
            self.results.add(reader, measure, speed)

    def write(self) -> None:
        """Every folder once; the readers of what cannot be written are left out."""
        for folder in dict.fromkeys(reader.folder for reader in self.readers if reader.folder != "source"):
            try:
                with child(writer_of(folder), self.place) as writer:
                    seconds = writer.ask("write", folder=writer.folder, timeout_s=WRITING_S)
                synced(self.place.work / folder)
                say(f"  wrote {folder} in {seconds:.1f} s")
            except FailedError as reason:
                say(f"  {folder}: {reason}")
                for reader in [reader for reader in self.readers if reader.folder == folder]:
                    self.readers.remove(reader)
                    self.results.note(reader, "all", f"not written: {reason}", failed=True)
                shutil.rmtree(self.place.work / folder, ignore_errors=True)

    def opened(self) -> dict[str, Child]:
        """A child for each reader, warm; readers that cannot be opened are left out."""
        children: dict[str, Child] = {}
        for reader in list(self.readers):
            try:
                children[reader.name] = started = Child(reader, self.place)
                self.results.versions[reader.environment] |= started.versions
                self.warm(started)
            except FailedError as reason:
                self.readers.remove(reader)
                self.results.note(
                    reader, "all", str(reason), failed=not isinstance(reason, NotAvailableError)
                )
                if reader.name in children:
                    children.pop(reader.name).close()
                say(f"  {reader.name}: {reason}")
        return children

    def warm(self, started: Child) -> None:
        """Open it and read all once, where it has a way without workers."""
        started.ask("open", folder=started.folder)
        with suppress(NotAvailableError):
            started.ask("warm", budget_s=WARMING_S)

    def hot(self, rounds: int) -> None:
        """Random, sequential and with workers: all readers open, one after the other in each round."""
        children = self.opened()
        try:
            for number in range(rounds):
                for measure in ("random", "untouched", "sequential", "workers"):
                    say(f"  round {number + 1}: {measure}")
                    self.hot_round(children, measure, number)
        finally:
            for started in children.values():
                started.close()

    def hot_round(self, children: dict[str, Child], measure: str, number: int) -> None:
        for reader in self.in_turn(number):
            if measure == "untouched" and not reader.untouched:
                continue
            if self.results.has_failed(reader, measure):
                continue
            started = children[reader.name]
            if started.process.poll() is not None:  # it was ended when it hung
                try:
                    started = children[reader.name] = Child(reader, self.place)
                    self.warm(started)
                except FailedError as reason:
                    self.results.note(reader, measure, str(reason), failed=True)
                    continue
            warmed(self.place.work / reader.folder)
            self.attempt(reader, measure, partial(self.asked, started, measure, number))

    def asked(self, started: Child, measure: str, number: int) -> dict[str, float]:
        return started.ask("measure", name=measure, seed=number, budget_s=self.place.budget_s)

    def fresh(self, rounds: int) -> None:
        """A first epoch in a process that has opened nothing yet: files in the page cache, and dropped."""
        for folder in dict.fromkeys(reader.folder for reader in self.readers):
            dropped(self.place.work / folder)  # so that what lies below this system has read all alike
            warmed(self.place.work / folder)
        for number in range(rounds):
            for measure, prepare in (("first", warmed), ("cold", dropped)):
                say(f"  round {number + 1}: {measure}")
                for reader in self.in_turn(number):
                    if reader.kind != "bound" and not self.results.has_failed(reader, measure):
                        self.attempt(reader, measure, partial(self.first, reader, prepare, number))

    def first(self, reader: Reader, prepare: Callable[[Path], object], number: int) -> dict[str, float]:
        with child(reader, self.place) as started:
            prepare(self.place.work / reader.folder)
            return started.ask("first", folder=started.folder, seed=number, budget_s=self.place.budget_s)

    def in_turn(self, number: int) -> Iterable[Reader]:
        """All readers, beginning with another in each round."""
        start = number * len(self.readers) // 3 % max(1, len(self.readers))
        return self.readers[start:] + self.readers[:start]


def measured(shape: Shape, readers: tuple[Reader, ...], chosen: argparse.Namespace) -> Results:
    """Everything about one shape; its data are gone afterwards."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-", ignore_cleanup_errors=True) as folder:
        samples = shape.scaled(chosen.scale)
        say(f"{shape.title}: {samples} samples")
        source = make_source(shape, samples, Path(folder))
        synced(source.folder)
        run = Run(shape, readers, Place(Path(folder), shape.batch, chosen.seconds), samples)
        run.write()
        run.hot(chosen.rounds)
        run.fresh((chosen.rounds + 1) // 2)
        if chosen.log:
            shutil.copy(Path(folder) / "log.txt", chosen.log)
    return run.results


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/peers", description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of %(default)s")
    parser.add_argument(
        "--peers",
        nargs="*",
        default=[],
        metavar="TEXT",
        help="readers with one of these texts in their names",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the samples, to try things out")
    parser.add_argument("--seconds", type=float, default=1.5, help="the most that one round may take")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--log", type=Path, help="where to keep what the readers print")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    texts = chosen.peers
    wanted = [r for r in READERS if not texts or r == COPY_LIMIT or any(text in r.name for text in texts)]
    results = [measured(SHAPES[key], tuple(wanted), chosen) for key in chosen.shapes.split(",")]
    write_report(chosen.report, results, chosen.rounds)


if __name__ == "__main__":
    main()
