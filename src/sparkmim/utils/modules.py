"""Put modules into a state for a while and restore them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and restore the mode of every submodule on exit."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


@contextmanager
def preserved_buffers(*modules: nn.Module) -> Iterator[None]:
    """Restore the modules' buffers (running statistics) on exit, unseen by autograd."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, values, strict=True):
            buffer.data.copy_(value)  # `.data`: the version counter that backward checks must not change
