"""Making the mesh datasets, first and second run: SciPy and pickles, as the guide, against parbake."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import Delaunay

from headline.tasks import DATA

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from grids import box

NAMES = ("coarse", "medium", "fine", "finest")
CHILD = Path(__file__).with_name("mesh_child.py")
CYLINDER = "the cylinder flow"
GENERATED = "generated squares"
PER_FIELD, SHARED, PICKLE = (
    "SciPy, built per field and step",
    "SciPy, one triangulation a pair",
    "pickle.load",
)
BAKE, OPEN, READ = "bake", "open", "open and read"

Series = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Scale:
    """``steps``: lengths of the series; ``square_steps``: cells along an edge of generated meshes.

    ``per_field_steps_max``: of the longest series on which SciPy is timed where it builds per field and step.
    """

    steps: tuple[int, ...]
    per_field_steps_max: int
    rounds: int
    second_rounds: int
    square_steps: tuple[int, ...] = (16, 31, 58, 103)


FULL = Scale((40, 1_000), 40, 2, 5)
QUICK = Scale((2,), 2, 1, 1, (3, 5, 6, 9))


@dataclass(frozen=True)
class Length:
    """Median seconds for all six pairs, by way; sizes in bytes on disk, of all six."""

    steps: int
    seconds: dict[str, float]
    pickle_nbytes: int
    store_nbytes: int


@dataclass(frozen=True)
class Result:
    data: str
    nodes: tuple[int, ...]
    lengths: tuple[Length, ...]

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Result:
        return cls(**stored | {"lengths": tuple(Length(**length) for length in stored["lengths"])})


def with_scaled(result: Result, length: Length) -> dict[str, float]:
    """Seconds by way; per field and step in proportion to the steps, from the longest that was timed."""
    if PER_FIELD in length.seconds:
        return length.seconds
    timed = max((one for one in result.lengths if PER_FIELD in one.seconds), key=lambda one: one.steps)
    return length.seconds | {PER_FIELD: timed.seconds[PER_FIELD] * length.steps / timed.steps}


# ---- the guide's original


def pickle_pairs(folder: Path, series: dict[str, Series], steps: int, way: str) -> None:
    """Interpolate ``steps`` steps of all pairs and pickle them in the guide's form, a file a pair."""
    interpolate = {PER_FIELD: per_field, SHARED: shared}[way]
    for one, other in combinations(NAMES, 2):
        source, target = series[one], series[other]
        values = interpolate(source["points"], target["points"], source["fields"][:steps])
        samples = [
            {"timestep": t, "coarse_interp": values[t], "fine_features": target["fields"][t]}
            for t in range(steps)
        ]
        with (folder / f"{one}-{other}.pkl").open("wb") as file:
            pickle.dump(samples, file)


def per_field(points: NDArray[Any], targets: NDArray[Any], fields: NDArray[Any]) -> list[NDArray[Any]]:
    """An interpolator for each channel of each step. [node, channel] float64 a step."""
    return [
        np.stack([LinearNDInterpolator(points, channel)(targets) for channel in step.T], axis=1)
        for step in fields
    ]


def shared(points: NDArray[Any], targets: NDArray[Any], fields: NDArray[Any]) -> list[NDArray[Any]]:
    """One triangulation, and one call a step for all channels."""
    triangulation = Delaunay(points)
    return [LinearNDInterpolator(triangulation, step)(targets) for step in fields]


# ---- measuring


def measure(folder: Path, quick: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """First runs in turn, then second ones, each of these in a fresh process; imports are not counted."""
    scale = QUICK if quick else FULL
    found = DATA / "cylinder"
    real = not quick and found.is_dir()
    series = {name: dict(np.load(found / f"{name}.npz")) for name in NAMES} if real else _squares(scale)
    coarse = series[NAMES[0]]
    shared(coarse["points"], coarse["points"], coarse["fields"][:1])  # libraries that load at first use
    lengths = tuple(_length(folder, series, steps, scale, tell) for steps in scale.steps)
    nodes = tuple(len(one["points"]) for one in series.values())
    return asdict(Result(CYLINDER if real else GENERATED, nodes, lengths))


def _squares(scale: Scale) -> dict[str, Series]:
    """Waves that travel over a unit square, on four meshes; 40 steps of four channels."""
    times_s = np.arange(40) / 40
    made = {}
    for name, cells_along in zip(NAMES, scale.square_steps, strict=True):
        points, cells = box("triangle", cells_along)
        x, y = points.T
        steps = [
            [np.sin(4 * x + t), np.cos(5 * y - t), np.sin(6 * x * y + t), x - y * np.cos(t)] for t in times_s
        ]
        fields = np.ascontiguousarray(np.array(steps, np.float32).transpose(0, 2, 1))
        made[name] = {
            "points": points,
            "cells": cells["triangle"],
            "times": times_s,
            "fields": fields,
            "field_names": np.array(["vx", "vy", "p", "T"]),
        }
    return made


def _length(
    folder: Path, series: dict[str, Series], steps: int, scale: Scale, tell: Callable[[str], None]
) -> Length:
    long = {name: lengthened(one, steps) for name, one in series.items()}
    here = folder / f"mesh-{steps}"
    pickles, cache = here / "pickles", here / "cache"
    pickles.mkdir(parents=True)
    for name, one in long.items():
        np.savez(here / f"{name}.npz", **one)
    taken: dict[str, list[float]] = {way: [] for way in (PER_FIELD, SHARED, BAKE, PICKLE, OPEN, READ)}
    if steps <= scale.per_field_steps_max:
        tell(f"mesh: {steps} steps: {PER_FIELD}")
        taken[PER_FIELD].append(_seconds(lambda: pickle_pairs(pickles, long, steps, PER_FIELD)))
    for number in range(scale.rounds):
        tell(f"mesh: {steps} steps: first runs, round {number + 1} of {scale.rounds}")
        taken[SHARED].append(_seconds(lambda: pickle_pairs(pickles, long, steps, SHARED)))
        shutil.rmtree(cache, ignore_errors=True)
        taken[BAKE].append(_child("bake", here, cache)["bake"])
    for number in range(scale.second_rounds):
        tell(f"mesh: {steps} steps: second runs, round {number + 1} of {scale.second_rounds}")
        for way, value in (_child("pickle", pickles) | _child("open", here, cache)).items():
            taken[way].append(value)
    sizes = [sum(f.stat().st_size for f in top.rglob("*") if f.is_file()) for top in (pickles, cache)]
    shutil.rmtree(here)
    medians = {way: statistics.median(values) for way, values in taken.items() if values}
    return Length(steps, medians, *sizes)


def lengthened(series: Series, steps: int) -> Series:
    """The series cut, or repeated, to ``steps`` steps."""
    times_s, fields = series["times"], series["fields"]
    every = float(times_s[1] - times_s[0])
    repeats = -(-steps // len(times_s))
    return series | {
        "times": times_s[0] + np.arange(steps) * every,
        "fields": np.tile(fields, (repeats, 1, 1))[:steps],
    }


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _child(job: str, *folders: Path) -> dict[str, float]:
    """Seconds of what a fresh process does, by way; what is remembered of files lies beside the stores."""
    run = [sys.executable, str(CHILD), job, *map(str, folders)]
    env = os.environ | {"PARBAKE_CACHE": str(folders[-1])}
    out = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout
    return dict(json.loads(out))
