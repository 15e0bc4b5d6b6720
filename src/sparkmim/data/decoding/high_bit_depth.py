"""Colours of more than 8 bits, which Pillow would cut to 8, and TIFF files whose bands are no colours."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from tifffile import PHOTOMETRIC, TiffFile
from torch import Tensor

from .arrays import FULL_SCALE, array_to_image

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How files begin."""

PREMULTIPLIED, STRAIGHT = 1, 2
"""What TIFF files call a band of opacity: by which colours are multiplied already, or not."""

TURNED = (5, 6, 7, 8)
"""EXIF orientations by which height and width change places."""

FLIPPED = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""Axes along which an image is to be flipped after that."""

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey, as Pillow has them."""


def decode_deep(data: bytes, channels: int) -> Tensor | None:
    """The upright image `(channels, H, W)` of a PNG or TIFF file of which Pillow would give only a part.

    Args:
        data: the file.
        channels: 1 (grey), 3 (RGB), 4 (RGBA, or the four bands of a TIFF file of which none is opacity).

    Returns:
        float32, 65535 of a 16-bit image being 1; the bands of a TIFF file as
        :func:`~sparkmim.data.decoding.arrays.array_to_image` has them. None for what is left to Pillow: other files,
        grey, colours of 8 bits.

    Raises:
        ValueError: for other numbers of bands and kinds of colours.
    """
    bits, kind = data[24:25], data[25:26]
    if data.startswith(PNG) and bits == b"\x10" and kind != b"\0":  # 0 being grey
        return _decode_png(data, channels)
    return _decode_tiff(data, channels) if data.startswith(TIFF) else None


def to_channels(colours: Tensor, opacity: Tensor | None, channels: int) -> Tensor:
    """An image of 1, 3 or 4 channels from `(1 or 3, H, W)` colours and `(1, H, W)` opacity, both 0 to 1."""
    if channels == 4:
        return torch.cat([colours.expand(3, -1, -1), torch.ones_like(colours[:1]) if opacity is None else opacity])
    if opacity is not None:
        colours = colours * opacity + (1 - opacity)
    if channels == 1 and len(colours) == 3:
        return torch.einsum("chw,c->hw", colours, torch.tensor(LUMA)).unsqueeze(0)
    return colours.expand(channels, -1, -1).contiguous()


def _decode_png(data: bytes, channels: int) -> Tensor:
    with Image.open(io.BytesIO(data)) as file:
        mode, grey, key = file.mode, data[25] == 4, file.info.get("transparency")
    if grey:  # both bytes of grey and of transparency, as if they were four channels
        pixels = _png_bytes(data, "RGBA").view(">u2")
    else:  # Pillow gives one byte of each number: the greater, or if told the other order, the lesser
        pixels = 256 * _png_bytes(data, f"{mode};16B").astype(np.uint16) + _png_bytes(data, f"{mode};16L")
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / FULL_SCALE
    if len(image) != 3:
        return to_channels(image[:-1], image[-1:], channels)
    # The one colour that is transparent, if there is one.
    opacity = None if key is None else torch.from_numpy((pixels != key).any(2)).float().unsqueeze(0)
    return to_channels(image, opacity, channels)


def _png_bytes(data: bytes, layout: str) -> np.ndarray:
    """The upright image `(H, W, C)`, its file's bytes taken for a layout of Pillow's."""
    with Image.open(io.BytesIO(data)) as file:
        file.tile = [file.tile[0]._replace(args=layout)]
        return np.array(ImageOps.exif_transpose(file))


def _decode_tiff(data: bytes, channels: int) -> Tensor | None:
    with TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first
        bands, kind, extra = page.samplesperpixel, page.photometric, page.extrasamples
        colours = {PHOTOMETRIC.RGB: 3, PHOTOMETRIC.MINISBLACK: 1}.get(kind, bands)
        alpha = extra[0] if extra and extra[0] in (STRAIGHT, PREMULTIPLIED) else None
        plain = bands == colours + (alpha is not None)
        if bands == 1 or (page.dtype == np.uint8 and (plain or (colours == 3 and channels < 4))):
            return None
        if kind not in (PHOTOMETRIC.RGB, PHOTOMETRIC.MINISBLACK):
            raise ValueError(f"colours of the kind {kind.name} in {page.dtype}; convert the file to RGB")
        pixels = page.asarray()
        image = array_to_image(pixels.transpose(2, 0, 1) if page.axes == "YXS" else pixels, bands)
        image = _upright(image, page.tags.valueof(ExifTags.Base.Orientation, default=1))
    if bands == channels and alpha is None:
        return image
    shares = page.dtype == np.uint16 or page.dtype.kind == "f"
    if not shares or not (plain or (colours == 3 and channels < 4)):
        raise ValueError(f"{bands} bands of {page.dtype} are no image of {channels} channels; see --in-chans")
    image, opacity = image[:colours], None if alpha is None else image[colours : colours + 1]
    if opacity is not None and alpha == PREMULTIPLIED:
        image = torch.where(opacity > 0, image / opacity, image)
    return to_channels(image, opacity, channels)


def _upright(image: Tensor, orientation: int) -> Tensor:
    image = image.mT if orientation in TURNED else image
    return image.flip(FLIPPED[orientation]) if orientation in FLIPPED else image
