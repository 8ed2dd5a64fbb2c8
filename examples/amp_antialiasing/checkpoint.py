"""Where a run is, and how it goes on from there to the same weights, bit for bit."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from students import Student
from validation import Scores

from parbake import ParbakeError, RecipeError


@dataclass(frozen=True)
class Place:
    """A place between two batches. All that is random follows from the seed, ``epoch`` and ``batch``."""

    epoch: int = 0
    batch: int = 0  # of the epoch: the next one
    step: int = 0  # optimiser steps done
    total_steps: int | None = None  # of the whole run, once it is known
    trained_s: float = 0.0
    loss_sum: float = 0.0  # over the steps since the last report
    loss_steps: int = 0


@dataclass
class Run:
    """What changes while a run goes on. ``early``: the scores at a fifth of it, and its seconds so far."""

    student: Student
    optimiser: torch.optim.Optimizer
    place: Place
    early: tuple[Scores, float] | None = None

    def at(self, **changes: Any) -> None:
        self.place = replace(self.place, **changes)


def save(run: Run, identity: dict[str, Any], path: Path) -> None:
    """Writes the run to ``path``, which holds the old one or the new one whenever the machine stops."""
    early = None if run.early is None else (asdict(run.early[0]), run.early[1])
    content = {
        "identity": identity,
        "place": asdict(run.place),
        "early": early,
        "student": run.student.state_dict(),
        "optimiser": run.optimiser.state_dict(),
    }
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(run: Run, identity: dict[str, Any], path: Path) -> None:
    """Puts what ``path`` holds into ``run``. Raises RecipeError where it is of another run."""
    try:
        content = torch.load(path, weights_only=True)
        stored = dict(content["identity"])
    except Exception as error:  # cut, or no checkpoint at all: torch raises many kinds
        raise ParbakeError(f"{path}: no checkpoint that can be read ({type(error).__name__})") from None
    changes = [
        f"{name}: {stored.get(name)} -> {identity.get(name)}"
        for name in {**stored, **identity}
        if stored.get(name) != identity.get(name)
    ]
    if changes:
        raise RecipeError(f"{path}: of another run ({'; '.join(changes)}); name another --out")
    run.place = Place(**content["place"])
    if content["early"] is not None:
        scores, seconds = content["early"]
        run.early = Scores(**scores), seconds
    run.student.load_state_dict(content["student"])
    run.optimiser.load_state_dict(content["optimiser"])
