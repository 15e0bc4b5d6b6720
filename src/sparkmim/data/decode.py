"""An image file as a tensor, whatever its kind: Pillow decodes, this makes one form of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels that it can give."""

FULL_SCALE = 65535
"""The largest value of a 16-bit image."""


class UnreadableImage(Exception):
    """An image that cannot be decoded: the message says why, and does not name the file."""


def read_image(path: str | Path, channels: int = 3) -> Tensor:
    """Decode one image file.

    Upright (its EXIF orientation is applied), transparency over white (kept with 4 channels), palettes resolved, CMYK
    and other colour spaces to RGB, the first frame of an animation. Grey images are repeated for 3 channels.

    Args:
        path: anything that Pillow reads.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).

    Returns:
        `(channels, H, W)`: uint8 in 0..255; for 16-bit images float32, 65535 being 1; floating-point images as they
        are, in float32.

    Raises:
        UnreadableImage: if the file cannot be read or decoded in full.
        ValueError: for another number of channels.
    """
    if channels not in MODES:
        raise ValueError(f"images can be read as 1, 3 or 4 channels, not {channels}")
    quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
    try:
        with quiet, Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16") or image.mode in ("I", "F"):
                return _deep_image(image, channels)
            pixels = torch.from_numpy(np.array(_to_mode(image, MODES[channels])))
            return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)
    except (MemoryError, UnreadableImage):
        raise
    except Exception as error:  # whatever a decoder makes of a broken file
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _deep_image(image: Image.Image, channels: int) -> Tensor:
    """An image of one channel of more than 8 bits; Pillow's own conversion would clip it."""
    pixels = np.array(image)
    if image.mode != "F":
        if pixels.size and (pixels.min() < 0 or pixels.max() > FULL_SCALE):
            raise UnreadableImage(
                f"whole numbers from {pixels.min()} to {pixels.max()} where 0 to {FULL_SCALE} are meant"
            )
        pixels = pixels.astype(np.float32) / FULL_SCALE
    grey = torch.from_numpy(pixels.astype(np.float32, copy=False)).unsqueeze(0)
    if not grey.isfinite().all():
        raise UnreadableImage("values that are not finite")
    if channels == 1:
        return grey
    colours = grey.expand(3, -1, -1)
    return colours.clone() if channels == 3 else torch.cat([colours, torch.ones_like(grey)])
