"""Decode a file of any supported format, chosen by its extension, its first bytes and the number of channels."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from .arrays import EXTENSIONS, decode_array
from .encoded import EncodedImage, UnreadableImage
from .high_bit_depth import decode_high_bit_depth
from .jpeg import START, decode_jpeg, jpeg_size
from .pillow import MODES, decode_with_pillow, upright_size


class EncodedFile(EncodedImage):
    """An image file, on disk or in memory.

    Decoded images are upright (EXIF orientation applied). Transparency lies over white (kept with 4 channels), palettes
    are resolved, CMYK and other color spaces are converted to RGB, and the first frame of an animation is taken. Gray
    images are repeated for 3 channels. JPEG files can be decoded at a fraction of their size.

    Args:
        content: path of the file, or its bytes. Formats are those that Pillow reads; arrays in `.npy` files, and in
            TIFF files if Pillow has no such number of channels, see
            :func:`~sparkmim.data.decoding.arrays.array_to_image`.
        name: name of the file, whose extension tells arrays from pictures; the path's if not given.
    """

    def __init__(self, content: Path | bytes, name: str | None = None) -> None:
        if name is None and isinstance(content, bytes):
            raise TypeError("expected the file's name along with its bytes: its extension tells the format")
        self._content = content
        self._extension = os.path.splitext(str(content) if name is None else name)[1].lower()
        self._opened: Image.Image | None = None

    def size(self, channels: int) -> tuple[int, int] | None:
        """Return height and width of JPEG files, the only ones that are decoded at a fraction of their size."""
        with self._unreadable():
            if self._is_array(channels) or not self._data.startswith(START):
                return None
            if channels == 3 and self._jpeg_size is not None:
                return self._jpeg_size
            with _ignore_size_warnings():
                self._opened = Image.open(io.BytesIO(self._data))
                return upright_size(self._opened) if isinstance(self._opened, JpegImageFile) else None

    def decode(self, channels: int, reduction: int = 1) -> Tensor:
        """Decode the file, see :meth:`EncodedImage.decode`."""
        with self._unreadable():
            if self._is_array(channels):
                return decode_array(self._content, self._extension, channels)
            if channels == 3 and self._jpeg_size is not None:
                pixels = decode_jpeg(self._data, self._jpeg_size, reduction)
                if pixels is not None:
                    return pixels
            if self._opened is None:
                with _ignore_size_warnings():
                    pixels = decode_high_bit_depth(self._data, channels)
                    if pixels is not None:
                        return pixels
                    self._opened = Image.open(io.BytesIO(self._data))
            opened, self._opened = self._opened, None  # Pillow decodes it once
            with opened:
                return decode_with_pillow(opened, channels, reduction)

    def _is_array(self, channels: int) -> bool:
        if self._extension == ".npy" or (channels not in MODES and self._extension in EXTENSIONS):
            return True
        if channels not in MODES:
            raise UnreadableImage(f"a {self._extension} file has no {channels} channels; .npy and .tiff files may")
        return False

    @contextmanager
    def _unreadable(self) -> Iterator[None]:
        """Raise :class:`UnreadableImage` for whatever a decoder raises on a broken file."""
        try:
            yield
        except (MemoryError, UnreadableImage):
            raise
        except UnidentifiedImageError as error:  # whose message has the buffer's address, another each time
            what = f"Pillow recognizes no image in these {len(self._data)} bytes"
            raise UnreadableImage(f"{type(error).__name__}: {what}") from error
        except Exception as error:
            raise UnreadableImage(f"{type(error).__name__}: {error}") from error

    @cached_property
    def _data(self) -> bytes:
        return self._content if isinstance(self._content, bytes) else self._content.read_bytes()

    @cached_property
    def _jpeg_size(self) -> tuple[int, int] | None:
        return jpeg_size(self._data)


def _ignore_size_warnings() -> warnings.catch_warnings[None]:
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)


def read_image(path: str | Path, channels: int = 3) -> Tensor:
    """Decode one image file, see :class:`EncodedFile`.

    Returns:
        `(channels, H, W)`: uint8 in 0 to 255, or float32 for images of more than 8 bits.

    Raises:
        UnreadableImage: if the file cannot be read or decoded in full, or has another number of channels.
    """
    return EncodedFile(Path(path)).decode(channels)


def image_extensions() -> set[str]:
    """Return the extensions of files that can be decoded, such as `.png`."""
    Image.init()
    pictures = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return pictures | set(EXTENSIONS)
