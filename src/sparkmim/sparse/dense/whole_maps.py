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


class WholeMaps(Execution):
    """An execution whose maps are whole, with a mask.

    Args:
        grid: the visible patches of the batch. Only its mask is used.
    """

    def __init__(self, grid: PatchGrid | CoarseGrid) -> None:
        super().__init__()
        self.visible = grid.visible
        self.grid_shape = tuple(grid.visible.shape)
        self.told = Told(self.grid_shape[1:])

    def mask(self, size: Sequence[int], func: Any = None) -> Tensor:
        """Return the mask at the resolution of a map: bool `(B, *size)`."""
        try:
            return mask_at(self.visible, size)
        except ValueError as error:
            raise unsupported(func, str(error)) from None

    def mask_of(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the mask of the positions of any map: bool `(B, *spatial axes)`."""
        if layout.flattened:
            return self.mask(layout.flattened).flatten(1)
        return self.mask([x.shape[a] for a in layout.space])

    def mask_along(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the mask of the positions of any map, shaped to broadcast against it."""
        mask = self.mask_of(x, layout)
        order = _space_first(x, layout)
        return mask.view(*mask.shape, *[1] * (x.ndim - mask.ndim)).permute([order.index(a) for a in range(x.ndim)])

    def has_grid(self, size: Sequence[int]) -> bool:
        return has_mask(self.grid_shape[1:], size)

    def where_visible(self, x: Tensor, fill: float = 0.0, func: Any = None) -> Tensor:
        """Return `x` `(B, C, *size)` with hidden positions replaced by `fill`."""
        return torch.where(self.mask(x.shape[2:], func).unsqueeze(1), x, fill)

    def where_seen(self, x: Tensor, layout: Layout) -> Tensor:
        return torch.where(self.mask_along(x, layout), x, 0.0)

    def leaving(self, func: Any, x: Tensor, layout: Layout) -> Tensor:
        """Return the map that a window made of one of this layout, marked, zero where hidden."""
        return self.mark(self.where_visible(x, 0.0, func), layout.padded(None))

    def visible_rows(self, x: Tensor, layout: Layout) -> Tensor:
        return x.permute(_space_first(x, layout))[self.mask_of(x, layout)]

    def from_visible_rows(self, rows: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """Put rows back as in :class:`Execution`, zero where hidden."""
        order = _space_first(x, layout)
        out = rows.new_zeros(*[x.shape[a] for a in order])
        out[self.mask_of(x, layout)] = rows
        return out.permute([order.index(a) for a in range(x.ndim)])

    def prepare(self, images: Tensor) -> Tensor:
        return self.start(self.where_visible(images))

    def _whole(self, layout: Layout, axis: int, local: int) -> int:
        if axis == layout.batch or self.told.grid == self.grid_shape[1:]:
            return local
        told, own = self.told.grid, self.grid_shape[1:]
        if not layout.flattened:
            place = layout.space.index(axis)
            told, own = (told[place],), (own[place],)
        return local * math.prod(told) // math.prod(own)

    @property
    def rows(self) -> int:
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
        return self.start(self.where_visible(whole))


def _space_first(x: Tensor, layout: Layout) -> list[int]:
    """Return the axes of a map: samples, space, then the others in their order."""
    return [*layout.tracked_axes, *[a for a in range(x.ndim) if a not in layout.tracked_axes]]
