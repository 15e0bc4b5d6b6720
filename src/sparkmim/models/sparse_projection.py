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
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..sparse import CoarseGrid, PatchGrid
from ..sparse.grid import maps_of, rows_of

MOVED = 128
"""Products are not only multiplied but written and read again, which costs as much as this many channels more
(`benchmarks/projection.py`)."""


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
    if isinstance(conv, nn.Identity):
        return grid.unpack(packed, fill=fill)
    if math.prod(conv.kernel_size) == 1:
        return grid.unpack(conv(packed), fill=F.linear(fill, conv.weight.flatten(1), conv.bias))
    if isinstance(grid, PatchGrid) and pays(grid, conv):
        return add_up(packed, fill, conv, grid)
    out: Tensor = conv(grid.unpack(packed, fill=fill))
    return out


def pays(grid: PatchGrid, conv: Any) -> bool:
    """Whether adding up products is the faster way, by what was measured on two CPU cores; elsewhere that is not known.

    In three dimensions the products of a position are 27 times the channels of the result, which is more than the whole
    map takes.
    """
    share = grid.visible_per_image / math.prod(grid.shape)
    cost = share * (1 + MOVED / conv.in_channels)
    return grid.visible.device.type == "cpu" and len(conv.kernel_size) <= 2 and cost <= 0.9


def add_up(packed: Tensor, fill: Tensor, conv: Any, grid: PatchGrid) -> Tensor:
    """:func:`project` for visible patches and a kernel of several taps."""
    block = tuple(packed.shape[2:])
    rows = rows_of(packed)
    rows = torch.cat([rows, fill.to(rows.dtype)[None], rows.new_zeros(1, rows.shape[1])])  # the last: outside the map
    products = F.linear(rows, conv.weight.movedim(1, -1).movedim(0, -2).flatten(0, -2))
    out = _AddUp.apply(products, conv.bias, *tables(grid, block, conv.kernel_size))
    return maps_of(out, grid.rows_of_map(block).shape)


def tables(grid: PatchGrid, block: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Which products meet at a position, and where a product goes.

    Products are numbered row by row and tap by tap; row `M` is that of the fill, row `M + 1` of zeros.

    Returns:
        int32 `(B * prod(size), taps)`: the products that each position of the map adds up.
        int32 `(M + 2, taps)`: the position at which each product is added, one past the last if outside the map; that
        also stands for the last two rows, which are added in many places.
    """
    rows, visible = grid.rows_of_map(block), grid.positions_of_rows(block).flatten()
    positions = torch.arange(rows.numel(), dtype=torch.int32, device=rows.device).view(rows.shape)
    around = [side for k in reversed(kernel) for side in (k // 2, k // 2)]
    rows_around = F.pad(rows, around, value=len(visible) + 1)
    positions_around = F.pad(positions, around, value=rows.numel())
    taps = math.prod(kernel)
    read, readers = [], []
    for tap, offset in enumerate(itertools.product(*map(range, kernel))):
        window = [slice(o, o + s) for o, s in zip(offset, rows.shape[1:], strict=True)]
        mirrored = [slice(k - 1 - o, k - 1 - o + s) for k, o, s in zip(kernel, offset, rows.shape[1:], strict=True)]
        read.append(rows_around[:, *window].flatten() * taps + tap)
        reader = positions_around[:, *mirrored].flatten().index_select(0, visible)
        readers.append(F.pad(reader, (0, 2), value=rows.numel()))
    return torch.stack(read, 1), torch.stack(readers, 1)


class _AddUp(torch.autograd.Function):
    """Every position's products, and the bias; in bf16 they are added up in float32."""

    @staticmethod
    def forward(ctx: Any, products: Tensor, bias: Tensor, read: Tensor, readers: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(read, readers)
        ctx.bias = bias.dtype
        rows = products.view(readers.numel(), -1)
        return F.embedding_bag(read, rows, mode="sum").add_(bias.to(rows.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        read, readers = ctx.saved_tensors
        and_outside = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])
        of_products = and_outside.index_select(0, readers.flatten()).view(len(readers), -1)
        taps = readers.shape[1]
        fill = (len(readers) - 2) * taps + torch.arange(taps, dtype=read.dtype, device=read.device)
        hidden = (read == fill).to(grad.dtype)
        of_products[-2] = (hidden.T @ grad).flatten()  # adds up in float32, rounds once
        return of_products, grad.sum(0).to(ctx.bias), None, None
