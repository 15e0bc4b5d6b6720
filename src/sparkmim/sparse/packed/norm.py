"""Normalization of packed patches.

Batch norm's statistics over packed patches are the statistics over visible positions; of values that exist once an
image they are taken over images. Group and instance norm see all visible positions of an image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.pointwise import require_no_input, samples_and_channels_first
from .execution import SparseExecution


@SparseExecution.register(F.batch_norm, torch.batch_norm)
def batch_norm(execution: SparseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = samples_and_channels_first(execution, func, input)
    require_no_input(execution, func, *args, *kwargs.values())
    if not layout.is_map:
        return execution.on_one_row_per_image(lambda x: func(x, *args, **kwargs), input, layout)
    return execution.mark(func(input, *args, **kwargs), layout)


def whole_image(execution: SparseExecution, x: Tensor) -> Tensor:
    """Return `(N, C, *block)` as `(B, C, K, *block)`: the visible positions of each image together."""
    return execution.grid.by_image(x).transpose(1, 2)


def patches_again(whole: Tensor) -> Tensor:
    """Invert :func:`whole_image`, channels last in memory."""
    return whole.movedim(1, -1).contiguous().flatten(0, 1).movedim(-1, 1)


@SparseExecution.register(F.group_norm, torch.group_norm)
def group_norm(execution: SparseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = samples_and_channels_first(execution, func, input)
    require_no_input(execution, func, *args, *kwargs.values())
    if not layout.is_map:
        return execution.on_one_row_per_image(lambda x: func(x, *args, **kwargs), input, layout)
    return execution.mark(patches_again(func(whole_image(execution, input), *args, **kwargs)), layout)


@SparseExecution.register(F.instance_norm, torch.instance_norm)
def instance_norm(execution: SparseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = execution.require_map(func, input)
    require_no_input(execution, func, *args, *kwargs.values())
    execution.require_no_padding(layout, func)
    whole = whole_image(execution, input)
    # Flat, as torch's backward on the CPU is wrong for one image whose channels are last in memory.
    out = func(whole.flatten(2), *args, **kwargs).view(whole.shape)
    return execution.mark(patches_again(out), layout)
