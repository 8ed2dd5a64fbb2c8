"""Hashes of files by content, and what else follows from files, remembered as long as they stand."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parbake.errors import KeysError, StoreNotFoundError
from parbake.settings import cache_home

_MEMO_NBYTES = 8 * 1024**2  # smaller files are hashed faster than a memo is found
_MEMO_AGE_S = 2.0  # a file changed within the clock's grain of its hash may change again unseen
_DIGEST_CHARS = 64


def file_sha256(path: Path, *, rehash: bool = False) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; remembered for large files.

    A remembered hash counts for the same device, inode, size and both change times only, and is kept
    only for files that had not changed for two seconds. ``rehash`` reads the file in any case. Raises
    StoreNotFoundError, KeysError for a folder.
    """
    try:
        before = path.stat()
        quiet = _quiet(before)
        memo = cache_home() / "file-hashes" / _state(before)
        large = before.st_size >= _MEMO_NBYTES
        if large and not rehash and (known := _remembered(memo)) is not None:
            return known
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise StoreNotFoundError(f"{path}: no such file, and its content is an invalidation key") from None
    except IsADirectoryError:
        raise KeysError(f"{path} is a folder; name the files that matter") from None
    if large and quiet and _state(path.stat()) == memo.name:
        _write_memo(memo, digest)
    return digest


@dataclass(frozen=True)
class Snapshot:
    """Files and folders as they stood at one moment; the first path is the one that the user named.

    ``states``: device, inode, size and both change times of each path; of a folder they change with the
    names in it. ``quiet``: nothing had changed for two seconds, so that any later change shows.
    """

    paths: tuple[Path, ...]
    states: tuple[str, ...]
    quiet: bool

    @classmethod
    def take(cls, paths: Iterable[Path]) -> Snapshot:
        """How ``paths`` stand now. Raises StoreNotFoundError for one that is not there."""
        found = tuple(paths)
        stats = []
        for path in found:
            try:
                stats.append(path.stat())
            except OSError as error:
                raise StoreNotFoundError(f"{path}: {error.strerror or error}") from None
        return cls(found, tuple(map(_state, stats)), all(map(_quiet, stats)))

    @property
    def stamps(self) -> tuple[str, ...]:
        """Size and time of the last write of each path: what other hosts of a shared disk see alike."""
        return tuple("-".join(state.split("-")[2:4]) for state in self.states)

    def changed(self) -> Path | None:
        """The first path that does not stand as it did, or None."""
        for path, state in zip(self.paths, self.states, strict=True):
            try:
                if _state(path.stat()) != state:
                    return path
            except OSError:
                return path
        return None


def recall(path: Path, kind: str) -> tuple[Snapshot, dict[str, Any]] | None:
    """What ``remember`` kept of ``path`` and all files beside it, if each stands as it did then.

    Costs one read of a small file and one ``stat`` a path. ``kind`` tells who remembers, in which form.
    """
    try:
        stat = path.stat()
        found = json.loads(_derived_memo(kind, _state(stat)).read_text())
        paths = (path, *(path.parent / name for name in found["beside"]))
        values, states = dict(found["values"]), [str(state) for state in found["states"]]
        now = Snapshot.take(paths)
    except (OSError, ValueError, TypeError, KeyError):  # no memo, or one that a power cut left half written
        return None
    return (now, values) if list(now.states) == states else None


def remember(snapshot: Snapshot, kind: str, values: Mapping[str, Any]) -> None:
    """Keep ``values`` (JSON) beside what is kept already of the files, for as long as they stand so.

    The snapshot must have been taken before the files were read: of one that changed meanwhile nothing is
    recalled. Paths beside the first are kept relative to its folder.
    """
    if not snapshot.quiet:
        return
    main, *beside = snapshot.paths
    known = recall(main, kind)
    before = known[1] if known is not None and known[0].states == snapshot.states else {}
    found = {
        "beside": [os.path.relpath(path, main.parent) for path in beside],
        "states": snapshot.states,
        "values": {**before, **values},
    }
    _write_memo(_derived_memo(kind, snapshot.states[0]), json.dumps(found))


def _derived_memo(kind: str, state: str) -> Path:
    return cache_home() / "file-hashes" / kind / state


def _state(stat: os.stat_result) -> str:
    parts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return "-".join(map(str, parts))


def _quiet(stat: os.stat_result) -> bool:
    """Whether nothing had changed for two seconds. To be asked before reading: a file written twice
    within one tick of the clock, once before and once during the read, would look the same after it."""
    return time.time() - max(stat.st_mtime, stat.st_ctime) > _MEMO_AGE_S


def _remembered(memo: Path) -> str | None:
    try:
        text = memo.read_text()
    except OSError:
        return None
    return text if len(text) == _DIGEST_CHARS else None  # a power cut may leave it empty


def _write_memo(memo: Path, text: str) -> None:
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary = memo.with_name(f"{memo.name}.{os.getpid()}-{threading.get_ident()}")
        temporary.write_text(text)
        temporary.rename(memo)
    except OSError:  # a read-only cache folder costs time, not correctness
        return
