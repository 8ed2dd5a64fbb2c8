"""A whole store moved into another container: its encoded chunks as they are, then every checksum checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake import settings
from parbake.errors import DamagedStoreError
from parbake.store.chunkmap import ByteSource
from parbake.store.codecs import CodecError
from parbake.store.containers import container_of
from parbake.store.document import Manifest
from parbake.store.durable import durable, write_durably
from parbake.store.hdf5_write import FilterInTheWayError, write_hdf5
from parbake.store.store import Store, open_store
from parbake.store.zarr_dir import metadata_files
from parbake.store.zarr_format import SEAL, shard_file
from parbake.store.zip_writer import write_zip

_COPY_NBYTES = 8 * 1024**2


def pack(
    store: Store,
    target: Path,
    progress: Callable[[int], None] = lambda nbytes: None,
    *,
    root: Mapping[str, Any] | None = None,
) -> None:
    """Write all that ``store`` holds to ``target``, in the container that its name says, and verify it.

    ``progress`` is told the bytes of each shard. ``root``: another root document, sealed, of the same
    samples. Raises DamagedStoreError.
    """
    root = dict(root or store.sealed.root)
    manifests = {name: store.manifest(name) for name in store.fields}
    container = container_of(target)
    if container == "HDF5":
        document, shard = store.contents.document, partial(_shard, store)
        try:
            write_hdf5(target, root, document, store.coords, manifests, shard, progress, source=store.path)
        except FilterInTheWayError:
            _pack_elsewhere(store, target, root)
            progress(sum(map(store.nbytes_stored, store.fields)))
    elif container == "zip":
        write_zip(target, _members(store, root, manifests, progress))
    else:
        _write_folder(store, target, root, manifests, progress)
    with open_store(target, checksums="always") as packed:
        if packed.contents.version != root["attributes"][SEAL]:
            raise DamagedStoreError(f"{store.path}: what was written of it has another seal; try again")
        for name in packed.fields:
            try:
                packed.reader.check(name, threads=os.cpu_count() or 1)
            except DamagedStoreError as error:
                store.reader.check(name)  # mostly it is the source that is damaged, and told of
                raise DamagedStoreError(
                    f"{store.path}: what was written of it was not what was read back ({error}); try again"
                ) from None


_ELSEWHERE = """
import json, pathlib, sys
from parbake.store.pack import pack
from parbake.store.store import open_store
task = json.load(sys.stdin)
with open_store(task["store"]) as store:
    if store.contents.version != task["version"]:
        sys.exit(f"{store.path}: baked again meanwhile; try again")
    pack(store, pathlib.Path(task["target"]), root=task["root"])
"""


def _pack_elsewhere(store: Store, target: Path, root: Mapping[str, Any]) -> None:
    """``pack`` in a fresh process, which has no other library's filters."""
    files = {"store": str(store.path), "version": store.contents.version, "target": str(target.absolute())}
    task = json.dumps({**files, "root": root})
    environment = settings.environment({"HDF5_PLUGIN_PATH": "::", "PYTHONPATH": os.pathsep.join(sys.path)})
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE], input=task, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"its process ended with status {done.returncode}"]
        raise DamagedStoreError(f"{store.path}: could not be written as HDF5: {told[-1]}")


def copy_shard(store: Store, field: str, number: int, target: Path) -> None:
    """One shard as a file of a directory, from whatever container. Raises DamagedStoreError."""
    source = _shard(store, field, number)
    target.parent.mkdir(parents=True, exist_ok=True)
    with durable(target) as copy:
        for start in range(0, source.nbytes, _COPY_NBYTES):
            copy.write(source.get(start, min(start + _COPY_NBYTES, source.nbytes)).data)


def _shard(store: Store, field: str, number: int) -> ByteSource:
    try:
        return store.shard(field, number)
    except CodecError as error:
        raise DamagedStoreError(
            f"{store.path}: field {field!r}, shard {number}: {error}; run 'parbake verify {store.path}'"
        ) from None


def _write_folder(
    store: Store,
    folder: Path,
    root: Mapping[str, Any],
    manifests: Mapping[str, Manifest],
    progress: Callable[[int], None],
) -> None:
    def copy(shard: tuple[str, int]) -> int:
        name, number = shard
        copy_shard(store, name, number, folder / _file(store, name, number))
        return int(manifests[name].nbytes[number])

    with ThreadPoolExecutor(2) as pool:  # one writes while the other waits for the disk
        for nbytes in pool.map(copy, _shards_of(store)):
            progress(nbytes)
    for file, content in metadata_files(root, store.coords, manifests):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_durably(folder / file, content)


def _members(
    store: Store,
    root: Mapping[str, Any],
    manifests: Mapping[str, Manifest],
    progress: Callable[[int], None],
) -> Iterator[tuple[str, list[bytes | NDArray[np.uint8]]]]:
    for file, content in metadata_files(root, store.coords, manifests):
        yield file, [content]
    for name, number in _shards_of(store):
        source = _shard(store, name, number)
        yield _file(store, name, number), [source.get(0, source.nbytes)]
        progress(source.nbytes)


def _shards_of(store: Store) -> Iterator[tuple[str, int]]:
    for name, field in store.fields.items():
        for number in range(field.layout.shard_count(store.stored_samples)):
            yield name, number


def _file(store: Store, field: str, number: int) -> str:
    return shard_file(field, len(store.fields[field].shape), number)
