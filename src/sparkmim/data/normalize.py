"""From pixels to a network's input, on the device: bytes take a quarter of the way there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import ViewConfig

WHITE = 255
"""The value of a byte that stands for 1."""


def unit_scale(pixels: Tensor) -> Tensor:
    """Pixels in float32: bytes as 0 to 1, all others as they are."""
    return pixels.float() / WHITE if pixels.dtype == torch.uint8 else pixels.float()


def join(images: Sequence[Tensor]) -> Tensor:
    """Pixels `(..., C, H, W)` of several images, one after the other; in float32 if some have more than 8 bits."""
    kinds = {image.dtype for image in images}
    return torch.cat([unit_scale(image) for image in images] if len(kinds) > 1 else list(images))


class Normalise:
    """Takes each channel's mean away and divides by its standard deviation.

    Args:
        config: has mean and deviation, images being 0 to 1.
        device: where the images are.
    """

    def __init__(self, config: ViewConfig, device: torch.device | str = "cpu") -> None:
        self.mean = torch.tensor(config.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(config.std, device=device).view(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """`(..., C, H, W)`, bytes or floating point, to float32 in a new tensor, on the device of this."""
        white = WHITE if pixels.dtype == torch.uint8 else 1
        device = self.mean.device
        there = pixels.to(device, non_blocking=device.type != "cpu")  # as they are: torch would convert before
        # In place, for new tensors of this size cost a CPU more than the arithmetic.
        return there.to(torch.float32, copy=True).sub_(self.mean * white).div_(self.std * white)
