"""Find out, before a network runs, whether its modules can be traced at all."""

from __future__ import annotations

from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
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
    exported = next((n for n, m in network.named_modules() if isinstance(m, GraphModule) and "eval" in vars(m)), None)
    if exported is not None:
        what = f"module '{exported}' of {type(network).__name__}" if exported else "the network"
        raise ValueError(
            f"{what} is an exported program (torch.export), fixed to one mode and to the sizes that it was made with; "
            "pass the module that it was made of"
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


def scripted_functions(network: nn.Module) -> list[str]:
    """Return the names of functions of `torch.jit.script` and `trace` that a network's modules call, each once.

    They are looked for by name in the methods of its modules, in their attributes, and in the functions that these
    call; those of torch itself are left out.
    """
    found: dict[str, None] = {}
    seen: set[int] = set()
    for module in network.modules():
        if is_dense_fallback(module):
            continue
        for owner in (module, *type(module).__mro__):
            if isinstance(owner, nn.Module) or not owner.__module__.startswith("torch."):
                for value in vars(owner).values():
                    _add_scripted(value, found, seen)
    return list(found)


def _add_scripted(value: Any, found: dict[str, None], seen: set[int]) -> None:
    if isinstance(value, torch.jit.ScriptFunction):
        found[str(value.name)] = None
    if not isinstance(value, FunctionType) or id(value) in seen or value.__module__.startswith("torch."):
        return
    seen.add(id(value))
    names = value.__code__.co_names
    for inner in (*[value.__globals__.get(name) for name in names], *map(_content, value.__closure__ or ())):
        _add_scripted(inner, found, seen)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a variable that has no value yet
        return None
