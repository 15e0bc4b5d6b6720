"""`sparkmim stats`."""

from __future__ import annotations

import sys


def command(data: str, in_chans: int = 3, limit: int = 256) -> int:
    """Measure the mean and standard deviation of the channels of images, as flags for `sparkmim pretrain`.

    Args:
        data: folder of images, or an address (SCHEME://...).
        in_chans: channels of the images.
        limit: maximum number of images to read, spread evenly over the folder.
    """
    if in_chans < 1 or limit < 1:
        raise ValueError(f"--in-chans {in_chans} and --limit {limit} must be at least 1")
    from ..data.sources.address import open_source
    from ..data.statistics import channel_statistics

    measured = channel_statistics(open_source(data), in_chans, limit)
    print(f"--mean {' '.join(map(str, measured.mean))} --std {' '.join(map(str, measured.std))}")
    print(f"measured on {measured.images} images", file=sys.stderr)
    return 0
