"""Pooling of maps whose positions hold several patches."""

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
from .coarse import CoarseExecution


@understands_sizes(*MAX_POOL, *WITH_INDICES)
@CoarseExecution.register(*MAX_POOL, *WITH_INDICES)
def max_pool(execution: CoarseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    return answer_max_pool(_largest, execution, func, input, args, kwargs)


def _largest(
    execution: CoarseExecution,
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
    if any(after < 0 for after in window.after):
        raise unsupported(func, "it passes over positions, which may be the only visible ones of several patches")

    def largest(x: Tensor, padding: Any) -> Tensor:
        return largest_in_windows(x, window.kernel, window.stride, per_axis(padding, dims), window.dilation, ceil_mode)

    return execution.with_windows(func, largest, input, window, padding)


@understands_sizes(*AVG_POOL)
@CoarseExecution.register(*AVG_POOL)
def avg_pool(
    execution: CoarseExecution,
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
    own = per_axis(padding, dims)
    divisor: Tensor | int = divisor_override or math.prod(kernel)
    if not (count_include_pad or divisor_override is not None or layout.padding is not None):
        visible = execution.mask(input.shape[2:]).unsqueeze(1).to(input.dtype)
        divisor = sum_pool(visible, window.kernel, window.stride, own, ceil_mode).clamp_min(1)

    def mean(x: Tensor, padding: Any) -> Tensor:
        return sum_pool(x, window.kernel, window.stride, per_axis(padding, dims), ceil_mode) / divisor

    return execution.with_windows(func, mean, input, window, own)
