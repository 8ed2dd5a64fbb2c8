"""``parbake bench``: what is measured and how, and what the command line tells of it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bakery import Loaf, refusal, tiny_slabs
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import parbake
from parbake import cli_bench
from parbake.cli import main
from parbake.errors import DamagedStoreError, ParbakeError, StoreNotFoundError
from parbake.loaders import machine, timing
from parbake.loaders.batch_loader import BatchLoader
from parbake.loaders.dataset import StoreDataset
from parbake.loaders.timing import LOADERS, Measurement, Setting, Subject, best, measure
from parbake.producers.bake import bake
from parbake.store.store import Store, open_store

LOAF = Loaf(samples=61)
WAVE_NBYTES = 24 * 2 * 4


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("bench") / "loaf.zarr"
    with pytest.MonkeyPatch.context() as patch:
        tiny_slabs(patch)
        bake(LOAF, path, progress=False).close()
        yield path


# ---- the clock


class Tape:
    """A loader and its clock: each epoch takes as long as the next list says, batch by batch."""

    def __init__(self, *epochs: Sequence[float], batch_size: int = 8) -> None:
        self._epochs = itertools.chain(map(list, epochs), itertools.repeat([]))
        self._batch_size = batch_size
        self.now = 100.0
        self.epochs_begun = 0

    def __call__(self) -> float:
        return self.now

    def __iter__(self) -> Iterator[Any]:
        self.epochs_begun += 1
        for seconds in next(self._epochs):
            self.now += seconds
            yield {"x": torch.ones(self._batch_size, 5), "f0": torch.ones(self._batch_size)}


def measured(tape: Tape, workers: int = 0, seconds: float = 1.0, cold: bool = False) -> Measurement:
    return measure(Setting("DataLoader", 8, workers), tape, seconds, cold=cold, clock=tape)


def test_the_first_batch_is_told_apart_and_not_counted() -> None:
    found = measured(Tape([5.0, *[0.25] * 50]))
    assert (found.first_batch_s, found.batches, found.seconds) == (5.0, 4, 1.0)
    assert (found.samples, found.nbytes) == (32, 32 * 6 * 4)
    assert (found.samples_per_s, found.nbytes_per_s) == (32, 32 * 24)


def test_what_workers_read_ahead_of_the_first_batch_is_no_speed() -> None:
    burst = Tape([2.0, 0, 0, 0, 0, *[0.25] * 50])  # two workers, each two ahead
    assert measured(burst, workers=2).samples_per_s == 32


def test_at_least_three_batches_are_counted_however_slow() -> None:
    found = measured(Tape([9.0] * 50), workers=4, seconds=0.1)
    assert (found.batches, found.seconds) == (3, 27.0)


def test_it_goes_on_until_batches_beyond_those_read_ahead_have_come() -> None:
    tape = Tape([0.25] * 50)
    assert measured(tape, workers=2, seconds=0.75).batches == 3
    assert tape.now == 102.0  # eight: the first, four that were under way and three


def test_no_batch_is_kept_while_the_next_one_is_read() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def batches() -> Iterator[Any]:
        for _ in range(5):
            assert all(one() is None for one in kept)
            tensor = torch.ones(8, 5)
            kept.append(weakref.ref(tensor))
            yield [tensor]
            del tensor

    measure(Setting("DataLoader", 8, 0), batches(), 0.0, cold=True)
    assert len(kept) == 4


def test_a_setting_that_is_slow_to_get_going_is_given_up_waiting_for() -> None:
    tape = Tape([1.0] * 50)
    assert measured(tape, workers=8, seconds=1.0).batches == 3
    assert tape.now == 104.0  # not the seventeen of the lead


def test_epoch_follows_epoch() -> None:
    tape = Tape(*[[0.5, 0.25]] * 9)
    found = measured(tape, seconds=2.0)
    assert tape.epochs_begun == 4
    assert (found.samples, found.seconds) == (48, 2.25)


def test_cold_is_one_epoch() -> None:
    tape = Tape([1.0, 0.5, 0.25], [0.125] * 50)
    found = measured(tape, workers=2, seconds=9.0, cold=True)
    assert tape.epochs_begun == 1
    assert (found.cold, found.batches, found.seconds) == (True, 2, 0.75)


def test_an_epoch_of_one_batch_is_measured_from_its_start() -> None:
    found = measured(Tape([0.5], [0.25]), cold=True)
    assert (found.batches, found.samples_per_s, found.first_batch_s) == (1, 16, 0.5)


def test_no_batches_are_no_measurement() -> None:
    with pytest.raises(ParbakeError, match="an epoch without batches"):
        measured(Tape([]))


DTYPES = ("bool", "uint8", "int16", "uint16", "uint32", "uint64", "float16", "float32", "complex64")


def test_every_value_of_every_batch_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    summed = []
    plain = torch.Tensor.sum
    monkeypatch.setattr(torch.Tensor, "sum", lambda self: (summed.append(self.data_ptr()), plain(self))[1])
    batch = [torch.from_numpy(np.ones((3, 4), dtype)) for dtype in DTYPES]
    nbytes = sum(tensor.nbytes for tensor in batch)
    assert timing.touched(batch) == timing.touched(dict(enumerate(batch))) == (3, nbytes)
    assert summed == [tensor.data_ptr() for tensor in batch] * 2
    measured(tape := Tape([0.25] * 50))
    assert len(summed) == 2 * len(DTYPES) + 2 * round((tape.now - 100) / 0.25)


# ---- what to measure


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=4), st.lists(st.integers(0, 5), min_size=1, max_size=4)
)
def test_each_loader_meets_each_batch_size_and_number_of_workers_once(
    batch_sizes: list[int], workers: list[int]
) -> None:
    found = timing.settings_of(batch_sizes, workers)
    assert len(set(found)) == len(found)
    for loader, least, skips in (("DataLoader", 0, False), ("BatchLoader", 1, False), ("ds.loader", 1, True)):
        counts = {count for count in workers if count} if skips else {max(count, least) for count in workers}
        wanted = set(itertools.product(batch_sizes, counts))
        assert {(one.batch_size, one.workers) for one in found if one.loader == loader} == wanted
    assert [one.batch_size for one in found] == sorted(one.batch_size for one in found)


@given(st.integers(1, 10**6), st.integers(1, 2**31))
def test_batch_sizes_where_nobody_says_fit_the_store_and_memory(samples: int, sample_nbytes: int) -> None:
    sizes = timing.default_batch_sizes(samples, sample_nbytes)
    assert 1 <= len(sizes) <= 3
    assert all(4 * one == other for one, other in itertools.pairwise(sizes))
    assert sizes[-1] <= min(samples, 256)
    assert sizes[-1] == 1 or sizes[-1] * sample_nbytes <= 256 * 1024**2
    if samples >= 256 and sample_nbytes <= 1024**2:
        assert sizes == [16, 64, 256]


MIB = 1024**2


@pytest.mark.parametrize(
    ("setting", "memory", "shared", "reason"),
    [
        (Setting("DataLoader", 101, 0), None, None, "the store has fewer than 101 samples: 100"),
        (Setting("DataLoader", 100, 0), None, None, None),
        (
            Setting("DataLoader", 100, 0),
            249 * MIB,
            None,
            "200 MiB of batches, and 249 MiB of memory are free",
        ),
        (Setting("DataLoader", 100, 0), 250 * MIB, 0, None),  # two batches; none through /dev/shm
        (
            Setting("DataLoader", 100, 2),
            9999 * MIB,
            749 * MIB,
            "600 MiB of batches, and 749 MiB of /dev/shm",
        ),
        (Setting("DataLoader", 100, 2), 9999 * MIB, 750 * MIB, None),
        (Setting("ds.loader", 100, 2), 9999 * MIB, 0, None),
        (Setting("ds.loader", 100, 2), 999 * MIB, None, "800 MiB of batches"),
        (Setting("BatchLoader", 100, 1), 749 * MIB, None, "600 MiB of batches"),
        (Setting("BatchLoader", 100, 1), 750 * MIB, 0, None),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(
    setting: Setting, memory: int | None, shared: int | None, reason: str | None
) -> None:
    found = timing.refusal(setting, 100, MIB, memory, shared)
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")


def test_the_slots_that_are_reckoned_with_are_those_that_the_loaders_make(path: Path) -> None:
    dataset = StoreDataset(path, "wave")
    with BatchLoader(dataset, 8, threads=3) as loader:
        assert Setting("BatchLoader", 8, 3).batches_in_memory == loader._new_slots().count
    shared = dataset.loader(8, num_workers=2)
    batch = next(iter(shared))
    assert len(batch["wave"]) == 8
    assert Setting("ds.loader", 8, 2).batches_in_memory == shared._crew._slots.count  # type: ignore[union-attr]


@pytest.mark.parametrize("fields", [None, ("wave", "f0")])
@pytest.mark.parametrize("setting", timing.settings_of([5], [0, 2]), ids=str)
def test_the_code_makes_what_was_measured(
    path: Path, setting: Setting, fields: tuple[str, ...] | None
) -> None:
    made = eval(setting.code(path, fields).removeprefix("loader = "), {"parbake": parbake, "torch": torch})
    wanted = setting.made(StoreDataset(path, fields))
    assert type(made) is type(wanted)
    assert made.dataset.fields == wanted.dataset.fields
    for name in ("batch_size", "num_workers", "persistent_workers", "_threads", "_ahead", "_workers"):
        assert getattr(made, name, None) == getattr(wanted, name, None)
    assert made.batch_size == 5
    assert len(next(iter(made))["f0"]) == 5


@pytest.mark.parametrize("name", ['a"b', "it's", "a\\b", "\x1b[31m\x9b", "ä 雪 😀", "{x}"])
def test_any_path_is_code(name: str) -> None:
    code = Setting("DataLoader", 5, 0).code(name)
    assert code.isprintable()

    class Parbake:
        StoreDataset = staticmethod(lambda path: [path])

    loader = eval(code.removeprefix("loader = "), {"parbake": Parbake, "torch": torch})
    assert loader.dataset == [name]


def rated(setting: Setting, rate: float) -> Measurement:
    return Measurement(setting, False, 0.1, 10, round(rate * 10), 1, 10.0)


def test_the_best_is_the_fastest_but_for_simpler_ones_that_are_as_fast() -> None:
    fast = rated(Setting("ds.loader", 64, 2), 1000)
    assert best([rated(Setting("DataLoader", 64, 0), 949), fast]) == fast
    simpler = [
        fast,
        replace(fast, setting=Setting("DataLoader", 64, 2)),
        rated(Setting("DataLoader", 64, 1), 999),
        rated(Setting("BatchLoader", 64, 2), 950),
        rated(Setting("BatchLoader", 64, 1), 960),
        rated(Setting("BatchLoader", 16, 1), 970),
        rated(Setting("DataLoader", 256, 0), 951),
    ]
    for count in range(1, len(simpler)):
        assert best(simpler[: count + 1]) == simpler[count]
        assert best(simpler[count::-1]) == simpler[count]


# ---- the machine


def test_the_files_of_a_store_are_those_of_the_fields_that_are_read(path: Path) -> None:
    everything = machine.files_of(path)
    assert {file.relative_to(path).parts[0] for file in everything} >= {"zarr.json", "wave", "f0", "time"}
    assert set(everything) == {file for file in path.rglob("*") if file.is_file()}
    chosen = Subject.at(path, ["f0"]).files
    assert set(chosen) == {
        file for file in everything if not {"wave", "count", "level"} & {file.relative_to(path).parts[0]}
    }
    assert machine.files_of(path / "zarr.json") == [path / "zarr.json"]


def test_every_file_is_read_ahead_unless_the_time_is_over(path: Path, tmp_path: Path) -> None:
    files = machine.files_of(path)
    assert machine.read_ahead(files, 60) == sum(file.stat().st_size for file in files)
    large = tmp_path / "large"
    large.write_bytes(bytes(9 * 1024**2))
    assert 0 < machine.read_ahead([large], -1) < 9 * 1024**2


def test_each_file_is_forgotten_whole_and_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        told.append((Path(f"/proc/self/fd/{descriptor}").readlink(), offset, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    before = os.listdir("/proc/self/fd")
    machine.forget(files := machine.files_of(path))
    assert told == [(file, 0, 0) for file in files]
    assert len(os.listdir("/proc/self/fd")) == len(before)
    monkeypatch.delattr(os, "posix_fadvise")
    assert "measure warm only" in refusal(lambda: machine.forget(files))


def test_free_memory_is_what_the_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.free_memory_nbytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:     800 kB\n")
    assert machine.free_memory_nbytes() == 800 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for limit, free in (("max", 800 * 1024), ("5000", 4000), ("99999999", 800 * 1024)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert machine.free_memory_nbytes() == free
    monkeypatch.setattr(machine, "_SHARED", tmp_path / "none")
    assert machine.free_shared_memory_nbytes() is None


# ---- a store


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("setting", timing.settings_of([8], [0, 2]), ids=str)
def test_a_store_is_measured_by_every_loader(
    path: Path, setting: Setting, cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def watched(path: Path, **options: Any) -> Store:
        opened.append((open_store(path, **options), options))
        return opened[-1][0]

    subject = Subject.at(path, ["wave"])
    assert (subject.samples, subject.sample_nbytes) == (61, WAVE_NBYTES)
    monkeypatch.setattr(timing, "open_store", watched)
    forgotten = []
    monkeypatch.setattr(timing, "forget", forgotten.append)
    made = []
    make = Setting.made
    monkeypatch.setattr(Setting, "made", lambda *given: (made.append(make(*given)), made[-1])[1])
    threads = torch.get_num_threads()
    found = subject.measured(setting, 0.001, cold=cold)
    assert torch.get_num_threads() == threads
    assert (found.setting, found.cold) == (setting, cold)
    assert found.nbytes == found.samples * WAVE_NBYTES
    assert found.batches >= 3
    assert found.first_batch_s > 0
    assert forgotten == ([subject.files] if cold else [])
    [(store, options)] = opened
    assert options == {"checksums": "first" if cold else "never", "sample_dim": None}
    with pytest.raises(ValueError, match="closed"):
        store.read([0])
    if setting.loader == "BatchLoader":
        with pytest.raises(ParbakeError, match="this BatchLoader is closed"):
            iter(made[0])


@pytest.mark.parametrize("setting", timing.settings_of([8], [0, 1]), ids=str)
def test_damage_that_any_loader_finds_is_told_in_one_line(
    path: Path, tmp_path: Path, setting: Setting
) -> None:
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(path, damaged)
    for file in (damaged / "wave" / "c").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedStoreError, match=rf"^{damaged}: field 'wave', shard \d.*verify") as caught:
        Subject.at(damaged, ["wave"]).measured(setting, 0.1)
    assert "\n" not in str(caught.value)


# ---- the command line


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["bench", *args], prog_name="parbake", env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


QUICK = ("--seconds", "0.001")


def test_a_row_for_each_setting_and_the_best_as_code(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    lines = run("loaf.zarr", "--batch-size", "4,16", "--workers", "0,1", *QUICK).stdout.splitlines()
    assert lines[0].split() == ["loader", "batch", "workers", "samples/s", "MB/s", "first", "batch"]
    rows = [line.split()[:3] for line in lines[1:9]]
    assert [row[:2] for row in rows] == [
        [name, size] for size in ("4", "16") for name in (LOADERS[0], *LOADERS)
    ]
    assert [row[2] for row in rows[:4]] == ["0", "1", "1", "1"]  # of BatchLoader a thread
    assert all(line.endswith(" ms") or line.endswith(" s") for line in lines[1:9])
    assert lines[9].startswith("best: ")
    assert lines[10].startswith("loader = ")
    assert 'parbake.StoreDataset("loaf.zarr")' in lines[10]
    assert len(lines) == 11


def test_a_table_of_large_numbers_fits_80_columns_without_colour(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(self: Subject, setting: Setting, seconds: float, *, cold: bool = False) -> Measurement:
        return Measurement(setting, cold, 123.4, 10, 99_999_990 if cold else 98_765_432, 10**11, 10.0)

    monkeypatch.setattr(Subject, "measured", large)
    result = run(str(path), "--batch-size", "61", "--workers", "16", "--cold")
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    assert max(map(len, lines[:4])) <= 80
    assert "\x1b" not in result.output
    assert lines[0].split()[-4:] == ["batch", "cold", "first", "cold"]
    assert lines[1].split() == [
        "DataLoader",
        "61",
        "16",
        *["9,876,543", "10,000", "2", "min", "3", "s"],
        *["9,999,999", "2", "min", "3", "s"],
    ]
    assert lines[4].endswith(" 9,876,543 samples/s")  # the best is of the warm ones


def test_json_has_every_number(path: Path) -> None:
    args = (
        "--fields",
        "wave,f0",
        "--fields",
        "level",
        "--batch-size",
        "4",
        "--batch-size",
        "99",
        "--workers",
        "0",
    )
    result = run(str(path), *args, "--cold", "--json", *QUICK)
    found = json.loads(result.stdout)
    assert found["path"] == str(path)
    assert found["fields"] == ["wave", "f0", "level"]
    assert (found["samples"], found["sample_nbytes"]) == (61, WAVE_NBYTES + 4 + 16)
    rows = [(one["loader"], one["batch_size"], one["workers"], one["cold"]) for one in found["measured"]]
    assert rows == [
        (*one, cold) for cold in (True, False) for one in (("DataLoader", 4, 0), ("BatchLoader", 4, 1))
    ]
    for one in found["measured"]:
        assert one["samples_per_s"] == one["samples"] / one["seconds"]
        assert one["nbytes_per_s"] == one["nbytes"] / one["seconds"]
        assert one["nbytes"] == one["samples"] * found["sample_nbytes"]
        assert {"first_batch_s", "batches"} <= set(one)
    assert found["skipped"] == [
        {
            "loader": name,
            "batch_size": 99,
            "workers": workers,
            "reason": "the store has fewer than 99 samples: 61",
        }
        for name, workers in (("DataLoader", 0), ("BatchLoader", 1))
    ]
    assert found["best"]["code"].startswith("loader = ")
    assert 'fields=["wave", "f0", "level"]' in found["best"]["code"]


def test_what_was_skipped_is_told_on_stderr(path: Path) -> None:
    result = run(str(path), "--batch-size", "4,99", "--workers", "0", *QUICK)
    assert result.stderr.splitlines() == [
        "skipped: DataLoader, batches of 99, 0 workers and 1 more: the store has fewer than 99 samples: 61"
    ]
    assert "99" not in [line.split()[1] for line in result.stdout.splitlines()[1:3]]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("missing.zarr",), 1, "missing.zarr: nothing there; bake it first"),
        (("{path}", "--fields", "wave,nope"), 2, "no field 'nope'; there are wave, count, f0, level"),
        (("{path}", "--batch-size", "99"), 2, "nothing to measure: the store has fewer than 99 samples: 61"),
        (("{path}", "--batch-size", "0"), 2, "'0' is not a list of batch sizes; for example 16,64"),
        (("{path}", "--workers", "-1"), 2, "'-1' is not a list of numbers of workers; for example 0,2"),
        (("{path}", "--workers", "two"), 2, "'two' is not a list of numbers of workers"),
        (("{path}", "--seconds", "0"), 2, "'0' is not a time above 0; for example 0.5"),
        (("{path}", "--seconds", "nan"), 2, "'nan' is not a time above 0"),
        (("{path}", "--seconds", "inf"), 2, "'inf' is not a time above 0"),
        ((), 2, "Missing argument 'PATH'"),
    ],
)
def test_errors_are_one_line(path: Path, args: tuple[str, ...], code: int, message: str) -> None:
    result = run(*(arg.format(path=path) for arg in args), code=code)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("parbake: error: ")
    assert message in line


def test_without_options_it_takes_half_a_minute_at_most(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def noted(self: Subject, setting: Setting, seconds: float, *, cold: bool = False) -> Measurement:
        given.append((cold, seconds))
        return Measurement(setting, cold, 0.1, 3, 10, 10, 1.0)

    monkeypatch.setattr(Subject, "measured", noted)
    for options in ((), ("--cold",)):
        given.clear()
        run(str(path), *options)
        assert sum(seconds for _, seconds in given) <= cli_bench.TOTAL_S
        assert max(seconds for _, seconds in given) <= 1
        assert [cold for cold, _ in given] == sorted((cold for cold, _ in given), reverse=True)
    given.clear()
    run(str(path), "--seconds", "7")
    assert {seconds for _, seconds in given} == {7}


def test_files_that_take_too_long_to_read_ahead_are_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_ahead", lambda files, seconds: 2048)
    told = run(str(path), "--batch-size", "4", "--workers", "0", *QUICK).stderr
    assert f"{path}: 2.00 KiB of " in told
    assert "what is called warm may wait for the disk" in told


def test_progress_goes_to_stderr_every_few_seconds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "LINE_EVERY_S", 0.0)
    result = run(str(path), "--batch-size", "4", "--workers", "0", *QUICK)
    assert result.stderr.splitlines() == [
        "setting 1 of 2: DataLoader, batches of 4, 0 workers",
        "setting 2 of 2: BatchLoader, batches of 4, 1 thread",
    ]


def test_what_a_loader_raises_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(self: Subject, *_: Any, **__: Any) -> Any:
        raise StoreNotFoundError("gone: two\nlines")

    monkeypatch.setattr(Subject, "measured", replaced)
    assert run(str(path), code=1).stderr == "parbake: error: gone: two lines\n"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from parbake.cli import main; main(['bench', '--help'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    helped = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert helped.returncode == 0, helped.stderr
    assert "--batch-size" in helped.stdout
