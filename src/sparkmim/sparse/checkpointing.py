"""Activation checkpointing: what is computed again in backward must be computed under the same execution.

`torch.utils.checkpoint` calls the checkpointed function again during backward, when the execution is over. The first
operation that an execution answers inside a checkpointed function finds the record of that checkpoint among the hooks
for saved tensors, and wraps its function to enter the execution again. So networks that checkpoint by themselves work
as they are. (Re-entrant checkpointing runs the first pass without gradients, by which it is recognised and refused.)
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint

from .overrides import attach_to_opaque_modules

if TYPE_CHECKING:
    from .execution import Execution


def recompute_under(execution: Execution, func: Any) -> None:
    """If `func` is called in a checkpointed function, have that computed again under `execution`.

    Raises:
        UnsupportedOperation: for a checkpoint in a form that this version of torch is not known to have.
    """
    checkpoint = _checkpoint_under_way()
    if checkpoint is None:
        return
    compute = getattr(checkpoint, "recompute_fn", None)
    if compute is None:
        from .errors import unsupported

        raise unsupported(func, f"checkpointing is not understood as torch {torch.__version__} does it")
    if not isinstance(compute, _Recompute):
        checkpoint.recompute_fn = _Recompute(execution, compute)


def _checkpoint_under_way() -> Any:
    """Torch's record of the innermost checkpointed function in its first pass, None outside one.

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


class _Recompute:
    """A checkpointed function that enters its execution again. Running statistics, which the first pass has updated,
    stay as they are.
    """

    def __init__(self, execution: Execution, compute: Any) -> None:
        self.execution, self.compute = execution, compute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        network = self.execution.network
        buffers = [] if network is None else [buffer for buffer in network.buffers() if buffer.numel()]
        kept = [buffer.clone() for buffer in buffers]
        handles = [] if network is None else attach_to_opaque_modules(self.execution, network)
        try:
            with self.execution:
                return self.compute(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.data.copy_(value)  # unseen by autograd, to which nothing has changed
