"""Recipes: a producer by name with its parameters, coerced to their declared types or refused in one line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from parbake.errors import ParbakeError, RecipeError, described, one_line
from parbake.store.keys import Producer

if TYPE_CHECKING:
    from pydantic import TypeAdapter

BUILTIN_PRODUCERS: Mapping[str, str] = {
    "mesh": "parbake.producers.meshes.pair:MeshPair",
    "sine-teacher": "parbake.producers.audio.sine:SineTeacher",
    "teacher": "parbake.producers.networks.teacher:Teacher",
}
RUN_NAMED_CODE = frozenset({"teacher"})  # whose parameters name code: never made from what a store says

_METHODS = ("schema", "invalidation_keys", "__len__", "produce")
_SHOWN_CHARS = 60


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says. ``params`` are the producer's; ``store`` holds how it is baked.

    Keys of ``store``: codec, batch_size, workers (int), path (``pathlib.Path``), each optional. Paths
    are relative to the current folder, as on the command line.
    """

    producer: str
    params: Mapping[str, Any] = field(default_factory=dict)
    store: Mapping[str, Any] = field(default_factory=dict)


_STORE_TYPES: Mapping[str, Any] = {"codec": str, "batch_size": int, "workers": int, "path": Path}


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a YAML 1.2 file with ``producer:``, ``params:`` and ``store:``.

    Parameters are checked when the producer is made. Raises RecipeError naming the file, with the line
    where the YAML is at fault.
    """
    content = _parsed_yaml(Path(path))
    if not isinstance(content, Mapping) or "producer" not in content:
        raise RecipeError(f"{path}: not a recipe; it needs a line 'producer: NAME' (and params:, store:)")
    _refuse_unknown(content, [f.name for f in dataclasses.fields(Recipe)], str(path))
    producer = content["producer"]
    if not isinstance(producer, str):
        raise RecipeError(f"{path}: producer: {_shown(producer)} is not a name or module:Class")
    params, store = _section(content, "params", path), _section(content, "store", path)
    _refuse_unknown(store, _STORE_TYPES, f"{path}: store")
    store = {name: _coerced(_STORE_TYPES[name], v, f"{path}: store: {name}") for name, v in store.items()}
    return Recipe(producer, params, store)


def _parsed_yaml(path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error.strerror}") from error
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise RecipeError(f"{path}: {line}not YAML: {one_line(error.problem)}") from error
    except (
        YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, or a date such as 2025-99-99
        raise RecipeError(f"{path}: not YAML: {one_line(error)}") from error


def _section(content: Mapping[str, Any], name: str, path: object) -> Mapping[str, Any]:
    section = content.get(name)
    if section is None:
        return {}
    if not isinstance(section, Mapping) or not all(isinstance(key, str) for key in section):
        raise RecipeError(f"{path}: {name}: {_shown(section)} is not a list of 'name: value' lines")
    return dict(section)


# ---- producers by name


def producer_class(spec: str) -> type:
    """The class that a built-in name or ``module:Class`` names; the current folder is importable.

    ``module:Class`` runs the module's code: pass what the user typed, never what a store's metadata
    says. Raises RecipeError, also for whatever the module raises (chained).
    """
    if spec not in BUILTIN_PRODUCERS and ":" not in spec:
        raise RecipeError(
            f"unknown producer {spec!r}{_nearest(spec, BUILTIN_PRODUCERS)}; your own is named module:Class"
        )
    found = named_object(BUILTIN_PRODUCERS.get(spec, spec))
    class_name = spec.partition(":")[2]
    if not isinstance(found, type):
        raise RecipeError(f"{spec}: {class_name} is a {type(found).__name__}, not a class")
    if missing := [name for name in _METHODS if not hasattr(found, name)]:
        raise RecipeError(f"{spec}: {class_name} is not a producer; it lacks {', '.join(missing)}")
    return found


def named_object(spec: str) -> Any:
    """What ``module:name`` names; the current folder is importable.

    Runs the module's code: pass what the user typed, never what a store's metadata says. Raises
    RecipeError, also for whatever the module raises (chained).
    """
    module_name, _, qualname = spec.partition(":")
    found: Any = _imported(module_name, spec)
    for part in qualname.split("."):
        if not hasattr(found, part):
            here = [
                n
                for n, v in getattr(found, "__dict__", {}).items()
                if getattr(v, "__module__", None) == module_name
            ]
            raise RecipeError(f"{spec}: {module_name} has no {qualname!r}{_nearest(part, here)}")
        found = getattr(found, part)
    return found


def _imported(module_name: str, spec: str) -> types.ModuleType:
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise RecipeError(f"{spec!r}: {module_name!r} is not a module's name; write module:Class")
    if (folder := str(Path.cwd())) not in sys.path and spec not in BUILTIN_PRODUCERS.values():
        sys.path.insert(0, folder)  # stays there: spawned pool workers inherit it
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise RecipeError(f"{spec}: no module {error.name!r} in {folder} or installed") from error
        raise RecipeError(f"{spec}: importing {module_name} failed: {one_line(error)}") from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything, a script may exit
        raise RecipeError(f"{spec}: importing {module_name} failed: {described(error)}") from error


def make_producer(cls: type, params: Mapping[str, Any]) -> Producer:
    """A producer of ``cls``; unknown names and mistyped values are RecipeErrors.

    Values are coerced to the declared types (see ``settle``) for classes that do not do so themselves.
    """
    title = _title(cls)
    signature = inspect.signature(cls).parameters.values()
    kinds = inspect.Parameter
    named = [p for p in signature if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    if not any(p.kind is kinds.VAR_KEYWORD for p in signature):
        _refuse_unknown(params, [p.name for p in named], title)
    if missing := [p.name for p in named if p.default is kinds.empty and p.name not in params]:
        raise RecipeError(f"{title}: {missing[0]}: missing, and it has no default")
    hints = _hints(cls)
    values = {
        name: _coerced(hints[name], value, f"{title}: {name}") if name in hints else value
        for name, value in params.items()
    }
    try:
        producer = cls(**values)
    except ParbakeError:
        raise
    except Exception as error:  # whatever a user's constructor raises
        raise RecipeError(f"{title}: {described(error)}") from error
    if not isinstance(producer, Producer):
        absent = [name for name in ("name", "version", *_METHODS) if not hasattr(producer, name)]
        raise RecipeError(f"{title}: not a producer; it lacks {', '.join(absent)}")
    return producer


def recipe_of(producer: object) -> dict[str, Any] | None:
    """``{"producer": spec, "params": {...}}`` in plain JSON, from which the producer can be made again.

    Paths become absolute. None for what cannot be made again by name: producers that are no
    dataclass, are defined inside a function or in a notebook, or hold values that are not plain.
    """
    if not dataclasses.is_dataclass(producer) or isinstance(producer, type):
        return None
    spec = _spec(type(producer))
    if spec is None:
        return None
    try:
        recorded = [f for f in dataclasses.fields(producer) if f.init and f.metadata.get("recipe", True)]
        params = {f.name: _plain(getattr(producer, f.name)) for f in recorded}
    except TypeError:
        return None
    return {"producer": spec, "params": params}


def _spec(cls: type) -> str | None:
    module = cls.__module__
    for name, spec in BUILTIN_PRODUCERS.items():
        if spec == f"{module}:{cls.__qualname__}":
            return name
    if module == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        module = Path(file).stem if file else ""
    return f"{module}:{cls.__qualname__}" if module and "<locals>" not in cls.__qualname__ else None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(type(value).__name__)


def option(help_text: str) -> dict[str, str]:
    """A dataclass field's ``metadata``: what the command line says of the option that it makes."""
    return {"help": help_text}


def without_caches(producer: Any, keep: Iterable[str] = ()) -> dict[str, Any]:
    """What to pickle of a dataclass: all but its cached properties, of which those of ``keep`` stay."""
    cached = {n for n, v in vars(type(producer)).items() if isinstance(v, functools.cached_property)}
    return {name: value for name, value in vars(producer).items() if name not in cached - {*keep}}


# ---- values of declared types


def settle(self: Any) -> None:
    """Coerce every field of a frozen dataclass to its declared type; call it in ``__post_init__``.

    So 1 is 1.0 where float is declared, "runs/a.json" a path, [1, 2] a tuple. Text is taken for a
    number (options and YAML give text), true and false are not, and nothing is rounded. Raises
    RecipeError such as ``sine-teacher: duration: 'abc' is not a number (float)``.
    """
    cls = type(self)
    hints = _hints(cls)
    for f in dataclasses.fields(self):
        if f.init:
            value = _coerced(hints[f.name], getattr(self, f.name), f"{_title(cls)}: {f.name}")
            object.__setattr__(self, f.name, value)


def _hints(cls: type) -> dict[str, Any]:
    declares = cls if dataclasses.is_dataclass(cls) else inspect.getattr_static(cls, "__init__")
    try:
        return typing.get_type_hints(declares, include_extras=True)
    except Exception as error:  # a name that exists for type checkers only, say
        text = one_line(error)
        raise RecipeError(f"{_title(cls)}: its annotations cannot be evaluated: {text}") from error


def _coerced(hint: Any, value: Any, where: str) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        if typing.get_origin(hint) is Annotated:  # the author's own limits, in pydantic's words
            raise RecipeError(f"{where}: {_shown(value)}: {one_line(error.errors()[0]['msg'])}") from None
        raise RecipeError(f"{where}: {_shown(value)} is not {_wanted(hint)}") from None


@functools.lru_cache(maxsize=256)
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    try:
        return TypeAdapter(_exact(hint), config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # dataclasses and models bring their own configuration
        return TypeAdapter(_exact(hint))


def _exact(hint: Any) -> Any:
    """``hint`` with pydantic's leniency taken out of bool, int and float, wherever they stand in it."""
    from pydantic import BeforeValidator, StrictBool

    if hint is bool:
        return Annotated[StrictBool, BeforeValidator(_python_scalar)]
    if hint in (int, float):
        return Annotated[hint, BeforeValidator(_number)]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_exact(arg) for arg in args)]  # noqa: UP007  (a computed union)
    if origin is Annotated:
        return Annotated[(_exact(args[0]), *args[1:])]
    if origin in (tuple, list, dict, set, frozenset):
        return origin[tuple(arg if arg is Ellipsis else _exact(arg) for arg in args)]
    return hint


def _python_scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _number(value: Any) -> Any:
    value = _python_scalar(value)
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    return value


_WANTED: Mapping[Any, str] = {
    float: "a number (float)",
    int: "a whole number (int)",
    bool: "true or false (bool)",
    str: "text (str)",
    Path: "a path",
    type(None): "empty",
}


def _wanted(hint: Any) -> str:
    """The declared type in words, to follow "is not"."""
    if hint in _WANTED:
        return _WANTED[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_wanted(arg) for arg in args)
    if origin in (tuple, list):
        inner = ", ".join(_wanted(arg) for arg in args if arg is not Ellipsis)
        return f"a list, each {inner}" if origin is list or Ellipsis in args else f"a list of ({inner})"
    return getattr(hint, "__name__", None) or str(hint)


# ---- words


def _title(cls: type) -> str:
    """What messages call a producer: its name where that is fixed, else its class."""
    name = inspect.getattr_static(cls, "name", None)
    return name if isinstance(name, str) else cls.__name__


def _refuse_unknown(given: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            raise RecipeError(f"{where}: unknown name {name!r}{_nearest(str(name), names)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name that is most like ``name``, else the known names."""
    names = list(known)
    folded = name.replace("-", "_").casefold()
    near = [n for n in names if n.replace("-", "_").casefold() == folded]
    near = near or difflib.get_close_matches(name, names, n=1)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (there is {', '.join(names)})" if names else ""


def _shown(value: Any) -> str:
    text = one_line(repr(value))
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."
