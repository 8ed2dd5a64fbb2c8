"""Zarr that others wrote, version 2 or 3, in a folder or a zip: its arrays as fields."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import NotAStoreError, described, one_line
from parbake.store.chunkmap import AnyMap, ByteSource, ChunkIndex, FetchedMap
from parbake.store.chunks import Access
from parbake.store.codecs import CodecError
from parbake.store.contents import Contents
from parbake.store.foreign.arrays import NAMES_MAX, Plan, attribute_texts, contents_of, planned
from parbake.store.foreign.codecs import ForeignChain
from parbake.store.foreign.maps import Column, Grid, fetched_map, grid_maps
from parbake.store.foreign.zarr_fetch import ZarrFetch
from parbake.store.foreign.zarr_nodes import Keys, ZarrArray, parsed
from parbake.store.opened import Folder, read_file
from parbake.store.reader import Reader

ROOT_ARRAY = "data"  # the field of an array that lies in no group
REMEDY = "restore it from where it came"
_JSON_NBYTES_MAX = 64 * 1024**2
_DEPTH_MAX = 16  # of groups
_NODES_MAX = 10_000
_NODES = ("zarr.json", ".zgroup", ".zarray")
_METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}


def open_contents(files: Folder, sample_dim: str | None) -> Contents:
    """The arrays in a folder or zip as fields. Raises NotAStoreError, RecipeError, StoreReplacedError."""
    hierarchy = _Hierarchy(files)
    fetch = ZarrFetch(files)
    arrays = {array.foreign.name: _tried(fetch, array) for array in hierarchy.arrays()}
    plan = planned(files.path, [array.foreign for array in arrays.values()], sample_dim)
    maps = {name: _map(fetch, plan, name, arrays[name]) for name in plan.axes}
    return contents_of(
        files,
        plan,
        maps,
        read_coord=lambda name: _read_coord(fetch, plan, arrays[name]),
        nbytes_stored=lambda name: _nbytes_below(files, arrays[name].path, len(arrays[name].foreign.shape)),
        version=hierarchy.version,
        notices=hierarchy.notices,
    )


# ---- finding the arrays


class _Hierarchy:
    """The metadata documents in a folder or zip. Raises NotAStoreError."""

    def __init__(self, files: Folder) -> None:
        self._files = files
        self._said = hashlib.sha256()
        self._unread: list[str] = []
        self._looked = 0
        self._nodes: dict[str, Any] = {}  # of arrays, by folder, in the file's order
        self._attributes: dict[str, Any] = {}  # of arrays in version 2, and of groups
        try:
            self._read_root()
        except CodecError as error:
            raise NotAStoreError(one_line(f"{files.path}: {error}")) from None

    @property
    def version(self) -> str:
        """Of all metadata; chunks that are changed in place are not seen."""
        return f"zarr {self._said.hexdigest()}"

    @property
    def notices(self) -> list[str]:
        more = len(self._unread) - NAMES_MAX
        told = [*self._unread[:NAMES_MAX], *([f"{more} more"] if more > 0 else [])]
        return [one_line(f"not looked at: {', '.join(told)}")] if told else []

    def arrays(self) -> Iterator[ZarrArray]:
        for folder, node in self._nodes.items():
            attributes = self._attributes.get(folder)
            yield parsed(folder or ROOT_ARRAY, folder, node, attributes, self._coordinates_above(folder))

    def _coordinates_above(self, folder: str) -> Sequence[str]:
        """What groups say in CF ``coordinates``, as xarray does for those that no array names."""
        names: list[str] = []
        while folder:
            folder = folder.rpartition("/")[0]
            found = self._attributes.get(folder)
            names += attribute_texts(found)[2] if isinstance(found, dict) else ()
        return names

    def _read_root(self) -> None:
        root = self._document("", "zarr.json")
        if root is not None:
            self._add_v3("", root)
            nodes = _consolidated(root.get("consolidated_metadata") if isinstance(root, dict) else None)
            if nodes:
                for folder, node in nodes.items():
                    if self._is_path(folder):
                        self._add_v3(folder, node)
            elif "" in self._attributes:  # a group
                self._walk("", "zarr.json", 1)
            return
        if self._read_v2(""):
            return
        metadata = self._document("", ".zmetadata")
        if metadata is None and self._document("", ".zgroup") is None:
            raise CodecError(_no_zarr(self._files))
        nodes = _consolidated(metadata)
        if not nodes:
            self._attributes[""] = self._document("", ".zattrs")
            self._walk("", ".zarray", 1)
        for key, node in (nodes or {}).items():
            folder, _, name = key.rpartition("/")
            if self._is_path(folder):
                self._nodes |= {folder: node} if name == ".zarray" else {}
                self._attributes |= {folder: node} if name == ".zattrs" else {}

    def _add_v3(self, folder: str, node: Any) -> bool:
        """Whether there is a group."""
        kind = node.get("node_type") if isinstance(node, dict) else None
        if kind == "array":
            self._nodes[folder] = node
        elif kind == "group":
            self._attributes[folder] = node.get("attributes")
        else:
            self._unread.append(f"{folder or '/'} (neither an array nor a group)")
        return kind == "group"

    def _read_v2(self, folder: str) -> bool:
        """Whether there is an array."""
        node = self._document(folder, ".zarray")
        if node is not None:
            self._nodes[folder] = node
            self._attributes[folder] = self._document(folder, ".zattrs")
        return node is not None

    def _walk(self, group: str, document: str, depth: int) -> None:
        """All that lies below a group, by name."""
        if depth > _DEPTH_MAX:
            self._unread.append(f"{group} ({_DEPTH_MAX} groups deep)")
            return
        try:
            names = self._files.names(group)
        except OSError as error:
            raise CodecError(f"{group or '/'}: {error.strerror or error}") from None
        for name in names:
            folder = _joined(group, name)
            if name.startswith(".") or name == "zarr.json":
                continue
            self._looked += 1
            if self._looked > _NODES_MAX:
                self._unread.append(f"{folder} (after {_NODES_MAX:,} names)")
                return
            try:
                if self._is_group(folder, document):
                    self._walk(folder, document, depth + 1)
            except CodecError as error:
                if not _holds(self._files, folder):
                    self._unread.append(str(error))

    def _is_group(self, folder: str, document: str) -> bool:
        """Whether there is a group; an array is noted."""
        if document == "zarr.json":
            node = self._document(folder, document)
            return node is not None and self._add_v3(folder, node)
        if self._read_v2(folder) or self._document(folder, ".zgroup") is None:
            return False
        self._attributes[folder] = self._document(folder, ".zattrs")
        return True

    def _is_path(self, folder: str) -> bool:
        """Whether a name in consolidated metadata is one below the root."""
        parts = folder.split("/")
        good = not folder or not any(part in ("", ".", "..") or "\0" in part for part in parts)
        if not good or len(self._nodes) >= _NODES_MAX:
            self._unread.append(repr(folder[:80]))
            return False
        return True

    def _document(self, folder: str, name: str) -> Any:
        """A JSON document, None where there is none. Raises CodecError."""
        name = _joined(folder, name)
        try:
            content = read_file(self._files, name, _JSON_NBYTES_MAX)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CodecError(f"{name}: {error.strerror}") from None
        self._said.update(name.encode("utf-8", "replace") + b"\0" + content + b"\0")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise CodecError(f"{name} is not JSON") from None


def _no_zarr(files: Folder) -> str:
    """What to say of a folder or zip without a Zarr node at its top."""
    names = files.names("")
    if not names:
        return "an empty folder"
    if all(name.endswith(".npy") for name in names):
        return "neither Zarr nor HDF5 but an .npz of NumPy; bake it with parbake.from_function"
    if _holds(files, f"{names[0]}/data.pkl"):
        return "neither Zarr nor HDF5 but written by torch.save; 'parbake convert' makes a store of it"
    said = "holds neither zarr.json nor .zgroup nor .zarray, so it is no Zarr"
    inner = [name for name in names[:NAMES_MAX] if any(_holds(files, f"{name}/{one}") for one in _NODES)]
    if inner:
        return f"{said}; {inner[0]} in it is one: open {files.path / inner[0]}"
    more = f", {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{said}; there are {', '.join(names[:3])}{more}"


def _holds(files: Folder, name: str) -> bool:
    try:
        os.close(files.open(name).descriptor)
    except (CodecError, OSError):
        return False
    return True


def _tried(fetch: ZarrFetch, array: ZarrArray) -> ZarrArray:
    """The array, unfit where neither a chunk map nor zarr-python can read it."""
    if array.chain is not None or array.foreign.fault is not None:
        return array
    try:
        fetch.check(array.path, array.version)
    except Exception as error:  # whatever it raises over what it does not know
        return replace(
            array, foreign=replace(array.foreign, unfit=f"{array.reason}; {described(error)[:200]}")
        )
    return array


def _consolidated(found: Any) -> dict[str, Any] | None:
    nodes = found.get("metadata") if isinstance(found, dict) else None
    return nodes if isinstance(nodes, dict) else None


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


# ---- maps


def _map(fetch: ZarrFetch, plan: Plan, name: str, array: ZarrArray) -> AnyMap:
    axis = plan.axes[name]

    def fetched(reason: str) -> FetchedMap:
        read = partial(fetch.read, array.path, array.version, axis)
        return fetched_map(fetch.files.path, plan, name, read, reason)

    if array.chain is None or array.keys is None:
        return fetched(array.reason)
    if axis:
        return fetched(f"its samples lie along axis {axis}")
    return grid_maps(_grid(array, array.chain, array.keys), fetched)


def _grid(array: ZarrArray, chain: ForeignChain, keys: Keys) -> Grid:
    sharding = array.sharding
    counts = sharding.counts if sharding is not None else (1,) * len(array.foreign.shape)

    def column(place: tuple[int, ...]) -> Column:
        in_grid = [p // n for p, n in zip(place, counts[1:], strict=True)]
        in_shard = tuple(p % n for p, n in zip(place, counts[1:], strict=True))

        def scan(source: ByteSource, shard: int) -> ChunkIndex:
            if sharding is not None:
                return sharding.scan(source, in_shard)
            return ChunkIndex(np.zeros(1, np.int64), np.array([source.nbytes], np.int64))

        return Column(lambda shard: keys.file(array.path, (shard, *in_grid)), scan)

    return Grid(array.foreign, chain.chunk_shape, counts[0], chain, array.fill, column)


def _read_coord(fetch: ZarrFetch, plan: Plan, array: ZarrArray) -> NDArray[Any]:
    """A 1-D array, whole. Raises DamagedStoreError."""
    name = array.foreign.name
    alone = replace(plan, samples=array.foreign.shape[0], axes={name: 0})
    reader = Reader({name: _map(fetch, alone, name, array)}, Access(fetch.files, "first", True, REMEDY), 0)
    values = np.empty(array.foreign.shape, array.foreign.dtype.newbyteorder("="))
    reader.read_field(name, np.arange(len(values)), values)
    return values


def _nbytes_below(files: Folder, folder: str, depth: int) -> int:
    """Of the chunks of an array: all files in its folder, ``depth`` folders deep, but its metadata."""
    total = 0
    for name in files.names(folder):
        if name in _METADATA:
            continue
        below = _joined(folder, name)
        try:
            span = files.open(below)
        except (CodecError, FileNotFoundError):  # no file
            with contextlib.suppress(CodecError, FileNotFoundError):
                total += _nbytes_below(files, below, depth - 1) if depth > 0 else 0
        else:
            total += span.nbytes
            os.close(span.descriptor)
    return total
