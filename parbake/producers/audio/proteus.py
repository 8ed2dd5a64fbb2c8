"""Reads recurrent models from the JSON of Proteus and GuitarML (SimpleRNN of GuitarML's training code)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from parbake.errors import TeacherFileError
from parbake.producers.audio.model_file import WANTED, Table, listed, shown
from parbake.producers.audio.recurrent import GATES, RecurrentModel, weight_shapes


def read_proteus(path: Path, parsed: Mapping[str, Any], sha256: str) -> RecurrentModel:
    """The model in the parsed JSON of ``path``; raises TeacherFileError where it is not complete."""
    if not isinstance(parsed["model_data"], dict) or not isinstance(parsed["state_dict"], dict):
        raise TeacherFileError(f"{path}: model_data and state_dict are not tables of names; {WANTED}")
    settings = Table(path, "model_data", parsed["model_data"])
    if (model := settings.values.get("model")) != "SimpleRNN":
        raise settings.refused("model", f"{shown(model)} is not supported ('SimpleRNN' is)")
    unit_type = settings.values.get("unit_type")
    if not isinstance(unit_type, str) or unit_type not in GATES:
        raise settings.refused("unit_type", f"{shown(unit_type)} is not supported ('LSTM' and 'GRU' are)")
    for name in ("input_size", "output_size"):
        settings.require(name, 1, "one channel, no knobs", default=1)
    hidden_size = settings.count("hidden_size")
    num_layers = settings.count("num_layers", 1)
    linear_bias = settings.flag("bias_fl", True)  # the recurrent layers always have theirs
    shapes = weight_shapes(GATES[unit_type], hidden_size, num_layers, linear_bias)
    return RecurrentModel(
        unit_type=cast(Literal["LSTM", "GRU"], unit_type),
        hidden_size=hidden_size,
        num_layers=num_layers,
        skip=settings.flag("skip", True),
        linear_bias=linear_bias,
        weights=_weights(path, parsed["state_dict"], shapes),
        initial=None,
        sha256=sha256,
        sample_rate=_sample_rate(Table(path, "", parsed), settings),
    )


def _sample_rate(top: Table, settings: Table) -> float | None:
    """The rate that some trainers write, at the top or into model_data, under one of two names."""
    places = [table.rate(name) for table in (top, settings) for name in ("sample_rate", "samplerate")]
    return next((rate for rate in places if rate is not None), None)


def _weights(
    path: Path, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float64]]:
    if missing := [name for name in shapes if name not in state]:
        raise TeacherFileError(f"{path}: state_dict lacks {listed(missing)}")
    if unknown := [name for name in state if name not in shapes]:  # then the model is not what we would run
        raise TeacherFileError(f"{path}: state_dict holds {listed(unknown)}, which model_data does not imply")
    weights: dict[str, NDArray[np.float64]] = {}
    for name, shape in shapes.items():
        try:
            array = np.array(state[name], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):  # ragged lists, text, integers beyond float64
            raise TeacherFileError(f"{path}: state_dict.{name}: not an array of numbers") from None
        if array.shape != shape:
            raise TeacherFileError(f"{path}: state_dict.{name}: shape {array.shape} where {shape} is needed")
        if bad := int(np.count_nonzero(~np.isfinite(array))):
            raise TeacherFileError(
                f"{path}: state_dict.{name}: {bad} of {array.size} values are NaN or infinite"
            )
        weights[name] = array
    return weights
