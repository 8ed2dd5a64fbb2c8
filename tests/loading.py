"""What the tests of the loaders share: a small store, batches of torch's own loader, what a process holds."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from parbake.loaders.dataset import StoreDataset
from parbake.store.store import Store

SAMPLES = 30


def assert_same(found: Any, wanted: Any) -> None:
    """Equal in type and value, down to bits, order of keys and gradients."""
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        flat = (tensor.detach().resolve_conj().reshape(-1) for tensor in (found, wanted))
        one, other = (tensor.view(torch.uint8).tolist() for tensor in flat)
        assert one == other
        assert found.requires_grad == wanted.requires_grad
        assert found.is_contiguous() == wanted.is_contiguous()
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert found == wanted


def assert_batches_of(store: Store, batches: Iterable[dict[str, torch.Tensor]], order: list[int]) -> None:
    """``batches`` with "index" hold the samples ``order``, and of each what the store has."""
    batches = list(batches)
    assert numbers(batches) == order
    for batch in batches:
        for name, values in store.read(batch["index"].tolist()).items():
            np.testing.assert_array_equal(batch[name].numpy(), values)


def numbers(batches: Iterable[dict[str, torch.Tensor]]) -> list[int]:
    return [number for batch in batches for number in batch["index"].tolist()]


def ordinary(dataset: StoreDataset, batch_size: int, **options: Any) -> list[Any]:
    """The batches that torch's own loader gives."""
    return list(DataLoader(dataset, batch_size, **options))


def shared_files() -> set[str]:
    """What this process, and those that have ended, have of torch's files in /dev/shm."""
    named = [re.fullmatch(r"torch_(\d+)_.*", name) for name in os.listdir("/dev/shm")]
    return {name[0] for name in named if name and (int(name[1]) == os.getpid() or not _lives(int(name[1])))}


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def held() -> tuple[int, int, int, int]:
    """Descriptors, maps of slots, child processes and threads of ours that this process has."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":  # of queues that torch has closed: the last closes a pipe
            thread.join(10)
    gc.collect()
    maps = Path("/proc/self/maps").read_text().count("parbake-slots")
    threads = sum(thread.name.startswith("parbake-batches") for thread in threading.enumerate())
    return len(os.listdir("/proc/self/fd")), maps, len(multiprocessing.active_children()), threads


@contextmanager
def never_dry() -> Iterator[None]:
    """No batch takes fresh memory within, so that lost slots show."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "parbake: all .* slots")
        yield


@contextmanager
def nothing_left() -> Iterator[None]:
    """Nothing stays behind of what is done within."""
    files, before = shared_files(), held()
    yield
    assert held() == before
    assert shared_files() <= files
