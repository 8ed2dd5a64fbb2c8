"""from_function: any function of a sample number as a producer."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parbake.errors import KeysError, ParbakeError, ProducerError, SchemaError
from parbake.producers.bake import bake
from parbake.producers.function import from_function
from parbake.store.keys import Keys, Producer, compare, producer_keys
from parbake.store.layout import Field
from parbake.store.store import Store


def keys_of(producer: Producer) -> Keys:
    return producer_keys(producer)[0]


def baked(tmp_path: Path, producer: Producer) -> Store:
    return bake(producer, tmp_path / "a.zarr", progress=False)


def fn_value(value: Any) -> Any:
    return value.float().numpy() if isinstance(value, torch.Tensor) else value


def wave(index: int) -> dict[str, Any]:
    return {"x": np.full((2, 3), index, np.float32), "level": index / 2}


def test_schema_is_read_off_the_first_sample(tmp_path: Path) -> None:
    producer = from_function(wave, 5)
    schema = producer.schema()
    assert (schema["x"].shape, schema["x"].dtype, schema["x"].dims) == ((2, 3), np.float32, ("x_0", "x_1"))
    assert (schema["level"].shape, schema["level"].dtype) == ((), np.float64)
    assert len(producer) == 5
    with baked(tmp_path, producer) as store:
        np.testing.assert_array_equal(store["x"][:, 1, 2], np.arange(5))
        np.testing.assert_array_equal(store["level"][:], np.arange(5) / 2)


@pytest.mark.parametrize(
    ("fn", "dtype"),
    [
        (lambda i: np.full(3, i, np.int16), "int16"),
        (lambda i: [float(i)] * 3, "float64"),
        (lambda i: torch.full((3,), i, dtype=torch.float16), "float16"),
        (lambda i: torch.full((3,), i, dtype=torch.bfloat16), "float32"),
        (lambda i: i, "int64"),
        (lambda i: np.uint8(i), "uint8"),
        (lambda i: i > 1, "bool"),
        (lambda i: i + 1j, "complex128"),
    ],
)
def test_one_bare_value_becomes_the_field_value(fn: Callable[[int], Any], dtype: str, tmp_path: Path) -> None:
    with baked(tmp_path, from_function(fn, 4)) as store:
        assert list(store) == ["value"]
        assert store["value"].dtype == dtype
        np.testing.assert_array_equal(store["value"][2], np.full_like(store["value"][2], fn_value(fn(2))))


def test_bare_value_fills_the_only_field_of_a_schema(tmp_path: Path) -> None:
    schema = {"y": Field((), ">f4", ())}
    with baked(tmp_path, from_function(lambda i: i, 4, schema=schema)) as store:
        np.testing.assert_array_equal(store["y"][:], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint8", 3), ("int8", -3), ("float16", 1), ("float32", 0.5), ("bool", True)]
)
def test_python_numbers_take_the_dtype_of_their_field(dtype: str, value: Any, tmp_path: Path) -> None:
    with baked(tmp_path, from_function(lambda i: value, 2, schema={"y": Field((), dtype, ())})) as store:
        assert store["y"][1] == value


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint8", 300), ("uint8", -1), ("int32", 0.5), ("int32", True + 0.5), ("bool", 2)]
)
def test_python_numbers_that_their_field_cannot_hold_are_refused(
    dtype: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(ParbakeError, match=r"sample.*'y'"):
        baked(tmp_path, from_function(lambda i: value, 2, schema={"y": Field((), dtype, ())}))


def test_dtype_that_changes_is_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(ProducerError, match=r"'x' has dtype float64 where float32 is declared"):
        baked(
            tmp_path, from_function(lambda i: {"x": np.zeros(3)}, 2, schema={"x": Field((3,), "f4", ("t",))})
        )
    with pytest.raises(ParbakeError, match=r"sample.*'value'"):
        baked(tmp_path, from_function(lambda i: 0 if i == 0 else 0.5, 2))


def test_ragged_outputs_are_refused_with_the_lines_that_pad_them(tmp_path: Path) -> None:
    for fn in (lambda i: np.zeros(i + 1), lambda i: {"value": torch.zeros(i + 1)}):
        with pytest.raises(ProducerError, match=r"'value'.*ragged|'value' has shape") as caught:
            baked(tmp_path, from_function(fn, 3))
        assert "np.pad" in str(caught.value)
        assert "length" in str(caught.value)
    with pytest.raises(ProducerError, match=r"ragged.*np\.array\(\[len\(a\) for a in value\]\).*np\.pad"):
        from_function(lambda i: [[1.0], [1.0, 2.0]], 3)


def test_outputs_that_are_no_numbers_are_refused() -> None:
    for fn in (lambda i: "text", lambda i: {"value": np.array(["a"])}):
        with pytest.raises(SchemaError, match=r"field 'value': fn\(0\) gives <U"):
            from_function(fn, 3)
    for nothing in (None, object()):
        with pytest.raises(ProducerError, match="not an array of numbers"):
            from_function(lambda i, nothing=nothing: nothing, 3)

    def counted(index: int) -> Any:
        yield index

    with pytest.raises(ProducerError, match="generator"):
        from_function(counted, 3)


def test_missing_field_of_a_sample_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProducerError, match=r"sample.* 2.*'y'"):
        baked(tmp_path, from_function(lambda i: {"x": i, "y": i} if i < 2 else {"x": i}, 4))


def test_function_that_raises_tells_the_sample(tmp_path: Path) -> None:
    with pytest.raises(ProducerError, match=r"samples 2-2: ZeroDivisionError"):
        baked(tmp_path, from_function(lambda i: 1 / (2 - i), 4))


# ---- keys


def test_function_enters_by_source_and_bound_values() -> None:
    def scaled(gain: float) -> Callable[[int], float]:
        return lambda i: gain * i

    one = keys_of(from_function(scaled(1.0), 3))
    assert one == keys_of(from_function(scaled(1.0), 5))  # the number of samples is no key
    assert [c.path for c in compare(one, keys_of(from_function(scaled(2.0), 3))).changes] == [
        "function.bound.gain"
    ]
    other = keys_of(from_function(lambda i: 1.0 * i, 3))
    assert not compare(one, other)


def test_invalidation_keys_enter_by_content(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"1")
    table, module = np.arange(3.0), torch.nn.Linear(2, 2)

    def keys() -> Keys:
        given = {"table": table, "file": file, "module": module, "rate": 3}
        return keys_of(from_function(lambda i: float(i), 3, invalidation_keys=given))

    first = keys()
    assert keys() == first
    file.write_bytes(b"2")
    table[1] = 7
    torch.nn.init.zeros_(module.bias)
    assert [c.path for c in compare(first, keys()).changes] == [
        "file.sha256",
        "module.parameters.bias.sha256",
        "table.sha256",
    ]


def test_function_that_cannot_be_seen_needs_keys_that_vouch_for_it() -> None:
    lock = threading.Lock()

    def guarded(index: int) -> float:
        with lock:
            return float(index)

    unreadable = eval("lambda i: float(i)")
    for fn in (guarded, unreadable):
        with pytest.raises(KeysError, match="or pass invalidation_keys=") as caught:
            from_function(fn, 3)
        assert "\n" not in str(caught.value)
        one = keys_of(from_function(fn, 3, invalidation_keys={"version": 1}))
        assert [
            c.path
            for c in compare(one, keys_of(from_function(fn, 3, invalidation_keys={"version": 2}))).changes
        ] == ["version"]


def test_offending_key_is_refused_even_where_the_function_is_seen() -> None:
    with pytest.raises(KeysError, match=r"^rate: nan"):
        keys_of(from_function(lambda i: i, 3, invalidation_keys={"rate": float("nan")}))


def test_a_key_named_function_does_not_hide_the_function() -> None:
    with pytest.raises(KeysError, match="'function'"):
        from_function(lambda i: i, 3, invalidation_keys={"function": 1})


def test_call_logs_do_not_make_a_function_stale(tmp_path: Path) -> None:
    calls: list[int] = []

    def logged(index: int) -> float:
        calls.append(index)
        return float(index)

    baked(tmp_path, from_function(logged, 3)).close()
    assert re.fullmatch(r"0+12", "".join(map(str, calls)))
    before = list(calls)
    baked(tmp_path, from_function(logged, 3, schema={"value": Field((), "f8", ())})).close()
    assert calls == before
