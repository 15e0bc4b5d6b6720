"""Convolution over packed patches: submanifold convolution by halo exchange.

Hidden neighbors count as the convolution's padding. Three ways of computing the same numbers, chosen by shape alone:
halo, then the ordinary kernel; for patches of a few pixels gather and matrix product (`im2col`); for depthwise
convolution whose halos would be larger than the image, the whole map. (A fourth, on request: Triton kernels for
depthwise convolution, :mod:`sparkmim.sparse.packed.depthwise`.) Whatever is larger than the patches is computed
again in backward instead of being kept.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...utils.axes import per_axis
from ..autocast import autocast_arguments
from ..errors import unsupported
from ..grid import PatchGrid, maps_of, rows_of
from ..shared.mirrored import with_mirrored_halo
from ..shared.short import unaligned_convolution
from ..window import WINDOWS, Window, keep_window, sees_one_position, window_key, window_over
from .depthwise import depthwise, has_kernel
from .execution import SparseExecution
from .gather import gather_all, gather_rows
from .gather import has_kernel as gather_has_kernel
from .halo import gather_halo, scatter_halo

GEMM_PIXELS = 4
"""Patches of at most so many output pixels are convolved by one matrix product (measured: benchmarks/conv_paths.py)."""

DENSE_ADVANTAGE = 2.0
"""Depthwise: the whole map is used where the halos hold this many times its pixels."""


@SparseExecution.register(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
def conv(
    execution: SparseExecution,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    layout = execution.layout(input)
    if layout is None or execution.layout(weight) is not None or execution.layout(bias) is not None:
        raise unsupported(func, "its weight descends from the input")
    if not layout.is_map:
        if layout.batch != 0:
            raise unsupported(func, f"it needs samples first, its argument is {layout}")
        return execution.on_one_row_per_image(
            lambda x: func(x, weight, bias, stride, padding, dilation, groups), input, layout
        )
    key = window_key(layout, input, weight.shape[2:], stride, padding, dilation)
    window = WINDOWS.get(key) if key is not None else None
    if window is None:
        if sees_one_position(layout, weight.shape[2:], stride, padding):
            execution.require_no_padding(layout, func)
            return execution.mark(func(input, weight, bias, stride, padding, dilation, groups), layout)
        waiting = unaligned_convolution(execution, func, input, weight, bias, stride, padding, dilation, groups)
        if waiting is not None:
            return waiting
        if execution.outgrows(input.shape[2:], per_axis(stride, len(layout.space))):
            return execution.answer_coarser(func, input, weight, bias, stride, padding, dilation, groups)
        window = window_over(execution, func, input, weight.shape[2:], stride, padding, dilation)
        if key is not None:
            keep_window(key, window)
    if torch.is_autocast_enabled(input.device.type):
        input, weight, bias = autocast_arguments(input, weight, bias)
        with torch.autocast(input.device.type, enabled=False):
            out = _convolved(execution, func, input, weight, bias, window, groups)
    else:
        out = _convolved(execution, func, input, weight, bias, window, groups)
    return execution.mark(out, layout if layout.padding is None else layout.padded(None))


def _convolved(
    execution: SparseExecution,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
) -> Tensor:
    """Convolve patches that see what a window needs; autocast is off."""
    out: Tensor
    if not window.needs_halo:
        out = func(input, weight, bias, window.stride, 0, window.dilation, groups)
    elif window.edge != "constant":
        around = with_mirrored_halo(execution.grid, input, window.before, window.after, window.edge)
        out = func(around, weight, bias, window.stride, 0, window.dilation, groups)
    elif has_kernel(execution.triton, input, weight, window, groups):
        out = depthwise(execution.grid, input, weight, bias, window)
    else:
        out = _with_halo(execution, input, weight, bias, window, groups)
    return out


def _with_halo(
    execution: SparseExecution, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    grid, kernel = execution.grid, gather_has_kernel(execution.triton, x)
    if groups == x.shape[1] and groups > 1 and _on_whole_map(grid, window):
        scatter_in, gather_in = grid.scatter_index(window.block), grid.gather_index(window.block)
        scatter_out, gather_out = None, None  # same as for the input
        if window.out != window.block:
            scatter_out, gather_out = grid.scatter_index(window.out), grid.gather_index(window.out)
        rows = _DenseConvolution.apply(
            x, weight, bias, scatter_in, scatter_out, gather_in, gather_out, window, groups, kernel
        )
        return maps_of(rows, (x.shape[0], *window.out))
    by_matrix_product = _by_matrix_product(window, groups)
    unit_stride = window.stride == (1,) * len(window.stride)

    def table_of(before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        if by_matrix_product and unit_stride:
            return grid.columns(window.block, before, after, window.kernel, window.dilation)
        return grid.halo(window.block, before, after)

    table = table_of(window.before, window.after)
    adjoint: Tensor | None = None  # same as the table
    # Of stride 1, the gradient of the input is a convolution of the gradient, with the reach reversed.
    if unit_stride:
        if window.before != window.after:
            adjoint = table_of(window.after, window.before)
    elif x.requires_grad:
        adjoint = grid.readers(window.block, window.before, window.after)
    out: Tensor = _HaloConvolution.apply(x, weight, bias, table, adjoint, window, groups, kernel)
    return maps_of(out, (x.shape[0], *window.out)) if by_matrix_product else out


def _on_whole_map(grid: PatchGrid, window: Window) -> bool:
    """Return whether a depthwise convolution is computed on the whole map, which its halos hold several times over."""
    halo_pixels = grid.visible_per_image * math.prod(window.span)
    if window.fill != 0.0 or halo_pixels <= DENSE_ADVANTAGE * math.prod(grid.shape) * math.prod(window.block):
        return False
    sides = zip(window.before, window.after, window.stride, strict=True)
    return all(b >= 0 and a > -s for b, a, s in sides)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    window: Window,
    groups: int,
    fill: float,
    kernel: bool,
) -> Tensor:
    """Convolve patches (N, C, *block) that see what `table` says around them.

    By matrix product the result is one of rows, `(N * prod(out), O)`: a view of it as maps would be a view made inside
    an autograd function, which may not be written in place.
    """
    if _by_matrix_product(window, groups):
        return F.linear(_columns(x, table, window, fill, kernel), _as_matrix(weight), bias)
    halo = gather_halo(x, table, fill, kernel)
    return _convolution(halo, weight, bias, window.stride, window.dilation, groups)


def _by_matrix_product(window: Window, groups: int) -> bool:
    return groups == 1 and math.prod(window.out) <= GEMM_PIXELS


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    padding: tuple[int, ...] | None = None,
) -> Tensor:
    zeros = (0,) * len(stride)

    def convolved(x: Tensor) -> Tensor:
        return torch.convolution(x, weight, bias, stride, padding or zeros, dilation, False, zeros, groups)

    parts = _parts(x, weight) if x.ndim == 5 and x.dtype == torch.float64 and x.device.type == "cpu" else 1
    return convolved(x) if parts == 1 else torch.cat([convolved(part) for part in x.chunk(parts)])


MOST_COLUMNS = 2**27
"""Numbers that torch may write out for a convolution of volumes in float64 on a CPU, which takes each kernel's view of
the input: for a kernel of 7 x 7 x 7 and 64 channels, as in the gradient of a stem, 20,000 times the positions."""


def _parts(x: Tensor, weight: Tensor) -> int:
    """Return in how many parts patches are convolved, so that each writes out at most `MOST_COLUMNS` numbers."""
    return min(len(x), math.ceil(x.numel() * math.prod(weight.shape[2:]) / MOST_COLUMNS)) or 1


def _columns(x: Tensor, table: Tensor, window: Window, fill: float, kernel: bool) -> Tensor:
    """Gather what the kernel sees at each output position: `(N * prod(out), prod(kernel) * C)`.

    Args:
        x: the patches.
        table: :meth:`PatchGrid.columns`, or :meth:`PatchGrid.halo` of a window of other strides.
        window: the kernel's.
        fill: of hidden positions.
        kernel: whether a Triton kernel gathers.
    """
    if table.ndim > 1:
        for axis, (k, s, d) in enumerate(zip(window.kernel, window.stride, window.dilation, strict=True)):
            table = table.unfold(axis + 1, (k - 1) * d + 1, s)[..., ::d]
    rows = gather_rows(rows_of(x), table, fill, kernel)
    return rows.view(-1, math.prod(window.kernel) * x.shape[1])


def _as_matrix(weight: Tensor) -> Tensor:
    """Flatten `(O, C, *kernel)` to `(O, prod(kernel) * C)`, a view if the channels are last in memory."""
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def _as_weight(matrix: Tensor, like: Tensor) -> Tensor:
    return matrix.view(like.shape[0], *like.shape[2:], like.shape[1]).movedim(-1, 1)


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """Return the kernel of the adjoint of a convolution of stride 1: inputs and outputs exchanged, space reversed."""
    out, per_group, *kernel = weight.shape
    swapped = weight.view(groups, out // groups, per_group, *kernel).transpose(1, 2)
    return swapped.reshape(groups * per_group, out // groups, *kernel).flip(tuple(range(2, weight.ndim)))


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    wanted: tuple[bool, bool],
    padding: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the wanted gradients of a convolution, unpadded by default: of the input, of the weight."""
    zeros = (0,) * len(window.block)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, window.stride, padding or zeros, window.dilation, False, zeros, groups, [*wanted, False]
    )
    return grad_x, grad_weight


def _bias_gradient(grad: Tensor) -> Tensor:
    return rows_of(grad).sum(0)


class _HaloConvolution(torch.autograd.Function):
    """Convolution over patches with halos; keeps the patches, not the halos."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        table: Tensor,
        adjoint: Tensor | None,
        window: Window,
        groups: int,
        kernel: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, table, adjoint)
        ctx.window, ctx.groups, ctx.kernel = window, groups, kernel
        return _convolve(x, weight, bias, table, window, groups, window.fill, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, table, adjoint = ctx.saved_tensors
        adjoint = table if adjoint is None else adjoint
        window, groups, kernel = Window(*ctx.window), ctx.groups, ctx.kernel
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        matrix_product = grad.ndim == 2
        grad = maps_of(grad.contiguous(), (x.shape[0], *window.out)) if matrix_product else grad
        grad_x = grad_weight = None
        if need_x and all(s == 1 for s in window.stride):
            grad_x = _convolve(grad, _transposed(weight, groups), None, adjoint, window, groups, 0.0, kernel)
            grad_x = maps_of(grad_x, (x.shape[0], *window.block)) if matrix_product else grad_x
        elif need_x:
            halo = gather_halo(x, table, window.fill, kernel)
            both = need_weight and not matrix_product
            halo_grad, grad_weight = _gradients(grad, halo, weight, window, groups, (True, both))
            grad_x = scatter_halo(halo_grad, adjoint, window.block, kernel)
        if need_weight and matrix_product:
            grad_weight = _as_weight(rows_of(grad).t() @ _columns(x, table, window, window.fill, kernel), weight)
        elif need_weight and grad_weight is None:
            halo = gather_halo(x, table, window.fill, kernel)
            _, grad_weight = _gradients(grad, halo, weight, window, groups, (False, True))
        return grad_x, grad_weight, _bias_gradient(grad) if need_bias else None, *[None] * 5


class _DenseConvolution(torch.autograd.Function):
    """Convolution of the whole map with zeros at hidden positions; keeps the patches, not the map.

    `scatter_*` are :meth:`PatchGrid.scatter_index`, the way to the map, and `gather_*` :meth:`PatchGrid.gather_index`,
    the way back, at the resolution of the input (`*_in`) and of the result (`*_out`, None where it is the same).
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scatter_in: Tensor,
        scatter_out: Tensor | None,
        gather_in: Tensor,
        gather_out: Tensor | None,
        window: Window,
        groups: int,
        kernel: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scatter_in, scatter_out, gather_in)
        ctx.window, ctx.groups, ctx.kernel = window, groups, kernel
        whole, padding = _padded(gather_halo(x, scatter_in, kernel=kernel), window)
        out = _convolution(whole, weight, bias, window.stride, window.dilation, groups, padding)
        return gather_all(rows_of(out), gather_in if gather_out is None else gather_out, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, scatter_in, scatter_out, gather_in = ctx.saved_tensors
        window, groups, kernel = Window(*ctx.window), ctx.groups, ctx.kernel
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad = maps_of(grad.contiguous(), (x.shape[0], *window.out))
        whole, padding = _padded(gather_halo(x, scatter_in, kernel=kernel), window)
        whole_grad = gather_halo(grad, scatter_in if scatter_out is None else scatter_out, kernel=kernel)
        grad_x = None
        wanted = need_x, need_weight
        whole_grad_x, grad_weight = _gradients(whole_grad, whole, weight, window, groups, wanted, padding)
        if need_x:
            if not any(padding):
                for axis, (before, size) in enumerate(zip(window.before, scatter_in.shape[1:], strict=True)):
                    whole_grad_x = whole_grad_x.narrow(axis + 2, before, size)
            grad_x = maps_of(gather_all(rows_of(whole_grad_x), gather_in, kernel), gather_in.shape)
        return grad_x, grad_weight, _bias_gradient(grad) if need_bias else None, *[None] * 7


def _padded(whole: Tensor, window: Window) -> tuple[Tensor, tuple[int, ...]]:
    """Return a map with what a convolution is still to pad it with on both sides of each axis.

    The map is padded here, and by nothing more, where the two sides differ by a stride or more.
    """
    reach = list(zip(window.before, window.after, window.stride, strict=True))
    if all(0 <= before - after < stride for before, after, stride in reach):
        return whole, window.before
    sides = [side for before, after, _ in reach for side in (max(after, 0), before)]
    return F.pad(whole, sides[::-1]), (0,) * len(reach)
