"""Trains the teacher that parbake ships: a small LSTM that sounds like a diode clipper.

    python examples/train_default_teacher.py -o parbake/data/default_teacher.json

The circuit is a resistor into a capacitor with two diodes across it, head to tail (Yeh, Abel, Smith:
"Simplified, physically-informed models of distortion and overdrive guitar effects pedals", DAFx 2007):

    dv/dt = (GAIN x - v) / (R C) - (2 I_S / C) sinh(v / (N V_T))

SciPy's LSODA solves it for sine tones; the LSTM learns v (in volts) from x. Prints the error-to-signal
ratio (ESR) on tones it has not seen. About three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

SAMPLE_RATE = 44_100.0  # Hz
GAIN = 4.5  # volts for an input of 1
R, C = 2.2e3, 10e-9  # ohm, farad
I_S, N_VT = 2.52e-9, 1.752 * 25.85e-3  # 1N4148: ampere, volt

HIDDEN = 12
TONES, TONE_S = 512, 0.1
HELD_OUT, HELD_OUT_S = 64, 0.3
LEVELS_DB = (-36, -20, -18, -6)
BATCH, CHUNK_STEPS = 128, 256
SILENCE = 1e-7  # added to the energy in the loss (V^2), so that near silence does not rule it


def clipper(f0: NDArray, amplitude: NDArray, phase: NDArray, steps: int) -> tuple[NDArray, NDArray]:
    """Input x and capacitor voltage v of tones, each [tone, steps], from rest at time 0."""
    omega = 2 * np.pi * f0

    def slope(t: float, v: NDArray) -> NDArray:
        source = GAIN * amplitude * np.sin(omega * t + phase)
        return (source - v) / (R * C) - (2 * I_S / C) * np.sinh(v / N_VT)

    def jacobian(_: float, v: NDArray) -> NDArray:  # diagonal: the tones do not touch each other
        return (-1 / (R * C) - (2 * I_S / (C * N_VT)) * np.cosh(v / N_VT))[None]

    time = np.arange(steps) / SAMPLE_RATE
    solved = solve_ivp(
        slope,
        (0.0, time[-1]),
        np.zeros(len(f0)),
        method="LSODA",
        t_eval=time,
        jac=jacobian,
        lband=0,
        uband=0,
        rtol=1e-5,  # within 2e-5 V of 1e-6 with steps of half a sample: ESR 1e-12
        atol=1e-8,
    )
    assert solved.success, solved.message
    return amplitude[:, None] * np.sin(np.outer(omega, time) + phase[:, None]), solved.y


def drawn_tones(count: int, rng: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
    """f0 (Hz), amplitude, phase: the shipped task's notes; half the levels uniform in dB, half in size."""
    f0 = 440 * 2 ** ((rng.uniform(21, 127, count) - 69) / 12)
    loud = 1 - rng.uniform(0, 1, count)
    soft = 10 ** (rng.uniform(-50, 0, count) / 20)
    return f0, np.where(rng.uniform(0, 1, count) < 0.5, loud, soft), rng.uniform(0, 2 * np.pi, count)


class Clipper(torch.nn.Module):
    """SimpleRNN with a skip connection; its state_dict has the names of the Proteus format."""

    def __init__(self) -> None:
        super().__init__()
        self.rec = torch.nn.LSTM(1, HIDDEN, batch_first=True)
        self.lin = torch.nn.Linear(HIDDEN, 1)

    def forward(self, x, state=None):
        hidden, state = self.rec(x, state)
        return self.lin(hidden) + x, state


def train(x: torch.Tensor, v: torch.Tensor, passes: int) -> Clipper:
    """A model fitted to [tone, step, 1] tensors by truncated back-propagation through time."""
    model = Clipper()
    chunks = x.shape[1] // CHUNK_STEPS
    updates = passes * chunks * (len(x) // BATCH)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-2, total_steps=updates)
    for number in range(passes):
        losses = []
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            state = None
            for start in range(0, chunks * CHUNK_STEPS, CHUNK_STEPS):
                steps = slice(start, start + CHUNK_STEPS)
                y, state = model(x[rows, steps], state)
                state = tuple(part.detach() for part in state)
                error = (y - v[rows, steps]).square().mean(1)
                loss = (error / (v[rows, steps].square().mean(1) + SILENCE)).mean()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                losses.append(loss.item())
        print(f"pass {number + 1} of {passes}: mean ESR of the tones {np.mean(losses):.3%}", flush=True)
    return model


def report(model: Clipper, rng: np.random.Generator) -> None:
    """Print the ESR on new draws and on every fourth piano key at fixed levels, phase 0."""
    notes = 440 * 2 ** ((np.arange(21, 109, 4) - 69) / 12)
    parts = {f"{HELD_OUT} drawn tones": drawn_tones(HELD_OUT, rng)}
    for level_db in LEVELS_DB:
        amplitude = np.full(len(notes), 10 ** (level_db / 20))
        parts[f"notes at {level_db} dB"] = (notes, amplitude, np.zeros(len(notes)))
    tones = [np.concatenate(columns) for columns in zip(*parts.values(), strict=True)]
    x, v = clipper(*tones, round(HELD_OUT_S * SAMPLE_RATE))
    with torch.inference_mode():
        y = model(torch.from_numpy(x[:, :, None]).float())[0][:, :, 0].double().numpy()
    errors, energies = np.sum((y - v) ** 2, 1), np.sum(v**2, 1)
    start = 0
    for title, (f0, _, _) in parts.items():
        error, energy = errors[start : start + len(f0)], energies[start : start + len(f0)]
        start += len(f0)
        print(
            f"{title}: ESR {error.sum() / energy.sum():.3%}, mean of the tones' {(error / energy).mean():.3%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("default_teacher.json"))
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    torch.set_num_threads(1)  # the network is too small to share
    rng = np.random.default_rng(given.seed)
    x, v = clipper(*drawn_tones(TONES, rng), round(TONE_S * SAMPLE_RATE))
    model = train(*(torch.from_numpy(part[:, :, None]).float() for part in (x, v)), given.passes)

    report(model, rng)

    content = {
        "model_data": {
            "model": "SimpleRNN",
            "input_size": 1,
            "output_size": 1,
            "unit_type": "LSTM",
            "num_layers": 1,
            "hidden_size": HIDDEN,
            "skip": 1,
            "bias_fl": True,
        },
        "sample_rate": SAMPLE_RATE,
        "state_dict": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
    }
    given.output.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(f"{given.output}: {given.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
