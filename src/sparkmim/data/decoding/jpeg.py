"""Decode plain JPEG files with simplejpeg where it is installed.

It calls the library that Pillow uses (libjpeg-turbo) and returns the same values, without the copy into Pillow's own
image.
"""

from __future__ import annotations

import io

import torch
from PIL import ExifTags, Image
from torch import Tensor

from .pillow import without_limit

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

START, APP1, SCAN = b"\xff\xd8\xff", 0xE1, 0xDA
"""First bytes of a JPEG file; the marker of a segment that may hold the EXIF orientation; that of the image itself."""


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return height and width of a plain JPEG file, one that :func:`decode_jpeg` can decode.

    Returns:
        None for files that are left to Pillow: other formats, images that lie on their side, color spaces that need
        conversion, and headers with a flaw.
    """
    if simplejpeg is None or not data.startswith(START):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        plain = colors in ("YCbCr", "RGB", "Gray")
        return (height, width) if plain and _orientation(data) == 1 else None
    except ValueError:
        return None


def decode_jpeg(data: bytes, size: tuple[int, int], reduction: int = 1) -> Tensor | None:
    """Decode a plain JPEG file to an RGB image `(3, H, W)`, uint8, its sides divided by the reduction and rounded up.

    Args:
        data: the file.
        size: its :func:`jpeg_size`.
        reduction: 1, 2, 4 or 8.

    Returns:
        None for files with the least flaw, which are left to Pillow.
    """
    height, width = (-(-side // reduction) for side in size)
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=reduction)
    except ValueError:
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1) if pixels.shape[:2] == (height, width) else None


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation; 1 is upright."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != SCAN:
        if data[place + 1] == APP1:
            with without_limit(), Image.open(io.BytesIO(data)) as file:
                return int(file.getexif().get(ExifTags.Base.Orientation, 1))
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return 1
