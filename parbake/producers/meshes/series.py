"""A mesh with fields over time, from arrays or from files, read as far as it is asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from parbake.errors import MeshError, ParbakeError
from parbake.producers.meshes.data import MeshData, Values, channel_sha256, mesh_sha256
from parbake.producers.meshes.files import read_mesh_file, snapshot_of
from parbake.producers.meshes.geometry import Mesh
from parbake.producers.meshes.layout import NamedArrays, read_layout
from parbake.store.files import Snapshot, recall, remember

_KIND = "mesh-1"  # of what is remembered of a file; to be counted up when reading or hashing changes


@dataclass(frozen=True)
class Summary:
    """What is known of a series without coordinates and values; ``dtypes`` and ``units`` by channel."""

    times: tuple[float, ...]
    nodes: int
    dtypes: Mapping[str, str]
    units: Mapping[str, str]
    mesh_sha256: str
    notices: tuple[str, ...]

    @classmethod
    def of(cls, data: MeshData) -> Summary:
        times, nodes = tuple(data.times.tolist()), len(data.mesh.points)
        return cls(times, nodes, dict(data.dtypes), dict(data.units), mesh_sha256(data.mesh), data.notices)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Summary:
        return cls(**{**found, "times": tuple(found["times"]), "notices": tuple(found["notices"])})

    def same_content(self, other: Summary) -> bool:
        return dataclasses.replace(self, notices=()) == dataclasses.replace(other, notices=())


@dataclass(frozen=True, eq=False)
class SeriesKey:
    """The content of some channels of a series, as an invalidation key."""

    series: MeshSeries
    channels: tuple[str, ...]

    def invalidation_key(self, *, rehash: bool = False) -> dict[str, Any]:
        """Hashes of mesh, times and each channel's values; ``rehash`` trusts none that is remembered."""
        return self.series.content_sha256(self.channels, rehash=rehash)


class MeshSeries:
    """A mesh with fields over time; made by ``MeshSeries.open`` or ``MeshSeries.from_arrays``.

    ``times``: float64 [time], seconds, strictly increasing. ``channels``: a scalar field "p" is the channel
    "p", a vector "U" of two or three components "U_x", "U_y"(, "U_z"), more components "U_0", "U_1", ...
    ``units``: by channel, of those that have any. ``notices``: what reading left out or converted.

    A series of a file reads coordinates when ``mesh`` is first asked for and values by step; its hashes are
    remembered for as long as all its files stand as they did. It is pickled as its path. When a file has
    changed since it was opened, all but what was known by then raises MeshError. One thread at a time may
    read.
    """

    def __init__(
        self,
        summary: Summary,
        data: MeshData | None,
        path: Path | None = None,
        snapshot: Snapshot | None = None,
        stamps: tuple[str, ...] = (),
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        """For ``open`` and ``from_arrays``. ``data`` and ``snapshot`` None: to be read when needed."""
        self._summary = summary
        self._data = data
        self._path = path
        self._snapshot = snapshot
        self._stamps = stamps if snapshot is None else snapshot.stamps
        self._hashes = dict(hashes or {})  # as they are remembered, as far as they are known
        self._pid = os.getpid()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> MeshSeries:
        """The series in a file or OpenFOAM case: .npz, HDF5, VTU, PVD, VTKHDF, Exodus, CGNS, XDMF.

        ``layout`` says how .npz and HDF5 files are laid out. Reads no values, and nothing at all of a
        file that is known already. Raises MeshError in one line that names the file.
        """
        found = Path(path).absolute()  # the working folder may change
        if (known := recall(found, _KIND)) is not None and "summary" in known[1]:
            snapshot, values = known
            return cls(Summary.from_json(values.pop("summary")), None, found, snapshot, hashes=values)
        snapshot = snapshot_of(found)
        data = read_mesh_file(found)
        summary = Summary.of(data)
        remember(snapshot, _KIND, {"summary": dataclasses.asdict(summary)})
        return cls(summary, data, found, snapshot)

    @classmethod
    def from_arrays(
        cls,
        points: Any,
        times: Any,
        fields: Mapping[str, Any],
        cells: Any = None,
        units: Mapping[str, str] | None = None,
    ) -> MeshSeries:
        """The series in arrays. Those of fields are not copied, points and cells are.

        ``points``: [node, dim]. ``times``: [time], seconds. ``fields``: by name, float32 or float64 [time,
        node] or [time, node, component]. ``cells``: by kind [cell, corner], or one array of them; None: a
        cloud of points. ``units``: by field. Raises MeshError.
        """
        points = np.array(points)  # an operator was built for the points as they are now
        arrays = {"points": points, "times": times} | {f"fields/{name}": v for name, v in fields.items()}
        if isinstance(cells, Mapping):
            arrays |= {f"cells/{kind}": nodes for kind, nodes in cells.items()}
        elif cells is not None:
            arrays["cells"] = cells
        if unknown := sorted((units or {}).keys() - fields.keys()):
            raise MeshError(f"units: no field {unknown[0]!r}; fields are {', '.join(fields)}")
        texts = {f"fields/{name}": text for name, text in (units or {}).items()}
        data = read_layout(NamedArrays({name: np.asarray(array) for name, array in arrays.items()}, texts))
        return cls(Summary.of(data), data)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            return MeshSeries, (self._summary, self._data)
        return MeshSeries, (self._summary, None, self._path.absolute(), None, self._stamps)

    def __repr__(self) -> str:
        where = f"{self._path}: " if self._path is not None else ""
        steps = len(self._summary.times)
        return f"<MeshSeries {where}{self.nodes:,} nodes, {steps:,} steps, {', '.join(self.channels)}>"

    # ---- what is known at once

    @property
    def path(self) -> Path | None:
        """Where the series was opened, or None for arrays."""
        return self._path

    @property
    def times(self) -> NDArray[np.float64]:
        """Times of the steps, float64 [time], seconds, strictly increasing."""
        return np.array(self._summary.times)

    @property
    def nodes(self) -> int:
        """Number of the mesh's nodes."""
        return self._summary.nodes

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in the order in which ``read`` gives them."""
        return tuple(self._summary.dtypes)

    @property
    def dtypes(self) -> Mapping[str, np.dtype[Any]]:
        """float32 or float64, by channel."""
        return {channel: np.dtype(text) for channel, text in self._summary.dtypes.items()}

    @property
    def units(self) -> Mapping[str, str]:
        """Units by channel, of those that have any."""
        return dict(self._summary.units)

    @property
    def notices(self) -> tuple[str, ...]:
        """What reading left out or converted, a line each."""
        return self._summary.notices

    # ---- what is read

    @property
    def mesh(self) -> Mesh:
        """The mesh of all steps. Raises MeshError."""
        return self._opened().mesh

    def read(self, steps: Sequence[SupportsIndex] | slice, channels: Sequence[str] | None = None) -> Values:
        """Values [step, node, channel] of some steps and channels (None: all), in the widest of their dtypes.

        Only these steps are read. ``steps`` as in indexing: negative ones count from the end, IndexError
        beyond. Raises MeshError.
        """
        every = range(len(self._summary.times))
        wanted = list(every[steps]) if isinstance(steps, slice) else [every[step] for step in steps]
        names = self._checked(self.channels if channels is None else channels)
        dtype = np.result_type(*(self._summary.dtypes[name] for name in names))
        out: Values = np.empty((len(wanted), self.nodes, len(names)), dtype)
        data = self._opened()
        try:
            for first, last in _runs(wanted):
                data.fill(out[first:last], wanted[first], names)
        except (ParbakeError, OSError) as error:
            raise self._error(error) from None
        if self._path is not None:
            self._settle()  # the files that were read were not being written at the same time
        return out

    # ---- hashes

    def key(self, channels: Sequence[str] | None = None) -> SeriesKey:
        """The content of some channels (None: all), to be captured as an invalidation key."""
        return SeriesKey(self, self._checked(self.channels if channels is None else channels))

    def invalidation_key(self, *, rehash: bool = False) -> dict[str, Any]:
        """The content of the whole series, as an invalidation key."""
        return self.key().invalidation_key(rehash=rehash)

    def mesh_sha256(self, *, rehash: bool = False) -> str:
        """SHA-256 of coordinates and cells, the same for the same numbers in arrays or in any file."""
        if self._path is None:
            return mesh_sha256(self._opened().mesh)  # arrays may have been written to
        self._settle(rehash=rehash)
        return self._summary.mesh_sha256

    def content_sha256(self, channels: Sequence[str], *, rehash: bool = False) -> dict[str, Any]:
        """Hashes of mesh, times, and by channel of values; looks at the files once if all is remembered."""
        values = self.channel_sha256(channels, rehash=rehash)
        mesh = self.mesh_sha256() if self._path is None else self._summary.mesh_sha256
        return {"mesh": mesh, "times": self.times_sha256(), "channels": values}

    def times_sha256(self) -> str:
        """SHA-256 of the times."""
        return hashlib.sha256(np.array(self._summary.times, "<f8").tobytes()).hexdigest()

    def channel_sha256(self, channels: Sequence[str], *, rehash: bool = False) -> dict[str, str]:
        """SHA-256 of each channel's values at all steps, the same in arrays or in any file.

        Those of a file are remembered; ``rehash`` reads it in any case. Raises MeshError.
        """
        names = self._checked(channels)
        if self._path is None:
            return channel_sha256(self._opened(), names)
        snapshot = self._settle(rehash=rehash)
        keys = {name: f"channel:{name}" for name in names}
        if missing := [name for name in names if rehash or keys[name] not in self._hashes]:
            try:
                found = channel_sha256(self._opened(), missing)
            except (ParbakeError, OSError) as error:
                raise self._error(error) from None
            self._settle()  # the files that were read were not being written at the same time
            self._hashes |= {keys[name]: digest for name, digest in found.items()}
            remember(snapshot, _KIND, {keys[name]: self._hashes[keys[name]] for name in missing})
        return {name: self._hashes[keys[name]] for name in names}

    # ---- how it stays one series

    def _checked(self, channels: Sequence[str]) -> tuple[str, ...]:
        names = (channels,) if isinstance(channels, str) else tuple(channels)
        for name in names:
            if name not in self._summary.dtypes:
                raise self._error(f"no channel {name!r}; there are {', '.join(self.channels)}")
        if not names:
            raise self._error(f"no channel asked for; there are {', '.join(self.channels)}")
        return names

    def _error(self, text: object) -> MeshError:
        prefix = f"{self._path}: " if self._path is not None else ""
        return MeshError(str(text) if str(text).startswith(prefix) else f"{prefix}{text}")

    def _settle(self, *, rehash: bool = False) -> Snapshot:
        """The files as they stood when the series was opened, which is how they stand now. Raises MeshError.

        ``rehash``: read what is known of the series again.
        """
        assert self._path is not None
        if self._snapshot is None:  # a copy that was pickled
            self._snapshot = snapshot_of(self._path)
            if self._snapshot.stamps != self._stamps:
                raise self._error("its files have changed since it was opened; open it again")
        if (changed := self._snapshot.changed()) is not None:
            raise self._error(f"{changed} has changed since it was opened; open it again")
        if rehash:
            self._load(self._path, self._snapshot)
        return self._snapshot

    def _opened(self) -> MeshData:
        if self._path is not None:
            snapshot = self._settle()
            if self._data is None or self._pid != os.getpid():  # a fork shares the place in open files
                self._load(self._path, snapshot)
        assert self._data is not None
        return self._data

    def _load(self, path: Path, snapshot: Snapshot) -> None:
        data = read_mesh_file(path)
        summary = Summary.of(data)
        if not summary.same_content(self._summary):
            remember(snapshot, _KIND, {"summary": dataclasses.asdict(summary)})
            raise self._error("read otherwise than when its hashes were remembered; open it again")
        self._data, self._pid = data, os.getpid()


def _runs(steps: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Places [first, last) in ``steps`` between which each is one more than the one before."""
    first = 0
    for place in range(1, len(steps) + 1):
        if place == len(steps) or steps[place] != steps[place - 1] + 1:
            yield first, place
            first = place
