"""Drawing with Pillow at three times the size, reduced at the end for smooth edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = 3

Color = tuple[int, int, int]
Point = tuple[float, float]

INK: Color = (27, 29, 33)
MUTED: Color = (98, 105, 115)
LINE: Color = (226, 226, 222)
PAPER: Color = (255, 255, 255)


class Canvas:
    """A white picture to draw on; coordinates are pixels of the result."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.picture = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self.pen = ImageDraw.Draw(self.picture)

    def text(self, place: Point, text: str, size: int, color: Color = INK, anchor: str = "ls") -> None:
        """Draw text at an anchor of Pillow: `ls` is left on the baseline, `mm` the middle."""
        font = ImageFont.load_default(size * SCALE)
        self.pen.text(_scaled(place), text, fill=color, font=font, anchor=anchor)

    def text_width(self, text: str, size: int) -> float:
        """Return the width of a line of text in pixels."""
        return float(ImageFont.load_default(size * SCALE).getlength(text)) / SCALE

    def line(self, points: Sequence[Point], color: Color, width: float) -> None:
        """Draw a line through points."""
        scaled = [_scaled(point) for point in points]
        self.pen.line(scaled, fill=color, width=round(width * SCALE), joint="curve")

    def dot(self, place: Point, radius: float, color: Color) -> None:
        """Draw a filled circle."""
        x, y = place
        self.pen.ellipse([*_scaled((x - radius, y - radius)), *_scaled((x + radius, y + radius))], fill=color)

    def area(self, points: Sequence[Point], color: Color) -> None:
        """Draw a filled polygon."""
        self.pen.polygon([_scaled(point) for point in points], fill=color)

    def box(self, corner: Point, size: Point, color: Color) -> None:
        """Draw the outline of a rectangle."""
        (x, y), (width, height) = corner, size
        self.pen.rectangle([*_scaled((x, y)), *_scaled((x + width, y + height))], outline=color, width=SCALE)

    def pixels(self, corner: Point, size: tuple[int, int], values: np.ndarray, *, smooth: bool = False) -> None:
        """Draw an array `(rows, columns, 3)` of bytes over a rectangle, without interpolation unless smooth."""
        how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
        tile = Image.fromarray(values).resize((size[0] * SCALE, size[1] * SCALE), how)
        x, y = _scaled(corner)
        self.picture.paste(tile, (round(x), round(y)))

    def finish(self) -> Image.Image:
        """Return the picture at its final size."""
        return self.picture.resize((self.width, self.height), Image.Resampling.LANCZOS)


def _scaled(point: Point) -> Point:
    return point[0] * SCALE, point[1] * SCALE
