"""Decode files with Pillow, and bring what it returns into one form."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, features
from PIL.ImageFile import StubImageFile
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from ..config import FileConfig
from .arrays import FULL_SCALE, to_pixels, with_gaps, without_data
from .colors import TURNED, to_channels
from .encoded import UnreadableImage, require_pixels

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels."""

UNDECODABLE = {"EPS", "FPX", "IPTC", "MIC", "MPEG", "WMF"}
"""Formats that Pillow recognizes and cannot decode by itself, beside those that are stubs; EPS starts Ghostscript."""

CODECS = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""Formats that Pillow decodes if it was built with a library."""

WHOLE = 2**26
"""Bytes of a file that may be read whatever the size of its image: 64 MiB."""

BYTES_OF_A_PIXEL = 32
"""Bytes that may be read for each pixel beyond that."""


BYTES_OF_A_READ = 256
"""Bytes that each reading counts as, at least: decoders that look for a mark take one at a time."""


class LargeFile(io.BufferedReader):
    """Read a file whose size tells nothing of its image: no more of it than the image can need.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._left = WHOLE

    def allow(self, pixels: int) -> None:
        """Allow to read what an image of so many pixels needs."""
        self._left += BYTES_OF_A_PIXEL * pixels

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes.

        Raises:
            UnreadableImage: if they are more than may be read.
        """
        content = super().read(self._left + 1 if size is None or not 0 <= size <= self._left else size)
        self._left -= max(BYTES_OF_A_READ, len(content))
        if self._left < 0:
            raise UnreadableImage("the file is larger than the image that its header names can be")
        return content

    def __del__(self) -> None:
        """Close the file, as Pillow does not: images are opened and left in several places."""
        self.close()


@cache
def decodable_formats() -> tuple[str, ...]:
    """Return the names of the formats that Pillow decodes by itself, in the order in which it tries them."""
    Image.init()
    missing = {kind for kind, codec in CODECS.items() if not features.check(codec)}
    return tuple(kind for kind in Image.ID if kind not in UNDECODABLE | missing and not _is_stub(kind))


def _is_stub(kind: str) -> bool:
    """Return whether Pillow needs a handler of the user's to decode a format (HDF5, GRIB, BUFR)."""
    factory = Image.OPEN[kind][0]
    return isinstance(factory, type) and issubclass(factory, StubImageFile)


def open_with_pillow(content: Path | bytes, files: FileConfig) -> Image.Image:
    """Open a file, read its header, and hold its size against the project's own limit instead of Pillow's.

    Files of formats for which Pillow starts another program are not recognized, whatever their name.

    Raises:
        UnreadableImage: if the image has too many pixels, or a large file is none.
    """
    large = LargeFile(content) if isinstance(content, Path) and content.stat().st_size > WHOLE else None
    with without_limit():
        named = io.BytesIO(content) if isinstance(content, bytes) else content
        file = Image.open(large or named, formats=decodable_formats())
    file.filename = ""  # files with a name may be mapped into memory, and are then not turned upright
    try:
        require_pixels(file.height, file.width, files)
    except UnreadableImage:
        file.close()
        raise
    if large is not None:
        large.allow(file.height * file.width)
    return file


@contextmanager
def without_limit() -> Iterator[None]:
    """Suspend Pillow's limit of pixels, a setting of the process."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def decode_with_pillow(file: Image.Image, channels: int, reduction: int = 1, missing: Sequence[float] = ()) -> Tensor:
    """Decode an opened file to an upright image `(channels, H, W)`.

    A JPEG file is decoded at a fraction of its size, from fewer coefficients of each block of 8 x 8 pixels.

    Args:
        file: the file.
        channels: 1, 3 or 4.
        reduction: 1, 2, 4 or 8.
        missing: values of pixels without data, in the file's own numbers: of a palette its indices.

    Returns:
        As :meth:`EncodedImage.decode` does.
    """
    if isinstance(file, JpegImageFile) and reduction > 1 and _may_reduce(file, reduction):
        file.draft(None, (file.width // reduction, file.height // reduction))
    with without_limit():
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_high_bit_depth(image, channels, file.info.get("transparency"), missing)
    converted = _to_channels(image, channels)
    return with_gaps(converted, without_data(_own_colors(image), missing)) if missing else converted


def convert_bytes(bands: np.ndarray, mode: str, channels: int) -> Tensor:
    """Convert the bands `(bands, H, W)` of an image of 8 bits to 1, 3 or 4 channels, uint8.

    Args:
        bands: of the file.
        mode: what they are: L, RGB, or with opacity LA, RGBA, or RGBa where colors are multiplied by it.
        channels: 1, 3 or 4.
    """
    planes = [Image.fromarray(np.ascontiguousarray(band)) for band in bands]
    return _to_channels(planes[0] if len(planes) == 1 else Image.merge(mode, planes), channels)


def upright_size(file: Image.Image) -> tuple[int, int]:
    """Return height and width of an opened file's upright image."""
    return file.size if _orientation(file) in TURNED else file.size[::-1]


def header_size(path: Path) -> tuple[int, int] | None:
    """Return height and width of a file's upright image, by its header; None if Pillow does not read it."""
    try:
        with without_limit(), Image.open(path) as file:
            return upright_size(file)
    except (OSError, SyntaxError, ValueError):
        return None


def _may_reduce(file: JpegImageFile, reduction: int) -> bool:
    # Turned round, a last pixel that stands for less than the others would come first.
    return _orientation(file) == 1 or not any(side % reduction for side in file.size)


def _orientation(file: Image.Image) -> int:
    return int(file.getexif().get(ExifTags.Base.Orientation, 1))


def _to_channels(image: Image.Image, channels: int) -> Tensor:
    pixels = np.array(_to_mode(image, MODES[channels]))
    return torch.from_numpy(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def _own_colors(image: Image.Image) -> np.ndarray:
    """Return what an image holds before it is converted, `(bands, H, W)`, without its opacity."""
    held = np.array(image)
    bands = held[None] if held.ndim == 2 else held.transpose(2, 0, 1)
    return bands[:-1] if image.mode.endswith(("A", "a")) else bands


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("La", "RGBa"):  # colors multiplied by the opacity
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _from_high_bit_depth(image: Image.Image, channels: int, key: Any, missing: Sequence[float]) -> Tensor:
    """Convert an image of one channel of more than 8 bits, which Pillow's own conversion would clip.

    Args:
        image: gray, integers from 0 to 65535 or floating-point numbers.
        channels: 1, 3 or 4.
        key: the value that is transparent, if there is one.
        missing: values of pixels without data.
    """
    pixels = np.array(image)[None]
    if image.mode != "F":
        if pixels.size and (pixels.min() < 0 or pixels.max() > FULL_SCALE):
            raise UnreadableImage(
                f"expected integers from 0 to {FULL_SCALE}, got values from {pixels.min()} to {pixels.max()}"
            )
        pixels = pixels.astype(np.uint16)
    opacity = torch.from_numpy(pixels != key).float() if isinstance(key, int) else None
    return to_channels(to_pixels(pixels, missing), opacity, channels)
