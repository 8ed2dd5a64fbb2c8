"""The central directory of a zip archive: which members there are, and where. Pure, and kept compactly.

Format: PKWARE APPNOTE 6.3.10, sections 4.3 (records) and 4.5.3 (Zip64). No number that an archive states is
used before it was compared with the size of the file.
"""

from __future__ import annotations

import bisect
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.store.codecs import CodecError

END = struct.Struct("<4s4H2LH")  # disk, disk of directory, entries here, entries, nbytes, offset, comment
END_64 = struct.Struct("<4sQ2H2L4Q")  # size of the rest, two versions, then as in END
LOCATOR = struct.Struct("<4sLQL")  # disk, offset of END_64, disks
RECORD = struct.Struct("<4s6H3L5H2L")  # see Member for what is used of it
LOCAL = struct.Struct("<4s5H3L2H")
END_MAGIC, END_64_MAGIC, LOCATOR_MAGIC = b"PK\5\6", b"PK\6\6", b"PK\6\7"
RECORD_MAGIC, LOCAL_MAGIC, DESCRIPTOR_MAGIC = b"PK\1\2", b"PK\3\4", b"PK\7\10"
FULL_16, FULL_32 = 0xFFFF, 0xFFFFFFFF  # "see the Zip64 field"
ZIP_64_EXTRA = 1
UTF_8 = 1 << 11  # flags

_LENGTHS = struct.Struct("<4s24x3H")  # of a record: its magic, and how long name, extra field, comment are
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_STREAMED = 1 << 3
_PATCHED = 1 << 5
_STORED = 0
_DIRECTORY_NBYTES_MAX = 1 << 30  # ten million members
_BEYOND = 1 << 61  # stands for all offsets and sizes that no file has; sums of a few of them fit int64
_BLOCK_NBYTES = 4 * 1024**2
# what no name between zeros holds: parts that are empty, . or .., and backslashes. Searched for one by one:
# a regular expression takes 50 times as long
_ODD = (
    b"\0\0",
    b"\0/",
    b"//",
    b"\0./",
    b"\0../",
    b"/./",
    b"/../",
    b"/.\0",
    b"/..\0",
    b"\0.\0",
    b"\0..\0",
    b"\\",
)

Read: TypeAlias = Callable[[int, int], bytes]  # bytes [start, stop) of the file, fewer at its end


class Member(NamedTuple):
    """One record of the directory. ``nbytes``: as it lies in the archive; ``header``: offset in the file."""

    number: int
    name: bytes  # as in the archive
    flags: int
    method: int
    crc32: int
    nbytes: int
    nbytes_unpacked: int
    header: int


@dataclass(frozen=True)
class Directory:
    """All members: the records as they are, and three arrays; an object is made of a member on demand.

    ``by_name``: record numbers in the order of names, then of records. ``headers``: ascending offsets of all
    local headers. ``overlapped``: per record, whether its header lies in another member.
    """

    records: bytes
    position: int  # of the records in the file
    shift: int  # bytes before the archive
    starts: NDArray[np.int64]
    by_name: NDArray[np.int64]
    headers: NDArray[np.int64]
    overlapped: NDArray[np.bool_]

    def find(self, name: str) -> Member | None:
        """The member of this name; of several the last."""
        wanted = name.encode(errors="surrogatepass")
        place = bisect.bisect_right(self.by_name, wanted, key=self._name) - 1
        if place < 0 or self._name(self.by_name[place]) != wanted:
            return None
        return self._member(int(self.by_name[place]))

    def below(self, folder: str) -> list[str]:
        """Names of the files and folders directly in a folder: ``""``, or a path that ends in a slash."""
        prefix = folder.encode(errors="surrogatepass")
        found: set[str] = set()
        first = bisect.bisect_left(self.by_name, prefix, key=self._name)
        last = bisect.bisect_left(self.by_name, prefix + b"\xff", first, key=self._name)  # in no UTF-8
        starts = self.starts[self.by_name[first:last]].tolist()
        name_at = partial(_name_at, self.records)
        place = 0
        while place < len(starts):
            child, slash, _ = name_at(starts[place])[len(prefix) :].partition(b"/")
            if child:
                found.add(child.decode())
            place += 1
            if slash and child:  # beyond all that is in it, mostly little: 0 follows the slash
                beyond, stop = prefix + child + b"0", place + 1
                while stop < len(starts) and name_at(starts[stop]) < beyond:
                    stop += stop - place + 1
                place = bisect.bisect_left(starts, beyond, place, min(stop, len(starts)), key=name_at)
        return sorted(found)

    def files(self) -> Iterator[str]:
        """Names of all files, in their order."""
        last = len(self.by_name) - 1
        for place, number in enumerate(self.by_name):
            name = self._name(number)
            if not name.endswith(b"/") and (place == last or self._name(self.by_name[place + 1]) != name):
                yield name.decode()

    def _name(self, number: int) -> bytes:
        return _name_at(self.records, int(self.starts[number]))

    def _member(self, number: int) -> Member:
        return _member_at(self.records, int(self.starts[number]), number, self.shift)

    def locate(self, member: Member, read: Read) -> int:
        """Where in the file the bytes of a stored member begin. Raises CodecError."""
        name = member.name.decode(errors="replace")
        if member.flags & _ENCRYPTED:
            raise CodecError(f"{name} is encrypted; unzip the archive with its password")
        if member.method != _STORED or member.flags & _PATCHED:
            raise CodecError(
                f"{name} is compressed by the archive (method {member.method}), so it cannot be mapped; "
                "unzip it, and open the folder or pack that with 'zip -r -0'"
            )
        if member.nbytes != member.nbytes_unpacked:
            raise CodecError(
                f"{name} is stored as it is, but with {member.nbytes:,} bytes for {member.nbytes_unpacked:,}"
            )
        later = int(np.searchsorted(self.headers, member.header, "right"))
        limit = int(self.headers[later]) if later < len(self.headers) else self.position
        limit = min(limit, self.position)
        if not 0 <= member.header <= self.position - LOCAL.size:
            raise CodecError(f"{name} begins at byte {member.header:,}, outside of the archive's members")
        head = read(member.header, member.header + LOCAL.size + len(member.name))
        start, flags = _checked_local(head, member, name)
        stop = start + member.nbytes
        if stop > limit or self.overlapped[member.number]:
            raise CodecError(f"{name} overlaps another member, or the archive's directory")
        # no checksum covers the lengths in the header, which say where the bytes begin: that they end where
        # they must, at the next member or at a descriptor, shows them right; failing that the bytes' own
        ends = _is_described(member, read(stop, stop + 8)) if flags & _STREAMED else stop == limit
        if not ends:
            found = crc32_of(read, start, stop)
            if found != member.crc32:
                raise CodecError(f"{name} has CRC-32 {found:#010x} where {member.crc32:#010x} is stored")
        return start


def _checked_local(head: bytes, member: Member, name: str) -> tuple[int, int]:
    """Where a member's bytes begin, and its flags, by its local header. Raises CodecError."""
    fault = f"{name}: its header at byte {member.header:,}"
    if len(head) < LOCAL.size or not head.startswith(LOCAL_MAGIC):
        raise CodecError(f"{fault} is missing")
    _, _, flags, method, _, _, crc32, _, _, name_nbytes, extra_nbytes = LOCAL.unpack_from(head)
    if name_nbytes != len(member.name) or head[LOCAL.size :] != member.name:
        raise CodecError(f"{fault} is of another name")
    if method != member.method or (crc32 != member.crc32 and not flags & _STREAMED):
        raise CodecError(f"{fault} is not what the archive's directory says")
    return member.header + LOCAL.size + name_nbytes + extra_nbytes, flags


def _is_described(member: Member, after: bytes) -> bool:
    """Whether what follows a member is its data descriptor.

    One without its magic is not relied on: it may be the rest of one with it.
    """
    return after == DESCRIPTOR_MAGIC + member.crc32.to_bytes(4, "little")


def crc32_of(read: Read, start: int, stop: int) -> int:
    """CRC-32 of bytes [start, stop). Raises CodecError where the file ends before."""
    crc32 = 0
    while start < stop:
        block = read(start, min(start + _BLOCK_NBYTES, stop))
        if not block:
            raise CodecError("the archive was cut while it was open")
        crc32 = zlib.crc32(block, crc32)
        start += len(block)
    return crc32


# ---- opening


class _End(NamedTuple):
    """What the end of an archive says. ``position``: in the file, where the directory must end."""

    members: int
    nbytes: int
    offset: int
    position: int


def read_directory(read: Read, nbytes: int) -> Directory:
    """The directory of an archive of ``nbytes``. Raises CodecError."""
    end = _read_end(read, nbytes)
    position = end.position - end.nbytes
    shift = position - end.offset
    if position < 0 or shift < 0:
        raise CodecError(f"its directory of {end.nbytes:,} bytes at {end.offset:,} does not fit; it was cut")
    if end.nbytes > _DIRECTORY_NBYTES_MAX:
        raise CodecError(f"a directory of {end.nbytes:,} bytes; unzip it, or bake larger shards")
    records = read(position, end.position)
    starts, names = _walk(records, end)
    check_names(names)
    by_name = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    del names
    headers, lengths = _extents(records, starts, shift)
    order = np.argsort(headers, kind="stable")
    ascending = headers[order]
    reached = np.maximum.accumulate(ascending + lengths[order])
    overlapped = np.zeros(len(starts), np.bool_)
    overlapped[order[1:]] = reached[:-1] > ascending[1:]
    return Directory(records, position, shift, starts, by_name, ascending, overlapped)


def _read_end(read: Read, nbytes: int) -> _End:
    first = max(0, nbytes - END.size - FULL_16)
    tail = read(first, nbytes)
    at = tail.rfind(END_MAGIC)
    while at >= 0:
        if len(tail) - at >= END.size and len(tail) - at - END.size == END.unpack_from(tail, at)[-1]:
            break
        at = tail.rfind(END_MAGIC, 0, at + len(END_MAGIC) - 1)
    else:
        raise CodecError("not a zip archive, or one that was cut: nothing at its end says where it begins")
    _, *disks, count_here, count, size, offset, _ = END.unpack_from(tail, at)
    position = first + at
    locator = read(max(0, position - LOCATOR.size), position)
    if len(locator) == LOCATOR.size and locator.startswith(LOCATOR_MAGIC):
        return _read_end_64(read, position - LOCATOR.size, locator, (*disks, count_here, count, size, offset))
    if any(disks) or count_here != count:
        raise CodecError("one part of an archive in several files; join them")
    return _End(count, size, offset, position)


def _read_end_64(read: Read, locator_at: int, locator: bytes, short: tuple[int, ...]) -> _End:
    """The Zip64 end, which must agree with the fields of the ``short`` one that are not full."""
    at = locator_at - END_64.size
    found = read(max(0, at), locator_at)
    if len(found) != END_64.size or not found.startswith(END_64_MAGIC):
        raise CodecError("its Zip64 end is not where it belongs; it was damaged or cut")
    _, rest, _, _, *long = END_64.unpack(found)
    *disks, count_here, count, size, offset = long
    _, disk, end_offset, disk_count = LOCATOR.unpack(locator)
    full = (FULL_16,) * 4 + (FULL_32,) * 2
    agree = all(a in (b, none) for a, b, none in zip(short, long, full, strict=True))
    if not agree or rest != END_64.size - 12 or end_offset != offset + size:
        raise CodecError("its two ends contradict each other; it was damaged")
    if any(disks) or disk or disk_count > 1 or count_here != count:
        raise CodecError("one part of an archive in several files; join them")
    return _End(count, size, offset, at)


def _walk(records: bytes, end: _End) -> tuple[NDArray[np.int64], list[bytes]]:
    """Where each record starts, and all names."""
    starts, names = list[int](), list[bytes]()
    at, lengths, fixed = 0, _LENGTHS.unpack_from, RECORD.size
    while len(names) < end.members and at + fixed <= len(records):
        magic, name_nbytes, extra_nbytes, comment_nbytes = lengths(records, at)
        if magic != RECORD_MAGIC:
            break
        starts.append(at)
        at += fixed
        name = records[at : at + name_nbytes]
        names.append(name if name.isascii() else _name_at(records, at - fixed))
        at += name_nbytes + extra_nbytes + comment_nbytes
    if at != len(records) or end.nbytes != len(records) or len(names) != end.members:
        raise CodecError(
            f"its directory is damaged or was cut: {end.members:,} members are stated, and entry "
            f"{len(names):,} is none"
        )
    return np.array(starts, np.int64), names


def _name_at(records: bytes, start: int) -> bytes:
    """A record's name in UTF-8; without the flag that says so it is in code page 437, as zipfile has it."""
    _, name_nbytes, _, _ = _LENGTHS.unpack_from(records, start)
    start_of_name = start + RECORD.size
    name = records[start_of_name : start_of_name + name_nbytes]
    if name.isascii() or records[start + 9] & UTF_8 >> 8:
        return name
    return name.decode("cp437").encode()


def check_names(names: list[bytes]) -> None:
    """Refuse names that lead out of a folder, or mean different things to different readers."""
    if not names:
        return
    joined = b"\0" + b"\0".join(names) + b"\0"
    found = max(joined.find(odd) for odd in _ODD)
    if joined.count(b"\0") != len(names) + 1:
        odd = next(name for name in names if b"\0" in name)
    elif found >= 0:
        odd = names[joined.count(b"\0", 0, found + 1) - 1]
    else:
        try:
            joined.decode()
            return
        except UnicodeDecodeError as error:
            odd = names[joined.count(b"\0", 0, error.start) - 1]
    raise CodecError(f"a member is named {odd.decode(errors='replace')!r}, which is no name below a folder")


def _extents(
    records: bytes, starts: NDArray[np.int64], shift: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offset of each member's header in the file, and how many bytes it takes at least. Raises CodecError."""

    def column(at: int, dtype: str) -> NDArray[np.int64]:
        size = np.dtype(dtype).itemsize
        every_byte: NDArray[np.int64] = np.ndarray(
            (max(0, len(records) - size + 1),), dtype, records, 0, (1,)
        )
        return every_byte[starts + at].astype(np.int64)

    sizes, unpacked, names, offsets = (
        column(20, "<u4"),
        column(24, "<u4"),
        column(28, "<u2"),
        column(42, "<u4"),
    )
    full = (sizes == FULL_32) | (unpacked == FULL_32) | (offsets == FULL_32)
    offsets += shift
    for number in np.flatnonzero(full).tolist():
        member = _member_at(records, int(starts[number]), number, shift)
        sizes[number], unpacked[number], offsets[number] = (
            member.nbytes,
            member.nbytes_unpacked,
            member.header,
        )
    last = starts + (RECORD.size - 1) + names
    folder = (names > 0) & (np.frombuffer(records, np.uint8)[last] == ord("/"))
    if (folder & ((sizes > 0) | (unpacked > 0))).any():
        odd = _name_at(records, int(starts[np.argmax(folder & ((sizes > 0) | (unpacked > 0)))]))
        raise CodecError(f"the entry of the folder {odd.decode(errors='replace')!r} holds data")
    return offsets, sizes + names + LOCAL.size


def _member_at(records: bytes, start: int, number: int, shift: int) -> Member:
    """One record, its Zip64 fields in their places; numbers that no file has become one such number."""
    found = RECORD.unpack_from(records, start)
    flags, method, crc32, nbytes, unpacked, name_nbytes, extra_nbytes = (
        found[i] for i in (3, 4, *range(7, 12))
    )
    offset = found[-1]
    after_name = start + RECORD.size + name_nbytes
    if FULL_32 in (nbytes, unpacked, offset):
        wide = iter(_zip_64_fields(records[after_name : after_name + extra_nbytes]))
        unpacked, nbytes, offset = (
            next(wide, value) if value == FULL_32 else value for value in (unpacked, nbytes, offset)
        )
    unpacked, nbytes, offset = (min(value, _BEYOND) for value in (unpacked, nbytes, offset))
    name = records[start + RECORD.size : after_name]
    return Member(number, name, flags, method, crc32, nbytes, unpacked, offset + shift)


def _zip_64_fields(extra: bytes) -> list[int]:
    """The numbers in the Zip64 extra field, if there is one."""
    at = 0
    while at + 4 <= len(extra):
        kind, nbytes = struct.unpack_from("<2H", extra, at)
        if kind == ZIP_64_EXTRA:
            body = extra[at + 4 : at + 4 + nbytes]
            return [value for (value,) in struct.iter_unpack("<Q", body[: len(body) // 8 * 8])]
        at += 4 + nbytes
    return []
