"""Decode files with Pillow, and bring what it returns into one form."""

from __future__ import annotations

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from .arrays import FULL_SCALE
from .encoded import UnreadableImage
from .high_bit_depth import TURNED, to_channels

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels."""


def decode_with_pillow(file: Image.Image, channels: int, reduction: int = 1) -> Tensor:
    """Decode an opened file to an upright image `(channels, H, W)`.

    A JPEG file is decoded at a fraction of its size, from fewer coefficients of each block of 8 x 8 pixels.

    Returns:
        uint8, or float32 for images of more than 8 bits, with 65535 of 16 bits as 1.
    """
    if isinstance(file, JpegImageFile) and reduction > 1 and _may_reduce(file, reduction):
        file.draft(None, (file.width // reduction, file.height // reduction))
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_high_bit_depth(image, channels)
    pixels = torch.from_numpy(np.array(_to_mode(image, MODES[channels])))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def upright_size(file: Image.Image) -> tuple[int, int]:
    """Return height and width of an opened file's upright image."""
    return file.size if _orientation(file) in TURNED else file.size[::-1]


def _may_reduce(file: JpegImageFile, reduction: int) -> bool:
    # Turned round, a last pixel that stands for less than the others would come first.
    return _orientation(file) == 1 or not any(side % reduction for side in file.size)


def _orientation(file: Image.Image) -> int:
    return int(file.getexif().get(ExifTags.Base.Orientation, 1))


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _from_high_bit_depth(image: Image.Image, channels: int) -> Tensor:
    """Convert an image of one channel of more than 8 bits, which Pillow's own conversion would clip."""
    pixels = np.array(image)
    if image.mode != "F":
        if pixels.size and (pixels.min() < 0 or pixels.max() > FULL_SCALE):
            raise UnreadableImage(
                f"expected integers from 0 to {FULL_SCALE}, got values from {pixels.min()} to {pixels.max()}"
            )
        pixels = pixels.astype(np.float32) / FULL_SCALE
    gray = torch.from_numpy(pixels.astype(np.float32, copy=False)).unsqueeze(0)
    if not gray.isfinite().all():
        raise UnreadableImage("expected finite values, got NaN or infinity")
    return to_channels(gray, None, channels)
