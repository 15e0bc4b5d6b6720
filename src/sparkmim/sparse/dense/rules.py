"""Rules of the masked-dense reference for functions that mix positions or images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..extent import of_whole_map
from ..layout import Layout
from ..registry import understands_sizes
from ..shared.pointwise import samples_and_channels_first
from ..shared.resample import resampled_by_itself
from ..shared.short import unaligned_convolution
from ..shared.smooth import NEAREST, local_sizes, shrinking, smooth
from ..window import sees_one_position, window_over
from .execution import MaskedDenseExecution


@MaskedDenseExecution.register(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
def conv(
    execution: MaskedDenseExecution,
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
        return execution.mark(func(input, weight, bias, stride, padding, dilation, groups), layout)
    if sees_one_position(layout, weight.shape[2:], stride, padding):
        execution.require_no_padding(layout, func)
        return execution.mark(func(input, weight, bias, stride, padding, dilation, groups), layout)
    waiting = unaligned_convolution(execution, func, input, weight, bias, stride, padding, dilation, groups)
    if waiting is not None:
        return waiting
    window = window_over(execution, func, input, weight.shape[2:], stride, padding, dilation)

    def convolve(x: Tensor, padding: Any) -> Tensor:
        return func(x, weight, bias, stride, padding, dilation, groups)

    out = execution.with_windows(func, convolve, input, window, padding)
    return execution.leaving(func, out, layout)


@MaskedDenseExecution.register(F.batch_norm, torch.batch_norm)
def batch_norm(execution: MaskedDenseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = samples_and_channels_first(execution, func, input)
    if not layout.is_map:
        return execution.mark(func(input, *args, **kwargs), layout)
    rows = func(execution.visible_rows(input, layout), *args, **kwargs)
    return execution.mark(execution.from_visible_rows(rows, input, layout), layout)


@MaskedDenseExecution.register(F.group_norm, torch.group_norm)
def group_norm(execution: MaskedDenseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = samples_and_channels_first(execution, func, input)
    if not layout.is_map:
        return execution.mark(func(input, *args, **kwargs), layout)
    found = _norms_of_images(execution, lambda x: func(x, *args, **kwargs), input, layout)
    return execution.mark(execution.from_visible_rows(torch.cat(found), input, layout), layout)


@MaskedDenseExecution.register(F.instance_norm, torch.instance_norm)
def instance_norm(execution: MaskedDenseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = execution.require_map(func, input)
    execution.require_no_padding(layout, func)
    place = 0 if func is F.instance_norm else 2
    names = ("running_mean", "running_var")
    running: list[Any] = [
        kwargs.get(name, args[place + i] if len(args) > place + i else None) for i, name in enumerate(names)
    ]
    taken: list[list[Tensor]] = []

    def norm(x: Tensor) -> Tensor:
        """Normalize one image (or all, alike) with running statistics of its own, as torch does."""
        if running[0] is None:
            return func(x, *args, **kwargs)
        own = [buffer.clone() for buffer in running]
        taken.append(own)
        places = {place: own[0], place + 1: own[1]}
        given = [places.get(i, value) for i, value in enumerate(args)]
        return func(x, *given, **{**kwargs, **{n: v for n, v in zip(names, own, strict=True) if n in kwargs}})

    found = _norms_of_images(execution, norm, input, layout)
    for index, buffer in enumerate(running if taken else ()):
        buffer.copy_(torch.stack([own[index] for own in taken]).mean(0))
    return execution.mark(execution.from_visible_rows(torch.cat(found), input, layout), layout)


def _norms_of_images(
    execution: MaskedDenseExecution, norm: Callable[[Tensor], Tensor], x: Tensor, layout: Layout
) -> list[Tensor]:
    """Return `norm` of `(B, C, *free axes, visible positions)` as rows, of all images at once where they are alike."""

    def of_rows(rows: Tensor) -> Tensor:
        return norm(rows.movedim(1, -1)).movedim(-1, 1).flatten(0, 1)

    return execution.of_each_image(of_rows, execution.visible_rows(x, layout), execution.mask_of(x, layout))


@understands_sizes(F.interpolate)
@MaskedDenseExecution.register(F.interpolate)
def interpolate(
    execution: MaskedDenseExecution,
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
    whole = execution.where_visible(input, 0.0, func)
    if mode in NEAREST:
        out = func(whole, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
        return execution.leaving(func, out, layout)
    extents = func(whole, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias).shape[2:]
    fine = execution.in_patches(input.shape[2:]) and execution.in_patches(extents)
    cells = execution.grid_shape[1:] if fine else tuple(input.shape[2:])
    if any(e % c for e, c in zip(extents, cells, strict=True)):
        raise unsupported(func, shrinking(mode))
    block = [s // c for s, c in zip(input.shape[2:], cells, strict=True)]
    wanted = [e // c for e, c in zip(extents, cells, strict=True)]
    if any(w % b and b % w for w, b in zip(wanted, block, strict=True)):
        raise unsupported(func, f"patches of {tuple(block)} pixels cannot be resampled to {tuple(wanted)} one by one")
    resampling = smooth(func, mode, block, wanted, align_corners, antialias)
    window = resampling.window(tuple(block))._replace(out=tuple(extents))
    return execution.leaving(func, execution.with_windows(func, lambda x, _: resampling(x), input, window, 0), layout)
