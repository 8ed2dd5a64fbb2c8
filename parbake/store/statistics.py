"""Statistics of a field, computed a chunk at a time and merged in order. Pure.

A partial is float64 [row, column]: rows as in ROWS, column 0 for the whole field, then one per channel.
Merging by Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS = ("count", "nonfinite", "min", "max", "mean", "m2")  # of finite values; m2: squared deviations
_COUNT, _NONFINITE, _MIN, _MAX, _MEAN, _M2 = range(len(ROWS))
_ROW = 8_192
_BLOCK = 8 * _ROW  # elements: float64 copies that stay in the second-level cache
_SHORT_ROW = 512  # elements: few enough for sums in float32: relative errors below 2e-6, usually 1e-9
_KEPT = 0.1  # of a sum of squares that must be left of it less the mean's part, for float32 to do
_own = threading.local()


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
    """One column, in plain floats and few calls: each takes the interpreter's lock away from an encoder."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    nonfinite = 0
    if not (math.isfinite(low) and math.isfinite(high)):
        finite = values[np.isfinite(values)]
        nonfinite, values = len(values) - len(finite), finite
    if len(values) == 0:
        return np.array([0, nonfinite, np.inf, -np.inf, 0, 0], np.float64)
    if nonfinite:
        low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):  # nothing that is squared here would be finite
        return np.array([len(values), nonfinite, low, high, (values / len(values)).sum(), np.inf], np.float64)
    if (sums := _float32_sums(values, max(-low, high))) is not None:
        total, squares = sums
        mean = total / len(values)
        if (m2 := squares - total * mean) >= _KEPT * squares:
            return np.array([len(values), nonfinite, low, high, mean, m2], np.float64)
    # deviations from a value of about the right size, so that squares far from zero stay exact
    origin = 0.0 if max(-low, high) <= 1e3 * (high - low) else float(values[0])
    mean, m2, count = origin, 0.0, 0
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        deviation = _scratch()[: len(block)]
        np.copyto(deviation, block)
        if origin:
            np.subtract(deviation, origin, out=deviation)
        offset = float(np.add.reduce(deviation)) / len(block)
        delta, total = origin + offset - mean, count + len(block)
        m2 += max(_sum_of_squares(deviation) - len(block) * offset * offset, 0.0)
        m2 += delta * delta * count * len(block) / total
        mean += delta * len(block) / total
        count = total
    return np.array([count, nonfinite, low, high, mean, m2], np.float64)


def _float32_sums(values: NDArray[Any], largest: float) -> tuple[float, float] | None:
    """Sum and sum of squares of float32 values, without a copy of them; None where that would not do.

    Short rows are summed in float32 and the rows in float64: half the time of a float64 copy.
    """
    if values.dtype != np.dtype("=f4") or len(values) < _ROW or not 1e-12 < largest < 1e15:
        return None
    whole = len(values) // _SHORT_ROW * _SHORT_ROW
    rows, rest = values[:whole].reshape(-1, _SHORT_ROW), values[whole:].astype(np.float64)
    total = np.add.reduce(np.vecdot(rows, np.ones(_SHORT_ROW, np.float32)), dtype=np.float64)
    squares = np.add.reduce(np.vecdot(rows, rows), dtype=np.float64)
    return float(total) + float(rest.sum()), float(squares) + float(np.vecdot(rest, rest))


def _scratch() -> NDArray[np.float64]:
    """This thread's own: a fresh array would cost more in page faults than all that is done with it."""
    if not hasattr(_own, "scratch"):
        _own.scratch = np.empty(_BLOCK)
    found: NDArray[np.float64] = _own.scratch
    return found


def _sum_of_squares(values: NDArray[np.float64]) -> float:
    whole = len(values) // _ROW * _ROW
    rows = values[:whole].reshape(-1, _ROW)  # longer ones would start threads of the BLAS library's own
    return float(np.vecdot(rows, rows).sum()) + float(np.vecdot(values[whole:], values[whole:]))


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


def partial_of_summary(said: Mapping[str, Any] | None, elements: int, columns: int) -> NDArray[np.float64]:
    """The partial that ``summary`` told of, of ``elements`` values in all."""
    partial = empty(columns)
    shares = [elements, *[elements // max(columns - 1, 1)] * (columns - 1)]
    partial[_NONFINITE] = shares
    if said is None:
        return partial
    of_channels = said.get("channels", {})
    for name, row in (("count", _COUNT), ("min", _MIN), ("max", _MAX), ("mean", _MEAN), ("std", _M2)):
        values = [said[name], *of_channels.get(name, ())]
        for column, value in enumerate(values):
            if value is not None:
                partial[row, column] = value
            elif partial[_COUNT, column] and name in ("mean", "std"):
                partial[row, column] = np.inf  # the sums overflowed
    partial[_NONFINITE] -= partial[_COUNT]
    partial[_M2] = partial[_M2] ** 2 * partial[_COUNT]
    return partial


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
