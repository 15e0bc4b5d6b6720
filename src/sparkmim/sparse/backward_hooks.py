"""Backward hooks of modules: torch passes a module's tensors through an autograd function that loses their layouts."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import BackwardHook

from .errors import UnsupportedOperation
from .execution import Execution


def has_backward_hooks(module: nn.Module) -> bool:
    """Return whether a module has full backward hooks, or hooks before its backward pass."""
    return bool(module._backward_pre_hooks) or bool(module._backward_hooks and module._is_full_backward_hook)


class MovedHooks:
    """Runs the backward hooks of a module for the length of a pass, until :meth:`remove` gives them back.

    Args:
        execution: whose tensors the module gets.
        module: one that :func:`has_backward_hooks`.
    """

    def __init__(self, execution: Execution, module: nn.Module) -> None:
        self.execution, self.module = execution, module
        self.kept = module._backward_hooks, module._backward_pre_hooks
        self.calls: list[BackwardHook] = []  # those under way
        hooks, _ = module._get_backward_hooks()  # type: ignore[no-untyped-call]
        self.hooks = hooks, module._get_backward_pre_hooks()  # type: ignore[no-untyped-call]
        module._backward_hooks, module._backward_pre_hooks = OrderedDict(), OrderedDict()
        self.handles = [
            module.register_forward_pre_hook(self._before),
            module.register_forward_hook(self._after, prepend=True),  # a backbone's hooks see the result
        ]

    def remove(self) -> None:
        """Give the module its hooks back."""
        self.module._backward_hooks, self.module._backward_pre_hooks = self.kept
        for handle in self.handles:
            handle.remove()

    def require_finished(self) -> None:
        """Raise if the pass was ended within the module, as it is at the last feature map: its hooks are not called.

        Raises:
            UnsupportedOperation: in that case.
        """
        if self.calls:
            raise UnsupportedOperation(
                f"the backward hooks of {type(self.module).__name__} would not be called: the forward pass ends within "
                "it, at the last feature map; register them on the modules that give feature maps, or on the model"
            )

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        self.calls.append(BackwardHook(module, *self.hooks))  # type: ignore[no-untyped-call]
        with torch._C.DisableTorchFunction():
            observed = self.calls[-1].setup_input_hook(args)  # type: ignore[no-untyped-call]
        self._keep(args, observed)
        return observed

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        with torch._C.DisableTorchFunction():
            observed = self.calls.pop().setup_output_hook(output)  # type: ignore[no-untyped-call]
        self._keep(output, observed)
        return observed

    def _keep(self, before: Any, after: Any) -> None:
        """Give tensors that went through a hook's function the layouts that they had."""
        pairs = [(before, after)] if isinstance(before, Tensor) else zip(before, after, strict=True)
        for old, new in pairs:
            if isinstance(old, Tensor) and new is not old:
                layout = self.execution.marked(old)
                if layout is None:
                    self.execution.note_constants([new])
                else:
                    self.execution.mark(new, layout)
