"""Transposed convolution over packed patches. What hidden neighbors would write into a patch is not there, as beyond
the edge of the image; with a kernel as large as the stride nothing leaves its position."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..autocast import autocast_arguments, without_autocast
from ..shared.transposed import CONV_TRANSPOSE, Upward, upward
from .execution import SparseExecution
from .gather import has_kernel
from .halo import gather_halo, scatter_halo


@SparseExecution.register(*CONV_TRANSPOSE)
def conv_transpose(
    execution: SparseExecution,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    layout, geometry = upward(execution, func, input, weight, bias, stride, padding, output_padding, dilation)
    block = tuple(input.shape[2:])
    around = input
    if any(geometry.before) or any(geometry.after):
        table = execution.grid.halo(block, geometry.before, geometry.after)
        readers = execution.grid.readers(block, geometry.before, geometry.after)
        around = _Halo.apply(input, table, readers, block, has_kernel(execution.triton, input))  # type: ignore[no-untyped-call]
    around, weight, bias = autocast_arguments(around, weight, bias)
    with without_autocast(input.device.type):
        out = func(around, weight, None, geometry.stride, 0, 0, groups, geometry.dilation)
        out = _of_the_patch(out, block, geometry)
        if bias is not None:
            out = out + bias.view(-1, *[1] * len(block))
    return execution.mark(out, layout)


def _of_the_patch(out: Tensor, block: tuple[int, ...], geometry: Upward) -> Tensor:
    """Cut what belongs to a patch out of what it and its halo have written; nothing was written beyond its end."""
    rows = zip(block, geometry.stride, geometry.before, geometry.padding, strict=True)
    for axis, (extent, stride, before, padding) in enumerate(rows, start=2):
        first, length = before * stride + padding, extent * stride
        missing = first + length - out.shape[axis]
        if missing > 0:
            out = F.pad(out, [*[0, 0] * (out.ndim - 1 - axis), 0, missing])
        out = out.narrow(axis, first, length)
    return out


class _Halo(torch.autograd.Function):
    """Patches with zeros for hidden neighbors; the adjoint is a gather."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, table: Tensor, readers: Tensor, block: tuple[int, ...], kernel: bool
    ) -> Tensor:
        ctx.save_for_backward(readers)
        ctx.block, ctx.kernel = block, kernel
        return gather_halo(x, table, kernel=kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (readers,) = ctx.saved_tensors
        return scatter_halo(grad, readers, tuple(ctx.block), ctx.kernel), *[None] * 4
