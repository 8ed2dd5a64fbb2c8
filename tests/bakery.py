"""What the tests of the bake share: a small producer that logs its calls, tiny slabs, killed children."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parbake.errors import RecipeError
from parbake.producers import bake as bake_module
from parbake.producers import publishing
from parbake.store import layout
from parbake.store.keys import Keys, Producer, producer_keys
from parbake.store.layout import Coord, Field
from parbake.store.store import Store

SLAB = 8  # samples
BATCH = 3  # divides neither slabs nor chunks
FIELDS = ("wave", "count", "f0", "level")
TIME = np.arange(24) / 48_000


def tiny_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of 8 samples; chunks of 2 (wave) and 4 (count); scalars: chunks of 16, shards of 32."""
    monkeypatch.setattr(layout, "SHARD_NBYTES", SLAB * 192)
    monkeypatch.setattr(layout, "CHUNK_NBYTES", 400)
    monkeypatch.setattr(layout, "SCALAR_CHUNK_SAMPLES", 16)
    monkeypatch.setattr(layout, "SCALAR_SHARD_SAMPLES", 32)
    monkeypatch.setattr(layout, "SLAB_SAMPLES_MAX", 16)
    monkeypatch.setattr(bake_module, "producer_keys", _remembered_keys)
    monkeypatch.setattr(publishing, "_git_commit", lambda: None)  # a process a bake


def _remembered_keys(producer: Producer, *, rehash: bool = False) -> tuple[Keys, dict[str, Field]]:
    """Capturing the source of a producer costs more than a bake of tiny slabs."""
    if isinstance(producer, Loaf):
        return _keys(producer.seed, producer.gain, producer.only)
    return producer_keys(producer, rehash=rehash)


@functools.cache
def _keys(seed: int, gain: int, only: tuple[str, ...]) -> tuple[Keys, dict[str, Field]]:
    return producer_keys(Loaf(seed=seed, gain=gain, only=only))


def without_plugin_path() -> dict[str, str]:
    """The environment for a child whose HDF5 libraries load filters as they do elsewhere."""
    return {name: value for name, value in os.environ.items() if name != "HDF5_PLUGIN_PATH"}


def refusal(call: Callable[[], object]) -> str:
    """The one line with which ``call`` refuses a recipe."""
    with pytest.raises(RecipeError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def undisturbed(folder: Path, loaf: Loaf) -> dict[str, bytes]:
    """The bytes of the shards that baking ``loaf`` gives when nothing happens."""
    with bake_module.bake(loaf, folder / "undisturbed.zarr", progress=False) as store:
        return shard_bytes(store.path)


@dataclass(frozen=True)
class Loaf:
    """Two fields and two scalars, each value a function of (seed, sample).

    ``log``: a file that gets a line per call. ``trap``: called with (start, stop) before each. ``drift``
    is added to the values, but no key: a device or library that gives others. ``gain``: a key of ``count``.
    """

    samples: int = 30
    seed: int = 0
    gain: int = 1
    drift: float = 0.0
    log: Path | None = None
    trap: Callable[[int, int], None] | None = None
    only: tuple[str, ...] = FIELDS
    batch_size: int = BATCH

    @property
    def name(self) -> str:
        return "loaf"

    @property
    def version(self) -> int:
        return 1

    def schema(self) -> Mapping[str, Field]:
        fields = {
            "wave": Field((24, 2), ">f4", ("time", "channel"), coords={"time": Coord(TIME, "s")}),
            "count": Field((40,), "int16", ("bin",), keys={"gain": self.gain}),
            "f0": Field((), "float32", ()),
            "level": Field((2,), "float64", ("end",)),
        }
        return {name: fields[name] for name in self.only}

    def invalidation_keys(self) -> Mapping[str, Any]:
        return {"seed": self.seed}

    def __len__(self) -> int:
        return self.samples

    def produce(self, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{start} {stop} {','.join(sorted(fields))}\n")
        if self.trap is not None:
            self.trap(start, stop)
        values = {name: array[start:stop] for name, array in self.values().items()}
        return {name: values[name] for name in fields}

    def values(self) -> dict[str, NDArray[Any]]:
        """What the whole store must hold, native byte order."""
        index = np.arange(self.samples)
        phase = np.outer(index + 1, np.arange(48)).reshape(-1, 24, 2) * 0.01 + self.seed
        values = {
            "wave": (np.sin(phase) + self.drift).astype(np.float32),
            "count": (np.outer(index, np.arange(40)) * self.gain + self.seed).astype(np.int16),
            "f0": (index * 0.5 + self.seed + self.drift).astype(np.float32),
            "level": np.stack([index, -index], axis=1) + float(self.seed),
        }
        return {name: values[name] for name in self.only}


def same(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Equal in dtype, shape and bits."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    return (found.dtype, found.shape) == (wanted.dtype, wanted.shape) and found.tobytes() == wanted.tobytes()


def calls(log: Path) -> list[tuple[int, int, str]]:
    """The logged calls as (start, stop, fields)."""
    if not log.exists():
        return []
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(int(start), int(stop), fields) for start, stop, fields in lines]


def shard_bytes(store: Path) -> dict[str, bytes]:
    """Every shard file of every field."""
    return {
        str(file.relative_to(store)): file.read_bytes()
        for name in FIELDS
        for file in sorted((store / name / "c").rglob("*"))
        if file.is_file()
    }


def assert_holds(store: Store, loaf: Loaf) -> None:
    """The store is whole and has exactly the values of ``loaf``."""
    assert store.verify().damaged == ()
    assert store.samples == loaf.samples
    for name, values in loaf.values().items():
        np.testing.assert_array_equal(np.asarray(store[name]), values)


def leftovers(target: Path) -> list[str]:
    """What lies beside a store, or hidden in it, that a finished bake should have removed."""
    beside = [entry.name for entry in target.parent.iterdir() if entry.name.startswith(f"{target.name}.")]
    return sorted(beside) + sorted(str(file) for file in target.rglob(".*"))


@contextlib.contextmanager
def memory_folder(otherwise: Path) -> Iterator[Path]:
    """In memory where there is such a place: a killed process loses nothing that it wrote anyway."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


# ---- children


def start_child(call: Callable[[], object]) -> int:
    """Run ``call`` in a fork of this warm process; its exit status is 0 when it returned."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        call()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """Wait for a child: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(pid: int, seconds: float) -> int:
    """Kill a child unless it ends by itself before; how it ended, as ``ended`` says."""
    descriptor = os.pidfd_open(pid)
    try:
        select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    os.kill(pid, signal.SIGKILL)  # also of one that ended: it is ours until waited for
    return ended(pid)


class KillAt:
    """Kills its process just before the ``number``-th of the calls that change the disk, from any thread."""

    CALLS = ("rename", "fsync", "link", "unlink", "rmdir", "mkdir")

    def __init__(self, number: int) -> None:
        self._left = number

    def install(self) -> None:
        """Only in a child, which does not come back."""
        from parbake.store import publish

        for name in self.CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        publish._exchange = self._wrapped("exchange", publish._exchange)

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.reached(name, arguments)
            return call(*arguments, **named)

        return counted

    def reached(self, name: str, arguments: tuple[Any, ...]) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Listed(KillAt):
    """Lists the calls that KillAt counts in a file instead, a line each."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def reached(self, name: str, arguments: tuple[Any, ...]) -> None:
        paths = " ".join(str(argument) for argument in arguments)
        os.write(self._file, f"{name} {paths}\n".encode())
