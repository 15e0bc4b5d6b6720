"""Observe the forward passes of submodules, by hooks that are removed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

Record = TypeVar("Record")


class Call(NamedTuple):
    """One forward pass of a module: its name, the module, its positional arguments and its output."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    output: Any


@contextmanager
def record_calls(
    modules: Iterable[tuple[str, nn.Module]], read: Callable[[Call], Record], *, prepend: bool = False
) -> Iterator[list[Record]]:
    """Record every forward pass of the modules, in the order in which they return.

    Args:
        modules: names and modules, as `named_modules()` yields them.
        read: returns the record of a call. It runs before later operations can overwrite the call's tensors in place.
        prepend: run before the hooks that a module already has.
    """
    records: list[Record] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, args, output: records.append(read(Call(name, module, args, output)))

    handles = [
        module.register_forward_hook(hook(name), prepend=prepend) for name, module in modules if _takes_hooks(module)
    ]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def running_modules(network: nn.Module) -> Iterator[list[str]]:
    """Keep a stack of the names of the submodules whose forward pass is running, the innermost last."""
    running: list[str] = []

    def enter(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: running.append(name)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if running:
            running.pop()

    handles = []
    for name, module in network.named_modules():
        if not _takes_hooks(module):
            continue
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield running
    finally:
        running.clear()
        for handle in handles:
            handle.remove()


def _takes_hooks(module: nn.Module) -> bool:
    return not isinstance(module, torch.jit.ScriptModule)
