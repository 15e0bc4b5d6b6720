"""Halo exchange: each packed patch with the ring of pixels that its neighbors hold, and the adjoint of that.

Both directions are gathers, so gradients are the same from run to run. Nothing that holds a halo is kept for backward
(it is 1.6 to 49 times its patch); :mod:`sparkmim.sparse.packed.conv` and `pool` compute it again.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import maps_of, rows_of


def with_fill(rows: Tensor, fill: float) -> Tensor:
    """Append a row of `fill`, which the tables of :class:`PatchGrid` point to for hidden positions."""
    return torch.cat([rows, rows.new_full((1, rows.shape[1]), fill)])


def gather_halo(packed: Tensor, table: Tensor, fill: float = 0.0) -> Tensor:
    """Gather `(N, C, *block)` to `(N, C, *window)`, channels last in memory, by a :meth:`PatchGrid.halo` table."""
    rows = with_fill(rows_of(packed), fill).index_select(0, table.flatten())
    return maps_of(rows, table.shape)


def scatter_halo(windows: Tensor, readers: Tensor, block: tuple[int, ...]) -> Tensor:
    """Apply the adjoint of :func:`gather_halo`: each position is the sum of the window positions that read it.

    Args:
        windows: `(N, C, *window)`.
        readers: the table of :meth:`PatchGrid.readers`.
        block: extent of a patch.
    """
    rows = with_fill(rows_of(windows), 0.0)
    summed = F.embedding_bag(readers, rows, mode="sum")
    return maps_of(summed, (readers.shape[0] // math.prod(block), *block))
