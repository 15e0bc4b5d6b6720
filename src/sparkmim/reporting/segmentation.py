"""Pictures of masks: fills and boundaries of classes on an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FILL = 0.3
"""Opacity of a class within its boundary."""

GUTTER, LABEL = 6, 22
INK = (235, 235, 235)
PAPER = (27, 29, 33)


def boundaries(numbers: np.ndarray) -> np.ndarray:
    """Return where a pixel's class differs from that of the pixel on the left or above, or on the right or below."""
    edge = np.zeros(numbers.shape, bool)
    for axis in (0, 1):
        differs = np.diff(numbers.astype(np.int64), axis=axis) != 0
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edge[tuple(before)] |= differs
        edge[tuple(after)] |= differs
    return edge


def overlay(
    picture: np.ndarray,
    numbers: np.ndarray,
    colors: Sequence[Sequence[int]],
    bare: Sequence[int] = (),
    fill: float = FILL,
) -> np.ndarray:
    """Return a picture with the fills and boundaries of classes.

    Args:
        picture: `(H, W, 3)`, uint8.
        numbers: of classes, `(H, W)`; those without a color are left bare.
        colors: of the classes.
        bare: classes that are left bare too, such as the background.
        fill: opacity of a class within its boundary.
    """
    shown = (numbers < len(colors)) & ~np.isin(numbers, list(bare))
    table = np.zeros((256, 3))
    table[: len(colors)] = np.array(colors)
    tint = table[numbers]
    opacity = np.where(boundaries(numbers), 1.0, fill) * shown
    mixed = picture * (1 - opacity[..., None]) + tint * opacity[..., None]
    return mixed.round().astype(np.uint8)


def enlarged(values: np.ndarray, factor: int) -> np.ndarray:
    """Repeat each pixel along both axes."""
    return values.repeat(factor, 0).repeat(factor, 1)


def side_by_side(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str]) -> Image.Image:
    """Arrange pictures `(H, W, 3)` in rows, with a label above each column."""
    widths = [max(row[column].shape[1] for row in rows) for column in range(len(labels))]
    heights = [max(part.shape[0] for part in row) for row in rows]
    size = sum(widths) + GUTTER * (len(widths) - 1), LABEL + sum(heights) + GUTTER * (len(heights) - 1)
    canvas = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    left = 0
    for label, width in zip(labels, widths, strict=True):
        draw.text((left, LABEL - 6), label, fill=INK, font=font, anchor="ls")
        left += width + GUTTER
    top = LABEL
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for part, width in zip(row, widths, strict=True):
            canvas.paste(Image.fromarray(part), (left, top))
            left += width + GUTTER
        top += height + GUTTER
    return canvas
