"""Pictures of boxes with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

HIT, MISS, ALARM = (52, 199, 89), (255, 204, 0), (255, 59, 48)
"""Colors of objects that are found, that are not, and of detections that are no object."""

LONGEST, SHORTEST = 1600, 480
"""Pixels of the longer side of a picture, at most and at least."""

PAPER = (20, 20, 20)


class Drawn(NamedTuple):
    """A box in a picture: its edges (left, top, right, bottom), its label, and its color."""

    box: np.ndarray
    label: str
    color: Color


def draw_boxes(picture: np.ndarray, boxes: Sequence[Drawn]) -> Image.Image:
    """Return a picture `(H, W, 3)` with boxes, reduced or enlarged to a size in which they can be read."""
    longest = max(picture.shape[:2])
    scale = min(LONGEST / longest, max(1.0, SHORTEST / longest))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    canvas = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    width = max(2, round(max(size) / 400))
    font = ImageFont.load_default(max(11, round(max(size) / 55)))
    for box, _, color in boxes:
        left, top, right, bottom = (float(v) * scale for v in box)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=width)
    for box, label, color in boxes:
        left, top = float(box[0]) * scale, float(box[1]) * scale
        wide, tall = (round(v) for v in draw.textbbox((0, 0), label, font=font)[2:])
        x = min(max(0.0, left), max(0, size[0] - wide - 4))
        y = top - tall - 4 if top >= tall + 4 else top
        draw.rectangle((x, y, x + wide + 4, y + tall + 4), fill=color)
        draw.text((x + 2, y + 1), label, fill=PAPER, font=font)
    return canvas
