"""Normalize images on the device; uint8 batches need a quarter of the transfer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import ViewConfig

WHITE = 255
"""The uint8 value that stands for 1."""


def unit_scale(pixels: Tensor) -> Tensor:
    """Return pixels in float32: uint8 scaled to 0 to 1, all others unchanged."""
    return pixels.float() / WHITE if pixels.dtype == torch.uint8 else pixels.float()


def join(images: Sequence[Tensor]) -> Tensor:
    """Concatenate pixels `(B, C, H, W)` of several images, in float32 if their dtypes differ."""
    dtypes = {image.dtype for image in images}
    return torch.cat([unit_scale(image) for image in images] if len(dtypes) > 1 else list(images))


class Normalize:
    """Subtract each channel's mean and divide by its standard deviation.

    Args:
        config: has mean and standard deviation, for images from 0 to 1.
        device: where the results are wanted.
    """

    def __init__(self, config: ViewConfig, device: torch.device | str = "cpu") -> None:
        self.mean = torch.tensor(config.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(config.std, device=device).view(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalize `(..., C, H, W)`, uint8 or floating point, into a new float32 tensor on the device."""
        white = WHITE if pixels.dtype == torch.uint8 else 1
        device = self.mean.device
        moved = pixels.to(device, non_blocking=device.type != "cpu")  # then convert: torch alone converts first
        # In place, because new tensors of this size cost a CPU more than the arithmetic.
        return moved.to(torch.float32, copy=True).sub_(self.mean * white).div_(self.std * white)
