"""Pooling over packed patches. Max pooling ignores hidden neighbors as it ignores padding; average pooling counts them
exactly as it counts padding (`count_include_pad`). Pooling the whole map to one value is a reduction (`reduce.py`)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import unsupported
from ..extent import of_whole_map
from ..registry import understands_sizes
from ..shared.reduce import is_whole_map, over_whole_map
from ..window import Window, per_axis, window_over
from .execution import SparseExecution
from .halo import gather_halo, scatter_halo
from .mirrored import with_mirrored_halo


@understands_sizes(F.max_pool2d, torch.max_pool2d, F.max_pool2d_with_indices)
@SparseExecution.register(F.max_pool2d, torch.max_pool2d, F.max_pool2d_with_indices)
def max_pool2d(
    execution: SparseExecution,
    func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    layout = execution.require_map(func, input)
    if return_indices or func is F.max_pool2d_with_indices:
        raise unsupported(func, "the indices it returns have no meaning on patches")
    kernel = per_axis(kernel_size, 2)
    if is_whole_map(execution, input, layout, kernel, padding):
        return over_whole_map(execution, torch.amax, input)
    kernel, stride = of_whole_map(kernel), of_whole_map(stride)
    padding = of_whole_map(padding)
    if execution.outgrows(input, per_axis(stride or kernel, 2)):
        return execution.answer_coarser(func, input, kernel, stride, padding, dilation, ceil_mode)
    window = window_over(
        execution, func, input, kernel, stride or kernel, padding, dilation, fill=-math.inf, ceil_mode=ceil_mode
    )
    if window.needs_halo and window.edge != "constant":
        around = with_mirrored_halo(execution.grid, input, window.before, window.after, window.edge)
        out = F.max_pool2d(around, window.kernel, window.stride, 0, window.dilation)
    elif window.needs_halo:
        table = execution.grid.halo(window.block, window.before, window.after)
        readers = execution.grid.readers(window.block, window.before, window.after)
        out = _MaxPool.apply(input, table, readers, window)  # type: ignore[no-untyped-call]
    else:
        out = F.max_pool2d(input, window.kernel, window.stride, 0, window.dilation)
    return execution.mark(out, layout.padded(None))


class _MaxPool(torch.autograd.Function):
    """Max pooling of patches with halos; keeps the places of the maxima, not the halos."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, readers: Tensor, window: Window) -> Tensor:  # type: ignore[override]
        halo = gather_halo(x, table, window.fill)
        out, places = torch.ops.aten.max_pool2d_with_indices(
            halo, window.kernel, window.stride, (0, 0), window.dilation
        )
        ctx.save_for_backward(places, readers)
        ctx.window = window
        return out  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        places, readers = ctx.saved_tensors
        window = Window(*ctx.window)
        halo_grad = torch.ops.aten.max_pool2d_with_indices_backward(
            grad, _of_halo_shape(grad, window), window.kernel, window.stride, (0, 0), window.dilation, False, places
        )
        return scatter_halo(halo_grad, readers, window.block), None, None, None


def _of_halo_shape(grad: Tensor, window: Window) -> Tensor:
    """Return an empty tensor, for a pooling's backward reads its shape and memory layout alone."""
    shape = (*grad.shape[:2], *window.span)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)


@understands_sizes(F.avg_pool2d, torch._C._nn.avg_pool2d)
@SparseExecution.register(F.avg_pool2d, torch._C._nn.avg_pool2d)
def avg_pool2d(
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
    kernel = per_axis(kernel_size, 2)
    if is_whole_map(execution, input, layout, kernel, padding) and divisor_override is None:
        return over_whole_map(execution, torch.mean, input)
    kernel, stride = of_whole_map(kernel), of_whole_map(stride)
    padding = of_whole_map(padding)
    if execution.outgrows(input, per_axis(stride or kernel, 2)):
        return execution.answer_coarser(
            func, input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
    window = window_over(execution, func, input, kernel, stride or kernel, padding, 1, ceil_mode=ceil_mode)
    divisor = divisor_override or math.prod(kernel)
    if not window.needs_halo or window.edge != "constant":
        around = input
        if window.needs_halo:
            around = with_mirrored_halo(execution.grid, input, window.before, window.after, window.edge)
        out = F.avg_pool2d(around, window.kernel, window.stride, 0, divisor_override=divisor)
        return execution.mark(out, layout.padded(None))
    own = per_axis(padding, 2)
    if ceil_mode and any(a > p for a, p in zip(window.after, own, strict=True)):
        raise unsupported(func, "with ceil_mode its divisor shrinks where a window leaves the padded map")
    leaves_out = not count_include_pad and divisor_override is None
    if layout.padding is not None and leaves_out:
        if any(own):
            raise unsupported(func, "it leaves its own padding out of the count but not that of F.pad before it")
        leaves_out = False
    table = execution.grid.halo(window.block, window.before, window.after)
    readers = execution.grid.readers(window.block, window.before, window.after)
    out = _SumPool.apply(input, table, readers, window) / divisor  # type: ignore[no-untyped-call]
    if leaves_out:
        there = (table != input.shape[0] * math.prod(window.block)).to(out.dtype).unsqueeze(1)
        out = out / F.avg_pool2d(there, window.kernel, window.stride)
    return execution.mark(out, layout.padded(None))


class _SumPool(torch.autograd.Function):
    """Sum over windows of patches with halos; keeps nothing but the tables."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, readers: Tensor, window: Window) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(readers)
        ctx.window = window
        halo = gather_halo(x, table, window.fill)
        return F.avg_pool2d(halo, window.kernel, window.stride, divisor_override=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (readers,) = ctx.saved_tensors
        window = Window(*ctx.window)
        halo_grad = torch.ops.aten.avg_pool2d_backward(
            grad, _of_halo_shape(grad, window), window.kernel, window.stride, (0, 0), False, True, 1
        )
        return scatter_halo(halo_grad, readers, window.block), None, None, None
