"""Options that several verbs have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
sample_dim_option = click.option(
    "--sample-dim",
    metavar="NAME",
    help="Of a file that others wrote: the dimension that counts samples, or an array of which axis 0 does.",
)


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """An option that a function of its text reads."""

    def __init__(self, name: str, parse: Callable[[str], Any], example: str) -> None:
        self.name = name
        self._parse = parse
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError:
            self.fail(f"{value!r} is not a {self.name}; for example {self._example}", param, ctx)
