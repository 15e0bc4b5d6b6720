"""Decode colors of 16 bits in PNG files, which Pillow would cut to 8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from ..config import FileConfig
from .arrays import to_pixels
from .colors import to_channels
from .pillow import open_with_pillow

START = b"\x89PNG\r\n\x1a\n"
"""First bytes of a file."""


def is_deep_color(start: bytes) -> bool:
    """Return whether a file is a PNG of 16 bits with colors or opacity; Pillow decodes gray alone in full."""
    return start.startswith(START) and start[24:25] == b"\x10" and start[25:26] != b"\0"


def decode_deep_color(
    content: Path | bytes, start: bytes, channels: int, files: FileConfig, missing: Sequence[float] = ()
) -> Tensor:
    """Decode such a file to an upright image `(channels, H, W)` of 1, 3 or 4 channels, float32, with 65535 as 1."""
    with open_with_pillow(content, files) as file:
        mode, gray, key = file.mode, start[25] == 4, file.info.get("transparency")
    if gray:  # two bytes of gray and two of opacity, read as four channels
        pixels = _raw(content, "RGBA", files).view(">u2").astype(np.uint16)
    else:  # Pillow keeps one byte of each value: the high one, or with the byte order swapped, the low one
        pixels = 256 * _raw(content, f"{mode};16B", files).astype(np.uint16) + _raw(content, f"{mode};16L", files)
    bands = pixels.transpose(2, 0, 1)
    colors = bands if len(bands) == 3 else bands[:-1]
    image = to_pixels(colors, missing)
    if len(bands) != 3:
        return to_channels(image, to_pixels(bands[-1:]), channels)
    # tRNS may name a single transparent color.
    opacity = None if key is None else torch.from_numpy((pixels != key).any(2)).float().unsqueeze(0)
    return to_channels(image, opacity, channels)


def levels_apart(start: bytes) -> int:
    """Return by what Pillow multiplies the numbers of a file: gray of 2 and 4 bits, which it brings to 8."""
    if not start.startswith(START) or start[25:26] != b"\0":
        return 1
    return {2: 85, 4: 17}.get(start[24], 1)


def _raw(content: Path | bytes, raw_mode: str, files: FileConfig) -> np.ndarray:
    """Return the upright image `(H, W, C)` when the file's bytes are read in one of Pillow's raw modes."""
    with open_with_pillow(content, files) as file:
        assert isinstance(file, PngImageFile)
        file.tile = [file.tile[0]._replace(args=raw_mode)]
        return np.array(ImageOps.exif_transpose(file))
