"""Activation checkpointing: what is computed again in backward must be computed under the same execution.

`torch.utils.checkpoint` calls its function again during backward, when the execution is over. Tensors remember the
execution they come from, so a submodule that is called with such a tensor while no execution is active enters its
execution again.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .execution import Execution, active_execution


class _Reentered(threading.local):
    """The modules that entered an execution again, innermost last; backward may run in threads of its own."""

    def __init__(self) -> None:
        self.stack: list[tuple[nn.Module, Execution]] = []


_reentered = _Reentered()


def reenter_in_backward(network: nn.Module) -> list[RemovableHandle]:
    """Let the submodules of `network` be checkpointed (`use_reentrant=False`) under an execution.

    Returns:
        the handles of the hooks that do it, for taking it back.
    """
    handles: list[RemovableHandle] = []
    for module in network.modules():
        handles.append(module.register_forward_pre_hook(_enter, with_kwargs=True))
        handles.append(module.register_forward_hook(_leave, always_call=True))
    return handles


def _enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if active_execution() is not None:
        return
    for value in _tensors((args, kwargs)):
        layout = getattr(value, "_sparkmim_layout", None)
        if layout is not None:
            layout.origin.__enter__()
            _reentered.stack.append((module, layout.origin))
            return


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    if _reentered.stack and _reentered.stack[-1][0] is module:
        _, execution = _reentered.stack.pop()
        execution.__exit__(None, None, None)


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in nested arguments."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, (tuple, list)) else []
