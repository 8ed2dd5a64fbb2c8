"""One batch as a loader gives it: read, transformed and collated as torch would, but into a slot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import collate, collate_tensor_fn, default_collate_fn_map

from parbake.loaders.epochs import Numbers
from parbake.loaders.samples import plain_rows
from parbake.loaders.slots import Allocator, Arena, Place, Slots, aligned, private_empty

if TYPE_CHECKING:  # which imports this module
    from parbake.loaders.dataset import StoreDataset

# Room for what transforms make of a batch: float64 of bytes. Pages that are not used cost nothing.
_GROWTH = 8


def read_batch(dataset: StoreDataset, numbers: Numbers, draw: int, read: Allocator, out: Arena | None) -> Any:
    """What torch's default collation gives for samples ``numbers``.

    ``draw``: the seed of what is random in reading them. ``read`` makes the tensors that are read into.
    Samples that were transformed one by one are put together in ``out``, where there is one.
    """
    tensors = dataset._batch(numbers, read, draw, dataset.threads or 1)  # the loop has the other cores
    if dataset.transform is not None:
        return _collated([dataset.transform(sample) for sample in plain_rows(tensors)], out)
    return tensors if isinstance(tensors, dict) else list(tensors)  # torch collates tuples to a list


def read_leased(dataset: StoreDataset, numbers: Numbers, draw: int, slots: Slots) -> Any:
    """A batch read in this process, into one of ``slots`` unless all are in use, which is said once."""
    arena = slots.leased()
    if arena is None:
        slots.tell_dry()
    return read_batch(dataset, numbers, draw, arena.empty if arena else private_empty, arena)


def is_transformed(dataset: StoreDataset) -> bool:
    return dataset.transform is not None or dataset.batch_transform is not None


def read_nbytes(dataset: StoreDataset, batch_size: int) -> int:
    """Room for what a batch is read into."""
    return sum(aligned(math.prod(shape) * dtype.itemsize) for shape, dtype in dataset._forms(batch_size))


def batch_nbytes(dataset: StoreDataset, batch_size: int) -> int:
    """Room for a batch as it leaves the loader; a guess where there are transforms."""
    return read_nbytes(dataset, batch_size) * (_GROWTH if is_transformed(dataset) else 1)


def _collated(samples: list[Any], out: Arena | None) -> Any:
    if out is None:
        return default_collate(samples)

    def stacked(tensors: Sequence[Tensor], *, collate_fn_map: Any = None) -> Tensor:
        form = {(tensor.shape, tensor.dtype) for tensor in tensors}
        if len(form) == 1 and all(map(_is_plain, tensors)):
            place = out.place((len(tensors), *tensors[0].shape), tensors[0].dtype)
            if place is not None:
                return torch.stack(list(tensors), out=out.tensor(place))
        ordinary: Tensor = collate_tensor_fn(tensors, collate_fn_map=collate_fn_map)
        return ordinary

    return collate(samples, collate_fn_map={**default_collate_fn_map, Tensor: stacked})


def _is_plain(tensor: Tensor) -> bool:
    """Whether its bytes are all that there is to a tensor."""
    return (
        type(tensor) is Tensor
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    )


def packed(value: Any, arena: Arena) -> Any:
    """``value`` with a Place for each tensor, in dicts, lists and tuples, that lies in the slot or fits."""

    def place(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor) or not _is_plain(tensor):
            return tensor
        if tensor.is_contiguous() and (found := arena.found(tensor)) is not None:
            return found
        room = arena.place(tuple(tensor.shape), tensor.dtype)
        if room is None:
            return tensor
        arena.tensor(room).copy_(tensor)
        return room

    return mapped(value, place)


def unpacked(value: Any, arena: Arena) -> Any:
    """``value`` as it was before ``packed``, in this process."""
    return mapped(value, lambda leaf: arena.tensor(leaf) if isinstance(leaf, Place) else leaf)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if type(value) is dict:
        return {key: mapped(inner, change) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)([mapped(inner, change) for inner in value])
    return change(value)
