"""Activations that are computed again in backward instead of kept until then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
