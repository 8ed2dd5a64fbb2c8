"""One batch from a producer: computed, brought to the host, checked against the schema."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import ParbakeError, ProducerError, described
from parbake.store.document import StoredField
from parbake.store.keys import Producer


class _Turn:
    """A reentrant lock that a forked child need not wait for: a thread of the parent may have held it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._free)

    def _free(self) -> None:
        if self._lock.acquire(blocking=False):  # free, or of the thread that forked, which gives it back
            self._lock.release()
        else:
            self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


# held until a batch is copied: in one process produce() runs on one thread at a time, whatever executor
# the slabs are given to; reentrant: a producer may bake another
producing = _Turn()


@dataclass
class Batch:
    """A batch on its way from the device: host arrays [k, *shape] that count after all ``waits``."""

    arrays: dict[str, NDArray[Any]]
    waits: list[Callable[[], None]]
    device: str
    where: str
    start: int

    def checked(self, fields: Mapping[str, StoredField]) -> dict[str, NDArray[Any]]:
        """The arrays, complete and free of NaN where the field does not allow it. Raises ProducerError."""
        for wait in self.waits:
            wait()
        for name, array in self.arrays.items():
            if not fields[name].allow_nan and array.dtype.kind in "fc" and np.isnan(array.min()):
                bad = np.flatnonzero(np.isnan(array).reshape(len(array), -1).any(axis=1))
                raise ProducerError(
                    f"{self.where}: field {name!r} has NaN in {len(bad)} of them, first in sample "
                    f"{self.start + int(bad[0])}; mend the producer, or declare the field with allow_nan=True"
                )
        return self.arrays


def produce_batch(
    producer: Producer, fields: Mapping[str, StoredField], names: Sequence[str], start: int, stop: int
) -> Batch:
    """Samples [start, stop) of ``names`` from the producer.

    Raises ProducerError naming the samples, and the field whose shape or dtype does not fit.
    """
    where = f"{producer.name}: samples {start}-{stop - 1}"
    try:
        return _batch_of(producer.produce(start, stop, tuple(names)), fields, names, start, stop, where)
    except ParbakeError:
        raise
    except Exception as error:
        text = described(error)
        raise ProducerError(
            f"{where}: {text}; what was baked before is kept: mend it and run the same bake again"
        ) from error


def _batch_of(
    produced: Any, fields: Mapping[str, StoredField], names: Sequence[str], start: int, stop: int, where: str
) -> Batch:
    if not isinstance(produced, Mapping):
        raise ProducerError(
            f"{where}: produce() gives {type(produced).__name__}; a mapping of fields is needed"
        )
    if missing := [name for name in names if name not in produced]:
        raise ProducerError(f"{where}: produce() gives {sorted(produced)} but not {missing}")
    batch = Batch({}, [], "cpu", where, start)
    own: dict[str, bool] = {}
    for name in names:
        if hasattr(produced[name], "is_cuda"):
            batch.device = str(produced[name].device)
        array, wait = to_host(produced[name], where, name)
        batch.arrays[name] = _fitting(array, fields[name], stop - start, where)
        batch.waits += [] if wait is None else [wait]
        own[name] = wait is not None
    if batch.waits:  # read after the next call of the producer, which may reuse its arrays
        batch.arrays = {name: array if own[name] else array.copy() for name, array in batch.arrays.items()}
    return batch


def to_host(value: Any, where: str, name: str) -> tuple[NDArray[Any], Callable[[], None] | None]:
    """``value`` (an array, a tensor on any device, a list of equal arrays) as NumPy, and what to wait for."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().resolve_conj().resolve_neg()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()  # NumPy and Zarr have none; float32 holds every value
        return _copied_to_host(tensor, torch, where, name)
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.hasobject:
        lengths = sorted({len(item) for item in value if hasattr(item, "__len__")}) if _is_list(value) else []
        if len(lengths) > 1:
            raise ProducerError(
                f"{where}: field {name!r} is ragged (lengths {lengths[0]} to {lengths[-1]}); pad it and keep "
                f"the lengths: lengths = np.array([len(a) for a in {name}]); "
                f"{name} = np.stack([np.pad(a, (0, longest - len(a))) for a in {name}])"
            )
        raise ProducerError(f"{where}: field {name!r} gives {type(value).__name__}, not an array of numbers")
    return array, None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _plain(tensor: Any, where: str, name: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = tensor.cpu().numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantized, nested, float8
        raise ProducerError(
            f"{where}: field {name!r} gives a tensor of {tensor.dtype} ({tensor.layout}) that NumPy has no "
            "form for; make it dense (.to_dense()) or of another dtype (.float())"
        ) from error
    return array


def _copied_to_host(
    tensor: Any, torch: Any, where: str, name: str
) -> tuple[NDArray[Any], Callable[[], None] | None]:
    """The host array of a tensor, and what to call before reading it where the copy still runs.

    Untested on a GPU: the copy into pinned memory runs on a stream of its own beside the next batch.
    """
    if tensor.device.type != "cuda" or tensor.layout != torch.strided:
        return _plain(tensor, where, name), None
    stream = _copy_stream(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)
    copied = torch.cuda.Event()
    copied.record(stream)
    return host.numpy(), copied.synchronize


@functools.cache
def _copy_stream(device: Any) -> Any:
    return sys.modules["torch"].cuda.Stream(device)


def _fitting(array: NDArray[Any], field: StoredField, count: int, where: str) -> NDArray[Any]:
    expected = (count, *field.shape)
    if array.shape != expected:
        raise ProducerError(
            f"{where}: field {field.name!r} has shape {list(array.shape)} where {list(expected)} is needed "
            "(sample axis first)"
        )
    if array.dtype.newbyteorder("=") != field.dtype.newbyteorder("="):
        raise ProducerError(
            f"{where}: field {field.name!r} has dtype {array.dtype} where {field.dtype.name} is declared; "
            "convert it in produce(), or declare the other"
        )
    return array
