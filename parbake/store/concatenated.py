"""Several stores read as one: their samples, one after the other."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.errors import RecipeError
from parbake.store import statistics
from parbake.store.document import StoredField
from parbake.store.index import Index, Window, adjoining, normalised_index
from parbake.store.keys import JSON, Freshness, Producer, canonical
from parbake.store.samples import Samples
from parbake.store.store import open_store

Part: TypeAlias = Samples | str | os.PathLike[str]

_NAMED_PARTS = 3  # in messages; of more, the first


def concatenated(parts: Sequence[Part], fields: Sequence[str] | None = None) -> Concatenated:
    """The samples of ``parts``, open stores or paths of stores, one after the other, as those of one store.

    ``fields``: names, default all, which all parts must then have alike. A field must agree in shape, dtype
    (but for byte order), dimensions and, where both say them, units.

    Raises RecipeError, naming stores and field, and all that ``open_store`` raises.
    """
    if isinstance(parts, Samples | str | os.PathLike) or not isinstance(parts, Sequence):
        raise RecipeError(f"concatenated takes a list of open stores and paths, not {type(parts).__name__}")
    with contextlib.ExitStack() as opened:  # closed again where a later one cannot be used
        stores = [_opened(part, opened) for part in parts]
        whole = Concatenated(stores, fields)
        opened.pop_all()
        return whole


def _opened(part: Part, opened: contextlib.ExitStack) -> Samples:
    if isinstance(part, Samples):
        return part
    if not isinstance(part, str | os.PathLike):
        raise RecipeError(f"concatenated takes open stores and paths, not {type(part).__name__}")
    return opened.enter_context(open_store(part))


class Concatenated(Samples):
    """The samples of several stores, one after the other. Picklable; made by ``concatenated``."""

    def __init__(self, parts: Sequence[Samples], fields: Sequence[str] | None = None) -> None:
        if not parts:
            raise RecipeError("concatenated: no stores were given")
        self.parts = tuple(parts)
        names = _common_names(self.parts) if fields is None else self.parts[0].chosen(fields)
        self._fields = {name: _common_field(self.parts, name) for name in names}
        self._ends = np.cumsum([part.samples for part in self.parts])  # the sample after each part's last

    @property
    def path(self) -> str:
        """The paths of the parts, for messages."""
        paths = [str(part.path) for part in self.parts]
        if len(paths) > _NAMED_PARTS:
            return f"{paths[0]} + {len(paths) - 1} more stores"
        return " + ".join(paths)

    @property
    def samples(self) -> int:
        return int(self._ends[-1])

    @property
    def fields(self) -> Mapping[str, StoredField]:
        """The fields, in native byte order; chunks are as long as the longest of the parts'."""
        return self._fields

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the digests and numbers of samples of the parts."""
        said = canonical([[part.digest, part.samples] for part in self.parts])
        return hashlib.sha256(said.encode()).hexdigest()

    @cached_property
    def statistics(self) -> Mapping[str, JSON]:
        """As of one store of all samples, merged from those of the parts."""
        return {name: self._merged_statistics(field) for name, field in self._fields.items()}

    def _merged_statistics(self, field: StoredField) -> JSON:
        columns = statistics.columns_of(field.shape, field.channel_axis)
        elements = int(np.prod(field.shape, dtype=np.int64))
        partials = (
            statistics.partial_of_summary(part.statistics[field.name], part.samples * elements, columns)
            for part in self.parts
        )
        return statistics.summary(statistics.merged(partials, columns))

    def _fill(
        self,
        arrays: Mapping[str, NDArray[Any]],
        numbers: NDArray[np.int64],
        windows: Mapping[str, Window],
        threads: int,
    ) -> None:
        for part, rows, own in self._shared_out(numbers):
            # Straight into adjoining rows. Where samples share chunks, in one go: each chunk decodes once.
            # Nor is a producer to compute twice, or sample by sample, what it can do at once.
            chunks = {name: part.fields[name].layout.chunk_samples for name in arrays}
            alone = [name for name in arrays if chunks[name] == 1 and part.is_stored]
            for start, stop in adjoining(rows) if alone else ():
                places = slice(int(rows[start]), int(rows[start]) + stop - start)
                out = {name: arrays[name][places] for name in alone}
                part.read(own[start:stop], alone, out, windows=_parts(windows, places), threads=threads)
            if shared := [name for name in arrays if name not in alone]:
                values = part.read(own, shared, windows=_parts(windows, rows), threads=threads)
                for name in shared:
                    arrays[name][rows] = values[name]

    def will_need(self, index: Index, fields: Sequence[str] | None = None) -> None:
        names = self.chosen(fields)  # of the parts' only those shown here
        for part, _, own in self._shared_out(normalised_index(index, self.samples)):
            part.will_need(own, names)

    def _shared_out(
        self, numbers: NDArray[np.int64]
    ) -> Iterator[tuple[Samples, NDArray[np.int64], NDArray[np.int64]]]:
        """Each part that has some of samples ``numbers``, the places of these, and their numbers in it."""
        owner = np.searchsorted(self._ends, numbers, side="right")
        for number in np.unique(owner).tolist():
            part, rows = self.parts[number], np.flatnonzero(owner == number)
            yield part, rows, numbers[rows] - (int(self._ends[number]) - part.samples)

    def _repr_html_(self) -> str:
        """For notebooks: a table of the fields, and the parts."""
        from parbake.browse.html import samples_html

        return samples_html(self, "several", self.parts)

    @property
    def is_stored(self) -> bool:
        return all(part.is_stored for part in self.parts)

    def reserve(self, samples: int, fields: Sequence[str] | None = None) -> None:
        for part in self.parts:
            part.reserve(min(samples, part.samples), self.chosen(fields))

    def first(self, samples: int) -> Concatenated:
        """This one showing its first ``samples`` only."""
        if not 0 < samples <= self.samples:
            raise IndexError(f"{self.path}: {samples} of {self.samples} samples")
        last = int(np.searchsorted(self._ends, samples))
        begins = int(self._ends[last]) - self.parts[last].samples
        return Concatenated(
            [*self.parts[:last], self.parts[last].first(samples - begins)], tuple(self._fields)
        )

    def freshness(self, producer: Producer, *, rehash: bool = False) -> Freshness:
        """Raises RecipeError: no one producer gives the samples of several stores."""
        raise RecipeError(
            f"{self.path}: several stores have no one producer to expect; open each with "
            "open_store(path, expect=producer) and concatenate what that gives"
        )

    def close(self) -> None:
        """Close all parts, those too that were given open."""
        for part in self.parts:
            part.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.parts, tuple(self._fields))


def _common_names(parts: Sequence[Samples]) -> tuple[str, ...]:
    """The names of the fields, if all parts have the same."""
    first = parts[0]
    for part in parts[1:]:
        for one, other in ((first, part), (part, first)):
            if lacking := [name for name in one.fields if name not in other.fields]:
                common = [name for name in first.fields if all(name in each.fields for each in parts)]
                said = ", ".join(map(repr, common))
                raise RecipeError(
                    f"{other.path}: no field {lacking[0]!r}, which {one.path} has; "
                    + (f"choose of those that all have: fields=[{said}]" if common else "they share none")
                )
    return tuple(first.fields)


def _common_field(parts: Sequence[Samples], name: str) -> StoredField:
    """The field as all parts have it. Raises RecipeError."""
    for part in parts:
        part.chosen((name,))
    first = parts[0].fields[name]
    units_part = next((part for part in parts if part.fields[name].units), parts[0])
    units = units_part.fields[name].units
    for part in parts:
        field = part.fields[name]
        for what, said, one, other in (
            ("shape", parts[0], first.shape, field.shape),
            ("dtype", parts[0], first.dtype.newbyteorder("="), field.dtype.newbyteorder("=")),
            ("dims", parts[0], first.dims, field.dims),
            ("units", units_part, units, field.units or units),
        ):
            if one != other:
                raise RecipeError(
                    f"field {name!r}: {what} {one} in {said.path}, {other} in {part.path}; "
                    "only fields that agree can be concatenated"
                )
    chunk_samples = max(part.fields[name].layout.chunk_samples for part in parts)
    dtype = first.dtype.newbyteorder("=").str
    layout = replace(first.layout, dtype=dtype, chunk_samples=chunk_samples)
    return replace(first, units=units, layout=layout)


def _parts(windows: Mapping[str, Window], rows: slice | NDArray[np.int64]) -> dict[str, Window]:
    return {name: window.part(rows) for name, window in windows.items()}
