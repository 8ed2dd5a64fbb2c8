"""How a store's metadata shows in an HDF5 file: names, attributes and filters, for who writes and who reads.

The file is a projection of the sealed root document of a Zarr directory, whose text it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parbake.store.codecs import CodecError, chain_of
from parbake.store.keys import canonical
from parbake.store.layout import MANIFEST, FieldLayout

DOCUMENT = f"{MANIFEST}/document"
CRC_ATTRIBUTE = "crc32c"  # of the bytes of a contiguous dataset
_ATTRIBUTE_NBYTES_MAX = 60_000  # HDF5 keeps longer ones apart, without a checksum
_OF_SCALES = frozenset({"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"})  # attributes of HDF5's own

FLETCHER32 = 3
BLOSC = 32001
_BLOSC_FILTER = (2, 2)  # versions of the filter and of the format
_BLOSC_NUMBERS = {"lz4": 1, "zstd": 5}


def chunk_crc_name(field: str) -> str:
    """Path of the CRC-32C of each chunk's body, uint32 [chunk]."""
    return f"{MANIFEST}/{field}/chunk_crc32c"


def chunk_shape(layout: FieldLayout) -> tuple[int, ...]:
    """The chunk shape of a field's dataset."""
    return (layout.chunk_samples, *layout.sample_shape)


def filters_of(layout: FieldLayout) -> list[tuple[int, tuple[int, ...]]]:
    """HDF5 filters in order of writing, each with its values as hdf5-blosc has them."""
    chain = chain_of(layout)
    if chain.is_raw:
        return [(FLETCHER32, ())]
    options = next(codec["configuration"] for codec in chain.zarr_codecs if codec["name"] == "blosc")
    sizes = (options["typesize"], min(layout.chunk_nbytes, 2**31 - 1))
    shuffle = int(options["shuffle"] == "shuffle")
    values = (*_BLOSC_FILTER, *sizes, options["clevel"], shuffle, _BLOSC_NUMBERS[chain.name])
    return [(BLOSC, values), (FLETCHER32, ())]


def attributes_of(node: Mapping[str, Any]) -> dict[str, str | int | float]:
    """The attributes of a group or array as its HDF5 object shows them; texts too long for one left out."""
    shown: dict[str, str | int | float] = {}
    for name, value in node["attributes"].items():
        if not isinstance(value, str | int | float):
            value = canonical(value)
        if isinstance(value, str):
            value = value.rstrip("\0")  # pads a fixed-length string
            if len(value.encode()) > _ATTRIBUTE_NBYTES_MAX:
                continue
        if name and name not in _OF_SCALES and "\0" not in name:
            shown[name] = value
    return shown


def found_attributes(item: Any) -> dict[str, Any]:
    """The attributes of an h5py object as ``attributes_of`` gives them, without those of dimension scales."""
    return {name: _plain(item.attrs[name]) for name in item.attrs if name not in _OF_SCALES}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def item_of(file: Any, path: str) -> Any:
    """The dataset or group at a path of an open ``h5py.File``, reached by hard links alone.

    Raises CodecError for links that may leave the file, datasets whose data lie elsewhere, and nothing there.
    """
    import h5py

    found = file
    for part in path.split("/"):
        if not isinstance(found, h5py.Group):
            raise CodecError(f"{path} is missing")
        link = found.get(part, getlink=True)
        if link is None:
            raise CodecError(f"{path} is missing")
        if not isinstance(link, h5py.HardLink):
            raise CodecError(f"{path} is a link that may leave the file")
        found = found[part]
    if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
        raise CodecError(f"the data of {path} lie in another file")
    return found
