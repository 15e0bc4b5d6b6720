"""Draws of self-normalizing networks (dropout that keeps mean and variance) and of categories."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..execution import Execution
from ..expectation import is_expected
from ..functions import functions_named
from .pointwise import free_axes, own_layout

_SATURATION = 1.7580993408473766
"""What a dropped value becomes, negative, before the affine map: -scale * alpha of SELU."""

_VALUES = functions_named("alpha_dropout alpha_dropout_")
_CHANNELS = functions_named("feature_alpha_dropout feature_alpha_dropout_")


@Execution.register(*_VALUES, *_CHANNELS)
def alpha_dropout(
    execution: Execution, func: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Drop values of a map each by itself; values per image, and whole channels of a map, once an image."""
    layout = own_layout(execution, func, input)
    named = _VALUES.get(func) or _CHANNELS[func]
    inplace = inplace or named.endswith("_")
    if not training or p == 0 or is_expected(input):
        return execution.mark(input if inplace else input.clone(), layout)
    if not layout.is_map:
        kept = execution.one_row_per_image(torch.empty_like(input), layout.batch).clone().bernoulli_(1 - p)
        kept = execution.all_rows(kept, layout.batch)
    elif func in _VALUES:
        kept = torch.empty_like(input).bernoulli_(1 - p)
    else:
        execution.require_map(func, input)
        rows = execution.one_row_per_image(input.new_empty(input.shape[:2]), 0).clone().bernoulli_(1 - p)
        kept = execution.all_rows(rows, 0)[(..., *[None] * (input.ndim - 2))]
    scale = 1 / math.sqrt((_SATURATION**2 * p + 1) * (1 - p))
    shift = (kept - 1) * (_SATURATION * scale) + _SATURATION * scale * p
    out = input.mul_(kept * scale).add_(shift) if inplace else input * (kept * scale) + shift
    return execution.mark(out, layout)


@Execution.register(F.gumbel_softmax)
def gumbel_softmax(
    execution: Execution,
    func: Any,
    logits: Tensor,
    tau: float = 1,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
) -> Tensor:
    """Draw from the categories along a free axis, at each position by itself, once an image for values per image."""
    layout = own_layout(execution, func, logits)
    free_axes(func, layout, logits.ndim, dim)
    if layout.is_map:
        return execution.mark(func(logits, tau, hard, eps, dim), layout)
    return execution.on_one_row_per_image(lambda rows: func(rows, tau, hard, eps, dim), logits, layout)
