"""Mesh results as named arrays: the layout that arrays in memory, ``.npz`` and HDF5 files share.

    points        [node, dim]                  dim 2 or 3
    cells         [cell, corner]               of one kind, or cells/KIND for several; optional
    times         [time]                       seconds, strictly increasing
    fields        [time, node, field]          and field_names [field], units [field] (optional);
                                               or fields/NAME [time, node] or [time, node, component]

Kinds and the order of corners are those of ``geometry.CORNERS``. In ``cells`` alone the number of corners
tells the kind, four being quadrilaterals in the plane and tetrahedra in space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parbake.errors import MeshError
from parbake.producers.meshes.data import DTYPES, MeshData, Values, channel_names, checked_times
from parbake.producers.meshes.geometry import CORNERS, Mesh

_FLAT = 1e-9  # of the mesh's extent


class Column(Protocol):
    """One array whose first axis is read in parts."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def read(self, start: int, stop: int) -> NDArray[Any]: ...


class Arrays(Protocol):
    """Arrays by name: of a file, or in memory. What cannot be read safely raises MeshError."""

    def names(self) -> Sequence[str]: ...
    def column(self, name: str) -> Column: ...
    def units(self, name: str) -> str | None: ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """A column that is there already."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return self.array[start:stop]


@dataclass(frozen=True, eq=False)
class NamedArrays:
    """Arrays in memory, and the units of those that have any."""

    arrays: Mapping[str, NDArray[Any]]
    units_by_name: Mapping[str, str]

    def names(self) -> Sequence[str]:
        return tuple(self.arrays)

    def column(self, name: str) -> Column:
        return InMemory(self.arrays[name])

    def units(self, name: str) -> str | None:
        return self.units_by_name.get(name)


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a channel's values are: in a column [time, node], or in one component of its last axis."""

    column: Column
    component: int | None


@dataclass(frozen=True, eq=False)
class Slots:
    """The slots of all channels. A class, not a closure, so that a series of arrays can be pickled."""

    by_channel: Mapping[str, Slot]

    def fill(self, out: Values, start: int, channels: Sequence[str]) -> None:
        """Write the steps from ``start`` on to ``out`` [step, node, channel]; reads each column once."""
        wanted: dict[int, list[tuple[int, Slot]]] = {}
        for i, channel in enumerate(channels):
            slot = self.by_channel[channel]
            wanted.setdefault(id(slot.column), []).append((i, slot))
        for parts in wanted.values():
            block = parts[0][1].column.read(start, start + len(out))
            places = _run([i for i, _ in parts])
            components = _run([slot.component for _, slot in parts])
            if places is not None and components is not None:
                out[..., places] = block[..., components]  # several times as fast as one by one
                continue
            for i, slot in parts:
                out[..., i] = block if slot.component is None else block[..., slot.component]


def _run(numbers: Sequence[int | None]) -> slice | None:
    """The slice that ``numbers`` are, if each is one more than the one before."""
    first = numbers[0]
    if first is None or list(numbers) != list(range(first, first + len(numbers))):
        return None
    return slice(first, first + len(numbers))


def read_layout(arrays: Arrays) -> MeshData:
    """The mesh result that ``arrays`` hold. Raises MeshError, naming the array at fault."""
    names = arrays.names()
    for name in ("points", "times"):
        if name not in names:
            raise MeshError(f"no array {name!r}; found {_listed(names)}")
    points = _whole(arrays, "points")
    _check_numbers("points", points.dtype, "fiu")
    mesh = Mesh(np.asarray(points, np.float64), _cells(arrays, names, points))
    times = _whole(arrays, "times")
    _check_numbers("times", times.dtype, "fiu")
    times = checked_times(times)
    slots: dict[str, Slot] = {}
    units: dict[str, str] = {}
    for name, column, channels, texts in _fields(arrays, names):
        _check_field(name, column, len(times), len(points))
        for i, (channel, text) in enumerate(zip(channels, texts, strict=True)):
            if channel in slots:
                raise MeshError(f"two channels are named {channel!r}; rename a field")
            slots[channel] = Slot(column, i if len(column.shape) == 3 else None)
            if text:
                units[channel] = text
    dtypes = {channel: slot.column.dtype.newbyteorder("<").str for channel, slot in slots.items()}
    return MeshData(mesh, times, dtypes, units, mesh.notices, Slots(slots).fill)


def _whole(arrays: Arrays, name: str) -> NDArray[Any]:
    column = arrays.column(name)
    if not column.shape:
        raise MeshError(f"{name}: a single number; give an array")
    return column.read(0, column.shape[0])


def _cells(arrays: Arrays, names: Sequence[str], points: NDArray[Any]) -> dict[str, NDArray[np.int64]]:
    found = {}
    for name in names:
        if name != "cells" and not name.startswith("cells/"):
            continue
        nodes = _whole(arrays, name)
        _check_numbers(name, nodes.dtype, "iu")
        if nodes.ndim != 2:
            raise MeshError(f"{name}: shape {nodes.shape}; give [cell, corner]")
        kind = name.removeprefix("cells/") if name != "cells" else _kind(nodes.shape[1], points)
        if kind in found:
            raise MeshError(f"cells: {kind} cells are given twice, in 'cells' and in 'cells/{kind}'")
        found[kind] = nodes.astype(np.int64, casting="same_kind" if nodes.dtype != np.uint64 else "unsafe")
    return found


def _kind(corners: int, points: NDArray[Any]) -> str:
    kinds = [kind for kind, count in CORNERS.items() if count == corners]
    if corners == 4:
        spans = np.ptp(points, axis=0)
        flat = len(spans) == 2 or spans[2] <= _FLAT * spans.max()
        kinds = ["quad" if flat else "tetra"]
    if not kinds:
        raise MeshError(f"cells: {corners} corners a cell; {', '.join(CORNERS)} are supported")
    return kinds[0]


def _fields(
    arrays: Arrays, names: Sequence[str]
) -> Iterator[tuple[str, Column, tuple[str, ...], tuple[str | None, ...]]]:
    """Name, column, its channels and their units, of each array of fields."""
    if "fields" in names:
        column = arrays.column("fields")
        if len(column.shape) != 3:
            raise MeshError(f"fields: shape {column.shape}; give [time, node, field]")
        if "field_names" not in names:
            raise MeshError("fields: no array 'field_names' [field] says what they are")
        channels = _texts(arrays, "field_names", column.shape[2])
        unit: tuple[str | None, ...] = (None,) * len(channels)
        if "units" in names:
            unit = _texts(arrays, "units", column.shape[2])
        yield "fields", column, channels, unit
    for name in names:
        if name.startswith("fields/"):
            column = arrays.column(name)
            components = column.shape[2] if len(column.shape) == 3 else None
            channels = channel_names(name.removeprefix("fields/"), components)
            yield name, column, channels, (arrays.units(name),) * len(channels)


def _texts(arrays: Arrays, name: str, count: int) -> tuple[str, ...]:
    column = arrays.column(name)
    if column.shape != (count,) or column.dtype.kind not in "US":
        raise MeshError(f"{name}: {column.dtype} {column.shape}; give a text for each of the {count} fields")
    try:
        return tuple(t.decode() if isinstance(t, bytes) else str(t) for t in column.read(0, count).tolist())
    except UnicodeDecodeError:
        raise MeshError(f"{name}: not UTF-8 text") from None


def _check_field(name: str, column: Column, steps: int, nodes: int) -> None:
    shape = column.shape
    if column.dtype.newbyteorder("<").str not in DTYPES:
        raise MeshError(f"{name}: dtype {column.dtype}; give float32 or float64")
    if len(shape) not in (2, 3):
        raise MeshError(f"{name}: shape {shape}; give [time, node] or [time, node, component]")
    if shape[0] != steps:
        raise MeshError(f"{name}: {shape[0]:,} steps where 'times' has {steps:,}; give one of each")
    if shape[1] != nodes:
        raise MeshError(f"{name}: {shape[1]:,} values a step where the mesh has {nodes:,} nodes; one a node")


def _check_numbers(name: str, dtype: np.dtype[Any], kinds: str) -> None:
    if dtype.kind not in kinds:
        raise MeshError(f"{name}: dtype {dtype}; give {'integers' if kinds == 'iu' else 'numbers'}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return f"{shown}, ..." if len(names) > 8 else shown or "none"
