"""Maps of foreign fields: from a regular chunk grid, or through the library that wrote them. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, ParbakeError, described
from parbake.store.chunkmap import AnyMap, ByteSource, ChunkIndex, FetchedMap, FieldMap, Tile, TiledMap
from parbake.store.codecs import Decoder
from parbake.store.foreign.arrays import ForeignArray, Plan
from parbake.store.layout import CHUNK_NBYTES, FieldLayout

TILES_MAX = 1_024  # a sample of more would be read in as many small pieces
_PIECE_NBYTES_MAX = 1 << 26  # of what another library reads at once


@dataclass(frozen=True)
class Column:
    """The chunks of a grid that have one place along all axes but the first.

    ``file_name(shard)``, ``scan(source, shard)``: as in FieldMap.
    """

    file_name: Callable[[int], str]
    scan: Callable[[ByteSource, int], ChunkIndex]


@dataclass(frozen=True)
class Grid:
    """A regular chunk grid, first axis samples; edge chunks are stored whole.

    ``chunk_shape``: of what is decoded at once. ``chunks_per_shard``: along axis 0, in one file, or scanned
    together. ``column(place)``: by the place of its chunks in the grid, axis 0 left out. ``fill``: 0-d,
    what absent chunks stand for.
    """

    array: ForeignArray
    chunk_shape: tuple[int, ...]
    chunks_per_shard: int
    chain: Decoder
    fill: NDArray[Any] | None
    column: Callable[[tuple[int, ...]], Column]


def grid_maps(grid: Grid, fetched: Callable[[str], FetchedMap]) -> AnyMap:
    """The map of a field that lies in a grid. ``fetched(reason)``: for grids of too many parts a sample."""
    samples, *shape = grid.array.shape
    chunk_samples, *part = grid.chunk_shape
    counts = [-(-n // c) for n, c in zip(shape, part, strict=True)]
    if math.prod(counts) > TILES_MAX:
        return fetched(f"each sample lies in {math.prod(counts):,} chunks")

    def layout(sample_shape: tuple[int, ...]) -> FieldLayout:
        return FieldLayout(
            grid.array.name,
            grid.chain.dtype.str,
            sample_shape,
            chunk_samples,
            chunk_samples * grid.chunks_per_shard,
            grid.chain.name,
        )

    def one(place: tuple[int, ...]) -> FieldMap:
        column = grid.column(place)
        return FieldMap(
            layout(tuple(part)),
            samples,
            grid.chain,
            column.file_name,
            lambda shard: None,
            column.scan,
            grid.fill,
        )

    if part == shape:
        return one((0,) * len(shape))
    tiles = []
    for place in itertools.product(*map(range, counts)):
        region = tuple(slice(p * c, min((p + 1) * c, n)) for p, c, n in zip(place, part, shape, strict=True))
        tiles.append(Tile(region, one(place)))
    return TiledMap(layout(tuple(shape)), samples, tiles)


def fetched_map(
    where: object, plan: Plan, name: str, read: Callable[[int, int], NDArray[Any]], reason: str
) -> FetchedMap:
    """A field that another library reads. ``read(start, stop)``: all of the array but along its sample axis.

    What it raises ends in DamagedStoreError.
    """
    array, axis, shape = plan.arrays[name], plan.axes[name], plan.sample_shape(name)
    dtype = array.dtype.newbyteorder("=")
    sample_nbytes = math.prod(shape) * dtype.itemsize
    wanted = CHUNK_NBYTES // sample_nbytes if array.chunk_shape is None else array.chunk_shape[axis]
    piece = max(1, min(wanted, _PIECE_NBYTES_MAX // sample_nbytes, plan.samples))
    layout = FieldLayout(name, dtype.str, shape, piece, piece, array.codec)

    def fetch(start: int, stop: int) -> NDArray[Any]:
        try:
            found = np.moveaxis(np.asarray(read(start, stop)), axis, 0)
            if found.shape != (stop - start, *shape):
                raise ValueError(f"shape {found.shape} where {(stop - start, *shape)} is expected")
            return found.astype(dtype, copy=False)
        except (ParbakeError, MemoryError):
            raise
        except Exception as error:  # whatever another library raises over a damaged file
            raise DamagedStoreError(
                f"{where}: field {name!r}, samples {start}-{stop - 1}: {described(error)}"
            ) from None

    return FetchedMap(layout, plan.samples, fetch, reason)
