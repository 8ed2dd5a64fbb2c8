"""What a store says of itself, whatever container it lies in. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.store.keys import JSON, Keys, canonical
from parbake.store.layout import Coord, Field, FieldLayout, Layout
from parbake.store.shard import ShardIdentity


@dataclass(frozen=True)
class StoredField:
    """One field as stored. ``shape`` and ``dims`` without the sample axis; ``dtype`` as on disk."""

    name: str
    dims: tuple[str, ...]
    units: str | None
    description: str | None
    allow_nan: bool
    layout: FieldLayout

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.layout.sample_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As on disk, byte order included; reading gives the native one."""
        return self.layout.numpy_dtype

    @property
    def is_scalar(self) -> bool:
        """Whether a sample takes at most 64 bytes."""
        return self.layout.is_scalar

    @property
    def channel_axis(self) -> int | None:
        """Axis of one sample named ``channel``, along which statistics are kept apart."""
        return self.dims.index("channel") if "channel" in self.dims else None

    @classmethod
    def of(cls, name: str, field: Field, layout: FieldLayout) -> StoredField:
        return cls(name, field.dims, field.units, field.description, field.allow_nan, layout)


@dataclass(frozen=True)
class Manifest:
    """Per shard file its size and checksum (see shard.py); per slab its partial statistics."""

    nbytes: NDArray[np.int64]
    crc32c: NDArray[np.uint32]
    statistics: NDArray[np.float64]  # [slab, row, column]


@dataclass(frozen=True)
class StoreDocument:
    """All that a store says of itself, but for the manifest. ``provenance`` and ``statistics``: JSON."""

    samples: int
    layout: Layout
    fields: Mapping[str, StoredField]
    coords: Mapping[str, Coord]
    keys: Keys
    provenance: Mapping[str, JSON]
    statistics: Mapping[str, JSON]

    def identity(self, field: str) -> ShardIdentity:
        """What the header of this field's shards says."""
        return shard_identity(self.keys, self.fields[field].layout, self.provenance.get("seed_drawn"))


def shard_identity(keys: Keys, layout: FieldLayout, seed_drawn: int | None) -> ShardIdentity:
    """The identity of a field's shards: its name, its keys with the seed drawn, and its layout."""
    bake = f"{layout.name}|{keys.field_digest(layout.name)}|{canonical(seed_drawn)}"
    return ShardIdentity(hashlib.sha256(bake.encode()).digest(), layout.digest)
