"""On what was measured: versions and machine, without the machine's name."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from parbake.loaders.machine import cores

PACKAGES = ("parbake", "torch", "numpy", "scipy", "zarr", "numcodecs", "h5py")


@dataclass(frozen=True)
class Environment:
    """``packages``: versions by name; memory in bytes."""

    python: str
    packages: dict[str, str]
    kernel: str
    processor: str
    cores: int
    memory_nbytes: int


def this_environment() -> Environment:
    return Environment(
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        kernel=f"{platform.system()} {platform.release().split('-')[0]}",
        processor=_processor(),
        cores=cores(),
        memory_nbytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
