"""How much a check of a network of volumes computes, and how to check with less of it.

Three-dimensional convolutions in float64 take minutes on a processor, where torch has no fast ones; images of 3 x 4 x 5
patches hold many voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..utils.modules import preserved_attributes
from .prepared import Features, convert

SECONDS = 25.0
"""Time that a check may take on one thread, as estimated; it takes about half."""

PASSES = 7 * 3
"""Runs of a network in a check of one mode, forward and, at twice the cost, backward."""

RATES = {torch.float64: 1.5e10, torch.float32: 6e10}
"""Operations in a second, of convolutions in three dimensions by one thread of a processor."""

WAYS: tuple[tuple[torch.dtype, tuple[int, ...]], ...] = (
    (torch.float64, (3, 4, 5)),
    (torch.float64, (3, 3, 4)),
    (torch.float32, (3, 4, 5)),
    (torch.float32, (3, 3, 4)),
    (torch.float32, (2, 2, 3)),
)
"""Precisions, and units (of patch size and stride) along each axis, the most thorough first.

Where there are so few patches that batch norms are of some twenty positions, rounding in float32 comes near the
tolerance of gradients; then the check is repeated in float64 on as many patches."""


def affordable(
    network: nn.Module, features: Features, *, patch_size: Sequence[int], stride: Sequence[int], in_chans: int
) -> dict[str, Any]:
    """Return settings of a check that takes some seconds: precision and patches along each axis.

    They are those by default, {}, of networks of images and signals, on an accelerator, and of small ones; of the
    largest the least there are. The network is converted to float32 if it is measured.

    Args:
        network: the module.
        features: calls it and returns its feature maps.
        patch_size: voxels of a patch along each axis.
        stride: the network's total stride.
        in_chans: channels of the volumes.
    """
    if len(patch_size) != 3 or any(parameter.device.type != "cpu" for parameter in network.parameters()):
        return {}
    unit = [math.lcm(p, s) for p, s in zip(patch_size, stride, strict=True)]
    work = _operations(network, features, [2 * u for u in unit], in_chans) / 2**3  # of a unit
    for dtype, units in WAYS:
        if 2 * PASSES * math.prod(units) * work <= SECONDS * RATES[dtype]:  # of two images
            break
    if (dtype, units) == WAYS[0]:
        return {}
    grid = tuple(n * u // p for n, u, p in zip(units, unit, patch_size, strict=True))
    return {"dtype": dtype, "grid": grid}


def _operations(network: nn.Module, features: Features, size: Sequence[int], in_chans: int) -> int:
    """Return the floating-point operations of a network on a volume of a size; 0 if it does not run on it."""
    convert(network, torch.float32)
    training = network.training
    try:
        with torch.no_grad(), preserved_attributes(network), FlopCounterMode(display=False) as counter:
            features(torch.zeros(1, in_chans, *size))
    except (RuntimeError, ValueError):  # the check itself says why
        return 0
    finally:
        network.train(training)
    return int(counter.get_total_flops())
