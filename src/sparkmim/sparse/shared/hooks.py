"""Hooks on the gradients of tensors: what a hook does to a gradient is answered by the same rules, in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from .pointwise import own_layout


@Execution.register(torch.Tensor.register_hook)
def register_hook(execution: Execution, func: Any, x: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Any:
    """Register a hook that is given the gradient with the layout of its map, and may return another such gradient."""
    layout = own_layout(execution, func, x)
    if not layout.is_map:
        raise unsupported(
            func, "the gradient of a value per image is kept in parts, one for each patch; hook the map it gates"
        )
    if torch.compiler.is_compiling():
        raise unsupported(func, "hooks on gradients of the input have no rule while compiling")

    def answered(grad: Tensor) -> Tensor | None:
        given = execution.mark(grad.view_as(grad), layout)
        before, execution.grad_enabled = execution.grad_enabled, torch.is_grad_enabled()
        try:
            with execution:
                out = hook(given)
        finally:
            execution.grad_enabled = before
        if out is None:
            return None
        if execution.layout(out) != layout:
            raise unsupported(func, "its hook returns a gradient whose axes mean something else")
        return out

    return func(x, answered)


@Execution.register(torch.Tensor.retain_grad)
def retain_grad(execution: Execution, func: Any, x: Tensor) -> None:
    """Have the gradient kept, as that of the tensor at hand: of visible patches, if these are packed."""
    func(x)
