"""Resampling by whole factors."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..extent import of_whole_map
from ..layout import Layout
from ..registry import understands_sizes
from ..shared.mirrored import with_mirrored_halo
from ..shared.resample import resampled_by_itself, target_size
from ..shared.smooth import NEAREST, local_sizes, smooth
from ..window import require_near_edges
from .execution import SparseExecution


def _steps(execution: SparseExecution, x: Tensor, layout: Layout, size: Any, scale_factor: Any) -> list[int]:
    """Return how many positions of a map become one along each axis, none if that is no whole number."""
    old = [execution.extent_of_whole(layout, axis, x.shape[axis]) for axis in layout.space]
    if execution.has_plain_sizes() and size is not None:
        return []
    new = target_size(old, size, scale_factor)
    return (
        []
        if any(n < 1 or o % n for o, n in zip(old, new, strict=True))
        else [o // n for o, n in zip(old, new, strict=True)]
    )


@understands_sizes(F.interpolate)
@SparseExecution.register(F.interpolate)
def interpolate(
    execution: SparseExecution,
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
    dims = len(layout.space)
    block = input.shape[2:]
    scale_factor = of_whole_map(scale_factor)
    if execution.outgrows(block, _steps(execution, input, layout, size, scale_factor)):
        return execution.answer_coarser(
            func, input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias
        )
    out: list[Any]
    if size is None:
        factors = (scale_factor,) * dims if isinstance(scale_factor, (int, float)) else tuple(scale_factor)
        out = [b * f for b, f in zip(block, factors, strict=True)]
    else:
        out = local_sizes(execution, func, layout, input, size)
    if any(o != int(o) or o < 1 or (o % b and b % o) for b, o in zip(block, out, strict=True)):
        raise unsupported(
            func,
            f"patches of {tuple(block)} pixels cannot be resampled to {tuple(out)} one by one; resample by a whole "
            "factor",
        )
    wanted = [int(o) for o in out]
    if mode in NEAREST:
        return execution.mark(F.interpolate(input, size=wanted, mode=mode), layout)
    resampling = smooth(func, mode, block, wanted, align_corners, antialias)
    window = resampling.window(tuple(block))
    require_near_edges(func, window)
    around = input
    if window.needs_halo:
        around = with_mirrored_halo(execution.grid, input, window.before, window.after, window.edge)
    return execution.mark(resampling(around), layout)
