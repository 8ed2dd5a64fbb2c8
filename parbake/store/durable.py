"""Files that are either not there or whole, also after a power cut."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

_WRITEBACK_NBYTES = 64 * 1024**2
_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has none


def temporary_name(path: Path) -> Path:
    """Where this thread writes what is to become ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


@contextlib.contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name, synced, once all is written; on a fault it is removed."""
    temporary = temporary_name(path)
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_parts(descriptor: int, parts: list[memoryview], start: int | None = None) -> int:
    """Write all parts one after another, at ``start`` or where the file stands; gives the bytes written."""
    parts, nbytes = parts.copy(), 0
    while parts:
        count = (
            os.writev(descriptor, parts) if start is None else os.pwritev(descriptor, parts, start + nbytes)
        )
        nbytes += count
        while parts and count >= len(parts[0]):
            count -= len(parts.pop(0))
        if count:  # a write that was cut short
            parts[0] = parts[0][count:]
    return nbytes


class Writeback:
    """Has what is written to a file begin its way to the disk meanwhile: the last sync then waits less."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pool = ThreadPoolExecutor(1, "parbake-sync")
        self._running: Future[None] | None = None
        self._since_nbytes = 0

    def wrote(self, nbytes: int) -> None:
        """Count bytes that were written. Raises OSError for those that did not reach the disk."""
        self._since_nbytes += nbytes
        if self._since_nbytes >= _WRITEBACK_NBYTES and (self._running is None or self._running.done()):
            self._settle()
            self._since_nbytes = 0
            self._running = self._pool.submit(_sync_data, self._descriptor)

    def _settle(self) -> None:
        if self._running is not None:
            self._running.result()

    def __enter__(self) -> Writeback:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._settle()


def write_durably(path: Path, content: bytes) -> None:
    """Write a whole file as ``durable`` does."""
    with durable(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a bake left below a folder when it was killed or failed."""
    for temporary in folder.rglob(".*.tmp"):
        temporary.unlink(missing_ok=True)
