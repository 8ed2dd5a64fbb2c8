"""Inputs of a network: items of a dataset, or drawn by index, gathered into batches of named parts."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parbake.errors import ProducerError, RecipeError, described
from parbake.producers.networks.models import Origin, content_digest
from parbake.producers.recipe import named_object
from parbake.store.source import is_user_code

_PARTS_MAX = 1000
_STREAM = 2  # number of the random stream; sine tones have others


@dataclass(frozen=True)
class Source:
    """Where items come from. ``item(index)`` gives one; ``items`` several at once where that is faster.

    ``length``: of a dataset, None for a function, which gives any number of samples.
    """

    item: Callable[[int], Any]
    items: Callable[[list[int]], Sequence[Any]] | None
    length: int | None

    def fetch(self, start: int, stop: int) -> tuple[list[Any], dict[int, Exception]]:
        """Items [start, stop), and what was raised for those that failed (None in their place)."""
        if self.items is not None:
            try:
                found = list(self.items(list(range(start, stop))))
                if len(found) == stop - start:
                    return found, {}
            except Exception:
                pass  # one by one, to see which it is
        items: list[Any] = []
        errors: dict[int, Exception] = {}
        for index in range(start, stop):
            try:
                items.append(self.item(index))
            except Exception as error:  # whatever the user's code raises
                items.append(None)
                errors[index] = error
        return items, errors


def inputs_object(inputs: Any) -> Any:
    """The dataset or function itself, where ``inputs`` may be ``module:name`` of it or of a factory."""
    if not isinstance(inputs, str):
        return inputs
    if ":" not in inputs:
        raise RecipeError(f"teacher: inputs: {inputs!r} is not module:name of a dataset or a function")
    found = named_object(inputs)
    if isinstance(found, type) or (callable(found) and not _is_dataset(found) and _positional(found) == 0):
        try:
            found = found()
        except Exception as error:  # whatever the user's code raises
            text = described(error)
            raise RecipeError(f"teacher: inputs: {inputs}() failed: {text}") from error
    return found


@functools.lru_cache(maxsize=2)
def inputs_in_process(inputs: str, origin: Origin) -> Any:
    """The inputs of a recipe that came from another process, made once in this one.

    Raises RecipeError where a factory makes others here than it made there.
    """
    found = inputs_object(inputs)
    if origin.inputs not in (None, content_digest(found)):
        raise RecipeError(
            f"teacher: inputs: {inputs} makes others in each process; draw them from a fixed seed, or by a "
            "function (index, rng)"
        )
    return found


def source_of(inputs: Any, seed: int | str) -> Source:
    """The source of a map-style dataset, or of ``inputs(index, rng)``. Raises RecipeError."""
    if _is_dataset(inputs):
        length = len(inputs) if hasattr(inputs, "__len__") else None
        return Source(inputs.__getitem__, getattr(inputs, "__getitems__", None), length)
    if not callable(inputs) or _positional(inputs) != 2:
        raise RecipeError(
            f"teacher: inputs: {_name_of(inputs)} is neither a map-style dataset (__getitem__, __len__) nor "
            "a function of (index, rng)"
        )
    if not isinstance(seed, int):
        raise RecipeError(f"teacher: seed: {seed!r} is drawn by the bake; give a number outside one")
    return Source(lambda index: inputs(index, generator(seed, index)), None, None)


def detached(inputs: Any) -> Any:
    """A dataset to read from: a copy of it and of the datasets, readers and lists within.

    Many keep open files or a cache from the first item on, which the keys of the original must not see.
    Arrays are shared: what a dataset writes into its own arrays shows in its keys.
    """
    return _detached(inputs, {})


def _detached(value: Any, seen: dict[int, Any]) -> Any:
    """``seen``: by id of an original its copy, so that what refers to each other still does."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, types.MethodType) and id(value.__self__) in seen:
        return types.MethodType(value.__func__, seen[id(value.__self__)])
    if type(value) is dict:
        return dict(value)
    if type(value) in (list, tuple):  # of datasets, as to be concatenated; not of a million file names
        return type(value)(value if len(value) > _PARTS_MAX else [_detached(item, seen) for item in value])
    if not _keeps(value):
        return value
    try:
        found = copy.copy(value)
    except Exception:  # what cannot be copied is read as it is
        found = value
    if found is value:
        return value
    seen[id(value)] = found
    if hasattr(type(value), "__del__"):  # closes a file that both may hold: not before the original's time
        with contextlib.suppress(TypeError):
            weakref.finalize(value, _outlived, found).atexit = False
    for name, part in vars(value).items():
        if (inner := _detached(part, seen)) is not part:
            object.__setattr__(found, name, inner)
    return found


def _outlived(_: object) -> None:
    """Called when an original is gone; until then its copy was held for this."""


def _keeps(value: Any) -> bool:
    """Whether a value may keep something in attributes: a dataset, or an object of the user's own."""
    if (
        isinstance(value, type | types.FunctionType)
        or not hasattr(value, "__dict__")
        or hasattr(value, "dtype")
    ):
        return False
    if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.nn.Module):
        return False
    return _is_dataset(value) or is_user_code(type(value))


def generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one sample: Philox under the key (seed, stream), its counter at the sample."""
    key = np.array([seed, _STREAM], np.uint64)
    counter = np.array([0, 0, 0, index], np.uint64)  # the lower words count what one sample draws
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def is_drawn(inputs: Any) -> bool:
    """Whether items are drawn with random numbers, so that the seed counts."""
    return not _is_dataset(inputs)


def named_parts(item: Any, names: Sequence[str]) -> dict[str, Any]:
    """The parts of an item or batch by name: of a dict its own, of a tuple or single value ``names``."""
    if isinstance(item, Mapping):
        return dict(item)
    parts = item if isinstance(item, tuple | list) else (item,)
    if names and len(names) != len(parts):
        raise ProducerError(
            f"teacher: input_names: {len(names)} names ({', '.join(names)}) for items of {len(parts)} parts"
        )
    default = ["x"] if len(parts) == 1 else [f"x{i}" for i in range(len(parts))]
    return dict(zip(names or default, parts, strict=True))


def _is_dataset(inputs: Any) -> bool:
    return hasattr(inputs, "__getitem__") and not isinstance(inputs, type)


def _positional(function: Any) -> int:
    """How many positional arguments a function needs or takes without a default."""
    import inspect

    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return -1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)


def _name_of(value: Any) -> str:
    return str(getattr(value, "__name__", type(value).__name__))
