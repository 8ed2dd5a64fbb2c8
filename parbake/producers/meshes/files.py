"""Which reader reads which mesh result."""

from __future__ import annotations

from pathlib import Path

from parbake.errors import MeshError, ParbakeError
from parbake.producers.meshes.data import MeshData
from parbake.producers.meshes.parts import kind_of, parts_of
from parbake.store.files import Snapshot


def read_mesh_file(path: Path) -> MeshData:
    """The mesh result at ``path``, a file or an OpenFOAM case. Raises MeshError, naming ``path``.

    ``.npz`` and HDF5 as ``layout`` says; VTU, PVTU, PVD, VTKHDF, Exodus, CGNS, XDMF and OpenFOAM through
    VTK. Values are read when they are asked for.
    """
    try:
        kind = kind_of(path)
        if kind == "npz":
            from parbake.producers.meshes.npz import read_npz

            return read_npz(path)
        if kind == "hdf5":
            from parbake.producers.meshes.hdf5 import is_vtkhdf, read_hdf5

            if not is_vtkhdf(path):
                return read_hdf5(path)
            kind = "vtkhdf"
        from parbake.producers.meshes.vtk import read_vtk

        return read_vtk(path, kind)
    except (ParbakeError, OSError) as error:
        raise MeshError(f"{path}: {error}") from None


def snapshot_of(path: Path) -> Snapshot:
    """How all files that the result at ``path`` consists of stand now. Raises MeshError, naming ``path``."""
    try:
        return Snapshot.take(parts_of(path))
    except (ParbakeError, OSError) as error:
        raise MeshError(f"{path}: {error}") from None
