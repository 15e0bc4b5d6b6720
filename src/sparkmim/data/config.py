"""What to train on, and how images are seen. Imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..utils.fields import Valid, at_least, setting, share, validate_as
from .clips.settings import ClipSettings
from .signals.settings import SignalSettings
from .volumes.settings import PrepareSettings

Pages = Literal["channels", "images", "first"]

Order = Literal["listed", "keyed"]

MAX_PIXELS = 2**28
"""Pixels of a square of 16,384, which take 768 MiB in RGB of 8 bits."""


MAX_BROKEN = 0.1
"""Share of the images that may be unreadable, if nobody says otherwise."""


@dataclass(frozen=True, kw_only=True)
class FileConfig:
    """How image files are read."""

    pages: Pages = "channels"
    """What the pages of a TIFF file are: channels, which must be as many as the network's; images, each one of its own
    (FILE#0, FILE#1, ...); or images of which the first is taken."""

    nodata: float | None = setting(
        None, Valid(lambda v: v is None or math.isfinite(v), "must be a finite number (NaN is no data in any case)")
    )
    """Value of pixels without data in the files' own numbers, beside NaN and the one that a GeoTIFF names. They are
    filled with the channel's mean, and left out of statistics and of the loss."""

    max_pixels: int = setting(MAX_PIXELS, at_least(1, "a number of pixels"), resumable=True)
    """Most pixels of an image to decode; larger ones count as unreadable, by their header alone. With --crop native no
    more than a window of a TIFF file is decoded."""


DEFAULT_FILES = FileConfig()
"""How files are read where nobody says."""


def files_of(values: Mapping[str, Any]) -> FileConfig:
    """Return the settings of files among settings of any kind, by name; those that are missing keep their defaults."""
    return FileConfig(**{field.name: values[field.name] for field in fields(FileConfig) if field.name in values})


def chosen_files(pages: Pages | None, nodata: float | None, max_pixels: int | None) -> dict[str, Any]:
    """Return the settings of files that a caller has chosen, by name; the others are as recorded.

    Raises:
        ValueError: for a value out of range.
    """
    chosen = {"pages": pages, "nodata": nodata, "max_pixels": max_pixels}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    validate_as(FileConfig, **chosen)
    return chosen


@dataclass(frozen=True, kw_only=True)
class ViewConfig(FileConfig):
    """The views of images that a network takes."""

    image_size: tuple[int, ...] = setting(per_axis=True)
    """Pixels of a view along each axis (height, width), or one number for a square."""

    crop: Literal["resized", "native"] = "resized"
    """How views are cut: resized takes a share of the image and brings it to size; native cuts at the image's own
    resolution, for large images whose scale means something."""

    crop_scale: tuple[float, float] = (0.67, 1.0)
    """Share of an image's area that a resized crop takes, at least and at most."""

    flip: bool = True
    """Flip half of the views left to right."""

    mean: tuple[float, ...] = setting(valid=Valid(lambda v: all(map(math.isfinite, v)), "must be finite"))
    """Mean of each channel, images being 0 to 1; subtracted from the input."""

    std: tuple[float, ...] = setting(
        valid=Valid(lambda v: all(0 < part < math.inf for part in v), "must be above 0 in each channel")
    )
    """Standard deviation of each channel; the input is divided by it."""

    order: Order = "listed"
    """How images are shuffled: listed draws the order of an epoch as a list; keyed computes it place by place, in
    memory that does not depend on their number, for a hundred million images or more. Each is another order."""

    workers: int = setting(2, at_least(0, "a number of processes"), resumable=True)
    """Processes that read images; 0 reads them in the training process."""

    cache_gb: float | None = setting(
        None, Valid(lambda v: v is None or 0 <= v < 10**9, "is a number of gigabytes, at least 0"), resumable=True
    )
    """Gigabytes of images from servers that are kept on this machine, of all runs together; 0 keeps none. The
    environment variable SPARKMIM_CACHE_GB, or 10, if not given."""

    @property
    def by_part(self) -> bool:
        """Return whether views are windows that are read without the rest of an image, where its format allows it."""
        return self.crop == "native"

    max_broken: float = setting(MAX_BROKEN, share("the images"), resumable=True)
    """Share of the images that may be unreadable before the run stops. Those within it are skipped and listed."""


@dataclass(frozen=True, kw_only=True)
class VolumeConfig(PrepareSettings):
    """How volumes are prepared, once, and seen; other images have no use for it."""

    rotate: bool = True
    """Rotate a fifth of the crops by up to 30 degrees, and scale a fifth by 0.7 to 1.4, as nnU-Net does."""

    store: str | None = setting(None, kind="folder", resumable=True)
    """Folder for the prepared volumes, which runs on the same volumes share; the folder of the run's folder if not
    given."""


@dataclass(frozen=True, kw_only=True)
class SignalConfig(SignalSettings):
    """How signals are read; other data have no use for it."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig(ClipSettings):
    """How clips are seen; other data have no use for it."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(ViewConfig):
    """Which images to pretrain on."""

    data: str | None = setting(None, kind="images", resumable=True)
    """Folder of images, flat or nested, without labels, or an address (SCHEME://...); the built-in photographs if not
    given."""

    val_data: str | None = setting(None, kind="images", resumable=True)
    """Folder of images for the held-out loss."""

    monitor_data: str | None = setting(None, kind="images", resumable=True)
    """Labeled images for --monitor: class folders, a CSV file of rows `path,class`, or a folder with train and val
    folders of classes. They do not train."""

    jitter: float = setting(0.0, share("1"))
    """Strength of random changes of brightness, contrast, saturation and hue of views that are trained on (of scale and
    offset of the channels of images that are not RGB of 8 bits); 0 for none. For --objective distill, whose targets
    stay as they are: pixels are predicted as they were changed."""

    val_share: float = setting(0.0, Valid(lambda v: 0 <= v < 1, "is a share of the images, from 0 to below 1"))
    """Share of the images to hold out for the held-out loss instead."""
