"""Writes a store into one HDF5 file: encoded chunks as they are, through direct chunk writes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError
from parbake.store.chunkmap import MISSING, ByteSource
from parbake.store.codecs import CRC_NBYTES, CodecError, check_crc
from parbake.store.document import Manifest, StoreDocument
from parbake.store.durable import Writeback, durable
from parbake.store.hdf5_blocks import BlockFile
from parbake.store.hdf5_form import (
    BLOSC,
    CRC_ATTRIBUTE,
    DOCUMENT,
    attributes_of,
    chunk_crc_name,
    chunk_shape,
    filters_of,
)
from parbake.store.keys import canonical
from parbake.store.layout import MANIFEST, Coord, FieldLayout
from parbake.store.shard import ALIGNMENT, scan_shard

_VERSIONS = ("v110", "v110")  # all metadata checksummed, and read by HDF5 1.10
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."  # NAME of a bare netCDF-4 dimension
_ATTRIBUTES_MAX = 4096  # kept in an object's header, which is checksummed as a whole


class FilterInTheWayError(Exception):
    """Another library's Blosc filter fails in the HDF5 library of this process; it cannot be taken out."""


def write_hdf5(
    target: Path,
    root: Mapping[str, Any],
    document: StoreDocument,
    coords: Mapping[str, Coord],
    manifests: Mapping[str, Manifest],
    shard: Callable[[str, int], ByteSource],
    progress: Callable[[int], None],
    *,
    source: Path | None = None,
) -> None:
    """Write a sealed store as one HDF5 file, which takes its name, synced, once it is whole.

    ``root``: the sealed root document. ``shard(field, number)``: the bytes of a shard as they lie in a
    directory; each chunk is checked on its way. ``progress``: called with the bytes that were written.
    ``source``: the store that is told to be damaged where a shard is.

    Raises DamagedStoreError, FilterInTheWayError, OSError; nothing is left behind then.
    """
    with (
        durable(target) as raw,
        Writeback(raw.fileno()) as writeback,
        contextlib.closing(BlockFile(raw.fileno(), writeback)) as blocks,
        _new_file(blocks) as file,
    ):
        chunks = _checked_chunks(source or target, document, shard)
        writer = _Writer(file, blocks, root["consolidated_metadata"]["metadata"])
        writer.write(root, document, coords, manifests, chunks, progress)


@contextlib.contextmanager
def _new_file(blocks: BlockFile) -> Iterator[Any]:
    """An empty ``h5py.File`` over ``blocks``."""
    import h5py
    from h5py import h5f, h5fd, h5p

    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5fd.fileobj_driver, blocks)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    access.set_libver_bounds(*(getattr(h5f, f"LIBVER_{version.upper()}") for version in _VERSIONS))
    access.set_alignment(1, ALIGNMENT)
    creation = h5p.create(h5p.FILE_CREATE)
    _keep_order(creation)
    try:
        with h5py.File(h5f.create(b"parbake", h5f.ACC_TRUNC, creation, access)) as file:
            yield file
        blocks.flush()
    except Exception:
        if blocks.fault is not None:
            raise blocks.fault from None
        raise


def _keep_order(properties: Any) -> None:
    """Of a group: its members in the order in which they were made, its attributes in its header."""
    from h5py import h5p

    properties.set_obj_track_times(False)
    properties.set_link_creation_order(h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED)
    properties.set_attr_phase_change(_ATTRIBUTES_MAX, 0)


class _Writer:
    """Puts the parts of a store into an open file. ``nodes``: metadata by path, from the root document."""

    def __init__(self, file: Any, blocks: BlockFile, nodes: Mapping[str, Any]) -> None:
        self._file = file
        self._blocks = blocks
        self._nodes = nodes
        self._scales: dict[tuple[str, str], Any] = {}  # by group and dimension

    def write(
        self,
        root: Mapping[str, Any],
        document: StoreDocument,
        coords: Mapping[str, Coord],
        manifests: Mapping[str, Manifest],
        chunks: Callable[[str], Iterator[_Chunk]],
        progress: Callable[[int], None],
    ) -> None:
        _set_attributes(self._file, attributes_of(root))
        self._group(MANIFEST)
        text = canonical(root).encode()
        _set_crc(self._fixed_text(DOCUMENT, text), text)
        with _without_plugins():
            fields = {name: self._field(document, name) for name in document.fields}
        for name, coord in coords.items():
            self._small(name, coord.values)
        for name, manifest in manifests.items():
            self._group(f"{MANIFEST}/{name}")
            for key, values in vars(manifest).items():
                self._small(f"{MANIFEST}/{name}/{key}", values)
        self._attach_all(document)
        for name, dataset in fields.items():
            self._chunks(document.fields[name].layout, dataset, chunks(name), progress)

    def _group(self, path: str) -> None:
        from h5py import h5g, h5p

        creation = h5p.create(h5p.GROUP_CREATE)
        _keep_order(creation)
        h5g.create(self._file.id, path.encode(), gcpl=creation)

    def _dataset(self, path: str, dtype: Any, shape: tuple[int, ...], properties: Any = None) -> Any:
        """A new dataset; a chunk may reach beyond its end along axis 0."""
        import h5py
        from h5py import h5d, h5p, h5s, h5t

        properties = h5p.create(h5p.DATASET_CREATE) if properties is None else properties
        properties.set_attr_phase_change(_ATTRIBUTES_MAX, 0)
        properties.set_obj_track_times(False)  # the same store gives the same bytes
        space = h5s.create(h5s.SCALAR)
        if shape:
            most = shape
            if properties.get_layout() == h5d.CHUNKED:
                most = (max(shape[0], properties.get_chunk()[0]), *shape[1:])
            space = h5s.create_simple(shape, most)
        kind = h5t.py_create(dtype, logical=True)
        return h5py.Dataset(h5d.create(self._file.id, path.encode(), kind, space, properties))

    def _fixed_text(self, path: str, text: bytes) -> Any:
        import h5py

        dataset = self._dataset(path, h5py.string_dtype("utf-8", len(text)), ())
        dataset[()] = text
        return dataset

    def _field(self, document: StoreDocument, name: str) -> Any:
        """The dataset of a field, without its chunks."""
        from h5py import h5p, h5z

        layout = document.fields[name].layout
        properties = h5p.create(h5p.DATASET_CREATE)
        properties.set_chunk(chunk_shape(layout))
        for number, values in filters_of(layout):
            if number == BLOSC:  # optional: the library that writes need not have it
                properties.set_filter(number, h5z.FLAG_OPTIONAL, values)
            else:
                properties.set_fletcher32()
        if layout.numpy_dtype.kind in "fc":
            properties.set_fill_value(np.array(np.nan, layout.numpy_dtype))
        dataset = self._dataset(
            name, layout.numpy_dtype, (document.samples, *layout.sample_shape), properties
        )
        _set_attributes(dataset, attributes_of(self._nodes[name]))
        return dataset

    def _small(self, path: str, values: NDArray[Any]) -> Any:
        """A contiguous dataset with the CRC of its bytes."""
        values = np.ascontiguousarray(values)
        dataset = self._dataset(path, values.dtype, values.shape)
        dataset[...] = values
        _set_crc(dataset, values)
        if path in self._nodes:
            _set_attributes(dataset, attributes_of(self._nodes[path]))
        return dataset

    # ---- dimensions

    def _attach_all(self, document: StoreDocument) -> None:
        """Give every array its dimension scales; coordinates named like their dimension are such."""
        arrays = {path: node for path, node in self._nodes.items() if node["node_type"] == "array"}
        for path, node in arrays.items():
            if node["dimension_names"] == [path] and path not in document.fields:
                self._file[path].make_scale(path)
                self._scales["", path] = self._file[path]
        for path, node in arrays.items():
            self._attach(path, node["dimension_names"])

    def _attach(self, path: str, dims: list[str]) -> None:
        dataset = self._file[path]
        group = path.rpartition("/")[0]
        for axis, dim in enumerate(dims):
            scale = self._scales.get((group, dim))
            if scale is None:
                scale = self._scales[group, dim] = self._bare_scale(group, dim, dataset.shape[axis])
            if scale.name != dataset.name:
                dataset.dims[axis].attach_scale(scale)

    def _bare_scale(self, group: str, dim: str, length: int) -> Any:
        """A dimension without values, as netCDF-4 has it: a dataset for which no room is taken."""
        scale = self._dataset(f"{group}/{dim}".lstrip("/"), np.dtype(">f4"), (length,))
        scale.make_scale(f"{_NO_VARIABLE}{length:10d}")
        return scale

    # ---- chunks

    def _chunks(
        self, layout: FieldLayout, dataset: Any, chunks: Iterator[_Chunk], progress: Callable[[int], None]
    ) -> None:
        rest = (0,) * len(layout.sample_shape)
        crcs = []
        shown = memoryview(b"")
        for number, chunk in enumerate(chunks):
            nbytes = len(chunk.body) + len(chunk.fletcher32)
            if nbytes > len(shown):
                shown = memoryview(bytes(2 * nbytes))
            self._blocks.instead(shown[:nbytes], (chunk.body, chunk.fletcher32))
            dataset.id.write_direct_chunk((number * layout.chunk_samples, *rest), shown[:nbytes])
            crcs.append(chunk.crc32c)
            progress(nbytes)
        path = chunk_crc_name(layout.name)
        self._small(path, np.array(crcs, np.uint32))
        self._attach(path, [f"{MANIFEST}_{layout.name}_chunk"])


@contextlib.contextmanager
def _without_plugins() -> Iterator[None]:
    """Keeps the HDF5 library from looking for filters, whose code would have a say in a new dataset.

    netCDF4 brings a Blosc that belongs to an HDF5 library of its own, and fails in this one. Raises
    FilterInTheWayError where one like that is loaded already.
    """
    from h5py import h5pl
    from h5py._objects import phil

    with phil:  # no other thread may miss its plugins meanwhile
        paths = [h5pl.get(number) for number in range(h5pl.size())]
        try:
            for _ in paths:
                h5pl.remove(0)
            yield
        except ValueError as error:
            if "user callback" in str(error):
                raise FilterInTheWayError from error
            raise
        finally:
            for path in paths:
                h5pl.append(path)


def _set_attributes(item: Any, attributes: Mapping[str, str | int | float]) -> None:
    """Texts as fixed-length strings: those of variable length lie where HDF5 keeps no checksum."""
    import h5py

    for name, value in attributes.items():
        if isinstance(value, str):
            text = value.encode()
            item.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", max(1, len(text))))
        else:
            item.attrs.create(name, value)


def _set_crc(dataset: Any, values: Any) -> None:
    dataset.attrs.create(CRC_ATTRIBUTE, np.uint32(crc32c(values)))


# ---- chunks out of shards


@dataclass(frozen=True)
class _Chunk:
    """A chunk as HDF5 has it: its body, where its source has it, and Fletcher-32. ``crc32c``: of the body."""

    body: memoryview
    fletcher32: memoryview
    crc32c: int


def _checked_chunks(
    source: Path, document: StoreDocument, shard: Callable[[str, int], ByteSource]
) -> Callable[[str], Iterator[_Chunk]]:
    """The chunks of a field in order, out of its shards. Raises DamagedStoreError."""

    def of(field: str) -> Iterator[_Chunk]:
        layout = document.fields[field].layout
        for number in range(layout.shard_count(document.samples)):
            try:
                yield from _chunks_of(document, field, number, shard(field, number))
            except CodecError as error:
                raise DamagedStoreError(
                    f"{source}: field {field!r}, shard {number}: {error}; run 'parbake verify {source}'"
                ) from None

    return of


def _chunks_of(document: StoreDocument, field: str, number: int, source: ByteSource) -> Iterator[_Chunk]:
    """The chunks of a shard, their CRCs checked, with Fletcher-32 in their place. Raises CodecError."""
    from numcodecs.fletcher32 import Fletcher32

    encode = Fletcher32().encode
    layout = document.fields[field].layout
    count = min(layout.shard_samples, document.samples - number * layout.shard_samples)
    index = scan_shard(source, number, count, layout.chunks_per_shard, document.identity(field))
    for entry in range(-(-count // layout.chunk_samples)):
        offset, nbytes = int(index.offset[entry]), int(index.nbytes[entry])
        if offset == MISSING:
            raise CodecError(f"its chunk {entry} is missing")
        payload = source.get(offset, offset + nbytes)
        check_crc(payload)
        body, crc = payload[:-CRC_NBYTES], payload[-CRC_NBYTES:].tobytes()
        fletcher32 = memoryview(encode(body))[-CRC_NBYTES:].tobytes()
        yield _Chunk(body.data, memoryview(fletcher32), int.from_bytes(crc, "little"))
