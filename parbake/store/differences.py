"""What two stores differ in: keys, fields, coordinates, and the samples that are not the same bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.store.document import StoredField
from parbake.store.keys import ABSENT, JSON, Change, Keys, compare
from parbake.store.layout import Coord, plain_name
from parbake.store.samples import Samples

THERE = "(there)"
FIRST_SAMPLES = 5  # of those that differ
_TOLD_MAX = 5  # differences in one line

_BLOCK_NBYTES = 4 * 1024**2  # of all fields, of one store
_BLOCK_NBYTES_MAX = 64 * 1024**2  # where chunks are as large, so that each is decoded once
_FORM = ("shape", "dtype", "dims", "units", "field")  # of a field's keys, told as the fields are themselves


@dataclass(frozen=True)
class SampleDifferences:
    """The samples of one field that differ: how many of how many, the first, and by how much.

    ``largest``: the largest absolute difference between finite values; None where these are equal.
    """

    field: str
    differing: int
    compared: int
    first: tuple[int, ...]
    largest: int | float | None

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.first)) + (", ..." if self.differing > len(self.first) else "")
        size = (
            "in NaN, infinity or the sign of 0 alone"
            if self.largest is None
            else f"by at most {self.largest:.6g}"
        )
        return f"field {self.field!r}: {self.differing} of {self.compared} samples differ ({numbers}), {size}"


@dataclass(frozen=True)
class Differences:
    """What two stores differ in, first -> second; true when they are equal.

    ``keys``: invalidation keys. ``form``: number of samples, fields that only one has, shapes, dtypes, dims,
    units and coordinates. ``samples``: the values, of fields of one shape and dtype. ``keys_unknown``: the
    stores (0, 1) whose keys nobody knows, as of files that others wrote, so that keys were not compared; that
    is no difference. Plain values throughout: its ``dataclasses.asdict`` is JSON.
    """

    keys: tuple[Change, ...] = ()
    form: tuple[Change, ...] = ()
    samples: tuple[SampleDifferences, ...] = ()
    keys_unknown: tuple[int, ...] = ()

    @property
    def all(self) -> tuple[Change | SampleDifferences, ...]:
        """Each difference, which as text is a line."""
        return (*self.keys, *self.form, *self.samples)

    def __bool__(self) -> bool:
        return not self.all

    def __str__(self) -> str:
        """A few of the differences in one line."""
        if self:
            return "equal"
        more = len(self.all) - _TOLD_MAX
        told = "; ".join(map(str, self.all[:_TOLD_MAX]))
        return f"{told}; and {more} more" if more > 0 else told


def compare_stores(
    first: Samples, second: Samples, *, progress: Callable[[int], None] | None = None
) -> Differences:
    """What ``first`` and ``second`` differ in, by reading the fields that both have, a few MiB at a time.

    Values are compared bit for bit: NaNs of the same bits are equal, 0.0 and -0.0 are not. Codecs, chunks,
    containers, byte order, descriptions and provenance are no difference. ``progress`` is called with the
    number of samples that were compared.

    Raises what reading a store raises.
    """
    coords = _both_coords(first, second)
    form = [*_field_changes(first.fields, second.fields), *_coord_changes(coords)]
    if first.samples != second.samples:
        form.insert(0, Change(None, "samples", first.samples, second.samples))
    comparable = {
        name: other
        for name, other in _pairs(first.fields, second.fields)
        if name is not None and other is not None and _kind(first.fields[name]) == _kind(second.fields[other])
    }
    keys = _keys(first), _keys(second)
    return Differences(
        tuple(_key_changes(*keys, coords is not None)),
        tuple(form),
        tuple(_sample_differences(first, second, comparable, progress)),
        tuple(number for number, known in enumerate(keys) if known is None),
    )


def _pairs(first: Iterable[str], second: Iterable[str]) -> list[tuple[str | None, str | None]]:
    """Names of both that mean the same, then those of one alone.

    What others call ``run/x`` is ``run_x`` in the store that is made of it.
    """
    others = {plain_name(name): name for name in second} | {name: name for name in second}
    found: list[tuple[str | None, str | None]] = [
        (name, others.get(name, others.get(plain_name(name)))) for name in first
    ]
    paired = {other for _, other in found}
    return found + [(None, name) for name in second if name not in paired]


# ---- keys


def _keys(store: Samples) -> Keys | None:
    """The keys of a store; None where nobody knows them, as of a file that others wrote."""
    keys: Keys | None = getattr(store, "invalidation_keys", None)
    return keys if keys is not None and (keys.shared or keys.fields) else None


def _key_changes(first: Keys | None, second: Keys | None, coords_compared: bool) -> Iterator[Change]:
    if first is None or second is None:
        return
    told = (*_FORM, "coords") if coords_compared else _FORM
    for change in compare(first, second).changes:
        if change.field is None or change.path.partition(".")[0].partition("[")[0] not in told:
            yield change


# ---- fields and coordinates


def _kind(field: StoredField) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """What the values of two fields must have in common to be compared."""
    return field.shape, field.dtype.newbyteorder("=")


def _said(field: StoredField) -> dict[str, JSON]:
    return {
        "shape": list(field.shape),
        "dtype": field.dtype.name,
        "dims": [*map(plain_name, field.dims)],
        "units": field.units,
    }


def _field_changes(first: Mapping[str, StoredField], second: Mapping[str, StoredField]) -> Iterator[Change]:
    for name, other in _pairs(first, second):
        if name is None or other is None:
            sides = (ABSENT if side is None else THERE for side in (name, other))
            yield Change(name or other, "field", *sides)
            continue
        yield from _changes(name, _said(first[name]), _said(second[other]))


def _both_coords(first: Samples, second: Samples) -> tuple[Mapping[str, Coord], Mapping[str, Coord]] | None:
    """The coordinates of both, where both say them."""
    one, other = getattr(first, "coords", None), getattr(second, "coords", None)
    return None if one is None or other is None else (one, other)


def _coord_changes(coords: tuple[Mapping[str, Coord], Mapping[str, Coord]] | None) -> Iterator[Change]:
    first, second = coords or ({}, {})
    for name, other in _pairs(first, second):
        if name is None or other is None:
            sides = (ABSENT if side is None else THERE for side in (name, other))
            yield Change(None, f"coords.{name or other}", *sides)
        else:
            yield from _one_coord(name, first[name], second[other])


def _one_coord(name: str, first: Coord, second: Coord) -> Iterator[Change]:
    one, other = (
        {
            "units": coord.units,
            "dim": None if coord.dim is None else plain_name(coord.dim),
            "labels": None if coord.labels is None else list(coord.labels),
            "dtype": coord.values.dtype.name,
            "length": len(coord.values),
        }
        for coord in (first, second)
    )
    found = list(_changes(None, one, other))
    yield from (replace(change, path=f"coords.{name}.{change.path}") for change in found)
    if one["dtype"] != other["dtype"] or one["length"] != other["length"]:
        return
    values = [_native(coord.values) for coord in (first, second)]
    unequal = np.flatnonzero(_differing(values[0], values[1]))
    if len(unequal) and not any(change.path == "labels" for change in found):
        at = int(unequal[0])
        yield Change(None, f"coords.{name}.values[{at}]", *(str(array[at]) for array in values))


def _changes(field: str | None, one: Mapping[str, JSON], other: Mapping[str, JSON]) -> Iterator[Change]:
    return (Change(field, what, one[what], other[what]) for what in one if one[what] != other[what])


# ---- samples


@dataclass
class _Tally:
    """What was found so far in one field."""

    differing: int
    first: list[int]
    largest: int | float | None

    def add(self, start: int, one: NDArray[Any], other: NDArray[Any]) -> None:
        """Count samples [start, start + k) of both stores, [k, *shape]."""
        rows = np.flatnonzero(_differing(one, other))
        if not len(rows):
            return
        self.differing += len(rows)
        self.first += [start + row for row in rows[: FIRST_SAMPLES - len(self.first)].tolist()]
        largest = _largest(one[rows], other[rows])
        known = [size for size in (self.largest, largest) if size is not None]
        self.largest = max(known, default=None)


def _sample_differences(
    first: Samples, second: Samples, names: Mapping[str, str], progress: Callable[[int], None] | None
) -> Iterator[SampleDifferences]:
    if not names:
        return
    samples = min(first.samples, second.samples)
    sides = (first, tuple(names)), (second, tuple(names.values()))
    step = min(_block_samples([store.fields[name] for store, own in sides for name in own]), samples)
    buffers = [{n: np.empty((step, *s[n].shape[1:]), s[n].dtype) for n in own} for s, own in sides]
    tallies = {name: _Tally(0, [], None) for name in names}
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        one, other = (
            store.read(
                range(start, stop), own, {name: array[: stop - start] for name, array in buffer.items()}
            )
            for (store, own), buffer in zip(sides, buffers, strict=True)
        )
        for name, tally in tallies.items():
            tally.add(start, one[name], other[names[name]])
        if progress is not None:
            progress(stop)
    for name, tally in tallies.items():
        if tally.differing:
            yield SampleDifferences(name, tally.differing, samples, tuple(tally.first), tally.largest)


def _block_samples(fields: Sequence[StoredField]) -> int:
    """How many samples to read at once: a few MiB of one store, or the longest chunk."""
    nbytes = sum(field.layout.sample_nbytes for field in fields) / 2  # they are those of two stores
    chunk = max((f.layout.chunk_samples for f in fields if not f.is_scalar), default=1)
    wanted = max(1, int(_BLOCK_NBYTES / nbytes), chunk)
    limit = max(1, int(_BLOCK_NBYTES_MAX / nbytes))
    block = min(wanted, limit)
    return max(1, block // chunk * chunk) if block >= chunk else block  # blocks that end with chunks


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _differing(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Along the first axis, where the bits differ; C-contiguous arrays of one shape and dtype."""
    rows = [array.reshape(len(array), -1).view(np.uint8) for array in (one, other)]
    differ: NDArray[np.bool_] = (rows[0] != rows[1]).any(axis=1)
    return differ


def _largest(one: NDArray[Any], other: NDArray[Any]) -> int | float | None:
    """The largest absolute difference between finite values of differing samples; exact for integers."""
    if one.dtype.kind == "b":
        return 1
    if one.dtype.kind in "iu":
        high, low = np.maximum(one, other), np.minimum(one, other)
        unsigned = np.dtype(f"u{one.dtype.itemsize}")  # holds any difference; subtraction wraps to it
        return int((high.view(unsigned) - low.view(unsigned)).max())
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    both = np.isfinite(one) & np.isfinite(other)
    with np.errstate(over="ignore"):
        sizes = np.abs(one[both].astype(wide) - other[both].astype(wide))
    return min(float(sizes.max(initial=0)), float(np.finfo(np.float64).max)) or None
