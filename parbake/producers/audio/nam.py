"""Reads .nam files of version 0.5: LSTM and WaveNet of the Neural Amp Modeler.

Format and order of the weights: get_dsp.cpp, lstm.cpp and wavenet.cpp of NeuralAmpModelerCore, and the
exporters in models/ of neural-amp-modeler. Versions 0.6 and 0.7 have other layers (FiLM, bottlenecks,
another head), for which there are other names and weights.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parbake.errors import TeacherFileError
from parbake.producers.audio.model_file import Table, listed, shown
from parbake.producers.audio.recurrent import GATES, RecurrentModel
from parbake.producers.audio.wavenet import ACTIVATIONS, Layer, LayerArray, WaveNetModel

_VERSION = re.compile(r"0\.5\.[0-9]{1,9}")
_LSTM_NAMES = {"input_size", "hidden_size", "num_layers"}
_WAVENET_NAMES = {"layers", "head", "head_scale"}
_ARRAY_NAMES = {
    *("input_size", "condition_size", "head_size", "channels", "kernel_size", "dilations"),
    *("activation", "gated", "head_bias"),
}
_ARRAYS_MAX, _LAYERS_MAX, _DILATION_MAX = 64, 1024, 2**20
# Numbers that the layers of a WaveNet keep of the past for each row; a usual model needs 50,000. The
# dilations that ask for them take no room in the file, so that nothing else bounds them.
_PAST_MAX = 2**22

Shape = tuple[int, ...]


def read_nam(path: Path, parsed: Mapping[str, Any], sha256: str) -> RecurrentModel | WaveNetModel:
    """The model in the parsed JSON of ``path``.

    Raises TeacherFileError for another version or architecture, and where the number of weights is not
    exactly the one that the configuration needs.
    """
    top = Table(path, "", parsed)
    version, architecture = parsed.get("version"), parsed["architecture"]
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise top.refused("version", f"{shown(version)} is not supported (0.5.x is)")
    if architecture not in ("LSTM", "WaveNet"):
        raise top.refused(
            "architecture", f"{shown(architecture)} is not supported ('LSTM' and 'WaveNet' are)"
        )
    if not isinstance(parsed["config"], dict):
        raise top.refused("config", f"{shown(parsed['config'])} is not a table of names")
    config = Table(path, "config", parsed["config"])
    weights = _numbers(top, parsed["weights"])
    rate = top.rate("sample_rate")
    if architecture == "LSTM":
        return _lstm(config, weights, sha256, rate)
    return _wavenet(config, weights, sha256, rate)


def _numbers(top: Table, weights: Any) -> NDArray[np.float64]:
    """The file's weights, a flat list of finite numbers."""
    if not isinstance(weights, list) or not all(type(number) in (int, float) for number in weights):
        raise top.refused("weights", "not a list of numbers")
    try:
        numbers = np.array(weights, dtype=np.float64)
    except OverflowError:  # integers beyond float64
        raise top.refused("weights", "not a list of numbers") from None
    if bad := int(np.count_nonzero(~np.isfinite(numbers))):
        raise top.refused("weights", f"{bad} of {numbers.size} values are NaN or infinite")
    return numbers


def _known(table: Table, names: set[str]) -> None:
    """Refuses other names than ``names``: what they ask for would not be done."""
    if unknown := [name for name in table.values if name not in names]:
        raise TeacherFileError(
            f"{table.path}: {table.where} holds {listed(unknown)}, which version 0.5 does not have"
        )


def _parts(config: Table, weights: NDArray[np.float64], shapes: Sequence[Shape]) -> list[NDArray[np.float64]]:
    """``weights`` cut into arrays of ``shapes``; refuses one weight too many or too few."""
    sizes = [math.prod(shape) for shape in shapes]
    if (needed := sum(sizes)) != weights.size:
        raise TeacherFileError(
            f"{config.path}: weights: {weights.size:,} values where {config.where} needs {needed:,}"
        )
    pieces = np.split(weights, np.cumsum(sizes)[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


# ---- LSTM


def _lstm(
    config: Table, weights: NDArray[np.float64], sha256: str, sample_rate: float | None
) -> RecurrentModel:
    """Of each layer one matrix for input and state together, one bias, and the states to start from."""
    _known(config, _LSTM_NAMES)
    config.require("input_size", 1, "one channel, no knobs")
    hidden, layers = config.count("hidden_size"), config.count("num_layers")
    gates, inputs = GATES["LSTM"] * hidden, [1] + [hidden] * (layers - 1)
    shapes: list[Shape] = []
    for size in inputs:
        shapes += [(gates, size + hidden), (gates,), (hidden,), (hidden,)]
    parts = iter(_parts(config, weights, [*shapes, (1, hidden), (1,)]))
    named, states = {}, []
    for number, size in enumerate(inputs):
        matrix = next(parts)
        named[f"rec.weight_ih_l{number}"], named[f"rec.weight_hh_l{number}"] = np.split(matrix, [size], 1)
        named[f"rec.bias_ih_l{number}"] = next(parts)
        named[f"rec.bias_hh_l{number}"] = np.zeros(gates)  # torch's second; the file holds their sum
        states.append((next(parts), next(parts)))
    named["lin.weight"], named["lin.bias"] = parts
    starts, cells = zip(*states, strict=True)
    return RecurrentModel(
        unit_type="LSTM",
        hidden_size=hidden,
        num_layers=layers,
        skip=False,
        linear_bias=True,
        weights=named,
        initial=(np.stack(starts), np.stack(cells)),
        sha256=sha256,
        sample_rate=sample_rate,
    )


# ---- WaveNet


def _wavenet(
    config: Table, weights: NDArray[np.float64], sha256: str, sample_rate: float | None
) -> WaveNetModel:
    _known(config, _WAVENET_NAMES)
    if (head := config.values.get("head")) is not None:
        raise config.refused("head", f"{shown(head)} is not supported (null is)")
    tables = _array_tables(config)
    parts = iter(_parts(config, weights, [*(s for table in tables for s in _array_shapes(table)), (1,)]))
    arrays = tuple([_array(table, parts) for table in tables])
    scale = float(next(parts)[0])
    stated = config.number("head_scale")
    # the exporter writes the scale twice, rounded to float32 in the weights; players go by the weight
    if not math.isclose(stated, scale, rel_tol=1e-6):
        raise config.refused("head_scale", f"{stated!r} where the last weight says {scale!r}")
    return WaveNetModel(arrays=arrays, head_scale=scale, sha256=sha256, sample_rate=sample_rate)


def _array_tables(config: Table) -> list[Table]:
    """The configurations of the layer arrays, checked, but for the weights."""
    layers = config.values.get("layers")
    if not isinstance(layers, list) or not 1 <= len(layers) <= _ARRAYS_MAX:
        raise config.refused("layers", f"{shown(layers)} is not a list of 1 to {_ARRAYS_MAX} layer arrays")
    tables = []
    for number, values in enumerate(layers):
        if not isinstance(values, dict):
            raise config.refused(f"layers[{number}]", f"{shown(values)} is not a table of names")
        table = Table(config.path, f"config.layers[{number}]", values)
        _check_array(table)
        tables.append(table)
    tables[0].require("input_size", 1, "the model's input has one channel")
    for one, following in itertools.pairwise(tables):
        following.require("input_size", one.count("channels"), "the channels of the array before")
        following.require("channels", one.count("head_size"), "the head_size of the array before")
    tables[-1].require("head_size", 1, "the model's output has one channel")
    past = sum(
        table.count("channels") * (table.count("kernel_size") - 1) * sum(table.values["dilations"])
        for table in tables
    )
    if past > _PAST_MAX:
        raise config.refused("layers", f"they look back over {past:,} values, more than {_PAST_MAX:,}")
    return tables


def _check_array(table: Table) -> None:
    _known(table, _ARRAY_NAMES)
    for name in ("input_size", "head_size", "channels", "kernel_size"):
        table.count(name)
    for name in ("gated", "head_bias"):
        table.flag(name)
    table.require("condition_size", 1, "one channel, no knobs")
    dilations = table.values.get("dilations")
    if (
        not isinstance(dilations, list)
        or not 1 <= len(dilations) <= _LAYERS_MAX
        or not all(type(d) is int and 1 <= d <= _DILATION_MAX for d in dilations)
    ):
        raise table.refused(
            "dilations",
            f"{shown(dilations)} is not a list of 1 to {_LAYERS_MAX} whole numbers from 1 to {_DILATION_MAX}",
        )
    if (activation := table.values.get("activation")) not in ACTIVATIONS:
        raise table.refused(
            "activation", f"{shown(activation)} is not supported ({', '.join(ACTIVATIONS)} are)"
        )


def _array_shapes(table: Table) -> Iterator[Shape]:
    """Shapes of an array's weights in the order of the file; see Layer and LayerArray."""
    channels, head_size = table.count("channels"), table.count("head_size")
    mid = 2 * channels if table.flag("gated") else channels
    yield channels, table.count("input_size")
    for _ in table.values["dilations"]:
        yield mid, channels, table.count("kernel_size")
        yield (mid,)
        yield mid, 1
        yield channels, channels
        yield (channels,)
    yield head_size, channels
    if table.flag("head_bias"):
        yield (head_size,)


def _array(table: Table, parts: Iterator[NDArray[np.float64]]) -> LayerArray:
    """The array of ``table``, from the next of ``parts``, which are in the order of the file."""
    rechannel = next(parts)
    layers = [Layer(dilation, *(next(parts) for _ in range(5))) for dilation in table.values["dilations"]]
    head = next(parts)
    return LayerArray(
        activation=table.values["activation"],
        gated=table.flag("gated"),
        rechannel=rechannel,
        layers=tuple(layers),
        head=head,
        head_bias=next(parts) if table.flag("head_bias") else np.zeros(len(head)),
    )
