"""Decode colors of more than 8 bits, which Pillow would cut to 8, and TIFF files whose bands are not colors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from tifffile import PHOTOMETRIC, TiffFile
from torch import Tensor

from .arrays import FULL_SCALE, array_to_image

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a file."""

PREMULTIPLIED, STRAIGHT = 1, 2
"""TIFF codes for a band of opacity, by which the colors are multiplied already, or not."""

TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""

FLIPPED = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""Axes to flip after that, for each EXIF orientation."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray, the same as Pillow's."""


def decode_high_bit_depth(data: bytes, channels: int) -> Tensor | None:
    """Decode a PNG or TIFF file that Pillow would decode only in part to an upright image `(channels, H, W)`.

    Args:
        data: the file.
        channels: 1 (gray), 3 (RGB), 4 (RGBA, or four bands of a TIFF file without opacity).

    Returns:
        float32 with 65535 of a 16-bit image as 1; the bands of a TIFF file as
        :func:`~sparkmim.data.decoding.arrays.array_to_image` converts them. None for files that Pillow decodes in full:
        other formats, gray, colors of 8 bits.

    Raises:
        ValueError: for other numbers of bands and color spaces.
    """
    bits, kind = data[24:25], data[25:26]
    if data.startswith(PNG) and bits == b"\x10" and kind != b"\0":  # color type 0 is gray
        return _decode_png(data, channels)
    return _decode_tiff(data, channels) if data.startswith(TIFF) else None


def to_channels(colors: Tensor, opacity: Tensor | None, channels: int) -> Tensor:
    """Convert `(1 or 3, H, W)` colors and `(1, H, W)` opacity, both 0 to 1, to an image of 1, 3 or 4 channels."""
    if channels == 4:
        return torch.cat([colors.expand(3, -1, -1), torch.ones_like(colors[:1]) if opacity is None else opacity])
    if opacity is not None:
        colors = colors * opacity + (1 - opacity)
    if channels == 1 and len(colors) == 3:
        return torch.einsum("chw,c->hw", colors, torch.tensor(LUMA)).unsqueeze(0)
    return colors.expand(channels, -1, -1).contiguous()


def _decode_png(data: bytes, channels: int) -> Tensor:
    with Image.open(io.BytesIO(data)) as file:
        mode, gray, key = file.mode, data[25] == 4, file.info.get("transparency")
    if gray:  # two bytes of gray and two of opacity, read as four channels
        pixels = _raw_png(data, "RGBA").view(">u2")
    else:  # Pillow keeps one byte of each value: the high one, or with the byte order swapped, the low one
        pixels = 256 * _raw_png(data, f"{mode};16B").astype(np.uint16) + _raw_png(data, f"{mode};16L")
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / FULL_SCALE
    if len(image) != 3:
        return to_channels(image[:-1], image[-1:], channels)
    # tRNS may name a single transparent color.
    opacity = None if key is None else torch.from_numpy((pixels != key).any(2)).float().unsqueeze(0)
    return to_channels(image, opacity, channels)


def _raw_png(data: bytes, raw_mode: str) -> np.ndarray:
    """Return the upright image `(H, W, C)` when the file's bytes are read in one of Pillow's raw modes."""
    with Image.open(io.BytesIO(data)) as file:
        file.tile = [file.tile[0]._replace(args=raw_mode)]
        return np.array(ImageOps.exif_transpose(file))


def _decode_tiff(data: bytes, channels: int) -> Tensor | None:
    with TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first
        bands, kind, extra = page.samplesperpixel, page.photometric, page.extrasamples
        colors = {PHOTOMETRIC.RGB: 3, PHOTOMETRIC.MINISBLACK: 1}.get(kind, bands)
        alpha = extra[0] if extra and extra[0] in (STRAIGHT, PREMULTIPLIED) else None
        plain = bands == colors + (alpha is not None)
        if bands == 1 or (page.dtype == np.uint8 and (plain or (colors == 3 and channels < 4))):
            return None
        if kind not in (PHOTOMETRIC.RGB, PHOTOMETRIC.MINISBLACK):
            raise ValueError(f"expected RGB or gray, got {kind.name} in {page.dtype}; convert the file to RGB")
        pixels = page.asarray()
        image = array_to_image(pixels.transpose(2, 0, 1) if page.axes == "YXS" else pixels, bands)
        image = _upright(image, page.tags.valueof(ExifTags.Base.Orientation, default=1))
    if bands == channels and alpha is None:
        return image
    shares = page.dtype == np.uint16 or page.dtype.kind == "f"
    if not shares or not (plain or (colors == 3 and channels < 4)):
        raise ValueError(f"expected {channels} channels, got {bands} bands of {page.dtype}; see --in-chans")
    image, opacity = image[:colors], None if alpha is None else image[colors : colors + 1]
    if opacity is not None and alpha == PREMULTIPLIED:
        image = torch.where(opacity > 0, image / opacity, image)
    return to_channels(image, opacity, channels)


def _upright(image: Tensor, orientation: int) -> Tensor:
    image = image.mT if orientation in TURNED else image
    return image.flip(FLIPPED[orientation]) if orientation in FLIPPED else image
