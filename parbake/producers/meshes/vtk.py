"""Mesh results through VTK: VTU, PVTU, PVD, VTKHDF, Exodus, CGNS, OpenFOAM and XDMF, step by step.

VTK comes with the extra ``[mesh]`` (pyvista) and is imported when such a file is read. Only values at nodes
are taken; of an OpenFOAM case those that VTK interpolates from its cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from parbake.errors import MeshError
from parbake.producers.meshes.data import DTYPES, MeshData, Values, channel_names
from parbake.producers.meshes.geometry import Mesh
from parbake.producers.meshes.hdf5 import is_hdf5, refuse_links_outside
from parbake.producers.meshes.parts import PvdEntry, case_of, collection, parts_of
from parbake.producers.meshes.vtk_frames import Frame, joined, messages, side_by_side, vtk_module

Algorithm = Any  # a vtkAlgorithm: VTK ships no types

_READERS = {
    "vtu": ("vtkIOXML", "vtkXMLUnstructuredGridReader"),
    "pvtu": ("vtkIOXML", "vtkXMLPUnstructuredGridReader"),
    "vtkhdf": ("vtkIOHDF", "vtkHDFReader"),
    "exodus": ("vtkIOExodus", "vtkExodusIIReader"),
    "cgns": ("vtkIOCGNSReader", "vtkCGNSReader"),
    "openfoam": ("vtkIOGeometry", "vtkOpenFOAMReader"),
    "xdmf": ("vtkIOXdmf2", "vtkXdmfReader"),
}


class Steps(Protocol):
    """A result as a row of frames."""

    @property
    def times(self) -> Sequence[float]: ...
    def frame(self, step: int) -> Frame: ...


def read_vtk(path: Path, kind: str) -> MeshData:
    """The mesh result in a file of ``kind`` (of ``mesh_parts.kind_of``); steps are read when asked for.

    Fields are the floating-point arrays at the nodes of the first step. Raises MeshError for cells that are
    not supported, and, when it is read, for a step whose mesh or fields differ from the first's.
    """
    for part in parts_of(path):
        if kind in ("vtkhdf", "cgns", "xdmf") and is_hdf5(part):
            refuse_links_outside(part)
    steps: Steps = PvdSteps(collection(path)) if kind == "pvd" else FileSteps.open(path, kind)
    first = steps.frame(0)
    fields, others = _fields(first)
    notices = (*first.notices, *others)
    if not fields:
        raise MeshError("; ".join(("no field has values at the nodes", *notices)))
    mesh = Mesh(first.points, first.cells)
    dtypes = {channel: first.arrays[name].dtype.str for channel, (name, _) in fields.items()}
    values = FrameValues(steps, first, fields)
    return MeshData(mesh, np.array(steps.times), dtypes, {}, (*mesh.notices, *notices), values.fill)


@dataclass(frozen=True, eq=False)
class FrameValues:
    """Values by channel of frames that all have the mesh and the fields of the first."""

    steps: Steps
    first: Frame
    fields: Mapping[str, tuple[str, int | None]]

    def fill(self, out: Values, start: int, channels: Sequence[str]) -> None:
        """Write the steps from ``start`` on to ``out`` [step, node, channel]. Raises MeshError."""
        for i in range(len(out)):
            frame = self.steps.frame(start + i)
            where = f"step {start + i} (time {self.steps.times[start + i]:g})"
            if not frame.same_mesh(self.first):
                raise MeshError(f"{where}: another mesh than at step 0; give results whose mesh stays")
            for j, channel in enumerate(channels):
                name, component = self.fields[channel]
                array, like = frame.arrays.get(name), self.first.arrays[name]
                if array is None or (array.shape, array.dtype) != (like.shape, like.dtype):
                    found = "missing" if array is None else f"{array.dtype} {array.shape}"
                    raise MeshError(f"{where}: field {name!r} is {found}, unlike at step 0; leave it out")
                out[i, :, j] = array if component is None else array[:, component]


def _fields(frame: Frame) -> tuple[dict[str, tuple[str, int | None]], tuple[str, ...]]:
    """Field and component by channel, and a notice of arrays that are none."""
    fields: dict[str, tuple[str, int | None]] = {}
    others = []
    for name, array in frame.arrays.items():
        if array.dtype.str not in DTYPES:
            others.append(name)
            continue
        vector = array.ndim == 2
        for i, channel in enumerate(channel_names(name, array.shape[1] if vector else None)):
            if channel in fields:
                raise MeshError(f"two channels are named {channel!r}; rename a field")
            fields[channel] = (name, i if vector else None)
    notice = f"no floating-point values, left out: {', '.join(others)}"
    return fields, (notice,) if others else ()


# ---- steps


@dataclass(frozen=True, eq=False)
class FileSteps:
    """The steps that one VTK reader gives."""

    reader: Algorithm
    kind: str
    times: tuple[float, ...]
    timed: bool  # whether the file says times; a file without them is one step, at 0

    @classmethod
    def open(cls, path: Path, kind: str) -> FileSteps:
        module, name = _READERS[kind]
        with messages():
            reader = getattr(vtk_module(module), name)()
            reader.SetFileName(str(case_of(path) / "system" / "controlDict" if kind == "openfoam" else path))
            if kind == "openfoam":
                reader.SetListTimeStepsByControlDict(False)
                reader.SetSkipZeroTime(False)
                reader.SetCreateCellToPoint(True)
            if kind == "exodus":
                reader.SetApplyDisplacements(False)
                reader.SetGenerateObjectIdCellArray(False)
                reader.SetSqueezePoints(False)  # keeps the file's nodes and their order
            reader.UpdateInformation()
            _select(reader, kind)
            reader.UpdateInformation()
            info = reader.GetOutputInformation(0)
            key = vtk_module("vtkCommonExecutionModel").vtkStreamingDemandDrivenPipeline.TIME_STEPS()
            times = tuple(float(info.Get(key, i)) for i in range(info.Length(key))) if info.Has(key) else ()
        return cls(reader, kind, times or (0.0,), bool(times))

    def frame(self, step: int) -> Frame:
        with messages():
            if self.timed:
                self.reader.UpdateTimeStep(self.times[step])
            else:
                self.reader.Update()
            return joined(self.reader.GetOutputDataObject(0), self.kind)


@dataclass(frozen=True, eq=False)
class PvdSteps:
    """The steps of a PVD collection: each time has one file, or several parts."""

    entries: tuple[PvdEntry, ...]

    @property
    def times(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(entry.time for entry in self.entries))

    def frame(self, step: int) -> Frame:
        time = self.times[step]
        files = [entry.path for entry in self.entries if entry.time == time]
        frames = []
        for file in files:
            try:
                frames.append(FileSteps.open(file, file.suffix.lower().lstrip(".")).frame(0))
            except MeshError as error:
                raise MeshError(f"{file.name}: {error}") from None
        return side_by_side(frames)


def _select(reader: Algorithm, kind: str) -> None:
    """Ask for all values at nodes, and of an OpenFOAM case for its volume alone, not its patches."""
    if kind == "exodus":
        reader.SetAllArrayStatus(reader.NODAL, 1)
    if kind == "cgns":
        reader.EnableAllBases()
        reader.EnableAllFamilies()
        reader.EnableAllPointArrays()
    if kind == "openfoam":
        reader.DisableAllPatchArrays()
        reader.SetPatchArrayStatus("internalMesh", 1)
        reader.EnableAllCellArrays()
        reader.EnableAllPointArrays()
