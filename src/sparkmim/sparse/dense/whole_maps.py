"""What executions on whole maps have in common: where the mask lies on a map, and values that exist once an image.

They keep all positions of a map `(B, C, *size)`, garbage at hidden ones included. How functions are computed without
seeing that garbage is a matter of each execution: :mod:`sparkmim.sparse.dense.execution`, the reference, and
:mod:`sparkmim.sparse.dense.coarse`, share no rule but those of every execution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..extent import Told
from ..grid import CoarseGrid, PatchGrid, has_mask, mask_at
from ..layout import Layout
from .cut import CutLayout


class WholeMaps(Execution):
    """An execution whose maps are whole, with a mask.

    Args:
        grid: the visible patches of the batch. Only its mask is used.

    Attributes:
        last_stands_in: whether hidden patches hold what the last visible one of their image holds, in place of the
            first. It must make no difference, which a check looks at.
    """

    def __init__(self, grid: PatchGrid | CoarseGrid) -> None:
        super().__init__()
        self.visible = grid.visible
        self.grid_shape = tuple(grid.visible.shape)
        self.told = Told(self.grid_shape[1:])
        self.last_stands_in = False
        self._masks: dict[tuple[int, ...], Tensor] = {}
        self._first: dict[tuple[int, ...], list[Tensor]] = {}

    def mask(self, size: Sequence[int], func: Any = None) -> Tensor:
        """Return the mask at the resolution of a map: bool `(B, *size)`."""
        size = tuple(size)
        if size not in self._masks:
            try:
                self._masks[size] = mask_at(self.visible, size)
            except ValueError as error:
                raise unsupported(func, str(error)) from None
        return self._masks[size]

    def mask_of(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the mask of the positions of any map: bool `(B, *spatial axes)`."""
        if layout.flattened:
            return self.mask(layout.flattened).flatten(1)
        extents = [x.shape[a] for a in layout.space]
        if isinstance(layout, CutLayout):
            return self.mask(layout.sizes(extents)).view(-1, *extents)
        return self.mask(extents)

    def mask_along(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the mask of the positions of any map, shaped to broadcast against it."""
        mask = self.mask_of(x, layout)
        order = space_first(x, layout)
        return mask.view(*mask.shape, *[1] * (x.ndim - mask.ndim)).permute([order.index(a) for a in range(x.ndim)])

    def has_grid(self, size: Sequence[int]) -> bool:
        return has_mask(self.grid_shape[1:], size)

    def where_visible(self, x: Tensor, fill: float = 0.0, func: Any = None) -> Tensor:
        """Return `x` `(B, C, *size)` with hidden positions replaced by `fill`."""
        return torch.where(self.mask(x.shape[2:], func).unsqueeze(1), x, fill)

    def where_seen(self, x: Tensor, layout: Layout) -> Tensor:
        return torch.where(self.mask_along(x, layout), x, 0.0)

    def with_stand_ins(self, x: Tensor, layout: Layout) -> Tensor:
        """Return a map whose hidden patches hold what the first visible patch of their image holds.

        What stands at hidden positions is never looked at, but it is computed with, and its gradient, which is zero,
        becomes NaN where a function has an infinite derivative: with zeros there, `x.sqrt()` would be enough. With the
        values of a visible patch every function of single positions, and every one that stays within a patch, does
        there what it does at visible ones. Where positions hold several patches, a position takes a patch's place.
        """
        extents = layout.flattened or tuple(x.shape[a] for a in layout.space)
        sizes = layout.sizes(extents) if isinstance(layout, CutLayout) else extents
        grid = self.grid_shape[1:]
        cells = [g if s % g == 0 else s for s, g in zip(sizes, grid, strict=True)]
        order = space_first(x, layout)
        moved = x.permute(order)
        free = moved.shape[1 + len(layout.space) :]
        dims = len(cells)
        pairs = [side for c, s in zip(cells, sizes, strict=True) for side in (c, s // c)]
        apart = moved.reshape(len(moved), *pairs, *free)  # (B, cells, pixels of a cell, cells, ..., *free)
        first = self._first_visible(tuple(cells))
        cells_first = [0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), *range(2 * dims + 1, apart.ndim)]
        held = apart.detach().permute(cells_first)[(torch.arange(len(x), device=x.device), *first)]
        for axis in range(dims):
            held = held.unsqueeze(1 + 2 * axis)
        if any(s > c for s, c in zip(sizes, cells, strict=True)):
            held = held.expand(apart.shape).reshape(moved.shape)
        else:
            held = held.reshape(len(x), *[1] * len(layout.space), *free)
        # At the shape of `x`, so that the result lies in memory as `x` does: views of it stay views.
        return torch.where(self.mask_along(x, layout), x, held.permute([order.index(a) for a in range(x.ndim)]))

    def _first_visible(self, cells: tuple[int, ...]) -> list[Tensor]:
        """Return where the first of `cells` lies that is visible in each image: int64 `(B,)` for each axis."""
        if cells not in self._first:
            visible = self.mask(cells).flatten(1).to(torch.uint8)
            place = visible.shape[1] - 1 - visible.flip(1).argmax(1) if self.last_stands_in else visible.argmax(1)
            coordinates = []
            for extent in reversed(cells):
                coordinates.append(place % extent)
                place = torch.div(place, extent, rounding_mode="floor")
            self._first[cells] = coordinates[::-1]
        return self._first[cells]

    def leaving(self, func: Any, x: Tensor, layout: Layout) -> Tensor:
        """Return the map that a window made of one of this layout, marked, harmless where hidden."""
        self.mask(x.shape[2:], func)
        return self.settled(x, layout.padded(None))

    def settled(self, x: Tensor, layout: Layout) -> Tensor:
        """Return a map of this layout marked, harmless where hidden."""
        return self.mark(self.with_stand_ins(x, layout), layout)

    def visible_rows(self, x: Tensor, layout: Layout) -> Tensor:
        return x.permute(space_first(x, layout))[self.mask_of(x, layout)]

    def from_visible_rows(self, rows: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """Put rows back as in :class:`Execution`, harmless where hidden."""
        order = space_first(x, layout)
        out = rows.new_zeros(*[x.shape[a] for a in order])
        out[self.mask_of(x, layout)] = rows
        return self.with_stand_ins(out.permute([order.index(a) for a in range(x.ndim)]), layout)

    def prepare(self, images: Tensor) -> Tensor:
        return self.from_map(images)

    def _whole(self, layout: Layout, axis: int, local: int) -> int:
        if axis == layout.batch or self.told.grid == self.grid_shape[1:]:
            return local
        place = layout.image_axis(axis)
        if place is not None:
            return local * self.told.grid[place] // self.grid_shape[1 + place]
        if layout.flattened:
            return local * math.prod(self.told.grid) // math.prod(self.grid_shape[1:])
        return local

    def count_rows(self) -> int:
        return self.grid_shape[0]

    def one_row_per_image(self, values: Tensor, axis: int) -> Tensor:
        return values

    def all_rows(self, values: Tensor, axis: int) -> Tensor:
        return values

    def total_per_image(self, values: Tensor, axis: int) -> Tensor:
        return values

    def to_map(self, x: Tensor) -> Tensor:
        return self.where_visible(x)

    def from_map(self, whole: Tensor) -> Tensor:
        return self.settled(whole, Layout(self, 0, tuple(range(2, whole.ndim))))


def space_first(x: Tensor, layout: Layout) -> list[int]:
    """Return the axes of a map: samples, space, then the others in their order."""
    return [*layout.tracked_axes, *[a for a in range(x.ndim) if a not in layout.tracked_axes]]
