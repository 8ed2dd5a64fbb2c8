"""What an HDF5 file of others holds: its datasets, their dimensions, attributes and storage.

Nothing is read here but metadata, and nothing outside of the file is opened: soft and external links,
external storage and virtual datasets over other files are told, not followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parbake.errors import one_line
from parbake.store.foreign.arrays import FILLING, PACKING
from parbake.store.layout import DTYPES

DEPTH_MAX = 32  # of groups in groups
OBJECTS_MAX = 10_000
_TEXT_NBYTES_MAX = 64 * 1024
_NO_ARRAY = b"This is a netCDF dimension but not a netCDF variable"  # NetCDF-4 on HDF5, "Dimensions"
_RENAMED = "_nc4_non_coord_"  # a variable that has the name of a dimension but does not lie along it
_MATLAB_OWN = ("#refs#", "#subsystem#")  # what cells and objects point to

Kind: TypeAlias = Literal["chunked", "contiguous", "compact", "virtual"]


class TreeError(Exception):
    """A file that is refused as a whole."""


@dataclass(frozen=True)
class Storage:
    """Where the elements of a dataset lie. ``filters``: id, flags and values of each, as written.

    ``offset``: of contiguous ones, bytes from the start of the file; None where none were stored yet.
    ``fill``: what elements that were never written read as, 0-d. ``is_plain``: elements lie in the file as
    NumPy has them in memory, byte order apart.
    """

    kind: Kind
    chunk_shape: tuple[int, ...] | None
    filters: tuple[tuple[int, int, tuple[int, ...]], ...]
    offset: int | None
    nbytes: int  # stored, where that is known without a walk over all chunks: not of chunked ones
    fill: NDArray[Any]
    is_plain: bool


@dataclass(frozen=True)
class Dataset:
    """One dataset that could be a field or a coordinate; ``dims``: None where an axis has no name."""

    name: str  # "group/x"
    link: str  # by which h5py opens it
    shape: tuple[int, ...]
    dtype: np.dtype[Any]  # byte order as on disk
    dims: tuple[str | None, ...]
    storage: Storage | None  # None where unfit
    attributes: Mapping[str, str]  # texts that say what it is
    coded: tuple[str, ...]  # attributes that say that values stand for others, or for none
    unfit: str | None  # why it can be neither


@dataclass
class Tree:
    """The datasets of a file, in its order, and what was passed over: name -> why."""

    datasets: list[Dataset] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)


def read_tree(file: Any) -> Tree:
    """The datasets of an open ``h5py.File``. Raises TreeError; of a damaged file whatever h5py raises."""
    tree = Tree()
    links: dict[str, tuple[int, int]] = {}
    found = list(_walk(file, links, tree.passed))
    within = {_address(d) for _, _, d in found if _kind(d) != "virtual" and not _is_external(d)}
    plain = {link for link, address in links.items() if address in within}
    scales = _scales(found)
    for name, link, item in found:
        away = _lies_elsewhere(item, plain)
        if away is not None:
            tree.passed[name] = away
        elif not _is_dimension_alone(item):
            tree.datasets.append(_dataset(name, link, item, scales))
    return tree


# ---- links


def _walk(
    file: Any, links: dict[str, tuple[int, int]], passed: dict[str, str]
) -> Iterator[tuple[str, str, Any]]:
    """Name, link and ``h5py.Dataset`` of each dataset, once, in the file's order.

    Notes the address behind each hard ``link``, and what was ``passed`` over.
    """
    import h5py

    seen = {_address(file)}
    groups: list[tuple[str, Any]] = [("", file)]
    objects = 0
    while groups:
        path, group = groups.pop()
        objects += group.id.get_num_objs()
        if objects > OBJECTS_MAX:
            raise TreeError(
                f"more than {OBJECTS_MAX:,} datasets and groups, but a field is one dataset of all samples; "
                "where each is a sample, bake them with parbake.from_function"
            )
        below: list[tuple[str, Any]] = []
        for raw in group.id:
            link = path + raw.decode("utf-8", "surrogateescape")
            name = one_line(link.encode("utf-8", "replace").decode())
            kind = group.id.links.get_info(raw).type
            if kind != h5py.h5l.TYPE_HARD:
                passed[name] = "a soft link" if kind == h5py.h5l.TYPE_SOFT else "a link out of the file"
                continue
            if not path and name in _MATLAB_OWN:
                continue
            item = group[raw]
            address = links[link] = _address(item)
            if address in seen or isinstance(item, h5py.Datatype):
                continue
            seen.add(address)
            if isinstance(item, h5py.Dataset):
                yield _without_prefix(name), link, item
            elif name.count("/") >= DEPTH_MAX:
                raise TreeError(f"groups in groups, more than {DEPTH_MAX} deep")
            else:
                below.append((f"{link}/", item))
        groups.extend(reversed(below))


def _address(item: Any) -> tuple[int, int]:
    import h5py

    info = h5py.h5o.get_info(item.id)
    return info.fileno, info.addr


def _without_prefix(name: str) -> str:
    folder, _, leaf = name.rpartition("/")
    leaf = leaf.removeprefix(_RENAMED)
    return f"{folder}/{leaf}" if folder else leaf


def _lies_elsewhere(item: Any, plain: set[str]) -> str | None:
    """Why reading this dataset would open other files, or may run in circles; None where it does not."""
    if _is_external(item):
        return "its data lies in another file"
    if _kind(item) != "virtual":
        return None
    plist = item.id.get_create_plist()
    for source in range(min(plist.get_virtual_count(), OBJECTS_MAX)):
        if plist.get_virtual_filename(source) != "." or plist.get_virtual_count() > OBJECTS_MAX:
            return "a virtual dataset over other files"
        if plist.get_virtual_dsetname(source).strip("/") not in plain:
            return "a virtual dataset over what is no dataset of this file"
    return None


def _is_external(item: Any) -> bool:
    return bool(item.id.get_create_plist().get_external_count() > 0)


def _kind(item: Any) -> Kind:
    import h5py

    kinds: dict[int, Kind] = {
        h5py.h5d.CHUNKED: "chunked",
        h5py.h5d.CONTIGUOUS: "contiguous",
        h5py.h5d.COMPACT: "compact",
    }
    return kinds.get(item.id.get_create_plist().get_layout(), "virtual")


# ---- what a dataset is


def _dataset(name: str, link: str, item: Any, scales: _Scales) -> Dataset:
    attributes = {key: text for key in _TEXTS if (text := _text(item, key)) is not None}
    coded = tuple(key for key in PACKING if _has(item, key))
    coded += tuple(key for key in FILLING if _has(item, key) and not _is_nan(item, key))
    try:
        dtype, shape = item.dtype, item.shape
    except (TypeError, ValueError, NotImplementedError) as error:
        unfit = f"h5py has no dtype for it ({one_line(error)[:100]})"
        return Dataset(name, link, (), np.dtype("V"), (), None, attributes, coded, unfit)
    if shape is None:  # a null dataspace
        return Dataset(name, link, (), dtype, (), None, attributes, coded, "it is empty")
    dims = _dims(item, scales)
    fault = _unfit(item, dtype, shape)
    storage = None if fault else _storage(item, dtype, shape)
    if storage is not None:
        fault = _misstored(storage, dtype, shape)
    return Dataset(name, link, shape, dtype, dims, storage, attributes, coded, fault)


_TEXTS = ("units", "long_name", "standard_name", "description", "coordinates", "MATLAB_class")


def _unfit(item: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> str | None:
    import h5py

    if h5py.check_string_dtype(dtype) is not None or dtype.kind == "S":
        return "texts"
    if h5py.check_ref_dtype(dtype) is not None:
        return "references"
    if h5py.check_vlen_dtype(dtype) is not None:
        return "rows of varying length"
    if h5py.check_enum_dtype(dtype) is not None:
        return "names of an enumeration"
    if dtype.subdtype is not None:
        return "arrays as elements"
    if dtype.names is not None:
        return "records"
    if dtype.name not in DTYPES:
        return f"dtype {dtype}"
    if _has(item, "MATLAB_empty"):
        return "empty in MATLAB"
    if _text(item, "MATLAB_class") == "char":
        return "text of MATLAB"
    if math.prod(shape) * dtype.itemsize >= 1 << 62:
        return f"{math.prod(shape):,} elements"
    return None


def _misstored(storage: Storage, dtype: np.dtype[Any], shape: tuple[int, ...]) -> str | None:
    nbytes = math.prod(shape) * dtype.itemsize
    lies = storage.kind == "compact" or storage.offset is not None
    if lies and storage.is_plain and storage.nbytes != nbytes:
        return f"{storage.nbytes:,} bytes are stored for a shape of {nbytes:,}"
    return None


def _storage(item: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Storage:
    kind, plist = _kind(item), item.id.get_create_plist()
    offset, nbytes = None, 0
    if kind in ("contiguous", "compact"):
        nbytes = item.id.get_storage_size()
    if kind == "contiguous" and nbytes:
        offset = item.id.get_offset()
    filters = (plist.get_filter(i) for i in range(plist.get_nfilters()))
    return Storage(
        kind,
        tuple(plist.get_chunk()) if kind == "chunked" else None,
        tuple((code, flags, tuple(values)) for code, flags, values, _ in filters),
        offset,
        nbytes,
        _fill(plist, dtype),
        _is_plain(item, dtype),
    )


def _fill(plist: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    import h5py

    fill = np.zeros((), dtype)
    # "never": HDF5 leaves the buffer of who reads as it is, and h5py's are zeros
    is_never = plist.get_fill_time() == h5py.h5d.FILL_TIME_NEVER
    if not is_never and plist.fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED:
        plist.get_fill_value(fill)
    return fill


def _is_plain(item: Any, dtype: np.dtype[Any]) -> bool:
    """Whether the type in the file is the very one that h5py would write for ``dtype``."""
    import h5py

    return bool(item.id.get_type().equal(h5py.h5t.py_create(dtype, logical=True)))


# ---- attributes


def _has(item: Any, name: str) -> bool:
    import h5py

    return bool(h5py.h5a.exists(item.id, name.encode()))


def _is_nan(item: Any, name: str) -> bool:
    """Whether an attribute is one number, and not a number."""
    found = item.attrs.get_id(name)
    return found.dtype.kind == "f" and found.shape in ((), (1,)) and bool(np.isnan(item.attrs[name]).all())


def _text(item: Any, name: str) -> str | None:
    """An attribute that is one text; None for all others."""
    import h5py

    if not _has(item, name):
        return None
    attribute = h5py.h5a.open(item.id, name.encode())
    if (
        attribute.shape is None
        or math.prod(attribute.shape) != 1
        or attribute.get_storage_size() > _TEXT_NBYTES_MAX
    ):
        return None
    try:
        value = item.attrs[name]
    except (TypeError, UnicodeError):
        return None
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return one_line(value)[:1000] if isinstance(value, str) else None


# ---- dimensions


@dataclass(frozen=True)
class _Scales:
    """Names of dimensions: by (dataset, axis), by NetCDF's number, and of scales themselves."""

    by_axis: Mapping[tuple[tuple[int, int], int], str]
    by_number: Mapping[int, str]
    by_address: Mapping[tuple[int, int], str]


def _is_scale(item: Any) -> bool:
    return _text(item, "CLASS") == "DIMENSION_SCALE"


def _is_dimension_alone(item: Any) -> bool:
    said = _text(item, "NAME") if _is_scale(item) else None
    return said is not None and said.encode().startswith(_NO_ARRAY)


def _scales(found: list[tuple[str, str, Any]]) -> _Scales:
    """Which axes the dimension scales of a file lie along, as they themselves say.

    The datasets say it too, in rows of varying length: of those the library crashes where their heap is
    damaged (HDF5 2.0.0 and h5py 3.16), of these it does not.
    """
    by_axis: dict[tuple[tuple[int, int], int], str] = {}
    by_number: dict[int, str] = {}
    by_address: dict[tuple[int, int], str] = {}
    for name, _, item in found:
        if not _is_scale(item):
            continue
        dim = by_address[_address(item)] = name.rpartition("/")[2]
        if _has(item, "_Netcdf4Dimid"):
            number = np.asarray(item.attrs["_Netcdf4Dimid"]).reshape(-1)
            by_number[int(number[0])] = dim
        for reference, axis in _references(item):
            by_axis.setdefault((_address(item.file[reference]), axis), dim)
    return _Scales(by_axis, by_number, by_address)


def _references(scale: Any) -> list[tuple[Any, int]]:
    """The datasets and axes that a scale is attached to (HDF5 Dimension Scale Specification, 3.2)."""
    if not _has(scale, "REFERENCE_LIST"):
        return []
    listed = scale.attrs["REFERENCE_LIST"]
    if listed.dtype.names != ("dataset", "dimension"):
        return []
    return [(entry["dataset"], int(entry["dimension"])) for entry in listed if entry["dataset"]]


def _dims(item: Any, scales: _Scales) -> tuple[str | None, ...]:
    """A name for each axis: of its dimension scale, else its label, else None."""
    ndim, address = len(item.shape), _address(item)
    if _is_scale(item):
        own = scales.by_address.get(address)
        if ndim == 1:
            return (own,)
        numbers = item.attrs["_Netcdf4Coordinates"] if _has(item, "_Netcdf4Coordinates") else ()
        if len(numbers) == ndim:
            return tuple(scales.by_number.get(int(number)) for number in numbers)
        return (own, *(None for _ in range(ndim - 1)))
    labels = _labels(item, ndim)
    return tuple(scales.by_axis.get((address, axis)) or labels[axis] for axis in range(ndim))


def _labels(item: Any, ndim: int) -> list[str | None]:
    labels = item.attrs["DIMENSION_LABELS"] if _has(item, "DIMENSION_LABELS") else ()
    if len(labels) != ndim:
        return [None] * ndim
    return [one_line(label) or None if isinstance(label, str) else None for label in labels]
