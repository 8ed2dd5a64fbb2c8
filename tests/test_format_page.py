"""What docs/format.md says of the bytes holds, and its reader reads and refuses as it should."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from bakery import Loaf
from crc32c import crc32c
from pages import blocks_of

from parbake.producers.bake import bake
from parbake.producers.convert import convert
from parbake.store.store import Store

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "format.md").read_text()
SAMPLES = 45  # six slabs, the last one cut


@pytest.fixture(scope="module")
def reader() -> dict[str, Any]:
    """The names of the page's reader, without its examples."""
    names: dict[str, Any] = {}
    exec(next(b.code for b in blocks_of(PAGE) if "class FieldReader" in b.code), names)
    return names


@pytest.fixture
def loaf(tmp_path: Path, tiny: None) -> Store:
    return bake(Loaf(SAMPLES, seed=2), tmp_path / "loaf.zarr", progress=False)


def rooted(path: Path) -> dict[str, Any]:
    root: dict[str, Any] = json.loads((path / "zarr.json").read_text())
    return root


def reading(path: Path) -> Callable[[str], bytes]:
    return lambda name: (path / name).read_bytes()


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
def test_the_reader_on_the_format_page_reads_every_sample(
    codec: str, tmp_path: Path, tiny: None, reader: dict[str, Any]
) -> None:
    path = tmp_path / "loaf.zarr"
    with bake(Loaf(SAMPLES), path, codec=codec, progress=False) as store:
        root = reader["checked"](rooted(path))
        assert len(list((path / "wave/c").iterdir())) == 6
        for name in store:
            field = reader["FieldReader"](root, name)
            found = [field.sample(reading(path), i) for i in range(SAMPLES)]
            np.testing.assert_array_equal(np.stack(found), store[name][:])


def test_the_reader_on_the_format_page_refuses_every_flipped_byte_that_it_uses(
    loaf: Store, reader: dict[str, Any]
) -> None:
    field = reader["FieldReader"](reader["checked"](rooted(loaf.path)), "wave")
    shard = (loaf.path / "wave/c/1/0/0").read_bytes()
    tail = len(shard) - 4 - 16 * loaf.fields["wave"].layout.chunks_per_shard
    start, nbytes = struct.unpack_from("<2Q", shard, tail)
    for at in [*range(64), *range(start, start + nbytes), *range(tail, len(shard))]:
        flipped = bytearray(shard)
        flipped[at] ^= 1
        content = bytes(flipped)
        with pytest.raises(ValueError, match=r"damaged|another place|points outside|lies"):
            field.sample(lambda name, content=content: content, 8)
    np.testing.assert_array_equal(field.sample(lambda name: shard, 8), loaf["wave"][8])
    with pytest.raises(ValueError, match="another place"):
        field.sample(lambda name: shard, 0)


def test_the_seal_is_what_the_format_page_says(loaf: Store, reader: dict[str, Any]) -> None:
    root = rooted(loaf.path)
    bare = {**root, "attributes": {k: v for k, v in root["attributes"].items() if k != "parbake_seal"}}
    whole = reader["digest"](reader["pruned"](bare, lambda name: True))
    assert json.loads(root["attributes"]["parbake_seal"])["all"] == whole
    wave = root["consolidated_metadata"]["metadata"]["wave"]
    wave["attributes"]["long_name"] = "something else"
    reader["checked"](root)
    wave["attributes"]["units"] = "furlong"
    with pytest.raises(ValueError, match="damaged"):
        reader["checked"](root)


def test_the_checksum_of_a_shard_is_what_the_format_page_says(loaf: Store) -> None:
    for name, field in loaf.fields.items():
        chunks = field.layout.chunks_per_shard
        rest = "/0" * len(field.shape)
        files = [loaf.path / f"{name}/c/{n}{rest}" for n in range(field.layout.shard_count(SAMPLES))]
        manifest = zarr.open_group(loaf.path / "manifest" / name, mode="r")
        recorded, sizes = manifest["crc32c"][:], manifest["nbytes"][:]
        for file, crc, nbytes in zip(files, recorded, sizes, strict=True):
            content = file.read_bytes()
            tail = len(content) - 4 - 16 * chunks
            entries = struct.unpack(f"<{2 * chunks}Q", content[tail:-4])
            ends = [o + n for o, n in zip(entries[::2], entries[1::2], strict=True) if o != 2**64 - 1]
            kept = bytearray(content)
            for end in sorted([64, *ends, len(content)], reverse=True):
                del kept[end - 4 : end]
            assert (crc32c(bytes(kept)), len(content)) == (crc, nbytes)


def test_the_format_page_names_all_attributes(loaf: Store) -> None:
    root = rooted(loaf.path)
    tables = [
        set(re.findall(r"^\| `(\w+)` \| (?:string|integer)", part, re.M)) for part in PAGE.split("### Fields")
    ]
    assert tables[0] == root["attributes"].keys()
    fields = [root["consolidated_metadata"]["metadata"][name]["attributes"] for name in loaf]
    needed = {
        name for name in tables[1] if re.search(rf"`{name}` \| string, canonical|`{name}` \| string \|", PAGE)
    }
    for found in fields:
        assert needed <= found.keys() <= tables[1]


def test_a_zip_is_what_the_format_page_says(loaf: Store, tmp_path: Path) -> None:
    target = convert(loaf.path, tmp_path / "loaf.zarr.zip", progress=False).path
    content = target.read_bytes()
    with zipfile.ZipFile(target) as archive:
        members = archive.infolist()
        shards = [member.filename.split("/")[0] in loaf for member in members if "/c/" in member.filename]
        assert shards == sorted(shards)  # metadata first
        for member in members:
            name_nbytes, extra_nbytes = struct.unpack_from("<2H", content, member.header_offset + 26)
            start = member.header_offset + 30 + name_nbytes + extra_nbytes
            assert (member.compress_type, start % 64, member.date_time) == (0, 0, (1980, 1, 1, 0, 0, 0))
            assert content[start : start + member.file_size] == (loaf.path / member.filename).read_bytes()


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
def test_an_hdf5_file_is_what_the_format_page_says(
    codec: str, tmp_path: Path, tiny: None, reader: dict[str, Any]
) -> None:
    with bake(Loaf(SAMPLES), tmp_path / "loaf.h5", codec=codec, progress=False) as store:
        assert store.path.read_bytes()[:9] == b"\x89HDF\r\n\x1a\n\x03"  # superblock 3
        with h5py.File(store.path) as file:
            text = file["manifest/document"]
            assert h5py.check_string_dtype(text.dtype).length == len(text[()])
            assert text.attrs["crc32c"] == crc32c(text[()])
            root = reader["checked"](json.loads(text[()]))
            assert reader["canonical"](root).encode() == text[()]
            for name in store:
                _check_dataset(file, reader["FieldReader"](root, name), store[name][:])


def _check_dataset(file: Any, field: Any, wanted: Any) -> None:
    dataset = file[field.name]
    filters = dataset.id.get_create_plist()
    known = {"raw": [], "lz4": [(32001, 1)], "zstd": [(32001, 5)]}[field.codec]
    assert filters.get_nfilters() == len(known) + 1
    assert filters.get_filter(len(known))[0] == 3
    for number, (code, compressor) in enumerate(known):
        nbytes = dataset.dtype.itemsize * int(np.prod(field.chunk_shape))
        shuffle = int(dataset.dtype.itemsize > 1)
        values = (2, 2, dataset.dtype.itemsize, nbytes, 5, shuffle, compressor)
        assert filters.get_filter(number)[0::2][:2] == (code, values)
    crcs = file[f"manifest/{field.name}/chunk_crc32c"][:]
    for chunk, crc in enumerate(crcs):
        first = chunk * field.chunk_samples
        corner = (first, *[0] * len(field.shape))
        assert dataset.id.get_chunk_info_by_coord(corner).byte_offset % 64 == 0
        _, stored = dataset.id.read_direct_chunk(corner)
        found = field.decoded(stored[:-4], crc)
        np.testing.assert_array_equal(found[: len(wanted) - first], wanted[first : first + len(found)])
