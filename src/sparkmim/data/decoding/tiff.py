"""Decode TIFF files by their axes: bands, pages, series, ImageJ's and OME's dimensions, and their tags."""

from __future__ import annotations

import io
import logging
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile
from torch import Tensor

from ...utils.text import counted
from ..config import FileConfig
from .arrays import NoData, to_pixels, with_gaps, without_data
from .colors import FLIPPED, TURNED, as_stored, as_upright, to_channels, upright, upright_size
from .encoded import CHANNELS, Box, ChooseBox, TooManyPixels, UnreadableImage, require_pixels
from .pillow import MODES, convert_bytes, decode_with_pillow, open_with_pillow
from .tiff_blocks import NODATA, can_copy, copy_blocks

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it says of damaged files is in their errors

START = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a file."""

PREMULTIPLIED, STRAIGHT = 1, 2
"""Codes for a band of opacity, by which the colors are multiplied already, or not."""

GRAY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)

LAYOUTS = ("generic", "shaped", "uniform", "imagej", "ome")
"""Kinds of files whose further series are images; those of scanners are thumbnails and labels."""

SMALL = 2**19
"""Pixels of an image that takes less time as a whole than in part."""

MANY_BANDS = 4
"""Bands of a file that are read to take fewer of them, at least."""


RATIOS = {COMPRESSION.NONE: 4, COMPRESSION.LZW: 4096, COMPRESSION.ADOBE_DEFLATE: 1100, COMPRESSION.DEFLATE: 1100}
"""By how much files are at most compressed, where that has a limit; by subsampled colors without compression."""


class MissingCodec(UnreadableImage):
    """A file that needs the package imagecodecs."""


def decode_tiff(content: Path | bytes, channels: int, files: FileConfig, number: int | None = None) -> Tensor:
    """Decode a file to an upright image `(channels, H, W)`, see :meth:`EncodedImage.decode`.

    Bands are those of a page, interleaved or planar, and the channels that ImageJ and OME declare. Pages of any other
    kind (slices, times, pages without a name) are channels if they are as many as the network takes. Reduced copies
    (pyramids, thumbnails) and masks are passed over, and other files that an OME file names are not read.

    Args:
        content: path of the file, or its bytes.
        channels: of the image.
        files: how files are read.
        number: of the image in a file of several, where pages are images.

    Raises:
        UnreadableImage: for other numbers of bands and pages, and color spaces that are not read.
        ValueError: as tifffile raises it for damaged files.
    """
    with _opened(content) as file:
        frames = _chosen(images_of(file), channels, files, number)
        try:
            return _decode_frames(content, frames, channels, files)
        except TooManyPixels as error:
            if not can_copy(frames):
                raise
            by_parts = "with --crop native, pretraining, classification and embeddings read only windows of its tiles"
            raise TooManyPixels(f"{error}; {by_parts}") from error


def decode_tiff_part(
    content: Path | bytes, channels: int, files: FileConfig, number: int | None, choose: ChooseBox
) -> Tensor:
    """Decode a part of an image, see :meth:`EncodedImage.decode_part`: only tiles or strips that it touches.

    Files whose numbers are laid out in another way are decoded as a whole, as are small ones, which takes less time.
    """
    with _opened(content) as file:
        frames = _chosen(images_of(file), channels, files, number)
        page = frames[0][0].keyframe
        stored, orientation = (page.imagelength, page.imagewidth), _orientation(page)
        size = upright_size(*stored, orientation)
        box = choose(*size)
        pixels = math.prod(stored)
        most = files.max_pixels if pixels > files.max_pixels else pixels // 2
        copied = None
        if pixels > min(files.max_pixels, SMALL) and can_copy(frames):
            for series in {id(series): series for series, _ in frames}.values():
                require_all_blocks(series.keyframe)
            copied = copy_blocks(frames, as_stored(box, size, orientation), most)
        if copied is None:
            return box.of(_decode_frames(content, frames, channels, files))
    copy, held = copied
    with TiffFile(io.BytesIO(copy)) as file:
        frames = [(series, frame) for series in images_of(file) for frame in range(_frames_in(series))]
        try:
            image = _decode_frames(copy, frames, channels, files)
        except NoData:
            return torch.full((channels, box.height, box.width), math.nan)
    there = as_upright(held, size, orientation)
    return Box(box.top - there.top, box.left - there.left, box.bottom - there.top, box.right - there.left).of(image)


def _chosen(parts: Sequence[Any], channels: int, files: FileConfig, number: int | None) -> list[tuple[Any, int]]:
    """Return the pages of an image: the series, and the number of the page in it, of each.

    Raises:
        UnreadableImage: if the file holds another number of channels, or no such image.
    """
    if files.pages == "images" and number is None and (held := sum(_images_in(p, channels) for p in parts)) > 1:
        raise UnreadableImage(f"expected one image, got {held}; list the files anew")
    if files.pages != "channels":
        return _numbered(parts, channels, number or 0)
    planes = math.prod(parts[0].shape) // _pixels(parts[0]) * len(parts)
    if planes == _count(parts[0], "S"):
        return [(parts[0], 0)]
    if planes != channels or len({part.shape for part in parts}) > 1:
        raise UnreadableImage(_refusal(planes, channels, parts))
    return [(part, frame) for part in parts for frame in range(_frames_in(part))]


def _numbered(parts: Sequence[Any], channels: int, number: int) -> list[tuple[Any, int]]:
    """Return the pages of one of the images that :func:`count_images` counts, likewise."""
    for series in parts:
        held = _images_in(series, channels)
        if number < held:
            break
        number -= held
    else:
        raise UnreadableImage("the file holds fewer images than when it was listed; list the files anew")
    if not _count(series, "SC") == channels > _count(series, "S"):
        return [(series, number)]
    others = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "SYX"]
    place = iter(np.unravel_index(number, [size for axis, size in others if axis != "C"] or [1]))
    indices = [np.arange(size) if axis == "C" else np.atleast_1d(next(place)) for axis, size in others]
    frames = np.ravel_multi_index(np.ix_(*indices), [size for _, size in others]).reshape(-1)
    return [(series, int(frame)) for frame in frames]


def _decode_frames(
    content: Path | bytes, frames: Sequence[tuple[Any, int]], channels: int, files: FileConfig
) -> Tensor:
    """Decode an image whose channels are on several pages, or one page."""
    if len(frames) == 1:
        return _decode_page(content, *frames[0], channels, files)
    page = frames[0][0].keyframe
    require_pixels(page.imagelength, page.imagewidth, files)
    planes = []
    for series in {id(series): series for series, _ in frames}.values():
        own = [frame for part, frame in frames if part is series]
        if own == list(range(_frames_in(series))):
            planes.append(_bands_first(_array(content, series), series.axes))
        else:
            planes += [_frame_planes(content, series, frame) for frame in own]
    return _finished(np.concatenate(planes), page, _missing(page, files))


def _frames_in(series: Any) -> int:
    return math.prod(series.shape) // _pixels(series) // _count(series, "S")


def count_images(content: Path | bytes, channels: int) -> int:
    """Return how many images a file holds if its pages are images of their own, those of so many channels together.

    Raises:
        UnreadableImage: if it is cut off, or claims more images than it has bytes.
        ValueError: as tifffile raises it for damaged files.
    """
    with _opened(content) as file:
        count = sum(_images_in(part, channels) for part in images_of(file))
        if count > file.filehandle.size:
            raise UnreadableImage(f"it claims {count} pages, and has {file.filehandle.size} bytes")
        return count


@contextmanager
def _opened(content: Path | bytes) -> Iterator[TiffFile]:
    with TiffFile(io.BytesIO(content) if isinstance(content, bytes) else content, _multifile=False) as file:
        require_all_pages(file)
        yield file


def _images_in(series: Any, channels: int) -> int:
    """Return the number of images in a series: of pages, or of slices whose declared channels are a network's."""
    declared, bands = _count(series, "SC"), _count(series, "S")
    together = declared if declared == channels > bands else bands
    return math.prod(series.shape) // _pixels(series) // together


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


def require_all_blocks(page: Any) -> None:
    """Raise if a page claims more than its tiles or strips hold, before memory is taken for it.

    Blocks of no bytes are missing on purpose (sparse files of GDAL), and stand for zeros.

    Raises:
        UnreadableImage: if there are fewer blocks than the size needs, or fewer bytes than blocks decode from.
    """
    needed, sizes = math.prod(page.chunked), page.databytecounts
    claim = f"{page.imagelength} x {page.imagewidth} pixels"
    if len(page.dataoffsets) < needed:
        raise UnreadableImage(f"{claim} need {needed} tiles or strips, and the file has {len(page.dataoffsets)}")
    held = min(sum(sizes), page.parent.filehandle.size) * RATIOS.get(page.compression, math.inf)
    missing = sum(size == 0 for size in sizes) * math.prod(page.chunks)
    claimed = (page.size - missing) * page.bitspersample // 8
    if claimed > held:
        raise UnreadableImage(f"{claim} need {claimed} bytes, more than the {sum(sizes)} of the file can hold")


def images_of(file: TiffFile) -> list[Any]:
    """Return the series that are images in full size: the first, and others like it.

    Raises:
        UnreadableImage: if one has no height and width.
    """
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


def _refusal(planes: int, channels: int, parts: Sequence[Any]) -> str:
    shapes = sorted({part.shape for part in parts})
    declared = _count(parts[0], "SC")
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


def _count(series: Any, names: str) -> int:
    """Return the product of a series' sizes along some axes."""
    return math.prod(size for name, size in zip(series.axes, series.shape, strict=True) if name in names)


def _pixels(series: Any) -> int:
    return int(series.keyframe.imagelength * series.keyframe.imagewidth)


def _missing(page: Any, files: FileConfig) -> tuple[float, ...]:
    """Return the values that stand for no data: the file's own, and the one that the user names."""
    named = page.tags.valueof(NODATA)
    try:
        own = () if named is None else (float(str(named).strip("\0 ")),)
    except ValueError:
        own = ()  # GDAL writes numbers; a text that is none marks nothing
    return own if files.nodata is None else (*own, files.nodata)


def _decode_page(content: Path | bytes, series: Any, frame: int, channels: int, files: FileConfig) -> Tensor:
    """Decode a page: colors, perhaps with opacity, or other bands."""
    bands, missing = _count(series, "S"), _missing(series.keyframe, files)
    require_pixels(series.keyframe.imagelength, series.keyframe.imagewidth, files)
    page, kind, extra = series.keyframe, series.keyframe.photometric, series.keyframe.extrasamples
    colors = 3 if kind == PHOTOMETRIC.RGB else 1 if kind in GRAY else bands
    alpha = extra[0] if extra and extra[0] in (STRAIGHT, PREMULTIPLIED) else None
    plain = bands == colors + (alpha is not None)
    usable = plain or (colors == 3 and channels < 4)
    pictured = channels in MODES and page.dtype in (np.uint8, bool) and usable
    if kind != PHOTOMETRIC.RGB and kind not in GRAY:
        if pictured:
            return _decode_with_pillow(content, series.pages[frame], page, channels, missing, files)
        raise UnreadableImage(f"expected RGB or gray, got {kind.name} in {page.dtype}; convert the file to RGB")
    shares = page.dtype.str[1:] in ("b1", "u1", "u2") or page.dtype.kind == "f"
    as_held = bands == channels and (alpha is None or channels not in MODES)
    if not as_held and not (bands == 1 or (channels in MODES and usable and shares)):
        wanted = counted(channels, "channel")
        raise UnreadableImage(f"expected {wanted}, got {bands} bands of {page.dtype}; {CHANNELS}")
    require_pixels(page.imagelength * page.imagewidth * bands // max(channels, MANY_BANDS), 1, files)
    try:
        planes = _frame_planes(content, series, frame)
    except MissingCodec:
        if not pictured:
            raise
        return _decode_with_pillow(content, series.pages[frame], page, channels, missing, files)
    if as_held:
        return _finished(planes, page, missing)
    if bands == 1 and channels not in MODES:
        return _finished(planes, page, missing).expand(channels, -1, -1).contiguous()
    return _convert(planes, page, colors, alpha, channels, missing)


def _decode_with_pillow(
    content: Path | bytes, own: Any, page: Any, channels: int, missing: Sequence[float], files: FileConfig
) -> Tensor:
    """Decode a page of 8 bits whose colors or compression tifffile leaves to others; `page` has the series' tags."""
    shown = [_top(page) - value for value in missing] if page.photometric == PHOTOMETRIC.MINISWHITE else missing
    by = 1 if page.dtype == bool else _levels_apart(page)
    with open_with_pillow(content, files) as opened:
        opened.seek(own.index)
        return decode_with_pillow(opened, channels, missing=[by * value for value in shown])


def _convert(
    planes: np.ndarray, page: Any, colors: int, alpha: int | None, channels: int, missing: Sequence[float]
) -> Tensor:
    """Convert colors, and opacity where there is any, to 1, 3 or 4 channels; files of 8 bits give uint8."""
    held, missing = _on_black(planes[:colors], page, missing)
    opacity = None if alpha is None else planes[colors : colors + 1]
    if held.dtype == np.uint8:
        bands = held if opacity is None else np.concatenate([held, opacity])
        if alpha == PREMULTIPLIED and colors == 1:
            bands = np.concatenate([np.repeat(held, 3, 0), bands[1:]])
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBa" if alpha == PREMULTIPLIED else "RGBA"}[len(bands)]
        image = with_gaps(convert_bytes(bands, mode, channels), without_data(held, missing))
        return upright(image, _orientation(page))
    image, known = to_pixels(held, missing), None if opacity is None else to_pixels(opacity)
    if known is not None and alpha == PREMULTIPLIED:
        image = torch.where(known > 0, image / known, image)
        image = image if held.dtype.kind == "f" else image.clamp(max=1)
    return upright(to_channels(image, known, channels), _orientation(page))


def _finished(planes: np.ndarray, page: Any, missing: Sequence[float]) -> Tensor:
    """Return planes as the upright pixels that they stand for."""
    return upright(to_pixels(*_on_black(planes, page, missing)), _orientation(page))


def _on_black(planes: np.ndarray, page: Any, missing: Sequence[float]) -> tuple[np.ndarray, Sequence[float]]:
    """Return integers with 0 as black, numbers of fewer than 8 bits brought to 8, and the values of no data with them.

    Args:
        planes: as the file holds them.
        page: of the file.
        missing: values of no data in the file's own numbers.
    """
    by = _levels_apart(page)
    if by > 1:
        planes, missing = planes.astype(np.uint8) * np.uint8(by), [by * value for value in missing]
    if page.photometric == PHOTOMETRIC.MINISWHITE and planes.dtype.kind == "u":
        planes, missing = ~planes, [np.iinfo(planes.dtype).max - value for value in missing]
    return planes, missing


def _levels_apart(page: Any) -> int:
    """Return by what numbers of fewer than 8 bits are multiplied to fill the range of 8; 1 for all others."""
    bits = 1 if page.dtype == bool else page.bitspersample
    return 255 // (2**bits - 1) if page.dtype in (np.uint8, bool) and bits in (1, 2, 4) else 1


def _top(page: Any) -> int:
    """Return the largest number of a page of 8 bits or fewer."""
    return 1 if page.dtype == bool else int(2**page.bitspersample - 1)


def _orientation(page: Any) -> int:
    return int(page.tags.valueof(ExifTags.Base.Orientation, default=1))


def _bands_first(array: np.ndarray, axes: str) -> np.ndarray:
    """Return an array as `(planes, H, W)`, its planes in the file's order, the bands of each page together."""
    order = [place for place, axis in enumerate(axes) if axis not in "SYX"]
    order += [place for place, axis in enumerate(axes) if axis == "S"]
    moved = array.transpose([*order, axes.index("Y"), axes.index("X")])
    return moved.reshape(-1, *moved.shape[-2:])


def _frame_planes(content: Path | bytes, series: Any, frame: int) -> np.ndarray:
    """Return the bands `(bands, H, W)` of a page of a series, and read no other page if the file allows it."""
    page, bands = series.keyframe, _count(series, "S")
    frames = _frames_in(series)
    if not set(page.axes) <= set("SYX"):  # blocks of several slices
        return _bands_first(_array(content, series), series.axes)[frame * bands : (frame + 1) * bands]
    if frames > 1 and series.dataoffset is not None:  # one after the other, perhaps without headers of their own
        handle = page.parent.filehandle
        handle.seek(series.dataoffset + frame * page.nbytes)
        held = handle.read_array(page.parent.byteorder + page.dtype.char, math.prod(page.shape))
        return _bands_first(held.reshape(page.shape), page.axes)
    if frames != len(series.pages) or series.pages[frame] is None:
        raise UnreadableImage(f"the file has no page {frame} of the {frames} that it names")
    return _bands_first(_array(content, series, frame), page.axes)


def _array(content: Path | bytes, series: Any, frame: int | None = None) -> np.ndarray:
    """Return the values of a series, or of one of its pages, as the file holds them.

    Compressions that tifffile leaves to imagecodecs are decoded by Pillow, where it returns the same values.
    """
    page = series.keyframe
    shape = series.shape if frame is None else page.shape
    require_all_blocks(page)
    try:
        array: np.ndarray = series.asarray() if frame is None else series.asarray(key=frame)
    except (ValueError, NotImplementedError) as error:
        if "imagecodecs" not in str(error):
            raise
        exact = page.samplesperpixel == 1 and page.dtype.str[1:] in ("u1", "u2", "i2", "i4", "u4", "f4")
        if not exact and not (page.dtype == np.uint8 and page.axes == "YXS"):
            raise MissingCodec(f"{page.compression.name} in {page.dtype} needs `pip install imagecodecs`") from error
        pages = list(series.pages) if frame is None else [series.pages[frame]]
        array = np.stack([_frame(content, own.index, page) for own in pages])
    return array.reshape(shape)


def _frame(content: Path | bytes, index: int, page: Any) -> np.ndarray:
    """Return the values of a page by Pillow."""
    with open_with_pillow(content, FileConfig(max_pixels=page.imagelength * page.imagewidth)) as file:
        file.seek(index)
        orientation = int(file.getexif().get(ExifTags.Base.Orientation, 1))
        values = np.array(file).astype(page.dtype)
    values = np.flip(values, tuple(axis - 1 for axis in FLIPPED.get(orientation, ())))  # Pillow has turned it upright
    values = values.swapaxes(0, 1) if orientation in TURNED else values
    # Pillow turns gray of up to 8 bits around, and no other.
    values = 255 - values if page.photometric == PHOTOMETRIC.MINISWHITE and page.dtype == np.uint8 else values
    by = _levels_apart(page)
    return values // by if by > 1 else values
