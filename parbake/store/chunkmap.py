"""The chunk map: in which file, at which offset and length each chunk of a field lies. Pure.

Every container is scanned into this one structure and one reader serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parbake.store.codecs import Chain
from parbake.store.layout import FieldLayout

MISSING = -1


class ByteSource(Protocol):
    """The bytes of one file."""

    @property
    def nbytes(self) -> int: ...
    def get(self, start: int, stop: int) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class ChunkIndex:
    """Where the chunks of one shard lie: bytes from the start of the file; MISSING for none."""

    offset: NDArray[np.int64]
    nbytes: NDArray[np.int64]  # encoded, on disk

    @classmethod
    def empty(cls, chunks: int) -> ChunkIndex:
        """An index of ``chunks`` chunks, none of them there."""
        return cls(np.full(chunks, MISSING, np.int64), np.full(chunks, MISSING, np.int64))


@dataclass(frozen=True)
class FieldMap:
    """One field's chunks: chunk ``c`` is entry ``c % chunks_per_shard`` of shard ``c // chunks_per_shard``.

    ``file_name(shard)``: path inside the store. ``file_nbytes(shard)``: its recorded size. ``scan(source,
    shard)``: the shard's index, on first touch; raises CodecError.
    """

    layout: FieldLayout
    samples: int
    chain: Chain
    file_name: Callable[[int], str]
    file_nbytes: Callable[[int], int]
    scan: Callable[[ByteSource, int], ChunkIndex]

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
