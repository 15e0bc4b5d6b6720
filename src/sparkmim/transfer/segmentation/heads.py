"""Heads that predict a class for each pixel or voxel, from the feature maps of any backbone.

Libraries have these for two dimensions and for pyramids of fixed strides; these take one to three dimensions, any
number of maps and any strides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...models.backbone import Backbone
from ...models.levels import Level
from ...models.own_decoder import find_decoder
from ...models.taps import StageTaps
from ...utils.modules import CONV

GROUPS = 8
"""Groups of a norm, at most; the same result for any number of images at a time."""

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}

NARROWEST = 16
"""Fewest channels of a level above the backbone's maps."""


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate maps `(B, C, *size)` linearly to a size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=LINEAR[x.ndim - 2], align_corners=False)


def block(dims: int, channels: int, width: int) -> nn.Sequential:
    """Return a convolution over 3 positions an axis, group norm and ReLU."""
    return nn.Sequential(
        CONV[dims](channels, width, 3, padding=1, bias=False),
        nn.GroupNorm(math.gcd(GROUPS, width), width),
        nn.ReLU(inplace=True),
    )


class FPN(nn.Module):
    """Add up the levels of a feature pyramid.

    Each map is projected to one width, the next coarser one is added, interpolated, and a block follows; the results,
    interpolated to the finest map, are added up and classified, as in the semantic branch of Panoptic FPN (Kirillov et
    al., 2019), without its norms between steps of upsampling.

    Args:
        dims: spatial axes.
        levels: channels and strides of the maps, highest resolution first.
        width: channels of the pyramid.
        classes: channels of the output.
    """

    def __init__(self, dims: int, levels: Sequence[Level], width: int, classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(CONV[dims](level.channels, width, 1) for level in levels)
        self.smooth = nn.ModuleList(block(dims, width, width) for _ in levels)
        self.classify = CONV[dims](width, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return logits `(B, classes, *size of the finest map)`."""
        finest = maps[0].shape[2:]
        total = above = None
        for lateral, smooth, features in zip(
            reversed(self.lateral), reversed(self.smooth), reversed(list(maps)), strict=True
        ):
            own = lateral(features)
            above = own if above is None else own + resize(above, own.shape[2:])
            part = resize(smooth(above), finest)
            total = part if total is None else total + part
        out: Tensor = self.classify(total)
        return out


class UNet(nn.Module):
    """Go up from the deepest map, with the others as skips, to the image's resolution.

    At each level the map from below is interpolated, joined with the skip, and two blocks follow. Above the finest map,
    resolution is doubled by levels without skips, each half as wide, down to 16 channels.

    Args:
        dims: spatial axes.
        levels: channels and strides of the maps, highest resolution first.
        width: most channels of a level.
        classes: channels of the output.
    """

    def __init__(self, dims: int, levels: Sequence[Level], width: int, classes: int) -> None:
        super().__init__()
        channels = levels[-1].channels
        self.joins = nn.ModuleList()
        for level in reversed(levels[:-1]):
            out = min(width, level.channels)
            self.joins.append(nn.Sequential(block(dims, channels + level.channels, out), block(dims, out, out)))
            channels = out
        self.strides = _halved(levels[0].stride)
        self.rise = nn.ModuleList()
        for _ in self.strides:
            out = min(channels, max(NARROWEST, channels // 2))
            self.rise.append(nn.Sequential(block(dims, channels, out), block(dims, out, out)))
            channels = out
        self.classify = CONV[dims](channels, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return logits `(B, classes, *size)` for images of that size."""
        x = maps[-1]
        for join, skip in zip(self.joins, reversed(list(maps[:-1])), strict=True):
            x = join(torch.cat([resize(x, skip.shape[2:]), skip], 1))
        for rise, stride in zip(self.rise, self.strides, strict=True):
            x = rise(resize(x, [extent // step for extent, step in zip(size, stride, strict=True)]))
        out: Tensor = self.classify(x)
        return out


def _halved(stride: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the strides of the levels above a map, each half of the one below, rounded down, to 1."""
    found = []
    while any(s > 1 for s in stride):
        stride = tuple(max(1, s // 2) for s in stride)
        found.append(tuple(stride))
    return found


class PyramidSegmenter(nn.Module):
    """A backbone and a head on its maps. Images of any size: they are padded to whole positions, and logits cropped.

    Args:
        backbone: the network.
        head: from its maps and the image's size to logits.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.encoder = backbone.module
        self.head = head
        self._backbone = backbone
        self._divisor = tuple(math.lcm(*strides) for strides in zip(*backbone.strides, strict=True))
        for name in backbone.unreached_parameters():  # several processes would wait for their gradients
            self.encoder.get_parameter(name).requires_grad_(False)

    def forward(self, images: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch class *size"]:
        """Return logits of each pixel."""
        padded = pad_to(images, self._divisor)
        size = padded.shape[2:]
        return crop_to(resize(self.head(self._backbone(padded), size), size), images.shape[2:])


class OwnSegmenter(nn.Module):
    """A network whose own decoder's last map is classified; its own output layer is not used.

    Args:
        backbone: the network, with all maps that its decoder takes.
        classes: channels of the output.

    Raises:
        ValueError: if the network has no decoder.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        plan = find_decoder(backbone)
        self.encoder = backbone.module
        self.head = CONV[backbone.dims](plan.level.channels, classes, 1)
        self._last = StageTaps(backbone.module, [plan.last])
        self._divisor = tuple(math.lcm(*strides) for strides in zip(*backbone.strides, strict=True))
        for name, parameter in self.encoder.named_parameters():
            if name not in plan.trained:
                parameter.requires_grad_(False)

    def forward(self, images: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch class *size"]:
        """Return logits of each pixel."""
        padded = pad_to(images, self._divisor)
        (last,) = self._last(self.encoder, padded)
        return crop_to(resize(self.head(last), padded.shape[2:]), images.shape[2:])


def pad_to(images: Tensor, divisor: Sequence[int]) -> Tensor:
    """Repeat the far edges of images until each side is a multiple of a number."""
    missing = [-extent % step for extent, step in zip(images.shape[2:], divisor, strict=True)]
    if not any(missing):
        return images
    pads = [number for count in reversed(missing) for number in (0, count)]
    return F.pad(images, pads, mode="replicate")


def crop_to(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Cut the near corner of a size out of maps."""
    inside: Any = (..., *(slice(extent) for extent in size))
    cut: Tensor = maps[inside]
    return cut


def build_segmenter(backbone: Backbone, head: str, width: int, classes: int) -> nn.Module:
    """Return a network with a head.

    Args:
        backbone: the network.
        head: "fpn", "unet" or "own".
        width: channels of the pyramid; most channels of a level of the decoder.
        classes: number of them.

    Raises:
        ValueError: for "own" and a network without a decoder.
    """
    if head == "own":
        try:
            return OwnSegmenter(backbone, classes)
        except ValueError as error:
            text = str(error).replace("decoder='unet'", "--head unet").replace("--decoder unet", "--head unet")
            raise ValueError(f"--head own: {text}") from error
    kind = FPN if head == "fpn" else UNet
    return PyramidSegmenter(backbone, kind(backbone.dims, backbone.levels, width, classes))
