"""Turns a producer's dataclass fields into options, and options back into the producer."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from parbake.errors import RecipeError

if TYPE_CHECKING:
    from parbake.store.store import Store

_NUMBERS = {int: "INTEGER", float: "FLOAT"}


@dataclass(frozen=True)
class Source:
    """What ``PRODUCER | recipe.yaml | module:Class`` names: a class, and a recipe's defaults for it."""

    spec: str
    cls: type
    params: Mapping[str, Any]
    store: Mapping[str, Any]

    def make(self, given: Mapping[str, Any]) -> Any:
        """The producer, options over the recipe's values over the class' defaults. RecipeError."""
        from parbake.producers.recipe import make_producer

        with results_kept_apart():
            return make_producer(self.cls, {**self.params, **given})


def find_source(spec: str) -> Source:
    """The source that ``spec`` names; imports the user's module. Raises RecipeError."""
    from parbake.producers.recipe import load_recipe, producer_class

    if spec.endswith(".py"):
        raise RecipeError(f"{spec}: a Python file; name the class in it: {Path(spec).stem}:CLASS")
    with results_kept_apart():
        if is_recipe_file(spec):
            recipe = load_recipe(Path(spec))
            return Source(spec, producer_class(recipe.producer), recipe.params, recipe.store)
        return Source(spec, producer_class(spec), {}, {})


def is_recipe_file(spec: str) -> bool:
    return spec.endswith((".yaml", ".yml")) or (":" not in spec and Path(spec).is_file())


def parse_producer(tokens: Sequence[str], command: str) -> Any:
    """The producer that ``[recipe.yaml | PRODUCER, --option, value, ...]`` names, as for ``build``.

    ``command`` stands in usage errors. Raises RecipeError, click.UsageError.
    """
    source = find_source(tokens[0])
    parser = click.Command(source.spec, params=list(producer_options(source)), add_help_option=False)
    with parser.make_context(f"{command} {source.spec}", list(tokens[1:])) as context:
        return source.make(given_params(source, context.params))


def given_params(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    """The producer's parameters among parsed options, without those that were not given."""
    given: dict[str, Any] = {}
    for field, hint in _fields(source.cls):
        value = values.get(field.name)
        if value is None or value == ():
            continue
        if choices := _choices(hint):
            value = next(choice for choice in choices if str(choice) == value)
        elif isinstance(value, tuple):
            parted = _element(hint) in (*_NUMBERS, str)  # a path may hold a comma
            value = tuple(part for item in value for part in (item.split(",") if parted else [item]))
        given[field.name] = value
    return given


def producer_options(source: Source, common: Sequence[click.Parameter] = ()) -> Iterator[click.Option]:
    """One option for each field. A name that is taken, by ``common`` too, is a RecipeError."""
    taken = {"--help": "parbake's own"} | {name: "parbake's own" for p in common for name in _names(p)}
    for field, hint in _fields(source.cls):
        option = _option(field, hint, source.params)
        for name in _names(option):
            if name in taken:
                raise RecipeError(
                    f"{source.cls.__name__}: field {field.name!r} would make the option {name}, "
                    f"which is {taken[name]}; rename the field"
                )
            taken[name] = f"made from field {field.name!r}"
        yield option


def _names(option: click.Parameter) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    """The fields that the constructor takes, each with its type less ``| None``."""
    if not dataclasses.is_dataclass(cls):
        return []
    try:
        hints = typing.get_type_hints(cls)  # without Annotated's extras
    except Exception as error:  # whatever the user's annotations raise when evaluated
        raise RecipeError(f"{cls.__name__}: its annotations cannot be evaluated: {error}") from error
    shown = [f for f in dataclasses.fields(cls) if f.init and f.metadata.get("option", True)]
    return [(f, _without_none(hints[f.name])) for f in shown]


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return _without_none(rest[0]) if len(rest) == 1 else hint
    return hint


def _choices(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _element(hint: Any) -> Any:
    """Type of the items of a tuple, list or sequence; None for anything else."""
    origin = typing.get_origin(hint)
    if not (isinstance(origin, type) and issubclass(origin, Sequence)):
        return None
    args = typing.get_args(hint)
    return args[0] if args else str


def _option(field: dataclasses.Field[Any], hint: Any, params: Mapping[str, Any]) -> click.Option:
    name = field.name.replace("_", "-")
    text = str(field.metadata.get("help", ""))
    shown = _shown_default(field, params)
    help_text = f"{text}  [{shown}]" if shown and text else text or (f"[{shown}]" if shown else None)
    if hint is bool:
        return click.Option([f"--{name}/--no-{name}", field.name], default=None, help=help_text)
    if choices := _choices(hint):
        choice = click.Choice([str(c) for c in choices])
        return click.Option([f"--{name}", field.name], type=choice, default=None, help=help_text)
    element = _element(hint)
    is_path = Path in (hint, element, *typing.get_args(hint))
    metavar = _NUMBERS.get(element or hint) or ("PATH" if is_path else "TEXT")
    several = element is not None
    return click.Option(
        [f"--{name}", field.name],
        type=click.Path() if is_path else str,
        multiple=several,
        default=None,
        metavar=f"{metavar},..." if several and element in (*_NUMBERS, str) else metavar,
        help=help_text,
    )


def _shown_default(field: dataclasses.Field[Any], params: Mapping[str, Any]) -> str:
    value = field.default
    if field.name in params:
        value = params[field.name]
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif value is dataclasses.MISSING:
        return "required"
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"default: {'yes' if value else 'no'}"
    if isinstance(value, list | tuple):
        return f"default: {','.join(map(str, value))}"
    return f"default: {value}"


def summary(cls: type) -> str:
    """First paragraph of a producer's docstring, less the one that dataclasses make up."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text.split("\n\n")[0]


@contextlib.contextmanager
def results_kept_apart() -> Iterator[None]:
    """Sends what the user's code prints to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def wanted_producer(path: Path, store: Store, recipe: Sequence[str], command: str) -> Any:
    """The producer that the user named, else the built-in one that the store at ``path`` records."""
    if recipe:
        if recipe[0].startswith("-"):
            raise click.UsageError(f"No such option: {recipe[0]}", click.get_current_context())
        return parse_producer(recipe, command)
    from parbake.producers.recipe import make_producer, producer_class

    recorded = recorded_recipe(store)
    if recorded is None:
        baked_by = (store.provenance.get("recipe") or {}).get("producer") or "a function"
        raise click.UsageError(
            f"{path} was baked by {baked_by}, which parbake runs only when you name it: {command} RECIPE",
            click.get_current_context(),
        )
    return make_producer(producer_class(recorded["producer"]), recorded["params"])


def recorded_recipe(store: Store) -> Mapping[str, Any] | None:
    """The recipe that a store records, where its producer is built in.

    What a store says never imports code: any other producer must be named.
    """
    from parbake.producers.recipe import BUILTIN_PRODUCERS, RUN_NAMED_CODE

    recorded = store.provenance.get("recipe")
    known = [name for name in BUILTIN_PRODUCERS if name not in RUN_NAMED_CODE]
    if not isinstance(recorded, Mapping) or recorded.get("producer") not in known:
        return None
    return {"producer": recorded["producer"], "params": dict(recorded.get("params") or {})}
