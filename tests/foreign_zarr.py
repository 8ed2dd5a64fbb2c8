"""What tests of foreign Zarr share: a store over a folder, and random reads compared with the writer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.store.chunks import Access, Checksums
from parbake.store.foreign.zarr import open_contents
from parbake.store.index import Window
from parbake.store.opened import OpenFolder
from parbake.store.reader import Reader
from parbake.store.store import Store, _Options
from parbake.store.zarr_zip import OpenZip

DTYPES = (
    *("bool", "int8", "<i2", ">i4", "<i8", "uint8", ">u2", "<u4", ">u8"),
    *("<f2", "<f4", ">f4", "<f8", ">f8", "<c8", ">c16"),
)


def store_of(
    path: Path, sample_dim: str | None = None, *, checksums: Checksums = "first", mmap: bool = True
) -> Store:
    contents = open_contents(OpenFolder(path) if path.is_dir() else OpenZip(path), sample_dim)
    access = Access(contents.files, checksums, mmap, "restore it")
    return Store(
        contents, Reader(contents.maps, access, 1 << 16), _Options(checksums, mmap, 1 << 16, sample_dim), None
    )


def values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[Any]:
    """Any bits that the dtype can have; runs of equal ones, so that there is something to compress."""
    kind, rng = np.dtype(dtype), np.random.default_rng(seed)
    count = int(np.prod(shape))
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    some = np.frombuffer(rng.bytes(3 * kind.itemsize), kind)
    return some[np.minimum(rng.integers(0, 4, count), 2)].reshape(shape)


def assert_same_bits(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype.newbyteorder("=")
    native = np.ascontiguousarray(wanted.astype(found.dtype))
    assert found.tobytes() == native.tobytes()


def assert_reads(store: Store, field: str, wanted: NDArray[Any], seed: int = 0) -> None:
    """Negatives, duplicates, slices, masks, windows and views of a field are those of ``wanted``."""
    rng, n = np.random.default_rng(seed), len(wanted)
    assert store.samples == n
    some = rng.integers(-n, n, rng.integers(1, 2 * n + 2))
    start = int(rng.integers(0, n))
    for index in (some, slice(start, None), slice(None), rng.random(n) < 0.5):
        assert_same_bits(store.read(index, [field])[field], wanted[index])
    assert_same_bits(store.read(some[:3], [field])[field], wanted[some[:3]])
    for axis, length in enumerate(wanted.shape[1:]):
        part = int(rng.integers(1, length + 1))
        starts = rng.integers(0, length - part + 1, len(some))
        window = Window(axis, part, starts)
        found = store.read(some, [field], windows={field: window})[field]
        assert_same_bits(found, window.of(wanted[some]))
