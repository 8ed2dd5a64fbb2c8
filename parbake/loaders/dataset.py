"""A store as a map-style torch Dataset that reads whole batches at once."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from parbake.errors import RecipeError, StaleStoreError
from parbake.loaders.crop import crop_of
from parbake.loaders.machine import cores
from parbake.loaders.order import checked_integer
from parbake.loaders.samples import Tensors, owned, plain_rows, split
from parbake.loaders.slots import Allocator, private_empty, shared_empty
from parbake.store.concatenated import Part, concatenated
from parbake.store.index import normalised_index
from parbake.store.keys import Producer
from parbake.store.samples import Samples
from parbake.store.store import open_store

if TYPE_CHECKING:
    from parbake.loaders.shared_loader import SharedLoader

INDEX = "index"  # the key of a sample's number in the store


class StoreDataset(Dataset[Any]):
    """The samples of a store as ``{field: tensor}``, or as tuples in the order of ``fields``.

    ``store``: an open store, the path of one, or a list of these, whose samples then come one after the
    other (see ``concatenated``); all that it shows is in the dataset. ``fields``: names, default all.
    ``crop``: ``{dimension: length}``, another random window of each sample whenever it is read, the same in
    all fields that have the dimension, or ``{dimension: slice}``, the same part of every sample; of raw
    fields only these bytes are read. Windows of a DataLoader are drawn from torch's random numbers, those of
    ``loader`` and ``BatchLoader`` are determined by their seed, the epoch and the sample. ``threads``: that
    read one batch together; default as many as there are cores, one in worker processes and BatchLoader.
    ``transform``: called with each sample. ``batch_transform``: called with a whole batch,
    ``{field: tensor [batch, *shape]}`` or a tuple of such tensors, before it is cut into samples; must
    keep axis 0. With both, ``batch_transform`` comes first. ``with_index``: adds the sample's number in
    the store, int64, as ``"index"`` or last in the tuple; transforms see it. ``expect``: the producer
    that should have baked the store.

    Tensors are writable, in native byte order and share memory with no other batch. Reading is lazy; a
    dataset can be pickled and used after a fork. ``torch.utils.data.DataLoader`` reads each batch in one
    go, into memory shared with its consumer in worker processes, and the default collation takes it
    without a copy; until a collation function returns, batch and samples then share their memory.

    Raises RecipeError, StaleStoreError and all that ``open_store`` raises.
    """

    def __init__(
        self,
        store: Part | Sequence[Part],
        fields: Iterable[str] | str | None = None,
        *,
        as_tuple: bool = False,
        crop: Mapping[str, int | slice] | None = None,
        threads: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        batch_transform: Callable[[Any], Any] | None = None,
        with_index: bool = False,
        expect: Producer | None = None,
    ) -> None:
        names = (fields,) if isinstance(fields, str) else None if fields is None else tuple(fields)
        self.store = _opened(store, names, expect)
        self.fields = _chosen(self.store, names)
        self.as_tuple = as_tuple
        self.threads = None if threads is None else checked_integer("threads", threads, 1, None)
        self._crop = crop_of(self.store, self.fields, crop)
        for name, function in (("transform", transform), ("batch_transform", batch_transform)):
            if function is not None and not callable(function):
                raise RecipeError(f"{name}={function!r} is no function")
        self.transform = transform
        self.batch_transform = batch_transform
        self.with_index = with_index
        self.shapes = {name: self._crop.shape(name, self.store.fields[name].shape) for name in self.fields}
        self._dtypes = {name: _torch_dtype(self.store, name) for name in self.fields}
        if with_index and not as_tuple and INDEX in self.fields:
            raise RecipeError(
                f"{self.store.path}: with_index=True would hide the field {INDEX!r}; use as_tuple=True"
            )

    def __len__(self) -> int:
        return self.store.samples

    def __getitem__(self, index: int) -> Any:
        """One sample; negative numbers count from the end. Raises IndexError, TypeError."""
        try:
            number = operator.index(index)
        except TypeError:
            raise TypeError(
                f"{self.store.path}: a dataset is indexed by one integer, not by {type(index).__name__}; "
                "many samples at once come from .store.read, parts of a dataset from torch's Subset"
            ) from None
        numbers = normalised_index([number], len(self))
        [sample] = plain_rows(self._batch(numbers, private_empty, self._draw(), self._threads()))
        return sample if self.transform is None else self.transform(sample)

    def __getitems__(self, indices: Sequence[int] | NDArray[Any] | Tensor) -> list[Any]:
        """One sample per index, all read together. Raises IndexError, TypeError."""
        listed = indices.tolist() if isinstance(indices, Tensor | np.ndarray) else indices
        numbers = normalised_index([operator.index(i) for i in listed], len(self))
        if not len(numbers):
            return []
        untransformed = self.transform is None and self.batch_transform is None
        # What a worker sends must lie in shared memory: reading it there saves the copy.
        sent = untransformed and get_worker_info() is not None
        empty = shared_empty if sent else private_empty
        batch = self._batch(numbers, empty, self._draw(), self._threads())
        if self.transform is None:
            return [*split(batch)]
        return [self.transform(sample) for sample in plain_rows(batch)]

    def loader(
        self,
        batch_size: int,
        shuffle: bool = False,
        *,
        sampler: Iterable[int] | None = None,
        num_workers: int = 2,
        drop_last: bool = False,
        seed: int = 0,
        prefetch_factor: int = 2,
        persistent_workers: bool = True,
        multiprocessing_context: str | BaseContext | None = None,
        worker_init_fn: Callable[[int], None] | None = None,
        timeout: float = 0,
    ) -> SharedLoader:
        """Batches as ``DataLoader(self, batch_size, ...)`` gives them, but faster: see SharedLoader."""
        from parbake.loaders.epochs import Epochs
        from parbake.loaders.shared_loader import SharedLoader, Workers

        workers = Workers(
            num_workers, prefetch_factor, persistent_workers, multiprocessing_context, worker_init_fn, timeout
        )
        order = Epochs(self, batch_size, shuffle=shuffle, sampler=sampler, drop_last=drop_last, seed=seed)
        return SharedLoader(self, order, workers)

    def _batch(self, numbers: NDArray[np.int64], empty: Allocator, draw: int, threads: int) -> Tensors:
        """Samples ``numbers``, each tensor [len(numbers), *shape], after the batch transform.

        ``empty`` makes the tensors that are read into; ``draw`` determines where random windows lie.
        """
        values = [empty(shape, dtype) for shape, dtype in self._forms(len(numbers))]
        arrays = {name: tensor.numpy() for name, tensor in zip(self.fields, values, strict=False)}
        windows = self._crop.windows(numbers, draw)
        self.store.read(numbers, self.fields, arrays, windows=windows, threads=threads)
        if self.with_index:
            values[-1].copy_(torch.from_numpy(numbers))
        names = [*self.fields, INDEX] if self.with_index else self.fields
        tensors: Tensors = tuple(values) if self.as_tuple else dict(zip(names, values, strict=True))
        if self.batch_transform is None:
            return tensors
        given = dict(tensors) if isinstance(tensors, dict) else tensors  # the transform may change its dict
        return owned(_checked(self.batch_transform(tensors), len(numbers)), given)

    def _forms(self, samples: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """What a batch of ``samples`` is read into: a tensor for each field and one for their numbers."""
        forms = [((samples, *self.shapes[name]), dtype) for name, dtype in self._dtypes.items()]
        return [*forms, ((samples,), torch.int64)] if self.with_index else forms

    def _draw(self) -> int:
        """A number from torch's generator, which DataLoader seeds in each worker and epoch."""
        return int(torch.randint(2**62, ())) if self._crop.start is None else 0

    def _threads(self) -> int:
        """As many as help where nothing else runs: while the loop waits."""
        if self.threads is not None:
            return self.threads
        return 1 if get_worker_info() is not None else cores()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {shape} {dtype}" for name, shape, dtype in self._shown())
        said = "; ".join([f"{len(self)} samples", fields, *self._said()])
        return f"<parbake.StoreDataset {str(self.store.path)!r}: {said}>"

    def _repr_html_(self) -> str:
        """For notebooks: a table of the tensors of a sample."""
        from parbake.browse.verdicts import dataset_html

        return dataset_html(str(self.store.path), [f"{len(self):,} samples", *self._said()], self._shown())

    def _shown(self) -> list[tuple[str, str, str]]:
        """Name, shape and dtype of each tensor of a sample, in their order."""
        dtypes = {name: str(dtype).removeprefix("torch.") for name, dtype in self._dtypes.items()}
        shown = [(name, str(list(self.shapes[name])), dtype) for name, dtype in dtypes.items()]
        return [*shown, (INDEX, "[]", "int64")] if self.with_index else shown

    def _said(self) -> list[str]:
        """What else was chosen: the form of a sample, a part of it, what is done with it."""
        said = ["as tuples in this order"] if self.as_tuple else []
        if self._crop.axes:
            name, axis = next(iter(self._crop.axes.items()))
            start, length = self._crop.start, self._crop.length
            where = "anywhere" if start is None else f"from {start:,} on"
            dim = self.store.fields[name].dims[axis]
            said.append(f"cropped to {length:,} of {self._crop.size:,} along {dim}, {where}")
        for what, function in (("transform", self.transform), ("batch_transform", self.batch_transform)):
            if function is not None:
                said.append(f"{what} {getattr(function, '__qualname__', type(function).__name__)}")
        return said


def _opened(store: Part | Sequence[Part], names: Sequence[str] | None, expect: Producer | None) -> Samples:
    if isinstance(store, str | os.PathLike):
        return open_store(store, expect=expect)
    if isinstance(store, list | tuple):
        store = concatenated(store, names)
    if not isinstance(store, Samples):
        raise RecipeError(
            f"StoreDataset takes an open store or a path, not {type(store).__name__}; several as a list"
        )
    if expect is None:
        return store
    freshness = store.freshness(expect)
    if not freshness:
        raise StaleStoreError(f"{store.path}: stale: {freshness}; bake it again", freshness.changes)
    return store.first(min(len(expect), store.samples))


def _chosen(store: Samples, fields: Sequence[str] | None) -> tuple[str, ...]:
    names = store.chosen(fields)
    if not names:
        raise RecipeError(f"{store.path}: no fields chosen; there are {', '.join(store.fields)}")
    if len(set(names)) != len(names):
        raise RecipeError(f"{store.path}: fields {', '.join(names)} name one twice")
    return names


def _torch_dtype(store: Samples, field: str) -> torch.dtype:
    dtype = store.fields[field].dtype.newbyteorder("=")
    try:
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError:
        raise RecipeError(
            f"{store.path}: field {field!r}: torch has no dtype for {dtype}; choose other fields"
        ) from None


def _checked(result: Any, samples: int) -> Tensors:
    """What a batch transform returned, if it can be cut into samples. Raises RecipeError."""
    if not isinstance(result, Mapping | tuple | list):
        raise RecipeError(
            f"batch_transform: must return a dict or tuple of tensors, returned {type(result).__name__}"
        )
    checked: Tensors = dict(result) if isinstance(result, Mapping) else tuple(result)
    items = checked.items() if isinstance(checked, dict) else enumerate(checked)
    if not checked:
        raise RecipeError("batch_transform: returned no tensors")
    for key, value in items:
        if not isinstance(value, Tensor):
            raise RecipeError(f"batch_transform: {key!r} is {type(value).__name__}, not a tensor")
        if value.ndim == 0 or len(value) != samples:
            raise RecipeError(
                f"batch_transform: {key!r} has shape {tuple(value.shape)}, but axis 0 must keep "
                f"the {samples} samples of the batch"
            )
    return checked
