"""Tiny networks of images and volumes for segmentation, as a file of a user's own."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn


def network() -> nn.Module:
    """Three maps of 4 to 16 channels, at strides 2, 4 and 8."""
    return stages(2)


def volume_network() -> nn.Module:
    """Likewise of volumes of one channel."""
    return stages(3)


def wide_network() -> nn.Module:
    """Likewise of images of four channels."""
    return stages(2, (4, 4, 8, 16))


def stages(dims: int, channels: tuple[int, ...] = ()) -> nn.Module:
    conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
    channels = channels or (3 if dims == 2 else 1, 4, 8, 16)
    layers = [nn.Sequential(conv(a, b, 3, 2, 1), nn.GroupNorm(2, b), nn.ReLU()) for a, b in pairwise(channels)]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """A U-Net of its own, of images or volumes of one channel, with as many outputs."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        channels = 3 if dims == 2 else 1
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.a = nn.Sequential(conv(channels, 8, 3, 1, 1), nn.GroupNorm(2, 8), nn.ReLU())
        self.b = nn.Sequential(conv(8, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU())
        self.c = nn.Sequential(conv(8, 16, 3, 2, 1), nn.GroupNorm(2, 16), nn.ReLU())
        self.d = nn.Sequential(conv(16, 8, 3, 1, 1), nn.ReLU())
        self.e = nn.Sequential(conv(8, 8, 3, 1, 1), nn.ReLU())
        self.out = conv(8, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        a = self.a(images)
        b = self.b(a)
        x = self.d(self.up(self.c(b))) + b
        x = self.e(self.up(x)) + a
        out: Tensor = self.out(x)
        return out


def unet() -> nn.Module:
    return SmallUNet(2)


def volume_unet() -> nn.Module:
    return SmallUNet(3)
