"""Numbers along the spatial axes of an image."""

from __future__ import annotations

import math
from typing import Any


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """Return a number or a sequence of 1 or `axes` numbers as `axes` numbers."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def starts(extent: int, window: int, overlap: float) -> list[int]:
    """Return where windows start along an axis: as few as cover it with at least an overlap, evenly spread.

    Args:
        extent: of the image, at least the window's.
        window: its extent.
        overlap: share of a window that the next one covers too, at least.
    """
    if extent == window:
        return [0]
    step = max(1, math.floor(window * (1 - overlap)))
    count = math.ceil((extent - window) / step) + 1
    return [round(index * (extent - window) / (count - 1)) for index in range(count)]
