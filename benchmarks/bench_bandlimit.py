"""The tone task: the LSTM in batches against one tone at a time, and what band-limiting adds to it.

On the CPU, float64, 64 tones of 1.2 s at 44.1 kHz. ``--reference`` instead: esr_s over the paper's
validation, 88 notes at -36, -18 and -6 dB, for each teacher that is at hand.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import BATCH, interleaved, ratio, show

from parbake.errors import TeacherFileError
from parbake.producers.audio.amp_models import load_amp_model
from parbake.producers.audio.bandlimited import band_limited, kept_steps
from parbake.producers.audio.sine import SineTeacher

ROUNDS = 3
SINGLES = 8  # of the 64: their time grows in proportion
FRAME = 4_410  # steps a call in the paper's own loader
LEVELS_DB = (-36.0, -18.0, -6.0)
TEACHERS = Path(__file__).resolve().parents[2] / "shared/data/teachers"
PAPER_DB = {"broadcast_lstm_teacher.json": -25.5, "broadcast_tcn_teacher.nam": -34.6}


def speed() -> None:
    file = TEACHERS / "broadcast_lstm_teacher.json"
    task = SineTeacher(teacher=file if file.exists() else None, device="cpu")
    if not file.exists():
        print("  the real teacher is absent: the built-in one instead")
    module: Any = load_amp_model(task.teacher_path).module("float64", "cpu")
    tones = task.tones(0, BATCH)
    x = torch.from_numpy(tones.wave(task.time_s))
    y = module(x)
    last = y[:, -kept_steps(task.sample_rate) :, 0]

    def framed() -> None:
        """As the paper's loader does it: a tone, a frame, torch's own number of threads."""
        for i in range(SINGLES):
            state = None
            for frame in x[i : i + 1].split(FRAME, dim=1):
                hidden, state = module.rec(frame, state)
                module.lin(hidden) + frame

    with torch.inference_mode():
        taken = interleaved(
            {
                "batch": lambda: module(x),
                "single": lambda: [module(x[i : i + 1]) for i in range(SINGLES)],
                "framed": framed,
                "limited": lambda: band_limited(last, tones.f0, task.sample_rate),
            },
            ROUNDS,
        )
    for name, times in taken.items():
        show(f"  {name}: s", float(np.median(times)))
    scale = BATCH / SINGLES
    show("LSTM, batches of 64 / one tone at a time", scale * ratio(taken["single"], taken["batch"]), "aim: 3")
    show("LSTM, batches of 64 / one at a time in frames", scale * ratio(taken["framed"], taken["batch"]))
    show("band-limiting a batch / LSTM on it, time", ratio(taken["limited"], taken["batch"]), "aim: 0.2")


def reference() -> None:
    for name, paper_db in PAPER_DB.items():
        try:
            task = SineTeacher(
                teacher=TEACHERS / name, validation=True, levels_db=LEVELS_DB, target="bandlimited"
            )
        except TeacherFileError as error:
            print(f"  left out: {error}")
            continue
        parts = [task.produce(start, start + 44, ("esr_s",))["esr_s"] for start in range(0, len(task), 44)]
        by_level = torch.cat(parts).cpu().numpy().reshape(len(LEVELS_DB), -1).mean(axis=1)
        print(f"{name}: {paper_db} dB in the paper")
        for level, value in zip(LEVELS_DB, 10 * np.log10(by_level), strict=True):
            show(f"  esr_s at {level:g} dB, mean of 88 notes, dB", value)
        show("  mean of the levels, dB", float(np.mean(10 * np.log10(by_level))))


if __name__ == "__main__":
    reference() if sys.argv[1:] == ["--reference"] else speed()
