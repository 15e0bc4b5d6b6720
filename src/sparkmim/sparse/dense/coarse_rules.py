"""Rules for maps whose positions hold several patches: windows with a mask, norms by sums of static shape."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..extent import of_whole_map
from ..registry import understands_sizes
from ..shared.pointwise import samples_and_channels_first
from ..shared.resample import resampled_by_itself, target_size
from ..shared.short import unaligned_convolution
from ..shared.smooth import NEAREST, local_sizes, shrinking, smooth
from ..window import sees_one_position, window_over
from .coarse import CoarseExecution
from .moments import Moments, at_least_single

# --- windows --------------------------------------------------------------------------------------------------------


@CoarseExecution.register(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
def conv(
    execution: CoarseExecution,
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
    if layout.is_map and not sees_one_position(layout, weight.shape[2:], stride, padding):
        waiting = unaligned_convolution(execution, func, input, weight, bias, stride, padding, dilation, groups)
        if waiting is not None:
            return waiting
        window = window_over(execution, func, input, weight.shape[2:], stride, padding, dilation)

        def convolve(x: Tensor, padding: Any) -> Tensor:
            return func(x, weight, bias, stride, padding, dilation, groups)

        return execution.with_windows(func, convolve, input, window, padding)
    execution.require_no_padding(layout, func)
    return execution.mark(func(input, weight, bias, stride, padding, dilation, groups), layout)


@understands_sizes(F.interpolate)
@CoarseExecution.register(F.interpolate)
def interpolate(
    execution: CoarseExecution,
    func: Any,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    simple = resampled_by_itself(execution, func, input, size, scale_factor, mode)
    if simple is not None:
        return simple
    layout = execution.require_map(func, input)
    scale_factor = of_whole_map(scale_factor)
    size = None if size is None else local_sizes(execution, func, layout, input, size)
    if mode in NEAREST:
        shown = execution.where_visible(input, 0.0, func)
        return execution.leaving(func, func(shown, size, scale_factor, mode), layout)
    old = list(input.shape[2:])
    new = target_size(old, size, scale_factor)
    if any(n % o for o, n in zip(old, new, strict=True)):
        raise unsupported(func, shrinking(mode))
    ones = [1] * len(old)
    resampling = smooth(func, mode, ones, [n // o for o, n in zip(old, new, strict=True)], align_corners, antialias)
    window = resampling.window(tuple(ones))._replace(out=tuple(new))
    return execution.with_windows(func, lambda x, _: resampling(x), input, window, 0)


# --- norms ----------------------------------------------------------------------------------------------------------


@CoarseExecution.register(F.batch_norm)
def batch_norm(
    execution: CoarseExecution,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    layout = samples_and_channels_first(execution, func, input)
    if not ((training or running_mean is None) and layout.is_map):
        out = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return execution.mark(out, layout)
    visible = execution.mask_along(input, layout)
    moments = Moments.of(at_least_single(input), visible, (0, *range(2, input.ndim)))
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(moments.mean.flatten().to(running_mean.dtype), momentum)
            running_var.lerp_(moments.unbiased().flatten().to(running_var.dtype), momentum)
    return execution.settled(_affine(moments.normalized(eps), weight, bias).to(input.dtype), layout)


@CoarseExecution.register(torch.batch_norm)
def batch_norm_of_torch(
    execution: CoarseExecution,
    func: Any,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return batch_norm(execution, func, input, running_mean, running_var, weight, bias, training, momentum, eps)


@CoarseExecution.register(F.group_norm, torch.group_norm)
def group_norm(
    execution: CoarseExecution,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    layout = samples_and_channels_first(execution, func, input)
    if not layout.is_map:
        return execution.mark(F.group_norm(input, num_groups, weight, bias, eps), layout)
    visible = execution.mask_along(input, layout).unsqueeze(1)
    groups = at_least_single(input).unflatten(1, (num_groups, -1))
    out = Moments.of(groups, visible, tuple(range(2, groups.ndim))).normalized(eps).flatten(1, 2)
    return execution.settled(_affine(out, weight, bias).to(input.dtype), layout)


@CoarseExecution.register(F.instance_norm)
def instance_norm(
    execution: CoarseExecution,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    layout = execution.require_map(func, input)
    execution.require_no_padding(layout, func)
    if running_mean is None or running_var is None:
        return group_norm(execution, func, input, input.shape[1], weight, bias, eps)
    if not use_input_stats:
        return execution.mark(F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps), layout)
    moments = Moments.of(at_least_single(input), execution.mask_along(input, layout), layout.space)
    with torch.no_grad():  # as torch does: those of each image, and then their mean over images
        running_mean.lerp_(moments.mean.mean(0).flatten().to(running_mean.dtype), momentum)
        running_var.lerp_(moments.unbiased().mean(0).flatten().to(running_var.dtype), momentum)
    return execution.settled(_affine(moments.normalized(eps), weight, bias).to(input.dtype), layout)


@CoarseExecution.register(torch.instance_norm)
def instance_norm_of_torch(
    execution: CoarseExecution,
    func: Any,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return instance_norm(
        execution, func, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 2))
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)
