"""VTK's data objects as arrays: points, cells by kind, values at nodes. VTK is imported within."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import MeshError
from parbake.producers.meshes.geometry import CORNERS

DataObject = Any  # a vtkDataObject: VTK ships no types

_CELLS = {5: "triangle", 9: "quad", 10: "tetra", 12: "hexahedron", 13: "wedge"}  # vtkCellType.h
_NO_AREA = {0: "empty", 1: "vertex", 2: "vertex", 3: "line", 4: "line"}


@dataclass(frozen=True, eq=False)
class Frame:
    """One step, blocks joined: points [node, 3], cells by kind [cell, corner], arrays [node(, component)]."""

    points: NDArray[np.float64]
    cells: Mapping[str, NDArray[np.int64]]
    arrays: Mapping[str, NDArray[Any]]
    notices: tuple[str, ...]

    def same_mesh(self, other: Frame) -> bool:
        """Whether points and cells equal those of ``other``, number by number."""
        return (
            np.array_equal(self.points, other.points)
            and self.cells.keys() == other.cells.keys()
            and all(np.array_equal(nodes, other.cells[kind]) for kind, nodes in self.cells.items())
        )


def _leaves(found: DataObject) -> Iterator[DataObject]:
    if found is None:
        return
    if not found.IsA("vtkCompositeDataSet"):
        yield found
        return
    iterator = found.NewIterator()
    iterator.InitTraversal()
    while not iterator.IsDoneWithTraversal():
        yield iterator.GetCurrentDataObject()
        iterator.GoToNextItem()


def _grid(block: DataObject) -> DataObject:
    """``block`` as an unstructured grid: zones of CGNS and grids of XDMF may be structured."""
    if block.IsA("vtkUnstructuredGrid"):
        return block
    append = vtk_module("vtkFiltersCore").vtkAppendFilter()
    append.AddInputData(block)
    append.Update()
    return append.GetOutput()


def joined(found: DataObject, kind: str) -> Frame:
    """One frame of all blocks. Those of Exodus share the file's nodes, others stand side by side."""
    frames = [_frame(_grid(block), kind) for block in _leaves(found) if block.GetNumberOfPoints()]
    if kind != "exodus" or not frames:
        return side_by_side(frames)
    cells = {
        name: np.concatenate([frame.cells[name] for frame in frames if name in frame.cells])
        for name in CORNERS
        if any(name in frame.cells for frame in frames)
    }
    return Frame(frames[0].points, cells, frames[0].arrays, _once(frames))


def side_by_side(frames: Sequence[Frame]) -> Frame:
    """Blocks one after another; nodes on a seam stay doubled."""
    if not frames:
        raise MeshError("no mesh in it; the file is empty, or its blocks are of a kind that is not read")
    if len(frames) == 1:
        return frames[0]
    starts = np.cumsum([0, *(len(frame.points) for frame in frames)])
    cells = {
        name: np.concatenate(
            [f.cells[name] + start for f, start in zip(frames, starts[:-1], strict=True) if name in f.cells]
        )
        for name in CORNERS
        if any(name in frame.cells for frame in frames)
    }
    arrays, partly = {}, []
    for name in dict.fromkeys(name for frame in frames for name in frame.arrays):
        parts = [frame.arrays[name] for frame in frames if name in frame.arrays]
        if len(parts) == len(frames) and len({(part.dtype, part.shape[1:]) for part in parts}) == 1:
            arrays[name] = np.concatenate(parts)
        else:
            partly.append(name)
    notice = f"not the same in all {len(frames)} blocks, left out: {', '.join(partly)}"
    notices = (*_once(frames), *((notice,) if partly else ()))
    return Frame(np.concatenate([frame.points for frame in frames]), cells, arrays, notices)


def _once(frames: Sequence[Frame]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notice for frame in frames for notice in frame.notices))


def _frame(grid: DataObject, kind: str) -> Frame:
    numpy_of = vtk_module("util.numpy_support").vtk_to_numpy
    points = np.array(numpy_of(grid.GetPoints().GetData()), np.float64)
    cells, notices = _cells(grid, numpy_of)
    data, names = grid.GetPointData(), []
    arrays = {}
    for i in range(data.GetNumberOfArrays()):
        if data.GetArray(i) is not None:  # None: an array of strings
            arrays[str(data.GetArrayName(i))] = np.array(numpy_of(data.GetArray(i)))
    for i in range(grid.GetCellData().GetNumberOfArrays()):
        names.append(str(grid.GetCellData().GetArrayName(i)))
    if kind == "openfoam" and arrays:
        notices.append(f"cell values, interpolated to the nodes by VTK: {', '.join(arrays)}")
    elif names:
        notices.append(f"values of cells, not of nodes, left out: {', '.join(names)}")
    return Frame(points, cells, arrays, tuple(notices))


def _cells(
    grid: DataObject, numpy_of: Callable[[Any], NDArray[Any]]
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    if grid.GetNumberOfCells() == 0:
        return {}, []
    try:
        types = numpy_of(grid.GetCellTypes())  # VTK 9.6 and later
    except TypeError:
        types = numpy_of(grid.GetCellTypesArray())
    offsets = numpy_of(grid.GetCells().GetOffsetsArray())
    nodes = numpy_of(grid.GetCells().GetConnectivityArray())
    cells, dropped = {}, []
    for found in np.unique(types):
        which = np.flatnonzero(types == found)
        if int(found) in _CELLS:
            kind = _CELLS[int(found)]
            columns = offsets[which][:, None] + np.arange(CORNERS[kind])
            cells[kind] = np.asarray(nodes[columns], np.int64)
        elif int(found) in _NO_AREA:
            dropped.append(f"{len(which):,} {_NO_AREA[int(found)]} cells")
        else:
            raise MeshError(
                f"{len(which):,} cells are {_type_name(int(found))}; {', '.join(CORNERS)} are supported: "
                "divide the others into these"
            )
    return cells, [f"{' and '.join(dropped)}, left out"] if dropped else []


def _type_name(number: int) -> str:
    model = vtk_module("vtkCommonDataModel")
    names = getattr(model, "vtkCellTypeUtilities", None) or model.vtkCellTypes  # the former since VTK 9.6
    return str(names.GetClassNameFromTypeId(number))


# ---- VTK itself


def vtk_module(module: str) -> Any:
    try:
        return importlib.import_module(f"vtkmodules.{module}")
    except ImportError as error:
        raise MeshError(f"needs VTK ({error}); install it with: pip install 'parbake[mesh]'") from None


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Raise what VTK would print: MeshError with the first error it reports."""
    core = vtk_module("vtkCommonCore")
    window, before = core.vtkStringOutputWindow(), core.vtkOutputWindow.GetInstance()
    verbosity = core.vtkLogger.GetCurrentVerbosityCutoff()
    core.vtkOutputWindow.SetInstance(window)
    core.vtkLogger.SetStderrVerbosity(core.vtkLogger.VERBOSITY_OFF)
    try:
        yield
    finally:
        core.vtkOutputWindow.SetInstance(before)
        core.vtkLogger.SetStderrVerbosity(verbosity)
    if found := re.search(r"ERROR: In .*\n(?:\w+ \(0x[0-9a-f]+\): )?(.*)", str(window.GetOutput())):
        raise MeshError(f"VTK: {found[1].strip()}")
