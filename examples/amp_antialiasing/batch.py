"""What one batch of tones teaches, window by window: truncated back-propagation through time for LSTMs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from checkpoint import Place, Run
from losses import between_harmonics, dc, esr, power, pre_emphasised
from recipes import Recipe
from students import detached
from torch import Tensor


def train_batch(state: Run, batch: Any, recipe: Recipe, sample_rate: float, seed: int) -> float:
    """One step in each of the batch's windows; the sum of their losses.

    ``batch``: x [tone, time, 1], y [tone, time_kept, 1], f0 [tone].
    """
    x, y, f0_hz = batch
    target_power = power(pre_emphasised(y[:, :, 0], sample_rate))
    lead_in = x.shape[1] - y.shape[1]
    start = first_window(recipe, y.shape[1], seed, state.place)
    carried = state.student.settled(x[:, : lead_in + start])
    total = 0.0
    for number in range(recipe.windows):
        for group in state.optimiser.param_groups:
            group["lr"] = recipe.lr * lr_share(state.place, number)
        window = slice(start + number * recipe.window_steps, start + (number + 1) * recipe.window_steps)
        output, carried = state.student(x[:, lead_in + window.start : lead_in + window.stop], carried)
        carried = detached(carried)
        error = (output - y[:, window])[:, :, 0]
        loss = loss_of(error, target_power, f0_hz, recipe, sample_rate)
        state.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(state.student.parameters(), recipe.clip_norm)
        state.optimiser.step()
        total += loss.item()
    return total


def first_window(recipe: Recipe, kept_steps: int, seed: int, place: Place) -> int:
    """Where in the kept second the windows of the batch at ``place`` begin: a function of these alone."""
    rng = np.random.default_rng((seed, place.epoch, place.batch, 1))
    last = kept_steps - recipe.windows * recipe.window_steps
    return int(rng.integers(recipe.settle_steps, last, endpoint=True))


def lr_share(place: Place, window: int) -> float:
    """The share of the learning rate in a window of the batch at ``place``.

    From 1 to 0 over the run, along half a cosine; 1 while its length is not known.
    """
    if place.total_steps is None:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (place.step + window) / place.total_steps))


def loss_of(error: Tensor, target_power: Tensor, f0_hz: Tensor, recipe: Recipe, sample_rate: float) -> Tensor:
    """What a step makes smaller, of an error [tone, time]; see Recipe."""
    heard = pre_emphasised(error, sample_rate)
    ratio = recipe.esr_weight * esr(heard, target_power) + recipe.dc_weight * dc(heard, target_power)
    if recipe.full_weight:
        ratio = ratio + recipe.full_weight * esr(error, target_power)
    if recipe.spectral_weight:
        ratio = ratio + recipe.spectral_weight * between_harmonics(error, target_power, f0_hz, sample_rate)
    return (ratio + recipe.floor).sqrt().mean()
