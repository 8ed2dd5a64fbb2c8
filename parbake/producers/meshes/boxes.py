"""A tree of bounding boxes over many boxes, asked for many points at once.

Candidates are complete, not likely: every box within the given distance of a point is found. A tree, and not
a grid, because cells of one mesh differ in size and shape by factors of thousands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Indices = NDArray[np.int64]

_LEAF_BOXES = 4
_POINTS_AT_ONCE = 8192
_PAIRS_MAX = 2_000_000  # a pair is some 100 bytes at the peak


@dataclass(frozen=True, eq=False)
class BoxTree:
    """A balanced binary tree; node i of a level holds nodes 2 i and 2 i + 1 of the next.

    ``low``, ``high``: the boxes themselves [box, dim]. ``order``: boxes as the leaves hold them.
    ``starts``: where in it each leaf begins, and its end. ``levels``: low and high [node, dim] of each level.
    """

    low: Reals
    high: Reals
    order: Indices
    starts: Indices
    levels: tuple[tuple[Reals, Reals], ...]


def box_tree(low: Reals, high: Reals) -> BoxTree:
    """The tree over boxes ``low`` to ``high`` [box, dim], split at the median of their widest side."""
    n = len(low)
    depth = max(0, (n // _LEAF_BOXES).bit_length() - 1)
    middle = low + high
    ranks = np.empty(middle.shape, np.int64)
    for axis in range(middle.shape[1]):
        ranks[np.argsort(middle[:, axis], kind="stable"), axis] = np.arange(n)
    order = np.arange(n)
    for level in range(depth):
        starts = _starts(n, level)
        sorted_middle = middle[order]
        spans = np.maximum.reduceat(sorted_middle, starts) - np.minimum.reduceat(sorted_middle, starts)
        group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, n)))
        order = order[np.argsort(group * n + ranks[order, spans.argmax(axis=1)[group]])]
    levels = []
    for level in range(depth + 1):
        starts = _starts(n, level)
        bounds = np.minimum.reduceat(low[order], starts), np.maximum.reduceat(high[order], starts)
        levels.append(bounds)
    return BoxTree(low, high, order, np.append(_starts(n, depth), n), tuple(levels))


def _starts(n: int, level: int) -> Indices:
    return np.asarray((np.arange(2**level) * n) >> level)


def near(tree: BoxTree, points: Reals, radius: Reals) -> Iterator[tuple[Indices, Indices]]:
    """Pairs (point, box) whose distance is at most the point's ``radius`` [point].

    In batches of bounded memory; all pairs of a point come in one batch, sorted by point, then box.
    """
    waiting = [
        np.arange(start, min(start + _POINTS_AT_ONCE, len(points)))
        for start in range(0, len(points), _POINTS_AT_ONCE)
    ][::-1]
    while waiting:
        batch = waiting.pop()
        pairs = _pairs(tree, points, radius, batch)
        if pairs is not None:
            yield pairs
        else:
            waiting += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]


def _pairs(tree: BoxTree, points: Reals, radius: Reals, batch: Indices) -> tuple[Indices, Indices] | None:
    """The pairs of some points; None where they would be too many, unless it is one point alone."""
    point, node = batch, np.zeros(len(batch), np.int64)
    for low, high in tree.levels:
        close = _close(low, high, points, radius, point, node)
        point, node = np.repeat(point[close], 2), np.repeat(2 * node[close], 2)
        node[1::2] += 1
        if len(point) > _PAIRS_MAX and len(batch) > 1:
            return None
    point, leaf = point[::2], node[::2] // 2
    sizes = tree.starts[leaf + 1] - tree.starts[leaf]
    point = np.repeat(point, sizes)
    within = np.arange(len(point)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    box = tree.order[np.repeat(tree.starts[leaf], sizes) + within]
    close = _close(tree.low, tree.high, points, radius, point, box)
    point, box = point[close], box[close]
    order = np.lexsort((box, point))
    return point[order], box[order]


def _close(
    low: Reals, high: Reals, points: Reals, radius: Reals, point: Indices, box: Indices
) -> NDArray[np.bool_]:
    squares = np.zeros(len(point))
    for axis in range(points.shape[1]):
        at = points[point, axis]
        apart = np.maximum(np.maximum(low[box, axis] - at, at - high[box, axis]), 0)
        squares += apart * apart
    return np.asarray(squares <= radius[point] ** 2)
