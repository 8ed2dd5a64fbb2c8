"""The root document of a store, format 1, both ways: made and sealed, checked and taken apart. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parbake.errors import DamagedStoreError, NotAStoreError
from parbake.store.codecs import Chain, chain_of
from parbake.store.document import StoredField, StoreDocument
from parbake.store.keys import JSON, Keys, canonical, digest
from parbake.store.layout import (
    CODECS,
    DTYPES,
    MANIFEST,
    SAMPLE_DIM,
    SAMPLE_NBYTES_MAX,
    Coord,
    FieldLayout,
    Layout,
)
from parbake.store.statistics import ROWS, columns_of

FORMAT = 1
ROOT = "zarr.json"
SEAL = "parbake_seal"
_CHUNK_NBYTES_MAX = 16 * 1024**2  # of chunks with several samples
_CORE_ATTRIBUTES = frozenset({"units", "statistics", "labels"})  # beside parbake's own
_LABELS = "labels"  # of a coordinate: JSON, a text per value
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")


class Opened(NamedTuple):
    """A store's metadata as read."""

    document: StoreDocument
    root: dict[str, Any]
    seal: str
    edited: bool  # attributes of description changed since the bake


# ---- made


def sealed_root(document: StoreDocument) -> dict[str, Any]:
    """The group's metadata document, consolidated metadata and seal included."""
    nodes: dict[str, dict[str, Any]] = {}
    for name in document.fields:
        nodes[name] = _field_node(document, name)
    for name, coord in document.coords.items():
        attributes = {"units": coord.units} if coord.units is not None else {}
        if coord.labels is not None:
            attributes[_LABELS] = canonical(list(coord.labels))
        dims = (coord.dim or name,)
        nodes[name] = _small_node(coord.values.shape, coord.values.dtype, dims, attributes)
    nodes[MANIFEST] = _group({})
    for name in document.fields:
        nodes |= _manifest_nodes(document, name)
    root = _group(_root_attributes(document))
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": nodes}
    root["attributes"][SEAL] = _seal(root)
    return root


def resealed(root: Mapping[str, Any], provenance: Mapping[str, JSON]) -> dict[str, Any]:
    """The root document with another provenance."""
    attributes = {**root["attributes"], "parbake_provenance": canonical(provenance)}
    changed = {**root, "attributes": attributes}
    attributes[SEAL] = _seal(changed)
    return changed


def text_of(document: Mapping[str, Any]) -> bytes:
    return canonical(document).encode()


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _array(
    shape: list[int],
    chunk: list[int],
    dtype: np.dtype[Any],
    codecs: list[Any],
    dims: list[str],
    attributes: Any,
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value(dtype),
        "codecs": codecs,
        "dimension_names": dims,
        "attributes": attributes,
        "storage_transformers": [],
    }


def fill_value(dtype: np.dtype[Any]) -> Any:
    """A dtype's fill value as Zarr metadata: NaN for floats, so that what is missing shows."""
    return {"f": "NaN", "c": ["NaN", "NaN"], "b": False}.get(dtype.kind, 0)


def _field_node(document: StoreDocument, name: str) -> dict[str, Any]:
    field = document.fields[name]
    layout = field.layout
    attributes: dict[str, Any] = {
        "parbake_keys": canonical(document.keys.fields[name]),
        "parbake_digest": document.keys.field_digest(name),
        "statistics": canonical(document.statistics[name]),
    }
    if field.units is not None:
        attributes["units"] = field.units
    if field.description is not None:
        attributes["long_name"] = field.description
    beside = [] if field.is_scalar else [n for n, other in document.fields.items() if other.is_scalar]
    beside += [n for n, coord in document.coords.items() if coord.dim in field.dims]
    if beside:
        attributes["coordinates"] = " ".join(beside)  # CF: xarray shows them as coordinates
    sharding = {
        "chunk_shape": [layout.chunk_samples, *layout.sample_shape],
        "codecs": chain_of(layout).zarr_codecs,
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    return _array(
        [document.samples, *layout.sample_shape],
        [layout.shard_samples, *layout.sample_shape],
        layout.numpy_dtype,
        [{"name": "sharding_indexed", "configuration": sharding}],
        [SAMPLE_DIM, *field.dims],
        attributes,
    )


def _manifest_nodes(document: StoreDocument, name: str) -> dict[str, dict[str, Any]]:
    """The group of one field's manifest and its arrays; their dimensions are private to them."""
    field, layout = document.fields[name], document.layout
    shards = (field.layout.shard_count(document.samples),)
    columns = columns_of(field.shape, field.channel_axis)
    partials = (layout.slab_count(document.samples), len(ROWS), columns)
    shard_dims = (f"manifest_{name}_shard",)
    partial_dims = tuple(f"manifest_{name}_{axis}" for axis in ("slab", "row", "column"))
    path = f"{MANIFEST}/{name}"
    return {
        path: _group({}),
        f"{path}/nbytes": _small_node(shards, np.dtype(np.int64), shard_dims, {}),
        f"{path}/crc32c": _small_node(shards, np.dtype(np.uint32), shard_dims, {}),
        f"{path}/statistics": _small_node(partials, np.dtype(np.float64), partial_dims, {}),
    }


def _small_node(
    shape: tuple[int, ...], dtype: np.dtype[Any], dims: tuple[str, ...], attributes: dict[str, Any]
) -> dict[str, Any]:
    """An array of one raw chunk."""
    codecs = Chain("raw", dtype).zarr_codecs
    return _array(list(shape), list(shape), dtype, codecs, list(dims), attributes)


def _root_attributes(document: StoreDocument) -> dict[str, Any]:
    return {
        "parbake_format": FORMAT,
        "parbake_producer": str(document.keys.shared["producer"]),
        "parbake_keys": canonical(document.keys.shared),
        "parbake_digest": document.keys.digest,
        "parbake_samples": document.samples,
        "parbake_fields": canonical(list(document.fields)),  # in the producer's order; nodes have none
        "parbake_slab_samples": document.layout.slab_samples,
        "parbake_provenance": canonical(document.provenance),
    }


def _seal(root: Mapping[str, Any]) -> str:
    """Two digests of all metadata but the seal: of what data depends on, and of everything."""
    bare = {**root, "attributes": {k: v for k, v in root["attributes"].items() if k != SEAL}}
    return canonical({"core": digest(core_of(bare)), "all": digest(all_of(bare))})


def core_of(document: Any) -> Any:
    """Metadata less the attributes that only describe."""
    return _pruned(document, is_core_attribute)


def is_core_attribute(name: str) -> bool:
    """Whether data depends on this attribute; others only describe."""
    return name.startswith("parbake_") or name in _CORE_ATTRIBUTES


def all_of(document: Any) -> Any:
    return _pruned(document, lambda name: True)


def _pruned(document: Any, kept: Callable[[str], bool]) -> Any:
    """Metadata with the attributes that are ``kept``.

    Without the empty consolidated metadata that zarr-python gives inner groups when it writes attributes.
    """
    if not isinstance(document, Mapping):
        return document
    inner = {name: _pruned(value, kept) for name, value in document.items() if name != "attributes"}
    if isinstance(found := inner.get("consolidated_metadata"), Mapping) and not found.get("metadata"):
        del inner["consolidated_metadata"]
    if "attributes" in document:
        inner["attributes"] = {name: value for name, value in document["attributes"].items() if kept(name)}
    return inner


def same_json(one: Any, other: Any) -> bool:
    """Whether two documents of plain JSON values are the same text: 1 is not 1.0, nor true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# ---- checked


def checked_metadata(path: Path, root: dict[str, Any]) -> Opened:
    """The metadata in a root document, once seal and format were checked. Raises as ``open_metadata``."""
    attributes = root.get("attributes")
    if not isinstance(attributes, dict) or "parbake_format" not in attributes:
        raise NotAStoreError(f"{path}: a Zarr group that parbake did not bake; open it with zarr or xarray")
    consolidated = root.get("consolidated_metadata")
    nodes = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    if not isinstance(nodes, dict) or MANIFEST not in nodes or is_copied(nodes):
        raise NotAStoreError(
            f"{path}: carries attributes copied from a parbake store but was not baked by parbake, "
            "so its keys are unknown; open it with zarr or xarray"
        )
    if attributes["parbake_format"] != FORMAT:
        raise NotAStoreError(
            f"{path}: format {attributes['parbake_format']!r}; this version of parbake reads format {FORMAT}"
        )
    try:
        computed, stored = json.loads(_seal(root)), json.loads(attributes[SEAL])
        whole, core = (computed[part] == stored[part] for part in ("all", "core"))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        whole = core = False
    if not core:
        raise DamagedStoreError(
            f"{path}/{ROOT}: the metadata does not match its seal; it was damaged or changed by hand: "
            "restore it, or bake the store again with --rebuild"
        )
    try:
        document = _parse(root, attributes, nodes)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise DamagedStoreError(f"{path}/{ROOT}: not a store of format {FORMAT} ({error!r})") from None
    return Opened(document, root, str(attributes[SEAL]), edited=not whole)


def is_copied(nodes: Mapping[str, Any]) -> bool:
    """Whether another program wrote a store's nodes anew: xarray copies whole trees, keys and seal included.

    It gives arrays of floats a ``_FillValue``; those in a manifest of ours have no attributes at all.
    """
    inner = (node for path, node in nodes.items() if path.startswith(f"{MANIFEST}/"))
    return any(isinstance(node, Mapping) and node.get("attributes") for node in inner)


def _parse(root: dict[str, Any], attributes: dict[str, Any], nodes: dict[str, Any]) -> StoreDocument:
    samples, slab_samples = int(attributes["parbake_samples"]), int(attributes["parbake_slab_samples"])
    _require(0 < samples < 2**62 and 0 < slab_samples < 2**31, "numbers of samples")
    fields: dict[str, StoredField] = {}
    own_keys: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    coords: dict[str, Coord] = {}
    for name, node in nodes.items():
        _require(all(_FIELD_NAME.fullmatch(part) for part in name.split("/")), f"name {name!r}")
        if node["node_type"] == "array" and "parbake_digest" in node["attributes"]:
            own_keys[name] = json.loads(node["attributes"]["parbake_keys"])
            fields[name] = _parse_field(name, node, own_keys[name])
            statistics[name] = json.loads(node["attributes"]["statistics"])
    keys = Keys(json.loads(attributes["parbake_keys"]), own_keys)
    order = json.loads(attributes["parbake_fields"])
    _require(bool(fields) and sorted(order) == sorted(fields), "fields")
    fields = {name: fields[name] for name in order}
    _require(isinstance(keys.shared, dict) and "producer" in keys.shared, "keys")
    _require(keys.digest == attributes["parbake_digest"], "digest of the keys")
    layout = Layout(slab_samples, {name: field.layout for name, field in fields.items()})
    provenance = json.loads(attributes["parbake_provenance"])
    _require(isinstance(provenance, dict), "provenance")
    document = StoreDocument(samples, layout, fields, coords, keys, provenance, statistics)
    written = _root_attributes(document)
    _require(same_json({name: attributes[name] for name in written}, written), "attributes")
    _check_nodes(document, nodes)
    return document


def _check_nodes(document: StoreDocument, nodes: Mapping[str, Any]) -> None:
    """Refuse what would not be written like this: another reader, or a later step, would believe it."""
    lengths = {d: n for f in document.fields.values() for d, n in zip(f.dims, f.shape, strict=True)}
    expected = {MANIFEST: _group({})}
    for name in document.fields:
        expected |= {name: _field_node(document, name), **_manifest_nodes(document, name)}
    for name in nodes.keys() - expected.keys():  # what is left are coordinates
        [dim] = nodes[name]["dimension_names"]
        dtype = _parse_dtype(nodes[name]["data_type"], nodes[name]["codecs"][0])
        _require(name == dim or name not in lengths, f"name of coordinate {name!r}")
        _labels_of(nodes[name])
        expected[name] = _small_node((lengths[dim],), dtype, (dim,), nodes[name]["attributes"])
    for path, node in expected.items():
        _require(same_json(core_of(nodes[path]), core_of(node)), f"metadata of {path!r}")


def _parse_field(name: str, node: dict[str, Any], keys: Mapping[str, Any]) -> StoredField:
    sharding = node["codecs"][0]["configuration"]
    codecs = sharding["codecs"]
    dtype = _parse_dtype(node["data_type"], codecs[0])
    shape = tuple(int(n) for n in node["shape"][1:])
    chunk, shard = sharding["chunk_shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
    blosc = [codec for codec in codecs if codec["name"] == "blosc"]
    layout = FieldLayout(
        name,
        dtype.str,
        shape,
        int(chunk[0]),
        int(shard[0]),
        blosc[0]["configuration"]["cname"] if blosc else "raw",
    )
    _require("/" not in name and name != MANIFEST, f"field name {name!r}")
    _require(all(n > 0 for n in shape), f"shape of {name!r}")
    _require(layout.codec in CODECS, f"codecs of {name!r}")
    _require(0 < layout.chunk_samples <= layout.shard_samples < 2**31, f"chunks of {name!r}")
    _require(layout.shard_samples % layout.chunk_samples == 0, f"chunks of {name!r}")
    _require(layout.sample_nbytes <= SAMPLE_NBYTES_MAX, f"sample size of {name!r}")
    _require(layout.chunk_samples == 1 or layout.chunk_nbytes <= _CHUNK_NBYTES_MAX, f"chunks of {name!r}")
    attributes = node["attributes"]
    dims = tuple(node["dimension_names"][1:])
    _require(
        len(set(dims)) == len(dims) and all(_FIELD_NAME.fullmatch(dim) for dim in dims), f"dims of {name!r}"
    )
    units = attributes.get("units")
    _require(units is None or isinstance(units, str), f"units of {name!r}")
    return StoredField(name, dims, units, attributes.get("long_name"), bool(keys["allow_nan"]), layout)


def _parse_dtype(data_type: str, bytes_codec: Mapping[str, Any]) -> np.dtype[Any]:
    _require(data_type in DTYPES, f"data type {data_type!r}")
    big = bytes_codec.get("configuration", {}).get("endian") == "big"
    return np.dtype(data_type).newbyteorder(">" if big else "<")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def coords_of(opened: Opened, values: Callable[[str, Mapping[str, Any]], NDArray[Any]]) -> dict[str, Coord]:
    """The coordinates of a store; ``values(name, node)`` reads an array and may raise DamagedStoreError."""
    nodes, fields = opened.root["consolidated_metadata"]["metadata"], opened.document.fields
    names = [
        n for n, node in nodes.items() if node["node_type"] == "array" and "/" not in n and n not in fields
    ]
    return {name: _coord(name, nodes[name], values(name, nodes[name])) for name in names}


def _coord(name: str, node: Mapping[str, Any], values: NDArray[Any]) -> Coord:
    [dim] = node["dimension_names"]
    labels = _labels_of(node)
    return Coord(
        values if labels is None else np.array(labels),
        node["attributes"].get("units"),
        dim=None if dim == name else dim,
    )


def _labels_of(node: Mapping[str, Any]) -> list[str] | None:
    """Texts of a coordinate's values. Raises ValueError."""
    if _LABELS not in node["attributes"]:
        return None
    labels = json.loads(node["attributes"][_LABELS])
    _require(isinstance(labels, list) and len(labels) == node["shape"][0], "labels")
    _require(all(isinstance(label, str) for label in labels), "labels")
    return list(labels)


def small_type(node: Mapping[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Dtype, byte order as on disk, and shape of an array of one raw chunk."""
    return _parse_dtype(node["data_type"], node["codecs"][0]), tuple(node["shape"])


def small_file(ndim: int) -> str:
    return "/".join(["c", *["0"] * ndim])


def shard_file(field: str, ndim: int, shard: int) -> str:
    """Path of a shard inside its store; ``ndim`` axes in one sample."""
    return "/".join([field, "c", str(shard), *["0"] * ndim])
