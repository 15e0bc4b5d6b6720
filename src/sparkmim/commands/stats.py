"""`sparkmim stats`."""

from __future__ import annotations

import sys

from ..data.config import MAX_PIXELS, FileConfig, Pages
from ..utils.fields import validate_as


def command(
    data: str,
    in_chans: int = 3,
    limit: int = 256,
    pages: Pages = "channels",
    nodata: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Measure the mean and standard deviation of the channels of images, as flags for `sparkmim pretrain`.

    Args:
        data: folder of images, or an address (SCHEME://...).
        in_chans: channels of the images.
        limit: maximum number of images to read, spread evenly over the folder.
        pages: what the pages of a TIFF file are, as for `sparkmim pretrain`.
        nodata: value of pixels without data, beside NaN and the one that a GeoTIFF names.
        max_pixels: most pixels of an image.
    """
    if in_chans < 1 or limit < 1:
        raise ValueError(f"--in-chans {in_chans} and --limit {limit} must be at least 1")
    from ..data.sources.address import open_source
    from ..data.sources.pages import by_page
    from ..data.statistics import channel_statistics

    validate_as(FileConfig, pages=pages, nodata=nodata, max_pixels=max_pixels)
    files = FileConfig(pages=pages, nodata=nodata, max_pixels=max_pixels)
    source = by_page(open_source(data), in_chans, files)
    measured = channel_statistics(source, in_chans, limit, files)
    print(f"--mean {' '.join(map(str, measured.mean))} --std {' '.join(map(str, measured.std))}")
    print(f"measured on {measured.images} images", file=sys.stderr)
    return 0
