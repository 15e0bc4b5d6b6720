"""Where the positions around a patch lie if the map is padded by mirroring it: found one by one, the simple way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

from ..window import Window


def places_seen(shown: Any, cell: list[int], window: Window) -> list[tuple[int, ...]]:
    """Return where the positions of a patch and of the ring around it lie in the map, mirrored where hidden.

    Args:
        shown: nested lists of bool, the mask of the image.
        cell: of the patch.
        window: with an edge that mirrors.
    """
    ranges = [range(-b, e + a) for b, e, a in zip(window.before, window.block, window.after, strict=True)]
    return [
        tuple(c * e + p for c, e, p in zip(cell, window.block, _seen(shown, cell, position, window), strict=True))
        for position in product(*ranges)
    ]


def _seen(shown: Any, cell: list[int], position: tuple[int, ...], window: Window) -> list[int]:
    """Return what stands for a position, relative to a patch: the fewest reflections that lead to a visible patch."""
    beyond = [axis for axis, (p, e) in enumerate(zip(position, window.block, strict=True)) if not 0 <= p < e]

    def reflected(axes: Sequence[int]) -> list[int]:
        return [
            p if axis not in axes else _across(p, e, window.edge)
            for axis, (p, e) in enumerate(zip(position, window.block, strict=True))
        ]

    for count in range(len(beyond)):
        ways = [reflected(axes) for axes in combinations(beyond, count)]
        ways = [way for way in ways if _is_shown(shown, cell, way, window.block)]
        if ways:
            return ways[0] if len(ways) == 1 else reflected(beyond)
    return reflected(beyond)


def _across(position: int, extent: int, edge: str) -> int:
    if edge == "replicate":
        return 0 if position < 0 else extent - 1
    return -position if position < 0 else 2 * (extent - 1) - position


def _is_shown(shown: Any, cell: list[int], position: list[int], block: tuple[int, ...]) -> bool:
    for c, p, e in zip(cell, position, block, strict=True):
        if not 0 <= c + p // e < len(shown):
            return False
        shown = shown[c + p // e]
    return bool(shown)
