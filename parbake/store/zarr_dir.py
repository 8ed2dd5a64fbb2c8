"""The files of a store in a Zarr directory or zip: written, opened, scanned to chunk maps."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, NotAStoreError
from parbake.store.chunkmap import ByteSource, ChunkIndex, FieldMap
from parbake.store.codecs import CRC_NBYTES, Chain, CodecError, chain_of, check_crc
from parbake.store.contents import Contents, Sealed
from parbake.store.document import Manifest, StoredField, StoreDocument
from parbake.store.durable import write_durably
from parbake.store.layout import (
    MANIFEST,
    Coord,
)
from parbake.store.opened import Files, read_file
from parbake.store.shard import scan_shard, shard_nbytes_min
from parbake.store.zarr_format import (
    ROOT,
    SEAL,
    Opened,
    all_of,
    checked_metadata,
    coords_of,
    core_of,
    is_copied,
    same_json,
    sealed_root,
    shard_file,
    small_file,
    small_type,
    text_of,
)

_JSON_NBYTES_MAX = 64 * 1024**2


def write_metadata(folder: Path, document: StoreDocument, manifests: Mapping[str, Manifest]) -> str:
    """Write all that is not a shard into a store's folder, the sealed root last; returns the seal."""
    root = sealed_root(document)
    for name, content in metadata_files(root, document.coords, manifests):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_durably(folder / name, content)
    return str(root["attributes"][SEAL])


def metadata_files(
    root: Mapping[str, Any], coords: Mapping[str, Coord], manifests: Mapping[str, Manifest]
) -> Iterator[tuple[str, bytes]]:
    """The (name, content) of all files of a directory or zip but its shards; the root comes last."""
    for path, node in root["consolidated_metadata"]["metadata"].items():
        yield f"{path}/{ROOT}", text_of(node)
    for name, coord in coords.items():
        yield _small_content(name, coord.values)
    for name, manifest in manifests.items():
        for key, values in vars(manifest).items():
            yield _small_content(f"{MANIFEST}/{name}/{key}", values)
    yield ROOT, text_of(root)


def _small_content(name: str, values: NDArray[Any]) -> tuple[str, bytes]:
    """The file of an array of one raw chunk."""
    body, crc = Chain("raw", values.dtype).encode(np.ascontiguousarray(values))
    return f"{name}/{small_file(values.ndim)}", bytes(body) + crc


def write_root(folder: Path, root: Mapping[str, Any]) -> None:
    """Replace the root document of a whole store, in one rename."""
    write_durably(folder / ROOT, text_of(root))


def is_ours(files: Files) -> bool:
    """Whether parbake wrote what is in a folder or zip, damaged or not: what says so is there more than once.

    Our attributes alone are no proof: xarray copies them, and of trees the manifest too.
    """
    marked = _has(files, f"{MANIFEST}/{ROOT}")
    try:
        content = read_file(files, ROOT, _JSON_NBYTES_MAX)
        root = json.loads(content)
    except (FileNotFoundError, CodecError, ValueError, RecursionError):
        return marked
    if b"parbake_" not in content:
        return False
    with contextlib.suppress(TypeError, KeyError, AttributeError):
        nodes = root["consolidated_metadata"]["metadata"]
        marked = (marked or MANIFEST in nodes) and not is_copied(nodes)
    return marked


def _has(files: Files, name: str) -> bool:
    try:
        os.close(files.open(name).descriptor)
    except (FileNotFoundError, CodecError):
        return False
    return True


def open_contents(files: Files) -> Contents:
    """The store in a folder or zip. Raises NotAStoreError, DamagedStoreError."""
    opened = open_metadata(files)
    manifest = cache(partial(read_manifest, files, opened))
    maps = chunk_maps(opened, manifest)
    return Contents(
        files=files,
        document=opened.document,
        maps=maps,
        coords=partial(coords_of, opened, partial(_read_small, files)),
        nbytes_stored=lambda field: int(manifest(field).nbytes.sum()),
        version=opened.seal,
        sealed=Sealed(
            opened.root,
            opened.edited,
            manifest,
            partial(damaged_nodes, files, opened.root),
        ),
    )


def open_metadata(files: Files) -> Opened:
    """The metadata of the store in a folder or zip.

    Raises NotAStoreError, DamagedStoreError; nothing is believed that the seal and the format do not
    bear out.
    """
    return checked_metadata(files.path, _read_root(files))


def _read_root(folder: Files) -> dict[str, Any]:
    path = folder.path
    try:
        content = read_file(folder, ROOT, _JSON_NBYTES_MAX)
    except FileNotFoundError:
        raise NotAStoreError(f"{path}: holds no {ROOT}, so not a Zarr store") from None
    except CodecError as error:
        raise NotAStoreError(f"{path}: {error}") from None
    try:
        root = json.loads(content)
    except (ValueError, RecursionError):
        if not _has(folder, f"{MANIFEST}/{ROOT}"):
            raise NotAStoreError(f"{path}/{ROOT}: not JSON, so not a Zarr store") from None
        raise DamagedStoreError(f"{path}/{ROOT}: not JSON; restore it, or bake the store again") from None
    if not isinstance(root, dict) or root.get("zarr_format") != 3 or root.get("node_type") != "group":
        raise NotAStoreError(f"{path}/{ROOT}: not a Zarr v3 group")
    return root


def read_manifest(folder: Files, opened: Opened, field: str) -> Manifest:
    """The manifest of one field. Raises DamagedStoreError."""
    nodes = opened.root["consolidated_metadata"]["metadata"]
    names = [f"{MANIFEST}/{field}/{key}" for key in ("nbytes", "crc32c", "statistics")]
    manifest = Manifest(*(_read_small(folder, name, nodes[name]) for name in names))
    layout, samples = opened.document.fields[field].layout, opened.document.samples
    if (manifest.nbytes < shard_nbytes_min(layout, samples)).any():  # a number of samples that lies
        raise DamagedStoreError(
            f"{folder.path}/{names[0]}: field {field!r}: states shards too small for {samples} samples; "
            "bake the store again"
        )
    return manifest


def _read_small(folder: Files, name: str, node: Mapping[str, Any]) -> NDArray[Any]:
    """An array of one raw chunk, its size and CRC checked."""
    dtype, shape = small_type(node)
    file = f"{name}/{small_file(len(shape))}"
    try:
        expected = math.prod(shape) * dtype.itemsize + CRC_NBYTES
        payload = np.frombuffer(read_file(folder, file, expected), np.uint8)
        if payload.nbytes != expected:
            raise CodecError(f"{payload.nbytes} bytes where {expected} were written")
        check_crc(payload)
    except FileNotFoundError:
        raise DamagedStoreError(f"{folder.path}: the file {file} is missing; bake the store again") from None
    except CodecError as error:
        raise DamagedStoreError(f"{folder.path}/{file}: {error}; bake the store again") from None
    return payload[:-CRC_NBYTES].view(dtype).reshape(shape)


def chunk_maps(opened: Opened, manifest: Callable[[str], Manifest]) -> dict[str, FieldMap]:
    """One chunk map per field; shards, and the ``manifest(field)``, are read on first touch."""

    def one(field: StoredField) -> FieldMap:
        layout, identity = field.layout, opened.document.identity(field.name)
        samples = opened.document.samples

        def scan(source: ByteSource, shard: int) -> ChunkIndex:
            count = min(layout.shard_samples, samples - shard * layout.shard_samples)
            return scan_shard(source, shard, count, layout.chunks_per_shard, identity)

        return FieldMap(
            layout=layout,
            samples=opened.document.samples,
            chain=chain_of(layout),
            file_name=lambda shard: shard_file(field.name, len(field.shape), shard),
            file_nbytes=lambda shard: int(manifest(field.name).nbytes[shard]),
            scan=scan,
        )

    return {name: one(field) for name, field in opened.document.fields.items()}


def damaged_nodes(folder: Files, root: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (file, fault) of each array's or group's own metadata that differs from the sealed copy."""
    faults = []
    for name, node in root["consolidated_metadata"]["metadata"].items():
        file = f"{name}/{ROOT}"
        try:
            content = read_file(folder, file, _JSON_NBYTES_MAX)
        except FileNotFoundError:
            faults.append((file, "missing"))
            continue
        except CodecError as error:
            faults.append((file, str(error)))
            continue
        try:
            found = json.loads(content)
            core, whole = (same_json(part(found), part(node)) for part in (core_of, all_of))
        except (ValueError, AttributeError, RecursionError):
            core = whole = False
        if not whole:
            faults.append(
                (file, "description edited since the bake" if core else "differs from the sealed copy")
            )
    return faults
