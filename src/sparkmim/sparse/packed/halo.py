"""Halo exchange: each packed patch with the ring of pixels that its neighbors hold, and the adjoint of that.

Both directions are gathers, so gradients are the same from run to run. Nothing that holds a halo is kept for backward
(it is 1.6 to 49 times its patch); :mod:`sparkmim.sparse.packed.conv` and `pool` compute it again.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..grid import maps_of, rows_of
from .gather import gather_rows, sum_rows


def gather_halo(packed: Tensor, table: Tensor, fill: float = 0.0, kernel: bool = False) -> Tensor:
    """Gather `(N, C, *block)` to `(N, C, *window)`, channels last in memory, by a :meth:`PatchGrid.halo` table.

    Args:
        packed: the patches.
        table: which positions.
        fill: of hidden positions.
        kernel: whether a Triton kernel gathers, see :func:`sparkmim.sparse.packed.gather.has_kernel`.
    """
    return maps_of(gather_rows(rows_of(packed), table, fill, kernel), table.shape)


def scatter_halo(windows: Tensor, readers: Tensor, block: tuple[int, ...], kernel: bool = False) -> Tensor:
    """Apply the adjoint of :func:`gather_halo`: each position is the sum of the window positions that read it.

    Args:
        windows: `(N, C, *window)`.
        readers: the table of :meth:`PatchGrid.readers`.
        block: extent of a patch.
        kernel: whether a Triton kernel adds them up.
    """
    summed = sum_rows(rows_of(windows), readers, kernel)
    return maps_of(summed, (readers.shape[0] // math.prod(block), *block))
