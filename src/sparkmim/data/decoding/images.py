"""Decode a file of any supported format, chosen by its extension, its first bytes and the number of channels."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

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

HOLD_ARRAYS = (NPY, NPZ, *tiff_pages.START)
"""First bytes of files that are read as far as they are needed, and all others as a whole."""

ARRAYS = {".npy": NPY, ".npz": NPZ, ".tif": tiff_pages.START, ".tiff": tiff_pages.START}
"""First bytes of files that hold arrays, by extension."""


class Content(NamedTuple):
    """What is known of a file after it was opened once.

    Attributes:
        start: its first bytes.
        length: the number of its bytes.
        data: all of them; None if they are read as far as they are needed.
    """

    start: bytes
    length: int
    data: bytes | None


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

    def __init__(self, content: str | Path | bytes, name: str | None = None) -> None:
        if name is None:
            if isinstance(content, bytes):
                raise TypeError("expected the file's name along with its bytes, for messages")
            name = os.fspath(content)
        self._content = content
        self._extension = os.path.splitext(name)[1].lower()

    _looked: Content | None = None
    _measured: tuple[int, int] | None = None
    _to_measure = True
    _opened: Image.Image | None = None

    def images(self, channels: int) -> int:
        """Return the number of images in a TIFF file, 1 in all others."""
        if self.files.pages != "images":
            return 1
        with Unreadable(self):
            is_tiff = self._look().start.startswith(tiff_pages.START)
            return tiff_pages.count_images(self._where(), channels) if is_tiff else 1

    def size(self, channels: int) -> tuple[int, int] | None:
        """Return height and width of JPEG files, the only ones that are decoded at a fraction of their size."""
        with Unreadable(self):
            start, _, data = self._look()
            if start.startswith(HOLD_ARRAYS):
                return None
            self._require_picture(channels)
            if not start.startswith(jpeg.START):
                return None
            size = self._plain_jpeg(data) if channels == 3 else None
            if size is not None:
                return size
            self._opened = open_with_pillow(self._where(), self.files)
            return upright_size(self._opened) if isinstance(self._opened, JpegImageFile) else None

    def decode(self, channels: int, reduction: int = 1) -> Tensor:
        """Decode the file, see :meth:`EncodedImage.decode`."""
        with Unreadable(self):
            start, _, data = self._look()
            if start.startswith(HOLD_ARRAYS):
                if start.startswith(tiff_pages.START):
                    return decode_tiff(self._where(), channels, self.files, self.page)
                read = decode_npz if start.startswith(NPZ) else decode_npy
                return read(self._where(), channels, self.files)
            self._require_picture(channels)
            missing = () if self.files.nodata is None else (self.files.nodata,)
            size = self._plain_jpeg(data) if channels == 3 else None
            if size is not None and data is not None:
                pixels = decode_jpeg(data, size, reduction)
                if pixels is not None:
                    return to_pixels(pixels.numpy(), missing) if missing else pixels
            if is_deep_color(start):
                return decode_deep_color(self._where(), start, channels, self.files, missing)
            opened, self._opened = self._opened, None  # Pillow decodes it once
            with opened or open_with_pillow(self._where(), self.files) as file:
                by = levels_apart(start)
                if by > 1 and "transparency" in file.info:  # which Pillow leaves as the file has it
                    file.info["transparency"] *= by
                return decode_with_pillow(file, channels, reduction, [by * value for value in missing])

    def decode_part(self, channels: int, choose: ChooseBox) -> Tensor:
        """Decode a part of the file, see :meth:`EncodedImage.decode_part`: of TIFF files no more than its tiles."""
        with Unreadable(self):
            if self._look().start.startswith(tiff_pages.START):
                return decode_tiff_part(self._where(), channels, self.files, self.page, choose)
        return super().decode_part(channels, choose)

    def read(self) -> bytes:
        """Return the content of the file.

        Raises:
            UnreadableImage: if it cannot be read.
        """
        with Unreadable(self):
            return self._look(whole=True).data or b""

    @property
    def length(self) -> int:
        """Return the number of bytes in the file."""
        return self._look().length

    def _require_picture(self, channels: int) -> None:
        """Raise if pictures have no such number of channels.

        Raises:
            UnreadableImage: naming those that may.
        """
        if channels not in MODES:
            raise UnreadableImage(f"a {self._extension} file has no {channels} channels; .npy and .tiff files may")

    def _where(self) -> Path | bytes:
        """Return the bytes of the file if all were read, otherwise its path."""
        content = self._content
        if isinstance(content, bytes):
            return content
        data = self._look().data
        return Path(content) if data is None else data

    def _plain_jpeg(self, data: bytes | None) -> tuple[int, int] | None:
        """Return height and width of a JPEG file that Pillow is not needed for; None for all others."""
        if self._to_measure:
            size = None if data is None or len(data) > WHOLE else jpeg_size(data)
            if size is not None:
                require_pixels(*size, self.files)
            self._measured, self._to_measure = size, False
        return self._measured

    def _look(self, *, whole: bool = False) -> Content:
        """Open and read the file, once: arrays and large files, which say little of what they hold, by their start.

        Args:
            whole: read all of it, whatever it is.

        Raises:
            UnreadableImage: for what is not a regular file: a pipe would never end.
        """
        if self._looked is None or (whole and self._looked.data is None):
            content = self._content
            if isinstance(content, bytes):
                self._looked = Content(content[:LONGEST_START], len(content), content)
            else:
                self._looked = _read(content, whole=whole, array=self._extension in ARRAYS)
        return self._looked


class Unreadable:
    """A block in which all that a decoder raises on a broken file becomes :class:`UnreadableImage`.

    Args:
        file: that is decoded.
    """

    def __init__(self, file: EncodedFile) -> None:
        self._file = file

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raise the other error, if there is one."""
        if error is None or isinstance(error, MemoryError | UnreadableImage) or not isinstance(error, Exception):
            return
        what = str(error)
        if isinstance(error, UnidentifiedImageError):  # whose message has the buffer's address, another each time
            what = f"Pillow recognizes no image in these {self._file.length} bytes"
        raise UnreadableImage(f"{type(error).__name__}: {what}") from error


def _read(path: str | Path, *, whole: bool, array: bool) -> Content:
    """Read a file, see :meth:`EncodedFile._look`.

    Args:
        path: of the file.
        whole: read all of it, whatever it is.
        array: it may be one of those that are read as far as they are needed.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage("expected a regular file, got a folder, pipe, socket or device")
    length = status.st_size
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        if not whole and (array or length > WHOLE):
            data = os.read(file, LONGEST_START)
            if length > WHOLE or data.startswith(HOLD_ARRAYS):
                return Content(data, length, None)
        while piece := os.read(file, min(WHOLE, length + 1 - len(data)) if length >= len(data) else WHOLE):
            data = data + piece if data else piece
            if len(data) == length:
                break
        return Content(data[:LONGEST_START], len(data), data)
    finally:
        os.close(file)


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
