"""What a network gives: named, brought to its stored dtype, marked where the inputs failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from parbake.errors import ProducerError
from parbake.producers.batches import to_host


def moved(value: Any, device: str) -> Any:
    """``value`` with all tensors in it on ``device``."""
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(item, device) for name, item in value.items()}
    return type(value)(moved(item, device) for item in value) if type(value) in (list, tuple) else value


def copied(value: Any) -> Any:
    """``value`` with copies of all tensors in it: many networks write into what they are given."""
    if hasattr(value, "clone"):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {name: copied(item) for name, item in value.items()}
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value


def named_outputs(output: Any, names: Sequence[str]) -> dict[str, Any]:
    if isinstance(output, Mapping):
        if missing := [name for name in names if name not in output]:
            raise ProducerError(f"teacher: no output {missing[0]!r}; the network gives {', '.join(output)}")
        return {str(name): output[name] for name in names or output}
    several = isinstance(output, tuple)
    parts = output if several else (output,)
    if names and len(names) != len(parts):
        raise ProducerError(
            f"teacher: outputs: {len(names)} names ({', '.join(names)}) where the network gives {len(parts)}"
        )
    default = [f"y{i}" for i in range(len(parts))] if several else ["y"]
    return dict(zip(names or default, parts, strict=True))


def converted_to(value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """``value`` in its stored dtype, on its device. Raises ProducerError where that has no room for it."""
    if not hasattr(value, "is_cuda"):
        import torch

        array = to_host(value, "teacher", name)[0]
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        value = torch.from_numpy(np.ascontiguousarray(native))
    import torch

    wanted = getattr(torch, dtype.name)
    if value.dtype == wanted:
        return value
    if value.is_complex() and not wanted.is_complex:
        raise ProducerError(
            f"teacher: field {name!r} is complex, and {dtype.name} would cut its imaginary part; store "
            "complex64, or take .abs() or .real in post="
        )
    converted = value.to(wanted)
    if wanted.is_floating_point or wanted.is_complex:
        inexact = value.is_floating_point() or value.is_complex()
        if inexact and torch.finfo(wanted).max >= torch.finfo(value.dtype).max:
            return converted
        lost = torch.isinf(converted) & ~torch.isinf(value)
    else:
        lost = (converted.to(value.dtype) != value) | (_below_zero(converted) != _below_zero(value))
    if bool(lost.any()):
        raise ProducerError(
            f"teacher: field {name!r}: {value[lost][0].item():g} has no place in {dtype.name}; store it wider"
        )
    return converted


def _below_zero(value: Any) -> Any:
    return value < 0 if value.dtype.is_signed else value != value  # torch compares no uint16


def masked(value: Any, start: int, failed: Iterable[int], name: str, allow_nan: bool) -> Any:
    """``value`` with NaN (or 0) where the inputs failed; NaN elsewhere is refused unless it is allowed."""
    import torch

    rows = torch.tensor([index - start for index in failed], dtype=torch.int64, device=value.device)
    if value.is_floating_point() or value.is_complex():
        bad = torch.isnan(value).reshape(len(value), -1).any(dim=1)
        bad[rows] = False
        if bool(bad.any()) and not allow_nan:
            raise ProducerError(f"teacher: field {name!r} has NaN in sample {start + int(bad.nonzero()[0])}")
    value = value.clone()
    for row in rows.tolist():  # one by one: torch writes no list of them into uint16
        value[row] = torch.nan if value.is_floating_point() or value.is_complex() else 0
    return value
