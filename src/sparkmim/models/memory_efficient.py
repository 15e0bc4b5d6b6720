"""Operations that keep less for backward: ReLU6 in place, and activations that are computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, *norms: nn.Module) -> Tensor:
    """`function(x)`, keeping `x` alone. What its last operation gives is not computed twice.

    Compiled, it is called as it is: the compiler decides what to keep.

    Args:
        function: deterministic.
        x: of any shape.
        norms: whose running statistics `function` updates, which is to happen once.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(x)
    out: Tensor = checkpoint(
        function, x, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), _kept(norms))
    )
    return out


@contextmanager
def _kept(norms: tuple[nn.Module, ...]) -> Iterator[None]:
    """The norms' buffers as they were, afterwards."""
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.data.copy_(value)  # unseen by autograd, to which nothing has changed
