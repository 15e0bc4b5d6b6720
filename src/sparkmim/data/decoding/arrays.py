"""Arrays of numbers as images: what their values stand for, and which of them have no data; .npy and .npz files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import DEFAULT_FILES, FileConfig
from .encoded import CHANNELS, UnreadableImage, require_pixels
from .headers import NUMBERS, npy_header, opened_npz

FULL_SCALE = 65535
"""The largest value of a 16-bit image."""


class NoData(UnreadableImage):
    """An image without any pixel with data."""

    def __init__(self) -> None:
        super().__init__("no pixel has data: all are NaN, or the value that stands for none")


NPY, NPZ = b"\x93NUMPY", b"PK\x03\x04"
"""First bytes of a file."""

IMAGE = "image"
"""The array of an .npz file that is read where it holds several."""


def decode_npy(content: Path | bytes, channels: int, files: FileConfig) -> Tensor:
    """Decode an .npy file, given by its path or its bytes, to `(channels, H, W)`, see :func:`array_to_image`."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        header = npy_header(file, size)
        header.require_numbers()
        require_pixels(header.size // channels, 1, files)
        return array_to_image(np.load(file, allow_pickle=False), channels, files)


def decode_npz(content: Path | bytes, channels: int, files: FileConfig) -> Tensor:
    """Decode the only array of an .npz file, or the one named `image`.

    Raises:
        UnreadableImage: if it has none, or several without one of that name.
    """
    with opened_npz(content) as archive:
        names = archive.names
        chosen = names[0] if len(names) == 1 else IMAGE
        if chosen not in names:
            found = ", ".join(names[:4]) or "none"
            raise UnreadableImage(f"expected one array, or one named {IMAGE!r} among several, got {found}")
        require_pixels(archive.header(chosen).size // channels, 1, files)
        return array_to_image(archive.array(chosen), channels, files)


def array_to_image(array: np.ndarray, channels: int, files: FileConfig = DEFAULT_FILES) -> Tensor:
    """Convert an array to an image.

    Args:
        array: `(channels, H, W)`; or, if only that fits, `(H, W, channels)`; or one channel, repeated for each:
            `(H, W)`, `(1, H, W)` or `(H, W, 1)`.
        channels: the number of channels expected.
        files: names the value of pixels without data.

    Returns:
        `(channels, H, W)`, see :func:`to_pixels`.

    Raises:
        UnreadableImage: if the shape does not fit, or as :func:`to_pixels` does.
    """
    shape = array.shape
    if array.ndim == 3 and shape[0] != channels:
        if shape[2] == channels:
            array = array.transpose(2, 0, 1)
        elif 1 in (shape[0], shape[2]):
            array = array[0] if shape[0] == 1 else array[..., 0]
    planes = array[None] if array.ndim == 2 else array
    if planes.ndim != 3 or len(planes) not in (1, channels) or 0 in planes.shape:
        raise UnreadableImage(f"expected an array of {channels} channels, got one of shape {shape}; {CHANNELS}")
    return to_pixels(planes, () if files.nodata is None else (files.nodata,)).expand(channels, -1, -1).contiguous()


def to_pixels(planes: np.ndarray, missing: Sequence[float] = ()) -> Tensor:
    """Convert numbers of any type to pixels, on one scale for each type.

    Args:
        planes: of any shape.
        missing: values that stand for no data, beside NaN; those that the type cannot hold do not occur.

    Returns:
        uint8 unchanged if every pixel has data. Otherwise float32, NaN where there is no data: uint8 with 255 as 1,
        uint16 with 65535 as 1, all other types unscaled.

    Raises:
        UnreadableImage: if values are not real numbers or are infinite.
        NoData: if no pixel has data.
    """
    if planes.dtype.kind not in NUMBERS:
        raise UnreadableImage(f"expected real numbers, got values of type {planes.dtype}")
    empty = without_data(planes, missing)
    if empty is None and planes.dtype == np.uint8:
        return torch.from_numpy(np.array(planes))
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        pixels = planes.astype(np.float32)
    if planes.dtype.kind == "u" and planes.dtype.itemsize <= 2:
        pixels /= 255 if planes.dtype.itemsize == 1 else FULL_SCALE
    if empty is not None:
        pixels[empty] = np.nan
    if planes.dtype.kind == "f":
        if np.isinf(pixels).any():
            raise UnreadableImage("expected finite values or NaN, got infinity")
        empty = np.isnan(pixels)
    if empty is not None and empty.all():
        raise NoData
    return torch.from_numpy(pixels)


def with_gaps(image: Tensor, empty: np.ndarray | None) -> Tensor:
    """Return a converted image of 8 bits with NaN where its file's own colors had no data.

    Args:
        image: `(1, 3 or 4, H, W)`, uint8; a fourth channel is opacity, which is always known.
        empty: `(bands, H, W)`, True where a band has no data, see :func:`without_data`. Where the bands are not the
            image's colors, one of them is enough.

    Returns:
        The image itself if every pixel has data, otherwise float32 with 255 as 1.

    Raises:
        NoData: if no pixel has data.
    """
    if empty is None:
        return image
    colors = min(len(image), 3)
    where = torch.from_numpy(empty if len(empty) == colors else empty.any(0, keepdims=True))
    if where.all():
        raise NoData
    pixels = image.float() / 255
    pixels[:colors] = pixels[:colors].masked_fill(where, math.nan)
    return pixels


def without_data(planes: np.ndarray, missing: Sequence[float]) -> np.ndarray | None:
    """Return where values stand for no data; None if nowhere, NaN aside."""
    found = None
    for value in missing:
        with np.errstate(all="ignore"):
            held = np.array(value).astype(planes.dtype)
        exact = planes.dtype.kind == "f" or held == value
        if not exact or math.isnan(value):
            continue
        here = planes == held
        if here.any():
            found = here if found is None else found | here
    return found
