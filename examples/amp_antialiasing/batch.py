"""What one batch of tones teaches, window by window: truncated back-propagation through time for LSTMs."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from checkpoint import Place, Run
from losses import between_harmonics, dc, esr, power, pre_emphasised
from recipes import Recipe
from students import State, detached
from threads import side_by_side
from torch import Tensor


def train_batch(
    state: Run, batch: Any, recipe: Recipe, sample_rate: float, seed: int, threads: int = 1
) -> float:
    """One step in each of the batch's windows; the sum of their losses.

    ``batch``: x [tone, time, 1], y [tone, time_kept, 1], f0 [tone]. Its tones are shared out among
    ``threads``, whose gradients are added up in one order.
    """
    x, y, f0_hz = batch
    start = first_window(recipe, y.shape[1], seed, state.place)
    trained = [parameter for parameter in state.student.parameters() if parameter.requires_grad]
    lead_in, tones = x.shape[1] - y.shape[1], len(x)

    def begun(part: tuple[Tensor, Tensor, Tensor]) -> _Part:
        x, y, f0_hz = part
        target_power = power(pre_emphasised(y[:, :, 0], sample_rate))
        carried = state.student.settled(x[:, : lead_in + start])
        return _Part(x[:, lead_in:], y, f0_hz, target_power, carried)

    def taught(part: _Part) -> tuple[float, Sequence[Tensor | None]]:
        output, carried = state.student(part.x[:, window], part.carried)
        part.carried = detached(carried)
        error = (output - part.y[:, window])[:, :, 0]
        loss = loss_of(error, part.target_power, part.f0_hz, recipe, sample_rate) * (len(error) / tones)
        # what the last layer hands on to a next one has no gradient
        return loss.item(), torch.autograd.grad(loss, trained, allow_unused=True)

    chunks = list(zip(*(field.chunk(threads) for field in (x, y, f0_hz)), strict=True))
    parts = side_by_side(begun, chunks, threads)
    total = 0.0
    for number in range(recipe.windows):
        for group in state.optimiser.param_groups:
            group["lr"] = recipe.lr * lr_share(state.place, number)
        window = slice(start + number * recipe.window_steps, start + (number + 1) * recipe.window_steps)
        losses, gradients = zip(*side_by_side(taught, parts, threads), strict=True)
        for parameter, *of_parts in zip(trained, *gradients, strict=True):
            parameter.grad = None if of_parts[0] is None else functools.reduce(torch.add, of_parts)
        torch.nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
        state.optimiser.step()
        total += sum(losses)
    return total


@dataclass
class _Part:
    """Some tones of a batch. x [tone, time_kept, 1]: without what comes before the second that y keeps."""

    x: Tensor
    y: Tensor
    f0_hz: Tensor
    target_power: Tensor
    carried: State


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
