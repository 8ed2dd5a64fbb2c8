"""Every format gives the numbers that were written; files that lie are refused."""

from __future__ import annotations

import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mesh_results import (
    Result,
    named,
    plane,
    points_3d,
    save_vtu,
    space,
    vtk_grid,
    write_cgns,
    write_exodus,
    write_hdf5,
    write_npz,
    write_npz_compressed,
    write_openfoam,
    write_pvd,
    write_vtkhdf,
    write_xdmf,
)

from parbake.errors import MeshError
from parbake.producers.meshes import npz as mesh_npz
from parbake.producers.meshes.npz import Kept, Stored, _members, read_npz
from parbake.producers.meshes.parts import parts_of
from parbake.producers.meshes.series import MeshSeries


def series_of(result: Result) -> MeshSeries:
    return MeshSeries.from_arrays(result.points, result.times, result.fields, result.cells)


def refused(path: Path, message: str) -> None:
    """Opening and reading all of ``path`` is refused in one line that names the file."""
    with pytest.raises(MeshError, match=message) as caught:
        MeshSeries.open(path).read(slice(None))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


# ---- .npz


def test_steps_of_a_stored_member_are_read_alone(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", plane(9))
    column = _members(path).column("fields/p")
    assert isinstance(column, Stored)
    np.testing.assert_array_equal(column.read(4, 6), plane(9).fields["p"][4:6])
    text = bytearray(path.read_bytes())
    start = column.offset
    text[start : start + 4 * 24] = b"\xff" * (4 * 24)  # the steps before are never looked at
    path.write_bytes(text)
    np.testing.assert_array_equal(column.read(4, 6), plane(9).fields["p"][4:6])


def test_a_compressed_member_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_npz(write_npz_compressed(tmp_path / "a.npz", plane(9)))
    reads: list[int] = []
    read = mesh_npz._read_into
    monkeypatch.setattr(mesh_npz, "_read_into", lambda *a: reads.append(1) or read(*a))
    for step in (3, 5):
        np.testing.assert_array_equal(data.read(step, step + 1, ["p"])[0, :, 0], plane(9).fields["p"][step])
    assert len(reads) == 1


def test_a_large_compressed_member_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_npz, "_LARGE_NBYTES", 0)
    assert read_npz(write_npz(tmp_path / "a.npz", plane())).notices == ()
    [one, two] = read_npz(write_npz_compressed(tmp_path / "b.npz", plane())).notices
    assert one.startswith("fields/p: compressed")
    assert two.startswith("fields/U: compressed")


def test_layout_of_stacked_fields_with_names_and_units(tmp_path: Path) -> None:
    result = plane()
    stacked = np.concatenate([result.fields["p"][..., None], result.fields["p"][..., None] * 2], axis=2)
    arrays = {"points": result.points, "times": result.times, "cells": result.cells["triangle"]}
    arrays |= {"fields": stacked, "field_names": np.array(["p", "q"]), "units": np.array(["Pa", ""])}
    np.savez(tmp_path / "a.npz", **arrays)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array.astype(h5py.string_dtype()) if array.dtype.kind == "U" else array
    for name in ("a.npz", "a.h5"):
        series = MeshSeries.open(tmp_path / name)
        assert series.channels == ("p", "q")
        assert series.units == {"p": "Pa"}
        assert list(series.mesh.cells) == ["triangle"]
        np.testing.assert_array_equal(series.read(slice(None)), stacked)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_fortran_order_and_byte_order_are_understood(save: Any, tmp_path: Path) -> None:
    result = plane()
    arrays = {k: np.asfortranarray(v) for k, v in named(result).items()}
    save(tmp_path / "a.npz", **arrays)
    save(tmp_path / "b.npz", **{k: v.astype(v.dtype.newbyteorder(">")) for k, v in arrays.items()})
    for name in ("a.npz", "b.npz"):
        series = MeshSeries.open(tmp_path / name)
        np.testing.assert_array_equal(series.read([2, 0], ["U_y"])[..., 0], result.fields["U"][[2, 0], :, 1])
        assert series.invalidation_key() == series_of(result).invalidation_key()


def altered(path: Path, **changes: Any) -> Path:
    """``path`` as an .npz of the plane result with arrays replaced, added, or left out (None)."""
    arrays = {**named(plane()), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": None}, "no array 'points'; found 'times', 'cells/triangle'"),
        ({"times": None}, "no array 'times'"),
        ({"times": np.float64(1)}, "times: a single number"),
        ({"times": np.array([1.0, 0.5, 2.0])}, "times: 0.5 at step 1 follows 1"),
        ({"fields/p": np.zeros((3, 7))}, "fields/p: 7 values a step where the mesh has 6 nodes"),
        ({"fields/p": np.zeros((2, 6))}, "fields/p: 2 steps where 'times' has 3"),
        ({"fields/p": np.array([None])}, "fields/p: an array of objects would be unpickled"),
        ({"fields/p": np.zeros((3, 6), np.float16)}, "fields/p: dtype float16"),
        ({"fields": np.zeros((3, 6, 2))}, "fields: no array 'field_names'"),
        (
            {"fields": np.zeros((3, 6, 2)), "field_names": np.array(["a"])},
            "field_names: .*each of the 2 fields",
        ),
        ({"fields": np.zeros((3, 6, 2)), "field_names": np.array(["a", "a"])}, "two channels are named 'a'"),
        ({"fields": np.zeros((3, 6))}, r"fields: shape \(3, 6\); give \[time, node, field\]"),
        ({"cells": np.zeros((1, 3), int)}, "triangle cells are given twice"),
        ({"cells/pyramid": np.zeros((1, 5), int)}, "pyramid"),
        ({"cells/quad": np.array([[0, 1, 2, 6]])}, "node 6 where nodes are 0 to 5"),
        ({"points": np.array([[np.inf, 0]])}, "infinite"),
    ],
)
def test_bad_arrays_in_a_file_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(altered(tmp_path / "a.npz", **changes), message)


def npy(shape: tuple[int, ...], descr: str, data: bytes, *, version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with a header that may lie."""
    head = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(head)) + head + data


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy((10**12, 6), "<f4", b"\0" * 72), r"shape \(1000000000000, 6\) of float32 does not fit"),
        (npy((3, 5), "<f4", b"\0" * 72), "does not fit"),
        (npy((-3, -6), "<f4", b"\0" * 72), "does not fit"),
        (npy((3, 6), "|O", b"\0" * 144), "objects"),
        (npy((3, 6), "<f4", b"\0" * 72, version=b"\x09\x00"), "not a NumPy array"),
        (npy((3, 6), "nonsense", b"\0" * 72), "not a NumPy array"),
        (b"", "not a NumPy array"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "not a NumPy array"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_that_lie_are_refused(member: bytes, message: str, compression: int, tmp_path: Path) -> None:
    path = altered(tmp_path / "a.npz", **{"fields/p": None})
    with zipfile.ZipFile(path, "a", compression) as file:
        file.writestr("fields/p.npy", member)
    refused(path, f"fields/p: .*{message}")


def test_a_size_that_the_file_cannot_hold_is_refused_before_it_is_reserved(tmp_path: Path) -> None:
    """The directory and the header of a deflated member both announce 400 GB."""
    path = altered(tmp_path / "a.npz", **{"fields/p": None})
    member = npy((10**11,), "<f4", b"\0" * 10**6)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("fields/p.npy", member)
    text, true = path.read_bytes(), struct.pack("<I", len(member))
    assert text.count(true) == 2  # local header and central directory
    path.write_bytes(text.replace(true, struct.pack("<I", 0xFFFFFFF0)))
    refused(path, "fields/p: 4,294,967,280 bytes are announced, which the file cannot hold")


def test_a_member_that_ends_early_or_was_flipped_is_told(tmp_path: Path) -> None:
    path = write_npz_compressed(tmp_path / "a.npz", plane(50))
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("fields/U.npy")
    text = bytearray(path.read_bytes())
    middle = info.header_offset + info.compress_size // 2
    text[middle] ^= 0x55
    path.write_bytes(text)
    refused(path, "fields/U.npy: .*copy the file again")


def test_a_member_shorter_than_all_its_headers_say_is_told(tmp_path: Path) -> None:
    path = altered(tmp_path / "a.npz", **{"fields/p": None})
    member = npy((3, 6), "<f4", b"\0" * 40)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("fields/p.npy", member)
    text, true = path.read_bytes(), struct.pack("<I", len(member))
    assert text.count(true) == 2  # local header and central directory
    path.write_bytes(text.replace(true, struct.pack("<I", len(member) + 32)))
    refused(path, "fields/p.npy: not as long as its header says")


def test_a_checksum_that_does_not_fit_is_told(tmp_path: Path) -> None:
    path = write_npz_compressed(tmp_path / "a.npz", plane(900))
    with zipfile.ZipFile(path) as file:
        crc = struct.pack("<I", file.getinfo("fields/U.npy").CRC)
    assert path.read_bytes().count(crc) == 2  # local header and central directory
    path.write_bytes(path.read_bytes().replace(crc, b"\0\0\0\0"))
    refused(path, "fields/U.npy: Bad CRC-32 .*copy the file again")


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", plane())
    path.write_bytes(path.read_bytes()[:-30])
    refused(path, "not an .npz file, or a cut one")


def test_no_member_is_kept_where_it_can_be_read_by_step(tmp_path: Path) -> None:
    members = _members(write_npz(tmp_path / "a.npz", plane()))
    assert isinstance(members.column("points"), Kept)  # checked by its CRC
    assert isinstance(members.column("fields/U"), Stored)


# ---- HDF5


def test_units_are_attributes_of_datasets(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", plane())
    with h5py.File(path, "a") as file:
        file["fields/U"].attrs["units"] = "m/s"
        file["fields/p"].attrs["units"] = np.bytes_(b"Pa")
    assert MeshSeries.open(path).units == {"U_x": "m/s", "U_y": "m/s", "U_z": "m/s", "p": "Pa"}


def external_link(file: h5py.File, other: Path) -> None:
    del file["fields/p"]
    file["fields/p"] = h5py.ExternalLink(str(other), "fields/p")


def external_group(file: h5py.File, other: Path) -> None:
    del file["fields"]
    file["fields"] = h5py.ExternalLink(str(other), "fields")


def virtual(file: h5py.File, other: Path) -> None:
    del file["fields/p"]
    layout = h5py.VirtualLayout((3, 6), np.float32)
    layout[:] = h5py.VirtualSource(str(other), "fields/p", (3, 6))
    file.create_virtual_dataset("fields/p", layout)


def external_storage(file: h5py.File, other: Path) -> None:
    del file["fields/p"]
    other.with_suffix(".raw").write_bytes(b"\0" * 72)
    where = [(str(other.with_suffix(".raw")), 0, 72)]
    file.create_dataset("fields/p", (3, 6), np.float32, external=where)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, "fields/p: an external link"),
        (external_group, "fields: an external link"),
        (virtual, "fields/p: a virtual or external dataset"),
        (external_storage, "fields/p: a virtual or external dataset"),
    ],
)
def test_values_in_other_files_are_refused(
    change: Callable[[h5py.File, Path], None], message: str, tmp_path: Path
) -> None:
    path, other = write_hdf5(tmp_path / "a.h5", plane()), write_hdf5(tmp_path / "b.h5", plane())
    with h5py.File(path, "a") as file:
        change(file, other)
    refused(path, message)


def test_soft_links_within_a_file_are_followed_and_broken_ones_left_out(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", plane())
    with h5py.File(path, "a") as file:
        file["run/p"] = file["fields/p"]
        del file["fields/p"]
        file["fields/p"] = h5py.SoftLink("/run/p")
        file["fields/q"] = h5py.SoftLink("/none")
    assert MeshSeries.open(path).invalidation_key() == series_of(plane()).invalidation_key()


def test_a_dataset_that_announces_more_than_it_stores_is_refused(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", plane())
    with h5py.File(path, "a") as file:
        del file["points"]
        file.create_dataset("points", (10**12, 2), np.float64, chunks=(1000, 2))
    refused(path, "points: 16,000,000,000,000 bytes are announced, where 0 are stored")


def test_what_is_no_hdf5_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"nothing of the kind" * 100)
    refused(path, "not an HDF5 file")


# ---- what makes up a result


def test_files_of_unknown_kind_are_refused_with_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.msh").touch()
    refused(tmp_path / "a.msh", r"not known as a mesh result; \.npz, .*OpenFOAM cases are")
    refused(tmp_path / "none.npz", "no such file")
    refused(tmp_path, "a folder without system/controlDict")


def test_a_collection_consists_of_its_files_and_their_pieces(tmp_path: Path) -> None:
    for name in ("0.vtu", "1-0.vtu", "1-1.vtu"):
        (tmp_path / name).touch()
    (tmp_path / "1.pvtu").write_text('<VTKFile><Piece Source="1-0.vtu"/><Piece Source="1-1.vtu"/></VTKFile>')
    path = tmp_path / "a.pvd"
    path.write_text(
        '<VTKFile><Collection><DataSet timestep="1" file="1.pvtu"/><DataSet timestep="0" file="0.vtu"/>'
        "</Collection></VTKFile>"
    )
    assert [part.name for part in parts_of(path)] == ["a.pvd", "0.vtu", "1.pvtu", "1-0.vtu", "1-1.vtu"]


def test_an_xdmf_file_consists_of_its_heavy_data_and_what_it_includes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5", "c.bin"):
        (tmp_path / name).touch()
    (tmp_path / "inner.xmf").write_text(
        '<Xdmf><DataItem Format="HDF">b.h5:/x</DataItem><DataItem Format="Binary">c.bin</DataItem></Xdmf>'
    )
    path = tmp_path / "a.xdmf"
    path.write_text(
        '<!DOCTYPE Xdmf [<!ENTITY heavy "a.h5">]>'
        '<Xdmf xmlns:xi="http://www.w3.org/2001/XInclude"><DataItem Format="HDF"> &heavy;:/g/x </DataItem>'
        '<xi:include href="inner.xmf"/><DataItem Format="XML">1 2 3</DataItem></Xdmf>'
    )
    assert {part.name for part in parts_of(path)} == {"a.xdmf", "a.h5", "inner.xmf", "b.h5", "c.bin"}


def test_an_openfoam_case_consists_of_its_mesh_and_times(tmp_path: Path) -> None:
    case = write_openfoam(tmp_path / "case")
    (case / "log.icoFoam").touch()
    names = {part.relative_to(tmp_path).as_posix() for part in parts_of(case)}
    assert {"case", "case/system/controlDict", "case/constant/polyMesh/points", "case/0.5/U"} <= names
    assert "case/log.icoFoam" not in names
    (case / "case.foam").touch()
    assert set(parts_of(case / "case.foam")) - {case / "case.foam"} == set(parts_of(case))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.pvd", "<VTKFile", "a.pvd: not readable as XML"),
        ("a.pvd", "<VTKFile/>", "lists no file"),
        ("a.pvd", '<V><DataSet timestep="x" file="0.vtu"/></V>', "timestep 'x' of 0.vtu is not a number"),
        ("a.pvd", '<V><DataSet timestep="0" file="0.vtu"/></V>', "refers to 0.vtu, which is not there"),
        ("a.pvd", '<V><DataSet timestep="0" file="0.vtm"/></V>', "refers to '0.vtm'"),
        ("a.pvd", '<V><DataSet timestep="0"/></V>', "refers to None"),
        ("a.xdmf", '<X><DataItem Format="HDF">b.h5:/x</DataItem></X>', "b.h5, which is not there"),
        ("a.xdmf", '<X><include href="a.xdmf"/></X>', "XInclude goes deeper"),
        ("system/controlDict", "", "no constant/polyMesh in this case"),
    ],
)
def test_broken_references_are_told(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    refused(path, re.escape(message))


def test_without_vtk_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ["vtkmodules", *(name for name in sys.modules if name.startswith("vtkmodules."))]:
        monkeypatch.setitem(sys.modules, module, None)  # whatever another test has imported
    (tmp_path / "a.vtu").touch()
    refused(tmp_path / "a.vtu", r"pip install 'parbake\[mesh\]'")


# ---- through VTK


@pytest.fixture
def vtk() -> Any:
    return pytest.importorskip("vtkmodules", reason="needs VTK, from the extra [mesh]")


def in_float64(result: Result) -> Result:
    fields = {name: values.astype(np.float64) for name, values in result.fields.items()}
    return Result(result.points, result.cells, result.times, fields)


def exodus_classic(path: Path, result: Result) -> Path:
    return write_exodus(path, result, "NETCDF3_64BIT_OFFSET")


@pytest.mark.usefixtures("vtk")
@pytest.mark.parametrize("result", [plane(), space()], ids=["plane", "space"])
@pytest.mark.parametrize(
    ("name", "write", "as_read"),
    [
        ("a.pvd", write_pvd, lambda result: result),
        ("a.vtkhdf", write_vtkhdf, lambda result: result),
        ("a.h5", write_vtkhdf, lambda result: result),
        ("a.cgns", write_cgns, lambda result: result),
        ("a.e", write_exodus, in_float64),  # VTK reads all results of Exodus as float64
        ("a.exo", exodus_classic, in_float64),
        ("a.xdmf", write_xdmf, lambda result: result),
    ],
)
def test_a_result_is_the_same_in_every_format(
    name: str, write: Callable[[Path, Result], Path], as_read: Any, result: Result, tmp_path: Path
) -> None:
    if name == "a.xdmf" and len(result.cells) > 1:
        result = Result(result.points, {"triangle": result.cells["triangle"]}, result.times, result.fields)
    series, wanted = MeshSeries.open(write(tmp_path / name, result)), series_of(as_read(result))
    assert series.invalidation_key() == wanted.invalidation_key()
    assert set(series.channels) == set(wanted.channels)
    np.testing.assert_array_equal(series.read([2, 0], ["U_y", "p"]), wanted.read([2, 0], ["U_y", "p"]))
    np.testing.assert_array_equal(series.mesh.points, result.points)
    for kind, cells in result.cells.items():
        np.testing.assert_array_equal(series.mesh.cells[kind], cells)


@pytest.mark.usefixtures("vtk")
def test_a_vtu_file_is_one_step(tmp_path: Path) -> None:
    from vtkmodules.util.numpy_support import numpy_to_vtk

    result, grid = plane(), vtk_grid(plane(), 1)
    assert MeshSeries.open(save_vtu(tmp_path / "a.vtu", grid)).times.tolist() == [0.0]
    time = numpy_to_vtk(np.array([4.5]), deep=True)
    time.SetName("TimeValue")
    grid.GetFieldData().AddArray(time)
    series = MeshSeries.open(save_vtu(tmp_path / "b.vtu", grid))
    assert series.times.tolist() == [4.5]
    np.testing.assert_array_equal(series.read([0], ["p"])[0, :, 0], result.fields["p"][1])


@pytest.mark.usefixtures("vtk")
def test_only_the_steps_asked_for_are_read(tmp_path: Path) -> None:
    series = MeshSeries.open(write_pvd(tmp_path / "a.pvd", plane()))
    (tmp_path / "a-2.vtu").write_text("not read")
    fresh = MeshSeries.open(tmp_path / "a.pvd")
    np.testing.assert_array_equal(fresh.read([1], ["p"])[0, :, 0], plane().fields["p"][1])
    with pytest.raises(MeshError, match=r"a\.pvd: a-2\.vtu: VTK: .*XML"):
        fresh.read([2])
    with pytest.raises(MeshError, match=r"a-2\.vtu has changed since it was opened"):
        series.read([0])


@pytest.mark.usefixtures("vtk")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: Result(r.points * 1.5, r.cells, r.times, r.fields), "another mesh than at step 0"),
        (
            lambda r: Result(r.points, {"quad": r.cells["quad"]}, r.times, r.fields),
            "another mesh than at step 0",
        ),
        (lambda r: Result(r.points, r.cells, r.times, {"U": r.fields["U"]}), "field 'p' is missing"),
        (
            lambda r: Result(r.points, r.cells, r.times, {**r.fields, "p": r.fields["p"].astype("f8")}),
            "field 'p' is float64",
        ),
    ],
)
def test_a_step_unlike_the_first_is_named(
    change: Callable[[Result], Result], message: str, tmp_path: Path
) -> None:
    path = write_pvd(tmp_path / "a.pvd", plane())
    save_vtu(tmp_path / "a-2.vtu", vtk_grid(change(plane()), 2))
    series = MeshSeries.open(path)
    series.read([0, 1])
    with pytest.raises(MeshError, match=rf"a\.pvd: step 2 \(time 1\): {message}"):
        series.read([2])
    with pytest.raises(MeshError, match=rf"a\.pvd: step 2 \(time 1\): {message}"):
        series.channel_sha256(["p"])


@pytest.mark.usefixtures("vtk")
def test_displacements_are_a_field_and_do_not_move_the_mesh(tmp_path: Path) -> None:
    result = Result(plane().points, plane().cells, plane().times, {"DISPL": plane().fields["U"]})
    series = MeshSeries.open(write_exodus(tmp_path / "a.e", result))
    np.testing.assert_array_equal(series.mesh.points, result.points)
    np.testing.assert_array_equal(series.read(slice(None)), result.fields["DISPL"])


def with_cells(*cells: tuple[int, list[int]]) -> Any:
    grid = vtk_grid(Result(plane().points, {}, plane().times, plane().fields), 0)
    for number, nodes in cells:
        grid.InsertNextCell(number, len(nodes), nodes)
    return grid


@pytest.mark.usefixtures("vtk")
@pytest.mark.parametrize(
    ("number", "nodes", "name"),
    [
        (22, [0, 1, 2, 3, 4, 5], "vtkQuadraticTriangle"),
        (14, [0, 1, 2, 3, 4], "vtkPyramid"),
        (7, [0, 1, 4, 5, 2], "vtkPolygon"),
    ],
)
def test_cells_that_are_not_supported_are_named(
    number: int, nodes: list[int], name: str, tmp_path: Path
) -> None:
    refused(save_vtu(tmp_path / "a.vtu", with_cells((number, nodes))), f"1 cells are {name}; triangle, quad")


@pytest.mark.usefixtures("vtk")
def test_vertices_and_lines_are_left_out_with_a_notice(tmp_path: Path) -> None:
    grid = with_cells((1, [0]), (3, [0, 1]), (5, [0, 1, 2]), (3, [1, 2]))
    series = MeshSeries.open(save_vtu(tmp_path / "a.vtu", grid))
    assert {kind: nodes.tolist() for kind, nodes in series.mesh.cells.items()} == {"triangle": [[0, 1, 2]]}
    assert "1 vertex cells and 2 line cells, left out" in series.notices


@pytest.mark.usefixtures("vtk")
def test_values_of_cells_and_integers_are_left_out_with_a_notice(tmp_path: Path) -> None:
    from vtkmodules.util.numpy_support import numpy_to_vtk

    grid = vtk_grid(plane(), 0)
    for data, name, array in (
        (grid.GetCellData(), "k", np.zeros(3)),
        (grid.GetPointData(), "id", np.arange(6)),
    ):
        added = numpy_to_vtk(array, deep=True)
        added.SetName(name)
        data.AddArray(added)
    series = MeshSeries.open(save_vtu(tmp_path / "a.vtu", grid))
    assert series.channels == ("p", "U_x", "U_y", "U_z")
    assert "values of cells, not of nodes, left out: k" in series.notices
    assert "no floating-point values, left out: id" in series.notices
    grid.GetPointData().Initialize()
    refused(save_vtu(tmp_path / "b.vtu", grid), "no field has values at the nodes; .*of cells.*: k")


@pytest.mark.usefixtures("vtk")
def test_parts_of_a_collection_stand_side_by_side(tmp_path: Path) -> None:
    one, two = plane(1), plane(1, seed=1)
    other = Result(two.points + np.array([3, 0]), two.cells, two.times, {"p": two.fields["p"]})
    save_vtu(tmp_path / "0.vtu", vtk_grid(one, 0))
    save_vtu(tmp_path / "1.vtu", vtk_grid(other, 0))
    path = tmp_path / "a.pvd"
    path.write_text(
        '<V><DataSet timestep="2" part="0" file="0.vtu"/><DataSet timestep="2" part="1" file="1.vtu"/></V>'
    )
    series = MeshSeries.open(path)
    np.testing.assert_array_equal(series.mesh.points, np.concatenate([one.points, other.points]))
    np.testing.assert_array_equal(series.mesh.cells["quad"], [[1, 4, 5, 2], [7, 10, 11, 8]])
    wanted = np.concatenate([one.fields["p"][0], two.fields["p"][0]])
    np.testing.assert_array_equal(series.read([0])[0, :, 0], wanted)
    assert "not the same in all 2 blocks, left out: U" in series.notices


@pytest.mark.usefixtures("vtk")
def test_openfoam_gives_all_times_with_values_at_nodes(tmp_path: Path) -> None:
    case = write_openfoam(tmp_path / "case")
    (case / "case.foam").touch()
    for path in (case, case / "case.foam", case / "system" / "controlDict"):
        series = MeshSeries.open(path)
        assert series.times.tolist() == [0.0, 0.5, 1.0]
        values = series.read([2], ["T", "U_x"])[0]
        x = series.mesh.points[:, 0]
        np.testing.assert_allclose(values[:, 0], 1)
        np.testing.assert_allclose(values[:, 1], 1 + 0.5 * x)  # 1 in one cell, 2 in the other, 1.5 between
    assert len(series.mesh.cells["hexahedron"]) == 2
    assert "cell values, interpolated to the nodes by VTK: T, U" in series.notices
    write_openfoam(case, ("1.5",))
    with pytest.raises(MeshError, match="changed since it was opened"):
        series.read([0])
    assert MeshSeries.open(case).times.tolist() == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.usefixtures("vtk")
def test_links_out_of_the_files_that_vtk_reads_are_refused(tmp_path: Path) -> None:
    for name, write, member in (
        ("a.vtkhdf", write_vtkhdf, "VTKHDF/PointData/p"),
        ("a.cgns", write_cgns, "Base/Zone/Solution0/p"),
    ):
        path, other = write(tmp_path / name, plane()), write(tmp_path / f"b-{name}", plane())
        with h5py.File(path, "a") as file:
            del file[member]
            file[member] = h5py.ExternalLink(str(other), member)
        refused(path, f"{member}: an external link")
    path = write_xdmf(tmp_path / "a.xdmf", space())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["p-0"]
        file["p-0"] = h5py.ExternalLink("b.h5", "p-0")
    refused(path, "p-0: an external link")


@pytest.mark.usefixtures("vtk")
@pytest.mark.parametrize(
    ("name", "write"),
    [("a.vtu", None), ("a.vtkhdf", write_vtkhdf), ("a.e", write_exodus), ("a.cgns", write_cgns)],
)
def test_cut_files_are_told_in_one_line(name: str, write: Any, tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / name
    if write is None:
        save_vtu(path, vtk_grid(plane(), 0))
    else:
        write(path, plane())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, ".")
    assert capfd.readouterr().err == "" or name == "a.e"  # the Exodus library prints, too


@pytest.mark.usefixtures("vtk")
def test_flat_results_lose_their_third_coordinate(tmp_path: Path) -> None:
    series = MeshSeries.open(save_vtu(tmp_path / "a.vtu", vtk_grid(plane(), 0)))
    assert points_3d(plane().points).shape == (6, 3)
    assert series.mesh.points.shape == (6, 2)
    assert any("third coordinate" in notice for notice in series.notices)


def test_objects_beside_the_arrays_of_a_result_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **named(plane()), about=np.array({"reynolds": 100}, dtype=object))
    assert set(MeshSeries.open(path).channels) == {"p", "U_x", "U_y", "U_z"}
