"""Take the hidden patches out of images and maps, so that targets and losses are computed of these alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..sparse import PatchGrid


class HiddenPatches:
    """The hidden patches of a batch, those of an image in row-major order.

    Args:
        grid: of its visible ones.
    """

    def __init__(self, grid: PatchGrid) -> None:
        cells = grid.visible.flatten(1)
        hidden = cells.shape[1] - grid.visible_per_image
        cell = cells.to(torch.uint8).argsort(dim=1, stable=True)[:, :hidden]
        self.shape = grid.shape
        self.image = torch.arange(grid.batch, device=cell.device)[:, None]
        coordinates = []
        for extent in reversed(grid.shape[1:]):
            coordinates.append(cell % extent)
            cell = cell // extent
        self.coordinates = [cell, *reversed(coordinates)]
        self._index: dict[tuple[int, ...], Tensor] = {}  # by the size of patches: of image and prediction the same

    def of(self, maps: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch hidden *patch channel"]:
        """Return patches of maps. Those whose channels are not last in memory are copied; gradients are laid out."""
        patch = [s // g for s, g in zip(maps.shape[2:], self.shape, strict=True)]
        width = patch[-1] * maps.shape[1]  # of one patch in a row of the map
        last = maps.movedim(1, -1)
        if torch.compiler.is_compiling():  # a convolution may lay its result out otherwise than the compiler assumes
            last = last.clone(memory_format=torch.contiguous_format)
        rows = last.reshape(-1, width)
        index = self._index.get(tuple(patch))
        if index is None:
            index = self._index[tuple(patch)] = self._rows(patch).flatten()
        taken: Tensor = _Take.apply(rows, index)  # type: ignore[no-untyped-call]
        return taken.view(*self.coordinates[0].shape, *patch, maps.shape[1])

    def _rows(self, patch: Sequence[int]) -> Tensor:
        """Return which rows make each patch: `(batch, hidden, *patch[:-1])`."""
        dims = len(patch)
        row = self.image.view(-1, 1, *[1] * (dims - 1))
        for axis, (extent, cell) in enumerate(zip(self.shape, self.coordinates, strict=True)):
            cell = cell.view(*cell.shape, *[1] * (dims - 1))
            if axis == dims - 1:
                row = row * extent + cell
            else:
                within = torch.arange(patch[axis], device=row.device).view(-1, *[1] * (dims - 2 - axis))
                row = row * (extent * patch[axis]) + (cell * patch[axis] + within)
        return row


class _Take(torch.autograd.Function):
    """Rows of a matrix, none of them twice: their gradient is laid out, not added up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(index)
        ctx.rows = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_copy(0, index, grad), None
