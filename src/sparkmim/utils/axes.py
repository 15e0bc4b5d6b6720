"""Numbers along the spatial axes of an image."""

from __future__ import annotations

from typing import Any


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """Return a number or a sequence of 1 or `axes` numbers as `axes` numbers."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values
