"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: np.ndarray) -> str:
    """Format the median, and the smallest to the largest if they differ: `35 (31 to 42)`."""
    low, middle, high = float(values.min()), float(np.median(values)), float(values.max())
    return f"{middle:.4g}" if low == high else f"{middle:.4g} ({low:.4g} to {high:.4g})"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, with cells below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
