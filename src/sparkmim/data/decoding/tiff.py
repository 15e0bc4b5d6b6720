"""Decode TIFF files by their axes: bands, pages, series, ImageJ's and OME's dimensions, and their tags."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags
from tifffile import PHOTOMETRIC
from torch import Tensor

from ...utils.text import counted
from ..config import FileConfig
from .arrays import NoData, to_pixels, with_gaps, without_data
from .colors import FLIPPED, TURNED, as_stored, as_upright, to_channels, upright, upright_size
from .encoded import CHANNELS, Box, ChooseBox, TooManyPixels, UnreadableImage, require_pixels
from .pillow import MODES, convert_bytes, decode_with_pillow, open_with_pillow
from .tiff_blocks import NODATA, can_copy, copy_blocks, least_pixels
from .tiff_pages import chosen_frames, count_axes, frames_in, images_of, opened, reading_pixels, require_all_blocks

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it says of damaged files is in their errors

PREMULTIPLIED, STRAIGHT = 1, 2
"""Codes for a band of opacity, by which the colors are multiplied already, or not."""

GRAY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)

SMALL = 2**19
"""Pixels of an image that takes less time as a whole than in part."""

MANY_BANDS = 4
"""Bands of a file that are read to take fewer of them, at least."""


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
    with opened(content) as file:
        frames = chosen_frames(images_of(file), channels, files, number)
        try:
            return _decode_frames(content, frames, channels, files)
        except TooManyPixels as error:
            if not can_copy(frames) or least_pixels(frames) > files.max_pixels:
                raise
            by_parts = "with --crop native, pretraining, classification and embeddings read only windows of its tiles"
            raise TooManyPixels(f"{error}; {by_parts}") from error


def decode_tiff_part(
    content: Path | bytes, channels: int, files: FileConfig, number: int | None, choose: ChooseBox
) -> Tensor:
    """Decode a part of an image, see :meth:`EncodedImage.decode_part`: only tiles or strips that it touches.

    Files whose numbers are laid out in another way are decoded as a whole, as are small ones, which takes less time.
    """
    with opened(content) as file:
        frames = chosen_frames(images_of(file), channels, files, number)
        page = frames[0][0].keyframe
        stored, orientation = (page.imagelength, page.imagewidth), _orientation(page)
        size = upright_size(*stored, orientation)
        box = choose(*size)
        pixels = math.prod(stored)
        most = files.max_pixels if pixels > files.max_pixels else pixels // 2
        copied = None
        if pixels > min(files.max_pixels, SMALL) and can_copy(frames):
            for series in {id(series): series for series, _ in frames}.values():
                require_all_blocks(series, [frame for part, frame in frames if part is series])
            copied = copy_blocks(frames, as_stored(box, size, orientation), most)
        if copied is None:
            try:
                return box.of(_decode_frames(content, frames, channels, files))
            except TooManyPixels as error:
                if pixels <= files.max_pixels or not can_copy(frames):
                    raise
                raise TooManyPixels(f"{error}; so are those of the tiles or strips around the window") from error
    copy, held = copied
    with opened(copy) as file:
        frames = [(series, frame) for series in images_of(file) for frame in range(frames_in(series))]
        try:
            image = _decode_frames(copy, frames, channels, files)
        except NoData:
            return torch.full((channels, box.height, box.width), math.nan)
    there = as_upright(held, size, orientation)
    return Box(box.top - there.top, box.left - there.left, box.bottom - there.top, box.right - there.left).of(image)


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
        if own == list(range(frames_in(series))):
            planes.append(_bands_first(_array(content, series), series.axes))
        else:
            planes += [_frame_planes(content, series, frame) for frame in own]
    return _finished(np.concatenate(planes), page, _missing(page, files))


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
    bands, missing = count_axes(series, "S"), _missing(series.keyframe, files)
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
    with open_with_pillow(content, files) as file:
        file.seek(own.index)
        return decode_with_pillow(file, channels, missing=[by * value for value in shown])


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
    page, bands = series.keyframe, count_axes(series, "S")
    frames = frames_in(series)
    if not set(page.axes) <= set("SYX"):  # blocks of several slices
        return _bands_first(_array(content, series), series.axes)[frame * bands : (frame + 1) * bands]
    if frames > 1 and series.dataoffset is not None:  # one after the other, perhaps without headers of their own
        handle = page.parent.filehandle
        handle.seek(series.dataoffset + frame * page.nbytes)
        with reading_pixels(page.parent):
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
    require_all_blocks(series, range(len(series.pages)) if frame is None else [frame])
    try:
        with reading_pixels(page.parent):
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
