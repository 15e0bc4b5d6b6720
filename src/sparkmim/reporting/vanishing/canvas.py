"""A small drawing board on Pillow: everything is drawn at three times the size and reduced, for smooth edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = 3

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (27, 29, 33)
MUTED: Colour = (98, 105, 115)
LINE: Colour = (226, 226, 222)
PAPER: Colour = (255, 255, 255)


class Canvas:
    """A white picture to draw on; coordinates are pixels of the result."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.picture = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self.pen = ImageDraw.Draw(self.picture)

    def text(self, place: Point, text: str, size: int, colour: Colour = INK, anchor: str = "ls") -> None:
        """Text at its anchor (Pillow's: `ls` is left on the baseline, `mm` the middle)."""
        font = ImageFont.load_default(size * SCALE)
        self.pen.text(_scaled(place), text, fill=colour, font=font, anchor=anchor)

    def text_width(self, text: str, size: int) -> float:
        """Pixels that a line of text takes."""
        return float(ImageFont.load_default(size * SCALE).getlength(text)) / SCALE

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """A line through points."""
        scaled = [_scaled(point) for point in points]
        self.pen.line(scaled, fill=colour, width=round(width * SCALE), joint="curve")

    def dot(self, place: Point, radius: float, colour: Colour) -> None:
        """A filled circle."""
        x, y = place
        self.pen.ellipse([*_scaled((x - radius, y - radius)), *_scaled((x + radius, y + radius))], fill=colour)

    def area(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        self.pen.polygon([_scaled(point) for point in points], fill=colour)

    def box(self, corner: Point, size: Point, colour: Colour) -> None:
        """The outline of a rectangle."""
        (x, y), (width, height) = corner, size
        self.pen.rectangle([*_scaled((x, y)), *_scaled((x + width, y + height))], outline=colour, width=SCALE)

    def pixels(self, corner: Point, size: tuple[int, int], values: np.ndarray, *, smooth: bool = False) -> None:
        """An array `(rows, columns, 3)` of bytes, stretched over a rectangle; its cells stay squares unless smooth."""
        how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
        tile = Image.fromarray(values).resize((size[0] * SCALE, size[1] * SCALE), how)
        x, y = _scaled(corner)
        self.picture.paste(tile, (round(x), round(y)))

    def finish(self) -> Image.Image:
        """The picture at its size."""
        return self.picture.resize((self.width, self.height), Image.Resampling.LANCZOS)


def _scaled(point: Point) -> Point:
    return point[0] * SCALE, point[1] * SCALE
