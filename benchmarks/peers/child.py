"""A process that has one reader open and measures it when told: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adapters.base import UnavailableError
from measures import Session
from shapes import Source


def _versions(packages: list[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


class Server:
    """Answers ``{"do": name, ...}`` with what the method ``name`` returns."""

    def begin(self, adapter: str, options: dict[str, Any], imports: list[str], packages: list[str]) -> Any:
        """Import all that the reader needs, so that no measurement pays for it."""
        module, name = adapter.split(":")
        self.peer = getattr(importlib.import_module(f"adapters.{module}"), name)(**options)
        for needed in imports:
            importlib.import_module(needed)
        return _versions(packages)

    def source(self, work: str, batch: int) -> None:
        self.samples = Source(Path(work), batch)

    def write(self, folder: str) -> float:
        Path(folder).mkdir()
        began = time.perf_counter()
        self.peer.write(Path(folder), self.samples)
        return time.perf_counter() - began

    def open(self, folder: str) -> None:
        self.peer.open(Path(folder), self.samples)
        self.session = Session(self.peer, self.samples)

    def warm(self, budget_s: float) -> None:
        self.session.warm(budget_s)

    def measure(self, name: str, seed: int, budget_s: float) -> dict[str, float]:
        return self.session.run(name, seed, budget_s)

    def first(self, folder: str, seed: int, budget_s: float) -> dict[str, float]:
        """Opening and a first epoch in random order, as far as the time goes."""
        began = time.perf_counter()
        self.peer.open(Path(folder), self.samples)
        session = Session(self.peer, self.samples)
        session.batches("first", seed)  # some make their loader here
        opened_s = time.perf_counter() - began
        taken = session.run("first", seed, budget_s)
        return taken | {"seconds": taken["seconds"] + opened_s}


def main() -> None:
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what libraries print goes to the log
    server = Server()
    for line in requests:
        request = json.loads(line)
        try:
            reply = {"value": getattr(server, request.pop("do"))(**request)}
        except UnavailableError as reason:
            reply = {"unavailable": str(reason)}
        except BaseException as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        sys.stderr.flush()
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    os._exit(0)  # threads of libraries may hang at exit


if __name__ == "__main__":
    main()
