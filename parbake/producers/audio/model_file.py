"""What the readers of model files share: tables whose errors say where they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from parbake.errors import TeacherFileError

WANTED = (
    "give an LSTM or GRU in Proteus/GuitarML JSON (model_data, state_dict), "
    "or an LSTM or WaveNet in a .nam file of version 0.5"
)


@dataclass(frozen=True)
class Table:
    """One table of names in a model file. ``where``: its name there, empty for the file's top.

    Its methods raise TeacherFileError for values that are not what they are asked for.
    """

    path: Path
    where: str
    values: Mapping[str, Any]

    def refused(self, name: str, text: str) -> TeacherFileError:
        place = f"{self.where}.{name}" if self.where else name
        return TeacherFileError(f"{self.path}: {place}: {text}")

    def count(self, name: str, default: int | None = None, most: int = 4096) -> int:
        count = self.values.get(name, default)
        if type(count) is not int or not 1 <= count <= most:
            raise self.refused(name, f"{shown(count)} is not a whole number from 1 to {most}")
        return count

    def flag(self, name: str, default: bool | None = None) -> bool:
        flag = self.values.get(name, default)
        if flag not in (0, 1):
            raise self.refused(name, f"{shown(flag)} is neither 0 nor 1")
        return bool(flag)

    def require(self, name: str, needed: int, why: str, default: int | None = None) -> None:
        """Refuses any other value than ``needed``."""
        if (found := self.values.get(name, default)) != needed:
            raise self.refused(name, f"{shown(found)} where {needed} is needed ({why})")

    def number(self, name: str) -> float:
        number = self.values.get(name)
        if not _is_finite(number):
            raise self.refused(name, f"{shown(number)} is not a number")
        return float(number)

    def rate(self, name: str) -> float | None:
        """A sample rate in Hz, None where the table says nothing."""
        rate = self.values.get(name)
        if rate is None:
            return None
        if not _is_finite(rate) or rate <= 0:
            raise TeacherFileError(f"{self.path}: sample_rate: {shown(rate)} is not a rate in Hz")
        return float(rate)


def _is_finite(value: Any) -> TypeGuard[int | float]:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def shown(value: Any) -> str:
    """``value`` for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Sequence[str]) -> str:
    """The first four of ``names``, for a message."""
    text = ", ".join(name[:40] for name in names[:4])
    return text if len(names) <= 4 else f"{text} and {len(names) - 4} more"
