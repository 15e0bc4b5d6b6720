"""The picture of a set of volumes: histograms of spacings, sizes and intensities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from .vanishing.canvas import INK, LINE, MUTED, Canvas, Color, Point

WIDTH, MARGIN, GUTTER, TALL = 1240, 40, 40, 210
COLUMNS = 3
BARS = 30

SPACING: Color = (31, 95, 191)
SIZE: Color = (214, 92, 20)
INTENSITY: Color = (88, 140, 92)

TITLE, LABEL, SMALL = 25, 18, 16


class Histogram(NamedTuple):
    """Shares of bins between two values.

    Attributes:
        title: what is counted.
        shares: of each bin.
        low: where the first bin begins.
        high: where the last one ends.
        note: text on the right of the title.
        color: of the bars.
    """

    title: str
    shares: np.ndarray
    low: float
    high: float
    note: str = ""
    color: Color = INTENSITY


def draw_volumes(title: str, spacings: np.ndarray, shapes: np.ndarray, intensities: Sequence[Histogram]) -> Image.Image:
    """Draw spacings and sizes along each axis, and intensities of each channel, 1240 pixels wide.

    Args:
        title: above all.
        spacings: `(N, 3)`, millimeters.
        shapes: `(N, 3)`, voxels.
        intensities: a histogram for each channel.
    """
    panels = [
        *(counted(f"Spacing along {axis}, mm", spacings[:, i], SPACING) for i, axis in enumerate("XYZ")),
        *(counted(f"Voxels along {axis}", shapes[:, i], SIZE) for i, axis in enumerate("XYZ")),
        *intensities,
    ]
    return draw_histograms(title, panels)


def draw_histograms(title: str, panels: Sequence[Histogram]) -> Image.Image:
    """Draw histograms in rows of three, 1240 pixels wide, below a title."""
    rows = -(-len(panels) // COLUMNS)
    canvas = Canvas(WIDTH, 2 * MARGIN + 50 + rows * (TALL + GUTTER))
    canvas.text((MARGIN, MARGIN + 18), title, TITLE)
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GUTTER) // COLUMNS
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        corner = (MARGIN + column * (width + GUTTER), MARGIN + 50 + row * (TALL + GUTTER))
        _draw(canvas, corner, (width, TALL), panel)
    return canvas.finish()


def counted(title: str, values: np.ndarray, color: Color) -> Histogram:
    """Return the histogram of some numbers, in the middle of a range of its own if all are equal.

    The bins of whole numbers hold equally many of them each.
    """
    low, high = float(values.min()), float(values.max())
    bars = BARS
    if values.dtype.kind in "iu":
        wide = -(-int(high - low + 1) // BARS)
        bars = -(-int(high - low + 1) // wide)
        low, high = low - 0.5, low - 0.5 + wide * bars
    else:
        room = 0.05 * (high - low) or 0.5 * abs(low) or 0.5
        low, high = low - room, high + room
    counts, _ = np.histogram(values, bins=bars, range=(low, high))
    return Histogram(title, counts / len(values), low, high, f"median {float(np.median(values)):.4g}", color)


def _draw(canvas: Canvas, corner: Point, size: tuple[int, int], panel: Histogram) -> None:
    left, top, right, bottom = corner[0], corner[1] + 34, corner[0] + size[0], corner[1] + size[1] - 26
    canvas.text((left, corner[1] + 16), panel.title, LABEL, INK)
    canvas.text((right, corner[1] + 16), panel.note, SMALL, MUTED, "rs")
    most = float(panel.shares.max()) or 1.0
    bar = (right - left) / len(panel.shares)
    for index, share in enumerate(panel.shares):
        if share > 0:
            y = min(bottom - float(share) / most * (bottom - top), bottom - 1)
            x = left + index * bar
            canvas.area([(x, bottom), (x, y), (x + bar - 1, y), (x + bar - 1, bottom)], panel.color)
    canvas.line([(left, bottom), (right, bottom)], LINE, 1)
    canvas.text((left, bottom + 22), f"{panel.low:.3g}", SMALL, MUTED)
    canvas.text((right, bottom + 22), f"{panel.high:.3g}", SMALL, MUTED, "rs")
