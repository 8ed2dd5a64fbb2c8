"""What the README shows runs as it stands there, in one folder and from top to bottom."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from grids import box

from parbake.cli import main

ROOT = Path(__file__).resolve().parents[1]
README, LOADERS, CONTAINERS = (
    ROOT / "README.md",
    ROOT / "docs" / "loaders.md",
    ROOT / "docs" / "containers.md",
)
TASK = ["sine-teacher", "--duration", "0.02"]


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def run(*args: str) -> str:
    result = CliRunner().invoke(main, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a train.zarr as the README bakes it, but small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run("build", *TASK, "--num-samples", "100", "-o", "train.zarr")
    for name, steps in (("coarse", 3), ("fine", 6)):
        points, cells = box("triangle", steps)
        values = np.ones((4, len(points), 1), np.float32)
        times = np.arange(4.0)
        np.savez(
            f"{name}.npz",
            points=points,
            cells=cells["triangle"],
            times=times,
            fields=values,
            field_names=["T"],
        )
    return tmp_path


def test_python_of_the_readme_runs(folder: Path) -> None:
    code = blocks("python")
    assert len(code) >= 6
    (folder / "parbake_readme.py").write_text("\n".join(code))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # four workers, fewer cores
        names = vars(importlib.import_module("parbake_readme"))
    assert {"train", "store", "Waves", "teacher", "pair"} <= names.keys()


def test_python_of_the_loaders_page_runs(folder: Path) -> None:
    code = blocks("python", LOADERS)
    assert len(code) >= 4
    (folder / "parbake_loaders.py").write_text("\n".join(code))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = vars(importlib.import_module("parbake_loaders"))
    assert names["windows"][0]["x"].shape == (256, 1)
    assert names["again"].state_dict() == names["state"]


def test_the_containers_page_does_what_it_shows(folder: Path) -> None:
    (folder / "parbake_containers.py").write_text("\n".join(blocks("python", CONTAINERS)))
    names = vars(importlib.import_module("parbake_containers"))
    assert names["store"].is_foreign
    assert len(names["train"]) == 100
    torch.save([(torch.zeros(5, 1), torch.ones(5, 1), 440.0, -6.0)] * 3, "cached_train.pt")
    ours, legacy = blocks("console", CONTAINERS)
    for line in ours.splitlines():
        if line.startswith("$ parbake build"):
            line += " --duration 0.02"
        if line.startswith("$"):
            said = run(*shlex.split(line, comments=True)[2:])
    assert said.strip() == "equal"
    shutil.rmtree("train.zarr")
    run(*shlex.split(legacy.splitlines()[0], comments=True)[2:])


def test_class_of_the_readme_bakes_from_the_command_line(folder: Path) -> None:
    (folder / "simulations.py").write_text(next(code for code in blocks("python") if "class Waves" in code))
    run("build", "simulations:Waves", "--speed", "2", "-o", "waves.zarr")
    assert run("check", "waves.zarr", "simulations:Waves", "--speed", "2").strip() == "fresh"


def test_recipe_of_the_readme_is_one(folder: Path) -> None:
    from parbake.producers.recipe import load_recipe, make_producer, producer_class

    (folder / "recipe.yaml").write_text(blocks("yaml")[0])
    recipe = load_recipe("recipe.yaml")
    params = {name: value for name, value in recipe.params.items() if name not in ("teacher", "sample_rate")}
    assert len(make_producer(producer_class(recipe.producer), params)) == 50_000
