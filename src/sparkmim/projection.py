"""The convolution of a densified map, from its visible positions alone.

A densified map is one vector wherever it is hidden, and a convolution is linear: each visible position is multiplied
once with every tap of the kernel, the vector that fills the gaps likewise, and every position of the result adds up the
products its taps meet. The numbers are those of the convolution but for rounding, at the arithmetic of the visible
share, and the whole map of the encoder's many channels is neither made nor kept.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .sparse import CoarseGrid, PatchGrid
from .sparse.grid import maps_of, rows_of

MOVED = 128
"""Products are not only multiplied but written and read again, which costs as much as this many channels more."""


def project(packed: Tensor, fill: Tensor, conv: Any, grid: PatchGrid | CoarseGrid) -> Tensor:
    """`conv(grid.unpack(packed, fill))`.

    Args:
        packed: `(N, C, *block)`, or `(B, C, *size)` of a :class:`CoarseGrid`.
        fill: `(C,)`, the vector at hidden positions.
        conv: an `nn.Conv1d`, `2d` or `3d` with an odd kernel that keeps the size of a map, or an identity.
        grid: where the visible positions lie.

    Returns:
        `(B, C', *size)`.
    """
    if not isinstance(conv, torch.nn.modules.conv._ConvNd):
        return grid.unpack(packed, fill=fill)
    if math.prod(conv.kernel_size) == 1:
        return grid.unpack(conv(packed), fill=F.linear(fill, conv.weight.flatten(1), conv.bias))
    if isinstance(grid, PatchGrid) and pays(grid, conv):
        return add_up(packed, fill, conv, grid)
    out: Tensor = conv(grid.unpack(packed, fill=fill))
    return out


def pays(grid: PatchGrid, conv: Any) -> bool:
    """Whether adding up products is the faster way, by what was measured on two CPU cores; elsewhere that is not known.

    In three dimensions the products of a position are 27 times the channels of the result,
    which is more than the whole map takes.
    """
    share = grid.visible_per_image / math.prod(grid.shape)
    cost = share * (1 + MOVED / conv.in_channels)
    return grid.visible.device.type == "cpu" and len(conv.kernel_size) <= 2 and cost <= 0.9


def add_up(packed: Tensor, fill: Tensor, conv: Any, grid: PatchGrid) -> Tensor:
    """:func:`project` for visible patches and a kernel of several taps."""
    block = tuple(packed.shape[2:])
    size = tuple(g * b for g, b in zip(grid.shape, block, strict=True))
    rows = rows_of(packed)
    rows = torch.cat([rows, fill.to(rows.dtype)[None], rows.new_zeros(1, rows.shape[1])])  # the last: outside the map
    products = F.linear(rows, conv.weight.movedim(1, -1).movedim(0, -2).flatten(0, -2))
    read, readers = tables(grid, block, conv.kernel_size)
    out = _AddUp.apply(products, conv.bias, read, readers, (grid.batch, *size), conv.kernel_size)
    return maps_of(out, (grid.batch, *size))


def tables(grid: PatchGrid, block: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Which products meet at a position, and where a product goes.

    Products are numbered row by row and tap by tap; row `M` is that of the fill, row `M + 1` of zeros.

    Returns:
        int32 `(B * prod(size), taps)`: the products that each position of the map adds up.
        int32 `(M + 2, taps)`: the position of the padded map at which each product is added; for the last two rows,
        which are added in many places, a position of the padding.
    """
    empty, taps = grid.patches * math.prod(block), math.prod(kernel)
    size = [g * b for g, b in zip(grid.shape, block, strict=True)]
    ring = [k // 2 for k in kernel]
    around = [side for r in reversed(ring) for side in (r, r)]
    row = F.pad(grid.rows_of_map(block), around, value=empty + 1)
    position = torch.arange(row.numel(), dtype=torch.int32, device=row.device).view(row.shape)
    inside = tuple(slice(r, r + s) for r, s in zip(ring, size, strict=True))
    own = position[(slice(None), *inside)].flatten().index_select(0, grid.positions_of_rows(block).flatten())
    read, readers = [], []
    for tap, offset in enumerate(itertools.product(*map(range, kernel))):
        window = tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))
        read.append(row[(slice(None), *window)].flatten() * taps + tap)
        step = 0
        for o, r, s in zip(offset, ring, size, strict=True):
            step = step * (s + 2 * r) + (r - o)
        readers.append(F.pad(own + step, (0, 2)))
    return torch.stack(read, 1), torch.stack(readers, 1)


class _AddUp(torch.autograd.Function):
    """Every position's products, and the bias; in bf16 they are added up in float32."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        products: Tensor,
        bias: Tensor,
        read: Tensor,
        readers: Tensor,
        shape: tuple[int, ...],
        kernel: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(read, readers)
        ctx.shape, ctx.kernel, ctx.bias = shape, kernel, bias.dtype
        rows = products.view(products.shape[0] * read.shape[1], -1)
        return F.embedding_bag(read, rows, mode="sum").add_(bias.to(rows.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        read, readers = ctx.saved_tensors
        taps = read.shape[1]
        around = [side for k in reversed(ctx.kernel) for side in (k // 2, k // 2)]
        padded = F.pad(grad.view(*ctx.shape, -1), [0, 0, *around]).flatten(0, -2)
        of_products = padded.index_select(0, readers.flatten()).view(len(readers), -1)
        fill = (len(readers) - 2) * taps + torch.arange(taps, dtype=read.dtype, device=read.device)
        hidden = (read == fill).to(grad.dtype)
        of_products[-2] = (hidden.T @ grad).flatten()  # adds up in float32, rounds once
        return of_products, grad.sum(0).to(ctx.bias), None, None, None, None
