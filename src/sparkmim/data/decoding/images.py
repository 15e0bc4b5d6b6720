"""Decode a file of any supported format, chosen by its extension, its first bytes and the number of channels."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from . import jpeg, tiff_pages
from .arrays import NPY, NPZ, decode_npy, decode_npz, to_pixels
from .encoded import ChooseBox, EncodedImage, UnreadableImage, require_pixels
from .jpeg import decode_jpeg, jpeg_size
from .pillow import MODES, WHOLE, decodable_formats, decode_with_pillow, open_with_pillow, upright_size
from .png import decode_deep_color, is_deep_color, levels_apart
from .tiff import decode_tiff, decode_tiff_part

ARRAYS = {".npy": NPY, ".npz": NPZ, ".tif": tiff_pages.START, ".tiff": tiff_pages.START}
"""First bytes of files that hold arrays, by extension."""


class EncodedFile(EncodedImage):
    """An image file, on disk or in memory.

    The first bytes tell the format: a TIFF file, an array (.npy, .npz), or one that Pillow reads. Decoded images are
    upright (EXIF orientation applied). Transparency lies over white (kept with 4 channels), palettes are resolved, CMYK
    and other color spaces are converted to RGB without their ICC profile, and the first frame of an animation is taken.
    Gray images are repeated for 3 channels. JPEG files can be decoded at a fraction of their size.

    Args:
        content: path of the file, or its bytes.
        name: name of the file, for messages; the path's if not given.
    """

    def __init__(self, content: Path | bytes, name: str | None = None) -> None:
        if name is None and isinstance(content, bytes):
            raise TypeError("expected the file's name along with its bytes, for messages")
        self._content = content
        self._extension = os.path.splitext(str(content) if name is None else name)[1].lower()
        self._opened: Image.Image | None = None

    def images(self, channels: int) -> int:
        """Return the number of images in a TIFF file, 1 in all others."""
        if self.files.pages != "images":
            return 1
        with self._unreadable():
            return (
                tiff_pages.count_images(self._content, channels)
                if self._first_bytes().startswith(tiff_pages.START)
                else 1
            )

    def size(self, channels: int) -> tuple[int, int] | None:
        """Return height and width of JPEG files, the only ones that are decoded at a fraction of their size."""
        with self._unreadable():
            if self._holds_array:
                return None
            picture = self._picture(channels)
            if not self._start.startswith(jpeg.START):
                return None
            if channels == 3 and self._jpeg_size is not None:
                return self._jpeg_size
            self._opened = open_with_pillow(picture, self.files)
            return upright_size(self._opened) if isinstance(self._opened, JpegImageFile) else None

    def decode(self, channels: int, reduction: int = 1) -> Tensor:
        """Decode the file, see :meth:`EncodedImage.decode`."""
        with self._unreadable():
            if self._start.startswith(tiff_pages.START):
                return decode_tiff(self._content, channels, self.files, self.page)
            if self._holds_array:
                read = decode_npz if self._start.startswith(NPZ) else decode_npy
                return read(self._content, channels, self.files)
            picture = self._picture(channels)
            missing = () if self.files.nodata is None else (self.files.nodata,)
            if channels == 3 and self._jpeg_size is not None:
                pixels = decode_jpeg(self._data, self._jpeg_size, reduction)
                if pixels is not None:
                    return to_pixels(pixels.numpy(), missing) if missing else pixels
            if is_deep_color(self._start):
                return decode_deep_color(picture, self._start, channels, self.files, missing)
            opened, self._opened = self._opened, None  # Pillow decodes it once
            with opened or open_with_pillow(picture, self.files) as file:
                by = levels_apart(self._start)
                if by > 1 and "transparency" in file.info:  # which Pillow leaves as the file has it
                    file.info["transparency"] *= by
                return decode_with_pillow(file, channels, reduction, [by * value for value in missing])

    def decode_part(self, channels: int, choose: ChooseBox) -> Tensor:
        """Decode a part of the file, see :meth:`EncodedImage.decode_part`: of TIFF files no more than its tiles."""
        with self._unreadable():
            if self._start.startswith(tiff_pages.START):
                return decode_tiff_part(self._content, channels, self.files, self.page, choose)
        return super().decode_part(channels, choose)

    def read(self) -> bytes:
        """Return the content of the file.

        Raises:
            UnreadableImage: if it cannot be read.
        """
        with self._unreadable():
            return self._data

    def _picture(self, channels: int) -> Path | bytes:
        """Return the bytes of a picture, or the path of a large file, which says little of what it holds.

        Raises:
            UnreadableImage: if pictures have no such number of channels.
        """
        if channels not in MODES:
            raise UnreadableImage(f"a {self._extension} file has no {channels} channels; .npy and .tiff files may")
        return self._content if self._is_large and isinstance(self._content, Path) else self._data

    @contextmanager
    def _unreadable(self) -> Iterator[None]:
        """Raise :class:`UnreadableImage` for whatever a decoder raises on a broken file."""
        try:
            yield
        except (MemoryError, UnreadableImage):
            raise
        except UnidentifiedImageError as error:  # whose message has the buffer's address, another each time
            what = f"Pillow recognizes no image in these {self._bytes} bytes"
            raise UnreadableImage(f"{type(error).__name__}: {what}") from error
        except Exception as error:
            raise UnreadableImage(f"{type(error).__name__}: {error}") from error

    @cached_property
    def _start(self) -> bytes:
        """Return the first bytes of the file; arrays are read as far as they are needed, all others as a whole."""
        first = self._extension in ARRAYS or self._is_large
        return self._first_bytes() if first else self._data[:LONGEST_START]

    @cached_property
    def _status(self) -> os.stat_result:
        return os.stat(self._content)

    @property
    def _bytes(self) -> int:
        return len(self._content) if isinstance(self._content, bytes) else self._status.st_size

    @property
    def _is_large(self) -> bool:
        return self._bytes > WHOLE

    def _first_bytes(self) -> bytes:
        if isinstance(self._content, bytes):
            return self._content[:LONGEST_START]
        self._require_regular()
        with open(self._content, "rb", buffering=0) as file:
            return file.read(LONGEST_START)

    @cached_property
    def _holds_array(self) -> bool:
        return self._start.startswith((NPY, NPZ, *tiff_pages.START))

    @cached_property
    def _data(self) -> bytes:
        if isinstance(self._content, bytes):
            return self._content
        self._require_regular()
        with open(self._content, "rb", buffering=0) as file:
            return file.readall()

    def _require_regular(self) -> None:
        """Raise for what is not a regular file: a pipe would never end.

        Raises:
            UnreadableImage: if it is not.
        """
        if not stat.S_ISREG(self._status.st_mode):
            raise UnreadableImage("expected a regular file, got a folder, pipe, socket or device")

    @cached_property
    def _jpeg_size(self) -> tuple[int, int] | None:
        size = None if self._is_large else jpeg_size(self._data)
        if size is not None:
            require_pixels(*size, self.files)
        return size


LONGEST_START = 32
"""Bytes that tell an array from a picture, and the depth of a PNG file."""


def read_image(path: str | Path, channels: int = 3) -> Tensor:
    """Decode one image file, see :class:`EncodedFile`.

    Returns:
        `(channels, H, W)`, see :meth:`EncodedImage.decode`.

    Raises:
        UnreadableImage: if the file cannot be read or decoded in full, or has another number of channels.
    """
    return EncodedFile(Path(path)).decode(channels)


def image_extensions() -> set[str]:
    """Return the extensions of files that can be decoded, such as `.png`."""
    kinds = decodable_formats()
    pictures = {extension for extension, kind in Image.registered_extensions().items() if kind in kinds}
    return pictures | set(ARRAYS)
