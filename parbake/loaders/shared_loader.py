"""Batches from worker processes through a ring of shared slots: nothing is sent but where they lie.

With worker processes it is not reading that limits, but the pages of fresh shared memory for every batch.
Here torch's DataLoader starts, feeds, watches and ends the workers; what goes to them is a slot and the
numbers of samples, and what comes back is where in the slot the tensors are.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, TypeVar

from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, get_worker_info

from parbake.errors import ParbakeError
from parbake.loaders.batches import (
    batch_nbytes,
    is_transformed,
    packed,
    read_batch,
    read_leased,
    read_nbytes,
    unpacked,
)
from parbake.loaders.epochs import FORKED, Epoch, EpochLoader, Epochs, Numbers
from parbake.loaders.order import checked_integer
from parbake.loaders.slots import HELD, SlotMemory, Slots, private_empty, shared_empty

if TYPE_CHECKING:  # which imports this module
    from parbake.loaders.dataset import StoreDataset


_Held = TypeVar("_Held")

_copies: list[object] = []  # torch's iterators in a fork, kept: dropping one ends the workers of the original


@dataclass(frozen=True)
class Workers:
    """The worker processes of a loader; names and meanings are those of torch's DataLoader.

    Raises RecipeError; what torch refuses, it refuses at the first iteration.
    """

    num_workers: int
    prefetch_factor: int
    persistent_workers: bool
    multiprocessing_context: str | BaseContext | None
    worker_init_fn: Callable[[int], None] | None
    timeout: float

    def __post_init__(self) -> None:
        checked_integer("num_workers", self.num_workers, 0, None)
        checked_integer("prefetch_factor", self.prefetch_factor, 1, None)

    def loader(self, dataset: Dataset[Any], tasks: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=tasks,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # one answer, not a list
            timeout=self.timeout,
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.multiprocessing_context,
            prefetch_factor=self.prefetch_factor,
            persistent_workers=self.persistent_workers,
        )


class SharedLoader(EpochLoader):
    """``dataset.loader(...)``: the batches of torch's ``DataLoader(dataset, batch_size, ...)``, from slots.

    Each batch equals, in type and value, what default collation gives. Its tensors lie in a slot that no
    other batch gets while any of them, or a view or array made of one, is alive: keep what you like, change
    what you like. When all slots are held, batches take fresh memory, which is said once.

    ``shuffle``: a full permutation, from ``seed`` and the epoch. ``sampler``: a BlockShuffle, which also
    brings the share of a rank, or any iterable of sample numbers. ``num_workers=0`` reads in this process;
    what concerns workers then has no effect. ``persistent_workers``: workers live as long as the loader
    and do not see later changes of the dataset; otherwise as long as an iteration. They end when the loader
    and its iterators are dropped. Iterators of one loader may run side by side; the second and further
    ones start workers of their own.

    Errors of a transform arrive with their own type, torch's text of the worker's traceback, and a note of
    the samples; the iterator can go on with the batch after. A worker that dies is a RuntimeError, and the
    next iteration has new ones. There is no pin_memory: BatchLoader reads into pinned memory and copies
    to the device itself.
    """

    def __init__(self, dataset: StoreDataset, epochs: Epochs, workers: Workers) -> None:
        super().__init__(dataset, epochs)
        self._workers = workers
        self._crew: _Crew | None = None
        self._spare: deque[Slots] = deque(maxlen=1)  # without workers: from an iteration to the next

    def __iter__(self) -> Iterator[Any]:
        epoch = self._epochs.begin()
        if not self._workers.num_workers:
            slots = self._spare.pop() if self._spare else self._new_slots()
            return _ReadHere(self.dataset, slots, self._spare, self._epochs, epoch)
        if self._crew is not None and not self._crew.is_usable():
            self._crew = None  # its workers end before new ones start
        if self._crew is None:
            self._crew = _Crew(self.dataset, self._epochs.batch_samples, self._workers)
        crew = self._crew
        if crew.is_busy():
            crew = _Crew(self.dataset, self._epochs.batch_samples, self._workers)
        return crew.begin(self._epochs, epoch)

    def _new_slots(self) -> Slots:
        return Slots(HELD, batch_nbytes(self.dataset, self._epochs.batch_samples), "private")


class _ReadHere(Iterator[Any]):
    """An iteration without workers."""

    def __init__(
        self, dataset: StoreDataset, slots: Slots, spare: deque[Slots], epochs: Epochs, epoch: Epoch
    ) -> None:
        self._dataset, self._slots, self._epochs, self._epoch = dataset, slots, epochs, epoch
        self._end = weakref.finalize(self, spare.append, slots)
        self._end.atexit = False

    def __next__(self) -> Any:
        numbers = next(self._epoch.batches, None)
        if numbers is None:
            self._end()
            raise StopIteration
        read = functools.partial(read_leased, self._dataset, numbers, self._epoch.draw, self._slots)
        return self._epochs.deliver(self._epoch, numbers, read)


# ---- what goes to the workers, and what comes back


@dataclass(frozen=True)
class _Task:
    serial: int
    slot: int | None  # None: all were in use
    numbers: Numbers
    draw: int


@dataclass(frozen=True)
class _Answer:
    """``value``: the batch, with a Place for each tensor that lies in the slot."""

    serial: int
    value: Any = None
    error: ExceptionWrapper | None = None


class _Tasks:
    """What torch takes for a sampler: hands out slots as they are asked for."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.epoch: Epoch | None = None
        self.sent: dict[int, _Task] = {}  # and not answered, by serial
        self._serials = itertools.count()

    def __iter__(self) -> Iterator[_Task]:
        # This runs when torch asks for the first task. By then every worker has gone through the tasks of an
        # iteration that was left early (torch waits for each to say that it resumes), or has ended.
        for task in self.sent.values():
            if task.slot is not None:
                self.slots.give_back(task.slot)
        self.sent.clear()
        assert self.epoch is not None
        for numbers in self.epoch.batches:
            slot = self.slots.take()
            if slot is None:
                self.slots.tell_dry()
            task = _Task(next(self._serials), slot, numbers, self.epoch.draw)
            self.sent[task.serial] = task
            yield task


class _Filler(Dataset[_Answer]):
    """What torch takes for a dataset: fills slots, in a worker."""

    def __init__(self, dataset: StoreDataset, memory: SlotMemory, batch_samples: int) -> None:
        self.dataset, self._memory, self._batch_samples = dataset, memory, batch_samples

    def __getitem__(self, task: _Task) -> _Answer:
        try:
            return _Answer(task.serial, self._batch(task))
        except Exception:
            return _Answer(task.serial, error=_sendable_error())

    def _batch(self, task: _Task) -> Any:
        out = None if task.slot is None else self._memory.arena(task.slot)
        if is_transformed(self.dataset):
            # A transform may keep what it is given, so that must not lie in a slot that goes elsewhere.
            inputs = self._inputs.leased()
            read = private_empty if inputs is None else inputs.empty
        else:
            read = shared_empty if out is None else out.empty
        batch = read_batch(self.dataset, task.numbers, task.draw, read, out)
        return batch if out is None else packed(batch, out)

    @cached_property
    def _inputs(self) -> Slots:
        """What transforms are given lies in these, of this worker alone."""
        return Slots(2, read_nbytes(self.dataset, self._batch_samples), "private")


def _as_it_is(answer: _Answer) -> _Answer:
    return answer


def _sendable_error() -> ExceptionWrapper:
    """The exception being handled, for another process; a class that has no name there as RuntimeError."""
    worker = get_worker_info()
    where = f"in loader worker process {worker.id if worker else 0}"
    error = ExceptionWrapper(where=where)  # type: ignore[no-untyped-call]
    try:
        ForkingPickler.dumps(error)
    except Exception:
        error.exc_type = RuntimeError
    return error


# ---- the workers of one iteration at a time


class _Crew:
    """Worker processes and the slots that they fill."""

    def __init__(self, dataset: StoreDataset, batch_samples: int, workers: Workers) -> None:
        under_way = workers.num_workers * workers.prefetch_factor
        self._slots = Slots(under_way + HELD, batch_nbytes(dataset, batch_samples), "shared")
        self._tasks = _Tasks(self._slots)
        filler = _Filler(dataset, self._slots.memory, batch_samples)
        self._torch = _let_go_with(self, workers.loader(filler, self._tasks))
        self._stay = workers.persistent_workers
        self._processes: set[BaseProcess] = set()
        self._iteration: Callable[[], _Received | None] = lambda: None
        self.pid = os.getpid()
        self.broken = False

    def is_busy(self) -> bool:
        """Whether an iteration is under way."""
        iteration = self._iteration()
        return iteration is not None and not iteration.ended

    def is_usable(self) -> bool:
        """Whether another iteration can begin here, now or when the one under way has ended."""
        if self.pid != os.getpid() or self.broken:
            return False
        alive = [process.is_alive() for process in self._processes]
        return self.is_busy() or (all(alive) if self._stay else not any(alive))

    def begin(self, epochs: Epochs, epoch: Epoch) -> _Received:
        """Start or resume the workers."""
        self._tasks.epoch = epoch
        before = set(multiprocessing.active_children())
        self.broken = True  # unless all goes well
        answers = iter(self._torch[0])
        self.broken = False
        self._processes = set(multiprocessing.active_children()) - before or self._processes
        iteration = _Received(self, answers, epochs, epoch)
        self._iteration = weakref.ref(iteration)
        return iteration

    def task_of(self, answer: _Answer) -> _Task:
        return self._tasks.sent.pop(answer.serial)

    def batch_of(self, task: _Task, answer: _Answer) -> Any:
        """The batch of an answer, or its error."""
        if answer.error is not None:
            if task.slot is not None:
                self._slots.give_back(task.slot)
            answer.error.reraise()  # type: ignore[no-untyped-call]
        return answer.value if task.slot is None else unpacked(answer.value, self._slots.lease(task.slot))


def _let_go_with(owner: object, held: _Held) -> list[_Held]:
    """``held``, in a list that is emptied when ``owner`` has died.

    In a circle of garbage, as an error that is kept makes one, torch's iterator would find its queues closed
    and wait five seconds for each worker. Held from here as well, it is no part of the circle.
    """
    box = [held]
    weakref.finalize(owner, _let_go, box, os.getpid()).atexit = False
    return box


def _let_go(box: list[Any], pid: int) -> None:
    if pid != os.getpid():
        _copies.extend(box)
    box.clear()


class _Received(Iterator[Any]):
    """An iteration with workers."""

    def __init__(self, crew: _Crew, answers: Iterator[_Answer], epochs: Epochs, epoch: Epoch) -> None:
        self._crew, self._epochs, self._epoch = crew, epochs, epoch
        self._answers = _let_go_with(self, answers)  # empty when this has ended

    @property
    def ended(self) -> bool:
        return not self._answers

    def __next__(self) -> Any:
        if self.ended:
            raise StopIteration
        if self._crew.pid != os.getpid():
            raise ParbakeError(FORKED)
        try:
            answer = next(self._answers[0])
        except BaseException as error:
            self._crew.broken = not isinstance(error, StopIteration)
            self._answers.clear()
            raise
        task = self._crew.task_of(answer)
        return self._epochs.deliver(
            self._epoch, task.numbers, functools.partial(self._crew.batch_of, task, answer)
        )
