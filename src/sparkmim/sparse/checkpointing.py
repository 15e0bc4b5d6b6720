"""Activation checkpointing: what is computed again in backward must be computed under the same execution.

`torch.utils.checkpoint` calls the checkpointed function again during backward, when the execution is over. The first
operation that an execution answers inside a checkpointed function finds the record of that checkpoint among the hooks
for saved tensors, and wraps its function to enter the execution again. So networks that checkpoint by themselves work
as they are. (Re-entrant checkpointing runs the first pass without gradients; it is recognized by that and refused.)
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint

from .errors import unsupported


def recompute_under(enter: Callable[[], AbstractContextManager[Any]], func: Any) -> None:
    """Have a checkpointed function that calls `func` computed again under `enter()`.

    Args:
        enter: makes the context in which backward calls the checkpointed function.
        func: the function called, for the error.

    Raises:
        UnsupportedOperation: for a checkpoint in a form that this version of torch is not known to have.
    """
    checkpoint = _checkpoint_under_way()
    if checkpoint is None:
        return
    compute = getattr(checkpoint, "recompute_fn", None)
    if compute is None:
        raise unsupported(func, f"the engine does not know checkpoints in the form of torch {torch.__version__}")
    if not isinstance(compute, _Recompute):
        checkpoint.recompute_fn = _Recompute(enter, compute)


def _checkpoint_under_way() -> Any:
    """Return torch's record of the innermost checkpointed function in its first pass, None outside one.

    It is found in the closure of the hook for saved tensors that the checkpoint has set. Before torch 2.8 hooks cannot
    be asked for; there it is found through the generator that `torch.utils.checkpoint.checkpoint` holds meanwhile.
    """
    if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):
        hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
        pack: Any = None if hooks is None else hooks[0]
        if getattr(pack, "__module__", None) != "torch.utils.checkpoint" or "recomputation" in pack.__qualname__:
            return None
        variables = dict(zip(pack.__code__.co_freevars, pack.__closure__ or (), strict=True))
        return variables["frame"].cell_contents if "frame" in variables else pack
    caller: Any = sys._getframe(1)
    while caller is not None:
        if caller.f_code is inspect.unwrap(torch.utils.checkpoint.checkpoint).__code__:
            generator = caller.f_locals.get("gen")
            return None if generator is None else generator.gi_frame.f_locals.get("new_frame")
        caller = caller.f_back
    return None


class _Recompute(NamedTuple):
    """A checkpointed function that is called in a context of its own."""

    enter: Callable[[], AbstractContextManager[Any]]
    compute: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.enter():
            return self.compute(*args, **kwargs)
