"""Canonical JSON, the keys of producers, and what differs between two of them."""

from __future__ import annotations

import json
import pickle
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.errors import KeysError, SchemaError, StaleStoreError
from parbake.store.keys import (
    ABSENT,
    Change,
    Freshness,
    Keys,
    Producer,
    canonical,
    compare,
    digest,
    producer_keys,
    without_source,
)
from parbake.store.layout import Coord, Field

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


def identical(one: Any, other: Any) -> bool:
    """Equal as JSON: 1, 1.0 and True are three values, and so are 0.0 and -0.0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(identical(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(identical, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


# ---- canonical JSON


@settings(deadline=None)
@given(values, values)
def test_canonical_texts_are_equal_only_where_the_values_are(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == identical(one, other)


@settings(deadline=None)
@given(values)
def test_canonical_text_gives_the_value_back(value: Any) -> None:
    assert identical(json.loads(canonical(value)), value)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), scalars), st.randoms())
def test_order_of_keys_does_not_matter(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert canonical(dict(items)) == canonical(value)
    assert digest(dict(items)) == digest(value)


def test_canonical_text_is_sorted_unspaced_and_unicode() -> None:
    assert canonical({"b": [1, 2.0, True, None], "a": {"é": "ü"}}) == '{"a":{"é":"ü"},"b":[1,2.0,true,null]}'
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_numbers_of_different_types_differ() -> None:
    assert len({canonical(v) for v in (1, 1.0, True, "1", [1], None)}) == 6


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int16(-3), -3),
        (np.bool_(True), True),
        (np.array(2.5), 2.5),
        (np.str_("a"), "a"),
        ((1, 2), [1, 2]),
    ],
)
def test_numpy_scalars_and_tuples_are_plain_values(value: Any, plain: Any) -> None:
    assert canonical({"a": value}) == canonical({"a": plain})


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        np.float32("nan"),
        np.array(np.inf),
        {1, 2},
        b"bytes",
        object(),
        1j,
        np.zeros(2),
        Path("a"),
        np.datetime64("2020-01-01"),
        int,
        "\ud800",
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_lacks_is_refused_with_its_path(value: Any) -> None:
    with pytest.raises(KeysError, match=r"^a\.b\[1\]: ") as caught:
        digest({"a": {"b": [0, value]}})
    assert "\n" not in str(caught.value)


def test_keys_that_are_no_strings_are_refused() -> None:
    with pytest.raises(KeysError, match=r"^a: key 1 is not a string"):
        canonical({"a": {1: 2, "b": 3}})


# ---- the keys of a producer


@dataclass(frozen=True)
class Sound:
    """A producer in a file of the user's, as far as parbake can tell: this one."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    f: Field = field(default_factory=lambda: Field((3,), "<f4", ("time",), units="V"))
    version: int = 1
    name: str = "sound"

    def schema(self) -> Mapping[str, Field]:
        return {"x": self.f, "y": Field((), "<f8", ())}

    def invalidation_keys(self) -> Mapping[str, Any]:
        return self.keys

    def __len__(self) -> int:
        return 4

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> Mapping[str, Any]:
        raise NotImplementedError


def keys_of(producer: Producer) -> Keys:
    return producer_keys(producer)[0]


def test_name_version_and_source_are_added_to_what_a_producer_says() -> None:
    keys = keys_of(Sound({"rate": 44100}))
    assert keys.shared["producer"] == "sound"
    assert keys.shared["version"] == 1
    assert keys.shared["keys"] == {"rate": 44100}
    assert any(name.endswith("Sound") for name in keys.shared["source"])
    assert keys.fields["y"] == {
        "shape": [],
        "dtype": "<f8",
        "dims": [],
        "units": None,
        "allow_nan": False,
        "coords": {},
    }


@pytest.mark.parametrize("changed", [{"name": "other"}, {"version": 2}, {"keys": {"rate": 1.0}}])
def test_shared_keys_differ_with_name_version_and_what_the_producer_says(changed: dict[str, Any]) -> None:
    before, after = keys_of(Sound({"rate": 1})), keys_of(replace(Sound({"rate": 1}), **changed))
    assert before.digest != after.digest
    assert len(compare(before, after).changes) == 1


SHAPE = ((3,), "<f4", ("time",))
FIELD_CHANGES: dict[str, tuple[Field, str]] = {
    "shape": (Field((4,), "<f4", ("time",), units="V"), "shape[0]: 3 -> 4"),
    "dtype": (Field((3,), "<f8", ("time",), units="V"), "dtype: <f4 -> <f8"),
    "byte order": (Field((3,), ">f4", ("time",), units="V"), "dtype: <f4 -> >f4"),
    "dims": (Field((3,), "<f4", ("space",), units="V"), "dims[0]: time -> space"),
    "units": (Field(*SHAPE, units="mV"), "units: V -> mV"),
    "no units": (Field(*SHAPE), "units: V -> null"),
    "NaN": (Field(*SHAPE, units="V", allow_nan=True), "allow_nan: false -> true"),
    "coordinate": (Field(*SHAPE, units="V", coords={"time": Coord([0, 1, 2])}), "coords.time: (absent) -> "),
    "own key": (Field(*SHAPE, units="V", keys={"window": "hann"}), "window: (absent) -> hann"),
}


@pytest.mark.parametrize("name", FIELD_CHANGES)
def test_change_of_a_field_is_a_change_of_that_field_alone(name: str) -> None:
    changed, message = FIELD_CHANGES[name]
    before, after = keys_of(Sound()), keys_of(Sound(f=changed))
    assert before.shared == after.shared
    assert before.fields["y"] == after.fields["y"]
    assert before.field_digest("x") != after.field_digest("x")
    [change] = compare(before, after).changes
    assert change.field == "x"
    assert str(change).startswith(f"field 'x': {message}")
    assert compare(before, after, fields=["y"])


def test_description_of_a_field_is_no_key() -> None:
    assert keys_of(Sound(f=Field(*SHAPE, units="V", description="as heard"))) == keys_of(Sound())


@pytest.mark.parametrize("other", [[0.0, 1.0, 2.5], np.array([0, 1, 2], "f4")])
def test_values_dtype_and_units_of_a_coordinate_are_keys(other: Any) -> None:
    def with_coord(coord: Coord) -> Keys:
        return keys_of(Sound(f=Field(*SHAPE, coords={"time": coord})))

    first = with_coord(Coord([0.0, 1.0, 2.0], "s"))
    assert first == with_coord(Coord(np.array([0.0, 1.0, 2.0]), "s"))
    for coord in (Coord(other, "s"), Coord([0.0, 1.0, 2.0], "ms")):
        assert not compare(first, with_coord(coord))


def test_field_keys_may_not_take_the_place_of_parbakes_own() -> None:
    with pytest.raises(SchemaError, match=r"field 'x': keys \['dtype'\]"):
        keys_of(Sound(f=Field(*SHAPE, keys={"dtype": 1})))


def test_offender_in_a_producers_keys_is_named() -> None:
    with pytest.raises(KeysError, match=r"rates\[1\]: nan"):
        keys_of(Sound({"rates": [1.0, float("nan")]}))
    with pytest.raises(KeysError, match=r"field 'x'\.window: "):
        keys_of(Sound(f=Field(*SHAPE, keys={"window": {1, 2}})))


@given(st.dictionaries(st.text(), values), st.dictionaries(st.text(), values))
def test_digests_are_those_of_canonical_texts(shared: dict[str, Any], own: dict[str, Any]) -> None:
    keys = Keys(shared, {"x": own})
    assert keys.digest == digest(shared)
    assert keys.field_digest("x") == digest({"shared": shared, "field": own})


def test_shared_keys_are_written_once_for_all_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    monkeypatch.setattr("parbake.store.keys.canonical", lambda value: written.append(value) or "{}")
    keys = Keys({"many": 1}, {name: {"own": name} for name in "abc"})
    for name in "abc":
        keys.field_digest(name)
    assert written.count({"many": 1}) == 1


def test_field_digest_tells_shared_and_own_keys() -> None:
    a, b = keys_of(Sound({"rate": 1})), keys_of(Sound({"rate": 2}))
    assert a.field_digest("x") != b.field_digest("x")
    assert a.field_digest("x") != a.field_digest("y")


# ---- source of producers in the user's files

PRODUCER = """
    from dataclasses import dataclass
    from parbake.store.layout import Field
    from helper import gain

    @dataclass(frozen=True)
    class Made:
        rate: int = 1
        version = 1
        name = "made"

        def schema(self):
            return {"x": Field((), "<f4", ())}

        def invalidation_keys(self):
            return {"rate": self.rate}

        def __len__(self):
            return 4

        def produce(self, start, stop, fields):
            return {"x": gain() * self.rate}
"""
HELPER = "def gain(): return 1\n"


def keys_of_source(tmp_path: Path, producer: str = PRODUCER, helper: str = HELPER) -> Keys:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    (folder / "made.py").write_text(textwrap.dedent(producer))
    (folder / "helper.py").write_text(helper)
    sys.path.insert(0, str(folder))
    try:
        return keys_of(__import__("made").Made())
    finally:
        sys.path.remove(str(folder))
        for name in ("made", "helper"):
            sys.modules.pop(name, None)


def test_change_of_a_producers_source_names_the_definition(tmp_path: Path) -> None:
    first = keys_of_source(tmp_path)
    assert keys_of_source(tmp_path) == first
    commented = PRODUCER.replace("version = 1", 'version = 1  # bump me\n        "and a docstring"')
    assert keys_of_source(tmp_path, commented.replace('\n        "and a docstring"', "")) == first
    assert keys_of_source(tmp_path, PRODUCER + "\n    def other(): return 3\n") == first
    edited = keys_of_source(tmp_path, PRODUCER.replace("* self.rate", "+ self.rate"))
    [change] = compare(first, edited).changes
    assert change.path == "source.made.Made"
    helped = keys_of_source(tmp_path, helper=HELPER.replace("1", "2"))
    [change] = compare(first, helped).changes
    assert change.path == "source.helper.gain"
    assert compare(without_source(first), without_source(helped))
    assert not compare(without_source(first), without_source(keys_of(Sound())))


def test_parbakes_own_producers_have_a_version_instead_of_source() -> None:
    from parbake.producers.audio.sine import SineTeacher

    keys = keys_of(SineTeacher(num_samples=3))
    assert "source" not in keys.shared
    assert keys.shared["version"] == SineTeacher(num_samples=3).version


# ---- what differs


def changes(stored: Any, wanted: Any) -> list[str]:
    return [str(c) for c in compare(Keys({"keys": stored}, {}), Keys({"keys": wanted}, {})).changes]


def test_changes_read_as_path_old_and_new() -> None:
    assert changes({"sample_rate": 44100}, {"sample_rate": 48000}) == ["sample_rate: 44100 -> 48000"]
    assert changes({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3, "d": 2}}}) == ["a.b.c: 1 -> 3"]
    assert changes({"a": [1, {"b": 2}, 3]}, {"a": [1, {"b": 4}, 3]}) == ["a[1].b: 2 -> 4"]
    assert changes({"a": [1, 2]}, {"a": [1, 2, 3]}) == ["a: [1,2] -> [1,2,3]"]
    assert changes({"a": 1}, {"b": 1}) == [f"a: 1 -> {ABSENT}", f"b: {ABSENT} -> 1"]
    assert changes({"a": 1}, {"a": 1.0}) == ["a: 1 -> 1.0"]
    assert changes({"a": "x" * 64}, {"a": "y" * 64}) == [f"a: {'x' * 12} -> {'y' * 12}"]
    long = list(range(99))
    assert all(len(text) < 180 for text in changes({"a": long}, {"a": [*long, 1]}))


def test_a_key_that_says_absent_is_not_an_absent_key() -> None:
    assert len(changes({"a": ABSENT}, {})) == 1


@settings(deadline=None)
@given(values, values)
def test_keys_are_fresh_only_where_their_canonical_texts_are_equal(one: Any, other: Any) -> None:
    assert bool(compare(Keys({"keys": one}, {}), Keys({"keys": other}, {}))) == (
        canonical(one) == canonical(other)
    )


def test_fields_on_one_side_only_are_changes() -> None:
    stored, wanted = Keys({}, {"x": {}, "y": {}}), Keys({}, {"x": {}, "z": {}})
    assert [str(c) for c in compare(stored, wanted).changes] == [
        f"field 'y': field: baked -> {ABSENT}",
        f"field 'z': field: {ABSENT} -> baked",
    ]
    assert compare(stored, wanted, fields=["x"])


def test_freshness_reads_as_its_changes() -> None:
    assert str(Freshness()) == "fresh"
    both = Freshness((Change(None, "rate", 1, 2), Change("x", "units", None, "V")))
    assert not both
    assert str(both) == "rate: 1 -> 2; field 'x': units: null -> V"


def test_stale_store_error_survives_pickling_with_its_changes() -> None:
    error = StaleStoreError("a.zarr: stale", [Change("x", "units", None, "V")])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.changes) == (str(error), (Change("x", "units", None, "V"),))
    assert isinstance(again, StaleStoreError)


def test_a_producer_is_one_by_its_methods() -> None:
    assert isinstance(Sound(), Producer)
    make: Callable[[], object] = object
    assert not isinstance(make(), Producer)
