"""What a run is told by its config.yaml, checked when it is read."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

_UNKNOWN = "unexpected_keyword_argument"  # pydantic's word for it
_known_only = ConfigDict(extra="forbid")
Count = Annotated[int, Field(ge=1)]


class MistakeError(Exception):
    """Something that the user can put right, in one line."""


@dataclass(frozen=True, config=_known_only)
class Data:
    """``dir``: the folder with a series of meshes for each resolution; None: a flow of our own."""

    source_resolution: str
    target_resolution: str
    dir: Path | None = None
    use_cache: bool = True
    cache_dir: Path = Path("cache")


@dataclass(frozen=True, config=_known_only)
class Model:
    kind: Literal["mlp", "message_passing"] = "message_passing"
    width: Count = 32
    layers: Count = 4


@dataclass(frozen=True, config=_known_only)
class Training:
    """``batch_size``: in time steps. ``time_shift``: steps, see README.md."""

    epochs: Count = 20
    batch_size: Count = 2
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.003
    time_shift: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, config=_known_only)
class Config:
    data: Data
    model: Model = Model()
    training: Training = Training()
    out: Path = Path("out")


def read_config(file: Path) -> Config:
    """The settings in a YAML file. Raises MistakeError, naming the first key that cannot be used."""
    try:
        found = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
        return TypeAdapter(Config).validate_python(found)
    except ValidationError as error:
        # a misspelt key is also a missing one, and says more
        first = min(error.errors(), key=lambda one: one["type"] != _UNKNOWN)
        raise MistakeError(f"{file}: {_told(first)}") from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise MistakeError(" ".join(f"{file}: {getattr(error, 'strerror', None) or error}".split())) from None


def _told(error: Any) -> str:
    """The first of pydantic's errors: which key, what is wrong with it, which key may be meant."""
    *groups, key = [str(part) for part in error["loc"]] or ["config"]
    where = ".".join([*groups, key])
    if error["type"] != _UNKNOWN:
        given = "" if error["type"] == "missing" else f", not {error['input']!r}"
        return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}{given}"
    kind: Any = {"data": Data, "model": Model, "training": Training}[groups[0]] if groups else Config
    known = list(kind.__dataclass_fields__)
    meant = difflib.get_close_matches(key, known, 1)
    return f"{where}: no such key; " + (
        f"did you mean {meant[0]}?" if meant else f"there are {', '.join(known)}"
    )
