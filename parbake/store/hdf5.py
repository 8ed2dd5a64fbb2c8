"""Opens the HDF5 container: the sealed root document is in the file, and the file must bear it out.

Nothing that HDF5 keeps without a checksum is believed: arrays carry their CRC-32C, chunks theirs in the
manifest; attributes and dimension scales are for others to see.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, NotAStoreError
from parbake.store import zarr_format
from parbake.store.chunkmap import MISSING, ByteSource, ChunkIndex, FieldMap
from parbake.store.codecs import CRC_NBYTES, CodecError, chain_of, check_crc
from parbake.store.contents import Contents, Sealed
from parbake.store.document import Manifest
from parbake.store.hdf5_form import (
    CRC_ATTRIBUTE,
    DOCUMENT,
    attributes_of,
    chunk_crc_name,
    chunk_shape,
    filters_of,
    found_attributes,
    item_of,
)
from parbake.store.hdf5_index import OpenFile, chunk_table, hdf5_file
from parbake.store.layout import MANIFEST, Coord, FieldLayout
from parbake.store.opened import PreadFile
from parbake.store.shard import pack_shard, shard_nbytes_min

_DOCUMENT_NBYTES_MAX = 64 * 1024**2
_FORMAT = "parbake_format"
_OF_NETCDF = "_NCProperties"  # of files that a netCDF library made
_EDITED = "description edited since the bake"
_AGAIN = "convert or bake the store again"


def is_ours(path: Path) -> bool:
    """Whether an HDF5 file says that parbake wrote it: attributes that travelled do not, nor whole trees.

    False also where the HDF5 library cannot read that.
    """
    files = OpenFile(path)
    try:
        with hdf5_file(files) as file:
            return _FORMAT in file.attrs and MANIFEST in file and _OF_NETCDF not in file.attrs
    except CodecError:
        return False
    finally:
        files.close()


def open_contents(path: Path) -> Contents:
    """The store in an HDF5 file that ``is_ours``. Raises NotAStoreError, DamagedStoreError."""
    files = OpenFile(path)
    try:
        return _contents(files)
    except BaseException:
        files.close()
        raise


def _contents(files: OpenFile) -> Contents:
    try:
        with hdf5_file(files) as file:
            root = _document(file, files)
            opened = zarr_format.checked_metadata(files.path, root)
            for field in opened.document.fields.values():
                _check_field(file, field.layout, opened.document.samples)
            edited = any(fault == _EDITED for _, fault in _attribute_faults(file, root))
    except CodecError as error:
        raise DamagedStoreError(f"{files.path}: {error}; {_AGAIN}") from None
    manifest = cache(partial(_read_manifest, files, opened))
    index = cache(partial(_scan_field, files, opened))
    return Contents(
        files=files,
        document=opened.document,
        maps={name: _chunk_map(files, opened, index, name) for name in opened.document.fields},
        coords=partial(_read_coords, files, opened),
        nbytes_stored=lambda field: int(manifest(field).nbytes.sum()),
        version=opened.seal,
        sealed=Sealed(
            root,
            opened.edited or edited,
            manifest,
            partial(_faults, files, opened, index),
            partial(_shard, files, opened, index),
        ),
    )


# ---- what lies in the file


def _document(file: Any, files: OpenFile) -> dict[str, Any]:
    """The root document. Raises CodecError, NotAStoreError."""
    if _FORMAT not in file.attrs or MANIFEST not in file:
        raise NotAStoreError(f"{files.path}: an HDF5 file that parbake did not write; open it with h5py")
    found = item_of(file, DOCUMENT)
    nbytes = found.id.get_type().get_size()
    if nbytes > _DOCUMENT_NBYTES_MAX or found.shape != ():
        raise CodecError(f"{DOCUMENT} is not a text of at most {_DOCUMENT_NBYTES_MAX:,} bytes")
    text = _checked_bytes(files, found, nbytes).tobytes()
    try:
        root = json.loads(text)
    except (ValueError, RecursionError):
        raise CodecError(f"{DOCUMENT} is not JSON") from None
    if not isinstance(root, dict):
        raise CodecError(f"{DOCUMENT} is not the metadata of a group")
    return root


def _checked_bytes(files: OpenFile, dataset: Any, nbytes: int) -> NDArray[np.uint8]:
    """The bytes of a contiguous dataset, its size and CRC checked. Raises CodecError."""
    name = dataset.name.lstrip("/")
    start = dataset.id.get_offset()
    if start is None or dataset.id.get_storage_size() != nbytes:
        raise CodecError(f"{name} does not lie in one piece of {nbytes} bytes")
    span = files.open("")
    source = PreadFile(span)
    if start + nbytes > source.nbytes:
        raise CodecError(f"{name} reaches beyond the end of the file")
    recorded = dataset.attrs.get(CRC_ATTRIBUTE)
    if not isinstance(recorded, np.integer):
        raise CodecError(f"{name} has no {CRC_ATTRIBUTE}")
    found = source.get(start, start + nbytes)
    try:
        check_crc(found, found, int(recorded))
    except CodecError as error:
        raise CodecError(f"{name}: {error}") from None
    return found


def _read_small(
    files: OpenFile, file: Any, path: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """A contiguous array, what the file says of it checked. Raises CodecError."""
    dataset = item_of(file, path)
    if getattr(dataset, "dtype", None) != dtype or dataset.shape != shape:
        raise CodecError(f"{path} is not of shape {shape} and dtype {dtype}")
    found = _checked_bytes(files, dataset, math.prod(shape) * dtype.itemsize)
    return found.view(dtype).reshape(shape)


def _check_field(file: Any, layout: FieldLayout, samples: int) -> None:
    """Raises CodecError where a field's dataset is not as its layout says."""
    dataset = item_of(file, layout.name)
    wanted = {
        "dtype": layout.numpy_dtype,
        "shape": (samples, *layout.sample_shape),
        "chunks": chunk_shape(layout),
    }
    for what, value in wanted.items():
        found = getattr(dataset, what, None)
        if found != value:
            raise CodecError(f"field {layout.name!r} has {what} {found} where {value} was written")
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    numbers = [number for number, _ in filters_of(layout)]
    if filters != numbers:
        raise CodecError(f"field {layout.name!r} has HDF5 filters {filters} where {numbers} were written")


def _attribute_faults(file: Any, root: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (object, fault) of attributes that differ from the document, of groups, fields and coordinates."""
    faults = []
    for path, node in {"": root, **_nodes(root)}.items():
        try:
            item = item_of(file, path) if path else file
            found, wanted = found_attributes(item), attributes_of(node)
        except CodecError as error:
            faults.append((path or "/", str(error)))
            continue
        found.pop(CRC_ATTRIBUTE, None)
        differing = [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]
        if any(zarr_format.is_core_attribute(name) for name in differing):
            faults.append((path or "/", "differs from the sealed copy"))
        elif differing:
            faults.append((path or "/", _EDITED))
    return faults


def _nodes(root: Mapping[str, Any]) -> dict[str, Any]:
    nodes: dict[str, Any] = root["consolidated_metadata"]["metadata"]
    return nodes


@contextlib.contextmanager
def _told(files: OpenFile, what: str) -> Iterator[None]:
    """Turns a CodecError into a DamagedStoreError that says where."""
    try:
        yield
    except CodecError as error:
        raise DamagedStoreError(f"{files.path}: {what}: {error}; {_AGAIN}") from None


def _node_values(files: OpenFile, file: Any, path: str, node: Mapping[str, Any]) -> NDArray[Any]:
    return _read_small(files, file, path, *zarr_format.small_type(node))


def _read_manifest(files: OpenFile, opened: zarr_format.Opened, field: str) -> Manifest:
    """The manifest of one field. Raises DamagedStoreError."""
    nodes = _nodes(opened.root)
    names = [f"{MANIFEST}/{field}/{key}" for key in ("nbytes", "crc32c", "statistics")]
    layout, samples = opened.document.fields[field].layout, opened.document.samples
    with _told(files, f"field {field!r}"), hdf5_file(files) as file:
        manifest = Manifest(*(_node_values(files, file, name, nodes[name]) for name in names))
        if (manifest.nbytes < shard_nbytes_min(layout, samples)).any():  # a number of samples that lies
            raise CodecError(f"{names[0]} states shards too small for {samples} samples")
    return manifest


def _read_coords(files: OpenFile, opened: zarr_format.Opened) -> dict[str, Coord]:
    """Raises DamagedStoreError."""
    with _told(files, "coordinates"), hdf5_file(files) as file:
        return zarr_format.coords_of(opened, partial(_node_values, files, file))


# ---- chunks


def _scan_field(files: OpenFile, opened: zarr_format.Opened, field: str) -> ChunkIndex:
    """All chunks of a field with the CRCs of their bodies, out of the file's own index. Raises CodecError."""
    layout, samples = opened.document.fields[field].layout, opened.document.samples
    chunks = -(-samples // layout.chunk_samples)
    with hdf5_file(files) as file:
        _check_field(file, layout, samples)
        crcs = _read_small(files, file, chunk_crc_name(field), np.dtype(np.uint32), (chunks,))
        index = chunk_table(item_of(file, field)).index
    return ChunkIndex(index.offset, index.nbytes, crcs, index.mask)


def _part(index: ChunkIndex, layout: FieldLayout, shard: int) -> ChunkIndex:
    """The entries of one shard; MISSING beyond the last sample."""
    first = shard * layout.chunks_per_shard
    here = slice(first, first + layout.chunks_per_shard)
    found = ChunkIndex.empty(layout.chunks_per_shard)
    crcs, masks = (np.zeros(layout.chunks_per_shard, np.uint32) for _ in range(2))
    count = len(index.offset[here])
    found.offset[:count], found.nbytes[:count] = index.offset[here], index.nbytes[here]
    assert index.crc32c is not None
    crcs[:count] = index.crc32c[here]
    if index.mask is None:
        return ChunkIndex(found.offset, found.nbytes, crcs)
    masks[:count] = index.mask[here]
    return ChunkIndex(found.offset, found.nbytes, crcs, masks)


def _chunk_map(
    files: OpenFile, opened: zarr_format.Opened, index: Callable[[str], ChunkIndex], field: str
) -> FieldMap:
    """The chunk map of a field; its chunks are looked up on first touch."""
    layout = opened.document.fields[field].layout

    def scan(source: ByteSource, shard: int) -> ChunkIndex:
        found = _part(index(field), layout, shard)
        found.check_within(source.nbytes)
        return found

    return FieldMap(
        layout=layout,
        samples=opened.document.samples,
        chain=chain_of(layout),
        file_name=lambda shard: files.path.name,
        file_nbytes=lambda shard: None,
        scan=scan,
    )


def _shard(
    files: OpenFile, opened: zarr_format.Opened, index: Callable[[str], ChunkIndex], field: str, number: int
) -> ByteSource:
    """The bytes of a shard as they lie in a directory. Raises CodecError."""
    document = opened.document
    layout = document.fields[field].layout
    source = PreadFile(files.open(""))
    found = _part(index(field), layout, number)
    found.check_within(source.nbytes)
    places = list(zip(found.offset.tolist(), found.nbytes.tolist(), strict=True))
    sizes = [None if offset == MISSING else nbytes for offset, nbytes in places]

    def payload(entry: int) -> NDArray[np.uint8]:
        offset, nbytes = places[entry]
        return source.get(offset, offset + nbytes)

    count = min(layout.shard_samples, document.samples - number * layout.shard_samples)
    header = document.identity(field).header(number, count)
    assert found.crc32c is not None
    return _Assembled(pack_shard(header, sizes, payload, found.crc32c))


@dataclass(frozen=True)
class _Assembled:
    """A shard put together in memory."""

    data: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def get(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.data[start:stop]


# ---- faults that reading alone would not find


def _faults(
    files: OpenFile, opened: zarr_format.Opened, index: Callable[[str], ChunkIndex]
) -> list[tuple[str, str]]:
    """The (object, fault) of what others would read that differs from what was written."""
    faults: list[tuple[str, str]] = []
    try:
        with hdf5_file(files) as file:
            faults += _attribute_faults(file, opened.root)
    except CodecError as error:
        faults.append(("/", str(error)))
    for field in opened.document.fields:
        try:
            faults += _checksum_faults(files, field, index(field))
        except CodecError as error:
            faults.append((field, str(error)))
    return faults


def _checksum_faults(files: OpenFile, field: str, index: ChunkIndex) -> Iterator[tuple[str, str]]:
    """Chunks with a Fletcher-32 that other readers would refuse."""
    from numcodecs.fletcher32 import Fletcher32

    encode = Fletcher32().encode
    source = PreadFile(files.open(""))
    index.check_within(source.nbytes)
    for chunk, (offset, nbytes) in enumerate(zip(index.offset.tolist(), index.nbytes.tolist(), strict=True)):
        if offset == MISSING:
            continue  # told where samples are checked
        payload = source.get(offset, offset + nbytes)
        if index.crc32c is not None and crc32c(payload[:-CRC_NBYTES].data) != index.crc32c[chunk]:
            continue  # likewise
        if payload.nbytes <= CRC_NBYTES or encode(payload[:-CRC_NBYTES]) != payload.tobytes():
            yield field, f"chunk {chunk}: its Fletcher-32 is not that of its bytes"
