"""Decode TIFF files by their axes: bands, pages, series, ImageJ's and OME's dimensions, and their tags."""

from __future__ import annotations

import io
import logging
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags
from tifffile import PHOTOMETRIC, TiffFile
from torch import Tensor

from ..config import FileConfig
from .arrays import to_pixels
from .colors import to_channels, upright
from .encoded import UnreadableImage, require_pixels
from .pillow import MODES, decode_with_pillow, open_with_pillow

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it says of damaged files is in their errors

START = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a file."""

PREMULTIPLIED, STRAIGHT = 1, 2
"""Codes for a band of opacity, by which the colors are multiplied already, or not."""

NODATA = 42113
"""Tag in which GDAL names the value of pixels without data."""

GRAY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)

LAYOUTS = ("generic", "shaped", "uniform", "imagej", "ome")
"""Kinds of files whose further series are images; those of scanners are thumbnails and labels."""

MANY_BANDS = 4
"""Bands of a file that are read to take fewer of them, at least."""


def decode_tiff(content: Path | bytes, channels: int, files: FileConfig) -> Tensor:
    """Decode a file to an upright image `(channels, H, W)`, see :meth:`EncodedImage.decode`.

    Bands are those of a page, interleaved or planar, and the channels that ImageJ and OME declare. Pages of any other
    kind (slices, times, pages without a name) are channels if they are as many as the network takes. Reduced copies
    (pyramids, thumbnails) and masks are passed over, and other files that an OME file names are not read.

    Raises:
        UnreadableImage: for other numbers of bands and pages, and color spaces that are not read.
        ValueError: as tifffile raises it for damaged files.
    """
    with TiffFile(io.BytesIO(content) if isinstance(content, bytes) else content, _multifile=False) as file:
        require_all_pages(file)
        parts = images_of(file)
        page: Any = parts[0].keyframe
        require_pixels(page.imagelength, page.imagewidth, files)
        axes, shape = parts[0].axes, parts[0].shape
        if not {"Y", "X"} <= set(axes):
            raise UnreadableImage(f"expected an image with height and width, got the axes {axes} of {shape}")
        bands = _count(axes, shape, "S")
        declared = bands * _count(axes, shape, "C")
        planes = math.prod(shape) // (page.imagelength * page.imagewidth) * len(parts)
        missing = _missing(page, files)
        if planes == bands:
            return _decode_page(content, parts[0], channels, bands, missing, files)
        if files.pages == "first":
            if declared == channels > bands:
                return _decode_first_slice(content, parts[0], channels, missing, files)
            return _decode_page(content, parts[0], channels, bands, missing, files, first=True)
        if planes != channels or len({part.shape for part in parts}) > 1:
            raise UnreadableImage(_refusal(planes, declared, channels, parts))
        stack = np.concatenate([_bands_first(_array(content, part), axes) for part in parts])
        return _finished(stack, page, missing)


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


def images_of(file: TiffFile) -> list[Any]:
    """Return the series that are images in full size: the first, and others like it.

    Raises:
        UnreadableImage: if they differ in shape, so that none is the image.
    """
    series = [part for part in file.series if not part.keyframe.is_reduced and not part.keyframe.is_mask]
    first = (series or list(file.series))[0]
    if first.kind not in LAYOUTS:
        return [first]
    if all((part.axes, part.shape, part.dtype) == (first.axes, first.shape, first.dtype) for part in series):
        return series or [first]
    return [first, *(part for part in series if part is not first)]


def _refusal(planes: int, declared: int, channels: int, parts: Sequence[Any]) -> str:
    shapes = sorted({part.shape for part in parts})
    if len(shapes) > 1:
        held = f"{len(parts)} images of different shapes ({' and '.join(map(str, shapes[:2]))})"
    elif planes == declared:
        held = f"{declared} channels on pages of their own"
    else:
        held = f"a stack of {planes} planes ({parts[0].axes} {parts[0].shape})"
    return (
        f"expected {channels} channel{'s' * (channels > 1)}, got {held}; use --in-chans {planes}, or --pages first for "
        "the first page alone"
    )


def _count(axes: str, shape: Sequence[int], axis: str) -> int:
    return math.prod(size for name, size in zip(axes, shape, strict=True) if name == axis)


def _missing(page: Any, files: FileConfig) -> tuple[float, ...]:
    """Return the values that stand for no data: the file's own, and the one that the user names."""
    named = page.tags.valueof(NODATA)
    try:
        own = () if named is None else (float(str(named).strip("\0 ")),)
    except ValueError:
        own = ()  # GDAL writes numbers; a text that is none marks nothing
    return own if files.nodata is None else (*own, files.nodata)


def _decode_page(
    content: Path | bytes,
    series: Any,
    channels: int,
    bands: int,
    missing: Sequence[float],
    files: FileConfig,
    *,
    first: bool = False,
) -> Tensor:
    """Decode one page, or the first one of a stack, of `bands` bands: colors, perhaps with opacity, or others."""
    page, kind, extra = series.keyframe, series.keyframe.photometric, series.keyframe.extrasamples
    colors = 3 if kind == PHOTOMETRIC.RGB else 1 if kind in GRAY else bands
    alpha = extra[0] if extra and extra[0] in (STRAIGHT, PREMULTIPLIED) else None
    plain = bands == colors + (alpha is not None)
    if channels in MODES and page.dtype in (np.uint8, bool) and (plain or (colors == 3 and channels < 4)):
        with open_with_pillow(content, files) as opened:
            opened.seek(page.index)
            return decode_with_pillow(opened, channels, missing=_as_shown(missing, kind))
    if kind != PHOTOMETRIC.RGB and kind not in GRAY:
        raise UnreadableImage(f"expected RGB or gray, got {kind.name} in {page.dtype}; convert the file to RGB")
    usable = plain or (colors == 3 and channels < 4)
    shares = page.dtype.str[1:] in ("u1", "u2") or page.dtype.kind == "f"
    as_held = bands == channels and (alpha is None or channels not in MODES)
    if not as_held and not (bands == 1 or (channels in MODES and usable and shares)):
        wanted = f"{channels} channel{'s' * (channels > 1)}"
        raise UnreadableImage(f"expected {wanted}, got {bands} bands of {page.dtype}; see --in-chans")
    require_pixels(page.imagelength * page.imagewidth * bands // max(channels, MANY_BANDS), 1, files)
    axes = page.axes if first else series.axes
    image = _finished(_bands_first(_array(content, series, first=first), axes), page, missing)
    if as_held:
        return image
    if bands == 1 and channels not in MODES:
        return image.expand(channels, -1, -1).contiguous()
    return _convert(image, colors, alpha, channels)


def _as_shown(missing: Sequence[float], kind: Any) -> list[float]:
    """Return the values of no data in gray of 8 bits as Pillow shows it, with white as 255."""
    return [255 - value if kind == PHOTOMETRIC.MINISWHITE else value for value in missing]


def _decode_first_slice(
    content: Path | bytes, series: Any, channels: int, missing: Sequence[float], files: FileConfig
) -> Tensor:
    """Decode the channels that a file declares, of the first slice, time and position."""
    require_pixels(math.prod(series.shape) // channels, 1, files)
    wanted = tuple(slice(None) if axis in "SCYX" else 0 for axis in series.axes)
    kept = "".join(axis for axis in series.axes if axis in "SCYX")
    return _finished(_bands_first(_array(content, series)[wanted], kept), series.keyframe, missing)


def _convert(image: Tensor, colors: int, alpha: int | None, channels: int) -> Tensor:
    """Convert colors, and opacity where there is any, to 1, 3 or 4 channels."""
    image, opacity = image[:colors], None if alpha is None else image[colors : colors + 1]
    if opacity is not None and alpha == PREMULTIPLIED:
        image = torch.where(opacity > 0, image / opacity, image)
    return to_channels(image, opacity, channels)


def _finished(planes: np.ndarray, page: Any, missing: Sequence[float]) -> Tensor:
    """Return planes as the upright pixels that they stand for."""
    if page.photometric == PHOTOMETRIC.MINISWHITE and planes.dtype.kind in "bu":  # white is 0
        top = 1 if planes.dtype == bool else np.iinfo(planes.dtype).max
        planes, missing = ~planes, [top - value for value in missing]  # the value of no data is the file's
    return upright(to_pixels(planes, missing), page.tags.valueof(ExifTags.Base.Orientation, default=1))


def _bands_first(array: np.ndarray, axes: str) -> np.ndarray:
    """Return an array as `(planes, H, W)`, its planes in the file's order, the bands of each page together."""
    order = [place for place, axis in enumerate(axes) if axis not in "SYX"]
    order += [place for place, axis in enumerate(axes) if axis == "S"]
    moved = array.transpose([*order, axes.index("Y"), axes.index("X")])
    return moved.reshape(-1, *moved.shape[-2:])


def _array(content: Path | bytes, series: Any, *, first: bool = False) -> np.ndarray:
    """Return the values of a series, or of its first page, as the file holds them.

    Compressions that tifffile leaves to imagecodecs are decoded by Pillow, where it returns the same values.
    """
    page = series.keyframe
    shape = page.shape if first else series.shape
    try:
        array: np.ndarray = series.asarray(key=0) if first else series.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        frames = [series.pages[0]] if first else list(series.pages)
        exact = page.samplesperpixel == 1 and page.dtype.str[1:] in ("u1", "u2", "i2", "i4", "u4", "f4")
        if not exact and not (page.dtype == np.uint8 and page.axes == "YXS"):
            raise UnreadableImage(f"{page.compression.name} in {page.dtype} needs `pip install imagecodecs`") from error
        array = np.stack([_frame(content, frame.index, page) for frame in frames])
    return array.reshape(shape)


def _frame(content: Path | bytes, index: int, page: Any) -> np.ndarray:
    """Return the values of a page by Pillow."""
    with open_with_pillow(content, FileConfig(max_pixels=page.imagelength * page.imagewidth)) as file:
        file.seek(index)
        values = np.array(file).astype(page.dtype)
    # Pillow turns gray of 8 bits around, and no other.
    return 255 - values if page.photometric == PHOTOMETRIC.MINISWHITE and page.dtype == np.uint8 else values
