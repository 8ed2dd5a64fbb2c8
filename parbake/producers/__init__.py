"""Producers that parbake brings along, each imported when it is first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parbake.producers.audio.sine import SineTeacher
    from parbake.producers.meshes.pair import MeshPair
    from parbake.producers.meshes.series import MeshSeries
    from parbake.producers.networks.teacher import Teacher

_HOME_OF = {
    "MeshPair": "parbake.producers.meshes.pair",
    "MeshSeries": "parbake.producers.meshes.series",
    "SineTeacher": "parbake.producers.audio.sine",
    "Teacher": "parbake.producers.networks.teacher",
}

__all__ = ["MeshPair", "MeshSeries", "SineTeacher", "Teacher"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'parbake.producers' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
