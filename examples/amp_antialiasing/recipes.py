"""How each family of network is taught: every number of it in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The numbers of a family's training.

    A batch of tones gives ``windows`` stretches of ``window_steps`` time steps, one after the other, with one
    optimiser step each; the state goes from each to the next, gradients do not. The first begins at a random
    place, at least ``settle_steps`` into the second that the target keeps, since what comes before is no
    steady tone yet: the state of an LSTM takes some 16,000 steps to settle, a WaveNet looks back on 4,092.
    """

    lr: float  # of Adam at the beginning; it falls to zero along half a cosine
    batch_tones: int
    window_steps: int
    windows: int
    settle_steps: int
    clip_norm: float = 1.0  # of the gradient
    # a tone's ratio is the weighted sum of these, each over the energy of its target; the loss is the mean
    # of its square root: the mean itself is that of a few tones, its logarithm gives the worst of them up
    esr_weight: float = 1.0
    dc_weight: float = 1.0
    full_weight: float = 0.0  # error without the low-pass: above it harmonics would be free
    spectral_weight: float = 0.0  # error between the harmonics: what aliases are
    floor: float = 1e-6  # of the ratio: the root has a slope there
    f0_power: float = 0.5  # tones are drawn by this power of their frequency: high ones alias more


RECIPES: Mapping[str, Recipe] = {
    "LSTM": Recipe(
        lr=5e-4, batch_tones=32, window_steps=1024, windows=16, settle_steps=7000, spectral_weight=0.3
    ),
    # it has no state to carry, so each step has other tones
    "WaveNet": Recipe(
        lr=4e-4,
        batch_tones=8,
        window_steps=4096,
        windows=1,
        settle_steps=2000,
        full_weight=0.3,
        spectral_weight=0.75,
        f0_power=0.65,
    ),
}


def recipe_for(kind: str) -> Recipe:
    """The recipe of a student of ``kind``, such as "LSTM 40"."""
    return RECIPES["WaveNet" if kind.startswith("WaveNet") else "LSTM"]
