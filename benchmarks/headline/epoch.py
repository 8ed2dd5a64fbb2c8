"""Seconds of an epoch: the teacher in worker processes, as the guide's original, against a baked store."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import parbake
from headline.tasks import Task, tasks
from parbake.loaders.machine import cores
from parbake.loaders.timing import one_torch_thread
from parbake.producers import SineTeacher
from parbake.producers.audio.amp_models import load_amp_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "amp_antialiasing"))
from batch import train_batch
from checkpoint import Place, Run
from recipes import Recipe, recipe_for
from students import Student, student_of

FIELDS = ("x", "y", "f0", "dB")
ON_THE_FLY, BATCH_LOADER, DATA_LOADER = "on the fly", "BatchLoader", "DataLoader"
FREE_PASSES = 10  # epochs of a store that cost nothing else are too short to time one
TOLERANCE = 1e-3  # between the losses of two ways; a batch's width changes the last bits

Batch = Sequence[Tensor]
Step = Callable[[Batch], float]


@dataclass(frozen=True)
class Scale:
    tones: int
    batch: int
    rounds: int


FULL, QUICK = Scale(48, 16, 3), Scale(2, 1, 1)


@dataclass(frozen=True)
class Row:
    """Medians over rounds. ``waited``: the share of the epoch in which the loop waits for a batch.

    ``windows``: optimiser steps a batch, each on ``window_steps`` time steps.
    """

    teacher: str
    student: str
    windows: int
    window_steps: int
    way: str
    epoch_s: float
    waited: float


@dataclass(frozen=True)
class Result:
    """``bake_s``: seconds of baking the store, by teacher; ``workers``: processes of each DataLoader."""

    scale: Scale
    workers: int
    bake_s: dict[str, float]
    tone_s: dict[str, float]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Result:
        rows = tuple(Row(**row) for row in stored["rows"])
        return cls(**stored | {"scale": Scale(**stored["scale"]), "rows": rows})

    def row(self, teacher: str, student: str, way: str) -> Row:
        return next(r for r in self.rows if (r.teacher, r.student, r.way) == (teacher, student, way))

    def students(self, teacher: str) -> list[Row]:
        """A row of each of the teacher's students."""
        return [row for row in self.rows if (row.teacher, row.way) == (teacher, ON_THE_FLY)]


# ---- what an epoch is


class OneTone(Dataset[tuple[Tensor, ...]]):
    """The guide's original: each sample is computed when it is asked for, one tone at a time, in float64."""

    def __init__(self, producer: SineTeacher) -> None:
        self.producer = producer

    def __len__(self) -> int:
        return len(self.producer)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        sample = self.producer.produce(i, i + 1, FIELDS)
        return tuple(torch.as_tensor(sample[name])[0] for name in FIELDS)


class Order:
    """The sampler that all ways share; ``numbers`` is set before each epoch."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class Epoch:
    """``loss``: mean over batches, to compare ways by."""

    seconds: float
    waited: float
    loss: float


def run_epoch(batches: Iterable[Batch], step: Step) -> Epoch:
    """One pass, its beginning and its first batch counted in."""
    losses, waited = [], 0.0
    began = asked = time.perf_counter()
    for batch in batches:
        waited += time.perf_counter() - asked
        losses.append(step(batch))
        asked = time.perf_counter()
    ended = time.perf_counter()
    waited += ended - asked
    return Epoch(ended - began, waited / (ended - began), statistics.fmean(losses))


def free(batch: Batch) -> float:
    """Touches all of x and y."""
    return float(batch[0].square().sum() + batch[1].square().sum())


def teaching(student: Student, recipe: Recipe, sample_rate: float) -> Step:
    """What the example does with a batch, on all cores."""
    run = Run(student, torch.optim.Adam(student.parameters(), recipe.lr), Place())

    def step(batch: Batch) -> float:
        return train_batch(run, batch[:3], recipe, sample_rate, 0, cores()) / recipe.windows

    return step


# ---- measuring


def measure(folder: Path, quick: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of epochs, all ways in turn within each round, beside the workers."""
    scale = QUICK if quick else FULL
    workers = cores()
    bake_s, tone_s, rows = {}, {}, []
    with one_torch_thread():
        for task in tasks(quick):
            producer = task.producer(scale.tones, "bandlimited")
            path = folder / f"{task.name}.zarr"
            tell(f"epoch: {task.name}: baking {scale.tones} tones")
            tone_s[task.name] = (
                _seconds(lambda p=producer: [p.produce(i, i + 1, FIELDS) for i in range(2)]) / 2
            )
            bake_s[task.name] = _seconds(
                lambda p=producer, to=path: parbake.bake(p, to, progress=False).close()
            )
            rows += _rows(task, producer, path, scale, workers, tell)
    return asdict(Result(scale, workers, bake_s, tone_s, tuple(rows)))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _rows(
    task: Task, producer: SineTeacher, path: Path, scale: Scale, workers: int, tell: Callable[[str], None]
) -> list[Row]:
    order = Order()
    recipes = _recipes(producer, scale)
    plain: dict[str, Any] = {
        "batch_size": scale.batch,
        "sampler": order,
        "num_workers": workers,
        "persistent_workers": True,
    }
    dataset = parbake.StoreDataset(path, FIELDS, as_tuple=True)
    with dataset.store, parbake.BatchLoader(dataset, scale.batch, sampler=order) as threads:
        ways: dict[str, Iterable[Batch]] = {  # processes first: they are forked before there are threads
            ON_THE_FLY: DataLoader(OneTone(producer), **plain),
            DATA_LOADER: DataLoader(dataset, **plain),
            BATCH_LOADER: threads,
        }
        order.numbers = list(range(scale.batch))
        for batches in ways.values():  # starts them
            run_epoch(batches, free)
        taken = _taken(task.name, producer, ways, order, recipes, scale, tell)
    return [
        Row(
            task.name,
            student,
            recipes[student].windows,
            recipes[student].window_steps,
            way,
            statistics.median(e.seconds for e in epochs),
            statistics.median(e.waited for e in epochs),
        )
        for (student, way), epochs in taken.items()
    ]


def _taken(
    teacher: str,
    producer: SineTeacher,
    ways: dict[str, Iterable[Batch]],
    order: Order,
    recipes: dict[str, Recipe],
    scale: Scale,
    tell: Callable[[str], None],
) -> dict[tuple[str, str], list[Epoch]]:
    """An epoch of each round, by student and way."""
    taken: dict[tuple[str, str], list[Epoch]] = {}
    for number in range(scale.rounds):
        order.numbers = np.random.default_rng(number).permutation(scale.tones).tolist()
        for student, recipe in recipes.items():
            tell(f"epoch: {teacher}: {student} student, round {number + 1} of {scale.rounds}")
            for way, batches in ways.items():
                passes = FREE_PASSES if recipe.windows == 0 and way != ON_THE_FLY else 1
                found = [run_epoch(batches, _step(producer, recipe)) for _ in range(passes)]
                taken.setdefault((student, way), []).append(_middle(found))
            check_alike(teacher, {way: taken[student, way][-1].loss for way in ways})
    return taken


def _recipes(producer: SineTeacher, scale: Scale) -> dict[str, Recipe]:
    """How each student is taught, by its name; without windows it costs nothing."""
    recipe = recipe_for(load_amp_model(producer.teacher_path).kind)
    if scale is QUICK:
        recipe = replace(recipe, windows=1, window_steps=256)
    found = {"free": replace(recipe, windows=0), "light": replace(recipe, windows=1), "fine-tuning": recipe}
    if recipe.windows == 1:
        del found["light"]
    return found


def _step(producer: SineTeacher, recipe: Recipe) -> Step:
    """Every epoch begins with the same student."""
    if recipe.windows == 0:
        return free
    return teaching(student_of(producer.teacher_path), recipe, producer.sample_rate)


def _middle(epochs: Sequence[Epoch]) -> Epoch:
    return sorted(epochs, key=lambda epoch: epoch.seconds)[len(epochs) // 2]


def check_alike(teacher: str, losses: dict[str, float]) -> None:
    """Same batches in the same order give the same losses. Raises RuntimeError."""
    for way, loss in losses.items():
        if not np.isclose(loss, losses[ON_THE_FLY], rtol=TOLERANCE):
            raise RuntimeError(f"{teacher}: {way} gave loss {loss}, {ON_THE_FLY} gave {losses[ON_THE_FLY]}")
