"""How often a tensor has been written to."""

from __future__ import annotations

import torch
from torch import Tensor


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor has been written to; 0 where torch does not count."""
    return tensor._version if counts_versions(tensor) else 0


def counts_versions(tensor: Tensor) -> bool:
    """Return whether torch counts how often a tensor is written to: not in inference mode nor while compiling."""
    return not (torch.compiler.is_compiling() or tensor.is_inference())
