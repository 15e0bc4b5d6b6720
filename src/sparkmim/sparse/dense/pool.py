"""Pooling by the masked-dense reference: the whole map, with hidden positions filled by what lies outside."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...utils.axes import per_axis
from ..errors import unsupported
from ..extent import of_whole_map
from ..registry import understands_sizes
from ..shared.pooling import AVG_POOL, MAX_POOL, WITH_INDICES, answer_max_pool, require_axes, sum_pool
from ..shared.pooling import max_pool as largest_in_windows
from ..shared.reduce import is_whole_map, over_whole_map, require_fixed_windows
from ..shared.short import short_avg_pool, short_max_pool
from ..window import window_over
from .execution import MaskedDenseExecution


@understands_sizes(*MAX_POOL, *WITH_INDICES)
@MaskedDenseExecution.register(*MAX_POOL, *WITH_INDICES)
def max_pool(execution: MaskedDenseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    return answer_max_pool(_largest, execution, func, input, args, kwargs)


def _largest(
    execution: MaskedDenseExecution,
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
    window = window_over(
        execution, func, input, kernel, stride or kernel, padding, dilation, fill=-math.inf, ceil_mode=ceil_mode
    )
    if any(after < 0 for after in window.after) and not execution.in_patches(window.out):
        raise unsupported(func, "it passes over positions, which may be the only visible ones of several patches")

    def largest(x: Tensor, padding: Any) -> Tensor:
        return largest_in_windows(x, window.kernel, window.stride, per_axis(padding, dims), window.dilation, ceil_mode)

    out = execution.with_windows(func, largest, input, window, padding)
    return execution.leaving(func, out, layout)


@understands_sizes(*AVG_POOL)
@MaskedDenseExecution.register(*AVG_POOL)
def avg_pool(
    execution: MaskedDenseExecution,
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
    window = window_over(execution, func, input, kernel, stride or kernel, padding, 1, ceil_mode=ceil_mode)

    def summed(x: Tensor, padding: Any) -> Tensor:
        return sum_pool(x, window.kernel, window.stride, per_axis(padding, dims), ceil_mode)

    out = execution.with_windows(func, summed, input, window, padding)
    if count_include_pad or divisor_override is not None or layout.padding is not None:
        out = out / (divisor_override or math.prod(kernel))
    else:
        there = execution.mask(input.shape[2:]).unsqueeze(1).to(input.dtype)
        out = out / summed(there, padding).clamp_min(1)
    return execution.leaving(func, out, layout)
