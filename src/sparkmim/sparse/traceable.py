"""Find out, before a network runs, whether its modules can be traced at all."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from .overrides import is_dense_fallback


def require_traceable(network: nn.Module) -> None:
    """Raise for a scripted module, or one whose parameters are yet to be made.

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
    path = _scripted(network, "")
    if path is not None:
        what = f"module '{path}' of {type(network).__name__}" if path else "the network"
        raise ValueError(
            f"{what} is a scripted or traced one (torch.jit), whose operations cannot be followed; pass the module "
            "that it was made of, or let a module call it that runs on the whole map: "
            "sparkmim.sparse.dense_fallback(module)"
        )


def _scripted(module: nn.Module, path: str) -> str | None:
    """Return the path of the first scripted module that is not within one that runs on the whole map."""
    if isinstance(module, torch.jit.ScriptModule):
        return path
    if is_dense_fallback(module):
        return None
    found = (_scripted(child, f"{path}.{name}" if path else name) for name, child in module.named_children())
    return next((name for name in found if name is not None), None)
