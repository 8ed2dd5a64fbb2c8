"""JSON as a tree that folds, of bounded size whatever it holds. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from parbake.browse.markup import details, escaped

LEAVES_MAX = 300  # of one tree
NBYTES_MAX = 40_000
DEPTH_MAX = 12
_OPEN_MAX = 12  # members of what is shown unfolded
_FEW = 50  # of a long list


def tree(value: Mapping[str, Any]) -> str:
    """A list of ``value``'s members, those with members of their own folded; the rest is counted."""
    return _Tree().members(value, 0)


class _Tree:
    """What may still be shown."""

    def __init__(self) -> None:
        self.leaves = LEAVES_MAX
        self.nbytes = NBYTES_MAX

    def members(self, value: Any, depth: int) -> str:
        shown: list[str] = []
        items = _items(value)
        for key, item in items:
            if self.leaves <= 0 or self.nbytes <= 0:
                shown.append(f'<li class="parbake-quiet">and {len(value) - len(shown):,} more</li>')
                break
            text = self.member(key, item, depth)
            shown.append(f"<li>{text}</li>")
        return f'<ul class="parbake-tree">{"".join(shown)}</ul>'

    def member(self, key: str, item: Any, depth: int) -> str:
        self.leaves -= 1
        name = escaped(key, 100)
        if depth < DEPTH_MAX and _has_members(item):
            self.nbytes -= len(name) + 80
            summary = f'{name} <span class="parbake-quiet">{len(item):,}</span>'
            return details(
                summary, self.members(item, depth + 1), opened=len(item) <= _OPEN_MAX and depth < 2
            )
        text = escaped(leaf(item))
        self.nbytes -= len(name) + len(text) + 80
        return f'<span class="parbake-quiet">{name}</span> <code>{text}</code>'


def leaf(value: Any) -> str:
    """JSON in one line; of what is long or deep the beginning or the number of its members."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list):
        few = list(value)[:_FEW] if isinstance(value, list) else []
        if any(isinstance(item, Mapping | list) for item in few) or (value and not few):
            return f"{len(value):,} members"
        short = [item[:100] if isinstance(item, str) else item for item in few]
        text = json.dumps(short, ensure_ascii=False, default=str) if few else json.dumps(value)
        return f"{text[:-1]}, ... {len(value):,} in all]" if len(few) < len(value) else text
    return json.dumps(value, ensure_ascii=False, default=str)


def _has_members(value: Any) -> bool:
    if isinstance(value, Mapping):
        return len(value) > 0
    return isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value[:1000])


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in value.items())
    else:
        yield from ((str(i), item) for i, item in enumerate(value))
