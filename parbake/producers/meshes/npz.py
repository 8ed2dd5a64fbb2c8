"""Mesh results in ``.npz`` files; steps of plainly stored members are read as they are asked for.

The member headers are NumPy's ("NEP 1, a simple file format for NumPy arrays"), the container is PKZIP's
(APPNOTE 4.3.7, local file header). Nothing is unpickled, and no size is believed that the file cannot hold.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import MeshError
from parbake.producers.meshes.data import MeshData
from parbake.producers.meshes.layout import Column, read_layout

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature ... lengths of name and extra
_SIGNATURE = b"PK\x03\x04"
_DEFLATE_MOST = 1032  # bytes out of one: the most that DEFLATE can give
_LARGE_NBYTES = 64 * 1024**2
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def read_npz(path: Path) -> MeshData:
    """The mesh result in an ``.npz`` file, laid out as ``layout`` says.

    Fields in plainly stored members (``np.savez``) are read by step. A compressed member
    (``np.savez_compressed``) and one in Fortran order is read whole at the first step asked for and kept in
    memory; where that is over 64 MiB a notice says so. Raises MeshError, OSError.
    """
    members = _members(path)
    data = read_layout(members)
    kept = [
        f"{name}: compressed, so all {column.nbytes / 1e6:,.0f} MB of it are kept in memory; "
        "np.savez gives a file whose steps are read one by one"
        for name in members.names()
        if (name == "fields" or name.startswith("fields/"))
        and isinstance(column := members.column(name), Kept)
        and column.nbytes > _LARGE_NBYTES
    ]
    return dataclasses.replace(data, notices=(*data.notices, *kept))


@dataclass(frozen=True, eq=False)
class Members:
    """The arrays of an ``.npz`` file."""

    path: Path
    infos: dict[str, zipfile.ZipInfo]

    def names(self) -> Sequence[str]:
        return tuple(self.infos)

    def units(self, name: str) -> str | None:
        return None  # an array of a zip member has no attributes; ``units`` is one for all fields

    def column(self, name: str) -> Column:
        if name not in self._columns:  # others may hold what is not read here, such as objects
            with zipfile.ZipFile(self.path) as file:
                self._columns[name] = _column(self.path, file, name, self.infos[name])
        return self._columns[name]

    @functools.cached_property
    def _columns(self) -> dict[str, Column]:
        return {}


@dataclass(frozen=True, eq=False)
class Kept:
    """A member that must be read from its start; whole in memory from the first read on."""

    path: Path
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str
    header_nbytes: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return self._array[start:stop]

    @functools.cached_property
    def _array(self) -> NDArray[Any]:
        flat = np.empty(math.prod(self.shape), self.dtype)
        rest = flat.view(np.uint8).data
        try:
            with zipfile.ZipFile(self.path) as file, file.open(self.info) as member:
                member.read(self.header_nbytes)
                while rest.nbytes and (count := _read_into(member, rest)):
                    rest = rest[count:]
                cut = bool(rest.nbytes) or bool(member.read(1))  # the last read checks the CRC
        except _BROKEN as error:
            raise MeshError(f"{self.info.filename}: {error}; copy the file again") from None
        if cut:
            raise MeshError(f"{self.info.filename}: not as long as its header says; copy the file again")
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


@dataclass(frozen=True, eq=False)
class Stored:
    """A member that lies in the file as it is, in C order."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    def read(self, start: int, stop: int) -> NDArray[Any]:
        rows = (stop - start, *self.shape[1:])
        row_nbytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        flat = np.fromfile(self.path, self.dtype, math.prod(rows), offset=self.offset + start * row_nbytes)
        if flat.size != math.prod(rows):
            raise MeshError(f"{self.name}: the file ends within steps {start} to {stop - 1}; copy it again")
        return flat.reshape(rows)


def _read_into(member: IO[bytes], buffer: memoryview) -> int:
    part = member.read(min(buffer.nbytes, 1024**2))
    buffer[: len(part)] = part
    return len(part)


def _members(path: Path) -> Members:
    try:
        with zipfile.ZipFile(path) as file:
            infos = {info.filename: info for info in file.infolist()}  # of equal names the last counts
    except _BROKEN as error:
        raise MeshError(f"not an .npz file, or a cut one ({error})") from None
    return Members(
        path, {name.removesuffix(".npy"): info for name, info in infos.items() if name.endswith(".npy")}
    )


def _column(path: Path, file: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> Column:
    """What a member's header says, held against what the file can hold."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise MeshError(f"{name}: encrypted, or compressed otherwise than NumPy does; save it with np.savez")
    most = info.compress_size * (_DEFLATE_MOST if info.compress_type else 1)
    if info.file_size > most or info.header_offset + info.compress_size > path.stat().st_size:
        raise MeshError(f"{name}: {info.file_size:,} bytes are announced, which the file cannot hold")
    try:
        with file.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"header version {version}")
            read_header = np.lib.format.read_array_header_1_0
            if version == (2, 0):
                read_header = np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read_header(member)
            header_nbytes = member.tell()
    except (*_BROKEN, ValueError, TypeError) as error:
        raise MeshError(f"{name}: not a NumPy array ({error})".replace("\n", " ")) from None
    if dtype.hasobject:
        raise MeshError(f"{name}: an array of objects would be unpickled, which runs code; save numbers")
    nbytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or header_nbytes + nbytes != info.file_size:
        raise MeshError(f"{name}: shape {shape} of {dtype} does not fit in {info.file_size:,} bytes")
    order = "F" if fortran_order and len(shape) > 1 else "C"
    large = name == "fields" or name.startswith("fields/")
    if info.compress_type == zipfile.ZIP_STORED and order == "C" and large:
        return Stored(path, name, shape, dtype, _data_offset(path, name, info) + header_nbytes)
    return Kept(path, info, shape, dtype, order, header_nbytes)


def _data_offset(path: Path, name: str, info: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size or not head.startswith(_SIGNATURE):
        raise MeshError(f"{name}: no member starts where the zip directory says; copy the file again")
    name_nbytes: int
    extra_nbytes: int
    _, name_nbytes, extra_nbytes = _LOCAL_HEADER.unpack(head)
    return info.header_offset + _LOCAL_HEADER.size + name_nbytes + extra_nbytes
