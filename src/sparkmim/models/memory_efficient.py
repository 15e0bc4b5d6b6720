"""Operations that keep less for backward: in-place ReLU6 and activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..utils.modules import preserved_buffers


def relu6(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return `F.relu6(x, inplace=True)`, keeping one tensor for backward instead of two.

    The operation that made `x` must not need its result in backward.
    """
    if torch.compiler.is_compiling():  # the compiler decides what to keep
        return F.relu6(x)
    out: Tensor = _ReLU6.apply(x)  # type: ignore[no-untyped-call]
    return out


class _ReLU6(torch.autograd.Function):
    """ReLU6 whose backward reads the output. Even `F.relu6(inplace=True)` keeps a copy of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.mark_dirty(x)
        ctx.save_for_backward(F.relu6(x, inplace=True))
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (out,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, out, 0.0, 6.0)


def checkpointed(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "*shape"], *norms: nn.Module, recompute: bool = True
) -> Float[Tensor, "*_shape"]:
    """Return `function(x)`, keeping only `x` and recomputing the rest in backward.

    The last operation of `function` is not recomputed. Under `torch.compile` this is a plain call: the compiler decides
    what to keep.

    Args:
        function: deterministic.
        x: its input.
        norms: modules in `function` with running statistics, which the recomputation must not update again.
        recompute: False keeps everything: a plain call.
    """
    if not recompute or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(x)
    out: Tensor = checkpoint(
        function,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), preserved_buffers(*norms)),
    )
    return out
