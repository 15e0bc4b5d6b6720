"""Transposed convolution of maps whose positions hold several patches: hidden positions write nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..shared.transposed import CONV_TRANSPOSE, upward
from .coarse import CoarseExecution


@CoarseExecution.register(*CONV_TRANSPOSE)
def conv_transpose(
    execution: CoarseExecution,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    layout, _ = upward(execution, func, input, weight, bias, stride, padding, output_padding, dilation)
    shown = execution.where_visible(input, 0.0, func)
    out = func(shown, weight, bias, stride, padding, output_padding, groups, dilation)
    return execution.leaving(func, out, layout)
