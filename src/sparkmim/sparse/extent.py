"""Sizes that remember being read off a map.

What a network reshapes to is numbers, and the number of positions of a packed patch may equal any other. Whether an
axis of 4 is space or four groups is therefore decided by where its number came from: sizes of spatial axes are
:class:`Extent`, which says how they grow with the map, and arithmetic keeps that where it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Degrees = tuple[int, ...]
"""For each spatial axis of the map, how often its extent is a factor: `(1, 1)` for height x width."""


class Extent(int):
    """A positive number that is proportional to the map's extents. Whatever loses that gives an ordinary int.

    Attributes:
        degrees: of the extents of the map.
    """

    degrees: Degrees

    def __new__(cls, value: int, degrees: Degrees) -> Extent:  # noqa: D102
        extent = super().__new__(cls, value)
        extent.degrees = degrees
        return extent

    def __getnewargs__(self) -> tuple[int, Degrees]:  # type: ignore[override]
        return int(self), self.degrees

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return with_degrees(int(self) * int(other), added(self.degrees, degrees_of(other)))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        """Divide: an exact quotient scales with the map; one that was rounded does not."""
        if not isinstance(other, int):
            return NotImplemented
        quotient, rest = divmod(int(self), int(other))
        return quotient if rest else with_degrees(quotient, added(self.degrees, degrees_of(other), -1))

    def __truediv__(self, other: Any) -> Any:
        """Divide likewise, so that rounding what needs none does no harm."""
        exact = isinstance(other, int) and other and not int(self) % other
        return self // other if exact else int(self) / other

    def __ceil__(self) -> Extent:
        return self

    __floor__ = __ceil__


def unit(axis: int, dims: int) -> Degrees:
    """Return the degrees of the extent of one of `dims` spatial axes."""
    return tuple(int(a == axis) for a in range(dims))


def degrees_of(value: int) -> Degrees:
    """Return how a number scales with the map; `()` for one that is not known to."""
    return value.degrees if isinstance(value, Extent) else ()


def added(a: Degrees, b: Degrees, sign: int = 1) -> Degrees:
    """Return the degrees of a product, or with `sign` -1 of a quotient."""
    dims = max(len(a), len(b))
    a, b = a or (0,) * dims, b or (0,) * dims
    return tuple(x + sign * y for x, y in zip(a, b, strict=True))


def with_degrees(value: int, degrees: Sequence[int]) -> int:
    """Return an :class:`Extent`, or an ordinary number if no extent is a factor of it, or one divides it."""
    return Extent(value, tuple(degrees)) if any(degrees) and min(degrees) >= 0 else value
