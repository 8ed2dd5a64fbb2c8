"""Environments of the readers, and the child processes that run in them."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from readers import Reader

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MODULES = {  # where a package is imported under another name
    "array-record": "array_record.python.array_record_module",
    "mosaicml-streaming": "streaming",
    "parbake": "parbake.loaders.dataset",
    "pylance": "lance",
}
PATIENCE_S = 3.0
_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    # torch's threads wait for each other by spinning: where other work takes a core, collating a batch in the
    # process itself is up to fifty times as slow (measured), which says nothing about any reader
    "OMP_WAIT_POLICY": "PASSIVE",
}


class FailedError(Exception):
    """A reader could not do something; the text says why."""


class NotAvailableError(FailedError):
    """A reader has no such way of reading."""


def interpreter(environment: str) -> str:
    """The Python of an environment, made in ``.bench-envs/`` when it is not there. Raises FailedError."""
    made = _made(environment)
    if isinstance(made, FailedError):
        raise made
    return made


@cache
def _made(environment: str) -> str | FailedError:
    if environment == "driver":
        return sys.executable
    folder = Path.cwd() / ".bench-envs" / environment
    done, requirements = folder / "installed.txt", HERE / f"requirements-{environment}.txt"
    python = str(folder / "bin" / "python")
    if done.exists() and done.read_text() == requirements.read_text():
        return python
    print(f"making the environment {folder}; this may take minutes", file=sys.stderr)
    steps = [[sys.executable, "-m", "venv", "--clear", str(folder)]]
    install = [python, "-m", "pip", "install", "--quiet"]
    if "torch==" not in requirements.read_text():  # pinned and first, so that nothing pulls another build
        pinned = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
        steps.append([*install, *pinned])
        install += pinned
    steps.append([*install, "--requirement", str(requirements)])
    for step in steps:
        run = subprocess.run(step, capture_output=True, text=True)
        if run.returncode:
            said = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or [
                "no reason given"
            ]
            return FailedError(f"environment {environment!r} cannot be installed: {said[0][:200]}")
    done.write_text(requirements.read_text())
    return python


@dataclass(frozen=True)
class Place:
    """Where one run works: its folder, the batch size, the seconds that one round may take."""

    work: Path
    batch: int
    budget_s: float


class Child:
    """One reader in a process of its own environment."""

    def __init__(self, reader: Reader, place: Place) -> None:
        """Raises FailedError."""
        self.reader = reader
        self.place = place
        log = (place.work / "log.txt").open("ab")
        variables = os.environ | _VARIABLES | {"HF_HOME": str(place.work / "hf"), "TMPDIR": str(place.work)}
        if reader.environment == "driver":
            variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [interpreter(reader.environment), "-W", "ignore", str(HERE / "child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=variables,
            start_new_session=True,
        )
        log.close()
        imports = [MODULES.get(package, package) for package in reader.packages]
        try:
            self.versions = self.ask(
                "begin",
                adapter=reader.adapter,
                options=dict(reader.options),
                imports=imports,
                packages=list(reader.packages),
            )
            self.ask("source", work=str(place.work), batch=place.batch)
        except FailedError:
            self.close()
            raise

    @property
    def folder(self) -> str:
        return str(self.place.work / self.reader.folder)

    def ask(self, do: str, *, timeout_s: float = 120, **arguments: Any) -> Any:
        """What the child answers. Raises FailedError."""
        if self.process.poll() is not None:
            raise FailedError(f"its process ended with code {self.process.returncode}")
        self.process.stdin.write(json.dumps({"do": do} | arguments).encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            self.close()
            raise FailedError(f"{do} hung: no answer in {timeout_s:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise FailedError(f"its process ended with code {self.process.wait()} in {do}")
        reply = json.loads(line)
        if "unavailable" in reply:
            raise NotAvailableError(reply["unavailable"])
        if "error" in reply:
            raise FailedError(reply["error"])
        return reply["value"]

    def close(self) -> None:
        """End the process and the workers that it left.

        Gently first: Python's resource trackers stay for a moment and remove the shared memory of the dead.
        """
        for how in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, how)
                ends = time.perf_counter() + PATIENCE_S
                while time.perf_counter() < ends:
                    self.process.poll()
                    os.killpg(self.process.pid, 0)  # raises when all have gone
                    time.sleep(0.02)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()


@contextmanager
def child(reader: Reader, place: Place) -> Iterator[Child]:
    """A child process for as long as the block lasts. Raises FailedError."""
    started = Child(reader, place)
    try:
        yield started
    finally:
        started.close()


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def synced(folder: Path) -> None:
    """Write what is dirty to the disk: only clean pages can be dropped."""
    for path in files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def warmed(folder: Path) -> float:
    """Read all files once, so that they lie in the page cache; the seconds it took."""
    began = time.perf_counter()
    buffer = bytearray(1 << 20)
    for path in files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def dropped(folder: Path) -> None:
    """Drop all files from the page cache; pages that somebody has mapped stay."""
    for path in files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
