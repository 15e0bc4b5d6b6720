"""Pooling over packed patches. Max pooling ignores hidden neighbors as it ignores padding; average pooling counts them
exactly as it counts padding (`count_include_pad`). Pooling the whole map to one value is a reduction (`reduce.py`)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...utils.axes import per_axis
from ..errors import unsupported
from ..extent import of_whole_map
from ..registry import understands_sizes
from ..shared.mirrored import with_mirrored_halo
from ..shared.pooling import (
    AVG_POOL,
    MAX_POOL,
    VALUES,
    WITH_INDICES,
    answer_max_pool,
    require_axes,
    sum_pool,
    two_or_more,
    two_or_three,
)
from ..shared.pooling import max_pool as largest_in_windows
from ..shared.reduce import is_whole_map, over_whole_map, require_fixed_windows
from ..shared.short import short_avg_pool, short_max_pool
from ..window import Window, window_over
from .execution import SparseExecution
from .gather import has_kernel
from .halo import gather_halo, scatter_halo


@understands_sizes(*MAX_POOL, *WITH_INDICES)
@SparseExecution.register(*MAX_POOL, *WITH_INDICES)
def max_pool(execution: SparseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    return answer_max_pool(_largest, execution, func, input, args, kwargs)


def _largest(
    execution: SparseExecution,
    func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    layout = execution.require_map(func, input)
    dims = (MAX_POOL | WITH_INDICES)[func]
    require_axes(func, layout, dims)
    kernel = per_axis(kernel_size, dims)
    if is_whole_map(execution, input, layout, kernel, padding):
        return over_whole_map(execution, torch.amax, input)
    require_fixed_windows(func, kernel)
    kernel, stride, padding = of_whole_map((kernel, stride, padding))
    waiting = short_max_pool(execution, func, input, kernel, stride or kernel, padding, dilation)
    if waiting is not None:
        return waiting
    if execution.outgrows(input.shape[2:], per_axis(stride or kernel, dims)):
        return execution.answer_coarser(VALUES[dims], input, kernel, stride, padding, dilation, ceil_mode)  # type: ignore[no-any-return]
    window = window_over(
        execution, func, input, kernel, stride or kernel, padding, dilation, fill=-math.inf, ceil_mode=ceil_mode
    )
    inside = (0,) * dims
    if window.needs_halo and window.edge != "constant":
        around = with_mirrored_halo(execution.grid, input, window.before, window.after, window.edge)
        out = largest_in_windows(around, window.kernel, window.stride, inside, window.dilation)
    elif window.needs_halo:
        table = execution.grid.halo(window.block, window.before, window.after)
        readers = execution.grid.readers(window.block, window.before, window.after)
        kernel_used = has_kernel(execution.triton, input)
        out = _MaxPool.apply(input, table, readers, window, kernel_used)  # type: ignore[no-untyped-call]
    else:
        out = largest_in_windows(input, window.kernel, window.stride, inside, window.dilation)
    return execution.mark(out, layout.padded(None))


class _MaxPool(torch.autograd.Function):
    """Max pooling of patches with halos; keeps the places of the maxima, in a byte or two each, not the halos."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, table: Tensor, readers: Tensor, window: Window, kernel: bool
    ) -> Tensor:
        halo = two_or_more(gather_halo(x, table, window.fill, kernel))
        function = torch.ops.aten.max_pool2d_with_indices if halo.ndim == 4 else torch.ops.aten.max_pool3d_with_indices
        out, places = function(halo, *_arguments(window, dilated=True))
        ctx.save_for_backward(places.to(_smallest_type(halo)), readers)
        ctx.window, ctx.kernel = window, kernel
        return out if x.ndim == halo.ndim else out.squeeze(2)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        places, readers = ctx.saved_tensors
        window = Window(*ctx.window)
        lifted = two_or_more(grad)
        flat = lifted.ndim == 4
        function = (
            torch.ops.aten.max_pool2d_with_indices_backward if flat else torch.ops.aten.max_pool3d_with_indices_backward
        )
        arguments = _arguments(window, dilated=True)
        halo_grad = function(lifted, _of_halo_shape(lifted, window), *arguments, False, places.long())
        halo_grad = halo_grad if grad.ndim == lifted.ndim else halo_grad.squeeze(2)
        return scatter_halo(halo_grad, readers, window.block, ctx.kernel), *[None] * 4


def _smallest_type(halo: Tensor) -> torch.dtype:
    """Return a type that holds the place of every position of a patch with its halo, which torch has in int64."""
    places = math.prod(halo.shape[2:])
    return torch.uint8 if places <= 2**8 else torch.int16 if places <= 2**15 else torch.int32


def _arguments(window: Window, dilated: bool) -> list[list[int]]:
    """Return kernel, stride and padding of a pooling of halos, and its dilation."""
    kernel, stride = two_or_three(window.kernel, 1), two_or_three(window.stride, 1)
    return [kernel, stride, [0] * len(kernel), *([two_or_three(window.dilation, 1)] if dilated else [])]


def _of_halo_shape(grad: Tensor, window: Window) -> Tensor:
    """Return an empty tensor, for a pooling's backward reads its shape and memory layout alone."""
    shape = (*grad.shape[:2], *two_or_three(window.span, 1))
    channels_last = torch.channels_last if grad.ndim == 4 else torch.channels_last_3d
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=channels_last)


@understands_sizes(*AVG_POOL)
@SparseExecution.register(*AVG_POOL)
def avg_pool(
    execution: SparseExecution,
    func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    layout = execution.require_map(func, input)
    dims = AVG_POOL[func]
    require_axes(func, layout, dims)
    kernel = per_axis(kernel_size, dims)
    if is_whole_map(execution, input, layout, kernel, padding) and divisor_override is None:
        return over_whole_map(execution, torch.mean, input)
    require_fixed_windows(func, kernel)
    kernel, stride, padding = of_whole_map((kernel, stride, padding))
    waiting = short_avg_pool(execution, func, input, kernel, stride or kernel, padding, divisor_override)
    if waiting is not None:
        return waiting
    if execution.outgrows(input.shape[2:], per_axis(stride or kernel, dims)):
        further = (divisor_override,) if dims > 1 else ()
        return execution.answer_coarser(func, input, kernel, stride, padding, ceil_mode, count_include_pad, *further)
    window = window_over(execution, func, input, kernel, stride or kernel, padding, 1, ceil_mode=ceil_mode)
    divisor = divisor_override or math.prod(kernel)
    if not window.needs_halo or window.edge != "constant":
        around = input
        if window.needs_halo:
            around = with_mirrored_halo(execution.grid, input, window.before, window.after, window.edge)
        out = sum_pool(around, window.kernel, window.stride, (0,) * dims, divisor=divisor)
        return execution.mark(out, layout.padded(None))
    own = per_axis(padding, dims)
    if ceil_mode and any(a > p for a, p in zip(window.after, own, strict=True)):
        raise unsupported(func, "with ceil_mode its divisor shrinks where a window leaves the padded map")
    leaves_out = not count_include_pad and divisor_override is None
    if layout.padding is not None and leaves_out:
        if any(own):
            raise unsupported(func, "it leaves its own padding out of the count but not that of F.pad before it")
        leaves_out = False
    table = execution.grid.halo(window.block, window.before, window.after)
    readers = execution.grid.readers(window.block, window.before, window.after)
    kernel_used = has_kernel(execution.triton, input)
    out = _SumPool.apply(input, table, readers, window, kernel_used) / divisor  # type: ignore[no-untyped-call]
    if leaves_out:
        there = (table != input.shape[0] * math.prod(window.block)).to(out.dtype).unsqueeze(1)
        out = out / sum_pool(there, window.kernel, window.stride, (0,) * dims, divisor=math.prod(kernel))
    return execution.mark(out, layout.padded(None))


class _SumPool(torch.autograd.Function):
    """Sum over windows of patches with halos; keeps nothing but the tables."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, table: Tensor, readers: Tensor, window: Window, kernel: bool
    ) -> Tensor:
        ctx.save_for_backward(readers)
        ctx.window, ctx.kernel = window, kernel
        halo = gather_halo(x, table, window.fill, kernel)
        return sum_pool(halo, window.kernel, window.stride, (0,) * len(window.kernel))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (readers,) = ctx.saved_tensors
        window = Window(*ctx.window)
        lifted = two_or_more(grad)
        function = torch.ops.aten.avg_pool2d_backward if lifted.ndim == 4 else torch.ops.aten.avg_pool3d_backward
        halo_grad = function(lifted, _of_halo_shape(lifted, window), *_arguments(window, dilated=False), False, True, 1)
        halo_grad = halo_grad if grad.ndim == lifted.ndim else halo_grad.squeeze(2)
        return scatter_halo(halo_grad, readers, window.block, ctx.kernel), *[None] * 4
