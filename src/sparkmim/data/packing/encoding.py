"""Encode images anew: smaller, as JPEG, or both."""

from __future__ import annotations

import io
from typing import NamedTuple

import torch
from PIL import Image

from ..config import DEFAULT_FILES
from ..decoding.encoded import UnreadableImage
from ..decoding.images import EncodedFile
from ..decoding.jpeg import START as JPEG
from ..decoding.pillow import open_with_pillow

JPEG_QUALITY = 95
"""Quality of JPEG files that are only resized."""

OPAQUE = ("1", "L", "RGB", "CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes of 8 bits without transparency."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Encoded(NamedTuple):
    """The content of a file, and its extension if that is another one than before."""

    content: bytes
    extension: str | None


def encode(content: bytes, name: str, resize: int | None, quality: int | None) -> Encoded:
    """Encode an image anew.

    What is not a picture of 8 bits (arrays, TIFF files, deeper pictures) and what cannot be decoded is returned as it
    is, and so are pictures that are small enough already, if no quality is asked for.

    Args:
        content: of the file.
        name: of the file.
        resize: most pixels of the shorter side; as many as there are if None.
        quality: of JPEG, 1 to 100: all pictures become JPEG. If None, JPEG files stay JPEG, and others become PNG.
    """
    try:
        image = _decoded(content, name, opaque=quality is not None)
    except UnreadableImage:
        image = None
    small = image is None or resize is None or min(image.size) <= resize
    if image is None or (small and quality is None):
        return Encoded(content, None)
    if not small:
        assert resize is not None
        width, height = (max(1, round(side * resize / min(image.size))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if quality is not None or content.startswith(JPEG):
        image.convert("RGB" if image.mode == "RGBA" else image.mode).save(file, "JPEG", quality=quality or JPEG_QUALITY)
        return Encoded(file.getvalue(), ".jpg")
    image.save(file, "PNG")
    return Encoded(file.getvalue(), ".png")


def _decoded(content: bytes, name: str, *, opaque: bool) -> Image.Image | None:
    """Return the upright picture, over white if it is to be opaque; None for what is not a picture of 8 bits."""
    file = EncodedFile(content, name)
    try:
        with open_with_pillow(content, DEFAULT_FILES) as opened:
            mode, frames, kind = opened.mode, getattr(opened, "n_frames", 1), opened.format
            clear = "transparency" in opened.info or mode in ("RGBA", "LA", "PA", "RGBa", "La")
    except (OSError, SyntaxError, ValueError, UnreadableImage):
        return None
    if kind == "TIFF" or frames > 1 or not (mode in OPAQUE or clear or mode == "P"):
        return None
    channels = 4 if clear and not opaque else 1 if mode in ("1", "L") and not clear else 3
    pixels = file.decode(channels)
    if pixels.dtype != torch.uint8:
        return None
    array = pixels.permute(1, 2, 0).squeeze(2) if channels == 1 else pixels.permute(1, 2, 0)
    return Image.fromarray(array.contiguous().numpy(), MODES[channels])
