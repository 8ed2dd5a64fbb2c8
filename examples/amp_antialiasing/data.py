"""Where the tones come from: a baked store, or the teacher itself in worker processes. The same numbers."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recipes import Recipe
from validation import LEVELS_DB

import parbake
from parbake.producers import SineTeacher

FIELDS = ("x", "y", "f0")
# Drawn for training: notes a little beyond those of a piano, and levels uniform in dB. Uniform amplitudes, as
# the paper draws them, leave one tone in ten below -20 dB, and a student is judged down to -36 dB.
MIDI_MAX, DB_MIN = 108.5, -42.0


def baked(task: SineTeacher, path: Path, num_samples: int | None) -> parbake.Samples:
    """The store of ``task`` at ``path``, baked first where it is missing or too small.

    ``num_samples`` None: all that the store has. Raises StaleStoreError with every changed key.
    """
    try:
        with parbake.open_store(path) as store:
            stored = store.samples
    except (parbake.StoreNotFoundError, parbake.UnfinishedStoreError):
        stored = 0
    if not task.validation:
        task = replace(task, num_samples=num_samples or stored or task.num_samples)
    if stored >= len(task):
        return parbake.open_store(path, expect=task)
    if stored:
        parbake.open_store(path, expect=replace(task, num_samples=stored)).close()
    print(f"{path}: baking {len(task) - stored:,} tones", flush=True)
    return parbake.bake(task, path)


def tasks(teacher: Path | None, config: Any) -> tuple[SineTeacher, SineTeacher]:
    """Tones through ``teacher`` (None: the one that parbake brings along) and their alias-free targets.

    Drawn ones to train on, and the notes of a piano at each of LEVELS_DB.
    """
    training = SineTeacher(
        teacher=teacher,
        config=config,
        target="bandlimited",
        midi_max=MIDI_MAX,
        db_min=DB_MIN,
        linear_db=True,
    )
    # made anew: the training tones of some set-ups are shorter
    validation = SineTeacher(
        teacher=teacher,
        config=config,
        target="bandlimited",
        validation=True,
        levels_db=LEVELS_DB,
    )
    return training, validation


class Draws(Iterable[int]):
    """The tones of an epoch, in whole batches from batch ``batch`` on: as many draws as there are tones.

    They are a function of the weights [tone], the seed and the epoch alone, so that a run resumes anywhere.
    """

    def __init__(self, weights: NDArray[np.float64], batch_tones: int, seed: int) -> None:
        self.epoch, self.batch = 0, 0
        self.batches = len(weights) // batch_tones  # of a whole epoch
        self._odds, self._seed, self._batch_tones = weights / weights.sum(), seed, batch_tones
        if not self.batches:
            raise parbake.RecipeError(
                f"{len(weights)} tones are fewer than a batch of {batch_tones}; "
                "more samples or a smaller batch are needed"
            )

    def __len__(self) -> int:
        return (self.batches - self.batch) * self._batch_tones

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self._seed, self.epoch))
        drawn = rng.choice(len(self._odds), self.batches * self._batch_tones, p=self._odds)
        return iter(drawn[self.batch * self._batch_tones :].tolist())


def draws_of(samples: parbake.Samples, recipe: Recipe, seed: int) -> Draws:
    """The draws of ``recipe`` among the tones of ``samples``."""
    return Draws(samples["f0"][:] ** recipe.f0_power, recipe.batch_tones, seed)


def batches_of(samples: parbake.Samples, draws: Draws, batch_tones: int, workers: int) -> Iterable[Any]:
    """Batches (x, y, f0); each iteration begins where ``draws`` says.

    A thread is enough to read a store; ``workers`` processes run the teacher where there is none.
    """
    dataset = parbake.StoreDataset(samples, FIELDS, as_tuple=True)
    if samples.is_stored:
        return parbake.BatchLoader(dataset, batch_tones, sampler=draws)
    return torch.utils.data.DataLoader(
        dataset,
        batch_tones,
        sampler=draws,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_deaf,
    )


def _deaf(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; this one finishes its batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
