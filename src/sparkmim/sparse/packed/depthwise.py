"""Depthwise convolution of packed patches by Triton kernels (`triton_kernels.py`), as operators.

They are operators of their own (`torch.ops.sparkmim.*`) so that `torch.compile` puts them into its graph whole, and
the kernels are imported when the first of them runs, so that the engine needs no Triton otherwise.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from ..grid import PatchGrid, rows_of
from ..window import Window

AVAILABLE = importlib.util.find_spec("triton") is not None
"""Whether Triton is installed."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton interprets its kernels, which then take tensors on a CPU."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What the kernels compute with."""


def require_triton() -> None:
    """Raise ModuleNotFoundError, with the remedy, if Triton is not installed."""
    if not AVAILABLE:
        raise ModuleNotFoundError(
            "triton=True needs the package triton, which is not installed. It comes with torch for CUDA on Linux; "
            "else install it (pip install triton, on Windows triton-windows), or leave triton=False",
            name="triton",
        )


def has_kernel(x: Tensor, weight: Tensor, window: Window, groups: int) -> bool:
    """Return whether the kernels compute this convolution: depthwise, of stride 1, of planes, zeros where hidden."""
    by_channel = groups == x.shape[1] == weight.shape[0]
    zeros = window.fill == 0.0 and window.edge == "constant"
    known = x.dtype == weight.dtype and x.dtype in DTYPES and (x.is_cuda or INTERPRETED)
    return by_channel and zeros and known and window.stride == (1, 1)


def depthwise(grid: PatchGrid, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """Convolve patches `(N, C, h, w)` depthwise; see :func:`has_kernel`."""
    table = grid.halo(window.block, window.before, window.after)
    # The gradient of the input is a convolution of the gradient, with the reach reversed.
    adjoint = grid.halo(window.block, window.after, window.before) if window.before != window.after else table
    out: Tensor = torch.ops.sparkmim.depthwise(x, table, adjoint, weight, bias, window.dilation)
    return out


@torch.library.custom_op(
    "sparkmim::depthwise",
    mutates_args=(),
    schema="(Tensor x, Tensor table, Tensor adjoint, Tensor weight, Tensor? bias, int[] dilation) -> Tensor",
)
def _depthwise(
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


@_depthwise.register_fake
def _like_packed(
    x: Tensor, table: Tensor, adjoint: Tensor, weight: Tensor, bias: Tensor | None, dilation: list[int]
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op(
    "sparkmim::depthwise_weight_gradient",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor table, int[] kernel, int[] dilation) -> Tensor",
)
def _weight_gradient(grad: Tensor, x: Tensor, table: Tensor, kernel: list[int], dilation: list[int]) -> Tensor:
    """Compute the weight's gradient `(C, 1, *kernel)` from that of the result and what :func:`_depthwise` took."""
    from . import triton_kernels as kernels

    taps = kernels.Taps((x.shape[2], x.shape[3]), (kernel[0], kernel[1]), (dilation[0], dilation[1]))
    total = kernels.sum_weight_gradient(_rows(grad), _rows(x), table.contiguous(), taps)
    return total.to(x.dtype).t().reshape(-1, 1, *kernel).contiguous()


@_weight_gradient.register_fake
def _like_weight(grad: Tensor, x: Tensor, table: Tensor, kernel: list[int], dilation: list[int]) -> Tensor:
    return x.new_empty((x.shape[1], 1, *kernel))


def _rows(maps: Tensor) -> Tensor:
    return rows_of(maps).contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, table, adjoint, weight, _, dilation = inputs
    ctx.save_for_backward(x, table, adjoint, weight)
    ctx.dilation = dilation


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, table, adjoint, weight = ctx.saved_tensors
    need_x, _, _, need_weight, need_bias, _ = ctx.needs_input_grad
    operators = torch.ops.sparkmim
    grad_x = grad_weight = None
    if need_x:
        grad_x = operators.depthwise(grad, adjoint, table, weight.flip((2, 3)), None, ctx.dilation)
    if need_weight:
        grad_weight = operators.depthwise_weight_gradient(grad, x, table, weight.shape[2:], ctx.dilation)
    return grad_x, None, None, grad_weight, rows_of(grad).sum(0) if need_bias else None, None


_depthwise.register_autograd(_backward, setup_context=_save)
