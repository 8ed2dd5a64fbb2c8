"""Statistics of a field, computed a chunk at a time and merged in order. Pure.

A partial is float64 [row, column]: rows as in ROWS, column 0 for the whole field, then one per channel.
Merging by Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = ("count", "nonfinite", "min", "max", "mean", "m2")  # of finite values; m2: squared deviations
_COUNT, _NONFINITE, _MIN, _MAX, _MEAN, _M2 = range(len(ROWS))
_BLOCK = 16_384  # elements: float64 copies that stay in the second-level cache


def columns_of(shape: tuple[int, ...], channel_axis: int | None) -> int:
    """Number of columns: the whole field, and its channels where there are any."""
    return 1 + (shape[channel_axis] if channel_axis is not None else 0)


def empty(columns: int) -> NDArray[np.float64]:
    """The partial of no values."""
    partial = np.zeros((len(ROWS), columns))
    partial[_MIN], partial[_MAX] = np.inf, -np.inf
    return partial


def partial_of(samples: NDArray[Any], channel_axis: int | None) -> NDArray[np.float64]:
    """The partial of ``samples`` [k, *shape]; complex values give an empty one."""
    if samples.dtype.kind == "c":
        return empty(columns_of(samples.shape[1:], channel_axis))
    if channel_axis is None or samples.shape[1 + channel_axis] == 1:
        whole = _column(samples.reshape(-1))
        return np.stack([whole] * columns_of(samples.shape[1:], channel_axis), axis=1)
    by_channel = np.moveaxis(samples, 1 + channel_axis, 0)
    channels = np.stack([_column(np.ascontiguousarray(values).reshape(-1)) for values in by_channel], axis=1)
    whole = merged((channels[:, [i]] for i in range(channels.shape[1])), 1)
    return np.concatenate([whole, channels], axis=1)


@np.errstate(over="ignore", invalid="ignore")  # sums of huge values overflow; the summary then says None
def _column(values: NDArray[Any]) -> NDArray[np.float64]:
    """One column, in plain floats: arrays of six would cost more than the values themselves."""
    scratch = np.empty(min(_BLOCK, len(values)))
    count, nonfinite, low, high, mean, m2 = 0, 0, math.inf, -math.inf, 0.0, 0.0
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        wide = scratch[: len(block)]
        np.copyto(wide, block)
        block_low, block_high = float(wide.min()), float(wide.max())
        if not (math.isfinite(block_low) and math.isfinite(block_high)):
            wide = wide[np.isfinite(wide)]
            nonfinite += len(block) - len(wide)
            if len(wide) == 0:
                continue
            block_low, block_high = float(wide.min()), float(wide.max())
        block_mean = float(wide.mean())
        np.subtract(wide, block_mean, out=wide)
        delta, total = block_mean - mean, count + len(wide)
        mean += delta * len(wide) / total
        m2 += float(np.dot(wide, wide)) + delta * delta * count * len(wide) / total
        count, low, high = total, min(low, block_low), max(high, block_high)
    return np.array([count, nonfinite, low, high, mean, m2], np.float64)


@np.errstate(over="ignore", invalid="ignore")
def _merge(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    count = a[_COUNT] + b[_COUNT]
    safe = np.maximum(count, 1)
    delta = b[_MEAN] - a[_MEAN]
    return np.stack(
        [
            count,
            a[_NONFINITE] + b[_NONFINITE],
            np.minimum(a[_MIN], b[_MIN]),
            np.maximum(a[_MAX], b[_MAX]),
            a[_MEAN] + delta * (b[_COUNT] / safe),
            a[_M2] + b[_M2] + delta**2 * (a[_COUNT] * (b[_COUNT] / safe)),
        ]
    )


def merged(partials: Iterable[NDArray[np.float64]], columns: int) -> NDArray[np.float64]:
    """Partials merged in the order given."""
    total = empty(columns)
    for partial in partials:
        total = _merge(total, partial)
    return total


def summary(partial: NDArray[np.float64]) -> dict[str, Any] | None:
    """A partial as JSON: min, max, mean, std (population), count, nonfinite, and the same per channel.

    None where there is no finite value.
    """
    if not partial[_COUNT, 0]:
        return None
    columns = [_named(partial[:, i]) for i in range(partial.shape[1])]
    result: dict[str, Any] = dict(columns[0])
    if len(columns) > 1:
        result["channels"] = {name: [column[name] for column in columns[1:]] for name in columns[0]}
    return result


def _named(column: NDArray[np.float64]) -> dict[str, float | int | None]:
    count, nonfinite = int(column[_COUNT]), int(column[_NONFINITE])
    if not count:
        return {"min": None, "max": None, "mean": None, "std": None, "count": 0, "nonfinite": nonfinite}
    return {
        "min": float(column[_MIN]),
        "max": float(column[_MAX]),
        "mean": _finite(column[_MEAN]),
        "std": _finite(math.sqrt(column[_M2] / count)),
        "count": count,
        "nonfinite": nonfinite,
    }


def _finite(value: float) -> float | None:
    """None where the sums overflowed."""
    return float(value) if math.isfinite(value) else None
