"""Writing where a mask of the same map says: `x[x < 0] = 0`. (Reading there lists positions, and is refused.)"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from .pointwise import operand, own_layout


def is_mask_of_input(execution: Execution, index: Any) -> bool:
    """Return whether an index is one mask that descends from the input."""
    return isinstance(index, Tensor) and index.dtype == torch.bool and execution.layout(index) is not None


def write_where(execution: Execution, func: Any, x: Tensor, mask: Tensor, value: Any) -> None:
    """Write a number, or a value for each axis that the mask lacks, where a mask says.

    Args:
        x: written in place; the axes of the mask are its first ones.
        mask: of the same samples and positions.
        value: a number, or a tensor from outside the input.
    """
    layout, own = own_layout(execution, func, x), execution.layout(mask)
    assert own is not None
    same = (own.batch, own.space, own.flattened) == (layout.batch, layout.space, layout.flattened)
    if not same or mask.shape != x.shape[: mask.ndim]:
        raise unsupported(func, f"its mask ({own}) has other samples or positions than what is written ({layout})")
    behind = x.ndim - mask.ndim
    if isinstance(value, Tensor) and (execution.layout(value) is not None or value.ndim > behind):
        raise unsupported(
            func, "it writes a list of values, one for each position that the mask shows; use torch.where(mask, a, b)"
        )
    everywhere = mask[(..., *[None] * behind)]
    if isinstance(value, Tensor) and value.ndim:
        x.copy_(torch.where(everywhere, value.to(x.dtype), x))
    else:
        x.masked_fill_(everywhere, operand(execution, func, value))
