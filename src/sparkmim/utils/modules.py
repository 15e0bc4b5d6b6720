"""Put modules into a state for a while and restore them."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

# `type[Any]`, because kernels and strides may differ per axis and torch annotates the 1-D layers more narrowly.
CONV: dict[int, type[Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""Convolutions by the number of spatial axes."""

_OF_TORCH = frozenset(nn.Module().__dict__)
"""Attributes that every module has: its mode, parameters, submodules and hooks."""

_CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)


def modules_of(network: nn.Module) -> list[nn.Module]:
    """Return what `network.modules()` yields, in the same order, in less time."""
    found: dict[nn.Module, None] = {}
    _add_modules(network, found)
    return list(found)


def _add_modules(module: nn.Module, found: dict[nn.Module, None]) -> None:
    found[module] = None
    for child in module._modules.values():
        if child is not None and child not in found:
            _add_modules(child, found)


def eval_mode(module: nn.Module) -> AbstractContextManager[None]:
    """Switch to evaluation mode, and restore the mode of every submodule on exit."""
    return in_mode(module, training=False)


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Switch to training or evaluation mode, and restore the mode of every submodule on exit."""
    modes = {m: m.training for m in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


@contextmanager
def preserved_buffers(*modules: nn.Module, parameters: bool = False) -> Iterator[None]:
    """Restore the modules' buffers (running statistics) on exit, unseen by autograd; their parameters too, if asked."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    if parameters:
        buffers += [parameter.data for module in modules for parameter in module.parameters()]
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, values, strict=True):
            buffer.data.copy_(value)  # `.data`: the version counter that backward checks must not change


@contextmanager
def preserved_attributes(module: nn.Module) -> Iterator[None]:
    """Restore on exit what a forward pass sets on the module and its submodules.

    These are features kept as attributes, or in lists, dicts and sets of theirs, and weights that the older
    `weight_norm`, `spectral_norm` and `prune` compute.
    """
    found = [(m, {k: v for k, v in m.__dict__.items() if k not in _OF_TORCH}) for m in module.modules()]
    holders = [(value, copy.copy(value)) for _, attributes in found for value in _containers_in(attributes.values())]
    try:
        yield
    finally:
        for m, attributes in found:
            for name in m.__dict__.keys() - _OF_TORCH - attributes.keys():
                del m.__dict__[name]
            m.__dict__.update(attributes)
        for holder, content in holders:
            holder.clear()
            if isinstance(holder, (list, deque)):
                holder.extend(content)
            else:
                holder.update(content)


def _containers_in(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the containers among values, and those within them."""
    for value in values:
        if type(value) in _CONTAINERS:
            yield value
            yield from _containers_in(value.values() if isinstance(value, dict) else value)
