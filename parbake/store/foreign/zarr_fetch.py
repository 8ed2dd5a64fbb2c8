"""zarr-python over the files of an open container, for what no chunk map covers.

It reads what is open here, by descriptor, and not by path: links are not followed, a folder that takes the
path is not mixed in, and a zip is the one that is open.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parbake.store.opened import Files

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class ZarrFetch:
    """Reads arrays of a container through zarr-python, each opened once in a process."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._arrays: dict[str, Any] = {}

    def check(self, path: str, version: int) -> None:
        """Raises whatever zarr-python does of the array's metadata."""
        self._array(path, version)

    def read(self, path: str, version: int, axis: int, start: int, stop: int) -> NDArray[Any]:
        """All of the array at ``path`` but along ``axis``. Raises whatever zarr-python does."""
        array = self._array(path, version)
        found: NDArray[Any] = np.asarray(array[(slice(None),) * axis + (slice(start, stop),)])
        return found

    def _array(self, path: str, version: int) -> Any:
        if self._process != os.getpid():  # nothing of a parent's threads and loops
            self._lock, self._arrays, self._process = threading.Lock(), {}, os.getpid()
        with self._lock:
            array = self._arrays.get(path)
            if array is None:
                array = self._arrays[path] = _opened(self.files, path, version)
            return array


def _opened(files: Files, path: str, version: int) -> Any:
    import zarr

    store = _store_class()(files)
    return zarr.open_array(store=store, path=path, mode="r", zarr_format=3 if version == 3 else 2)


@cache
def _store_class() -> Any:
    """A zarr-python store over ``Files``; its class exists once zarr is imported."""
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

    class FilesStore(Store):
        supports_writes = False
        supports_deletes = False
        supports_listing = False

        def __init__(self, files: Files) -> None:
            super().__init__(read_only=True)
            self._files = files

        def __eq__(self, other: object) -> bool:
            return self is other

        async def get(
            self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
        ) -> Buffer | None:
            try:
                span = self._files.open(key)
            except FileNotFoundError:
                return None
            try:
                start, stop = 0, span.nbytes
                if isinstance(byte_range, RangeByteRequest):
                    start, stop = byte_range.start, min(byte_range.end, stop)
                elif isinstance(byte_range, OffsetByteRequest):
                    start = byte_range.offset
                elif isinstance(byte_range, SuffixByteRequest):
                    start = max(0, stop - byte_range.suffix)
                content = os.pread(span.descriptor, max(0, stop - start), span.start + start)
            finally:
                os.close(span.descriptor)
            return prototype.buffer.from_bytes(content)

        async def get_partial_values(
            self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
        ) -> list[Buffer | None]:
            return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

        async def exists(self, key: str) -> bool:
            try:
                os.close(self._files.open(key).descriptor)
            except FileNotFoundError:
                return False
            return True

        async def set(self, key: str, value: Buffer) -> None:
            raise NotImplementedError

        async def delete(self, key: str) -> None:
            raise NotImplementedError

        async def list(self) -> AsyncIterator[str]:
            raise NotImplementedError
            yield ""

        async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
            raise NotImplementedError
            yield ""

        async def list_dir(self, prefix: str) -> AsyncIterator[str]:
            raise NotImplementedError
            yield ""

    return FilesStore
