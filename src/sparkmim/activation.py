"""ReLU6 in place, which keeps one map for backward where torch's own keeps two."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def relu6(x: Tensor) -> Tensor:
    """`F.relu6(x, inplace=True)`. What is written over must not be needed by the backward pass of what made it."""
    if torch.compiler.is_compiling():  # the compiler decides what to keep
        return F.relu6(x)
    out: Tensor = _ReLU6.apply(x)  # type: ignore[no-untyped-call]
    return out


class _ReLU6(torch.autograd.Function):
    """The result tells as well as the input where the gradient passes; torch copies the input to have it in backward,
    even of `F.relu6(inplace=True)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.mark_dirty(x)
        ctx.save_for_backward(F.relu6(x, inplace=True))
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (out,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, out, 0.0, 6.0)
