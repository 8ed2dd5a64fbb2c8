"""Fields, and how their samples are cut into chunks, shards and slabs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.errors import SchemaError
from parbake.store import layout
from parbake.store.layout import Coord, Field, FieldLayout, check_schema, merged_coords, plan_layout

KIB, MIB = 1024, 1024**2

shapes = st.lists(st.integers(1, 3000), max_size=3).map(tuple).filter(lambda s: np.prod(s, dtype=float) < 6e7)
dtypes = st.sampled_from(sorted(layout.DTYPES)).map(np.dtype)
fields = st.builds(lambda s, d: Field(s, d, tuple("abd"[: len(s)])), shapes, dtypes).filter(
    lambda f: f.sample_nbytes <= layout.SAMPLE_NBYTES_MAX
)
schemas = st.dictionaries(st.sampled_from("vwxyz"), fields, min_size=1)


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@settings(deadline=None)
@given(schemas, st.sampled_from(layout.CODECS))
def test_chunks_shards_and_slabs_divide_each_other(schema: dict[str, Field], codec: str) -> None:
    planned = plan_layout(schema, codec)
    assert list(planned.fields) == list(schema)
    assert is_power_of_two(planned.slab_samples)
    for name, f in schema.items():
        cut = planned.fields[name]
        assert (cut.sample_shape, cut.numpy_dtype) == (f.shape, f.dtype)
        assert is_power_of_two(cut.chunk_samples)
        assert cut.chunk_samples * cut.chunks_per_shard == cut.shard_samples
        assert cut.shard_samples % planned.slab_samples == 0
        if f.is_scalar:
            assert (cut.chunk_samples, cut.codec) == (layout.SCALAR_CHUNK_SAMPLES, "raw")
        else:
            assert (cut.shard_samples, cut.codec) == (planned.slab_samples, codec)


@settings(deadline=None)
@given(schemas)
def test_chunks_are_about_64_kib_and_the_largest_shard_about_64_mib(schema: dict[str, Field]) -> None:
    planned = plan_layout(schema, "lz4")
    for cut in planned.fields.values():
        if not cut.is_scalar:
            assert cut.chunk_samples == 1 or cut.chunk_nbytes <= 64 * KIB
            assert 2 * cut.chunk_nbytes > 64 * KIB or cut.chunk_samples == planned.slab_samples
    largest = max(f.sample_nbytes for f in schema.values())
    slab_nbytes = planned.slab_samples * largest
    assert planned.slab_samples == 1 or slab_nbytes <= 64 * MIB
    assert 2 * slab_nbytes > 64 * MIB or planned.slab_samples == layout.SLAB_SAMPLES_MAX


@settings(deadline=None)
@given(schemas, st.integers(1, 10**7))
def test_slabs_cover_all_samples_once(schema: dict[str, Field], samples: int) -> None:
    planned = plan_layout(schema, "raw")
    count = planned.slab_count(samples)
    last_start, last_stop = planned.slab_range(count - 1, samples)
    assert last_start < last_stop == samples
    assert planned.slab_range(0, samples)[0] == 0
    if count > 1:
        assert planned.slab_range(count - 2, samples)[1] == last_start
    for cut in planned.fields.values():
        assert (cut.shard_count(samples) - 1) * cut.shard_samples < samples
        assert samples <= cut.shard_count(samples) * cut.shard_samples


def test_known_layout_of_the_sine_task() -> None:
    schema = {"x": Field((52_920, 1), "<f4", ("time", "channel")), "f0": Field((), "<f8", ())}
    planned = plan_layout(schema, "zstd")
    assert planned.slab_samples == 256
    assert planned.fields["x"] == FieldLayout("x", "<f4", (52_920, 1), 1, 256, "zstd")
    assert planned.fields["f0"] == FieldLayout("f0", "<f8", (), 8_192, 1_048_576, "raw")


def test_layout_digest_differs_with_all_that_moves_samples() -> None:
    base = FieldLayout("x", "<f4", (3, 4), 8, 64, "lz4")
    others = [
        FieldLayout("x", ">f4", (3, 4), 8, 64, "lz4"),
        FieldLayout("x", "<f4", (4, 3), 8, 64, "lz4"),
        FieldLayout("x", "<f4", (3, 4), 16, 64, "lz4"),
        FieldLayout("x", "<f4", (3, 4), 8, 128, "lz4"),
        FieldLayout("x", "<f4", (3, 4), 8, 64, "raw"),
    ]
    assert len({f.digest for f in (base, *others)}) == 6
    assert FieldLayout("renamed", "<f4", (3, 4), 8, 64, "lz4").digest == base.digest


def test_unknown_codec_is_refused() -> None:
    with pytest.raises(SchemaError, match="unknown codec 'gzip'; one of raw, lz4, zstd"):
        plan_layout({"x": Field((), "f4", ())}, "gzip")


def test_byte_order_is_kept() -> None:
    assert plan_layout({"x": Field((9,), ">f4", ("t",))}, "raw").fields["x"].dtype == ">f4"


def test_scalar_is_a_field_of_at_most_64_bytes() -> None:
    assert Field((8,), "f8", ("k",)).is_scalar
    assert not Field((9,), "f8", ("k",)).is_scalar
    assert Field((2, 3), "f4", ("time", "channel")).channel_axis == 1
    assert Field((2,), "f4", ("time",)).channel_axis is None


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "object dtype": (lambda: Field((), object, ()), "dtype object cannot be stored"),
    "string dtype": (lambda: Field((), "U3", ()), "cannot be stored"),
    "date dtype": (lambda: Field((), "M8[s]", ()), "cannot be stored"),
    "long double": (lambda: Field((), np.longdouble, ()), "cannot be stored"),
    "bfloat16": (lambda: Field((), "bfloat16", ()), "bfloat16 is stored as float32"),
    "dims too few": (lambda: Field((2, 3), "f4", ("a",)), "2 axes but dims"),
    "dims repeat": (lambda: Field((2, 2), "f4", ("a", "a")), "repeat"),
    "dim of the samples": (lambda: Field((2,), "f4", ("sample",)), "'sample' is not allowed"),
    "dim that is a path": (lambda: Field((2,), "f4", ("../a",)), "not allowed"),
    "empty axis": (lambda: Field((2, 0), "f4", ("a", "b")), "empty axis"),
    "negative axis": (lambda: Field((-1,), "f4", ("a",)), "empty axis"),
    "over 1 GiB": (lambda: Field((2**28, 2), "f4", ("a", "b")), "over the limit of 1 GiB"),
    "coordinate of another length": (
        lambda: Field((2,), "f4", ("a",), coords={"a": Coord([1, 2, 3])}),
        "'a' has 3 values",
    ),
    "coordinate of no dimension": (
        lambda: Field((2,), "f4", ("a",), coords={"b": Coord([1, 2])}),
        "'b' has 2 values",
    ),
    "coordinate of two axes": (lambda: Coord([[1, 2]]), "1-D"),
    "coordinate of mixed values": (lambda: Coord([None, "a"]), "1-D"),
    "coordinate with the name of a dimension": (
        lambda: Field((2, 2), "f4", ("a", "b"), coords={"a": Coord([1, 2], dim="b")}),
        "is a dimension's",
    ),
    "coordinate with the name of a field": (
        lambda: check_schema({"x": Field((2,), "f4", ("a",), coords={"x": Coord([1, 2], dim="a")})}),
        "both a field and a coordinate",
    ),
    "no fields": (lambda: check_schema({}), "at least one field"),
    "not a field": (lambda: check_schema({"x": np.zeros(3)}), "gives ndarray"),
    "reserved name": (lambda: check_schema({"manifest": Field((), "f4", ())}), "'manifest' is not allowed"),
    "reserved prefix": (lambda: check_schema({"__x": Field((), "f4", ())}), "'__x' is not allowed"),
    "name with a slash": (lambda: check_schema({"a/b": Field((), "f4", ())}), "'a/b' is not allowed"),
    "name with a newline": (lambda: check_schema({"a\n": Field((), "f4", ())}), "not allowed"),
    "field named as a dimension": (
        lambda: check_schema({"t": Field((), "f4", ()), "x": Field((2,), "f4", ("t",))}),
        "both a field and a dimension",
    ),
    "one dimension, two lengths": (
        lambda: check_schema({"x": Field((2,), "f4", ("t",)), "y": Field((3,), "f4", ("t",))}),
        "'t' is 2 long in field 'x' and 3 in 'y'",
    ),
    "one dimension, two coordinates": (
        lambda: check_schema(
            {n: Field((2,), "f4", ("t",), coords={"t": Coord([0, k])}) for k, n in enumerate("xy", 1)}
        ),
        "disagree about the coordinate 't'",
    ),
    "one dimension, two units": (
        lambda: check_schema(
            {
                n: Field((2,), "f4", ("t",), coords={"t": Coord([0, 1], u)})
                for n, u in (("x", "s"), ("y", "ms"))
            }
        ),
        "disagree",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_stored_is_refused_in_one_line(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(SchemaError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_coordinates_of_all_fields_are_merged() -> None:
    time, space = Coord([0.0, 0.5], "s"), Coord([1, 2, 3], "m")
    schema = {
        "x": Field((2,), "f4", ("time",), coords={"time": time}),
        "y": Field((2, 3), "f4", ("time", "space"), coords={"space": space}),
        "z": Field((), "f4", ()),
    }
    assert merged_coords(check_schema(schema)) == {"time": time, "space": space}


@given(st.text(max_size=12) | st.sampled_from(["sample", "c", "manifest", "__x", "0a", "a/b", "time"]))
def test_any_name_has_a_plain_one(name: str) -> None:
    plain = layout.plain_name(name)
    check_schema({plain: Field((2,), "f4", (f"{plain}_1",))})
    assert layout.plain_name(plain) == plain
    if name.isidentifier() and name.isascii() and name not in layout._RESERVED and not name.startswith("__"):
        assert plain == name
