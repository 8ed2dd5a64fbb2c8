"""The headline numbers are measured, and the page says what was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bakery import memory_folder
from pages import blocks_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_headline
from headline import disk, epoch, memory, mesh, page, text

TITLES = {
    "epoch": "## Epoch time: on the fly against cached",
    "mesh": "## Making a dataset of mesh pairs: first and second run",
    "disk": "## Disk: bytes a sample",
    "memory": "## Memory: a training run from the store against the list in RAM",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a shortened run leaves, its own stores in memory."""
    with memory_folder(tmp_path_factory.mktemp("headline")) as here, pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        bench_headline.main(["--quick", "--out", str(here)])
        yield here


@pytest.fixture
def written(folder: Path) -> str:
    return (folder / "headline.md").read_text()


@pytest.fixture
def results(folder: Path) -> dict[str, Any]:
    sections = json.loads((folder / "headline.json").read_text())["sections"]
    return {name: section["result"] for name, section in sections.items()}


def rows_of(written: str, section: str) -> list[list[str]]:
    """All rows of the tables of one section, marks of emphasis taken off."""
    part = written.split(TITLES[section])[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]


def test_page_has_all_sections_and_says_that_it_is_shortened(written: str) -> None:
    places = [written.index(title) for title in TITLES.values()]
    assert places == sorted(places)
    assert page.SHORTENED in written
    for what in ("Python", "torch", "numpy", "zarr", "parbake", "cores", "GiB", "measured on"):
        assert what in written


def test_page_runs_no_code_and_its_lines_are_short(written: str) -> None:
    assert blocks_of(written) == []
    assert "```" not in written
    assert max(len(line) for line in written.splitlines() if not line.startswith("|")) <= 120


def test_nothing_but_page_and_numbers_is_left(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["headline.json", "headline.md"]


def test_speeds_of_epochs_are_those_of_the_numbers(written: str, results: dict[str, Any]) -> None:
    seconds = {(r["student"], r["way"]): r["epoch_s"] for r in results["epoch"]["rows"]}
    assert len(seconds) == 2 * 3
    shown = {
        (student, way.removeprefix("cached, ")): (taken, ratio)
        for _, student, way, taken, ratio, _ in rows_of(written, "epoch")[1:]
    }
    for (student, way), taken in seconds.items():
        ratio = seconds[student, epoch.ON_THE_FLY] / taken
        assert shown[student, way] == (text.number(taken), text.times(ratio))
    # the teacher costs what the cached epoch does without
    assert seconds["free", epoch.ON_THE_FLY] > 3 * seconds["free", epoch.BATCH_LOADER]


def test_ratios_of_mesh_runs_are_those_of_the_numbers(written: str, results: dict[str, Any]) -> None:
    (length,) = results["mesh"]["lengths"]
    seconds = length["seconds"]
    shown = dict(rows_of(written, "mesh"))
    for name, slow, fast in page.MESH_RATIOS:
        assert shown[name] == text.times(seconds[slow] / seconds[fast])
    assert set(seconds) == set(page.MESH_WAYS)
    assert seconds[mesh.OPEN] < seconds[mesh.READ]


def test_sizes_are_those_of_the_numbers_and_of_the_tones(written: str, results: dict[str, Any]) -> None:
    (tones,) = results["disk"]["tones"]
    nbytes, plain = tones["nbytes"], 2 * tones["steps"] * 8
    shown = {row[0]: row[1:] for row in rows_of(written, "disk")}
    for name, value in nbytes.items():
        assert shown[name][0] == text.size(value)
        assert shown[name][1] == f"{value / nbytes[disk.TORCH_SAVE]:.2f}"
        assert shown[name][-1] == text.size(100_000 * value)
    assert nbytes[disk.TORCH_SAVE] == pytest.approx(plain, rel=0.01)
    assert nbytes["Zarr zstd"] < nbytes["Zarr lz4"] < nbytes["Zarr raw"] < plain
    said = written.replace("\n", " ")
    assert "2 x 52,920 x 8 bytes = 847 kB, so the guide's table is too small by a factor of 17." in said


def test_memory_shown_is_that_of_the_numbers(written: str, results: dict[str, Any]) -> None:
    rows = results["memory"]["rows"]
    shown = {
        (way.removeprefix("store, "), int(n)): peak
        for way, n, _, peak, _, _ in rows_of(written, "memory")[1:]
    }
    assert shown == {(row["way"], row["samples"]): text.size(row["private_nbytes"]) for row in rows}
    few, many = memory.QUICK.samples
    result = memory.Result.of(results["memory"])
    grown = result.row(memory.LIST, many).private_nbytes - result.row(memory.LIST, few).private_nbytes
    assert grown > 0.8 * (many - few) * 2 * result.steps * 8  # the list is in RAM, and it is seen


def test_page_is_made_again_from_the_numbers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "headline.json").write_text((folder / "headline.json").read_text())
    bench_headline.main(["--render", "--out", str(tmp_path)])
    assert (tmp_path / "headline.md").read_text() == (folder / "headline.md").read_text()


def test_sections_that_are_not_measured_stay_unless_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(bench_headline.SECTIONS, "disk", lambda *_: {"tones": [TONES]})
    monkeypatch.setitem(bench_headline.SECTIONS, "memory", lambda *_: MEMORY)
    for name in ("disk", "memory"):
        bench_headline.main(["--only", name, "--out", str(tmp_path)])
    written = (tmp_path / "headline.md").read_text()
    assert TITLES["disk"] in written
    assert TITLES["memory"] in written
    assert page.SHORTENED not in written
    numbers = json.loads((tmp_path / "headline.json").read_text())
    numbers["environment"]["packages"]["torch"] = "0.1"
    (tmp_path / "headline.json").write_text(json.dumps(numbers))
    bench_headline.main(["--only", "memory", "--out", str(tmp_path)])
    assert TITLES["disk"] not in (tmp_path / "headline.md").read_text()


def test_a_section_that_there_is_not_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench_headline.main(["--only", "epoch,disc"])
    assert "no section disc; there are epoch, mesh, disk, memory" in capsys.readouterr().err


TONES = {
    "teacher": "LSTM",
    "samples": 2,
    "steps": 52_920,
    "sample_rate_hz": 44_100.0,
    "nbytes": dict.fromkeys((disk.TORCH_SAVE, *disk.STORES), 1e6),
}
MEMORY = {
    "steps": 5_292,
    "rows": [
        {"way": way, "samples": n} | dict.fromkeys(("file_nbytes", "mapped_nbytes", "resident_nbytes"), 1)
        | {"private_nbytes": 100 * (n if way == memory.LIST else 7)}
        for way in (memory.LIST, memory.BATCH_LOADER)
        for n in (20, 200)
    ],
}  # fmt: skip


def test_teachers_that_were_not_at_hand_are_named() -> None:
    both = page.TEXTS["disk"]({"tones": [TONES, TONES | {"teacher": "TCN"}]})
    assert "at hand" not in both
    assert "Not at hand where this was measured: the paper's TCN." in page.TEXTS["disk"]({"tones": [TONES]})


def test_growth_of_memory_is_said() -> None:
    said = page.TEXTS["memory"](MEMORY)
    assert "10 times the samples take 10 (list in RAM) and 1 (BatchLoader) times the private memory." in said
    assert "**29** times" in said


def test_time_per_field_and_step_is_scaled_where_it_was_not_taken() -> None:
    taken = dict.fromkeys(page.MESH_WAYS, 1.0)
    rest = {way: 2.0 for way in taken if way != mesh.PER_FIELD}
    lengths = [
        {"steps": steps, "seconds": seconds, "pickle_nbytes": 1, "store_nbytes": 1}
        for steps, seconds in ((40, taken), (1_000, rest))
    ]
    said = page.TEXTS["mesh"]({"data": "a flow", "nodes": [3, 4], "lengths": lengths})
    row = next(line for line in said.splitlines() if mesh.PER_FIELD in line)
    assert row.endswith("| 1.00 | 25.0 |")
    assert "at 1,000 steps is scaled up" in said


# ---- what is compared is alike


def test_ways_that_train_on_other_batches_are_refused() -> None:
    epoch.check_alike("LSTM", {epoch.ON_THE_FLY: 1.0, epoch.BATCH_LOADER: 1.00001})
    with pytest.raises(RuntimeError, match="BatchLoader gave loss"):
        epoch.check_alike("LSTM", {epoch.ON_THE_FLY: 1.0, epoch.BATCH_LOADER: 1.01})


def test_waiting_is_told_from_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that counts three seconds for a batch and one for the step."""
    now = [0.0]
    monkeypatch.setattr(epoch.time, "perf_counter", lambda: now[0])

    def pass_time(seconds: float) -> float:
        now[0] += seconds
        return seconds

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for _ in range(5):
            pass_time(3.0)
            yield (torch.zeros(1),)
        pass_time(2.0)  # until it is told that there is no more

    found = epoch.run_epoch(batches(), lambda _: pass_time(1.0))
    assert found.seconds == 5 * 4.0 + 2.0
    assert found.waited == pytest.approx(17 / 22)


def test_scipy_gives_alike_in_both_readings_of_the_guide() -> None:
    series = mesh._squares(mesh.QUICK)
    coarse, fine = series["coarse"], series["finest"]
    given = [
        way(coarse["points"], fine["points"], coarse["fields"][:2]) for way in (mesh.per_field, mesh.shared)
    ]
    np.testing.assert_allclose(given[0], given[1], rtol=1e-6)
    assert np.shape(given[0]) == (2, len(fine["points"]), 4)


def test_a_longer_series_repeats_its_steps() -> None:
    series = mesh._squares(mesh.QUICK)["coarse"]
    longer = mesh.lengthened(series, 50)
    assert len(longer["times"]) == len(longer["fields"]) == 50
    assert (np.diff(longer["times"]) > 0).all()
    np.testing.assert_array_equal(longer["fields"][40:], series["fields"][:10])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.01234, "0.0123"), (9.996, "10.0"), (45.62, "45.6"), (1_234_567, "1,230,000")],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.123, "0.12"), (7.26, "7.3"), (99.6, "99.6"), (1_912, "1,910")]
)
def test_ratios_have_two_digits(value: float, shown: str) -> None:
    assert text.times(value) == shown
