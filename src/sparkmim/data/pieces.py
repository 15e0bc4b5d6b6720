"""Windows spread over images that are too large to be decoded, for what is measured and tried."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from torch import Tensor

from .decoding.encoded import Box, EncodedImage, TooManyPixels

SIDE = 512
"""Height and width of a window, at most; half of those of a square of so many pixels as may be decoded."""

WINDOWS = 3
"""Windows along each axis where an image is measured."""


def pieces(image: EncodedImage, channels: int, *, by_part: bool, windows: int = WINDOWS) -> Iterator[Tensor]:
    """Yield an image, or windows that are spread evenly over one of more pixels than may be decoded.

    Args:
        image: the image.
        channels: of the network.
        by_part: take windows of such an image; otherwise it is unreadable.
        windows: along each axis.

    Yields:
        `(C, H, W)`, see :meth:`EncodedImage.decode`.

    Raises:
        UnreadableImage: if it cannot be decoded, or has too many pixels and a format that is only decoded as a whole.
    """
    try:
        whole = image.decode(channels)
    except TooManyPixels:
        if not by_part:
            raise
    else:
        yield whole
        return
    for down in range(windows):
        for across in range(windows):
            place = (down + 0.5) / windows, (across + 0.5) / windows
            yield image.decode_part(channels, partial(_around, place, image.files.max_pixels))


def _around(place: tuple[float, float], most: int, height: int, width: int) -> Box:
    """Return a window around a place in an image, given as shares of height and width."""
    side = max(1, min(SIDE, math.isqrt(most) // 2))
    tall, wide = min(side, height), min(side, width)
    top = min(height - tall, max(0, round(place[0] * height - tall / 2)))
    left = min(width - wide, max(0, round(place[1] * width - wide / 2)))
    return Box(top, left, top + tall, left + wide)
