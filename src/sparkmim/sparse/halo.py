"""Halo exchange: each packed patch with the ring of pixels that its neighbours hold, and the adjoint of that.

Both directions are gathers, so gradients are the same from run to run. Nothing that holds a halo is kept for backward
(it is 1.6 to 49 times its patch); :mod:`sparkmim.sparse.ops.conv` and `pool` compute it again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .grid import PatchGrid, maps_of, rows_of


def with_fill(rows: Tensor, fill: float) -> Tensor:
    """`rows` and one more of `fill`, which the tables of :class:`PatchGrid` point to for hidden positions."""
    return torch.cat([rows, rows.new_full((1, rows.shape[1]), fill)])


def gather_halo(packed: Tensor, table: Tensor, fill: float = 0.0) -> Tensor:
    """`(N, C, *block)` to `(N, C, *window)`, channels last in memory, by a :meth:`PatchGrid.halo` table."""
    rows = with_fill(rows_of(packed), fill).index_select(0, table.flatten())
    return maps_of(rows, table.shape)


def scatter_halo(windows: Tensor, readers: Tensor, block: tuple[int, ...]) -> Tensor:
    """Adjoint of :func:`gather_halo`: each position is the sum of the window positions that read it.

    Args:
        windows: `(N, C, *window)`.
        readers: the table of :meth:`PatchGrid.readers`.
        block: extent of a patch.
    """
    rows = with_fill(rows_of(windows), 0.0)
    summed = F.embedding_bag(readers, rows, mode="sum")
    return maps_of(summed, (readers.shape[0] // math.prod(block), *block))


def with_mirrored_halo(
    grid: PatchGrid, packed: Tensor, before: tuple[int, ...], after: tuple[int, ...], edge: str
) -> Tensor:
    """`(N, C, *block)` to `(N, C, *window)`, what is hidden or outside standing for its mirror image."""
    block = tuple(packed.shape[2:])
    table = grid.mirrored_halo(block, before, after, edge)
    places, first = grid.readers_of(table, grid.patches * math.prod(block))
    out: Tensor = _Gather.apply(packed, table, places, first)  # type: ignore[no-untyped-call]
    return out


class _Gather(torch.autograd.Function):
    """A gather of rows whose adjoint is a gather too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, places: Tensor, first: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(places, first)
        ctx.shape = (x.shape[0], *x.shape[2:])
        return maps_of(rows_of(x).index_select(0, table.flatten()), table.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        places, first = ctx.saved_tensors
        summed = F.embedding_bag(places, rows_of(grad), first, mode="sum")
        return maps_of(summed, ctx.shape), None, None, None
