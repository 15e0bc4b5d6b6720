"""Take the hidden patches out of images and maps, so that targets and losses are computed of these alone."""

from __future__ import annotations

import math
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
        self.grid = PatchGrid(grid.visible.logical_not(), math.prod(grid.shape) - grid.visible_per_image)

    def of(self, maps: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch hidden *patch channel"]:
        """Return patches of maps. Those whose channels are not last in memory are copied; gradients are laid out."""
        patch = self.grid.block_size(maps.shape[2:])
        last = maps.movedim(1, -1)
        if torch.compiler.is_compiling():  # a convolution may lay its result out otherwise than the compiler assumes
            last = last.clone(memory_format=torch.contiguous_format)
        # What a patch has in a row of the map lies together in memory, and is gathered as one position.
        rows = last.reshape(-1, patch[-1] * maps.shape[1])
        index = self.grid.gather_index((*patch[:-1], 1)).flatten()
        taken: Tensor = _Take.apply(rows, index)  # type: ignore[no-untyped-call]
        return taken.view(self.grid.batch, self.grid.visible_per_image, *patch, maps.shape[1])


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
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_copy(0, index.long(), grad), None
