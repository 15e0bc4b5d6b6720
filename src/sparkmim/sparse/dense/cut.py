"""Maps cut into cells that hold several patches each, by a reshape to `(B, C, H / 2, 2, W / 2, 2)`.

Some positions of such a cell may be hidden and others not, so both the axis that counts cells and the one that counts
positions within a cell stay axes of space. What looks across the positions of a cell sees the hidden ones as outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..extent import Degrees, unit
from ..layout import Layout, Padding


class CutLayout(Layout):
    """The layout of a map some of whose axes of space are two: cells, and positions within a cell.

    Attributes:
        parts: for each axis of the image, how many of the axes in `space` it has: 1, or 2 where it is cut.
    """

    __slots__ = ("parts",)

    def __init__(
        self, origin: object, batch: int, space: tuple[int, ...], parts: tuple[int, ...], padding: Padding | None = None
    ) -> None:
        super().__init__(origin, batch, space, padding)
        self.parts = parts

    def is_channels_first(self, ndim: int) -> bool:
        return False

    def _by_axis(self, values: Sequence[int]) -> list[list[int]]:
        """Group values of the axes in `space` by axis of the image."""
        rest = iter(values)
        return [[next(rest) for _ in range(part)] for part in self.parts]

    def sizes(self, extents: Sequence[int]) -> tuple[int, ...]:
        """Return how many positions there are along each axis of the image, by the extents of the axes in `space`."""
        return tuple(math.prod(own) for own in self._by_axis(extents))

    @property
    def cells(self) -> tuple[int, ...]:
        """Axes that count cells (or positions, of an axis that is not cut)."""
        return tuple(own[0] for own in self._by_axis(self.space))

    @property
    def within(self) -> tuple[int, ...]:
        """Axes that count positions within a cell."""
        return tuple(axis for own in self._by_axis(self.space) for axis in own[1:])

    def of_cells(self) -> Layout:
        """Return the layout in which a cell is a position, and its positions are a free axis."""
        return Layout(self.origin, self.batch, self.cells, self.padding)

    def degrees(self, axis: int) -> Degrees:
        return unit(self.cells.index(axis)) if axis in self.cells else ()

    def image_axis(self, axis: int) -> int | None:
        return self.cells.index(axis) if axis in self.cells else None

    def moved(self, batch: int, space: tuple[int, ...]) -> Layout:
        return CutLayout(self.origin, batch, space, self.parts, self.padding)

    def padded(self, padding: Padding | None) -> Layout:
        return CutLayout(self.origin, self.batch, self.space, self.parts, padding)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CutLayout) and self.parts == other.parts and super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]
