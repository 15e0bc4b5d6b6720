"""An image file as a tensor, whatever its kind: Pillow decodes, this makes one form of it."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from .arrays import FULL_SCALE, KINDS, read_array
from .high_bit_depth import TURNED, decode_deep, to_channels
from .jpeg import Reduction, decode_jpeg

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels that it can give."""


class UnreadableImage(Exception):
    """An image that cannot be decoded: the message says why, and does not name the file."""


def read_image(path: str | Path, channels: int = 3, reduction: Reduction | None = None) -> Tensor:
    """Decode one image file.

    Upright (its EXIF orientation is applied), transparency over white (kept with 4 channels), palettes resolved, CMYK
    and other colour spaces to RGB, the first frame of an animation. Grey images are repeated for 3 channels.

    Args:
        path: anything that Pillow reads; arrays in `.npy` files, and in TIFF files if Pillow has no such number of
            channels, see :func:`~sparkmim.data.decoding.arrays.array_to_image`.
        channels: 1 (grey), 3 (RGB), 4 (RGBA, or a TIFF file's four bands); any other number for arrays.
        reduction: asked once for a JPEG file, with the size of the upright image, by what that may be reduced. The file
            is then decoded at that fraction (sides rounded up), in less time. Other files stay whole.

    Returns:
        `(channels, H, W)`: uint8 in 0..255; for 16-bit PNG and TIFF files float32, 65535 being 1; floating-point images
        as they are, in float32.

    Raises:
        UnreadableImage: if the file cannot be read or decoded in full, or has another number of channels.
    """
    path = Path(path)
    kind = path.suffix.lower()
    quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
    try:
        if kind == ".npy" or (channels not in MODES and kind in KINDS):
            return read_array(path, channels)
        if channels not in MODES:
            raise UnreadableImage(f"a {kind} file has no {channels} channels; .npy and .tiff files may")
        data = path.read_bytes()
        reduction = cache(reduction or (lambda height, width: 1))  # which may be random, and is asked once
        plain = decode_jpeg(data, reduction) if channels == 3 else None
        if plain is not None:
            return plain
        with quiet:
            deep = decode_deep(data, channels)
            return _decode(data, channels, reduction) if deep is None else deep
    except (MemoryError, UnreadableImage):
        raise
    except UnidentifiedImageError as error:  # whose own words are the buffer's address, another each time
        what = f"{len(data)} bytes in which Pillow knows no image"
        raise UnreadableImage(f"{type(error).__name__}: {what}") from error
    except Exception as error:  # whatever a decoder makes of a broken file
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _decode(data: bytes, channels: int, reduction: Reduction) -> Tensor:
    """What Pillow makes of a file."""
    with Image.open(io.BytesIO(data)) as file:
        if isinstance(file, JpegImageFile):
            _reduce(file, reduction)
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return _deep_image(image, channels)
        pixels = torch.from_numpy(np.array(_to_mode(image, MODES[channels])))
        return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def _reduce(file: JpegImageFile, reduction: Reduction) -> None:
    """Have a JPEG file decoded at a fraction of its size, with fewer numbers of each block of 8 x 8 pixels."""
    orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    by = reduction(*(file.size if orientation in TURNED else file.size[::-1]))
    # Turned round, a last pixel that stands for less than the others would come first.
    if by > 1 and (orientation == 1 or not any(side % by for side in file.size)):
        file.draft(None, (file.width // by, file.height // by))


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _deep_image(image: Image.Image, channels: int) -> Tensor:
    """An image of one channel of more than 8 bits; Pillow's own conversion would clip it."""
    pixels = np.array(image)
    if image.mode != "F":
        if pixels.size and (pixels.min() < 0 or pixels.max() > FULL_SCALE):
            raise UnreadableImage(
                f"whole numbers from {pixels.min()} to {pixels.max()} where 0 to {FULL_SCALE} are meant"
            )
        pixels = pixels.astype(np.float32) / FULL_SCALE
    grey = torch.from_numpy(pixels.astype(np.float32, copy=False)).unsqueeze(0)
    if not grey.isfinite().all():
        raise UnreadableImage("values that are not finite")
    return to_channels(grey, None, channels)
