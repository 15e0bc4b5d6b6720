"""Plain JPEG files, decoded by simplejpeg where it is installed: the library that Pillow uses (libjpeg-turbo), and the
same numbers, without the detour through Pillow's own form of an image.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import torch
from PIL import ExifTags, Image
from torch import Tensor

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

Reduction = Callable[[int, int], int]
"""By what an image of a height and width may be reduced while it is decoded: 1, 2, 4 or 8."""

START, APP1, SCAN = b"\xff\xd8\xff", 0xE1, 0xDA
"""How a JPEG file begins; the marker of a segment that may tell which side is up; that of the image itself."""


def decode_jpeg(data: bytes, reduction: Reduction) -> Tensor | None:
    """The RGB image `(3, H, W)`, uint8, of a JPEG file, its sides divided by the reduction and rounded up.

    Returns:
        None for what is left to Pillow: other files, images that lie on their side, colour spaces that need care,
        sizes that Pillow warns of, and files with the least flaw.
    """
    if simplejpeg is None or not data.startswith(START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        plain = colours in ("YCbCr", "RGB", "Gray") and height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
        if not plain or _orientation(data) != 1:
            return None
        by = reduction(height, width)
        reduced = -(-height // by), -(-width // by)
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=reduced[0], min_width=reduced[1], min_factor=by)
    except ValueError:
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1) if pixels.shape[:2] == reduced else None


def _orientation(data: bytes) -> int:
    """The EXIF orientation, 1 being upright."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != SCAN:
        if data[place + 1] == APP1:
            with Image.open(io.BytesIO(data)) as file:
                return int(file.getexif().get(ExifTags.Base.Orientation, 1))
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return 1
