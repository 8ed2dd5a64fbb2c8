"""How fast a store's samples arrive, by loader, batch size and workers: what to measure, and measuring it."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from parbake import human
from parbake.errors import ParbakeError
from parbake.loaders.batch_loader import BatchLoader
from parbake.loaders.dataset import StoreDataset
from parbake.loaders.machine import files_of, forget
from parbake.loaders.slots import HELD
from parbake.store.chunks import Checksums
from parbake.store.store import open_store

LoaderName: TypeAlias = Literal["DataLoader", "BatchLoader", "ds.loader"]
LOADERS: tuple[LoaderName, ...] = ("DataLoader", "BatchLoader", "ds.loader")  # the simplest first

PREFETCH = 2  # batches ahead of each worker, as the loaders have it
LEAST_BATCHES = 3  # measured, whatever they take
PATIENCE = 3  # times the seconds asked for, until a slow setting is measured from its second batch on
TIE = 0.05  # rates this near to the best are as good
MEMORY_SHARE = 0.8  # of what is free that a loader may take
BATCH_SIZE_MAX, BATCH_NBYTES_MAX = 256, 256 * 1024**2  # where nobody says

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


# ---- what to measure


@dataclass(frozen=True)
class Setting:
    """One way to load batches. ``workers``: processes; of a BatchLoader threads."""

    loader: LoaderName
    batch_size: int
    workers: int

    @property
    def processes(self) -> int:
        return 0 if self.loader == "BatchLoader" else self.workers

    @property
    def under_way(self) -> int:
        """Batches that are read ahead of the one that is asked for."""
        return max(self.workers, PREFETCH) if self.loader == "BatchLoader" else PREFETCH * self.workers

    @property
    def batches_in_memory(self) -> int:
        return self.under_way + (2 if self.loader == "DataLoader" else HELD)

    def made(self, dataset: StoreDataset) -> Any:
        """The loader: what ``code`` says."""
        size, workers = self.batch_size, self.workers
        if self.loader == "BatchLoader":
            return BatchLoader(dataset, batch_size=size, shuffle=True, threads=workers)
        if self.loader == "ds.loader":
            return dataset.loader(batch_size=size, shuffle=True, num_workers=workers)
        return DataLoader(
            dataset, batch_size=size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )

    def code(
        self, path: Path | str, fields: Sequence[str] | None = None, sample_dim: str | None = None
    ) -> str:
        """A line of Python that makes the loader, where parbake and torch are imported."""
        chosen = f", fields=[{', '.join(map(_quoted, fields))}]" if fields is not None else ""
        store = _quoted(str(path))
        if sample_dim is not None:
            store = f"parbake.open_store({store}, sample_dim={_quoted(sample_dim)})"
        dataset = f"parbake.StoreDataset({store}{chosen})"
        common = f"batch_size={self.batch_size}, shuffle=True"
        if self.loader == "BatchLoader":
            return f"loader = parbake.BatchLoader({dataset}, {common}, threads={self.workers})"
        common += f", num_workers={self.workers}"
        if self.loader == "ds.loader":
            return f"loader = {dataset}.loader({common})"
        common += ", persistent_workers=True" if self.workers else ""
        return f"loader = torch.utils.data.DataLoader({dataset}, {common})"


def _quoted(text: str) -> str:
    """As Python; what is not printable is escaped."""
    literal = repr(text)
    return literal if '"' in literal else f'"{literal[1:-1]}"'


def settings_of(batch_sizes: Iterable[int], workers: Iterable[int]) -> list[Setting]:
    """Every loader at every batch size and number of workers.

    A BatchLoader has at least one thread, and ds.loader one process: without it, it is no faster than a
    BatchLoader and makes the loop wait.
    """
    counts = sorted(set(workers))
    of_loader = {
        "DataLoader": counts,
        "BatchLoader": sorted({max(count, 1) for count in counts}),
        "ds.loader": [count for count in counts if count],
    }
    return [
        Setting(loader, batch_size, count)
        for batch_size in sorted(set(batch_sizes))
        for loader in LOADERS
        for count in of_loader[loader]
    ]


def default_batch_sizes(samples: int, sample_nbytes: int) -> list[int]:
    """Three, each four times the one before, up to 256 samples, 256 MiB and the store."""
    limit = max(min(BATCH_SIZE_MAX, samples, BATCH_NBYTES_MAX // sample_nbytes), 1)
    largest = 1 << (limit.bit_length() - 1)
    return [size for size in (largest // 16, largest // 4, largest) if size]


def default_workers(cores: int) -> list[int]:
    return [0, 2] if cores < 4 else [0, 2, 4]


def refusal(
    setting: Setting, samples: int, sample_nbytes: int, memory_nbytes: int | None, shared_nbytes: int | None
) -> str | None:
    """Why ``setting`` cannot run on a store, where memory and shared memory of this size are free."""
    if samples < setting.batch_size:
        return f"the store has fewer than {setting.batch_size} samples: {samples}"
    wanted = setting.batches_in_memory * setting.batch_size * sample_nbytes
    # the slots of ds.loader are no files in /dev/shm
    shared = setting.loader == "DataLoader" and setting.workers > 0
    for what, free in (("memory", memory_nbytes), ("/dev/shm", shared_nbytes if shared else None)):
        if free is not None and wanted > MEMORY_SHARE * free:
            return f"{human.size(wanted)} of batches, and {human.size(free)} of {what} are free"
    return None


# ---- measuring


@dataclass(frozen=True)
class Measurement:
    """What arrived within ``seconds``, once loading had got going. ``nbytes``: decoded, of tensors.

    ``first_batch_s``: from the start of the iteration, workers' start included, to the end of the first
    batch. ``cold``: the kernel had been asked to forget the files, and the epoch was the first.
    """

    setting: Setting
    cold: bool
    first_batch_s: float
    batches: int
    samples: int
    nbytes: int
    seconds: float

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def nbytes_per_s(self) -> float:
        return self.nbytes / self.seconds


class _Arrival(NamedTuple):
    """One batch. ``at_s``: since the iteration started."""

    at_s: float
    samples: int
    nbytes: int


def measure(
    setting: Setting,
    loader: Iterable[Any],
    seconds: float,
    *,
    cold: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Time the batches of ``loader``, every value of which is summed, for about ``seconds``.

    Epoch follows epoch, except when cold. What was read ahead by the time of the first batch is no measure
    of speed and is left aside, and at least LEAST_BATCHES are measured, as far as there are so many.

    Raises ParbakeError when there are no batches, and what the loader raises.
    """
    arrivals: list[_Arrival] = []
    began = clock()
    while not arrivals or not (cold or _enough(arrivals, setting, seconds)):
        before = len(arrivals)
        for batch in loader:
            samples, nbytes = touched(batch)
            del batch  # a loop that keeps no batch
            arrivals.append(_Arrival(clock() - began, samples, nbytes))
            if _enough(arrivals, setting, seconds):
                break
        if len(arrivals) == before:
            raise ParbakeError(f"{setting.loader}: an epoch without batches")
    return _measurement(setting, arrivals, cold)


def _enough(arrivals: Sequence[_Arrival], setting: Setting, seconds: float) -> bool:
    taken = arrivals[-1].at_s - arrivals[0].at_s
    if taken < seconds or len(arrivals) <= LEAST_BATCHES:
        return False
    return len(arrivals) > setting.under_way + LEAST_BATCHES or taken >= PATIENCE * seconds


def _measurement(setting: Setting, arrivals: Sequence[_Arrival], cold: bool) -> Measurement:
    lead = min(setting.under_way + 1, max(len(arrivals) - LEAST_BATCHES, 1))
    if len(arrivals) == 1:
        lead = 0  # an epoch of one batch
    counted = arrivals[lead:]
    start_s = arrivals[lead - 1].at_s if lead else 0.0
    return Measurement(
        setting,
        cold,
        arrivals[0].at_s,
        len(counted),
        sum(arrival.samples for arrival in counted),
        sum(arrival.nbytes for arrival in counted),
        max(arrivals[-1].at_s - start_s, 1e-9),
    )


def touched(batch: Any) -> tuple[int, int]:
    """Samples and bytes of a batch, a dict or list of tensors, each value of which is read."""
    tensors: list[Tensor] = list(batch.values() if isinstance(batch, dict) else batch)
    for tensor in tensors:
        tensor.view(_SIGNED.get(tensor.dtype, tensor.dtype)).sum()  # torch adds no wide unsigned integers
    return len(tensors[0]), sum(tensor.nbytes for tensor in tensors)


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Two that sum a batch beside busy workers wait for each other, at a thirtieth of the speed of one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Subject:
    """A store to measure. ``fields``: None for all. ``files``: those that its samples lie in.

    ``sample_dim``: as ``open_store`` has it.
    """

    path: Path
    fields: tuple[str, ...] | None
    samples: int
    sample_nbytes: int
    files: tuple[Path, ...]
    sample_dim: str | None

    @classmethod
    def at(cls, path: Path, fields: Sequence[str] | None, sample_dim: str | None = None) -> Subject:
        """Raises what ``open_store`` and StoreDataset raise."""
        with open_store(path, sample_dim=sample_dim) as store:
            dataset = StoreDataset(store, fields)
            sample_nbytes = sum(store.fields[name].layout.sample_nbytes for name in dataset.fields)
            files = files_of(path, set(store.fields) - set(dataset.fields))
        chosen = None if fields is None else dataset.fields
        return cls(path, chosen, len(dataset), sample_nbytes, tuple(files), sample_dim)

    def measured(self, setting: Setting, seconds: float, *, cold: bool = False) -> Measurement:
        """Opened anew, so that nothing is mapped or checked yet; when warm, all counts as checked.

        Raises what ``open_store`` and the loaders raise.
        """
        if cold:
            forget(self.files)
        with contextlib.ExitStack() as closing:
            checksums: Checksums = "first" if cold else "never"
            store = closing.enter_context(
                open_store(self.path, checksums=checksums, sample_dim=self.sample_dim)
            )
            loader = setting.made(StoreDataset(store, self.fields))
            if isinstance(loader, contextlib.AbstractContextManager):
                closing.enter_context(loader)
            closing.enter_context(one_torch_thread())
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
                try:
                    return measure(setting, loader, seconds, cold=cold)
                except ParbakeError as error:
                    raise _without_traceback(error) from None


def _without_traceback(error: ParbakeError) -> ParbakeError:
    """What a worker raised: torch puts the whole traceback into its text, whose last line tells it."""
    *above, last = str(error).splitlines()
    return type(error)(last.partition(": ")[2]) if above else error


def best(measurements: Iterable[Measurement]) -> Measurement:
    """The fastest, or the simplest of those that are as good: few processes, few threads, small batches."""
    found = list(measurements)
    fastest = max(measurement.samples_per_s for measurement in found)
    tied = [one for one in found if one.samples_per_s >= (1 - TIE) * fastest]
    return min(tied, key=lambda one: _effort(one.setting))


def _effort(setting: Setting) -> tuple[int, int, int, int]:
    return setting.processes, setting.workers, LOADERS.index(setting.loader), setting.batch_size
