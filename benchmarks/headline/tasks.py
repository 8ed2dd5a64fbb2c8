"""The tone tasks that are measured: the paper's teachers where they are at hand, else the built-in one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parbake.producers import SineTeacher

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PAPER = {
    "LSTM": ("broadcast_lstm_teacher.json", 0),
    "TCN": ("broadcast_tcn_teacher.nam", 6),
}
BUILT_IN = "built-in LSTM"


@dataclass(frozen=True)
class Task:
    """A teacher and its tones; ``options`` are those of SineTeacher."""

    name: str
    options: dict[str, Any]

    def producer(
        self,
        num_samples: int,
        target: Literal["teacher", "bandlimited"],
        store_dtype: Literal["float64", "float32"] = "float32",
    ) -> SineTeacher:
        return SineTeacher(
            num_samples=num_samples, target=target, store_dtype=store_dtype, device="cpu", **self.options
        )


def tasks(quick: bool) -> tuple[Task, ...]:
    """Both Broadcast teachers at their own rate and duration; ``quick``: the built-in one."""
    if quick:
        return (Task(BUILT_IN, {"duration": 1.0}),)
    files = {name: (DATA / "teachers" / file, config) for name, (file, config) in PAPER.items()}
    found = tuple(
        Task(name, {"teacher": file, "config": config})
        for name, (file, config) in files.items()
        if file.exists()
    )
    return found or (Task(BUILT_IN, {}),)


def absence(names: Iterable[str]) -> str:
    """What the page says where a teacher of the paper is not among ``names``; empty where none is missing."""
    found = set(names)
    missing = [name for name in PAPER if name not in found]
    if not missing:
        return ""
    return f"Not at hand where this was measured: the paper's {' and '.join(missing)}."
