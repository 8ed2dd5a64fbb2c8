"""Mesh results in HDF5 files, steps read as they are asked for; and what a file must not refer to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import MeshError
from parbake.producers.meshes.data import MeshData
from parbake.producers.meshes.layout import Column, read_layout

if TYPE_CHECKING:
    import h5py

_SMALL_NBYTES = 1024**2
_RATIO_MOST = 2**16  # no filter gives more out of one byte of real points


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5 by its signature."""
    import h5py

    return path.is_file() and bool(h5py.is_hdf5(path))


def is_vtkhdf(path: Path) -> bool:
    """Whether an HDF5 file holds what VTK calls VTKHDF."""
    import h5py

    with _opened(path) as file:
        return file.get("VTKHDF", getclass=True, getlink=True) is h5py.HardLink


def read_hdf5(path: Path) -> MeshData:
    """The mesh result in an HDF5 file, whose datasets are named and laid out as ``layout`` says.

    Datasets ``fields/NAME`` may have an attribute ``units``. Raises MeshError, OSError.
    """
    refuse_links_outside(path)
    return read_layout(Datasets(path, _names(path)))


def refuse_links_outside(path: Path) -> None:
    """Raise MeshError if anything in an HDF5 file lies in another file: hashes and memos would miss it."""
    import h5py

    def outside(name: bytes, info: Any) -> str | None:  # what is returned ends the visit
        shown = name.decode(errors="replace")
        if info.type not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
            return f"{shown}: an external link; copy what it refers to into the file"
        if info.type == h5py.h5l.TYPE_HARD and isinstance(found := file[name], h5py.Dataset):
            plist = found.id.get_create_plist()
            if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
                return (
                    f"{shown}: a virtual or external dataset, its values in other files; copy them into this"
                )
        return None

    with _opened(path) as file:
        if found := file.id.links.visit(outside, info=True):
            raise MeshError(found)


@dataclass(frozen=True, eq=False)
class Datasets:
    """The arrays of an HDF5 file."""

    path: Path
    found: tuple[str, ...]

    def names(self) -> Sequence[str]:
        return self.found

    def column(self, name: str) -> Column:
        import h5py

        with _opened(self.path) as file:
            dataset = file[name]
            if h5py.check_string_dtype(dataset.dtype) is not None:
                return Texts(self.path, name, dataset.shape)
            nbytes = math.prod(dataset.shape) * dataset.dtype.itemsize
            if nbytes > max(_SMALL_NBYTES, dataset.id.get_storage_size() * _RATIO_MOST):
                stored = dataset.id.get_storage_size()
                raise MeshError(f"{name}: {nbytes:,} bytes are announced, where {stored:,} are stored")
            return Dataset(self.path, name, dataset.shape, dataset.dtype)

    def units(self, name: str) -> str | None:
        with _opened(self.path) as file:
            found = file[name].attrs.get("units")
        if isinstance(found, bytes):
            found = found.decode(errors="replace")
        return found if isinstance(found, str) and found else None


@dataclass(frozen=True, eq=False)
class Dataset:
    """One dataset of numbers; the file is open while it is read only."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        try:
            with _opened(self.path) as file:
                return np.asarray(file[self.name][start:stop])
        except (OSError, KeyError) as error:
            raise MeshError(f"{self.name}: steps {start} to {stop - 1} cannot be read ({error})") from None


@dataclass(frozen=True, eq=False)
class Texts:
    """One dataset of strings, of fixed or variable length."""

    path: Path
    name: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.str_)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        with _opened(self.path) as file:
            texts = file[self.name].asstr(errors="replace")[start:stop]
        return np.asarray([str(text) for text in texts.tolist()])


def _opened(path: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise MeshError(f"not an HDF5 file, or a cut one ({error})".replace("\n", " ")) from None


def _names(path: Path) -> tuple[str, ...]:
    """Paths of the datasets at the root and one group below it."""
    import h5py

    with _opened(path) as file:
        found = []
        for name, item in file.items():
            if isinstance(item, h5py.Dataset):
                found.append(name)
            elif isinstance(item, h5py.Group) and name in ("cells", "fields"):
                found += [f"{name}/{inner}" for inner in item if isinstance(item.get(inner), h5py.Dataset)]
    return tuple(found)
