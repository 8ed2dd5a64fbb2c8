"""Where a bake happens beside its store, who may, and how the result takes the store's place."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parbake.errors import NotAStoreError, RecipeError, UnfinishedStoreError
from parbake.store.containers import HDF5_SUFFIXES, container_of, is_ours, seal_of
from parbake.store.durable import sync_folder, write_durably
from parbake.store.keys import canonical
from parbake.store.zarr_format import ROOT

_OTHER_FORMATS = frozenset(
    (".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".mat", ".npz", ".npy", ".pkl", ".pickle", ".pt", ".pth")
)
_NOT_OURS = "not baked by parbake, or too damaged to tell; choose another path or remove it"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def resolved(path: str | os.PathLike[str]) -> Path:
    """The path that a bake writes to: links followed, so that all names of a store share one lock."""
    return Path(path).expanduser().resolve()


def staging_root(target: Path) -> Path:
    """The folder beside a store in which bakes of it lie until they are whole."""
    return target.with_name(f"{target.name}.baking")


@dataclass(frozen=True)
class Staging:
    """One bake in progress: ``folder/plan.json``, ``records/``, ``scalars/``, ``spool/`` and ``store/``.

    ``packed``: where the zip or HDF5 file is made, for targets that are one.
    """

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def packed(self, target: Path) -> Path:
        return self.folder / f"packed{target.suffix}"

    def made(self, target: Path) -> Path:
        """What takes the place of ``target``."""
        return self.store if container_of(target) == "directory" else self.packed(target)

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    @property
    def intent(self) -> Path:
        return self.folder / "swap.json"

    def record(self, slab: int) -> Path:
        """A slab with a record is complete: the records are the journal."""
        return self.folder / "records" / f"{slab}.json"

    def scalars(self, field: str, slab: int) -> Path:
        return self.folder / "scalars" / field / f"{slab}.bin"

    def spool(self, slab: int) -> Path:
        return self.folder / "spool" / str(slab)

    def remove(self) -> None:
        """Remove the bake, and the folder of bakes when it was the last. The journal goes first."""
        with contextlib.suppress(OSError):
            self.plan.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


@dataclass(frozen=True)
class Unfinished:
    """A bake that began and did not end."""

    staging: Staging
    slabs_done: int
    slabs: int
    command: str | None
    plan: Mapping[str, Any]

    def __str__(self) -> str:
        how = f"resume with '{self.command}'" if self.command else "run the same bake again to resume"
        return f"unfinished bake: {self.slabs_done} of {self.slabs} slabs; {how}"


def unfinished_bakes(path: str | os.PathLike[str]) -> list[Unfinished]:
    """The bakes of a store that can be resumed."""
    found = []
    try:
        plan_files = sorted(staging_root(resolved(path)).glob("*/plan.json"))
    except FileNotFoundError:  # published at this very moment
        return []
    for plan_file in plan_files:
        try:
            plan = json.loads(plan_file.read_bytes())
            staging = Staging(plan_file.parent)
            done = len(list(staging.record(0).parent.glob("*.json")))
            found.append(Unfinished(staging, min(done, plan["slabs"]), plan["slabs"], plan["command"], plan))
        except (OSError, ValueError, KeyError):  # being removed, or another version's
            continue
    return found


def raise_if_unfinished(path: Path) -> None:
    """Raise UnfinishedStoreError when a bake of this store can be resumed."""
    for bake in unfinished_bakes(path):
        raise UnfinishedStoreError(f"{path}: {bake}")


@contextlib.contextmanager
def baking_lock(target: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the one right to bake ``target``; ``waiting`` is told once whom it waits for.

    The lock ends with its process. Its file goes away with the last holder: a waiter that had opened it
    notices and opens the new one. Raises RecipeError where it would wait for its own parent: in a script
    that every process of a pool runs again when it starts.
    """
    from filelock import FileLock, Timeout

    file = target.with_name(f"{target.name}.lock")
    lock = FileLock(file, mode=0o666)  # in a shared folder others must be able to wait for it
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        holder = ""
        with contextlib.suppress(OSError):
            holder = file.read_text()
        if holder == _holder(os.getppid()):
            raise RecipeError(
                f"{target}: being baked by the script that started this process and runs in it again; put "
                "what the script does under: if __name__ == '__main__':"
            ) from None
        waiting(f"{target}: being baked by {holder or 'another process'}; waiting for it")
        lock.acquire(poll_interval=0.2)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise RecipeError(
            f"{target}: cannot write in {target.parent} ({error.strerror}); choose another path"
        ) from error
    try:
        file.write_text(_holder(os.getpid()))
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def _holder(pid: int) -> str:
    return f"process {pid} on {socket.gethostname()}"


def check_target(target: Path) -> None:
    """Refuse to bake over anything that is not a store, or within one; an empty folder makes way.

    Raises NotAStoreError, RecipeError.
    """
    if target.suffix.lower() in _OTHER_FORMATS:
        raise RecipeError(
            f"{target}: a store is a Zarr directory, a zip (.zip) or an HDF5 file "
            f"({', '.join(HDF5_SUFFIXES)}); choose another name"
        )
    for folder in target.parents:
        if (folder / ROOT).is_file() and is_ours(folder):
            raise RecipeError(f"{target}: lies in the store {folder}; choose a name outside of it")
    if target.is_dir():
        with contextlib.suppress(OSError):  # not empty, mostly
            target.rmdir()
            return
        if container_of(target) != "directory":
            raise NotAStoreError(
                f"{target}: a folder, where a file is to be; choose another path or remove it"
            )
        if is_ours(target):
            return
        raise NotAStoreError(f"{target}: a folder {_NOT_OURS}")
    if target.exists() and (container_of(target) == "directory" or not is_ours(target)):
        raise NotAStoreError(f"{target}: a file {_NOT_OURS}")


def swap_in(staging: Staging, target: Path, seal: str) -> None:
    """Put the whole store of ``staging`` in the place of ``target``, then remove the bake.

    Interrupted at any point, ``finish_swap`` completes it. Raises NotAStoreError where something that is no
    store came to lie there since the bake began.
    """
    with contextlib.suppress(OSError):  # an empty folder makes way; mostly there is none, or a store
        target.rmdir()
    if target.exists() and not is_ours(target):
        raise NotAStoreError(
            f"{target}: something not baked by parbake was put there meanwhile; move it away and run the "
            "same again"
        )
    if staging.made(target) == staging.store:
        for folder, _, _ in os.walk(staging.store):  # not every file system keeps a synced file's folders
            sync_folder(Path(folder))
    intent = {"seal": seal, "replaces": _identity(target)}
    write_durably(staging.intent, canonical(intent).encode())
    _swap(staging, target)
    staging.remove()


def finish_swap(target: Path) -> None:
    """Complete a swap that was interrupted. Only for who holds the lock.

    Only the very folder that was to be replaced is, never what somebody put there since.
    """
    for intent in staging_root(target).glob("*/swap.json"):
        staging = Staging(intent.parent)
        wanted = json.loads(intent.read_bytes())
        if wanted["seal"] not in (seal_of(target), seal_of(staging.made(target))):
            staging.remove()  # swapped, and then the new store was removed: what lies here is the old one
        elif seal_of(target) == wanted["seal"]:
            staging.remove()
        elif _identity(target) in (None, wanted["replaces"]):
            _swap(staging, target)
            staging.remove()
        else:
            intent.unlink()
    for folder in staging_root(target).glob("*"):
        if not Staging(folder).plan.exists():  # a removal that was interrupted
            Staging(folder).remove()
    with contextlib.suppress(OSError):  # mostly there is none, or another bake is in it
        staging_root(target).rmdir()


def _identity(target: Path) -> list[int] | None:
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    return [found.st_dev, found.st_ino]


def _swap(staging: Staging, target: Path) -> None:
    made = staging.made(target)
    if not target.exists() or made != staging.store:
        made.replace(target)
    elif not _exchange(staging.store, target):
        target.rename(staging.folder / "old")
        staging.store.rename(target)
    sync_folder(target.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step; false where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(b))
