"""Batches from threads, ahead of the loop that uses them, through slots that are used again and again."""

from __future__ import annotations

import atexit
import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, Self

import torch
from torch import Tensor

from parbake.errors import ParbakeError, RecipeError
from parbake.loaders.batches import batch_nbytes, mapped, read_leased
from parbake.loaders.dataset import StoreDataset
from parbake.loaders.epochs import FORKED, Epoch, EpochLoader, Epochs, Numbers
from parbake.loaders.order import checked_integer
from parbake.loaders.slots import HELD, Memory, Slots

_EXIT_WAIT_S = 2.0  # for threads that are reading when the interpreter ends


class BatchLoader(EpochLoader):
    """Batches of ``dataset`` that threads read and transform while the loop works; no processes.

    Each batch equals, in type and value, what ``DataLoader(dataset, batch_size, ...)`` gives. Its tensors lie
    in a slot that no other batch gets while any of them, or a view or array made of one, is alive. When all
    slots are held, batches take fresh memory, which is said once.

    ``shuffle``: a full permutation, from ``seed`` and the epoch. ``sampler``: a BlockShuffle, which also
    brings the share of a rank, or any iterable of sample numbers. ``threads``: one is enough unless decoding
    limits; transforms that are written in Python gain nothing from more. ``prefetch``: batches read ahead,
    at least one a thread. ``device``: where batches are to be. For a CUDA device slots are pinned, and
    copied on a stream of their own while the loop computes; that path has not been tested on a GPU yet. For
    other devices the thread moves each batch; "cpu" and None give the slots.

    Errors arrive in the loop as they were raised, with a note of the samples; the iterator can go on with
    the batch after. ``close``, or leaving the context, ends the threads and never waits for one. In a forked
    process a new iteration has threads and slots of its own.

    Raises RecipeError, and ParbakeError when it is closed.
    """

    def __init__(
        self,
        dataset: StoreDataset,
        batch_size: int,
        shuffle: bool = False,
        *,
        sampler: Iterable[int] | None = None,
        threads: int = 1,
        prefetch: int = 2,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(dataset, StoreDataset):
            raise RecipeError(
                f"BatchLoader takes a StoreDataset, not {type(dataset).__name__}; for a Subset give the "
                "whole and sampler=torch.utils.data.SubsetRandomSampler(subset.indices)"
            )
        order = Epochs(dataset, batch_size, shuffle=shuffle, sampler=sampler, drop_last=drop_last, seed=seed)
        super().__init__(dataset, order)
        self._threads = checked_integer("threads", threads, 1, None)
        self._ahead = max(checked_integer("prefetch", prefetch, 1, None), self._threads)
        self._device = _present(device)
        self._closed = False
        self._pool: _Pool | None = None
        self._spare: deque[Slots] = deque(maxlen=1)  # from an iteration to the next

    def __iter__(self) -> Iterator[Any]:
        if self._closed:
            raise _closed()
        if self._pool is None or self._pool.pid != os.getpid():
            self._pool = _Pool(self._threads)
            self._spare = deque(maxlen=1)  # threads that a fork left behind may hold slots
        slots = self._spare.pop() if self._spare else self._new_slots()
        epoch = self._epochs.begin()
        read = functools.partial(_read, self.dataset, slots, self._device, epoch.draw)
        iteration = _Threaded(self._pool, self._epochs, epoch, read, self._ahead)
        iteration.end = weakref.finalize(iteration, self._spare.append, slots)
        iteration.end.atexit = False
        return iteration

    def _new_slots(self) -> Slots:
        memory: Memory = "pinned" if self._device.type == "cuda" else "private"
        return Slots(self._ahead + HELD, batch_nbytes(self.dataset, self._epochs.batch_samples), memory)

    def close(self) -> None:
        """End the threads as soon as they are done with their batch; iterations raise ParbakeError."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _present(device: torch.device | str | None) -> torch.device:
    """``device``, the CPU if None. Raises RecipeError where torch has no such device."""
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise RecipeError(f"device={device!r} is no device of torch; for example 'cuda' or 'cpu'") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            f"device={str(device)!r}: torch finds no CUDA device here; leave it out for the CPU"
        )
    return found


def _closed() -> ParbakeError:
    return ParbakeError("this BatchLoader is closed; make a new one")


def _read(dataset: StoreDataset, slots: Slots, device: torch.device, draw: int, numbers: Numbers) -> Any:
    """One batch on ``device``; a copy to it is done when this returns, so that the slot may be used again."""
    batch = read_leased(dataset, numbers, draw, slots)
    if device.type == "cpu":
        return batch
    if device.type != "cuda":
        return _moved(batch, device)
    stream = _side_stream(device)
    with torch.cuda.stream(stream):
        copied = _moved(batch, device)
    stream.record_event().synchronize()  # waits without Python's lock; ``batch`` is alive until here
    return copied


@functools.cache
def _side_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _moved(batch: Any, device: torch.device) -> Any:
    return mapped(
        batch, lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf
    )


def _used_here(batch: Any) -> Any:
    """``batch``, its memory on a GPU not given away before the consumer's stream is done with it."""

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_cuda:
            leaf.record_stream(torch.cuda.current_stream(leaf.device))
        return leaf

    return mapped(batch, note)


class _Threaded(Iterator[Any]):
    """One iteration: batches being read, in order."""

    def __init__(
        self, pool: _Pool, epochs: Epochs, epoch: Epoch, read: Callable[[Numbers], Any], ahead: int
    ) -> None:
        self._pool, self._epochs, self._epoch, self._read, self._ahead = pool, epochs, epoch, read, ahead
        self.end: Callable[[], object] = lambda: None
        self._jobs: deque[_Job] = deque()
        self._fill()

    def _fill(self) -> None:
        while len(self._jobs) < self._ahead and (numbers := next(self._epoch.batches, None)) is not None:
            self._jobs.append(self._pool.submit(numbers, self._read))

    def __next__(self) -> Any:
        if self._pool.pid != os.getpid():
            raise ParbakeError(FORKED)
        if self._pool.is_closed:
            raise _closed()
        if not self._jobs:
            self.end()
            raise StopIteration
        job = self._jobs.popleft()
        self._fill()
        return _used_here(self._epochs.deliver(self._epoch, job.numbers, job.result))

    def __del__(self) -> None:
        for job in self.__dict__.get("_jobs", ()):
            job.give_up(None)


class _Job:
    """One batch to read; its outcome is the thread's, or that of who gives it up first."""

    def __init__(self, numbers: Numbers, read: Callable[[Numbers], Any]) -> None:
        self.numbers = numbers
        self._read: Callable[[Numbers], Any] | None = read
        self._outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run(self) -> None:
        read = self._read
        if read is None:
            return
        try:
            outcome = read(self.numbers), None
        except BaseException as error:
            self._outcome.put((None, error))
        else:
            self._outcome.put(outcome)

    def give_up(self, error: BaseException | None) -> None:
        """Do not begin it; who waits for it gets ``error``."""
        self._read = None
        self._outcome.put((None, error))

    def result(self) -> Any:
        value, error = self._outcome.get()
        if error is None:
            return value
        try:
            raise error
        finally:
            del error  # it holds this frame: a circle that would keep the batch's slot


class _Pool:
    """Threads that run jobs, first come, first served. They end when this is closed or dropped."""

    def __init__(self, threads: int) -> None:
        self.pid = os.getpid()
        self.is_closed = False
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._jobs: weakref.WeakSet[_Job] = weakref.WeakSet()
        # daemons: a transform that never returns must not keep the interpreter from ending
        self._threads = [
            threading.Thread(target=_work, args=(self._queue,), daemon=True, name=f"parbake-batches-{number}")
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        _pools.add(self)

    def submit(self, numbers: Numbers, read: Callable[[Numbers], Any]) -> _Job:
        job = _Job(numbers, read)
        self._jobs.add(job)
        self._queue.put(job)
        return job

    def close(self) -> None:
        if self.is_closed or self.pid != os.getpid():
            return
        self.is_closed = True
        for job in list(self._jobs):
            job.give_up(_closed())
        self._end()

    def _end(self) -> None:
        for _ in self._threads:
            self._queue.put(None)

    def wait(self, seconds: float) -> None:
        for thread in self._threads:
            thread.join(seconds)

    def __del__(self) -> None:
        if self.pid == os.getpid():
            self._end()


def _work(queue: SimpleQueue[_Job | None]) -> None:
    for job in iter(queue.get, None):
        job.run()
        del job  # and its batch: the queue may stay empty for long


_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """A thread that is within torch when the interpreter goes down could take the process with it."""
    pools = [pool for pool in _pools if pool.pid == os.getpid()]
    for pool in pools:
        pool.close()
    for pool in pools:
        pool.wait(_EXIT_WAIT_S)
