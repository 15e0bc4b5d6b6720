"""Errors of the engine: what cannot be carried out on visible patches, and the ways out."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import nn
from torch.overrides import resolve_name


class UnsupportedOperation(RuntimeError):
    """An operation whose meaning on visible patches is not known. The message names it and the ways out."""


OUTSIDER = (
    "a tensor that does not descend from the input in sight (a position embedding, noise of unknown origin, the output "
    "of a scripted module or a custom autograd function)"
)


WAYS_OUT = (
    "Either teach the engine what it means there with sparkmim.sparse.register(function), or run the module that calls "
    "it on the whole map with sparkmim.sparse.dense_fallback(module)."
)


def unsupported(func: Any, why: str) -> UnsupportedOperation:
    """The error for a call of `func`; `why` completes "it cannot be carried out: ...", or stands alone without one."""
    if func is None:
        return UnsupportedOperation(f"{why}. {WAYS_OUT}")
    # (Dynamo, which shows this error as its own, cannot trace the search for the full name.)
    full = None if torch.compiler.is_compiling() else resolve_name(func)
    name = full or getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or repr(func)
    return UnsupportedOperation(f"{name} cannot be carried out on visible patches: {why}. {WAYS_OUT}")


def path_of_running_module(error: BaseException, network: nn.Module) -> str | None:
    """The path of the innermost submodule of `network` that was running when `error` was raised."""
    paths = {id(module): path for path, module in network.named_modules()}
    found: str | None = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        path = paths.get(id(frame.f_locals.get("self")))
        if path:
            found = path
    return found
