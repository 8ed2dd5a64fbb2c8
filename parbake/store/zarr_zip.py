"""A Zarr store in a zip archive: its files, by byte ranges of the archive."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from parbake.errors import NotAStoreError
from parbake.store.codecs import CodecError
from parbake.store.opened import FileSpan, Held
from parbake.store.zip_index import Directory, Read, crc32_of, read_directory

_LEGACY = (".pt", ".pth", ".pkl", ".pickle")
_MAGIC_NBYTES = 8
_OTHERS = (  # how files begin that people have for data, and what to do with them
    (b"CDF\x01", "NetCDF-3; 'nccopy -k nc4' makes a NetCDF-4 file of it"),
    (b"CDF\x02", "NetCDF-3; 'nccopy -k nc4' makes a NetCDF-4 file of it"),
    (b"CDF\x05", "NetCDF-3; 'nccopy -k nc4' makes a NetCDF-4 file of it"),
    (b"\x93NUMPY", "a NumPy array; bake it with parbake.from_function, or write it with zarr.save_array"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"BZh", "compressed by bzip2; unpack it"),
    (b"\xfd7zXZ", "compressed by xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it"),
)
_ROOTS = ("zarr.json", ".zgroup", ".zarray")


class OpenZip(Held):
    """A zip archive.

    Names are below the one top folder that holds a Zarr node, where the archive's top is none itself.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError, NotAStoreError."""
        try:  # non-blocking: a fifo would wait for somebody to write
            super().__init__(path, os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a socket
                raise NotAStoreError(f"{path}: not a plain file") from None
            raise
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CodecError("not a plain file")
            read = _reading(self._descriptor)
            try:
                self._directory = read_directory(read, status.st_size)
            except CodecError as error:
                raise CodecError(_what_else(read(0, _MAGIC_NBYTES), path) or str(error)) from None
            self._root = _root_of(self._directory)
        except CodecError as error:
            self.close()
            raise NotAStoreError(f"{path}: {error}") from None
        except BaseException:
            self.close()
            raise

    @property
    def root(self) -> str:
        """The folder of the archive that the store is in; "" is the top."""
        return self._root.rstrip("/")

    def open(self, name: str) -> FileSpan:
        """A stored member. Raises FileNotFoundError, CodecError; ValueError when closed."""
        descriptor = os.dup(self.descriptor)  # first: another thread may close ours meanwhile
        try:
            member = self._directory.find(self._root + name)
            if member is None:
                raise FileNotFoundError(f"{self.path}: no member {name}")
            start = self._directory.locate(member, _reading(descriptor))
            if start + member.nbytes > os.fstat(descriptor).st_size:
                raise CodecError("the archive was cut while it was open")
        except BaseException:
            os.close(descriptor)
            raise
        return FileSpan(descriptor, start, member.nbytes)

    def names(self, folder: str) -> list[str]:
        """The files and folders directly in ``folder``; "" is the top. Raises FileNotFoundError."""
        found = self._directory.below(self._root + (f"{folder}/" if folder else ""))
        if folder and not found and self._directory.find(f"{self._root}{folder}/") is None:
            raise FileNotFoundError(f"{self.path}: no folder {folder}")
        return found

    def files(self) -> list[str]:
        """The names of all files."""
        skip = len(self._root)
        return [name[skip:] for name in self._directory.files() if name.startswith(self._root)]

    def crc32(self, name: str) -> int:
        """The recorded CRC-32 of a member. Raises FileNotFoundError."""
        member = self._directory.find(self._root + name)
        if member is None:
            raise FileNotFoundError(f"{self.path}: no member {name}")
        return member.crc32


def zip_faults(files: OpenZip) -> list[tuple[str, str]]:
    """The (member, fault) of all members that cannot be read or are not what their CRC-32 says."""
    faults = []
    for name in files.files():
        try:
            span = files.open(name)
            try:
                found = crc32_of(_reading(span.descriptor), span.start, span.start + span.nbytes)
            finally:
                os.close(span.descriptor)
            recorded = files.crc32(name)
            if found != recorded:
                raise CodecError(f"CRC-32 {found:#010x} where {recorded:#010x} is recorded")
        except CodecError as error:
            faults.append((name, str(error)))
    return faults


def _reading(descriptor: int) -> Read:
    def read(start: int, stop: int) -> bytes:
        content = os.pread(descriptor, stop - start, start)
        while 0 < len(content) < stop - start:  # a call gives 2 GiB at most
            part = os.pread(descriptor, stop - start - len(content), start + len(content))
            if not part:
                break
            content += part
        return content

    return read


def _what_else(start: bytes, path: Path) -> str | None:
    """What a file seems to be that is no zip, nor meant to be one."""
    if start.startswith(b"PK") or path.suffix.lower() == ".zip":
        return None
    if not start:
        return "an empty file"
    if path.suffix.lower() in _LEGACY:
        return "neither Zarr nor HDF5 but a cache; 'parbake convert' makes a store of it"
    found = next((what for magic, what in _OTHERS if start.startswith(magic)), None)
    return f"neither Zarr nor HDF5 but {found}" if found else "neither Zarr nor HDF5, whatever its name"


def _root_of(directory: Directory) -> str:
    """The folder that the store is in. Raises CodecError where there are several."""
    tops = ["", *(f"{name}/" for name in directory.below(""))]
    found = [top for top in tops if any(directory.find(top + root) for root in _ROOTS)]
    if "" in found or not found:
        return ""
    if len(found) > 1:
        raise CodecError(f"holds several stores ({', '.join(found[:3])}...); unzip it and open one of them")
    return found[0]
