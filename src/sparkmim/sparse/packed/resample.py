"""Resampling by whole factors."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..extent import of_whole_map
from ..registry import understands_sizes
from ..shared.constant_maps import constant_map
from ..shared.smooth import NEAREST, local_sizes, smooth
from ..window import require_near_edges
from .execution import SparseExecution
from .mirrored import with_mirrored_halo


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
    values = execution.layout(input)
    if values is not None and not values.is_map:
        return constant_map(execution, func, input, values, size)
    layout = execution.require_map(func, input)
    execution.require_no_padding(layout, func)
    dims = len(layout.space)
    block = input.shape[2:]
    out: list[Any]
    if size is None:
        scale_factor = of_whole_map(scale_factor)
        factors = (scale_factor,) * dims if isinstance(scale_factor, (int, float)) else tuple(scale_factor)
        out = [b * f for b, f in zip(block, factors, strict=True)]
    else:
        out = local_sizes(execution, func, layout, input, size)
    patch = execution.patch_size
    for b, o, p in zip(block, out, patch, strict=True):
        if o != int(o) or o < 1 or (o % b and b % o) or p % int(o):
            raise unsupported(func, f"patches of {tuple(block)} pixels cannot be resampled to {tuple(out)} one by one")
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
