"""Depthwise convolution of packed patches by Triton kernels (`triton_kernels.py`), as operators.

They are operators of their own (`torch.ops.sparkmim.*`) so that `torch.compile` puts them into its graph whole, and
the kernels are imported when the first of them runs, so that the engine needs no Triton otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..grid import PatchGrid, rows_of
from ..window import Window
from .kernel_choice import takes_kernels
from .operators import define


def has_kernel(triton: bool | None, x: Tensor, weight: Tensor, window: Window, groups: int) -> bool:
    """Return whether kernels compute a convolution: depthwise, of stride 1, of planes, with zeros where hidden.

    By themselves (`triton=None`) they compute those in 16 bits.
    """
    if triton is False or window.stride != (1, 1) or not groups == x.shape[1] == weight.shape[0]:
        return False
    zeros = window.fill == 0.0 and window.edge == "constant"
    if not zeros or x.dtype != weight.dtype or (triton is None and x.dtype not in (torch.bfloat16, torch.float16)):
        return False
    return are_verified(triton, x)


def are_verified(triton: bool | None, x: Tensor) -> bool:
    """Return whether the kernels may be used on the device of `x`; they are compared with the whole map if need be."""
    return takes_kernels(triton, "depthwise convolution", x, compare_with_whole_map)


def depthwise(grid: PatchGrid, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """Convolve patches `(N, C, h, w)` depthwise; see :func:`has_kernel`."""
    table = grid.halo(window.block, window.before, window.after)
    # The gradient of the input is a convolution of the gradient, with the reach reversed.
    adjoint = grid.halo(window.block, window.after, window.before) if window.before != window.after else None
    out: Tensor = _Depthwise.apply(x, table, adjoint, weight, bias, window.dilation)  # type: ignore[no-untyped-call]
    return out


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of patches; keeps them, not their halos."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        table: Tensor,
        adjoint: Tensor | None,  # None: same as the table
        weight: Tensor,
        bias: Tensor | None,
        dilation: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, table, adjoint, weight)
        ctx.dilation = dilation
        adjoint = table if adjoint is None else adjoint
        return torch.ops.sparkmim.depthwise(x, table, adjoint, weight, bias, dilation)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, table, adjoint, weight = ctx.saved_tensors
        adjoint = table if adjoint is None else adjoint
        need_x, _, _, need_weight, need_bias, _ = ctx.needs_input_grad
        operators = torch.ops.sparkmim
        grad_x = grad_weight = None
        if need_x:
            grad_x = operators.depthwise(grad, adjoint, table, weight.flip((2, 3)), None, ctx.dilation)
        if need_weight:
            grad_weight = operators.depthwise_weight_gradient(grad, x, table, weight.shape[2:], ctx.dilation)
        return grad_x, None, None, grad_weight, rows_of(grad).sum(0) if need_bias else None, None


def _convolve(
    x: Tensor, table: Tensor, adjoint: Tensor, weight: Tensor, bias: Tensor | None, dilation: list[int]
) -> Tensor:
    """Convolve depthwise to `(N, C, h, w)`, channels last in memory.

    Args:
        x: `(N, C, h, w)`.
        table: of :meth:`PatchGrid.halo`; `adjoint` that of the reach reversed, for backward.
        weight: `(C, 1, kernel h, kernel w)`.
        bias: `(C,)`.
        dilation: of the window, an axis each.
    """
    from . import triton_kernels as kernels

    out = _like_packed(x, table, adjoint, weight, bias, dilation)
    by_tap = _rows(weight.transpose(0, 1))
    bias = None if bias is None else bias.contiguous()
    taps = kernels.Taps((x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3]), (dilation[0], dilation[1]))
    kernels.convolve(_rows(x), table.contiguous(), by_tap, bias, rows_of(out), taps)
    return out


def _like_packed(
    x: Tensor, table: Tensor, adjoint: Tensor, weight: Tensor, bias: Tensor | None, dilation: list[int]
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _weight_gradient(grad: Tensor, x: Tensor, table: Tensor, kernel: list[int], dilation: list[int]) -> Tensor:
    """Compute the weight's gradient `(C, 1, *kernel)` from that of the result and what :func:`_convolve` took."""
    from . import triton_kernels as kernels

    taps = kernels.Taps((x.shape[2], x.shape[3]), (kernel[0], kernel[1]), (dilation[0], dilation[1]))
    total = kernels.sum_weight_gradient(_rows(grad), _rows(x), table.contiguous(), taps)
    return total.to(x.dtype).t().reshape(-1, 1, *kernel).contiguous()


def _like_weight(grad: Tensor, x: Tensor, table: Tensor, kernel: list[int], dilation: list[int]) -> Tensor:
    return x.new_empty((x.shape[1], 1, *kernel))


define(
    "depthwise(Tensor x, Tensor table, Tensor adjoint, Tensor weight, Tensor? bias, int[] dilation) -> Tensor",
    _convolve,
    _like_packed,
)
define(
    "depthwise_weight_gradient(Tensor grad, Tensor x, Tensor table, int[] kernel, int[] dilation) -> Tensor",
    _weight_gradient,
    _like_weight,
)


def _rows(maps: Tensor) -> Tensor:
    return rows_of(maps).contiguous()


# --- verification ---------------------------------------------------------------------------------------------------


def compare_with_whole_map(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> str | None:
    """Compare value and gradients of small convolutions with those of the whole map, computed in float32.

    Returns:
        What is wrong, None if nothing is.
    """
    visible = torch.tensor([[[True, True, False], [False, True, False]], [[False, True, True], [True, False, False]]])
    for channels, block, kernel in ((64, 4, 7), (40, 2, 3), (32, 1, 5)):
        grid = PatchGrid(visible.to(device), 3)
        reach = (kernel // 2, kernel // 2)
        sides = (block, block)
        window = Window(sides, (kernel, kernel), (1, 1), (1, 1), reach, reach, 0.0, "constant", sides, sides, True)
        shapes = [(6, channels, block, block), (channels, 1, kernel, kernel), (channels,), (6, channels, block, block)]
        x, weight, bias, upstream = (_waves(shape, dtype, device) for shape in shapes)
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        plain = [t.detach().float().requires_grad_() for t in leaves]
        with torch.enable_grad():
            out = depthwise(grid, x, weight, bias, window)
            whole = F.conv2d(grid.unpack(plain[0]), plain[1], plain[2], padding=kernel // 2, groups=channels)
            expected = grid.pack(whole)
            found = [out, *torch.autograd.grad(out, leaves, upstream)]
            wanted = [expected, *torch.autograd.grad(expected, plain, upstream.float())]
        for what, a, b in zip(("value", "input", "weight", "bias"), found, wanted, strict=True):
            difference = float((a.detach().float() - b.detach()).abs().max() / b.detach().abs().max())
            if not difference <= _TOLERANCE:
                return f"the {what} (or its gradient) of a {kernel} x {kernel} convolution differs by {difference:.2g}"
    return None


_TOLERANCE = 1.5e-2
"""Largest difference from float32, as a share of the largest number: that of rounding sums to bfloat16, twice."""


def _waves(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers between -1 and 1 that no generator draws."""
    count = torch.Size(shape).numel()
    return torch.arange(count, device=device).mul(0.7).add(count).sin().view(shape).to(dtype)
