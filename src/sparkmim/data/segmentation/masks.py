"""Read masks of images: the class of each pixel as an index, an index of a palette, or a color."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...utils.text import counted, printable, verb
from ..decoding.pillow import without_limit
from .classes import LARGEST_VALUE, ClassTable
from .drawn import DrawnMask

COLORED = {"RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "PA", "LA"}
"""Modes of Pillow whose pixels are not one number."""

GRAY = "1", "L", "P", "I", "I;16", "I;16L", "I;16B"


LOSSY = (".jpg", ".jpeg")
"""Extensions of files whose compression changes values."""


class MaskContent(NamedTuple):
    """What a mask holds.

    Attributes:
        size: height and width.
        colored: pixels are colors, whose numbers are 65536 red + 256 green + blue.
        counts: pixels of each value or color.
    """

    size: tuple[int, int]
    colored: bool
    counts: Mapping[int, int]

    def indices(self) -> dict[int, int]:
        """Return the number of pixels of each index; a mask in color whose channels are equal holds indices too."""
        return {value & 255: count for value, count in self.counts.items()} if self.colored else dict(self.counts)


def read_pixels(path: Path) -> tuple[np.ndarray, bool]:
    """Return the pixels of a mask as numbers `(H, W)`, and whether these are colors.

    Of a palette they are the indices.

    Raises:
        ValueError: if the file is not a picture, or its values are not whole numbers.
    """
    try:
        with without_limit(), Image.open(path) as file:
            mode = file.mode
            pixels = np.asarray(file) if mode in GRAY else np.asarray(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"the mask {printable(str(path))} cannot be read ({error}); replace it") from error
    if mode not in GRAY and mode not in COLORED:
        raise ValueError(f"the mask {printable(str(path))} holds fractions (mode {mode}); save classes as PNG indices")
    if mode in GRAY:
        return pixels.astype(np.int64), False
    red, green, blue = pixels.astype(np.int64).transpose(2, 0, 1)
    return red << 16 | green << 8 | blue, True


def content_of(path: Path) -> MaskContent:
    """Return size and values of a mask; a file that has not changed is read once."""
    status = path.stat()
    return _content_of(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1_000_000)
def _content_of(path: Path, changed: int, size: int) -> MaskContent:
    pixels, colored = read_pixels(path)
    values, counts = np.unique(pixels, return_counts=True)
    height, width = pixels.shape
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return MaskContent((height, width), colored, found)


def require_exact(path: Path) -> None:
    """Raise for a mask whose compression changes values, where these say which classes there are.

    Raises:
        ValueError: with the remedy.
    """
    if path.suffix.lower() in LOSSY:
        raise ValueError(
            f"the mask {printable(str(path))} is a JPEG file, whose compression changes values, so that the classes "
            "cannot be told from them; save masks as PNG, or list the classes by --classes FILE"
        )


def require_indices(path: Path, content: MaskContent) -> None:
    """Raise unless a mask holds indices of classes.

    Raises:
        ValueError: naming the file and the remedy.
    """
    if content.colored and not all(_is_gray(color) for color in content.counts):
        raise ValueError(
            f"the mask {printable(str(path))} is in colors, and no table says which classes they are: give --classes "
            "FILE, a CSV file of rows `name,index,color`"
        )
    low, high = min(content.indices()), max(content.indices())
    if low < 0 or high > LARGEST_VALUE:
        raise ValueError(f"the mask {printable(str(path))} holds values from {low} to {high}; expected 0 to 65535")


def class_counts(path: Path, content: MaskContent, table: ClassTable) -> dict[int, int]:
    """Return the number of pixels of each index in the table; those of the ignored one are left out.

    Raises:
        ValueError: naming the file, values or colors that are not in the table, and the remedy.
    """
    if content.colored and table.colored:
        by_color = {_number(color): value for color, value in zip(table.colors, table.values, strict=True)}
        void = {_number(color) for color in table.ignored_colors}
        strange = [color for color in content.counts if color not in by_color and color not in void]
        if strange:
            shown = ", ".join(f"#{color:06x} ({content.counts[color]} pixels)" for color in strange[:4])
            raise ValueError(
                f"the mask {printable(str(path))} has {counted(len(strange), 'color')} that "
                f"{verb(len(strange), 'are')} not in the table of classes: "
                f"{shown}; add them to --classes (with the index {table.ignore} to ignore them), or save masks as PNG "
                "rather than as JPEG, which changes colors"
            )
        return {by_color[color]: count for color, count in content.counts.items() if color in by_color}
    require_indices(path, content)
    indices = content.indices()
    table.require_known(indices, path, "mask", "pixels")
    return {value: count for value, count in indices.items() if value != table.ignore}


def read_mask(mask: Path | DrawnMask, table: ClassTable) -> np.ndarray:
    """Return the number of each pixel's class `(H, W)`, uint8, 255 for none; values have been checked.

    Raises:
        ValueError: if the file cannot be read any more.
    """
    if isinstance(mask, DrawnMask):
        return mask.numbers(table)
    pixels, colored = read_pixels(mask)
    if colored and table.colored:
        keys = np.array([_number(color) for color in table.colors])
        order = keys.argsort()
        places = np.searchsorted(keys[order], pixels).clip(0, len(keys) - 1)
        found = keys[order][places] == pixels
        values = np.array(table.values)[order][places]
        return np.where(found, table.numbers_of(values), 255).astype(np.uint8)
    return table.numbers_of((pixels & 255 if colored else pixels).clip(0, LARGEST_VALUE))


def _is_gray(color: int) -> bool:
    return color >> 16 == color >> 8 & 255 == color & 255


def _number(color: tuple[int, int, int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]
