"""Hooks on the gradients of tensors: what a hook does to a gradient is answered by the same rules, in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedOperation, unsupported
from ..execution import Execution


@Execution.register(torch.Tensor.register_hook)
def register_hook(execution: Execution, func: Any, x: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Any:
    """Register a hook that is given the gradient with the layout of its map, and may return another such gradient.

    A hook that only observes may compute what has no rule, or observe a value per image, whose gradient is kept in
    parts, one for each patch: it is given the tensor that the gradient is kept as.
    """
    if torch.compiler.is_compiling():
        raise unsupported(func, "hooks on gradients of the input have no rule while compiling")
    layout = execution.layout(x)

    def answered(grad: Tensor) -> Tensor | None:
        if layout is None or not layout.is_map or layout.padding is not None:
            _observed(func, hook, grad)
            return None
        given = execution.mark(grad.view_as(grad), layout)
        before, execution.grad_enabled = execution.grad_enabled, torch.is_grad_enabled()
        try:
            with execution:
                out = hook(given)
        except UnsupportedOperation:
            _observed(func, hook, grad)
            return None
        finally:
            execution.grad_enabled = before
        if out is None:
            return None
        if execution.layout(out) != layout:
            raise unsupported(func, "its hook returns a gradient whose axes mean something else")
        return out

    return func(x, answered)


def _observed(func: Any, hook: Callable[[Tensor], Tensor | None], grad: Tensor) -> None:
    """Call a hook that returns nothing."""
    if hook(grad) is not None:
        raise unsupported(
            func,
            "its hook returns a gradient that it computes by functions without a rule, or that of a value per image, "
            "which is kept in parts, one for each patch",
        )


@Execution.register(torch.Tensor.retain_grad)
def retain_grad(execution: Execution, func: Any, x: Tensor) -> None:
    """Have the gradient kept, as that of the tensor at hand: of visible patches, if these are packed."""
    func(x)
