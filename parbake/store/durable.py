"""Files that are either not there or whole, also after a power cut."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def temporary_name(path: Path) -> Path:
    """Where this thread writes what is to become ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


@contextlib.contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name, synced, once all is written; on a fault it is removed."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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
