"""Seed the global generators of random numbers for a while."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def seed_everything(seed: int) -> None:
    """Seed the generators that a network may draw from: torch's, Python's and NumPy's, if that is in use."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


@contextmanager
def seeded(seed: int, network: nn.Module) -> Iterator[None]:
    """Seed the generators, and restore their states on exit, on the CPU and the device of a network."""
    device = next(network.parameters()).device
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            seed_everything(seed)
            yield
    finally:
        random.setstate(states[0])
        if numpy is not None and states[1] is not None:
            numpy.random.set_state(states[1])
