"""A whole store moved into another container: its encoded chunks as they are, then every checksum checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError
from parbake.store.chunkmap import ByteSource
from parbake.store.codecs import CodecError
from parbake.store.containers import container_of
from parbake.store.document import Manifest
from parbake.store.durable import durable, write_durably
from parbake.store.hdf5_write import write_hdf5
from parbake.store.store import Store, open_store
from parbake.store.zarr_dir import metadata_files, shard_file
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
        write_hdf5(target, root, document, store.coords, manifests, shard, progress, source=store.path)
    elif container == "zip":
        write_zip(target, _members(store, root, manifests, progress))
    else:
        _write_folder(store, target, root, manifests, progress)
    with open_store(target) as packed:
        report = packed.verify()
        if packed.contents.version != root["attributes"]["parbake_seal"] or not report:
            found = report.damaged[0] if report.damaged else "another seal"
            raise DamagedStoreError(
                f"{store.path}: what was written of it is not whole ({found}); "
                f"run 'parbake verify {store.path}'"
            )


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
    for name, number in _shards_of(store):
        copy_shard(store, name, number, folder / _file(store, name, number))
        progress(int(manifests[name].nbytes[number]))
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
