"""`sparkmim stats`."""

from __future__ import annotations

import sys
from pathlib import Path


def command(data: Path, in_chans: int = 3, limit: int = 256) -> int:
    """Measure the mean and standard deviation of the channels of images, as flags for `sparkmim pretrain`.

    Args:
        data: folder of images.
        in_chans: channels of the images.
        limit: maximum number of images to read, spread evenly over the folder.
    """
    if in_chans < 1 or limit < 1:
        raise ValueError(f"--in-chans {in_chans} and --limit {limit} must be at least 1")
    from ..data.sources.folder import find_images
    from ..data.statistics import channel_statistics

    measured = channel_statistics(find_images(data), in_chans, limit)
    print(f"--mean {' '.join(map(str, measured.mean))} --std {' '.join(map(str, measured.std))}")
    print(f"measured on {measured.images} images", file=sys.stderr)
    return 0
