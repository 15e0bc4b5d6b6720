"""Activation checkpointing: what is computed again in backward must be computed under the same execution.

`torch.utils.checkpoint` calls the checkpointed function again during backward, when the execution is over. The first
operation that an execution answers inside a checkpointed function finds the record of that checkpoint among the hooks
for saved tensors, and wraps its function to enter the execution again. So networks that checkpoint by themselves work
as they are. (Re-entrant checkpointing runs the first pass without gradients, by which it is recognised and refused.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .execution import Execution


def recompute_under(execution: Execution, func: Any) -> None:
    """If `func` is called in a checkpointed function, have that computed again under `execution`.

    Raises:
        UnsupportedOperation: for a checkpoint in a form that this version of torch is not known to have.
    """
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None:
        return
    pack: Any = hooks[0]
    if getattr(pack, "__module__", None) != "torch.utils.checkpoint" or "recomputation" in pack.__qualname__:
        return
    variables = dict(zip(pack.__code__.co_freevars, pack.__closure__ or (), strict=True))
    frame: Any = variables["frame"].cell_contents if "frame" in variables else None
    compute = getattr(frame, "recompute_fn", None)
    if compute is None:
        from .execution import unsupported

        raise unsupported(func, f"checkpointing is not understood as torch {torch.__version__} does it")
    if isinstance(compute, _Recompute):
        return
    frame.recompute_fn = _Recompute(execution, compute)


class _Recompute:
    """A checkpointed function that enters its execution again."""

    def __init__(self, execution: Execution, compute: Any) -> None:
        self.execution, self.compute = execution, compute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.execution:
            return self.compute(*args, **kwargs)
