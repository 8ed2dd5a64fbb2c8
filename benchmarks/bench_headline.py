"""The guides' headline numbers, measured in one run and written as a page with versions and machine.

``make headline`` writes docs/headline.md and docs/headline.json in about ten minutes on two quiet cores.
``--only``: these sections alone; the others stay as they were measured, unless it was on another machine or
with other versions. ``--render``: the page again from the numbers that are there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from common import workspace
from headline import disk, epoch, memory, mesh
from headline.environment import this_environment
from headline.page import page

SECTIONS: dict[str, Callable[[Path, bool, Callable[[str], None]], dict[str, Any]]] = {
    "epoch": epoch.measure,
    "mesh": mesh.measure,
    "disk": disk.measure,
    "memory": memory.measure,
}
DOCS = Path(__file__).resolve().parents[1] / "docs"


def chosen(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(SECTIONS):
        raise argparse.ArgumentTypeError(
            f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}"
        )
    return names


def kept(numbers: Path, environment: dict[str, Any]) -> dict[str, Any]:
    """Sections measured before, if it was in this environment."""
    if not numbers.exists():
        return {}
    stored = json.loads(numbers.read_text())
    if stored["environment"] != environment:
        print(f"{numbers}: measured in another environment; its numbers are left out", flush=True)
        return {}
    return dict(stored["sections"])


def measured(folder: Path, name: str, quick: bool) -> dict[str, Any]:
    began = time.perf_counter()

    def tell(what: str) -> None:
        print(f"{time.perf_counter() - began:5.0f} s  {what}", flush=True)

    (folder / name).mkdir()
    result = SECTIONS[name](folder / name, quick, tell)
    tell(f"{name}: done")
    return {"date": date.today().isoformat(), "quick": quick, "result": result}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=chosen, default=tuple(SECTIONS), metavar="NAME,...")
    parser.add_argument("--quick", action="store_true", help="show that it works; the numbers say nothing")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of headline.md and headline.json")
    options = parser.parse_args(arguments)
    numbers, written = options.out / "headline.json", options.out / "headline.md"
    if options.render:
        stored = json.loads(numbers.read_text())
    else:
        environment = asdict(this_environment())
        sections = kept(numbers, environment)
        with workspace() as folder:
            for name in options.only:
                sections[name] = measured(folder, name, options.quick)
        stored = {"environment": environment, "sections": sections}
        numbers.write_text(json.dumps(stored, indent=1) + "\n")
    written.write_text(page(stored))
    print(written)


if __name__ == "__main__":
    main()
