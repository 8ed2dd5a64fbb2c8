"""How docstrings, which are plain prose, are shown: nothing in them is markup but code.

Parameters that are told in running prose become a list.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_CODE = re.compile(r"(``.+?``)", re.S)
_PARAMETER = re.compile(r"(?:^|(?<=[.:)] ))(?=``\w+``(?:(?:, | and )``\w+``)*: )")


def listed(text: str) -> str:
    """``text`` with each sentence that begins with a parameter's name and a colon as an item of a list."""
    return "\n\n".join(_with_list(paragraph) for paragraph in re.split(r"\n\s*\n", text))


def _with_list(paragraph: str) -> str:
    if re.match(r"\s*[-*|] ", paragraph):
        return paragraph
    text = " ".join(_escaped(paragraph).split())
    lead, *items = _PARAMETER.split(text)
    if len(items) < 2:
        return text
    return "\n\n".join([lead.strip(), "\n".join(f"- {item.strip()}" for item in items)]).strip()


def _escaped(text: str) -> str:
    parts = _CODE.split(text)
    parts[::2] = [re.sub(r"([*<])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


class ListedParameters(griffe.Extension):
    """Applies ``listed`` to every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)
