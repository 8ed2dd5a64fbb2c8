"""What the tests of amp models share: inputs, and a model file run on them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from parbake.producers.audio.amp_models import load_amp_model

Array: TypeAlias = NDArray[np.float64]


def run(file: Path, x: Array, dtype: str = "float64") -> Array:
    """Output for inputs [batch, time]."""
    module = load_amp_model(file).module(dtype, "cpu")
    with torch.inference_mode():
        y: Array = module(torch.from_numpy(x[:, :, None]).to(getattr(torch, dtype)))[:, :, 0].numpy()
    return y


def inputs(batch: int, steps: int) -> Array:
    return np.random.default_rng(3).uniform(-1, 1, (batch, steps))
