"""Writes zip archives whose members can be mapped: stored as they are, at aligned places."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.store.durable import Writeback, durable, write_parts
from parbake.store.zip_index import (
    END,
    END_64,
    END_64_MAGIC,
    END_MAGIC,
    FULL_16,
    FULL_32,
    LOCAL,
    LOCAL_MAGIC,
    LOCATOR,
    LOCATOR_MAGIC,
    RECORD,
    RECORD_MAGIC,
    UTF_8,
    ZIP_64_EXTRA,
    check_names,
)

ALIGNMENT = (
    64  # of a member's bytes: chunks, which are aligned in their shard, are aligned in the archive too
)

_Part: TypeAlias = bytes | memoryview | NDArray[np.uint8]
_BLOCK_NBYTES = 4 * 1024**2  # whole huge pages: the page cache then keeps and maps them as such
_LONG_NBYTES = FULL_32  # what takes more than 32 bits
_ASIDE_NBYTES = 256 * 1024  # parts whose CRC is worth another thread
_EXTRA = struct.Struct("<2H")
_ZIP_64 = struct.Struct("<2H2Q")
_PADDING_EXTRA = 0xD935  # the field of zipalign: the alignment, then zeros
_PADDING = struct.Struct("<3H")
_VERSION, _VERSION_64 = 10, 45
_MADE_BY = 3 << 8 | _VERSION_64  # Unix
_PERMISSIONS = 0o100644 << 16
_MIDNIGHT = 0  # two bytes of time and two of date, the same for all members: equal stores are equal bytes
_FIRST_DAY = 1 << 5 | 1  # 1980-01-01


def write_zip(target: Path, members: Iterable[tuple[str, Iterable[_Part]]]) -> None:
    """Write an archive of (name, parts of its bytes), which takes its name once it is whole and durable.

    A part is no longer used when the next is asked for. Equal members give equal bytes. Raises OSError, and
    ValueError for names that are not of plain files below a folder.
    """
    with (
        durable(target) as file,
        Writeback(file.fileno()) as writeback,
        ThreadPoolExecutor(1, "parbake-crc") as aside,
    ):
        archive = _Archive(_BlockFile(file.fileno(), writeback), aside)
        for name, parts in members:
            archive.add(name, parts)
        archive.finish()


class _BlockFile:
    """A new file that is written in whole, aligned blocks, but for its end; see writer.py for why.

    Nothing that was written is referred to after the call.
    """

    def __init__(self, descriptor: int, writeback: Writeback) -> None:
        self._descriptor = descriptor
        self._writeback = writeback
        self._pending = bytearray()  # less than a block, from ``_flushed`` on
        self._flushed = 0

    @property
    def nbytes(self) -> int:
        return self._flushed + len(self._pending)

    def write(self, part: memoryview) -> None:
        whole = (len(self._pending) + len(part)) // _BLOCK_NBYTES * _BLOCK_NBYTES
        if whole:
            taken = whole - len(self._pending)
            self._write_all([memoryview(bytes(self._pending)), part[:taken]])
            self._pending.clear()
            part = part[taken:]
        self._pending += part

    def overwrite(self, start: int, content: bytes) -> None:
        """Replace bytes that were written before."""
        on_disk = min(len(content), max(0, self._flushed - start))
        if on_disk and os.pwrite(self._descriptor, content[:on_disk], start) != on_disk:
            raise OSError("a write was cut short")
        at = start + on_disk - self._flushed
        self._pending[at : at + len(content) - on_disk] = content[on_disk:]

    def flush(self) -> None:
        self._write_all([memoryview(bytes(self._pending))])
        self._pending.clear()

    def _write_all(self, parts: list[memoryview]) -> None:
        nbytes = write_parts(self._descriptor, parts)
        self._flushed += nbytes
        self._writeback.wrote(nbytes)


class _Archive:
    """An archive being written, and the records of what is in it."""

    def __init__(self, file: _BlockFile, aside: ThreadPoolExecutor) -> None:
        self._file = file
        self._aside = aside
        self._records = bytearray()
        self._names: set[bytes] = set()

    def add(self, name: str, parts: Iterable[_Part]) -> None:
        """Write one member; its size and CRC are put into its header when they are known."""
        encoded = self._admitted(name)
        header_at = self._file.nbytes
        extra_nbytes = _extra_nbytes(header_at + LOCAL.size + len(encoded))
        self._file.write(memoryview(_local(encoded, 0, 0, extra_nbytes)))
        start = self._file.nbytes
        crc32 = 0
        for part in parts:
            view = part.data if isinstance(part, np.ndarray) else memoryview(part)
            crc32 = self._write(view.cast("B"), crc32)
        nbytes = self._file.nbytes - start
        self._file.overwrite(header_at, _local(encoded, crc32, nbytes, extra_nbytes))
        self._records += _record(encoded, crc32, nbytes, header_at)

    def _admitted(self, name: str) -> bytes:
        encoded = name.encode()
        check_names([encoded])
        if len(encoded) > FULL_16 or encoded.endswith(b"/") or encoded in self._names:
            raise ValueError(f"member {name[:100]!r}: too long, a folder, or there already")
        self._names.add(encoded)
        return encoded

    def _write(self, part: memoryview, crc32: int) -> int:
        """Write a part, and take its CRC at the same time."""
        if len(part) < _ASIDE_NBYTES:
            self._file.write(part)
            return zlib.crc32(part, crc32)
        found = self._aside.submit(zlib.crc32, part, crc32)
        try:
            self._file.write(part)
        finally:
            crc32 = found.result()
        return crc32

    def finish(self) -> None:
        start, members = self._file.nbytes, len(self._names)
        self._file.write(memoryview(self._records))
        self._file.write(memoryview(_end(members, len(self._records), start)))
        self._file.flush()


def _extra_nbytes(start: int) -> int:
    """Size of an extra field that begins at ``start``, such that data after it is aligned.

    There is room for sizes of 64 bits, which are known only after the data, beside the padding.
    """
    least = _ZIP_64.size + _PADDING.size
    return least + -(start + least) % ALIGNMENT


def _local(name: bytes, crc32: int, nbytes: int, extra_nbytes: int) -> bytes:
    long, short = nbytes >= _LONG_NBYTES, _short(nbytes)
    extra = _ZIP_64.pack(ZIP_64_EXTRA, 16, nbytes, nbytes) if long else b""
    padding_nbytes = extra_nbytes - len(extra)
    extra += _PADDING.pack(_PADDING_EXTRA, padding_nbytes - _EXTRA.size, ALIGNMENT)
    head = LOCAL.pack(LOCAL_MAGIC, *_common(name, long), crc32, short, short, len(name), extra_nbytes)
    return head + name + extra.ljust(extra_nbytes, b"\0")


def _record(name: bytes, crc32: int, nbytes: int, header_at: int) -> bytes:
    wide = [value for value in (nbytes, nbytes, header_at) if value >= _LONG_NBYTES]
    extra = struct.pack(f"<2H{len(wide)}Q", ZIP_64_EXTRA, 8 * len(wide), *wide) if wide else b""
    short = _short(nbytes)
    head = RECORD.pack(
        RECORD_MAGIC,
        _MADE_BY,
        *_common(name, bool(wide)),
        crc32,
        short,
        short,
        len(name),
        len(extra),
        *(0, 0, 0),  # comment, disk, internal attributes
        _PERMISSIONS,
        _short(header_at),
    )
    return head + name + extra


def _common(name: bytes, long: bool) -> Sequence[int]:
    """Version, flags, method (stored), time and date."""
    return _VERSION_64 if long else _VERSION, 0 if name.isascii() else UTF_8, 0, _MIDNIGHT, _FIRST_DAY


def _end(members: int, nbytes: int, start: int) -> bytes:
    """What follows the records."""
    end = b""
    if members >= FULL_16 or max(nbytes, start) >= _LONG_NBYTES:
        numbers = (0, 0, members, members, nbytes, start)
        end += END_64.pack(END_64_MAGIC, END_64.size - 12, _MADE_BY, _VERSION_64, *numbers)
        end += LOCATOR.pack(LOCATOR_MAGIC, 0, start + nbytes, 1)
    short = min(members, FULL_16)
    return end + END.pack(END_MAGIC, 0, 0, short, short, _short(nbytes), _short(start), 0)


def _short(value: int) -> int:
    return value if value < _LONG_NBYTES else FULL_32
