"""Stores in notebooks and reports: HTML without scripts or network.

Everything that comes from a file is escaped and cut; the whole stays below 200 kB whatever a store holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from parbake import human
from parbake.browse import facts
from parbake.browse.markup import badge, details, escaped, fragment, more, note, quiet, table
from parbake.browse.sketch import Sketches
from parbake.browse.style import STYLE
from parbake.browse.tree import tree
from parbake.errors import DamagedStoreError, described

if TYPE_CHECKING:
    from parbake.store.document import StoredField
    from parbake.store.keys import JSON
    from parbake.store.layout import Coord
    from parbake.store.samples import Samples
    from parbake.store.store import Store

__all__ = ["STYLE", "badge", "escaped", "samples_html", "store_html", "table"]

ROWS_MAX = 40  # of a table; what is left out is counted
CHANNELS_MAX = 8  # of a field, that are told of one by one
PICTURES_MAX = 12
PICTURES_NBYTES_MAX = 80_000
READ_NBYTES_MAX = 64 * 1024**2  # decoded, for all pictures together
_FAULTS_MAX = 5
_PATH_MAX = 200  # characters

T = TypeVar("T")


def store_html(store: Store) -> str:
    """All that a store says about itself, with a picture of each field.

    Never raises for a store that opened: what cannot be read is told, and the rest is shown.
    """
    faults = _Faults()
    none: Mapping[str, Coord] = {}
    coords = faults.tried(lambda: store.coords, none)
    # of a foreign file, or of the first few samples, they would have to be computed
    statistics = {} if store.is_foreign else store.contents.document.statistics
    parts = [
        faults.tried(lambda: _fields(store, store, coords, statistics, faults), ""),
        _all_samples(store) if statistics else "",
        faults.tried(lambda: _coordinates(coords), ""),
        faults.tried(lambda: _keys(store), ""),
        faults.tried(lambda: _provenance(store), ""),
    ]
    if not store.is_foreign:
        faults.tried(lambda: faults.differing(store.sealed.faults()), None)
    notices = [note(escaped(notice), "quiet") for notice in store.contents.notices[:ROWS_MAX]]
    origin = faults.tried(lambda: _origin(store, faults), "")
    head = _head(store.path.name, _state(store, faults), origin)
    return fragment("".join([head, faults.notes(), *notices, *parts]))


def samples_html(samples: Samples, state: str, parts: Sequence[Samples] = ()) -> str:
    """Samples that are computed, or of several stores: their fields, with pictures where they are stored."""
    faults = _Faults()
    none: Mapping[str, Coord] = {}
    coords = faults.tried(lambda: getattr(samples, "coords", none), none)
    fields = faults.tried(lambda: _fields(samples, None, coords, {}, faults), "")
    listed = ""
    if parts:
        rows = [(escaped(part.path), f"{part.samples:,}") for part in parts[:ROWS_MAX]]
        rest = more(len(parts) - len(rows), "store")
        listed = details(f"Stores {quiet(f'{len(parts):,}')}", table(("store", "samples"), rows, (1,)) + rest)
    many = human.count(samples.samples, "sample")
    head = _head(str(samples.path), "damaged" if faults.damaged else state, many)
    return fragment("".join([head, faults.notes(), fields, listed]))


def _all_samples(store: Store) -> str:
    if store.samples == store.stored_samples:
        return ""
    return note(f"min, max, mean and std are of all {store.stored_samples:,} samples", "quiet")


class _Faults:
    """What could not be shown, and whether any of it is damage."""

    def __init__(self) -> None:
        self.damaged: list[str] = []
        self._others: list[str] = []

    def tried(self, make: Callable[[], T], instead: T) -> T:
        """What ``make`` gives, else ``instead``; the fault is kept."""
        try:
            return make()
        except DamagedStoreError as error:
            self.damage(str(error))
        # a notebook must show the rest, whatever a hostile or half-removed file makes of one part
        except Exception as error:
            if (told := described(error)) not in self._others:  # a store that is closed says it of each part
                self._others.append(told)
        return instead

    def differing(self, files: Iterable[tuple[str, str]]) -> None:
        """Metadata that is not as the seal has it."""
        for file, fault in files:
            self.damage(f"{file}: {fault}")

    def damage(self, text: str) -> None:
        if text not in self.damaged:
            self.damaged.append(text)

    def notes(self) -> str:
        """The first few, below the name."""
        told = [(text, "bad") for text in self.damaged] + [(f"not shown: {t}", "warn") for t in self._others]
        rest = more(len(told) - _FAULTS_MAX, "fault")
        return "".join(note(escaped(text), kind) for text, kind in told[:_FAULTS_MAX]) + rest


def _state(store: Store, faults: _Faults) -> str:
    if faults.damaged:
        return "damaged"
    known = facts.state(store)
    return known if known != "complete" else "fresh" if store.known_fresh else "unknown"


def _head(name: str, state: str, origin: str) -> str:
    shown = f'<span class="parbake-name">{escaped(name, _PATH_MAX)}</span>'
    return f'<div class="parbake-head">{shown}{badge(state)}</div>{note(origin, "quiet")}'


def _origin(store: Store, faults: _Faults) -> str:
    """Samples, producer and size in one line, and the path."""
    many = human.count(store.samples, "sample")
    if store.samples < store.stored_samples:
        many = f"the first {store.samples:,} of {store.stored_samples:,} samples"
    producer = facts.producer(store)
    origin = f" of {escaped(producer, 100)}" if producer is not None else ""
    stored = faults.tried(lambda: facts.stored_nbytes(store), 0)
    size = f", {human.size(stored)} (ratio {human.ratio(facts.raw_nbytes(store), stored)})" if stored else ""
    return f"{many}{origin}{size}<br>{escaped(store.path, _PATH_MAX)}"


# ---- fields


def _fields(
    samples: Samples, store: Store | None, coords: Mapping[str, Coord], statistics: JSON, faults: _Faults
) -> str:
    """A row for each field, and for each of its channels that has a name."""
    listed = list(islice(samples.fields.items(), ROWS_MAX))
    drawn = _Pictures(samples, coords, faults) if samples.is_stored else None
    found: dict[str, list[facts.StatisticsRow]] = {
        name: list(islice(facts.statistics_rows(coords, field, statistics.get(name)), 1 + CHANNELS_MAX))
        for name, field in (listed if statistics else ())
    }
    nonfinite = any(row.nonfinite for rows in found.values() for row in rows)
    # a notebook's page is some 750 pixels wide: what is said in a word shares a column
    header = ["field", *(["picture"] if drawn else []), "dimensions, dtype"]
    header += ["chunk, codec"] if store is not None else []
    first_number = len(header)
    header += facts.STATISTICS if found else []
    header += ["not finite"] if nonfinite else []
    right = range(first_number, len(header))
    rows = []
    for name, field in listed:
        described_as = quiet(escaped(field.description)) if field.description else ""
        row = [escaped(name) + described_as, *([drawn.of(name)] if drawn else [])]
        units = f", {escaped(field.units, 60)}" if field.units not in (None, "", "1") else ""
        dims = map(escaped, facts.dims(field, samples.samples))
        row.append("<br>".join([*dims, f"{escaped(field.dtype.name)}{units}"]))
        row += [_stored(store, field, faults)] if store is not None else []
        numbers = [_numbers(one, nonfinite) for one in found.get(name, ())]
        row += numbers[0] if numbers else []
        rows.append(row)
        blank = [""] * (first_number - 1)
        for one, cells in zip(found.get(name, ())[1:], numbers[1:], strict=True):
            label = f'<span class="parbake-sub">{escaped(one.name, 60)}</span>'
            rows.append([label, *blank, *cells])
    return table(header, rows, right) + more(len(samples.fields) - len(listed), "field")


def _numbers(row: facts.StatisticsRow, nonfinite: bool) -> list[str]:
    return [*map(escaped, row.numbers), *([row.nonfinite] if nonfinite else [])]


def _stored(store: Store, field: StoredField, faults: _Faults) -> str:
    found = faults.tried(lambda: facts.chunk_row(store, field), None)
    if found is None:
        return ""
    _, nbytes, _, codec, _, ratio = found
    lines = [human.count(field.layout.chunk_samples, "sample"), f"{nbytes}, {escaped(codec, 40)}"]
    return "<br>".join([*lines, *([] if ratio == "-" else [f"ratio {ratio}"])])


class _Pictures:
    """Pictures of fields until there are enough of them."""

    def __init__(self, samples: Samples, coords: Mapping[str, Coord], faults: _Faults) -> None:
        self._fields, self._samples = samples.fields, samples.samples
        self._sketches = Sketches(samples, coords)
        self._faults = faults
        self._left = PICTURES_MAX
        self._nbytes = PICTURES_NBYTES_MAX
        self._read_nbytes = READ_NBYTES_MAX

    def of(self, name: str) -> str:
        """A picture and what it shows; nothing where there is none."""
        self._read_nbytes -= self._fields[name].layout.chunk_nbytes
        if min(self._left, self._nbytes, self._read_nbytes) <= 0:
            return ""
        before = len(self._faults.damaged)
        middle = self._samples // 2  # as a figure of it
        sketch = self._faults.tried(lambda: self._sketches.of(name, middle), None)
        if len(self._faults.damaged) > before:
            return '<span class="parbake-bad">damaged</span>'
        if sketch is None or len(sketch.html) > self._nbytes:
            return ""
        self._left -= 1
        self._nbytes -= len(sketch.html)
        return f'{sketch.html}<span class="parbake-quiet parbake-small">{sketch.caption}</span>'


# ---- what folds


def _coordinates(coords: Mapping[str, Coord]) -> str:
    if not coords:
        return ""
    rows = [
        (escaped(name), escaped(coord.dim or name), escaped(facts.coord_text(coord)))
        for name, coord in islice(coords.items(), ROWS_MAX)
    ]
    listed = table(("name", "dimension", "values"), rows) + more(len(coords) - len(rows), "coordinate")
    return details(f"Coordinates {quiet(f'{len(coords):,}')}", listed, opened=len(coords) <= 4)


def _keys(store: Store) -> str:
    if store.is_foreign:
        return ""
    keys = store.invalidation_keys
    own = {
        name: kept
        for name, of_field in keys.fields.items()
        if (kept := {key: value for key, value in of_field.items() if key not in facts.FIELD_KEYS})
    }
    summary = f"Keys {quiet(f'digest {escaped(store.digest[:12])}')}"
    first = {name: keys.shared[name] for name in ("producer", "version") if name in keys.shared}
    of_fields = {"fields": own} if own else {}
    return details(summary, tree({"digest": store.digest, **first, **keys.shared, **of_fields}))


def _provenance(store: Store) -> str:
    if not store.provenance:
        return ""
    lines = facts.provenance_lines(store.provenance)
    rows = [(escaped(name, 100), f"<code>{escaped(text)}</code>") for name, text in lines[:ROWS_MAX]]
    last = next((text for name, text in lines if name == "baked"), "")
    rest = note("and more", "quiet") if len(lines) > ROWS_MAX else ""
    return details(f"Provenance {quiet(escaped(last, 100))}", table((), rows) + rest)
