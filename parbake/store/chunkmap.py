"""The chunk map: in which file, at which offset and length each chunk of a field lies. Pure.

Every container is scanned into this one structure and one reader serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.store.codecs import CodecError, Decoder
from parbake.store.layout import FieldLayout

MISSING = -1


class ByteSource(Protocol):
    """The bytes of one file."""

    @property
    def nbytes(self) -> int: ...
    def get(self, start: int, stop: int) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class ChunkIndex:
    """Where the chunks of one shard lie: bytes from the start of the file; MISSING for none.

    ``crc32c``: of each body, where that is recorded elsewhere than in the payload. ``mask``: per chunk the
    filters of the chain that were left out, as HDF5 counts them.
    """

    offset: NDArray[np.int64]
    nbytes: NDArray[np.int64]  # encoded, on disk
    crc32c: NDArray[np.uint32] | None = None
    mask: NDArray[np.uint32] | None = None

    @classmethod
    def empty(cls, chunks: int) -> ChunkIndex:
        """An index of ``chunks`` chunks, none of them there."""
        return cls(np.full(chunks, MISSING, np.int64), np.full(chunks, MISSING, np.int64))

    def check_within(self, nbytes: int) -> None:
        """Raises CodecError for a chunk that does not lie wholly in a file of ``nbytes``."""
        absent = self.offset == MISSING
        inside = (self.offset >= 0) & (self.nbytes >= 0) & (self.nbytes <= nbytes - self.offset)
        if not (inside | absent).all():
            raise CodecError(f"chunk {int(np.argmin(inside | absent))} points outside of the file")


class _Named:
    """What all kinds of maps tell of their field."""

    layout: FieldLayout
    samples: int

    @property
    def name(self) -> str:
        return self.layout.name

    @cached_property
    def native_dtype(self) -> np.dtype[Any]:
        """The dtype that is handed out: native byte order."""
        return self.layout.numpy_dtype.newbyteorder("=")

    @property
    def swapped(self) -> bool:
        return self.native_dtype != self.layout.numpy_dtype

    @cached_property
    def chunks(self) -> int:
        return -(-self.samples // self.layout.chunk_samples)


@dataclass(frozen=True)
class FieldMap(_Named):
    """One field's chunks: chunk ``c`` is entry ``c % chunks_per_shard`` of shard ``c // chunks_per_shard``.

    ``file_name(shard)``: path inside the container. ``file_nbytes(shard)``: its recorded size, None where
    none is. ``scan(source, shard)``: the shard's index, on first touch; raises CodecError. ``fill``: what an
    absent chunk or file stands for, 0-d; None where that is damage. ``cut_end``: the last chunk holds no
    more samples than there are, and raw ones may follow one another without a gap.
    """

    layout: FieldLayout
    samples: int
    chain: Decoder
    file_name: Callable[[int], str]
    file_nbytes: Callable[[int], int | None]
    scan: Callable[[ByteSource, int], ChunkIndex]
    fill: NDArray[Any] | None = None
    cut_end: bool = False


@dataclass(frozen=True)
class Tile:
    """A part of each sample that has chunks of its own, as where a chunk grid splits other axes.

    ``region``: where it lies in a sample, a slice an axis. The map's samples are whole chunks: at the end of
    an axis they may be longer than the region, which is their start.
    """

    region: tuple[slice, ...]
    map: FieldMap


@dataclass(frozen=True)
class TiledMap(_Named):
    """A field whose samples lie in several chunks each. ``layout.chunk_samples``: as in its tiles."""

    layout: FieldLayout
    samples: int
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class FetchedMap(_Named):
    """A field that another library reads: ``fetch(start, stop)`` gives samples [start, stop), any layout.

    ``reason``: why it is not read through a map, and slowly; empty where it is as fast as one.
    """

    layout: FieldLayout
    samples: int
    fetch: Callable[[int, int], NDArray[Any]]
    reason: str


AnyMap: TypeAlias = FieldMap | TiledMap | FetchedMap
