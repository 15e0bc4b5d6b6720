"""Repetition along free axes, of a value per image along all of space, and of each position of a map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..extent import degrees_of, of_whole_map
from ..functions import functions_named
from ..registry import understands_sizes
from .axes import numbers_of
from .calls import call
from .pointwise import free_axes, own_layout, require_no_input

_REPEAT = functions_named("repeat tile")


@understands_sizes(*_REPEAT)
@Execution.register(*_REPEAT)
def repeat(execution: Execution, func: Any, input: Tensor, *counts: Any, **kwargs: Any) -> Tensor:
    """Repeat along free axes; a value per image also along axes whose counts are the extents of a map."""
    layout = own_layout(execution, func, input)
    times = numbers_of(counts, kwargs, next(iter(kwargs), "repeats"))
    times = [1] * (input.ndim - len(times)) + times if _REPEAT[func] == "tile" else times
    shift = len(times) - input.ndim
    x = input
    if not layout.is_map and any(degrees_of(count) for count in times):
        sizes = [c if degrees_of(c) else 1 if axis < shift else -1 for axis, c in enumerate(times)]
        x = call(execution, torch.Tensor.expand, input, *sizes)
        times = [1 if degrees_of(count) else count for count in times]
        layout, shift = own_layout(execution, func, x), 0
    for axis in layout.tracked_axes:
        if degrees_of(times[axis + shift]) or times[axis + shift] != 1:
            raise unsupported(func, "it repeats samples, or lays copies of the map side by side")
    out = x.repeat(of_whole_map(times))
    return execution.mark(out, layout.moved(layout.batch + shift, tuple(a + shift for a in layout.space)))


@Execution.register(*functions_named("repeat_interleave"))
def repeat_interleave(
    execution: Execution, func: Any, input: Tensor, repeats: Any, dim: int | None = None, **kwargs: Any
) -> Tensor:
    """Repeat each place of a free axis, or each position of a spatial one, which is nearest upsampling along it."""
    layout = own_layout(execution, func, input)
    require_no_input(execution, func, repeats)
    if dim is None:
        raise unsupported(func, "without an axis it flattens samples and positions; name the axis")
    axis = dim % input.ndim
    if axis not in layout.space or layout.flattened or not isinstance(repeats, int):
        free_axes(func, layout, input.ndim, axis)
    return execution.mark(input.repeat_interleave(repeats, axis), layout)
