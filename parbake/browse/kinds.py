"""What a field is to the eye: a scalar, a line, an image, values on a mesh. Told from its form. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from parbake.store.document import StoredField
from parbake.store.layout import Coord

CHANNELS_MAX = 64  # more are no channels of a line but an axis of their own
IMAGE_CHANNELS = (3, 4)  # an axis of one is left out anyhow
_LINE_MIN = 16  # values along an axis that has no coordinate
_IMAGE_MIN = 8  # pixels along each side
_NODES_MIN = 3
_CHANNEL = "channel"
_NODES = ("node", "nodes", "point", "points", "vertex", "cell", "element", "station")
_AXES = (("x", "lon", "longitude", "easting"), ("y", "lat", "latitude", "northing"), ("z",))
_RANKS = {name: rank for rank, names in enumerate(_AXES) for name in names}


class Kind(enum.Enum):
    SCALAR = "scalar"
    LINE = "line"
    IMAGE = "image"
    MESH = "mesh"
    OTHER = "other"


@dataclass(frozen=True)
class Form:
    """How a sample of a field is shown.

    ``axes``: of a sample's axes the one along which a line or the nodes lie, or an image's rows and columns.
    ``channel``: the axis of its channels, if it has one. All others are one long, unless it is OTHER.
    """

    kind: Kind
    axes: tuple[int, ...] = ()
    channel: int | None = None


def kind_of(field: StoredField, coords: Mapping[str, Coord]) -> Kind:
    """What ``field`` is, by its dims, shape and coordinates."""
    return form_of(field, coords).kind


def node_axes(field: StoredField, coords: Mapping[str, Coord]) -> tuple[str, ...]:
    """Names of the two or three coordinates along the field's node dimension; none where it has none."""
    for dim in field.dims:
        if names := _positions(dim, coords):
            return names
    return ()


def form_of(field: StoredField, coords: Mapping[str, Coord]) -> Form:
    """How a sample of ``field`` is shown; a field that is nothing of the kind is OTHER."""
    if math.prod(field.shape) == 1:
        return Form(Kind.SCALAR)
    long = tuple(axis for axis, length in enumerate(field.shape) if length > 1)
    node = [axis for axis in long if field.shape[axis] >= _NODES_MIN and _positions(field.dims[axis], coords)]
    if node:
        rest = [axis for axis in long if axis != node[0]]
        if not rest or (len(rest) == 1 and field.shape[rest[0]] <= CHANNELS_MAX):
            named = _named_channel(field)  # be it one long: its channel may have a name
            return Form(Kind.MESH, (node[0],), rest[0] if rest else None if named == node[0] else named)
        return Form(Kind.OTHER)
    if len(long) == 1:
        return _line(field, coords, long[0], None)
    if len(long) == 2:
        return _of_two(field, coords, long)
    if len(long) == 3:
        for channel in (_named_channel(field), long[2], long[0]):
            sides = tuple(axis for axis in long if axis != channel)
            shape = [field.shape[axis] for axis in sides]
            if channel in long and field.shape[channel] in IMAGE_CHANNELS and min(shape) >= _IMAGE_MIN:
                return Form(Kind.IMAGE, sides, channel)
    return Form(Kind.OTHER)


def are_colours(channels: int, names: tuple[str, ...]) -> bool:
    """Whether channels may be red, green, blue (and alpha): as many, and not named otherwise."""
    letters = "".join(name[:1].lower() for name in names if not name.isdigit())
    return channels in IMAGE_CHANNELS and letters in ("", "rgb", "rgba")


def _of_two(field: StoredField, coords: Mapping[str, Coord], long: tuple[int, ...]) -> Form:
    """Lines of several channels, or an image of one."""
    valued = [axis for axis in long if axis_of(field.dims[axis], coords)]
    channel = _named_channel(field)
    if channel is None:
        texts = [a for a in long if (c := coords.get(field.dims[a])) is not None and c.labels is not None]
        channel = texts[0] if len(texts) == 1 else None
    if channel is None and len(valued) == 1:
        channel = next(axis for axis in long if axis not in valued)
    short = min(long, key=lambda axis: field.shape[axis])
    if channel is None and field.shape[short] < (_IMAGE_MIN if valued else _LINE_MIN):
        channel = short
    if channel in long and field.shape[channel] <= CHANNELS_MAX:
        return _line(field, coords, next(axis for axis in long if axis != channel), channel)
    if field.shape[short] >= _IMAGE_MIN:
        return Form(Kind.IMAGE, long, None)
    return Form(Kind.OTHER)


def _line(field: StoredField, coords: Mapping[str, Coord], axis: int, channel: int | None) -> Form:
    if axis_of(field.dims[axis], coords) or field.shape[axis] >= _LINE_MIN:
        if channel is None and _named_channel(field) != axis:
            channel = _named_channel(field)
        return Form(Kind.LINE, (axis,), channel)
    return Form(Kind.OTHER)


def _named_channel(field: StoredField) -> int | None:
    return field.dims.index(_CHANNEL) if _CHANNEL in field.dims else None


def axis_of(dim: str, coords: Mapping[str, Coord]) -> Coord | None:
    """The coordinate that says where values along ``dim`` lie; of files of others it may say nothing.

    That is: texts, truth values, numbers that are complex, not finite, or all the same.
    """
    coord = coords.get(dim)
    if coord is None or coord.dim not in (None, dim) or not _is_real(coord):
        return None
    low, high = float(coord.values.min()), float(coord.values.max())
    return coord if low < high and math.isfinite(high - low) else None


def even_sides(field: StoredField, form: Form, coords: Mapping[str, Coord]) -> tuple[Coord, Coord] | None:
    """The coordinates along an image's rows and columns, where both go in even steps: it is drawn to them."""
    rows, columns = (axis_of(field.dims[axis], coords) for axis in form.axes)
    if rows is None or columns is None or not (_is_even(rows) and _is_even(columns)):
        return None
    return rows, columns


def _is_even(coord: Coord) -> bool:
    steps = np.diff(coord.values.astype(np.float64))
    return bool(len(steps) and (np.abs(steps - steps.mean()) <= 1e-3 * np.abs(steps.mean())).all())


def _positions(dim: str, coords: Mapping[str, Coord]) -> tuple[str, ...]:
    """Coordinates along ``dim`` that say where its nodes are: across, upwards, and the third.

    Two scales of one axis (its frequency in Hz and in mel) are none: they are named otherwise.
    """
    along = [name for name, coord in coords.items() if coord.dim == dim and name != dim and _is_real(coord)]
    rank = {name: _RANKS.get(name.lower().rpartition("_")[2], len(_AXES)) for name in along}
    if dim.rpartition("_")[2] not in _NODES:
        along = [name for name in along if rank[name] < len(_AXES)]
    along.sort(key=lambda name: rank[name])
    return tuple(along[:3]) if len(along) >= 2 else ()


def _is_real(coord: Coord) -> bool:
    return coord.labels is None and coord.values.dtype.kind in "iuf"
