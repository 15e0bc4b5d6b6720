"""The pages of TIFF files: which of them are an image, and whether a file holds what it claims."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from tifffile import COMPRESSION, TiffFile

from ...utils.text import counted
from ..config import FileConfig
from .encoded import UnreadableImage
from .headers import HEADER_OF_A_PAGE, Bounded, bounded, reading_headers

START = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a file."""

LAYOUTS = ("generic", "shaped", "uniform", "imagej", "ome")
"""Kinds of files whose further series are images; those of scanners are thumbnails and labels."""

RATIOS = {COMPRESSION.NONE: 4, COMPRESSION.LZW: 4096, COMPRESSION.ADOBE_DEFLATE: 1100, COMPRESSION.DEFLATE: 1100}
"""By how much files are at most compressed, where that has a limit; by subsampled colors without compression."""

UNLIMITED = (COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.LZMA, COMPRESSION.PACKBITS)
"""Compressions of which tifffile decodes all that a block holds, whatever its size."""

PADDED = 2**20
"""Numbers of a tile that may be larger than its image: those behind the image may be any."""

SPARE_BYTES = 2**16
"""Bytes that a block of such a compression may take beyond twice those of its numbers."""


_SOURCES: WeakKeyDictionary[TiffFile, Bounded] = WeakKeyDictionary()


@contextmanager
def opened(content: Path | bytes, *, complete: bool = True) -> Iterator[TiffFile]:
    """Open a file, whose tags take no more memory than a header may; others that it names are not read.

    Args:
        content: path of the file, or its bytes.
        complete: raise for one that ends before its last page.
    """
    with bounded(content) as source:
        with reading_headers():
            file = TiffFile(source, _multifile=False)
        with file:
            _SOURCES[file] = source
            with source.unbounded():  # a few bytes of each page lead to the next
                pages = len(file.pages)
            source.allow(HEADER_OF_A_PAGE * pages)
            if complete:
                with reading_headers():
                    require_all_pages(file)
            yield file


def reading_pixels(file: TiffFile) -> AbstractContextManager[None]:
    """Return a block in which an opened file is read without the bounds of its header."""
    return _SOURCES[file].unbounded()


def count_images(content: Path | bytes, channels: int) -> int:
    """Return how many images a file holds if its pages are images of their own, those of so many channels together.

    Raises:
        UnreadableImage: if it is cut off, or claims more images than it has bytes.
        ValueError: as tifffile raises it for damaged files.
    """
    with opened(content) as file:
        count = sum(_images_in(part, channels) for part in images_of(file))
        if count > file.filehandle.size:
            raise UnreadableImage(f"it claims {count} pages, and has {file.filehandle.size} bytes")
        return count


def images_of(file: TiffFile) -> list[Any]:
    """Return the series that are images in full size: the first, and others like it.

    Raises:
        UnreadableImage: if one has no height and width.
    """
    with reading_headers():
        parts = _full_size(file)
    for part in parts:
        if not {"Y", "X"} <= set(part.axes):
            raise UnreadableImage(f"expected an image with height and width, got the axes {part.axes} of {part.shape}")
    return parts


def _full_size(file: TiffFile) -> list[Any]:
    series = [part for part in file.series if not part.keyframe.is_reduced and not part.keyframe.is_mask]
    first = (series or list(file.series))[0]
    if first.kind not in LAYOUTS:
        return [first]
    if all((part.axes, part.shape, part.dtype) == (first.axes, first.shape, first.dtype) for part in series):
        return series or [first]
    return [first, *(part for part in series if part is not first)]


def chosen_frames(parts: Sequence[Any], channels: int, files: FileConfig, number: int | None) -> list[tuple[Any, int]]:
    """Return the pages of an image: the series, and the number of the page in it, of each.

    Raises:
        UnreadableImage: if the file holds another number of channels, or no such image.
    """
    if files.pages == "images" and number is None and (held := sum(_images_in(p, channels) for p in parts)) > 1:
        raise UnreadableImage(f"expected one image, got {held}; list the files anew")
    if files.pages != "channels":
        return _numbered(parts, channels, number or 0)
    planes = math.prod(parts[0].shape) // pixels_of(parts[0]) * len(parts)
    if planes == count_axes(parts[0], "S"):
        return [(parts[0], 0)]
    if planes != channels or len({part.shape for part in parts}) > 1:
        raise UnreadableImage(_refusal(planes, channels, parts))
    return [(part, frame) for part in parts for frame in range(frames_in(part))]


def _numbered(parts: Sequence[Any], channels: int, number: int) -> list[tuple[Any, int]]:
    """Return the pages of one of the images that :func:`count_images` counts, likewise."""
    for series in parts:
        held = _images_in(series, channels)
        if number < held:
            break
        number -= held
    else:
        raise UnreadableImage("the file holds fewer images than when it was listed; list the files anew")
    if not count_axes(series, "SC") == channels > count_axes(series, "S"):
        return [(series, number)]
    others = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "SYX"]
    place = iter(np.unravel_index(number, [size for axis, size in others if axis != "C"] or [1]))
    indices = [np.arange(size) if axis == "C" else np.atleast_1d(next(place)) for axis, size in others]
    frames = np.ravel_multi_index(np.ix_(*indices), [size for _, size in others]).reshape(-1)
    return [(series, int(frame)) for frame in frames]


def _images_in(series: Any, channels: int) -> int:
    """Return the number of images in a series: of pages, or of slices whose declared channels are a network's."""
    declared, bands = count_axes(series, "SC"), count_axes(series, "S")
    together = declared if declared == channels > bands else bands
    return math.prod(series.shape) // pixels_of(series) // together


def frames_in(series: Any) -> int:
    """Return the number of pages in a series, or of slices without pages of their own."""
    return math.prod(series.shape) // pixels_of(series) // count_axes(series, "S")


def count_axes(series: Any, names: str) -> int:
    """Return the product of a series' sizes along some axes."""
    return math.prod(size for name, size in zip(series.axes, series.shape, strict=True) if name in names)


def pixels_of(series: Any) -> int:
    """Return the number of pixels of a page."""
    return int(series.keyframe.imagelength * series.keyframe.imagewidth)


def _refusal(planes: int, channels: int, parts: Sequence[Any]) -> str:
    shapes = sorted({part.shape for part in parts})
    declared = count_axes(parts[0], "SC")
    if len(shapes) > 1:
        held = f"{counted(len(parts), 'image')} of different shapes ({' and '.join(map(str, shapes[:2]))})"
    elif planes == declared:
        held = f"{declared} channels on pages of their own"
    else:
        held = f"a stack of {planes} planes ({parts[0].axes} {parts[0].shape})"
    return (
        f"expected {counted(channels, 'channel')}, got {held}; use --pages images for each page as an "
        f"image of its own, --pages first for the first page alone, or a network of {planes} channels (--in-chans "
        "where it is made)"
    )


def require_all_pages(file: TiffFile) -> None:
    """Raise if the file ends before its last page: those that are left would be taken for all.

    Raises:
        UnreadableImage: if the last page that is there names another one beyond the file's end.
    """
    handle, form, last = file.filehandle, file.tiff, file.pages[-1]
    handle.seek(last.offset)
    (tags,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    handle.seek(last.offset + form.tagnosize + tags * form.tagsize)
    (following,) = struct.unpack(form.offsetformat, handle.read(form.offsetsize))
    if following >= handle.size:
        raise UnreadableImage(f"the file is cut off after page {len(file.pages)}")


def require_all_blocks(series: Any, frames: Sequence[int]) -> None:
    """Raise if pages claim more than their tiles or strips hold, before memory is taken for them.

    Blocks of no bytes are missing on purpose (sparse files of GDAL), and stand for zeros.

    Args:
        series: of the pages.
        frames: numbers of the pages in it; those without headers of their own lie behind the first one.

    Raises:
        UnreadableImage: if there are fewer blocks than the size needs, fewer bytes than blocks decode from, or more
            than blocks can need.
    """
    page = series.keyframe
    _require_blocks(page, page)
    for frame in frames:
        own = series.pages[frame] if frame < len(series.pages) else None
        if own is not None and own.dataoffsets and own.dataoffsets is not page.dataoffsets:
            _require_blocks(own, page)


def _require_blocks(own: Any, page: Any) -> None:
    """Raise as :func:`require_all_blocks` does, for a page of the same kind as the first one of its series."""
    needed, sizes, size = math.prod(page.chunked), own.databytecounts, math.prod(page.chunks)
    claim = f"{page.imagelength} x {page.imagewidth} pixels"
    if (there := min(len(own.dataoffsets), len(sizes))) < needed:
        raise UnreadableImage(f"{claim} need {needed} tiles or strips, and the file has {there}")
    held = min(sum(sizes), page.parent.filehandle.size) * RATIOS.get(page.compression, math.inf)
    claimed = (page.size - sizes.count(0) * size) * page.bitspersample // 8
    if claimed > held:
        raise UnreadableImage(f"{claim} need {claimed} bytes, more than the {sum(sizes)} of the file can hold")
    most = SPARE_BYTES + 2 * min(size, max(page.size, PADDED)) * page.bitspersample // 8
    if page.compression in UNLIMITED and max(sizes) > most:
        raise UnreadableImage(f"{size} numbers of a tile or strip cannot need the {max(sizes)} bytes that it claims")
    if any(offset and not held for offset, held in zip(own.dataoffsets, sizes, strict=False)):
        # tifffile would read what follows from places that are not those of its blocks
        own.dataoffsets = tuple(o if s else 0 for o, s in zip(own.dataoffsets, sizes, strict=False))
