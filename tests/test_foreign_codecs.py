"""Chains of files that others wrote, against what zarr-python, numcodecs and h5py write and read."""

from __future__ import annotations

import bz2
import functools
import gzip
import json
import lzma
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parbake.store.codecs import CodecError
from parbake.store.foreign import steps as foreign_steps
from parbake.store.foreign.codecs import (
    ForeignChain,
    Uncovered,
    fletcher32,
    hdf5_chain,
    zarr_v2_chain,
    zarr_v3_chain,
)
from parbake.store.layout import DTYPES

U8 = NDArray[np.uint8]
GZIP = (1, 1, (4,))


def shuffle(size: int) -> tuple[int, int, tuple[int, ...]]:
    return 2, 1, (size,)


def as_bytes(data: Any) -> U8:
    return np.frombuffer(bytes(data), np.uint8)


def decoded(chain: ForeignChain, payload: U8) -> U8:
    out = np.full(chain.nbytes, 0xA5, np.uint8)
    chain.check(payload)
    chain.decode(payload, out)
    return out


def samples(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """Values that compress somewhat, of any dtype and byte order."""
    wave = 50 + 40 * np.sin(np.arange(np.prod(shape)) * 0.1 + seed)
    return wave.reshape(shape).astype(dtype)


@st.composite
def chunks(draw: st.DrawFn, names: Any = None) -> NDArray[Any]:
    name = draw(st.sampled_from(sorted(names or DTYPES)))
    dtype = np.dtype(name).newbyteorder(draw(st.sampled_from("<>")))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    return samples(dtype, shape, draw(st.integers(0, 9)))


few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


# ---- Zarr v2

BLOSC_NAMES = ["blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd"]
v2_compressors = st.one_of(
    st.none(),
    st.builds(
        lambda name, mode: numcodecs.Blosc(name, clevel=5, shuffle=mode),
        st.sampled_from([name for name in BLOSC_NAMES if name in numcodecs.blosc.list_compressors()]),
        st.sampled_from([-1, 0, 1, 2]),
    ),
    st.sampled_from(
        [
            numcodecs.Zlib(4),
            numcodecs.GZip(4),
            numcodecs.BZ2(4),
            numcodecs.LZMA(),
            numcodecs.Zstd(3),
            numcodecs.LZ4(),
            numcodecs.Zstd(3, checksum=True),
            numcodecs.LZMA(format=lzma.FORMAT_ALONE),
            numcodecs.LZMA(format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 1}]),
        ]
    ),
)
v2_ends = st.lists(
    st.sampled_from(
        [
            numcodecs.CRC32(),
            numcodecs.CRC32("end"),
            numcodecs.Adler32(),
            numcodecs.Fletcher32(),
            numcodecs.JenkinsLookup3(),
            numcodecs.JenkinsLookup3(7),
            numcodecs.CRC32C(),
        ]
    ),
    max_size=2,
)


def v2_elements(dtype: np.dtype[Any]) -> st.SearchStrategy[list[Any]]:
    text, found = dtype.str, [[]]
    if dtype.kind in "iuf":
        wide = dtype.newbyteorder(">").kind + "8"
        found += [[numcodecs.Delta(text)], [numcodecs.Delta(text, wide)], [numcodecs.AsType(wide, text)]]
        found += [
            [numcodecs.FixedScaleOffset(3, 2, text, ">f8")],
            [numcodecs.Delta(text), numcodecs.Shuffle()],
        ]
    if dtype.kind == "f":
        found += [
            [numcodecs.Quantize(2, text)],
            [numcodecs.Quantize(1, text, "<f8")],
        ]
    if dtype.kind == "f" and dtype.isnative:  # numcodecs rounds no others
        found += [[numcodecs.BitRound(4)]]
    if dtype.kind == "b":
        found += [[numcodecs.PackBits()]]
    if dtype.itemsize % 4 == 0:
        found += [[numcodecs.Shuffle(4)]]
    return st.sampled_from([f for f in found if dtype.itemsize % 4 == 0 or len(f) < 2])


def write_v2(
    data: NDArray[Any], order: str, filters: list[Any], compressor: Any
) -> tuple[dict[str, Any], U8]:
    memory: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(
            zarr.storage.MemoryStore(memory),
            **{"shape": data.shape, "chunks": data.shape, "dtype": data.dtype, "order": order},
            **{"zarr_format": 2, "filters": filters or None, "compressors": compressor},
        )
        array[...] = data
        read = array[...]
    meta = json.loads(memory[".zarray"].to_bytes())
    key = ".".join("0" for _ in data.shape)
    if key not in memory:  # all fill value
        raise FileNotFoundError
    meta["read"] = read
    return meta, as_bytes(memory[key].to_bytes())


@few
@given(st.data())
def test_chunks_of_zarr_v2_decode_as_zarr_python_reads_them(data: st.DataObject) -> None:
    chunk = data.draw(chunks())
    order, compressor = data.draw(st.sampled_from("CF")), data.draw(v2_compressors)
    filters = data.draw(v2_elements(chunk.dtype)) + data.draw(v2_ends)
    try:
        meta, payload = write_v2(chunk, order, filters, compressor)
    except (FileNotFoundError, OverflowError):
        return
    dtype = np.dtype(meta["dtype"])
    chain = zarr_v2_chain(meta["compressor"], meta["filters"], dtype, meta["order"], chunk.shape)
    found = decoded(chain, payload).view(dtype).reshape(chunk.shape)
    np.testing.assert_array_equal(found, meta["read"])
    assert chain.dtype == dtype
    if chain.is_raw:
        assert chain.raw_body(payload, chain.nbytes).tobytes() == found.tobytes()


# ---- Zarr v3


@few
@given(st.data())
def test_chunks_of_zarr_v3_decode_as_zarr_python_reads_them(data: st.DataObject) -> None:
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
    from zarr.codecs import numcodecs as others

    chunk = data.draw(chunks())
    chunk = chunk.astype(chunk.dtype.newbyteorder("="))
    name, orders = chunk.dtype.name, st.permutations(range(chunk.ndim))
    endian = data.draw(st.sampled_from(["little", "big"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if chunk.dtype.kind in "iuf" and chunk.itemsize > 1 and data.draw(st.booleans()):
            endian = "little"
            before = data.draw(
                st.sampled_from(
                    [
                        [others.Delta(dtype=name)],
                        [others.FixedScaleOffset(dtype=name, scale=2, offset=1, astype="float64")],
                        [others.AsType(encode_dtype="float64", decode_dtype=name)],
                    ]
                )
            )
        elif chunk.dtype.kind == "b" and data.draw(st.booleans()):
            before = [others.PackBits()]
        else:
            before = [TransposeCodec(order=o) for o in data.draw(st.lists(orders, max_size=2))]
        after = data.draw(
            st.lists(
                st.sampled_from(
                    [
                        GzipCodec(level=4),
                        ZstdCodec(level=3),
                        ZstdCodec(level=1, checksum=True),
                        BloscCodec(cname="lz4"),
                        BloscCodec(cname="zstd", shuffle="bitshuffle", typesize=2),
                        Crc32cCodec(),
                        others.Zlib(level=2),
                        others.BZ2(level=2),
                        others.LZ4(),
                        others.LZMA(),
                        others.CRC32(),
                        others.Adler32(),
                        others.Fletcher32(),
                        others.JenkinsLookup3(),
                        others.Zstd(level=2),
                        others.GZip(level=2),
                        others.Blosc(cname="zlib"),
                    ]
                ),
                max_size=3,
            )
        )
        memory: dict[str, Any] = {}
        compress = [others.Shuffle(elementsize=chunk.dtype.itemsize)] if data.draw(st.booleans()) else []
        array = zarr.create_array(
            zarr.storage.MemoryStore(memory),
            **{"shape": chunk.shape, "chunks": chunk.shape, "dtype": chunk.dtype, "filters": before},
            **{"serializer": BytesCodec(endian=endian), "compressors": compress + after},
        )
        array[...] = chunk
        read = array[...]
    key = "/".join(["c", *("0" for _ in chunk.shape)])
    if key not in memory:
        return
    meta, payload = json.loads(memory["zarr.json"].to_bytes()), as_bytes(memory[key].to_bytes())
    chain = zarr_v3_chain(meta["codecs"], meta["data_type"], chunk.shape)
    found = decoded(chain, payload).view(chain.dtype).reshape(chunk.shape)
    np.testing.assert_array_equal(found, read)
    if chain.is_raw:
        assert chain.raw_body(payload, chain.nbytes).tobytes() == found.tobytes()


@pytest.mark.parametrize("orders", [[(1, 2, 0)], [(2, 0, 1)], [(1, 0, 2), (0, 2, 1)], [(2, 1, 0)]])
def test_transposed_chunks_are_turned_back(orders: list[tuple[int, ...]]) -> None:
    chunk = samples(np.dtype("<f4"), (2, 3, 4), 0)
    stored = chunk
    for order in orders:
        stored = stored.transpose(order)
    codecs = [{"name": "transpose", "configuration": {"order": list(order)}} for order in orders]
    chain = zarr_v3_chain([*codecs, BYTES], "float32", chunk.shape)
    assert decoded(chain, as_bytes(stored.tobytes())).tobytes() == chunk.tobytes()
    assert not chain.is_raw


# ---- HDF5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hdf5")


def filters_of(dataset: h5py.Dataset) -> list[tuple[int, int, tuple[int, ...]]]:
    made = dataset.id.get_create_plist()
    return [made.get_filter(i)[:3] for i in range(made.get_nfilters())]


def in_hdf5(chunk: NDArray[Any], **options: Any) -> tuple[list[Any], int, U8]:
    """Filters, mask and payload that h5py makes of a chunk."""
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", data=chunk, chunks=chunk.shape, **options)
        mask, payload = dataset.id.read_direct_chunk((0,) * chunk.ndim)
        return filters_of(dataset), mask, as_bytes(payload)


HDF5_DTYPES = DTYPES - {"bool", "complex64", "complex128"}


@few
@given(chunks(HDF5_DTYPES), st.booleans(), st.booleans(), st.sampled_from([None, "gzip", "lzf"]))
def test_chunks_of_hdf5_decode_as_they_were(chunk: Any, shuffled: bool, summed: bool, name: str) -> None:
    if name == "lzf" and foreign_steps.liblzf() is None:
        name = "gzip"
    filters, mask, payload = in_hdf5(chunk, shuffle=shuffled, fletcher32=summed, compression=name)
    chain = hdf5_chain(filters, chunk.dtype, chunk.shape).without(mask)
    assert chain.has_checksum == (summed or "gzip" in chain.name)
    assert decoded(chain, payload).tobytes() == chunk.tobytes()


def test_skipped_filters_are_skipped_for_the_chunks_that_say_so() -> None:
    data = samples(np.dtype(">f4"), (8, 3, 50), 1)  # a chunk for each mask
    filters = [shuffle(4), GZIP, (3, 0, ())]
    chain = hdf5_chain(filters, data.dtype, data.shape[1:])
    encode: list[Callable[[bytes], bytes]] = [
        lambda body: bytes(numcodecs.Shuffle(4).encode(as_bytes(body))),
        lambda body: zlib.compress(body, 4),
        lambda body: body + fletcher32(as_bytes(body)).to_bytes(4, "little"),
    ]
    options = {"shuffle": True, "compression": "gzip", "fletcher32": True}
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", data.shape, data.dtype, chunks=(1, 3, 50), **options)
        assert [number for number, *_ in filters_of(dataset)] == [number for number, *_ in filters]
        for mask in range(8):
            payload = data[mask].tobytes()
            for i in range(3):
                payload = payload if mask >> i & 1 else encode[i](payload)
            dataset.id.write_direct_chunk((mask, 0, 0), payload, filter_mask=mask)
            assert decoded(chain.without(mask), as_bytes(payload)).tobytes() == data[mask].tobytes()
        np.testing.assert_array_equal(dataset[...], data)  # h5py agrees
    assert chain.without(0) is chain
    assert chain.name == "gzip, shuffle"
    assert [mask for mask in range(8) if chain.without(mask).is_raw] == [3, 7]
    assert hdf5_chain([], data.dtype, (5,)).is_raw


@few
@given(st.binary(min_size=1, max_size=2_000))
def test_fletcher32_is_that_of_hdf5(data: bytes) -> None:
    _, _, payload = in_hdf5(as_bytes(data), fletcher32=True)
    assert fletcher32(as_bytes(data)) == int.from_bytes(payload[-4:].tobytes(), "little")


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("nbytes", [1, 2, 719, 720, 721, 70_001])
def test_fletcher32_of_extremes_is_that_of_hdf5(nbytes: int, fill: int) -> None:
    data = np.full(nbytes, fill, np.uint8)
    _, _, payload = in_hdf5(data, fletcher32=True)
    assert fletcher32(data) == int.from_bytes(payload[-4:].tobytes(), "little")
    assert fletcher32(data[:0]) == 0


def test_checksums_as_hdf5_stored_them_before_1_6_3_are_taken() -> None:
    chunk = samples(np.dtype("<f4"), (40,), 0)
    filters, _, payload = in_hdf5(chunk, fletcher32=True)
    old = payload.copy()
    old[-4:] = payload[[-3, -4, -1, -2]]
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", chunk.shape, "<f4", chunks=chunk.shape, fletcher32=True)
        dataset.id.write_direct_chunk((0,), old.tobytes())
        np.testing.assert_array_equal(dataset[...], chunk)
    assert decoded(hdf5_chain(filters, chunk.dtype, chunk.shape), old).tobytes() == chunk.tobytes()


@few
@given(st.integers(1, 40) | st.integers(250, 260), st.integers(2, 300), st.sampled_from([0, 1]))
def test_shuffled_elements_of_any_size_and_number_are_put_back(size: int, count: int, rest: int) -> None:
    nbytes = size * count + (rest and size // 2)  # a remainder stays where it is
    data = np.random.default_rng(size).integers(0, 256, nbytes, np.uint8)
    whole = size * count
    stored = np.concatenate([data[:whole].reshape(-1, size).T.reshape(-1), data[whole:]])
    chain = hdf5_chain([shuffle(size)], np.dtype("u1"), (nbytes,))
    assert decoded(chain, stored).tobytes() == data.tobytes()


def test_elements_larger_than_a_chunk_were_not_shuffled() -> None:
    data = np.arange(7, dtype=np.uint8)
    for size in (4, 8, 1000, 1 << 40):
        assert decoded(hdf5_chain([shuffle(size)], data.dtype, data.shape), data).tobytes() == data.tobytes()


def test_empty_chunks_decode_to_nothing() -> None:
    chain = zarr_v2_chain({"id": "zlib"}, None, np.dtype("<f4"), "F", (0, 5))
    chain.decode(as_bytes(b""), np.empty(0, np.uint8))


def test_shuffled_chunks_that_are_too_large_for_one_block_are_put_back(monkeypatch: Any) -> None:
    monkeypatch.setattr(foreign_steps, "_BLOSC_UNSHUFFLE_NBYTES_MAX", 0)
    monkeypatch.setattr(foreign_steps, "_blosc", None)
    chunk = samples(np.dtype("<f8"), (333,), 0)
    filters, _, payload = in_hdf5(chunk, shuffle=True)
    assert decoded(hdf5_chain(filters, chunk.dtype, chunk.shape), payload).tobytes() == chunk.tobytes()


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_blosc_and_zstd_chunks_of_hdf5_are_plain_ones(itemsize: int) -> None:
    data = samples(np.dtype(f"u{itemsize}"), (500,), 3)
    values = (2, 2, itemsize, data.nbytes, 5, 1, 5)
    chain = hdf5_chain([(32001, 1, values)], data.dtype, data.shape)
    assert chain.name == "blosc(zstd)"
    payload = as_bytes(numcodecs.Blosc("zstd", shuffle=1).encode(data))
    assert decoded(chain, payload).tobytes() == data.tobytes()
    chain = hdf5_chain([(32015, 1, (3,))], data.dtype, data.shape)
    assert decoded(chain, as_bytes(numcodecs.Zstd(3).encode(data))).tobytes() == data.tobytes()


# ---- damage


@pytest.fixture(params=["libdeflate", "zlib"])
def inflating(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test with either package."""
    if request.param == "zlib":
        monkeypatch.setattr(foreign_steps, "libdeflate", lambda: None)
    elif foreign_steps.libdeflate() is None:
        pytest.skip("the package deflate is not installed")


CHUNK = samples(np.dtype("<f4"), (6, 100), 2)


def v2(config: dict[str, Any] | None, *filters: dict[str, Any]) -> ForeignChain:
    return zarr_v2_chain(config, filters, CHUNK.dtype, "C", CHUNK.shape)


def compressed() -> list[tuple[str, ForeignChain, bytes]]:
    """Every compressor, with a payload of CHUNK."""
    raw = CHUNK.tobytes()
    codecs = [numcodecs.Zlib(4), numcodecs.GZip(4), numcodecs.BZ2(4), numcodecs.LZMA(), numcodecs.Zstd(3)]
    codecs += [numcodecs.LZ4(), numcodecs.LZMA(format=lzma.FORMAT_ALONE)]
    codecs += [
        numcodecs.Blosc(name, shuffle=mode)
        for name in ("lz4", "blosclz", "zlib", "zstd")
        for mode in (0, 1, 2)
    ]
    found = [(str(codec), v2(codec.get_config()), bytes(codec.encode(CHUNK))) for codec in codecs]
    two = [shuffle(4), GZIP]
    shuffled = bytes(numcodecs.Shuffle(4).encode(CHUNK))
    found.append(("hdf5", hdf5_chain(two, CHUNK.dtype, CHUNK.shape), zlib.compress(shuffled)))
    both = v2({"id": "gzip"}, {"id": "zlib"}, {"id": "shuffle", "elementsize": 4})
    twice = gzip.compress(bytes(numcodecs.Shuffle(4).encode(zlib.compress(raw).ljust(2_000, b"\0"))))
    found.append(("gzip over shuffle over zlib", both, twice))
    if foreign_steps.liblzf() is not None:
        filters, _, payload = in_hdf5(CHUNK, shuffle=True, compression="lzf")
        found.append(("lzf", hdf5_chain(filters, CHUNK.dtype, CHUNK.shape), payload.tobytes()))
    return found


each = pytest.mark.parametrize(("chain", "payload"), [pytest.param(c, p, id=n) for n, c, p in compressed()])


def ends_well(chain: ForeignChain, payload: bytes) -> bool:
    """Whether a payload decodes; it must fill ``out`` or raise CodecError, and touch nothing else."""
    memory = np.full(chain.nbytes + 128, 0xA5, np.uint8)
    out = memory[64:-64]
    try:
        chain.decode(as_bytes(payload), out)
    except CodecError:
        return False
    finally:
        assert (memory[:64] == 0xA5).all()
        assert (memory[-64:] == 0xA5).all()
    return True


@each
def test_damaged_payloads_end_in_an_error_or_a_full_chunk(
    chain: Any, payload: bytes, inflating: None
) -> None:
    assert ends_well(chain, payload)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(payload), 60):
        cut = payload[:at]
        assert "LZMA" in chain.name or not ends_well(chain, cut), at
        flipped = bytearray(payload)
        flipped[at] ^= 1 << int(rng.integers(8))
        ends_well(chain, bytes(flipped))
        ends_well(chain, payload[:16] + rng.bytes(int(at)))
        ends_well(chain, rng.bytes(int(at)))
    for at in range(40):  # headers
        flipped = bytearray(payload)
        flipped[at] ^= 0xFF
        ends_well(chain, bytes(flipped))


@each
def test_payloads_of_another_size_are_refused(chain: Any, payload: bytes, inflating: None) -> None:
    for samples_more in (-1, 1, -599):
        other = chain.__class__(chain.name, chain.dtype, (600 + samples_more,), chain.steps)
        assert not ends_well(other, payload)


SUMS = ["crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"]


@pytest.mark.parametrize("compressor", [None, {"id": "zlib"}])
@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("name", SUMS)
def test_every_flip_is_found_where_there_is_a_checksum(name: str, location: str, compressor: Any) -> None:
    options = {"location": location} if name in ("crc32", "adler32", "crc32c") else {}
    data = CHUNK[0, :10]
    body = data.tobytes() if compressor is None else zlib.compress(data.tobytes())
    payload = bytes(numcodecs.get_codec({"id": name} | options).encode(body))
    filters = [compressor] if compressor else []
    chain = zarr_v2_chain({"id": name} | options, filters, data.dtype, "C", data.shape)
    assert chain.has_checksum
    assert decoded(chain, as_bytes(payload)).tobytes() == data.tobytes()
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError, match=f"{name} 0x.* where 0x.* is stored"):
            chain.check(as_bytes(flipped))
    for short in range(4):
        with pytest.raises(CodecError, match="too few"):
            chain.check(as_bytes(payload[:short]))
        assert not ends_well(chain, payload[:short])


@pytest.mark.parametrize("names", [("crc32c",), ("fletcher32", "crc32c"), ("crc32c", "jenkins_lookup3")])
def test_a_copy_of_the_body_is_checked_in_its_place(names: tuple[str, ...]) -> None:
    payload = CHUNK.tobytes()
    for name in names:
        payload = bytes(numcodecs.get_codec({"id": name}).encode(payload))
    chain = v2(None, *({"id": name} for name in names))
    assert chain.is_raw
    assert chain.name == "raw"
    body = chain.raw_body(as_bytes(payload), chain.nbytes).copy()
    chain.check(as_bytes(payload), body)
    body[5] ^= 1
    with pytest.raises(CodecError, match="is stored"):
        chain.check(as_bytes(payload), body)
    chain.check(as_bytes(payload))
    with pytest.raises(CodecError, match="are expected"):
        chain.raw_body(as_bytes(payload)[:-1], chain.nbytes)


@pytest.mark.parametrize("name", ["gzip", "zlib", "bz2"])
def test_compressors_that_check_themselves_find_every_flip(name: str) -> None:
    data = CHUNK[0, :10]
    chain = zarr_v2_chain({"id": name}, None, data.dtype, "C", data.shape)
    assert chain.has_checksum
    payload = bytes(numcodecs.get_codec({"id": name}).encode(data.tobytes()))
    assert decoded(chain, as_bytes(payload)).tobytes() == data.tobytes()
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = decoded(chain, as_bytes(flipped))
        except CodecError:
            continue
        assert found.tobytes() == data.tobytes()  # a flip in a header's comment on itself


@pytest.mark.parametrize("config", [None, {"id": "zstd"}, {"id": "blosc"}, {"id": "lz4"}])
def test_what_has_no_checksum_says_so(config: Any) -> None:
    assert not v2(config).has_checksum


def test_checksums_within_a_compressed_payload_are_checked_in_decoding() -> None:
    chain = v2({"id": "zlib"}, {"id": "crc32c"})
    body = CHUNK.tobytes()
    payload = zlib.compress(body + crc32c(body).to_bytes(4, "little"))
    assert chain.has_checksum
    assert decoded(chain, as_bytes(payload)).tobytes() == body
    payload = zlib.compress(body + crc32c(body[1:]).to_bytes(4, "little"))
    with pytest.raises(CodecError, match="crc32c: crc32c 0x"):
        chain.decode(as_bytes(payload), np.empty(chain.nbytes, np.uint8))


def test_gzip_members_one_after_another_are_one_stream(inflating: None) -> None:
    raw, chain = CHUNK.tobytes(), v2({"id": "gzip"})
    members = [gzip.compress(raw[:100]), gzip.compress(raw[100:2000]), gzip.compress(raw[2000:])]
    assert decoded(chain, as_bytes(b"".join(members) + b"\0" * 9)).tobytes() == raw
    assert not ends_well(chain, b"".join(members[:2]))
    assert not ends_well(chain, b"".join((*members[:2], members[2], members[2])))


# ---- bombs


def zeros(make: Callable[[], Any], nbytes: int) -> bytes:
    stream, block = make(), bytes(1 << 24)
    return b"".join([*(stream.compress(block) for _ in range(nbytes >> 24)), stream.flush()])


def zstd_bomb() -> bytes:
    return bytes(numcodecs.Zstd(1).encode(np.zeros(1 << 28, np.uint8)))


BOMBS: dict[str, Callable[[], bytes]] = {
    "zlib": lambda: zeros(lambda: zlib.compressobj(1), 1 << 30),
    "gzip": lambda: zeros(lambda: zlib.compressobj(1, zlib.DEFLATED, 31), 1 << 30),
    "bz2": lambda: zeros(lambda: bz2.BZ2Compressor(1), 1 << 26),
    "lzma": lambda: zeros(lambda: lzma.LZMACompressor(preset=0), 1 << 26),
    "zstd": zstd_bomb,
    "lz4": lambda: struct.pack("<I", 0x7FFFFFFF) + bytes(numcodecs.LZ4().encode(bytes(99))),
    "blosc": lambda: struct.pack("<BBBBIII", 2, 1, 0x21, 4, 1 << 31, 1 << 31, 80) + bytes(64),
}


@functools.cache
def bomb(name: str) -> bytes:
    return BOMBS[name]()


@pytest.mark.parametrize("filters", [(), ({"id": "shuffle", "elementsize": 4},), ({"id": "zlib"},)], ids=str)
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_without_memory(name: str, filters: Any, inflating: None) -> None:
    payload, chain = bomb(name), v2({"id": name}, *filters)
    out = np.empty(chain.nbytes, np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match=name):
            chain.decode(as_bytes(payload), out)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(payload) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_filters_that_widen_again_and_again_are_refused() -> None:
    widen = {"id": "astype", "encode_dtype": "<c16", "decode_dtype": "|u1"}
    assert v2({"id": "zlib"}, widen).name == "zlib, astype"
    with pytest.raises(Uncovered, match="'astype'"):
        v2({"id": "zlib"}, *[widen] * 6)
    with pytest.raises(Uncovered, match="33 codecs"):
        v2(None, *[{"id": "crc32"}] * 33)


def test_a_dictionary_of_gigabytes_is_refused() -> None:
    raw = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    with pytest.raises(Uncovered, match="'lzma'"):
        v2({"id": "lzma", "format": lzma.FORMAT_RAW, "filters": raw})
    payload = bytearray(numcodecs.LZMA(format=lzma.FORMAT_ALONE).encode(CHUNK))
    payload[1:5] = struct.pack("<I", 1 << 30)  # of the header
    with pytest.raises(CodecError, match=r"lzma: .*[Mm]emory"):
        v2({"id": "lzma", "format": lzma.FORMAT_ALONE}).decode(
            as_bytes(payload), np.empty(CHUNK.nbytes, np.uint8)
        )


# ---- what others read


@pytest.mark.parametrize(
    "name", ["pickle", "json2", "vlen-utf8", "msgpack2", "categorize", "base64", "os.system"]
)
def test_other_codecs_of_zarr_are_left_to_zarr_python(name: str) -> None:
    for chain in (lambda: v2({"id": name}), lambda: v2(None, {"id": name})):
        with pytest.raises(Uncovered, match=f"codec '{name}' is read through zarr-python"):
            chain()
    for codec in (name, f"numcodecs.{name}"):
        with pytest.raises(Uncovered, match=f"codec '{codec}' is read through zarr-python"):
            zarr_v3_chain([{"name": "bytes", "configuration": {"endian": "little"}}, codec], "float32", (4,))


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}
DELTA = {"name": "numcodecs.delta", "configuration": {"dtype": "<f4"}}
TURN = {"name": "transpose", "configuration": {"order": [1, 0]}}


@pytest.mark.parametrize(
    "codecs",
    [
        [],
        [{"name": "gzip"}, BYTES],
        [{"name": "bytes"}],
        [BYTES, BYTES],
        [DELTA, BIG],
        [DELTA, TURN, BYTES],
        [TURN, DELTA, BYTES],
        [{"name": "transpose", "configuration": {"order": [0, 0]}}, BYTES],
        [{"name": "transpose", "configuration": 5}, BYTES],
        [{"name": "numcodecs.delta", "configuration": {"dtype": "O"}}, BYTES],
        [{"name": "numcodecs.delta", "configuration": {"dtype": "<f8"}}, BYTES],
        [{"name": "numcodecs.fixedscaleoffset", "configuration": {"scale": "x", "offset": 1}}, BYTES],
        [BYTES, {"name": "numcodecs.shuffle", "configuration": {"elementsize": -1}}],
        [BYTES, {"name": "sharding_indexed"}],
        [BYTES, {"name": "zlib"}],
        [BYTES, None],
        [BYTES, {"name": ["x"]}],
        7,
    ],
    ids=str,
)
def test_chains_that_make_no_sense_here_are_left_to_zarr_python(codecs: list[Any]) -> None:
    with pytest.raises(Uncovered, match="read through zarr-python"):
        zarr_v3_chain(codecs, "float32", (4, 5))


@pytest.mark.parametrize(
    "config",
    [
        5,
        {},
        {"id": None},
        {"id": "blosc", "cname": "x\x1b"},
        {"id": "delta", "dtype": "|S3"},
        {"id": "crc32", "location": "middle"},
        {"id": "jenkins_lookup3", "prefix": "ab"},
        {"id": "delta", "dtype": "<f8", "astype": "<f4"},
        {"id": "lzma", "format": 99},
        {"id": "jenkins_lookup3", "initval": -1},
        {"id": "shuffle", "elementsize": 0},
    ],
    ids=str,
)
def test_configurations_that_make_no_sense_are_left_to_zarr_python(config: Any) -> None:
    for compressor, filters in ((config, None), (None, [config]), (None, config or 5)):
        with pytest.raises(Uncovered, match="read through zarr-python"):
            zarr_v2_chain(compressor, filters, np.dtype("<f4"), "C", (5,))


@pytest.mark.parametrize("number", [4, 5, 6, 32004, 32008, 32013, 32026])
def test_other_filters_of_hdf5_are_left_to_h5py(number: int) -> None:
    with pytest.raises(Uncovered, match=f"{number}.* is read through h5py"):
        hdf5_chain([shuffle(4), (number, 0, (1, 2))], np.dtype("<f4"), (4,))
    with pytest.raises(Uncovered, match=r"dtype .* is read through h5py"):
        hdf5_chain([], np.dtype("S4"), (4,))


def test_lzf_is_left_to_h5py_where_its_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_steps, "liblzf", lambda: None)
    with pytest.raises(Uncovered, match=r"'lzf' \(32000\) is read through h5py; faster with"):
        hdf5_chain([(32000, 1, (4, 261, 16))], np.dtype("<f4"), (4,))
