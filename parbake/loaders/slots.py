"""Memory for batches that is made once and used again: slots that return when nothing lies over them.

A batch read into fresh memory costs up to eight times as much as one read into pages that are there
already. A slot is therefore lent: the tensors of a batch lie over a ``lease``, and when the last of them
has died, arrays and views made of them included, the slot is free for another batch.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import context, reduction
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parbake import human
from parbake.errors import RecipeError

Memory: TypeAlias = Literal["private", "shared", "pinned"]
Allocator: TypeAlias = Callable[[tuple[int, ...], torch.dtype], Tensor]

HELD = 4  # batches that a loop holds: its last, the one it is given, and two to spare, free until touched
ALIGNMENT = 64  # bytes, of every tensor: a cache line, and what vector instructions ask for
_PAGE = 4096
_REUSED_MIN, _REUSED_MAX = 1 << 20, 1 << 30  # bytes, of a batch; of all slots that a dataset keeps for itself


def private_empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")


def shared_empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A new tensor in memory that torch sends to another process without a copy."""
    nbytes = math.prod(shape) * dtype.itemsize
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(nbytes)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage).resize_(shape)


class Segment:
    """``nbytes`` of memory, zeros at first, which stays as long as any view of it.

    ``private``: to this process, copied on write in its forks. ``shared``: with processes that get this
    object when they are started, by any method; it has no name, so nothing is left behind, and is not
    bounded by /dev/shm. ``pinned``: from which a GPU copies. Pages cost nothing until they are touched.
    """

    def __init__(self, nbytes: int, memory: Memory) -> None:
        self.nbytes, self._descriptor = nbytes, -1
        self._buffer: Any
        if memory == "pinned":
            self._buffer = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
        elif memory == "private":
            self._buffer = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(AttributeError, OSError):  # not everywhere; a batch has many pages
                self._buffer.madvise(mmap.MADV_HUGEPAGE)
        else:
            descriptor = _nameless_file()
            os.ftruncate(descriptor, nbytes)
            self._map(descriptor)

    def _map(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor).atexit = False
        self._buffer = mmap.mmap(descriptor, self.nbytes)

    def view(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Writable bytes, a new array at each call."""
        return np.frombuffer(self._buffer, np.uint8, nbytes, start)

    def __reduce__(self) -> tuple[Any, ...]:
        context.assert_spawning(self)  # raises RuntimeError; elsewhere nobody would hand over the descriptor
        return _attached, (reduction.DupFd(self._descriptor), self.nbytes)


def _nameless_file() -> int:
    """A descriptor of an empty file in memory, or of one without a name on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("parbake-slots")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _attached(duplicate: Any, nbytes: int) -> Segment:
    segment = object.__new__(Segment)
    segment.nbytes = nbytes
    segment._map(duplicate.detach())
    return segment


class Place(NamedTuple):
    """Where a tensor lies in a slot; what a worker sends instead of it."""

    offset: int  # bytes from the slot's beginning
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Arena:
    """Tensors side by side in one slot. They keep ``memory``, and so the slot's lease, alive."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self._start = memory.ctypes.data
        self._used = 0

    def place(self, shape: tuple[int, ...], dtype: torch.dtype) -> Place | None:
        """Room for one tensor more, or None where there is not enough."""
        place = Place(self._used, tuple(shape), dtype)
        if place.offset + place.nbytes > self._memory.nbytes:
            return None
        self._used += aligned(place.nbytes)
        return place

    def tensor(self, place: Place) -> Tensor:
        """The tensor there: writable, with a storage of its own."""
        if not place.nbytes:
            return private_empty(place.shape, place.dtype)
        count = math.prod(place.shape)
        flat = torch.frombuffer(self._memory, dtype=place.dtype, count=count, offset=place.offset)
        return flat.resize_(place.shape)  # in place, so that it is no view of another tensor

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor in the slot; in fresh memory where the slot is full."""
        place = self.place(shape, dtype)
        return private_empty(shape, dtype) if place is None else self.tensor(place)

    def found(self, tensor: Tensor) -> Place | None:
        """Where a contiguous tensor lies in this slot, if it does."""
        offset = tensor.data_ptr() - self._start
        inside = offset >= 0 and offset + tensor.nbytes <= self._memory.nbytes
        return Place(offset, tuple(tensor.shape), tensor.dtype) if tensor.nbytes and inside else None


def aligned(nbytes: int, to: int = ALIGNMENT) -> int:
    return -(-nbytes // to) * to


@dataclass(frozen=True)
class SlotMemory:
    """The memory of equal slots; what the processes that fill them need to know."""

    segment: Segment
    slot_nbytes: int

    def arena(self, slot: int) -> Arena:
        return Arena(self.view(slot))

    def view(self, slot: int) -> NDArray[np.uint8]:
        return self.segment.view(slot * self.slot_nbytes, self.slot_nbytes)


class _Lease(weakref.ref[NDArray[np.uint8]]):
    """Calls back when the memory of a slot has died; that is C code alone, so no signal can interrupt it."""

    slot: int


class Slots:
    """``count`` slots of at least ``slot_nbytes``, and which of them are free.

    A slot that was taken comes back by ``give_back``, or by itself when its lease has died. Only the
    process that made this may take slots, from any thread.
    """

    def __init__(self, count: int, slot_nbytes: int, memory: Memory) -> None:
        slot_nbytes = aligned(max(slot_nbytes, 1), _PAGE)
        self.count = count
        try:
            self.memory = SlotMemory(Segment(count * slot_nbytes, memory), slot_nbytes)
        except (OSError, OverflowError) as error:
            raise RecipeError(
                f"{count} batches of {human.size(slot_nbytes)}, which the loader needs room for, do not fit "
                f"into memory ({error}); choose a smaller batch_size or fewer workers"
            ) from None
        self._free = deque(range(count))
        self._returned: deque[_Lease] = deque()
        self._leases: dict[int, _Lease] = {}  # a reference that is not held itself calls nobody
        self._told = False

    def take(self) -> int | None:
        """A free slot, the one used last if possible: it may still be in the cache. None if there is none."""
        with contextlib.suppress(IndexError):
            return self._returned.pop().slot
        with contextlib.suppress(IndexError):
            return self._free.pop()
        return None

    def give_back(self, slot: int) -> None:
        """Free a slot that was taken, but neither leased nor still being filled."""
        self._free.append(slot)

    def lease(self, slot: int) -> Arena:
        """A taken slot, to make tensors of; it is free again when the last of them has died."""
        memory = self.memory.view(slot)
        lease = self._leases[slot] = _Lease(memory, self._returned.append)
        lease.slot = slot
        return Arena(memory)

    def leased(self) -> Arena | None:
        """A free slot, taken and leased, if there is one."""
        slot = self.take()
        return None if slot is None else self.lease(slot)

    def tell_dry(self) -> None:
        """Warn, the first time, that all slots are in use."""
        if not self._told:
            self._told = True
            warnings.warn(
                f"parbake: all {self.count} slots of this loader are in use, because batches of before are "
                "still held; further ones take fresh memory, which is slower: drop batches that are done "
                "with, and keep clones",
                stacklevel=3,
            )


class Reused:
    """Memory for the batches of one process that reads them as they are asked for, without a loader.

    A batch large enough that malloc would give its pages back to the system is read into a slot; into fresh
    memory where all slots are held, or would take over a gibibyte. Copies, pickles and forks have slots of
    their own.
    """

    def __init__(self) -> None:
        self._slots: Slots | None = None
        self._pid = os.getpid()

    def allocator(self, forms: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> Allocator:
        """What makes the tensors of one batch, each of a shape and dtype of ``forms``."""
        nbytes = sum(aligned(math.prod(shape) * dtype.itemsize) for shape, dtype in forms)
        if not _REUSED_MIN <= nbytes <= _REUSED_MAX // HELD:
            return private_empty
        slots = self._slots
        if slots is None or slots.memory.slot_nbytes < nbytes or self._pid != os.getpid():
            slots = self._slots = Slots(HELD, nbytes, "private")
            self._pid = os.getpid()
        arena = slots.leased()
        return private_empty if arena is None else arena.empty

    def __reduce__(self) -> tuple[Any, ...]:
        return Reused, ()
