"""Which execution a new map of a given size belongs to, and its extents there."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from ..execution import Execution
from ..extent import value_of


def extents_here(
    execution: Execution, sizes: Sequence[Any], space: Sequence[int]
) -> tuple[Execution, list[int]] | None:
    """Return what answers for a map of a shape on the whole map, and its shape there, that of the samples left as is.

    Args:
        execution: answers, or has as `coarser` what does for maps whose positions hold several patches.
        sizes: of the map, as a network gives them.
        space: its spatial axes, in the order of the image's.

    Returns:
        None where patches would hold fractions of positions.
    """
    whole = [value_of(sizes[axis]) for axis in space]
    told, grid = execution.told.grid, execution.grid_shape[1:]
    if len(space) != len(grid):
        return None
    packed = execution.coarser is not None and not any(n % t for n, t in zip(whole, told, strict=True))
    owner = execution if packed or execution.coarser is None else execution.coarser
    local = [value_of(size) for size in sizes]
    for axis, extent, t, g in zip(space, whole, told, grid, strict=True):
        here = Fraction(extent if packed else extent * g, t)
        if here.denominator != 1:
            return None
        local[axis] = int(here)
    return owner, local
