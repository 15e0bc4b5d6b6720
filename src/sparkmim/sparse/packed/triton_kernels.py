"""Depthwise convolution of packed patches as Triton kernels, its halo fused into the load.

Maps are rows of channels, `(N * h * w, C)`. Each kernel reads its neighbors through the table of
:meth:`sparkmim.sparse.grid.PatchGrid.halo`, so neither halos nor whole maps are ever written to memory. Sums are
accumulated in float32 (in float64 for maps of float64) and in the same order every time. Block sizes follow from widths
of memory transactions; they have not been tuned on a device.

Importing this module needs Triton. See :mod:`sparkmim.sparse.packed.depthwise` for the operators made of it.
"""

# No postponed annotations: Triton reads them, and its interpreter in some releases only as objects.
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_STEPS = 32
"""The gradient of the weight is summed over parts of at most so many blocks of positions, which are then added up."""


class Taps(NamedTuple):
    """The window of a depthwise convolution of stride 1, in pixels.

    Attributes:
        block: height and width of a patch, before and after.
        kernel, dilation: of the window.
    """

    block: tuple[int, int]
    kernel: tuple[int, int]
    dilation: tuple[int, int]

    def constants(self) -> dict[str, int]:
        """Return the arguments that kernels are specialized for."""
        names = ("HEIGHT", "WIDTH", "KERNEL_H", "KERNEL_W", "DILATION_H", "DILATION_W")
        return dict(zip(names, (*self.block, *self.kernel, *self.dilation), strict=True))


def convolve(rows: Tensor, table: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, taps: Taps) -> None:
    """Convolve depthwise: `out[p] = bias + sum over taps t of weight[t] * rows[table of p at t]`, by channel.

    Args:
        rows: `(N * h * w, C)`.
        table: int32 `(N, h + reach, w + reach)`, the reach of a window being `(kernel - 1) * dilation`: indices of
            rows, one past the last for zeros.
        weight: `(kernel h * kernel w, C)`.
        bias: `(C,)`.
        out: `(N * h * w, C)`, is written.
        taps: the window.
    """
    positions, channels = rows.shape
    block_p, block_c = 32, _channels_at_once(channels)
    programs = (triton.cdiv(positions, block_p), triton.cdiv(channels, block_c))
    with torch.cuda.device_of(rows):
        _convolve[programs](
            rows, table, weight, weight if bias is None else bias, out, positions, channels, **taps.constants(),
            HAS_BIAS=bias is not None, SUM=_sum_type(rows), INDEX=_index_type(rows, table), BLOCK_P=block_p,
            BLOCK_C=block_c,
        )  # fmt: skip


def sum_weight_gradient(grad: Tensor, rows: Tensor, table: Tensor, taps: Taps) -> Tensor:
    """Compute the gradient of :func:`convolve`'s weight, `(kernel h * kernel w, C)`, in the precision of the sums.

    Args:
        grad: `(N * h * w, C)`, the gradient of the result.
        rows, table, taps: as there.
    """
    positions, channels = rows.shape
    count = math.prod(taps.kernel)
    block_t, block_p, block_c = 8, 16, 32
    steps = min(triton.cdiv(positions, block_p), MOST_STEPS)
    parts = triton.cdiv(positions, steps * block_p)
    sums = rows.new_empty((parts, count, channels), dtype=_sum_dtype(rows))
    programs = (parts * triton.cdiv(count, block_t), triton.cdiv(channels, block_c))
    with torch.cuda.device_of(rows):
        _sum_weight_gradient[programs](
            grad, rows, table, sums, positions, channels, **taps.constants(),
            SUM=_sum_type(rows), INDEX=_index_type(rows, table), STEPS=steps, BLOCK_T=block_t, BLOCK_P=block_p,
            BLOCK_C=block_c,
        )  # fmt: skip
    return sums.sum(0)


def gather(rows: Tensor, table: Tensor, out: Tensor, fill: float) -> None:
    """Gather or sum rows: `out[p] = sum over readers r of rows[table[p, r]]`.

    Args:
        rows: `(M, C)`.
        table: int32 `(P, readers)`: indices of rows, M for none.
        out: `(P, C)`, is written.
        fill: with one reader, what stands for none; with several, none is zero.
    """
    places, channels = out.shape
    block_p, block_c = 64, _channels_at_once(channels)
    programs = (triton.cdiv(places, block_p), triton.cdiv(channels, block_c))
    wide = max(rows.numel(), out.numel(), table.numel()) >= 2**31 - block_p * table.shape[1]
    with torch.cuda.device_of(rows):
        _gather[programs](
            rows, table, out, places, rows.shape[0], channels, READERS=table.shape[1], FILL=fill,
            SUM=_sum_type(rows), INDEX=tl.int64 if wide else tl.int32, BLOCK_P=block_p, BLOCK_C=block_c,
        )  # fmt: skip


def _channels_at_once(channels: int) -> int:
    return 64 if channels % 64 == 0 else 32


def _sum_dtype(rows: Tensor) -> torch.dtype:
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def _sum_type(rows: Tensor) -> Any:
    return tl.float64 if rows.dtype == torch.float64 else tl.float32


def _index_type(rows: Tensor, table: Tensor) -> Any:
    """Return the type of indices of elements and places: int32, where a block beyond the last one fits as well."""
    margin = MOST_STEPS * 32 * max(rows.shape[1], table[0].numel())
    return tl.int64 if max(rows.numel(), table.numel()) + margin >= 2**31 else tl.int32


# --- kernels --------------------------------------------------------------------------------------------------------
# P counts output positions, C channels, T taps of the window. A position's place in the table at its first tap is its
# place in the patch; further taps are at a fixed distance from there. Indices of elements and places in a table may
# exceed int32, indices of positions do not: INDEX is the type of the former.


@triton.jit
def _gather(
    rows, table, out, places, positions, channels,
    READERS: tl.constexpr, FILL: tl.constexpr, SUM: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gather a block of places x a block of channels."""
    place = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    within, owned = place < places, channel < channels
    target = out + place.to(INDEX)[:, None] * channels + channel[None, :]
    if READERS == 1:
        row = tl.load(table + place, mask=within, other=positions)
        value = tl.load(
            rows + row.to(INDEX)[:, None] * channels + channel[None, :],
            mask=(row < positions)[:, None] & owned[None, :], other=FILL,
        )  # fmt: skip
        tl.store(target, value, mask=within[:, None] & owned[None, :])
    else:
        total = tl.zeros((BLOCK_P, BLOCK_C), dtype=SUM)
        for reader in range(READERS):
            row = tl.load(table + place.to(INDEX) * READERS + reader, mask=within, other=positions)
            value = tl.load(
                rows + row.to(INDEX)[:, None] * channels + channel[None, :],
                mask=(row < positions)[:, None] & owned[None, :], other=0.0,
            )  # fmt: skip
            total += value.to(SUM)
        tl.store(target, total.to(out.dtype.element_ty), mask=within[:, None] & owned[None, :])


@triton.jit
def _first_tap(position, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SPAN_H: tl.constexpr, SPAN_W: tl.constexpr):
    patch = position // (HEIGHT * WIDTH)
    return (patch * SPAN_H + position // WIDTH % HEIGHT) * SPAN_W + position % WIDTH


@triton.jit
def _convolve(
    rows, table, weight, bias, out, positions, channels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    HAS_BIAS: tl.constexpr, SUM: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute a block of positions x a block of channels."""
    SPAN_H: tl.constexpr = HEIGHT + (KERNEL_H - 1) * DILATION_H
    SPAN_W: tl.constexpr = WIDTH + (KERNEL_W - 1) * DILATION_W
    position = tl.program_id(0).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    within, owned = position < positions, channel < channels
    first = _first_tap(position, HEIGHT, WIDTH, SPAN_H, SPAN_W)
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=SUM)
    for y in range(KERNEL_H):
        for x in tl.static_range(KERNEL_W):
            row = tl.load(table + first + y * DILATION_H * SPAN_W + x * DILATION_W, mask=within, other=positions)
            value = tl.load(
                rows + row.to(INDEX)[:, None] * channels + channel[None, :],
                mask=(row < positions)[:, None] & owned[None, :], other=0.0,
            )  # fmt: skip
            tap = tl.load(weight + (y * KERNEL_W + x) * channels + channel, mask=owned, other=0.0)
            total += value.to(SUM) * tap.to(SUM)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=owned, other=0.0).to(SUM)[None, :]
    place = out + position[:, None] * channels + channel[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=within[:, None] & owned[None, :])


@triton.jit
def _sum_weight_gradient(
    grad, rows, table, sums, positions, channels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    SUM: tl.constexpr, INDEX: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum a block of taps x a block of channels over a part of `STEPS` blocks of positions."""
    TAP_BLOCKS: tl.constexpr = (KERNEL_H * KERNEL_W + BLOCK_T - 1) // BLOCK_T
    SPAN_H: tl.constexpr = HEIGHT + (KERNEL_H - 1) * DILATION_H
    SPAN_W: tl.constexpr = WIDTH + (KERNEL_W - 1) * DILATION_W
    # Programs that follow each other are of the same positions, whose gradients stay in the cache.
    part = (tl.program_id(0) // TAP_BLOCKS).to(INDEX)
    tap = tl.program_id(0) % TAP_BLOCKS * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    owned, real = channel < channels, tap < KERNEL_H * KERNEL_W
    away = tap // KERNEL_W * DILATION_H * SPAN_W + tap % KERNEL_W * DILATION_W
    total = tl.zeros((BLOCK_T, BLOCK_P, BLOCK_C), dtype=SUM)
    for step in range(STEPS):
        position = (part * STEPS + step) * BLOCK_P + tl.arange(0, BLOCK_P)
        within = position < positions
        first = _first_tap(position, HEIGHT, WIDTH, SPAN_H, SPAN_W)
        upstream = tl.load(
            grad + position[:, None] * channels + channel[None, :], mask=within[:, None] & owned[None, :], other=0.0
        )
        row = tl.load(table + first[None, :] + away[:, None], mask=real[:, None] & within[None, :], other=positions)
        value = tl.load(
            rows + row.to(INDEX)[:, :, None] * channels + channel[None, None, :],
            mask=(row < positions)[:, :, None] & owned[None, None, :], other=0.0,
        )  # fmt: skip
        total += upstream.to(SUM)[None, :, :] * value.to(SUM)
    place = sums + (part * (KERNEL_H * KERNEL_W) + tap[:, None]) * channels + channel[None, :]
    tl.store(place, tl.sum(total, 1), mask=real[:, None] & owned[None, :])
