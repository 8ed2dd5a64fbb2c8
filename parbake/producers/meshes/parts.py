"""Which files a mesh result consists of: the one that was named, and those that it refers to.

Needs no VTK, so that a result whose hashes are remembered costs a ``stat`` a file and nothing else.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parbake.errors import MeshError

_EXODUS = ("e", "ex2", "exo", "exii", "exodus")
_SUFFIXES = {
    "npz": "npz",
    "h5": "hdf5",
    "hdf5": "hdf5",
    "hdf": "hdf5",
    "vtkhdf": "vtkhdf",
    "vtu": "vtu",
    "pvtu": "pvtu",
    "pvd": "pvd",
    "xdmf": "xdmf",
    "xmf": "xdmf",
    "cgns": "cgns",
    "foam": "openfoam",
    "openfoam": "openfoam",
    **dict.fromkeys(_EXODUS, "exodus"),
}
_DEEPEST = 8  # XInclude within XInclude


def kind_of(path: Path) -> str:
    """The kind of a result by its name; "hdf5" may be VTKHDF or our own layout. Raises MeshError."""
    if path.name == "controlDict" or (path / "system" / "controlDict").is_file():
        return "openfoam"
    if path.is_dir():
        raise MeshError("a folder without system/controlDict; name a file, or an OpenFOAM case")
    if not path.exists():
        raise MeshError("no such file")
    if (kind := _SUFFIXES.get(path.suffix.lower().lstrip("."))) is None:
        known = ", ".join(f".{suffix}" for suffix in _SUFFIXES)
        raise MeshError(f"not known as a mesh result; {known} and OpenFOAM cases are")
    return kind


def is_named_like_result(path: Path) -> bool:
    """Whether a file, or the folder of a case, promises by its name to be a mesh result."""
    try:
        return bool(kind_of(path))
    except MeshError:
        return False


def parts_of(path: Path) -> tuple[Path, ...]:
    """``path`` and everything else that the result's content may depend on, each once. Raises MeshError.

    Of an OpenFOAM case also its folders: they change when a time is added.
    """
    kind = kind_of(path)
    parts: list[Path] = [path]
    if kind == "pvd":
        for dataset in collection(path):
            parts += [dataset.path, *(_pieces(dataset.path) if dataset.path.suffix == ".pvtu" else ())]
    elif kind == "pvtu":
        parts += _pieces(path)
    elif kind == "xdmf":
        parts += _heavy(path)
    elif kind == "openfoam":
        parts += _case_files(case_of(path))
    return tuple(dict.fromkeys(parts))


# ---- PVD and PVTU (ParaView's collections: VTK XML formats, "Parallel file formats")


@dataclass(frozen=True)
class PvdEntry:
    """One file of a PVD collection: a part of the result at one time."""

    time: float
    part: str
    path: Path


def collection(path: Path) -> tuple[PvdEntry, ...]:
    """The files that a PVD collection lists, by time and part. Raises MeshError."""
    entries = []
    for node in _xml(path).iter("DataSet"):
        time, file = node.get("timestep", "0"), node.get("file")
        try:
            entries.append(PvdEntry(float(time), node.get("part", "0"), path.parent / str(file)))
        except ValueError:
            raise MeshError(f"timestep {time!r} of {file} is not a number") from None
        if file is None or entries[-1].path.suffix.lower() not in (".vtu", ".pvtu"):
            raise MeshError(f"refers to {file!r}; collections of .vtu and .pvtu files are read")
        if not entries[-1].path.is_file():
            raise MeshError(f"refers to {file}, which is not there")
    if not entries:
        raise MeshError("lists no file")
    return tuple(sorted(entries, key=lambda entry: entry.time))  # stable: parts as the file has them


def _pieces(path: Path) -> list[Path]:
    return [path.parent / str(node.get("Source")) for node in _xml(path).iter("Piece")]


# ---- XDMF (XDMF Model and Format, "DataItem" and "XInclude")


def _heavy(path: Path, depth: int = 0) -> list[Path]:
    """The files that an XDMF file takes numbers or XML from."""
    if depth > _DEEPEST:
        raise MeshError(f"XInclude goes deeper than {_DEEPEST} files")
    found = []
    for node in _xml(path).iter():
        tag = str(node.tag).rpartition("}")[2]
        text = (node.text or "").strip()
        if tag == "DataItem" and node.get("Format", "XML").upper() in ("HDF", "HDF5", "H5"):
            found.append(path.parent / text.rpartition(":/")[0].strip())
        elif tag == "DataItem" and node.get("Format", "XML").upper() == "BINARY":
            found.append(path.parent / text)
        elif tag == "include" and (href := node.get("href")):
            found += [path.parent / href, *_heavy(path.parent / href, depth + 1)]
    if missing := next((part for part in found if not part.is_file()), None):
        raise MeshError(f"refers to {missing}, which is not there")
    return found


def _xml(path: Path) -> ET.Element:
    try:
        return ET.parse(path).getroot()
    except (ET.ParseError, OSError) as error:
        raise MeshError(f"{path.name}: not readable as XML ({error})") from None


# ---- OpenFOAM (User Guide, "File structure of OpenFOAM cases")


def case_of(path: Path) -> Path:
    """The folder of an OpenFOAM case, named itself or by a file in it."""
    if path.is_dir():
        return path
    return path.parent.parent if path.name == "controlDict" else path.parent


def _case_files(case: Path) -> Iterator[Path]:
    mesh = case / "constant" / "polyMesh"
    if not mesh.is_dir():
        raise MeshError("no constant/polyMesh in this case; run reconstructPar where it is decomposed")
    yield from (case, case / "system" / "controlDict", mesh, *sorted(mesh.rglob("*")))
    for folder in sorted(case.iterdir()):
        if folder.is_dir() and _is_time(folder.name):
            yield from (folder, *sorted(folder.rglob("*")))


def _is_time(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
