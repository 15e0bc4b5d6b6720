"""What resampling has in common in all executions, and the forms of it that look at no neighbor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..extent import of_whole_map
from ..layout import Layout
from .calls import call

_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def resampled_by_itself(
    execution: Execution, func: Any, x: Tensor, size: Any, scale_factor: Any, mode: str
) -> Tensor | None:
    """Return a value per image as a map, a map of the same size, or one resampled by area; None for any other call.

    Args:
        size, scale_factor: of which one is given, in sizes of the whole map.
        mode: of `F.interpolate`.
    """
    layout = execution.layout(x)
    if layout is not None and not layout.is_map:
        return constant_map(execution, func, x, layout, size)
    layout = execution.require_map(func, x)
    execution.require_no_padding(layout, func)
    old = [execution.extent_of_whole(layout, axis, x.shape[axis]) for axis in layout.space]
    new = target_size(old, size, scale_factor)
    if new == old and (size is not None or _are_ones(scale_factor)):
        return execution.mark(x.clone(), layout)
    if mode != "area":
        return None
    if all(o % n == 0 for o, n in zip(old, new, strict=True)):
        return call(execution, _POOLS[len(old)], x, [o // n for o, n in zip(old, new, strict=True)])  # type: ignore[no-any-return]
    if all(n % o == 0 for o, n in zip(old, new, strict=True)):
        return call(execution, func, x, size, scale_factor, "nearest")  # type: ignore[no-any-return]
    raise unsupported(
        func,
        f"resampling a map of {tuple(old)} positions to {tuple(new)} by area has windows that patches are not cut "
        "along; resample by a whole factor",
    )


def _are_ones(scale_factor: Any) -> bool:
    factors = of_whole_map(scale_factor)
    return all(f == 1 for f in (factors if isinstance(factors, (tuple, list)) else [factors]))


def target_size(old: Sequence[int], size: Any, scale_factor: Any) -> list[int]:
    """Return the size of the whole map after `F.interpolate`, of one that had the size `old`."""
    if size is not None:
        size = of_whole_map(size)
        return [size] * len(old) if isinstance(size, int) else list(size)
    factor = of_whole_map(scale_factor)
    factors = [factor] * len(old) if isinstance(factor, (int, float)) else list(factor)
    return [math.floor(o * f) for o, f in zip(old, factors, strict=True)]


def constant_map(execution: Execution, func: Any, input: Tensor, layout: Layout, size: Any) -> Tensor:
    """Return a value per image `(B, C, 1, ...)` as a map of `size`, read off a map, as ASPP does with its pooling."""
    dims = input.ndim - 2
    sizes = [size] * dims if not isinstance(size, (tuple, list)) else list(size)
    if layout.batch != 0 or dims < 1 or any(extent != 1 for extent in input.shape[2:]):
        raise unsupported(func, f"it resamples axes that are not of space ({layout})")
    if size is None:
        raise unsupported(
            func, "it resamples a value per image by a factor; give the size of the map, as in size=x.shape[2:]"
        )
    out: Tensor = call(execution, torch.Tensor.expand, input, -1, -1, *sizes)
    return out
