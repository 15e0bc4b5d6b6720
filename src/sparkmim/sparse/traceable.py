"""Find out, before a network runs, whether its modules can be traced at all."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.fx
from torch import nn
from torch.nn.parameter import UninitializedParameter

from .overrides import is_dense_fallback


def require_traceable(network: nn.Module) -> None:
    """Raise for a scripted or exported module, or one whose parameters are yet to be made.

    Raises:
        ValueError: with the path of the module. One within a module that runs on the whole map
            (:func:`~sparkmim.sparse.dense_fallback`) is accepted.
    """
    lazy = next((name for name, p in network.named_parameters() if isinstance(p, UninitializedParameter)), None)
    if lazy is not None:
        raise ValueError(
            f"parameter '{lazy}' of {type(network).__name__} has no shape yet, as the module is a lazy one; run the "
            "network once on an image, network(torch.zeros(1, channels, *size)), and pass it then"
        )
    path = _first(network, _is_scripted, "")
    if path is not None:
        raise ValueError(
            f"{_what(network, path)} is a scripted or traced one (torch.jit), whose operations cannot be followed; "
            "pass the module that it was made of, or let a module call it that runs on the whole map: "
            "sparkmim.sparse.dense_fallback(module)"
        )
    path = _first(network, _is_exported, "")
    if path is not None:
        raise ValueError(
            f"{_what(network, path)} was exported (torch.export), which fixes its operations for one mode and size of "
            "batch; pass the module that was exported"
        )


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _is_exported(module: nn.Module) -> bool:
    """Return whether a module is a graph that refuses to change its mode."""
    return isinstance(module, torch.fx.GraphModule) and "train" in vars(module)


def _what(network: nn.Module, path: str) -> str:
    return f"module '{path}' of {type(network).__name__}" if path else "the network"


def _first(module: nn.Module, is_one: Callable[[nn.Module], bool], path: str) -> str | None:
    """Return the path of the first module of a kind that is not within one that runs on the whole map."""
    if is_one(module):
        return path
    if is_dense_fallback(module):
        return None
    found = (_first(child, is_one, f"{path}.{name}" if path else name) for name, child in module.named_children())
    return next((name for name in found if name is not None), None)
