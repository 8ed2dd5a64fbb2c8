"""What an opened container holds: the one form in which a store knows its directory, zip or HDF5 file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from parbake.store.chunkmap import AnyMap, ByteSource
from parbake.store.document import Manifest, StoreDocument
from parbake.store.layout import Coord
from parbake.store.opened import Files


@dataclass(frozen=True)
class Sealed:
    """What parbake's own containers hold beside their samples.

    ``root``: the group's metadata document, which the seal is in. ``edited``: attributes of description
    changed since the bake. ``manifest(field)``: raises DamagedStoreError. ``faults()``: the (file, fault) of
    all metadata that differs from the sealed copy. ``shard(field, number)``: the bytes of a shard as they
    lie in a directory, where this container has none; raises CodecError.
    """

    root: dict[str, Any]
    edited: bool
    manifest: Callable[[str], Manifest]
    faults: Callable[[], list[tuple[str, str]]]
    shard: Callable[[str, int], ByteSource] | None = None


@dataclass(frozen=True)
class Contents:
    """An opened container: what it says of itself, and where its chunks are.

    ``coords()``: raises DamagedStoreError. ``sealed``: None for what parbake did not write. ``version``:
    names this very content, so that another under the same path is told from it. ``notices``: what was left
    out and what is read slowly, with reasons. ``nbytes_stored(field)``: of its encoded chunks.
    """

    files: Files
    document: StoreDocument
    maps: Mapping[str, AnyMap]
    coords: Callable[[], dict[str, Coord]]
    nbytes_stored: Callable[[str], int]
    version: str
    sealed: Sealed | None = None
    notices: tuple[str, ...] = ()
