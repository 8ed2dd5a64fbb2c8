"""Statistics against NumPy's, in float64 and at once."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parbake.store import statistics
from parbake.store.statistics import columns_of, empty, merged, partial_of, partial_of_summary, summary

DTYPES = ("<f8", "<f4", "<f2", ">f4", ">i2", "<i2", "<i8", "|u1", "|i1", "<u8", "|b1")


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings(action="error"):
        yield


def elements(dtype: str) -> st.SearchStrategy[Any]:
    """What a dtype holds, floats to 1e6 and now and then NaN or infinite."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        width = 8 * kind.itemsize
        limit = 60_000.0 if width == 16 else 1e6
        usual = st.floats(-limit, limit, width=width)  # type: ignore[arg-type]
        return usual | st.sampled_from([np.nan, np.inf, -np.inf]) if width else usual
    return hnp.from_dtype(kind)


samples = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        st.tuples(st.integers(0, 9), st.integers(1, 5), st.integers(1, 3)),
        elements=elements(dtype),
    )
)


def reference(values: NDArray[Any]) -> dict[str, Any]:
    """The numbers of one column by NumPy."""
    wide = values.reshape(-1).astype(np.float64)
    finite = wide[np.isfinite(wide)]
    found: dict[str, Any] = {"count": len(finite), "nonfinite": len(wide) - len(finite)}
    if len(finite) == 0:
        return found | dict.fromkeys(("min", "max", "mean", "std"))
    scale = max(np.abs(finite).max(), 1e-300)
    return found | {
        "min": finite.min(),
        "max": finite.max(),
        "mean": pytest.approx(finite.mean(), rel=1e-12, abs=1e-12 * scale),
        "std": pytest.approx(finite.std(), rel=1e-9, abs=1e-9 * scale),
    }


def check(partial: NDArray[np.float64], values: NDArray[Any], channel_axis: int | None) -> None:
    """That a partial says what NumPy says of ``values`` [k, *shape]."""
    found = summary(partial)
    whole = reference(values)
    if whole["count"] == 0:
        assert found is None
        return
    assert found is not None
    assert {name: found[name] for name in whole} == whole
    assert ("channels" in found) == (channel_axis is not None)
    if channel_axis is not None:
        for channel in range(values.shape[1 + channel_axis]):
            column = {name: found["channels"][name][channel] for name in whole}
            assert column == reference(values.take(channel, axis=1 + channel_axis))


@settings(deadline=None)
@given(samples, st.sampled_from([None, 0, 1]))
def test_a_partial_is_what_numpy_finds(values: NDArray[Any], channel_axis: int | None) -> None:
    partial = partial_of(values, channel_axis)
    assert partial.shape == (len(statistics.ROWS), columns_of(values.shape[1:], channel_axis))
    check(partial, values, channel_axis)


@settings(deadline=None)
@given(samples, st.sampled_from([None, 0, 1]), st.lists(st.integers(0, 9), max_size=4))
def test_merging_parts_gives_the_whole(
    values: NDArray[Any], channel_axis: int | None, cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]  # some parts are empty
    parts = [values[low:high] for low, high in itertools.pairwise(edges)]
    columns = columns_of(values.shape[1:], channel_axis)
    check(merged((partial_of(part, channel_axis) for part in parts), columns), values, channel_axis)


@settings(deadline=None)
@given(samples)
def test_empty_partials_change_no_bit(values: NDArray[Any]) -> None:
    partial = partial_of(values, 1)
    columns = partial.shape[1]
    around = merged([empty(columns), partial, empty(columns)], columns)
    assert around.tobytes() == merged([partial], columns).tobytes()


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e8, -1e12])
@pytest.mark.parametrize("parts", [1, 7, 1000])
def test_noise_on_a_huge_offset_keeps_its_deviation(offset: float, parts: int) -> None:
    noise = np.random.default_rng(1).normal(size=(50_000, 1, 2))
    values = offset + noise  # 50,000 per channel: several blocks within one part
    pieces = np.array_split(values, parts)
    found = summary(merged((partial_of(piece, 1) for piece in pieces), 3))
    assert found is not None
    tolerance = 1e-12 + 1e-17 * abs(offset)  # sums of squares would keep no digit at 1e8
    for channel in range(2):
        column = values[:, 0, channel] - offset  # exact: what the offset left of the noise
        assert found["channels"]["mean"][channel] - offset == pytest.approx(
            column.mean(), abs=4e-15 * abs(offset) + 1e-12
        )
        assert found["channels"]["std"][channel] == pytest.approx(column.std(), rel=tolerance)
    assert found["std"] == pytest.approx((values - offset).std(), rel=tolerance)


@pytest.mark.parametrize("count", [8_192, 20_001])
@pytest.mark.parametrize(
    "kind", ["noise", "tone", "offset", "outlier", "two values", "tiny", "huge", "constant", "one-sided"]
)
def test_float32_sums_are_as_good_as_float64_ones(kind: str, count: int) -> None:
    noise = np.random.default_rng(3).normal(size=count)
    values = {
        "noise": noise,
        "tone": np.sin(np.arange(count) / 7),
        "offset": 1e4 + noise,
        "outlier": np.where(np.arange(count) == 5, 0.0, 1 + 1e-5 * noise),
        "two values": np.where(noise > 0, 0.1, 0.0),
        "tiny": 1e-30 * noise,
        "huge": 1e30 * noise,
        "constant": np.full(count, 0.1),
        "one-sided": np.abs(noise),
    }[kind].astype(np.float32)
    wide = values.astype(np.float64)
    found = summary(partial_of(values.reshape(-1, 1), None))
    assert found is not None
    rms = np.sqrt((wide**2).mean())
    assert found["mean"] == pytest.approx(wide.mean(), abs=1e-7 * rms)
    assert found["std"] == pytest.approx(wide.std(), rel=1e-6, abs=1e-12 * rms)


def test_blocks_of_one_array_count_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, (103, 5))
    values[17] = np.nan  # a block without any finite value
    values[40, 2], values[41, 0] = np.inf, -np.inf
    monkeypatch.setattr(statistics, "_BLOCK", 5)
    check(partial_of(values, None), values, None)
    found = summary(partial_of(values, None))
    assert found is not None
    assert found["nonfinite"] == 7


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_extremes_of_a_dtype_are_kept(dtype: str) -> None:
    limits = np.finfo(dtype)
    values = np.array([limits.max, limits.min, limits.smallest_subnormal, -0.0], dtype).reshape(4, 1)
    halves = [partial_of(values[:2], None), partial_of(values[2:], None)]
    found = summary(merged(halves, 1))
    assert found is not None
    assert (found["min"], found["max"], found["count"]) == (float(limits.min), float(limits.max), 4)
    assert found["mean"] == pytest.approx(0, abs=1e-7)
    assert (found["std"] is None) == (dtype == "f8")  # its square overflows


def test_a_mean_that_overflows_is_unknown_not_wrong() -> None:
    huge = np.full((3, 2), np.finfo("f8").max)
    found = summary(merged([partial_of(huge, None), partial_of(-huge, None)], 1))
    assert found is not None
    assert found["mean"] is None
    assert found["std"] is None
    assert found["count"] == 12


def test_large_integers_as_near_as_float64_is() -> None:
    values = np.array([[np.iinfo("i8").max], [np.iinfo("i8").min], [5]], "i8")
    found = summary(partial_of(values, None))
    assert found is not None
    assert found["max"] == float(np.iinfo("i8").max)
    assert found["mean"] == pytest.approx(0, abs=2**12)


def test_bools_count_as_zero_and_one() -> None:
    values = np.array([[True, False, True], [True, True, True]])
    found = summary(partial_of(values, None))
    assert found == {
        "count": 6,
        "nonfinite": 0,
        "min": 0.0,
        "max": 1.0,
        "mean": pytest.approx(5 / 6),
        "std": pytest.approx(values.std()),
    }


@pytest.mark.parametrize("shape", [(2, 3), (0, 3)])
def test_complex_values_and_none_at_all_have_no_summary(shape: tuple[int, ...]) -> None:
    assert summary(partial_of(np.ones(shape, "c8"), None)) is None
    assert summary(partial_of(np.ones(shape, "c16"), 0)) is None
    assert summary(partial_of(np.ones((0, 3)), None)) is None
    assert summary(partial_of(np.full((2, 3), np.nan), 0)) is None


def test_a_channel_without_finite_values_says_so() -> None:
    values = np.array([[[1.0, np.nan], [3.0, np.inf]]])
    found = summary(partial_of(values, 1))
    assert found is not None
    assert found["channels"]["mean"] == [2.0, None]
    assert found["channels"]["count"] == [2, 0]
    assert found["channels"]["nonfinite"] == [0, 2]
    assert (found["count"], found["nonfinite"]) == (2, 2)


def test_the_samples_are_left_as_they_were() -> None:
    values = np.arange(12.0).reshape(3, 2, 2)
    kept = values.copy()
    partial_of(values, 1)
    partial_of(values, None)
    assert values.tobytes() == kept.tobytes()


@settings(max_examples=60, deadline=None)
@given(samples, st.sampled_from([None, 0, 1]), st.integers(0, 9))
def test_summaries_merge_as_what_they_sum_up(values: NDArray[Any], axis: int | None, cut: int) -> None:
    parts = [part for part in (values[:cut], values[cut:]) if len(part)]
    columns = columns_of(values.shape[1:], axis)
    partials = [partial_of_summary(summary(partial_of(part, axis)), part.size, columns) for part in parts]
    check(merged(partials, columns), values, axis)


def test_a_summary_of_sums_that_overflowed_merges_to_one() -> None:
    huge = partial_of(np.array([[1e308], [-1e308], [1e308]]), None)
    said = summary(huge)
    assert said is not None
    assert said["std"] is None
    small = partial_of(np.ones((2, 1)), None)
    both = summary(merged([partial_of_summary(said, 3, 1), small], 1))
    assert both == summary(merged([huge, small], 1))
