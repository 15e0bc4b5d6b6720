"""Functions that are compositions of others: each part is answered by its own rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.axes import per_axis
from ..errors import unsupported
from ..execution import Execution
from ..extent import of_whole_map
from ..functions import functions_named
from ..layout import Layout
from ..registry import understands_sizes
from .axes import cat
from .calls import call
from .pointwise import own_layout
from .reduce import is_whole_map

_LP_POOL = {F.lp_pool1d: F.avg_pool1d, F.lp_pool2d: F.avg_pool2d, F.lp_pool3d: F.avg_pool3d}


@understands_sizes(*_LP_POOL)
@Execution.register(*_LP_POOL)
def lp_pool(
    execution: Execution,
    func: Any,
    input: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Pool by a norm: the root of the sum of powers in each window, as torch composes it of an average."""
    layout = execution.require_map(func, input)
    kernel = per_axis(kernel_size, len(layout.space))
    powers = call(execution, torch.pow, input, norm_type)
    if is_whole_map(execution, input, layout, kernel, 0):
        total = call(execution, torch.sum, powers, layout.space, True)
    else:
        mean = call(execution, _LP_POOL[func], powers, kernel_size, stride, 0, ceil_mode)
        total = call(execution, torch.mul, mean, math.prod(of_whole_map(kernel)))
    size = call(execution, torch.relu, call(execution, torch.abs, total))
    signed = call(execution, torch.mul, call(execution, torch.sign, total), size)
    return call(execution, torch.pow, signed, 1.0 / norm_type)  # type: ignore[no-any-return]


_STACKED: dict[Any, int] = {
    **dict.fromkeys(functions_named("vstack row_stack"), 0),
    **dict.fromkeys(functions_named("hstack"), 1),
    **dict.fromkeys(functions_named("dstack"), 2),
}


@Execution.register(*_STACKED)
def joined(execution: Execution, func: Any, tensors: Sequence[Tensor]) -> Tensor:
    """Join along the axis that the function's name says, which must be free."""
    if any(tensor.ndim < 3 for tensor in tensors):
        raise unsupported(func, "it adds axes to tensors of few; use cat")
    return cat(execution, func, tensors, _STACKED[func])


@Execution.register(F.unfold, torch._C._nn.im2col)
def unfold(
    execution: Execution,
    func: Any,
    input: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Tensor:
    """List what a window sees at each position, `(N, C * prod(kernel), positions)`: a convolution that picks it out."""
    layout = own_layout(execution, func, input)
    if layout.is_channels_first(input.ndim) and input.ndim != 4:
        raise unsupported(func, f"its windows have two axes and the map {len(layout.space)}")
    kernel = per_axis(kernel_size, 2)
    channels = input.shape[1]
    picks = _picks(input, channels, kernel)
    out = call(execution, F.conv2d, input, picks, None, stride, padding, dilation, channels)
    return call(execution, torch.flatten, out, 2)  # type: ignore[no-any-return]


@Execution.register(F.fold, torch._C._nn.col2im)
def fold(
    execution: Execution,
    func: Any,
    input: Tensor,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Tensor:
    """Add up windows `(N, C * prod(kernel), positions)` where they overlap: a transposed convolution."""
    layout = own_layout(execution, func, input)
    kernel = per_axis(kernel_size, 2)
    channels, rest = divmod(input.shape[1], math.prod(kernel))
    if layout.space != (2,) or len(layout.flattened) != 2 or rest:
        raise unsupported(func, f"it needs windows (batch, channel, positions), its argument is {layout}")
    apart = Layout(layout.origin, layout.batch, (2, 3))
    windows = execution.mark(input.unflatten(2, layout.flattened), apart)
    steps = per_axis(stride, 2)
    size = [execution.extent_of_whole(apart, a, extent) for a, extent in enumerate(layout.flattened, start=2)]
    if [extent * step for extent, step in zip(size, steps, strict=True)] != list(per_axis(output_size, 2)):
        raise unsupported(func, f"its windows, of {tuple(size)} positions, are not as far apart as their stride")
    extra = []
    for extent, step, pad in zip(_reach(kernel, dilation), steps, per_axis(padding, 2), strict=True):
        extra.append(step + 2 * pad - extent)
    if any(not 0 <= amount < max(steps) for amount in extra) and any(extra):
        raise unsupported(func, "its windows reach beyond the map")
    picks = _picks(input, channels, kernel)
    out: Tensor = call(execution, F.conv_transpose2d, windows, picks, None, steps, padding, extra, channels, dilation)
    return out


def _picks(x: Tensor, channels: int, kernel: Sequence[int]) -> Tensor:
    """Return the kernels that pick out each place of a window, of each channel."""
    area = math.prod(kernel)
    return torch.eye(area, dtype=x.dtype, device=x.device).view(area, 1, *kernel).repeat(channels, 1, 1, 1)


def _reach(kernel: Sequence[int], dilation: Any) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(kernel, per_axis(dilation, len(kernel)), strict=True)]
