"""What the arrays of a file that parbake did not write become: fields, coordinates, or left out. Pure.

The openers of foreign containers describe their arrays (``ForeignArray``), ``planned`` chooses, the opener
makes a map of each field (``grid_maps``, ``fetched_map``), and ``contents_of`` puts them together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.errors import NotAStoreError, RecipeError, one_line
from parbake.store.chunkmap import AnyMap, FetchedMap
from parbake.store.contents import Contents
from parbake.store.document import StoredField, StoreDocument
from parbake.store.keys import Keys, digest
from parbake.store.layout import CHUNK_NBYTES, DTYPES, SAMPLE_DIM, SAMPLE_NBYTES_MAX, Coord, Layout
from parbake.store.opened import Files

CHUNKS_MAX = 1 << 28  # of a field: each takes some bytes of memory once the field is read
CHUNK_NBYTES_MAX = 1 << 30  # decoded: it is memory
COORD_NBYTES_MAX = 1 << 28
NAMES_MAX = 20  # that one message tells
_ALIKE_MAX = 5  # that it tells of those with one reason
_ONE_EACH_MIN = 16  # arrays that are alike
_DIGITS = re.compile(r"\d+")
_TEXT_MAX = 1_000  # characters of an attribute
PACKING = ("scale_factor", "add_offset")  # CF: values stand for others
FILLING = ("_FillValue", "missing_value")  # CF: a value stands for none

Axis: TypeAlias = tuple[str | None, int]
"""A dimension's name, if it has one, and its length. Groups of one file may use a name for two lengths."""


@dataclass(frozen=True)
class ForeignArray:
    """One array of a foreign file, as it says of itself; nothing is believed yet.

    ``name``: with its groups, "group/x". ``dtype``: byte order as on disk. ``dims``: a name an axis, None
    where there is none. ``coordinates``: the names in CF ``coordinates`` of the array or its group.
    ``chunk_shape``: of what is decoded at once; None where any part can be read. ``codec``: for tables.
    ``unfit``: why it can be no field, whatever its shape; dtype and chunk_shape may then be anything.
    ``coded``: names of CF attributes that say that its values stand for others, or for none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str | None, ...]
    units: str | None = None
    description: str | None = None
    coordinates: tuple[str, ...] = ()
    chunk_shape: tuple[int, ...] | None = None
    codec: str = "raw"
    unfit: str | None = None
    coded: tuple[str, ...] = ()

    @cached_property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(zip(self.dims, self.shape, strict=True))

    @property
    def group(self) -> str:
        return self.name.rpartition("/")[0]

    @cached_property
    def fault(self) -> str | None:
        """Why this array can be neither field nor coordinate."""
        if self.unfit is not None:
            return self.unfit
        if not self.shape:
            return "a single value"
        if 0 in self.shape:
            return "empty"
        if min(self.shape) < 0 or max(self.shape) >= 2**62:
            return "a shape that cannot be"
        if self.dtype.name not in DTYPES:
            return "not a number"
        if self.chunk_shape is None:
            return None if self.nbytes < CHUNKS_MAX * CHUNK_NBYTES else f"{self.nbytes:,} bytes"
        if len(self.chunk_shape) != len(self.shape) or min(self.chunk_shape) < 1:
            return f"chunks of shape {self.chunk_shape}"
        nbytes = math.prod(self.chunk_shape) * self.dtype.itemsize
        if nbytes > CHUNK_NBYTES_MAX:
            return f"chunks of {nbytes:,} bytes, over the limit of 1 GiB"
        chunks = max(-(-n // c) for n, c in zip(self.shape, self.chunk_shape, strict=True))
        return None if chunks <= CHUNKS_MAX else f"{chunks:,} chunks along one axis"

    def __str__(self) -> str:
        names = f" [{', '.join(dim or '?' for dim in self.dims)}]" if any(self.dims) else ""
        dtype = f" {self.dtype.name}" if self.dtype.name in DTYPES else ""
        return f"{self.name} {self.shape}{dtype}{names}"


@dataclass(frozen=True)
class Plan:
    """What the arrays of a file become.

    ``axes``: the sample axis of each field, in the file's order. ``dims``: the names of the other axes,
    which have one length each. ``coords``: by name, and the dimension that each lies along.
    """

    samples: int
    arrays: Mapping[str, ForeignArray]  # of fields and coordinates
    axes: Mapping[str, int]
    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, str]
    notices: tuple[str, ...]

    def sample_shape(self, field: str) -> tuple[int, ...]:
        shape, axis = self.arrays[field].shape, self.axes[field]
        return shape[:axis] + shape[axis + 1 :]


def attribute_texts(attributes: Mapping[str, Any]) -> tuple[str | None, str | None, tuple[str, ...]]:
    """The units, the description and the CF ``coordinates`` in an array's attributes."""
    described = (text_of(attributes.get(name)) for name in ("long_name", "description", "standard_name"))
    names = text_of(attributes.get("coordinates")) or ""
    return text_of(attributes.get("units")), next(filter(None, described), None), tuple(names.split())


def text_of(value: object) -> str | None:
    """An attribute as a line of text, or None for what is none."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return one_line(value)[:_TEXT_MAX] or None if isinstance(value, str) else None


def planned(where: object, arrays: Sequence[ForeignArray], sample_dim: str | None) -> Plan:
    """Choose the fields among ``arrays``, in the file's order. ``where``: names the file in errors.

    With ``sample_dim`` all arrays that have this dimension are fields, or, where it is an array's name, those
    that share its axis 0. Without, those are that share axis 0: by its name ("sample" first), where it has
    none by its length; of several, where most bytes are.

    Raises RecipeError for a ``sample_dim`` that is neither, NotAStoreError where nothing can be a field.
    """
    faults = {array.name: array.fault for array in arrays if array.fault is not None}
    fit = [array for array in arrays if array.name not in faults]
    if sample_dim in {array.name for array in fit} and not any(sample_dim in array.dims for array in fit):
        chosen = next(array.axes[0] for array in fit if array.name == sample_dim)
        sample_dim = None
    else:
        chosen = _sample_axis(where, arrays, fit, sample_dim)
    axes: dict[str, int] = {}
    for array in fit:
        axis = _axis_in(array, chosen, sample_dim)
        if axis is None:
            continue
        if array.nbytes // array.shape[axis] > SAMPLE_NBYTES_MAX:
            faults[array.name] = "samples over the limit of 1 GiB"
        else:
            axes[array.name] = axis
    if not axes:
        raise NotAStoreError(
            one_line(f"{where}: no array can be a field along {_axis_text(chosen)}; {_held(arrays, faults)}")
        )
    kept = {array.name: array for array in fit}
    dims = _dims({name: kept[name] for name in axes}, axes)
    coords = dict(_coords(fit, axes, dims))
    used = axes.keys() | coords.keys()
    left = [(array, faults.get(array.name)) for array in arrays if array.name not in used]
    chosen_arrays = {name: array for name, array in kept.items() if name in used}
    notices = (_left_out(left, chosen), _not_applied(chosen_arrays.values()), _one_each(arrays))
    return Plan(chosen[1], chosen_arrays, axes, dims, coords, tuple(filter(None, notices)))


def _sample_axis(
    where: object, arrays: Sequence[ForeignArray], fit: Sequence[ForeignArray], sample_dim: str | None
) -> Axis:
    """The axis that samples lie along: the candidate whose arrays have the most bytes."""
    nbytes: dict[Axis, int] = {}
    for array in fit:
        axes = array.axes[:1] if sample_dim is None else [a for a in array.axes if a[0] == sample_dim]
        for axis in set(axes):
            if array.nbytes // axis[1] <= SAMPLE_NBYTES_MAX:
                nbytes[axis] = nbytes.get(axis, 0) + array.nbytes
    for name, length in list(nbytes):
        if name is not None and (None, length) in nbytes:  # unnamed axes of this length join it
            nbytes[name, length] += nbytes[None, length]
    if nbytes:
        return max(nbytes, key=lambda axis: (axis[0] == SAMPLE_DIM, nbytes[axis], axis[0] is not None))
    if sample_dim is not None:
        names = sorted({dim for array in arrays for dim in array.dims if dim})
        named = f"its dimensions are {_some(map(repr, names))}" if names else "its dimensions have no names"
        said = f"no array has samples along a dimension {sample_dim!r}, or has this name; {named}"
        raise RecipeError(one_line(f"{where}: {said}; {_held(arrays, {})}"))
    held = _held(arrays, {array.name: array.fault for array in arrays})
    picks = "; --sample-dim picks the dimension of samples" if fit else ""
    raise NotAStoreError(one_line(f"{where}: no array can be a field; {held}{picks}"))


def _axis_in(array: ForeignArray, chosen: Axis, sample_dim: str | None) -> int | None:
    """Where the sample axis is in an array, None where it is not."""
    if sample_dim is not None:
        return array.axes.index(chosen) if chosen in array.axes else None
    unnamed = (None, chosen[1])  # some writers name the dimensions of some arrays only
    return 0 if array.axes[0] in (chosen, unnamed) else None


def _dims(fields: Mapping[str, ForeignArray], axes: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Names of the axes but the sample axis: a name has one length, and no axis lacks one."""
    lengths: dict[str, int] = {}

    def name_of(array: ForeignArray, axis: int, taken: Iterable[str]) -> str:
        dim, length = array.axes[axis]
        own = _flat(f"{array.name}_{axis}")
        wanted = [dim, *([_flat(f"{array.group}/{dim}")] if array.group else [])] if dim else []
        for name in (*wanted, own, *(f"{own}_{i}" for i in range(len(lengths) + 1))):
            if name not in taken and lengths.setdefault(name, length) == length:
                return name
        raise AssertionError("one more name than lengths")

    found = {}
    for named in (True, False):  # names made up give way to those in the file
        for name, array in fields.items():
            if any(array.dims) == named:
                names: list[str] = []
                for axis in range(len(array.shape)):
                    if axis != axes[name]:
                        names.append(name_of(array, axis, names))
                found[name] = tuple(names)
    return {name: found[name] for name in fields}


def _coords(
    fit: Sequence[ForeignArray], axes: Mapping[str, int], dims: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, str]]:
    """Arrays that are coordinates of fields, each with the dimension that it lies along."""
    along: dict[Axis, str] = {}
    told: set[str] = set()
    near: set[str] = set()  # groups of fields, and those above
    for array in fit:
        if array.name in axes:
            near.update(path.rpartition("/")[0] for path in _paths(array.group, "x"))
            others = [axis for i, axis in enumerate(array.axes) if i != axes[array.name]]
            for axis, dim in zip(others, dims[array.name], strict=True):
                if axis[0] is not None:
                    along.setdefault(axis, dim)
            told.update(path for name in array.coordinates for path in _paths(array.group, name))
    for array in fit:
        if array.name in axes or len(array.shape) > 1 or array.nbytes > COORD_NBYTES_MAX:
            continue
        is_dim = array.group in near and array.name.rpartition("/")[2] == array.dims[0]
        if array.axes[0] in along and (is_dim or array.name in told):
            yield array.name, along[array.axes[0]]


def _paths(group: str, name: str) -> Iterator[str]:
    """Where a name that is used in a group may lie: there, or in a group above it."""
    while group:
        yield f"{group}/{name}"
        group = group.rpartition("/")[0]
    yield name


def _held(arrays: Sequence[ForeignArray], faults: Mapping[str, str | None]) -> str:
    if not arrays:
        return "it holds no arrays"
    told = (f"{a}: {faults[a.name]}" if faults.get(a.name) else str(a) for a in arrays)
    return f"it holds {_some(told)}"


def _left_out(left: Sequence[tuple[ForeignArray, str | None]], chosen: Axis) -> str:
    if not left:
        return ""
    away = f"not along {_axis_text(chosen)}"
    told = by_reason((str(array), why or away) for array, why in left)
    others = [array for array, why in left if why is None]
    # an array is named where its dimension would not tell
    picks = ""
    if others:
        name = max(others, key=lambda a: a.nbytes).name
        picks = f"; sample_dim={name!r} picks others (--sample-dim {name})"
    return one_line(f"left out: {told}{picks}")


def by_reason(left: Iterable[tuple[str, str]]) -> str:
    """Names of what was left out, together where the reason is the same, and not all of many."""
    groups: dict[str, list[str]] = {}
    for name, why in left:
        groups.setdefault(why, []).append(name)
    return _some(f"{_some(names, _ALIKE_MAX)} ({why})" for why, names in groups.items())


def _not_applied(arrays: Iterable[ForeignArray]) -> str:
    """What CF says of values that are handed out as they are stored."""
    coded, times = [], []
    for array in arrays:
        coded += [f"{array.name!r} ({', '.join(array.coded)})"] if array.coded else []
        times += [f"{array.name!r} ({array.units})"] if array.units and " since " in array.units else []
    told = [f"not applied: {_some(coded, _ALIKE_MAX)}"] if coded else []
    told += [f"times are numbers: {_some(times, _ALIKE_MAX)}"] if times else []
    return one_line(f"values as stored; {'; '.join(told)}") if told else ""


def _one_each(arrays: Sequence[ForeignArray]) -> str:
    """Said of a file that seems to have an array for each sample."""
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for array in arrays:
        if _DIGITS.search(array.name):
            alike.setdefault((_DIGITS.sub("0", array.name), array.shape), []).append(array.name)
    most = max(alike.values(), key=len, default=[])
    if len(most) < _ONE_EACH_MIN:
        return ""
    return one_line(
        f"{len(most):,} arrays such as {most[0]!r} are alike, but a field is one array of all "
        "samples; where each is a sample, bake them with parbake.from_function"
    )


def _flat(name: str) -> str:
    return name.replace("/", "_")


def _axis_text(axis: Axis) -> str:
    return f"dimension {axis[0]!r} of {axis[1]:,}" if axis[0] else f"a first axis of {axis[1]:,}"


def _some(texts: Iterable[str], most: int = NAMES_MAX) -> str:
    told = list(texts)
    more = [f"{len(told) - most:,} more"] if len(told) > most else []
    return ", ".join(told[:most] + more)


def contents_of(
    files: Files,
    plan: Plan,
    maps: Mapping[str, AnyMap],
    *,
    read_coord: Callable[[str], NDArray[Any]],
    nbytes_stored: Callable[[str], int],
    version: str,
    notices: Sequence[str] = (),
) -> Contents:
    """The opened container. ``maps``: by field. ``read_coord(name)``: the values of a coordinate, 1-D."""
    fields = {name: _stored(plan, name, maps[name]) for name in plan.axes}
    layouts = {name: field.layout for name, field in fields.items()}
    layout = Layout(max(one.shard_samples for one in layouts.values()), layouts)
    document = StoreDocument(plan.samples, layout, fields, {}, Keys({}, {}), {}, {})
    slow = [
        one_line(f"field {name!r} is not read through a chunk map, so slowly: {one.reason}")
        for name, one in maps.items()
        if isinstance(one, FetchedMap) and one.reason
    ]

    def coords() -> dict[str, Coord]:
        found = {}
        for name, dim in plan.coords.items():
            shown = dim if name.rpartition("/")[2] == dim and dim not in found else _flat(name)
            shown = name if shown in found else shown
            found[shown] = Coord(read_coord(name), plan.arrays[name].units, dim=None if dim == shown else dim)
        return found

    return Contents(
        files, document, maps, coords, nbytes_stored, version, notices=(*notices, *plan.notices, *slow)
    )


def _stored(plan: Plan, name: str, field: AnyMap) -> StoredField:
    array = plan.arrays[name]
    units, description = array.units, array.description
    if packing := [key for key in array.coded if key in PACKING]:  # the units are not those of the numbers
        packed = f"packed: {' and '.join(packing)} not applied"
        units, description = None, f"{description}; {packed}" if description else packed
    return StoredField(name, plan.dims[name], units, description, True, field.layout)


def structure_digest(document: StoreDocument) -> str:
    """Tells stores of other fields, shapes or dtypes apart, where no keys are known."""
    said = [[f.name, f.dtype.newbyteorder("=").name, list(f.shape)] for f in document.fields.values()]
    return digest({"foreign": said, "samples": document.samples})
