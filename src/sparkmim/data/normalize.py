"""Normalize images on the device; uint8 batches need a quarter of the transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils.devices import CopyStream
from .config import ViewConfig

WHITE = 255
"""The uint8 value that stands for 1."""


def unit_scale(pixels: Tensor) -> Tensor:
    """Return pixels in float32: uint8 scaled to 0 to 1, all others unchanged."""
    return pixels.float() / WHITE if pixels.dtype == torch.uint8 else pixels.float()


def join(images: Sequence[Tensor]) -> Tensor:
    """Concatenate pixels `(B, C, *size)` of several images, in float32 if their dtypes differ."""
    dtypes = {image.dtype for image in images}
    return torch.cat([unit_scale(image) for image in images] if len(dtypes) > 1 else list(images))


class Normalize:
    """Subtract each channel's mean and divide by its standard deviation; pixels without data get the mean.

    Args:
        config: has mean and standard deviation, for images from 0 to 1.
        device: where the results are wanted.
    """

    def __init__(self, config: ViewConfig, device: torch.device | str = "cpu") -> None:
        channels = (-1, *(1 for _ in config.image_size))
        self.mean = torch.tensor(config.mean, device=device).view(channels)
        self.std = torch.tensor(config.std, device=device).view(channels)
        self.move = CopyStream(self.mean.device)

    def fill(self, pixels: Tensor) -> Tensor:
        """Return pixels `(..., C, *size)` on the CPU with the channel's mean where there is no data."""
        if pixels.dtype == torch.uint8:
            return pixels
        return torch.where(pixels.isnan(), self.mean.to(pixels.device), pixels)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalize `(..., C, *size)`, uint8 or floating point, into a new float32 tensor on the device."""
        white = WHITE if pixels.dtype == torch.uint8 else 1
        moved = self.move(pixels)  # then convert: torch alone converts first
        # In place, because new tensors of this size cost a CPU more than the arithmetic.
        normalized = moved.to(torch.float32, copy=True).sub_(self.mean * white).div_(self.std * white)
        return normalized if pixels.dtype == torch.uint8 else normalized.nan_to_num_(0.0, math.inf, -math.inf)


def where_data(pixels: Tensor) -> Tensor | None:
    """Return where pixels have data, a bool tensor of their shape; None if everywhere."""
    if pixels.dtype == torch.uint8:
        return None
    empty = pixels.isnan()
    return ~empty if empty.any() else None
