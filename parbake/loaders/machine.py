"""What measurements must know of the machine: its cores and memory, and what it keeps of a store's files."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from parbake.errors import RecipeError

_READ_NBYTES = 4 * 1024**2
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_SHARED = Path("/dev/shm")  # where torch's workers put what they send


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_nbytes() -> int | None:
    """Memory that can be had without swapping, within the limit of the container; None where unknown."""
    try:
        lines = _MEMINFO.read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    free = kib * 1024
    try:  # control groups, version 2; "max" is no limit
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return free
    return min(free, limit - used)


def free_shared_memory_nbytes() -> int | None:
    """What fits into /dev/shm, which containers keep small; None where there is none."""
    try:
        found = os.statvfs(_SHARED)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def files_of(path: Path, without: Collection[str] = ()) -> list[Path]:
    """The files of a store, but for those of the fields ``without``."""
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.relative_to(path).parts[0] not in without and file.is_file() and not file.is_symlink()
    )


def forget(files: Iterable[Path]) -> None:
    """Ask the kernel to drop ``files`` from its page cache; it keeps what any process has mapped.

    Raises RecipeError where the system has no such request.
    """
    if not hasattr(os, "posix_fadvise"):
        raise RecipeError(
            "this system has no posix_fadvise, which asks it to forget files; measure warm only"
        )
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_ahead(files: Sequence[Path], seconds: float) -> int:
    """Read ``files`` so that the page cache has them, for at most ``seconds``; how many bytes that were."""
    until, nbytes = time.perf_counter() + seconds, 0
    buffer = bytearray(_READ_NBYTES)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                nbytes += count
                if time.perf_counter() > until:
                    return nbytes
    return nbytes
