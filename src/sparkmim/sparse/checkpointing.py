"""Activation checkpointing: what is computed again in backward must be computed under the same execution.

`torch.utils.checkpoint` calls the checkpointed function again during backward, when the execution is over. The first
operation that an execution answers inside a checkpointed function finds the record of that checkpoint among the hooks
for saved tensors, and wraps its function to enter the execution again. So networks that checkpoint by themselves work
as they are, one checkpoint inside another too. (Re-entrant checkpointing runs the first pass without gradients; it is
recognized by that and refused, as are custom autograd functions.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import nn

from .errors import unsupported
from .layout import MARK


def note_shapes_at_hand() -> None:
    """Have checkpoints note the shapes of the tensors at hand, and not those of the whole maps that a network reads.

    What a checkpoint inside another one is given is noted while an execution answers. Noted once more in backward, when
    none does, it must be the same.
    """
    noted = getattr(torch.utils.checkpoint, "_allowed_determinism_checks_to_fns", {})
    for name, read in list(noted.items()):
        if not isinstance(read, _AtHand):
            noted[name] = _AtHand(read)


class _AtHand(NamedTuple):
    """A function of a tensor that is called past all executions."""

    read: Callable[[Any], Any]

    def __call__(self, tensor: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return self.read(tensor)


_TOP_HOOKS: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
"""Returns the innermost hooks for saved tensors, from torch 2.8 on."""


def may_be_in_checkpoint() -> bool:
    """Return whether a checkpointed function may be running: not where no hooks for saved tensors are set."""
    return _TOP_HOOKS is None or _TOP_HOOKS(False) is not None


def recompute_under(enter: Callable[[], AbstractContextManager[Any]], func: Any) -> None:
    """Have the checkpointed functions that call `func`, one inside another, computed again under `enter()`.

    Args:
        enter: makes the context in which backward calls a checkpointed function.
        func: the function called, for the error.

    Raises:
        UnsupportedOperation: for a checkpoint in a form that this version of torch is not known to have.
    """
    innermost = _innermost_checkpoint()
    if innermost is None or _is_under(getattr(innermost, "recompute_fn", None), enter):
        return
    found = list(_checkpoints_of_callers())
    if not any(checkpoint is innermost for checkpoint, _ in found):
        raise unsupported(func, f"the engine does not know checkpoints in the form of torch {torch.__version__}")
    for checkpoint, args in found:
        compute = checkpoint.recompute_fn
        if not _is_under(compute, enter):
            checkpoint.recompute_fn = _Recompute(enter, compute, tuple(getattr(a, MARK, None) for a in args))


def inside_checkpoint() -> bool:
    """Return whether a checkpointed function runs for the first time."""
    return _innermost_checkpoint() is not None


def _is_under(compute: Any, enter: Callable[[], AbstractContextManager[Any]]) -> bool:
    while isinstance(compute, _Recompute):
        if compute.enter == enter:
            return True
        compute = compute.compute
    return False


def _innermost_checkpoint() -> Any:
    """Return torch's record of the innermost checkpointed function in its first pass, None outside one.

    It is found in the closure of the hook for saved tensors that the checkpoint has set. Before torch 2.8 hooks cannot
    be asked for, and where the network has set hooks of its own, those are found instead: then callers are searched.
    """
    if _TOP_HOOKS is not None:
        hooks: Any = _TOP_HOOKS(False)
        if hooks is None:
            return None
        pack: Any = hooks[0]
        if getattr(pack, "__module__", None) == "torch.utils.checkpoint":
            if "recomputation" in pack.__qualname__:
                return None
            variables = dict(zip(pack.__code__.co_freevars, pack.__closure__ or (), strict=True))
            return variables["frame"].cell_contents if "frame" in variables else pack
    return next((checkpoint for checkpoint, _ in _checkpoints_of_callers()), None)


def _checkpoints_of_callers() -> Iterator[tuple[Any, Sequence[Any]]]:
    """Yield torch's records of the checkpointed functions in their first pass, and their arguments, innermost first.

    Each is found through the generator that a function of `torch.utils.checkpoint` holds meanwhile.
    """
    for caller in callers():
        if caller.f_code.co_filename == torch.utils.checkpoint.__file__ and "gen" in caller.f_code.co_varnames:
            generator = caller.f_locals.get("gen")
            record = None if generator is None else generator.gi_frame.f_locals.get("new_frame")
            if record is not None:
                yield record, caller.f_locals.get("args", ())


def switched_gradients(func: Any) -> str | None:
    """Return why `func` is refused where gradients are not as they were when a run began; None if it is not.

    A network may switch them by `torch.no_grad()`. But re-entrant checkpointing computes without gradients first and
    once more in backward, when nothing is known of patches, and what a custom autograd function computes is
    differentiated by its own `backward`.
    """
    kind = next(filter(None, map(_autograd_function_of, callers())), None)
    if kind is None and func is torch.Tensor.view_as:  # so torch makes the result of a function that returns its input
        return "it is called with gradients switched off, as by a custom autograd function that returns its input"
    if kind is None:
        return None
    if kind is torch.nn.modules._functions.BackwardHookFunction:
        return (
            "full backward hooks on all modules (torch.nn.modules.module.register_module_full_backward_hook) are not "
            "supported; register them on the modules that they are to observe"
        )
    if kind is torch.utils.checkpoint.CheckpointFunction:
        return (
            "it is called where gradients are switched off, as re-entrant checkpointing does (torch.utils.checkpoint "
            "with use_reentrant=False works)"
        )
    return (
        f"it is called inside a custom autograd function ({kind.__qualname__}), whose backward would not know of "
        "visible patches; write it with ordinary operations (a memory-efficient activation often has a switch for "
        "that: efficientnet_pytorch's is set_swish(memory_efficient=False))"
    )


def _autograd_function_of(frame: FrameType) -> type[torch.autograd.Function] | None:
    """Return the autograd function whose `forward` runs in a frame, if one does."""
    names = frame.f_code.co_varnames
    if frame.f_code.co_name != "forward" or not names:
        return None
    first = frame.f_locals.get(names[0])
    if isinstance(first, torch.autograd.function.BackwardCFunction):
        return type(first)._forward_cls  # type: ignore[attr-defined, no-any-return]
    if isinstance(first, nn.Module):
        return None
    kinds = _subclasses(torch.autograd.Function)  # one with `setup_context` is not given its context
    return next((kind for kind in kinds if getattr(kind.forward, "__code__", None) is frame.f_code), None)


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def callers() -> Iterator[FrameType]:
    """Yield the frames of the functions that are running, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


class _Recompute(NamedTuple):
    """A checkpointed function that is called in a context of its own.

    Arguments that were kept by hooks for saved tensors (another checkpoint's, or `save_on_cpu`) come back without what
    was known of them, so that is kept here.
    """

    enter: Callable[[], AbstractContextManager[Any]]
    compute: Callable[..., Any]
    layouts: tuple[Any, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for value, layout in zip(reversed(args), reversed(self.layouts), strict=False):  # others may come before them
            if layout is not None and not hasattr(value, MARK):
                setattr(value, MARK, layout)
        with self.enter():
            return self.compute(*args, **kwargs)
