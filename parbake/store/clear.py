"""Removes stores from a folder: which, and how without touching what is in use or not ours."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from parbake.errors import NotAStoreError, ParbakeError, StoreNotFoundError
from parbake.store.cache import REMOVED, StoreSummary
from parbake.store.containers import open_sealed
from parbake.store.publish import baking_lock, finish_swap, staging_root, unfinished_bakes
from parbake.store.zarr_format import ROOT


class InUseError(ParbakeError):
    """A store that is being baked or read, or that is not ours to remove; it was left alone."""


def unused_since(stores: Sequence[StoreSummary], moment: datetime) -> list[StoreSummary]:
    """Those that were last used before ``moment``, with a time zone."""
    return [store for store in stores if store.last_used is not None and store.last_used < moment]


def least_used_beyond(stores: Sequence[StoreSummary], nbytes_max: int) -> list[StoreSummary]:
    """The least recently used, as many as must go for the rest to fit into ``nbytes_max``."""
    excess = sum(store.nbytes_stored for store in stores) - nbytes_max
    chosen = []
    for store in sorted(stores, key=lambda store: _moment(store.last_used)):
        if excess <= 0:
            break
        chosen.append(store)
        excess -= store.nbytes_stored
    return chosen


def _moment(last_used: datetime | None) -> float:
    return last_used.timestamp() if last_used is not None else 0.0


def remove_store(path: Path) -> None:
    """Remove a store and the unfinished bakes of it. Raises InUseError, OSError.

    It vanishes in one step; what a reader has open stays readable to it where the system does so.
    """
    with _alone(path):
        _check_ours(path)
        _check_removable(path)
        for bake in unfinished_bakes(path):
            bake.staging.remove()
        if path.is_dir():
            gone = path.with_name(f".{path.name}.removed-{os.getpid()}")
            path.rename(gone)
            shutil.rmtree(gone)
        else:
            path.unlink(missing_ok=True)


def remove_remains(folder: Path) -> None:
    """Remove what removals that were interrupted have left in ``folder``."""
    for child in folder.iterdir():
        if REMOVED.fullmatch(child.name) and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)


def remove_unfinished(path: Path) -> None:
    """Remove the unfinished bakes of a store, and not the store. Raises InUseError, OSError."""
    with _alone(path):
        shutil.rmtree(staging_root(path), ignore_errors=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the right to bake ``path`` and the proof that nobody has it open. Raises InUseError."""
    if path.is_symlink():
        raise InUseError(f"{path}: a link to elsewhere; left alone")
    with baking_lock(path, _refuse):
        finish_swap(path)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # nothing but an unfinished bake
            yield
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(f"{path}: being read; left alone") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            os.close(descriptor)


def _refuse(waiting: str) -> None:
    raise InUseError(f"{waiting.split(';')[0]}; left alone")


def _check_ours(path: Path) -> None:
    try:
        contents = open_sealed(path)
        if contents is None or contents.sealed is None:
            raise NotAStoreError(f"{path}: not baked by parbake")
        contents.files.close()
        if path.is_file():
            return
        nodes = contents.sealed.root["consolidated_metadata"]["metadata"]
    except NotAStoreError:  # somebody's own, at the name of an unfinished bake
        raise InUseError(f"{path}: not a store; left alone, and the unfinished bake beside it") from None
    except StoreNotFoundError:  # nothing but an unfinished bake
        return
    except ParbakeError:  # broken: its metadata said that it is ours, but not of what it consists
        if path.is_file():
            return
        arrays = {c.name for c in path.iterdir() if (c / ROOT).is_file() or (c / "c").is_dir()}
        nodes = dict.fromkeys(arrays)
    known = {ROOT, *(node.partition("/")[0] for node in nodes)}
    if foreign := sorted(child.name for child in path.iterdir() if child.name not in known):
        raise InUseError(f"{path}: holds {foreign[0]!r}, which is not parbake's; left alone")


def _check_removable(path: Path) -> None:
    """Refuse a store of which only a part could be removed, before any of it is."""
    for parent, _, _ in os.walk(path):
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InUseError(f"{parent}: no permission to remove what is in it; {path.name} was left alone")
