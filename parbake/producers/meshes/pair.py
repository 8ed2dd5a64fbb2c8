"""Fields of a coarse mesh at the nodes of a finer one, beside the finer one's own: pairs for learning."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from parbake import settings
from parbake.errors import MeshError, RecipeError
from parbake.producers.meshes.interpolate import Method, Operator, Outside
from parbake.producers.meshes.operators import OperatorChoice, operator_between
from parbake.producers.meshes.parts import is_named_like_result, parts_of
from parbake.producers.meshes.series import MeshSeries
from parbake.producers.recipe import option, settle, without_caches
from parbake.store.keys import JSON
from parbake.store.layout import Coord, Field

_AXES = ("x", "y", "z")
_LISTED = 5  # unmatched times that a notice names
_TEXTS = {
    "coarse_interp": "source interpolated to the target's nodes",
    "fine_features": "target",
    "residual": "fine_features - coarse_interp",
    "coarse_features": "source at its own nodes",
}


@dataclass(frozen=True)
class MeshPair:
    """Fields of a coarse mesh series at the nodes of a finer one, step by step.

    Fields, each [node, channel] at the target's nodes: coarse_interp, the source's values interpolated;
    fine_features, the target's own; with ``residual`` their difference fine_features - coarse_interp.
    With ``keep_coarse`` also coarse_features [coarse_node, channel], the source's own values at its own
    nodes, whose positions are coarse_x, coarse_y(, coarse_z). Scalar time (s), the target's. Coordinates:
    the channels' names, the nodes' positions x, y(, z).

    ``source``, ``target``: files that ``MeshSeries.open`` reads, or series at hand; the keys are the same
    either way: both meshes, times and the values of the used channels, by content. ``channels``: those of
    both series unless named. Steps belong together where their times differ by at most
    ``time_tolerance`` seconds (unless given, a thousandth of the shortest step, or the rounding of float32),
    or, with ``step_offset`` k, step i of the source with step i + k of the target; ``notices`` lists steps
    that have no partner. ``allow_nan``: NaN in the series are values, such as in masked solids.

    ``method``: linear, nearest, idw (inverse squared distances), rbf (local thin-plate splines).
    ``outside``: what target nodes outside the source mesh get: the value at the closest boundary point
    (project), at the nearest node, NaN, or an error; and an error in any case where one lies further out
    than ``max_distance``, a fraction of the source mesh's diagonal. ``dtype``: as stored; operators are
    computed in float64. ``operators``: the folder that keeps them (default: the cache folder).

    Raises MeshError, RecipeError.
    """

    name: ClassVar[str] = "mesh"
    version: ClassVar[int] = 1

    source: Path | MeshSeries = field(metadata=option("Mesh series of the coarse solution."))
    target: Path | MeshSeries = field(metadata=option("Mesh series of the fine solution."))
    method: Method = field(default="linear", metadata=option("How to interpolate."))
    outside: Outside = field(default="project", metadata=option("Nodes outside the source mesh."))
    max_distance: float = field(
        default=0.05, metadata=option("How far out a node may lie, in diagonals of the source mesh.")
    )
    channels: tuple[str, ...] = field(default=(), metadata=option("Channel to use; default: all in both."))
    time_tolerance: float | None = field(
        default=None, metadata=option("Seconds between times of one step; default: a 1000th of a step.")
    )
    step_offset: int | None = field(
        default=None, metadata=option("Pair steps by number instead: source i with target i + this.")
    )
    allow_nan: bool = field(default=False, metadata=option("Take NaN of the series as values."))
    residual: bool = field(default=False, metadata=option("Also store fine_features - coarse_interp."))
    keep_coarse: bool = field(
        default=False, metadata=option("Also store the source's own values, at its own nodes.")
    )
    dtype: Literal["float32", "float64"] = field(default="float32", metadata=option("As stored."))
    operators: Path | None = field(default=None, metadata={"option": False, "recipe": False})

    def __post_init__(self) -> None:
        settle(self)
        if self.step_offset is not None and self.time_tolerance is not None:
            raise RecipeError("mesh: step_offset and time_tolerance exclude each other; leave one out")
        for name, value in (("time_tolerance", self.time_tolerance), ("max_distance", self.max_distance)):
            if value is not None and not 0 <= value < math.inf:
                raise RecipeError(f"mesh: {name}: {value:g} is negative, or no finite number")
        for name in ("source", "target"):
            if isinstance(path := getattr(self, name), Path):
                object.__setattr__(self, name, path.absolute())

    def in_cache(self, folder: Path) -> MeshPair:
        """The same producer, its operators kept in ``folder`` with the stores."""
        return self if self.operators is not None else replace(self, operators=folder)

    def __getstate__(self) -> dict[str, Any]:
        return without_caches(self)

    # ---- what is paired

    @cached_property
    def source_series(self) -> MeshSeries:
        return _series(self.source)

    @cached_property
    def target_series(self) -> MeshSeries:
        return _series(self.target)

    @cached_property
    def used_channels(self) -> tuple[str, ...]:
        """Names of the channels, in the target's order."""
        coarse, fine = self.source_series.channels, self.target_series.channels
        for name in self.channels:
            for series, side in ((coarse, "source"), (fine, "target")):
                if name not in series:
                    raise MeshError(f"mesh: no channel {name!r} in the {side}; it has {', '.join(series)}")
        if len(set(self.channels)) < len(self.channels):
            raise MeshError(f"mesh: channels: {', '.join(self.channels)} name one twice")
        used = self.channels or tuple(name for name in fine if name in coarse)
        if not used:
            raise MeshError(
                f"mesh: source and target share no channel: {', '.join(coarse)}; {', '.join(fine)}"
            )
        return used

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Steps that belong together, [pair, 2]: of the source and of the target, ascending."""
        coarse, fine = self.source_series.times, self.target_series.times
        if self.step_offset is not None:
            first = np.arange(len(coarse))
            pairs = np.stack([first, first + self.step_offset], axis=1)
            pairs = pairs[(pairs[:, 1] >= 0) & (pairs[:, 1] < len(fine))]
        else:
            pairs = paired_times(coarse, fine, self.tolerance_s)
        if not len(pairs):
            raise MeshError(
                f"mesh: no steps belong together: source {_span(coarse)}, target {_span(fine)}, within "
                f"{self.tolerance_s:g} s; set time_tolerance, or step_offset to pair them by number"
            )
        return pairs

    @property
    def tolerance_s(self) -> float:
        """Seconds by which times of one step may differ."""
        if self.time_tolerance is not None:
            return self.time_tolerance
        times = (self.source_series.times, self.target_series.times)
        steps = np.concatenate([np.diff(t) for t in times])
        latest = float(max(np.abs(t).max() for t in times))
        rounded = 2 * float(np.spacing(np.float32(latest)))  # of times that were float32 on their way here
        if not len(steps):
            return max(rounded, 1e-6)
        return min(0.25 * float(steps.min()), max(1e-3 * float(steps.min()), rounded))

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """What to know, for people: what reading changed, steps without a partner, nodes outside."""
        sides = (("source", self.source_series, 0), ("target", self.target_series, 1))
        read = [f"{side}: {text}" for side, series, _ in sides for text in series.notices]
        lone = [text for side, s, i in sides for text in _unmatched(side, s.times, self.steps[:, i])]
        return (*read, *self._unit_notices(), *lone, *self.operator.notices)

    def _unit_notices(self) -> Iterator[str]:
        coarse, fine = self.source_series.units, self.target_series.units
        for name in self.used_channels:
            if name in coarse and name in fine and coarse[name] != fine[name]:
                yield f"{name}: {coarse[name]} in the source, {fine[name]} in the target; not converted"

    # ---- the producer

    def __len__(self) -> int:
        return len(self.steps)

    def schema(self) -> dict[str, Field]:
        chosen = {"residual": self.residual, "coarse_features": self.keep_coarse}
        fields = {name: self._field(name) for name in _TEXTS if chosen.get(name, True)}
        return fields | {"time": Field((), "float64", (), units="s", description="time of the target's step")}

    def _field(self, name: str) -> Field:
        """One of the fields at nodes: the target's, or for ``coarse_features`` the source's."""
        coarse = name == "coarse_features"
        series, prefix = (self.source_series, "coarse_") if coarse else (self.target_series, "")
        points, units, dim = series.mesh.points, series.units, f"{prefix}node"
        positions = {
            f"{prefix}{axis}": Coord(points[:, i], dim=dim) for i, axis in enumerate(_AXES[: points.shape[1]])
        }
        described = ", ".join(f"{n} ({units[n]})" if n in units else n for n in self.used_channels)
        alike = {units.get(channel) for channel in self.used_channels}
        return Field(
            (len(points), len(self.used_channels)),
            self.dtype,
            (dim, "channel"),
            units=next(iter(alike)) if len(alike) == 1 else None,
            description=f"{_TEXTS[name]}: {described}",
            coords={"channel": Coord(np.array(self.used_channels)), **positions},
            allow_nan=self.allow_nan or (self.outside == "nan" and name in ("coarse_interp", "residual")),
        )

    def invalidation_keys(self) -> dict[str, JSON]:
        keys: dict[str, Any] = {
            "source": self.source_series.key(self.used_channels),
            "target": self.target_series.key(self.used_channels),
            "channels": self.used_channels,
            "method": self.method,
            "outside": self.outside,
            "max_distance": self.max_distance,
        }
        return keys | {"time_tolerance": self.time_tolerance, "step_offset": self.step_offset}

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The named fields of pairs [start, stop)."""
        steps = self.steps[start:stop]
        found: dict[str, NDArray[Any]] = {}
        if "time" in fields:
            found["time"] = self.target_series.times[steps[:, 1]]
        if {"fine_features", "residual"} & set(fields):
            found["fine_features"] = self.target_series.read(steps[:, 1].tolist(), self.used_channels)
        if {"coarse_interp", "residual", "coarse_features"} & set(fields):
            coarse = self.source_series.read(steps[:, 0].tolist(), self.used_channels)
            found["coarse_features"] = coarse
        if {"coarse_interp", "residual"} & set(fields):
            found["coarse_interp"] = self.operator.apply(coarse)
        if "residual" in fields:
            found["residual"] = found["fine_features"] - found["coarse_interp"]
        return {n: found[n] if n == "time" else self._stored(n, found[n]) for n in fields}

    def _stored(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype, copy=False)
        if stored.dtype != values.dtype and (np.isinf(stored) & np.isfinite(values)).any():
            raise MeshError(f"mesh: {name}: values beyond {self.dtype}; store them with dtype float64")
        return stored

    @cached_property
    def operator(self) -> Operator:
        """The matrix from the source's nodes to the target's, kept for whatever fields and times.

        Kept in float64; used in float32 where the fields are, which is faster and no worse.
        """
        choice = OperatorChoice(self.method, self.outside, self.max_distance)
        folder = self.operators or settings.cache_home()
        kept = operator_between(self.source_series, self.target_series, choice, folder)
        dtypes = self.source_series.dtypes
        narrow = all(dtypes[name] == np.float32 for name in self.used_channels) and self.dtype == "float32"
        return replace(kept, matrix=kept.matrix.astype(np.float32)) if narrow else kept


def all_pairs(
    folder: Path, *, tell: Callable[[str], None] = lambda _: None, **options: Any
) -> Iterator[MeshPair]:
    """A pair for each series in ``folder`` and each finer one, by number of nodes; the coarsest first.

    A file that another one refers to, as a collection does to its steps, is no series of its own.
    ``options``: of every pair. ``tell`` is told of each file that is named like a result but cannot be read.
    Raises MeshError where fewer than two files are series, or none is finer than another.
    """
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    series = sorted(_those_that_open(files, tell), key=lambda found: found.nodes)
    if len(series) < 2:
        raise MeshError(f"{folder}: {len(series)} mesh series in it, at least two make a pair")
    if series[0].nodes == series[-1].nodes:
        raise MeshError(
            f"{folder}: all {len(series)} mesh series in it have {series[0].nodes:,} nodes, none is finer; "
            "name the two of a pair"
        )
    for coarse, fine in permutations(series, 2):
        if coarse.nodes < fine.nodes:
            assert coarse.path is not None
            assert fine.path is not None
            yield MeshPair(coarse.path, fine.path, **options)


def _those_that_open(files: Sequence[Path], tell: Callable[[str], None]) -> Iterator[MeshSeries]:
    refused: dict[Path, MeshError] = {}
    parts: set[Path] = set()
    for file in files:
        with contextlib.suppress(MeshError, OSError):
            parts.update(part.resolve() for part in parts_of(file)[1:])
    for file in files:
        if file.resolve() in parts:
            continue
        try:
            yield MeshSeries.open(file)
        except MeshError as error:
            refused[file] = error
    if len(refused) == len(files) and refused:
        raise next(iter(refused.values()))
    for file, why in refused.items():
        if is_named_like_result(file):
            tell(f"passed over {why}")


def paired_times(
    coarse: NDArray[np.float64], fine: NDArray[np.float64], tolerance_s: float
) -> NDArray[np.int64]:
    """Steps [pair, 2] whose times differ by at most the tolerance, each step in one pair at most.

    Both ascending. Of several candidates the nearest two take each other.
    """
    after = np.clip(np.searchsorted(coarse, fine), 1, max(1, len(coarse) - 1))
    near = np.where(
        (len(coarse) > 1) & (np.abs(fine - coarse[after - 1]) > np.abs(fine - coarse[after % len(coarse)])),
        after % len(coarse),
        after - 1,
    )
    apart = np.abs(coarse[near] - fine)
    order = np.lexsort((apart, near))
    order = order[apart[order] <= tolerance_s]
    first = np.unique(near[order], return_index=True)[1]
    chosen = np.sort(order[first])
    return np.stack([near[chosen], chosen], axis=1).astype(np.int64)


def _series(given: Path | MeshSeries) -> MeshSeries:
    return given if isinstance(given, MeshSeries) else MeshSeries.open(given)


def _span(times: NDArray[np.float64]) -> str:
    return f"{len(times)} steps from {times[0]:g} to {times[-1]:g} s"


def _unmatched(side: str, times: NDArray[np.float64], used: NDArray[np.int64]) -> list[str]:
    lone = np.delete(times, used)
    if not len(lone):
        return []
    listed = ", ".join(f"{time:g}" for time in lone[:_LISTED])
    more = f" and {len(lone) - _LISTED} more" if len(lone) > _LISTED else ""
    return [f"{side}: {len(lone):,} of {len(times):,} steps have no partner: {listed}{more} s"]
