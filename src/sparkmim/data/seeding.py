"""Randomness that depends on a key and on nothing that happened before: what makes a resumed run the same run."""

from __future__ import annotations

import numpy as np
import torch


def keyed_seed(*key: int) -> int:
    """A seed of 63 bits from non-negative integers; other keys give independent seeds (numpy's SeedSequence)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def keyed_generator(*key: int) -> torch.Generator:
    """A generator on the CPU, seeded by :func:`keyed_seed`."""
    return torch.Generator().manual_seed(keyed_seed(*key))
