"""How each family of network is taught: every number of it in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """The numbers of a family's training.

    A batch of tones gives ``windows`` stretches of ``window_steps`` time steps, one after the other, with one
    optimiser step each; the state goes from each to the next, gradients do not. The first begins at a random
    place, at least ``settle_steps`` into the second that the target keeps: the state of an LSTM takes some
    16,000 steps to settle, a WaveNet looks back on 8,191, and what comes before is no steady tone.
    """

    lr: float  # of Adam at the beginning; it falls to zero along half a cosine
    batch_tones: int
    window_steps: int
    windows: int
    settle_steps: int
    warm_steps: int | None = None  # run before it, without gradients; None: the tone from its start
    clip_norm: float = 1.0  # of the gradient
    # a tone's ratio is the weighted sum of these, each over the energy of its target
    esr_weight: float = 1.0
    dc_weight: float = 1.0
    spectral_weight: float = 0.0  # error between the harmonics: what aliases are
    # loss = log_weight mean(log(ratio + floor)) + mean_weight mean(ratio): the logarithm makes every tone
    # count alike, the mean keeps the worst from being given up
    log_weight: float = 1.0
    mean_weight: float = 20.0
    floor: float = 1e-5
    # which tones teach
    f0_max_hz: float = 4300.0  # above, two or three harmonics are all there is to learn
    db_min: float = -45.0
    esr_s_power: float = 0.0  # tones are drawn by this power of their alias ratio; 0: all alike


RECIPES: Mapping[str, Recipe] = {
    "LSTM": Recipe(lr=1e-3, batch_tones=32, window_steps=1024, windows=16, settle_steps=7000),
    "WaveNet": Recipe(
        lr=1e-3, batch_tones=8, window_steps=8192, windows=2, settle_steps=6000, warm_steps=8192
    ),
}


def draw_weights(recipe: Recipe, esr_s: Reals | None, f0_hz: Reals, level_db: Reals) -> Reals:
    """How likely each tone is drawn, [tone], up to a factor; 0: never.

    ``esr_s``: the teacher's alias ratio of each tone, asked for only where ``esr_s_power`` is not 0.
    """
    teaches = (f0_hz <= recipe.f0_max_hz) & (level_db >= recipe.db_min)
    weights = np.where(teaches, 1.0, 0.0)
    if recipe.esr_s_power and esr_s is not None:
        weights *= np.nan_to_num(esr_s, nan=0.0) ** recipe.esr_s_power
    return weights


def recipe_for(kind: str) -> Recipe:
    """The recipe of a student of ``kind``, such as "LSTM 40"."""
    return RECIPES["WaveNet" if kind.startswith("WaveNet") else "LSTM"]
