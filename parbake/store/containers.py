"""Which container lies at a path, or is meant by its name, and how each is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

from parbake.errors import DamagedStoreError, NotAStoreError, ParbakeError, RecipeError, StoreNotFoundError
from parbake.store import hdf5, zarr_dir
from parbake.store.contents import Contents
from parbake.store.foreign import hdf5 as foreign_hdf5
from parbake.store.foreign import zarr as foreign_zarr
from parbake.store.hdf5_index import is_hdf5
from parbake.store.opened import OpenFolder
from parbake.store.zarr_zip import OpenZip, zip_faults

Container: TypeAlias = Literal["directory", "zip", "HDF5"]
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".nc")


def container_of(path: Path) -> Container:
    """The container that a path to be written to names, by its suffix."""
    if path.suffix.lower() == ".zip":
        return "zip"
    return "HDF5" if path.suffix.lower() in HDF5_SUFFIXES else "directory"


def open_contents(path: Path, sample_dim: str | None = None) -> Contents:
    """Whatever lies at ``path``, ours or foreign, by its content.

    ``sample_dim``: of a foreign file, the name of the dimension that counts samples. Raises
    StoreNotFoundError, NotAStoreError, DamagedStoreError, RecipeError.
    """
    found = _open(path)
    if found is None:
        contents = foreign_hdf5.open_contents(path, sample_dim)
    elif isinstance(found, Contents):
        if sample_dim is not None:
            found.files.close()
            raise RecipeError(
                f"{path}: a store of parbake's, whose sample axis is known; leave sample_dim out"
            )
        contents = found
    else:
        try:
            contents = foreign_zarr.open_contents(found, sample_dim)
        except BaseException:
            found.close()
            raise
    return contents


def open_sealed(path: Path) -> Contents | None:
    """The store of parbake's at ``path``, None for what others wrote.

    Raises StoreNotFoundError, NotAStoreError, DamagedStoreError.
    """
    found = _open(path)
    if isinstance(found, OpenFolder | OpenZip):
        found.close()
    return found if isinstance(found, Contents) else None


def is_ours(path: Path) -> bool:
    """Whether parbake wrote what lies at ``path``, damaged or not."""
    try:
        contents = open_sealed(path)
    except DamagedStoreError:
        return True
    except ParbakeError:
        return False
    if contents is not None:
        contents.files.close()
    return contents is not None


def seal_of(path: Path) -> str | None:
    """The seal of parbake's store at ``path``; None where there is none, or none that can be opened."""
    try:
        contents = open_sealed(path)
    except (ParbakeError, OSError):
        return None
    if contents is None:
        return None
    contents.files.close()
    return contents.version


def _with_archive(contents: Contents, archive: OpenZip) -> Contents:
    """The contents of a zip, of which verification checks what other readers of archives would."""
    sealed = contents.sealed
    assert sealed is not None
    faults = sealed.faults
    return replace(contents, sealed=replace(sealed, faults=lambda: faults() + zip_faults(archive)))


def _open(path: Path) -> Contents | OpenFolder | OpenZip | None:
    """A store of ours; else the files of a foreign Zarr, or None for a foreign HDF5 file."""
    try:
        if not path.is_dir() and is_hdf5(path):
            return hdf5.open_contents(path) if hdf5.is_ours(path) else None
        files = OpenFolder(path) if path.is_dir() else OpenZip(path)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(f"{path}: nothing there; bake it first") from None
    try:
        try:
            contents = zarr_dir.open_contents(files)
        except NotAStoreError:
            if zarr_dir.is_ours(files):
                raise
            return files
        return contents if isinstance(files, OpenFolder) else _with_archive(contents, files)
    except BaseException:
        files.close()
        raise
