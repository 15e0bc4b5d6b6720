"""Functions that move or pick out positions where a patch is too small for that: the result has positions that hold
several patches, and is computed on whole maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import unsupported
from ..functions import functions_named
from ..registry import rule_for
from .execution import SparseExecution


def _shared(execution: SparseExecution, func: Any, *args: Any, **kwargs: Any) -> Any:
    rule = rule_for(func, ["Execution"])
    if rule is None:
        raise unsupported(func, "it has no rule")
    return rule(execution, func, *args, **kwargs)


@SparseExecution.register(torch.Tensor.__getitem__)
def getitem(execution: SparseExecution, func: Any, x: Tensor, index: Any) -> Tensor:
    """Pick out every n-th position, of patches that have fewer than n too."""
    entries = index if isinstance(index, tuple) else (index,)
    strided = any(isinstance(entry, slice) and entry.step not in (None, 1) for entry in entries)
    if strided and execution.unfinished(x) is None:
        layout = execution.layout(x)
        if layout is not None and layout.is_map and not layout.flattened and layout.padding is None:
            steps = _steps(entries, x.ndim)
            if steps is not None and execution.outgrows(
                [x.shape[a] for a in layout.space], [steps[a] for a in layout.space]
            ):
                out: Tensor = execution.answer_coarser(func, x, index)
                return out
    return _shared(execution, func, x, index)  # type: ignore[no-any-return]


def _steps(entries: tuple[Any, ...], ndim: int) -> list[int] | None:
    """Return the step of an index along each axis, None if it has other entries than slices and an ellipsis."""
    if not all(entry is Ellipsis or isinstance(entry, slice) for entry in entries):
        return None
    place = entries.index(Ellipsis) if Ellipsis in entries else len(entries)
    before, behind = entries[:place], entries[place + 1 :]
    whole = (slice(None),) * (ndim - len(before) - len(behind))
    return [entry.step or 1 for entry in (*before, *whole, *behind)]


@SparseExecution.register(*functions_named("pixel_unshuffle"))
def pixel_unshuffle(execution: SparseExecution, func: Any, input: Tensor, downscale_factor: int) -> Tensor:
    """Move positions to channels, of patches that are smaller than the factor too."""
    layout = execution.layout(input)
    plane = layout is not None and layout.is_channels_first(input.ndim) and layout.padding is None and input.ndim == 4
    if plane and execution.outgrows(input.shape[2:], (downscale_factor, downscale_factor)):
        return execution.answer_coarser(func, input, downscale_factor)  # type: ignore[no-any-return]
    return _shared(execution, func, input, downscale_factor)  # type: ignore[no-any-return]
