"""Convolve a densified map from its visible positions alone.

A densified map holds the same vector, the mask token, at every hidden position, and a convolution is linear. So each
visible position, and the mask token once, is multiplied with every tap of the kernel, and each position of the result
sums the products that its taps meet. The result equals the convolution's up to rounding, the arithmetic is that of the
visible share, and the full map with the encoder's many channels is neither computed nor kept.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..sparse import CoarseGrid, PatchGrid
from ..sparse.grid import maps_of, rows_of

WIDE = 512
"""Channels of the encoder's map from which visible positions alone are convolved on CUDA: the products of matrices save
more than index tables and sums of products cost, by prediction (`benchmarks/count_kernels.py`)."""

MOVE_COST = 128
"""Cost of writing and reading a product, in channels to multiply: measured by `benchmarks/projection.py`."""


def project(
    packed: Float[Tensor, "n channel *block"], fill: Float[Tensor, "channel"], conv: Any, grid: PatchGrid | CoarseGrid
) -> Float[Tensor, "batch width *size"]:
    """Return `conv(grid.unpack(packed, fill))`.

    Args:
        packed: features of the batch's n visible patches, `block` positions each, or maps `(B, C, *size)` of a
            :class:`CoarseGrid`.
        fill: the vector at hidden positions.
        conv: an `nn.Conv1d`, `2d` or `3d` with an odd kernel that keeps the size of a map, or an identity.
        grid: where the visible positions lie.
    """
    if isinstance(conv, nn.Identity):
        return grid.unpack(packed, fill=fill)
    if math.prod(conv.kernel_size) == 1:
        return grid.unpack(conv(packed), fill=F.linear(fill, conv.weight.flatten(1), conv.bias))
    if isinstance(grid, PatchGrid) and is_faster(grid, conv):
        return project_visible(packed, fill, conv, grid)
    out: Tensor = conv(grid.unpack(packed, fill=fill))
    return out


def is_faster(grid: PatchGrid, conv: Any) -> bool:
    """Return whether :func:`project_visible` is faster than convolving the full map, as measured on two CPU cores.

    On CUDA by prediction, and not on other devices. In three dimensions the products of a position take 27 times the
    channels of the result, more than the full map.
    """
    if len(conv.kernel_size) > 2:
        return False
    share = grid.visible_per_image / math.prod(grid.shape)
    cost = share * (1 + MOVE_COST / conv.in_channels)
    wide_enough = {"cpu": True, "cuda": conv.in_channels >= WIDE}.get(device_of(grid).type, False)
    return wide_enough and cost <= 0.9


def device_of(grid: PatchGrid) -> torch.device:
    """Return the device of a grid; benchmarks that count without a GPU replace it."""
    return grid.visible.device


def project_visible(
    packed: Float[Tensor, "n channel *block"], fill: Float[Tensor, "channel"], conv: Any, grid: PatchGrid
) -> Float[Tensor, "batch width *size"]:
    """Return what :func:`project` does, from visible patches and for a kernel of several taps."""
    block = tuple(packed.shape[2:])
    rows = rows_of(packed)
    outside = rows.new_zeros(1, rows.shape[1])
    rows = torch.cat([rows, fill.to(rows.dtype)[None], outside])
    products = F.linear(rows, conv.weight.movedim(1, -1).movedim(0, -2).flatten(0, -2))
    out = _SumProducts.apply(products, conv.bias, *index_tables(grid, block, conv.kernel_size))
    return maps_of(out, grid.scatter_index(block).shape)


def index_tables(
    grid: PatchGrid, block: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[Int32[Tensor, "position tap"], Int32[Tensor, "row tap"]]:
    """Return which products each position sums, and the inverse: which position sums each product.

    Products are numbered row by row and tap by tap. Of the `M + 2` rows the first `M` are the visible positions, row
    `M` is the fill, and row `M + 1`, zeros, stands outside the map.

    Returns:
        For each of the `B * prod(size)` positions of the map, the products that it sums.
        For each product, the position that sums it; one past the last position if that is outside the map, and for the
        last two rows, which many positions sum.
    """
    rows, visible = grid.scatter_index(block), grid.gather_index(block).flatten()
    positions = torch.arange(rows.numel(), dtype=torch.int32, device=rows.device).view(rows.shape)
    around = [side for k in reversed(kernel) for side in (k // 2, k // 2)]
    rows_around = F.pad(rows, around, value=len(visible) + 1)
    positions_around = F.pad(positions, around, value=rows.numel())
    taps = math.prod(kernel)
    tap = torch.arange(taps, dtype=torch.int32, device=rows.device).view(kernel)
    product_index = torch.add(tap, _windows(rows_around, kernel), alpha=taps).reshape(-1, taps)
    # A position is summed into one that it lies beside: the window mirrored.
    windows = _windows(positions_around, kernel).flatten(0, len(kernel)).index_select(0, visible)
    mirrored = windows.flatten(1).flip(1)
    return product_index, F.pad(mirrored, (0, 0, 0, 2), value=rows.numel())


def _windows(table: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Return a kernel's window at each position of a table that is padded for it: `(B, *size, *kernel)`, a view."""
    for axis, extent in enumerate(kernel, start=1):
        table = table.unfold(axis, extent, 1)
    return table


class _SumProducts(torch.autograd.Function):
    """Sum each position's products and the bias. bf16 products are accumulated in float32."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, products: Tensor, bias: Tensor, product_index: Tensor, position_index: Tensor
    ) -> Tensor:
        ctx.save_for_backward(product_index, position_index)
        ctx.bias_dtype = bias.dtype
        rows = products.view(position_index.numel(), -1)
        return F.embedding_bag(product_index, rows, mode="sum").add_(bias.to(rows.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        product_index, position_index = ctx.saved_tensors
        padded = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])
        grad_products = padded.index_select(0, position_index.flatten()).view(len(position_index), -1)
        taps = position_index.shape[1]
        fill = (len(position_index) - 2) * taps + torch.arange(
            taps, dtype=product_index.dtype, device=product_index.device
        )
        hidden = (product_index == fill).to(grad.dtype)
        grad_products[-2] = (hidden.T @ grad).flatten()  # accumulates in float32 and rounds once
        return grad_products, grad.sum(0).to(ctx.bias_dtype), None, None
