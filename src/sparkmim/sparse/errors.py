"""Errors of the engine: operations without a meaning on visible patches, and the ways out."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import nn
from torch.overrides import resolve_name


class UnsupportedOperation(RuntimeError):
    """Raised for an operation without a known meaning on visible patches; the message names it and the ways out.

    Attributes:
        within: ids of the modules that were running when the operation was called, if the error was raised later.
    """

    within: tuple[int, ...] = ()


OUTSIDER = (
    "a tensor that is not traced from the input (a position embedding, noise of unknown origin, the output of a "
    "scripted module or a custom autograd function)"
)


NOT_TRACED = "is not traced from the input"
"""Words of errors for tensors that may descend from the input by a way that cannot be followed."""

WAYS_OUT = (
    "Either register a rule for it with sparkmim.sparse.register(function), or run the module that calls it on the "
    "whole map with sparkmim.sparse.dense_fallback(module)."
)


def unsupported(func: Any, why: str) -> UnsupportedOperation:
    """Build the error for a call of `func`; `why` says what is wrong with it, or stands alone if `func` is None."""
    if func is None:
        return UnsupportedOperation(f"{why}. {WAYS_OUT}")
    # Dynamo, which shows this error as its own, cannot trace the search for the full name.
    full = None if torch.compiler.is_compiling() else resolve_name(func)
    name = full or getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or repr(func)
    return UnsupportedOperation(f"{name} cannot be carried out on visible patches: {why}. {WAYS_OUT}")


def path_of_running_module(error: BaseException, network: nn.Module) -> str | None:
    """Return the path of the innermost submodule of `network` that was running when `error` was raised.

    Of an operation that waited for another one it is that which was running when the operation was called.
    """
    paths = {id(module): path for path, module in network.named_modules()}
    frames = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [path for number in (getattr(error, "within", ()) or frames) if (path := paths.get(number))]
    return found[-1] if found else None


def running_module_ids() -> tuple[int, ...]:
    """Return the ids of the modules that are running, outermost first; none while compiling."""
    if torch.compiler.is_compiling():
        return ()
    frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_stack(None)]
    return tuple(id(owner) for owner in reversed(frames) if isinstance(owner, nn.Module))
