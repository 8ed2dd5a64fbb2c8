"""Writes one small mesh result in every format that is read: by NumPy, h5py, netCDF4, VTK, as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np


@dataclass(frozen=True, eq=False)
class Result:
    """A mesh result as arrays, in the words of ``MeshSeries.from_arrays``."""

    points: np.ndarray
    cells: Mapping[str, np.ndarray]
    times: np.ndarray
    fields: Mapping[str, np.ndarray]


def plane(steps: int = 3, seed: int = 0) -> Result:
    """Two triangles and a quadrilateral; a scalar of float32 and a vector of float64."""
    rng = np.random.default_rng(seed)
    points = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [2, 0], [2.1, 1.3]], np.float64)
    cells = {"triangle": np.array([[0, 1, 2], [0, 2, 3]]), "quad": np.array([[1, 4, 5, 2]])}
    fields = {
        "p": rng.standard_normal((steps, 6)).astype(np.float32),
        "U": rng.standard_normal((steps, 6, 3)),
    }
    return Result(points, cells, 0.5 + 0.25 * np.arange(steps), fields)


def space(steps: int = 3) -> Result:
    """One hexahedron; a scalar and a vector, float32."""
    rng = np.random.default_rng(1)
    points = np.array([[x, y, z] for z in (0, 1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))], np.float64)
    fields = {
        "p": rng.standard_normal((steps, 8)).astype(np.float32),
        "U": rng.standard_normal((steps, 8, 3)).astype(np.float32),
    }
    return Result(points, {"hexahedron": np.arange(8)[None]}, 0.5 + 0.25 * np.arange(steps), fields)


def named(result: Result) -> dict[str, np.ndarray]:
    """The arrays by the names that .npz and HDF5 files use."""
    arrays = {"points": result.points, "times": result.times}
    arrays |= {f"cells/{kind}": nodes for kind, nodes in result.cells.items()}
    return arrays | {f"fields/{name}": values for name, values in result.fields.items()}


def write_npz(path: Path, result: Result) -> Path:
    np.savez(path, **named(result))
    return path


def write_npz_compressed(path: Path, result: Result) -> Path:
    np.savez_compressed(path, **named(result))
    return path


def write_hdf5(path: Path, result: Result) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in named(result).items():
            file[name] = array
    return path


# ---- VTK's own formats


_TYPES = {"triangle": 5, "quad": 9, "tetra": 10, "hexahedron": 12, "wedge": 13}


def points_3d(points: np.ndarray) -> np.ndarray:
    return np.pad(points, ((0, 0), (0, 3 - points.shape[1])))


def vtk_grid(result: Result, step: int) -> Any:
    """One step as a vtkUnstructuredGrid."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkUnstructuredGrid

    grid, points = vtkUnstructuredGrid(), vtkPoints()
    points.SetData(numpy_to_vtk(points_3d(result.points), deep=True))
    grid.SetPoints(points)
    for kind, cells in result.cells.items():
        for nodes in cells.tolist():
            grid.InsertNextCell(_TYPES[kind], len(nodes), nodes)
    for name, values in result.fields.items():
        array = numpy_to_vtk(np.ascontiguousarray(values[step]), deep=True)
        array.SetName(name)
        grid.GetPointData().AddArray(array)
    return grid


def save_vtu(path: Path, grid: Any) -> Path:
    from vtkmodules.vtkIOXML import vtkXMLUnstructuredGridWriter

    writer = vtkXMLUnstructuredGridWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(grid)
    assert writer.Write() == 1
    return path


def write_pvd(path: Path, result: Result) -> Path:
    """A collection that lists its steps from the last to the first."""
    entries = []
    for step, time in reversed(list(enumerate(result.times))):
        save_vtu(path.parent / f"{path.stem}-{step}.vtu", vtk_grid(result, step))
        entries.append(f'<DataSet timestep="{time}" group="" part="0" file="{path.stem}-{step}.vtu"/>')
    listed = f"<Collection>{''.join(entries)}</Collection>"
    path.write_text(f'<?xml version="1.0"?><VTKFile type="Collection">{listed}</VTKFile>')
    return path


def write_vtkhdf(path: Path, result: Result) -> Path:
    """VTKHDF 2.0 with steps, one mesh for all ("VTKHDF File Format", "Temporal data")."""
    steps, nodes = len(result.times), len(result.points)
    flat = [(kind, row) for kind, rows in result.cells.items() for row in rows.tolist()]
    connectivity = [node for _, row in flat for node in row]
    with h5py.File(path, "w") as file:
        root = file.create_group("VTKHDF")
        root.attrs["Version"] = np.array([2, 0])
        root.attrs.create(
            "Type", b"UnstructuredGrid", dtype=h5py.string_dtype("ascii", len("UnstructuredGrid"))
        )
        root["NumberOfPoints"] = np.array([nodes])
        root["NumberOfCells"] = np.array([len(flat)])
        root["NumberOfConnectivityIds"] = np.array([len(connectivity)])
        root["Points"] = points_3d(result.points)
        root["Connectivity"] = np.array(connectivity)
        root["Offsets"] = np.cumsum([0, *(len(row) for _, row in flat)])
        root["Types"] = np.array([_TYPES[kind] for kind, _ in flat], np.uint8)
        when = root.create_group("Steps")
        when.attrs["NSteps"] = steps
        when["Values"] = result.times
        when["NumberOfParts"] = np.ones(steps, np.int64)
        for name in ("PartOffsets", "PointOffsets"):
            when[name] = np.zeros(steps, np.int64)
        for name in ("CellOffsets", "ConnectivityIdOffsets"):
            when[name] = np.zeros((steps, 1), np.int64)
        for name, values in result.fields.items():
            root[f"PointData/{name}"] = values.reshape(steps * nodes, *values.shape[2:])
            when[f"PointDataOffsets/{name}"] = nodes * np.arange(steps)
    return path


# ---- others


def write_exodus(path: Path, result: Result, format: str = "NETCDF4") -> Path:
    """Exodus II ("EXODUS II: A Finite Element Data Model", appendix A); a block for each kind of cell.

    All nodal variables of a file have one dtype.
    """
    import netCDF4

    kinds = {"triangle": "TRI3", "quad": "QUAD4", "tetra": "TET4", "hexahedron": "HEX8", "wedge": "WEDGE6"}
    variables = {}
    for name, values in result.fields.items():
        columns = [values] if values.ndim == 2 else list(np.moveaxis(values, 2, 0))
        suffixes = [""] if values.ndim == 2 else ["X", "Y", "Z"]
        variables |= {f"{name}{suffix}": column for suffix, column in zip(suffixes, columns, strict=True)}
    kind = "f4" if all(v.dtype == np.float32 for v in variables.values()) else "f8"
    with netCDF4.Dataset(path, "w", format=format) as file:
        file.setncatts({"title": "test", "api_version": np.float32(5.1), "version": np.float32(5.1)})
        file.setncatts(
            {"floating_point_word_size": np.int32(4 if kind == "f4" else 8), "file_size": np.int32(1)}
        )
        file.createDimension("len_name", 33)
        file.createDimension("time_step", None)
        file.createDimension("num_dim", 3)
        file.createDimension("num_nodes", len(result.points))
        file.createDimension("num_elem", sum(map(len, result.cells.values())))
        file.createDimension("num_el_blk", len(result.cells))
        file.createDimension("num_nod_var", len(variables))
        file.createVariable("time_whole", "f8", ("time_step",))[:] = result.times
        for axis, values in zip("xyz", points_3d(result.points).T, strict=True):
            file.createVariable(f"coord{axis}", "f8", ("num_nodes",))[:] = values
        file.createVariable("eb_status", "i4", ("num_el_blk",))[:] = 1
        blocks = file.createVariable("eb_prop1", "i4", ("num_el_blk",))
        blocks.setncattr("name", "ID")
        blocks[:] = 1 + np.arange(len(result.cells))
        for i, (name, cells) in enumerate(result.cells.items(), start=1):
            file.createDimension(f"num_el_in_blk{i}", len(cells))
            file.createDimension(f"num_nod_per_el{i}", cells.shape[1])
            connect = file.createVariable(f"connect{i}", "i4", (f"num_el_in_blk{i}", f"num_nod_per_el{i}"))
            connect.setncattr("elem_type", kinds[name])
            connect[:] = cells + 1
        names = file.createVariable("name_nod_var", "S1", ("num_nod_var", "len_name"))
        for i, (name, values) in enumerate(variables.items()):
            names[i] = np.array(list(name.ljust(33, "\0")), "S1")
            file.createVariable(f"vals_nod_var{i + 1}", kind, ("time_step", "num_nodes"))[:] = values
    return path


def write_xdmf(path: Path, result: Result) -> Path:
    """XDMF with its numbers in an HDF5 file beside it; one kind of cell."""
    [(kind, cells)] = result.cells.items()
    heavy = path.with_suffix(".h5")
    grids = []

    def item(name: str, array: np.ndarray) -> str:
        number = "Int" if array.dtype.kind == "i" else "Float"
        shape = " ".join(map(str, array.shape))
        return (
            f'<DataItem Dimensions="{shape}" NumberType="{number}" Precision="{array.dtype.itemsize}" '
            f'Format="HDF">{heavy.name}:/{name}</DataItem>'
        )

    points = points_3d(result.points)
    with h5py.File(heavy, "w") as file:
        file["cells"], file["points"] = cells, points
        for step, time in enumerate(result.times):
            attributes = ""
            for name, values in result.fields.items():
                file[f"{name}-{step}"] = values[step]
                rank = "Scalar" if values.ndim == 2 else "Vector"
                inner = item(f"{name}-{step}", values[step])
                attributes += (
                    f'<Attribute Name="{name}" AttributeType="{rank}" Center="Node">{inner}</Attribute>'
                )
            grids.append(
                f'<Grid Name="g" GridType="Uniform"><Time Value="{time}"/>'
                f'<Topology TopologyType="{kind.capitalize()}" NumberOfElements="{len(cells)}">'
                f"{item('cells', cells)}</Topology>"
                f'<Geometry GeometryType="XYZ">{item("points", points)}</Geometry>{attributes}</Grid>'
            )
    path.write_text(
        '<?xml version="1.0"?><Xdmf Version="2.0"><Domain><Grid Name="t" GridType="Collection" '
        f'CollectionType="Temporal">{"".join(grids)}</Grid></Domain></Xdmf>'
    )
    return path


def write_cgns(path: Path, result: Result) -> Path:
    """CGNS over HDF5 ("CGNS SIDS File Mapping Manual for HDF5"): one unstructured zone, a solution a step."""
    names = {"triangle": 5, "quad": 7, "tetra": 10, "hexahedron": 17, "wedge": 14}

    def node(parent: Any, name: str, label: str, data: Any = None) -> Any:
        group = parent.create_group(name, track_order=True)
        group.attrs.create("name", name.encode(), dtype="S33")
        group.attrs.create("label", label.encode(), dtype="S33")
        kind = "MT"
        if isinstance(data, str):
            data = np.frombuffer(data.encode(), np.int8)
            kind = "C1"
        elif data is not None:
            data = np.asarray(data)
            kind = {"f4": "R4", "f8": "R8", "i4": "I4", "i8": "I8"}[data.dtype.str[1:]]
        group.attrs.create("type", kind.encode(), dtype="S3")
        group.attrs["flags"] = np.array([1], np.int32)
        if data is not None:
            group[" data"] = data
        return group

    steps = len(result.times)
    with h5py.File(path, "w", track_order=True) as file:
        for key, text in (("label", b"Root Node of HDF5 File"), ("name", b"HDF5 MotherNode")):
            file.attrs.create(key, text, dtype="S33")
        file.attrs.create("type", b"MT", dtype="S3")
        file[" format"] = np.frombuffer(b"IEEE_LITTLE_32\0", np.int8)
        file[" hdf5version"] = np.frombuffer(b"HDF5 Version 1.8.17".ljust(33, b"\0"), np.int8)
        node(file, "CGNSLibraryVersion", "CGNSLibraryVersion_t", np.array([3.4], np.float32))
        base = node(
            file, "Base", "CGNSBase_t", np.array([3 if "hexahedron" in result.cells else 2, 3], np.int32)
        )
        iterative = node(base, "BaseIterativeData", "BaseIterativeData_t", np.array([steps], np.int32))
        node(iterative, "TimeValues", "DataArray_t", result.times)
        count = sum(map(len, result.cells.values()))
        zone = node(base, "Zone", "Zone_t", np.array([[len(result.points)], [count], [0]], np.int32))
        node(zone, "ZoneType", "ZoneType_t", "Unstructured")
        coordinates = node(zone, "GridCoordinates", "GridCoordinates_t")
        for axis, values in zip("XYZ", points_3d(result.points).T, strict=True):
            node(coordinates, f"Coordinate{axis}", "DataArray_t", np.ascontiguousarray(values))
        start = 1
        for kind, cells in result.cells.items():
            section = node(zone, kind, "Elements_t", np.array([names[kind], 0], np.int32))
            node(section, "ElementRange", "IndexRange_t", np.array([start, start + len(cells) - 1], np.int32))
            node(section, "ElementConnectivity", "DataArray_t", (cells + 1).astype(np.int32).ravel())
            start += len(cells)
        pointers = b""
        for step in range(steps):
            solution = node(zone, f"Solution{step}", "FlowSolution_t")
            node(solution, "GridLocation", "GridLocation_t", "Vertex")
            pointers += f"Solution{step}".encode().ljust(32)
            for name, values in result.fields.items():
                columns = [values[step]] if values.ndim == 2 else list(values[step].T)
                for suffix, column in zip([""] if values.ndim == 2 else "XYZ", columns, strict=False):
                    node(solution, f"{name}{suffix}", "DataArray_t", np.ascontiguousarray(column))
        history = node(zone, "ZoneIterativeData", "ZoneIterativeData_t")
        named_steps = node(history, "FlowSolutionPointers", "DataArray_t")
        named_steps.attrs.modify("type", np.bytes_(b"C1").astype("S3"))
        named_steps[" data"] = np.frombuffer(pointers, np.int8).reshape(steps, 32)
    return path


def write_openfoam(case: Path, times: tuple[str, ...] = ("0", "0.5", "1")) -> Path:
    """A case of two cubes in a row, with a uniform field T and a field U that differs between the two."""

    def dump(path: Path, kind: str, name: str, body: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"FoamFile\n{{\n version 2.0;\n format ascii;\n class {kind};\n object {name};\n}}\n\n{body}\n"
        )

    points = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1, 2)]
    number = {point: i for i, point in enumerate(points)}
    between = [[(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1)]]
    outside = [
        [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)],
        [(0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)],
        [(0, 1, 0), (0, 1, 1), (1, 1, 1), (1, 1, 0)],
        [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)],
        [(0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)],
    ]
    far = [[(2, 0, 0), (2, 1, 0), (2, 1, 1), (2, 0, 1)]]
    far += [[(x + 1, y, z) for x, y, z in face] for face in outside[1:]]
    faces = [*between, *outside, *far]
    mesh = case / "constant" / "polyMesh"
    listed = "\n".join(f"({x} {y} {z})" for x, y, z in points)
    dump(mesh / "points", "vectorField", "points", f"{len(points)}\n(\n{listed}\n)")
    listed = "\n".join(f"4({' '.join(str(number[p]) for p in face)})" for face in faces)
    dump(mesh / "faces", "faceList", "faces", f"{len(faces)}\n(\n{listed}\n)")
    owner = [0] * 6 + [1] * 5
    dump(mesh / "owner", "labelList", "owner", f"{len(owner)}\n(\n" + "\n".join(map(str, owner)) + "\n)")
    dump(mesh / "neighbour", "labelList", "neighbour", "1\n(\n1\n)")
    dump(
        mesh / "boundary",
        "polyBoundaryMesh",
        "boundary",
        "1\n(\nwalls\n{\n type wall;\n nFaces 10;\n startFace 1;\n}\n)",
    )
    control = "application icoFoam;\nstartTime 0;\nendTime 1;\ndeltaT 0.5;\nwriteInterval 1;"
    dump(case / "system" / "controlDict", "dictionary", "controlDict", control)
    for time in times:
        value = float(time)
        patches = "boundaryField\n{\n walls\n {\n  type zeroGradient;\n }\n}"
        body = f"dimensions [0 0 0 1 0 0 0];\ninternalField uniform {value};\n{patches}"
        dump(case / time / "T", "volScalarField", "T", body)
        cells = f"nonuniform List<vector>\n2\n(\n({value} 0 0)\n(2 1 0)\n)\n;"
        body = f"dimensions [0 1 -1 0 0 0 0];\ninternalField {cells}\n{patches}"
        dump(case / time / "U", "volVectorField", "U", body)
    return case
