"""Bring colors, opacity and orientation of decoded images into one form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .encoded import Box

TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""

FLIPPED = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""Axes to flip after that, for each EXIF orientation."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray, the same as Pillow's."""


def to_channels(colors: Tensor, opacity: Tensor | None, channels: int) -> Tensor:
    """Convert `(1 or 3, H, W)` colors and `(1, H, W)` opacity, both 0 to 1, to an image of 1, 3 or 4 channels."""
    if colors.dtype == torch.uint8:
        colors, opacity = colors.float() / 255, None if opacity is None else opacity.float() / 255
    if channels == 4:
        return torch.cat([colors.expand(3, -1, -1), torch.ones_like(colors[:1]) if opacity is None else opacity])
    if opacity is not None:
        colors = colors * opacity + (1 - opacity)
    if channels == 1 and len(colors) == 3:
        return torch.einsum("chw,c->hw", colors, torch.tensor(LUMA)).unsqueeze(0)
    return colors.expand(channels, -1, -1).contiguous()


def upright(image: Tensor, orientation: int) -> Tensor:
    """Return an image `(C, H, W)` turned by its EXIF orientation."""
    image = image.mT if orientation in TURNED else image
    return image.flip(FLIPPED[orientation]) if orientation in FLIPPED else image


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Return height and width of an image turned by its EXIF orientation."""
    return (width, height) if orientation in TURNED else (height, width)


def as_stored(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Return where a box of an upright image of the given size lies in the image as its file holds it."""
    box = _flipped(box, size, FLIPPED.get(orientation, ()))
    return _turned(box) if orientation in TURNED else box


def as_upright(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Return where a box of the image as its file holds it lies in the upright image of the given size."""
    return _flipped(_turned(box) if orientation in TURNED else box, size, FLIPPED.get(orientation, ()))


def _flipped(box: Box, size: tuple[int, int], axes: Sequence[int]) -> Box:
    if 1 in axes:
        box = box._replace(top=size[0] - box.bottom, bottom=size[0] - box.top)
    if 2 in axes:
        box = box._replace(left=size[1] - box.right, right=size[1] - box.left)
    return box


def _turned(box: Box) -> Box:
    return Box(box.left, box.top, box.right, box.bottom)
