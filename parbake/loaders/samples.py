"""Samples that remember the batch they were read in, so that torch's default collation need not copy it.

``split`` cuts a batch into samples; what torch's ``default_collate`` gives for them equals, in type and
value, what it gives for plain dicts or tuples of tensors. It takes the batch as it is only where that
cannot be told from a copy: all samples, in order, nothing exchanged or reshaped, nobody else holding one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from operator import attrgetter, is_, itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data._utils.collate import collate, collate_tensor_fn, default_collate_fn_map

from parbake.errors import ParbakeError

Tensors: TypeAlias = dict[str, Tensor] | tuple[Tensor, ...]  # of one sample, or of a batch
CollateMap: TypeAlias = dict[type | tuple[type, ...], Callable[..., Any]]

# What getrefcount says of an object that one container holds, which differs between interpreters.
_HELD_ONCE = sum(map(sys.getrefcount, [object()]))


def _uses(tensor: Tensor) -> int:
    """How many tensors, NumPy arrays included, lie over the memory of ``tensor``; one more for the asking."""
    return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


def _values(tensors: Tensors) -> Collection[Tensor]:
    return tensors.values() if isinstance(tensors, dict) else tensors


_USED_ONCE = _uses(torch.empty(1))

_form = attrgetter("shape", "dtype", "requires_grad")


@dataclass(eq=False)
class _Batch:
    """The tensors that a list of samples was cut from, each [batch, *shape], and the rows of each."""

    tensors: Tensors
    rows: tuple[tuple[Tensor, ...], ...]
    uses: tuple[int, ...]  # of the memory of each tensor, by the batch itself
    handed_out: tuple[int, ...] | None = None  # versions of the tensors when collation took them

    def columns(self) -> Iterable[tuple[Any, Tensor, tuple[Tensor, ...], int]]:
        """Each column's key in a sample, its tensor, its rows and its uses."""
        keys = self.tensors if isinstance(self.tensors, dict) else range(len(self.tensors))
        return zip(keys, _values(self.tensors), self.rows, self.uses, strict=True)

    def versions(self) -> tuple[int, ...]:
        """Torch's counts of in-place changes, through a sample or the whole; none in inference mode."""
        return tuple(tensor._version for tensor in _values(self.tensors) if not tensor.is_inference())


class DictSample(dict[str, Any]):
    """One sample, a dict of tensors; copies and pickles as a plain dict."""

    _batch: _Batch | None = None

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ({name: _compact(value) for name, value in self.items()},)


class TupleSample(tuple[Any, ...]):
    """One sample, a tuple of tensors; copies and pickles as a plain tuple."""

    _batch: _Batch | None = None

    def __copy__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, ([_compact(value) for value in self],)


Sample: TypeAlias = DictSample | TupleSample


def plain_rows(tensors: Tensors) -> list[Any]:
    """A batch as plain dicts or tuples of its rows."""
    rows = zip(*(tensor.unbind(0) for tensor in _values(tensors)), strict=True)
    if isinstance(tensors, dict):
        return [dict(zip(tensors, row, strict=True)) for row in rows]
    return list(rows)


def split(tensors: Tensors) -> list[Sample]:
    """A batch, private to the caller and each tensor contiguous, as samples that carry it."""
    rows = tuple(tensor.unbind(0) for tensor in _values(tensors))
    batch = _Batch(tensors, rows, tuple(map(_uses, _values(tensors))))
    samples: list[Sample]
    if isinstance(tensors, dict):
        samples = [DictSample(zip(tensors, row, strict=True)) for row in zip(*batch.rows, strict=True)]
    else:
        samples = [TupleSample(row) for row in zip(*batch.rows, strict=True)]
    for sample in samples:
        sample._batch = batch
    return samples


def collate_samples(samples: Sequence[Sample], *, collate_fn_map: CollateMap) -> Any:
    """torch's collation of ``samples``; without a copy where they are one whole batch, untouched."""
    batch = samples[0]._batch
    if batch is not None and _is_whole(samples, batch, collate_fn_map):
        batch.handed_out = batch.versions()
        if isinstance(batch.tensors, dict):
            return {name: batch.tensors[name] for name in samples[0]}
        return list(batch.tensors)  # torch collates tuples to a list
    _refuse_changed(samples)
    first = dict(samples[0]) if isinstance(samples[0], dict) else tuple(samples[0])
    return collate([first, *samples[1:]], collate_fn_map=collate_fn_map)


def _is_whole(samples: Sequence[Sample], batch: _Batch, collate_fn_map: CollateMap) -> bool:
    """Whether ``samples`` are all of ``batch`` and may hand it on."""
    # Whoever else holds a sample, as a cache does, must not see changes made to the batch afterwards.
    # One reference more: torch's collate() has the first sample in a variable.
    if batch.handed_out is not None or sum(map(sys.getrefcount, samples)) > _HELD_ONCE * len(samples) + 1:
        return False
    if collate_fn_map.get(Tensor) is not collate_tensor_fn:
        return False  # somebody's own rule for tensors
    if set(map(type, samples)) != {type(samples[0])} or set(map(len, samples)) != {len(batch.tensors)}:
        return False
    return all(_is_column(samples, *column) for column in batch.columns())


def _is_column(
    samples: Sequence[Sample], key: Any, tensor: Tensor, rows: tuple[Tensor, ...], uses: int
) -> bool:
    """Whether the values at ``key`` are the rows of ``tensor``, in order, and look as they did.

    In-place operations (``unsqueeze_``, ``.data =``) change a row's place or form without a new object.
    """
    if len(samples) != len(rows) or sum(map(sys.getrefcount, rows)) > (_HELD_ONCE + 1) * len(rows):
        return False
    if _uses(tensor) > uses:  # a view of a row, an array over it
        return False
    try:
        values = list(map(itemgetter(key), samples))
    except KeyError:
        return False
    start, step = tensor.data_ptr(), tensor.stride(0) * tensor.itemsize
    return (
        all(map(is_, values, rows))
        and list(map(Tensor.data_ptr, rows)) == [start + step * i for i in range(len(rows))]
        and all(map(Tensor.is_contiguous, rows))
        and set(map(_form, rows)) == {(tensor.shape[1:], tensor.dtype, tensor.requires_grad)}
    )


def _refuse_changed(samples: Sequence[Any]) -> None:
    """Raise ParbakeError where a copy would no longer be of what was read."""
    for batch in {getattr(sample, "_batch", None) for sample in samples}:
        if batch is not None and batch.handed_out is not None and batch.handed_out != batch.versions():
            raise ParbakeError(
                "these samples were collated before and the batch, which shares their memory, was then "
                "changed in place; change a clone of it instead"
            )


def owned(result: Tensors, given: Tensors) -> Tensors:
    """``result``, made out of ``given``, as tensors that are contiguous and share memory with nothing.

    Copies what lies in another order, shares memory with another result, or is held by somebody else too.
    """
    seen = set[int]()
    own = {tensor.untyped_storage().data_ptr() for tensor in _values(given)}

    def private(tensor: Tensor, held_elsewhere: bool) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        shared = place in seen
        seen.add(place)
        foreign = place not in own and (held_elsewhere or _uses(tensor) > _USED_ONCE)
        if shared or foreign or not tensor.is_contiguous():
            return tensor.clone(memory_format=torch.contiguous_format)
        return tensor

    tensors = list(_values(result))
    held = [count > _HELD_ONCE + 1 for count in map(sys.getrefcount, tensors)]
    values = list(map(private, tensors, held))
    return dict(zip(result, values, strict=True)) if isinstance(result, dict) else tuple(values)


def _compact(value: Any) -> Any:
    """A tensor without the rest of its batch: plain pickles write all of the memory under a tensor."""
    if type(value) is not Tensor or value.layout is not torch.strided:
        return value
    if value.untyped_storage().nbytes() == value.nbytes:
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _reduce_shared(sample: Sample) -> tuple[Any, ...]:
    """Between processes tensors travel as handles of shared memory, one for the batch: no copy."""
    return (dict, (dict(sample),)) if isinstance(sample, dict) else (tuple, (list(sample),))


for _kind in (DictSample, TupleSample):
    default_collate_fn_map[_kind] = collate_samples
    ForkingPickler.register(_kind, _reduce_shared)
