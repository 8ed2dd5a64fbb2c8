"""Hashes of files by content, remembered for large ones."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

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
        memo = _memo_path(before)
        large = before.st_size >= _MEMO_NBYTES
        if large and not rehash and (known := _remembered(memo)) is not None:
            return known
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise StoreNotFoundError(f"{path}: no such file, and its content is an invalidation key") from None
    except IsADirectoryError:
        raise KeysError(f"{path} is a folder; name the files that matter") from None
    quiet = time.time() - max(before.st_mtime, before.st_ctime) > _MEMO_AGE_S
    if large and quiet and _memo_path(path.stat()) == memo:
        _remember(memo, digest)
    return digest


def _memo_path(stat: os.stat_result) -> Path:
    parts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return cache_home() / "file-hashes" / "-".join(map(str, parts))


def _remembered(memo: Path) -> str | None:
    try:
        text = memo.read_text()
    except OSError:
        return None
    return text if len(text) == _DIGEST_CHARS else None  # a power cut may leave it empty


def _remember(memo: Path, digest: str) -> None:
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary = memo.with_name(f"{memo.name}.{os.getpid()}-{threading.get_ident()}")
        temporary.write_text(digest)
        temporary.rename(memo)
    except OSError:  # a read-only cache folder costs time, not correctness
        return
