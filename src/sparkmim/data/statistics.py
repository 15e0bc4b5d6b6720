"""Mean and standard deviation of the channels of a set of images."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from typing import NamedTuple

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ..utils.text import counted, printable, verb
from .config import DEFAULT_FILES, FileConfig
from .decoding.encoded import TooManyPixels, UnreadableImage
from .normalize import WHITE
from .pieces import pieces
from .sources.base import ImageSource, open_image

PROBED = 8
"""Images tried before a source is reported as unreadable."""

PROBED_IF_BROKEN = 256
"""Images tried if one of them is unreadable."""

MANY_TRIED, SIGMAS = 64, 4
"""Images by which a share is judged, at least, and standard deviations by which it must be exceeded."""

PIECE = 2**18
"""Values measured at a time: 2 MiB in double precision."""

DIGITS = 4
"""Significant digits of a standard deviation; a mean has at least as many, and ends where the deviation does."""

LOOKED_AT = 1000
"""Images among which constant and equal ones are counted."""

SECONDS = 2.0
"""Time for that."""

MANY = 0.1
"""Share of constant or equal images that is reported."""


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, with images of 8 or 16 bits scaled to 0 to 1, and the images read.

    The standard deviation of a constant channel is given as 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int


def spread(source: ImageSource, limit: int) -> list[int]:
    """Return the indices of up to `limit` images, spread evenly over a source."""
    return spread_indices(limit, len(source))


def spread_indices(limit: int, size: int) -> list[int]:
    """Return up to `limit` of the indices below a size, spread evenly."""
    count = min(limit, size)
    return [index * size // count for index in range(count)]


def first_readable(
    source: ImageSource, channels: int, files: FileConfig = DEFAULT_FILES, *, by_part: bool = False
) -> Tensor:
    """Decode the first image that can be read, of a few spread over a source.

    Args:
        source: the images.
        channels: of the network.
        files: how they are read.
        by_part: windows are of use without the rest of an image: of one that is too large its middle is read.

    Raises:
        ValueError: if none can be read, with the reason.
    """
    errors = []
    for index in spread(source, PROBED):
        try:
            return _look(source, index, channels, files, by_part=by_part)
        except UnreadableImage as error:
            errors.append(f"{printable(source.name(index))}: {error}")
    raise ValueError(f"none of {len(errors)} images tried can be read as {channels} channels; {errors[0]}")


def _look(source: ImageSource, index: int, channels: int, files: FileConfig, *, by_part: bool) -> Tensor:
    return next(pieces(open_image(source, index, files), channels, by_part=by_part, windows=1))


def require_readable(
    source: ImageSource, channels: int, files: FileConfig, most: float, option: str, *, by_part: bool = False
) -> None:
    """Raise for a set of images, other than the ones trained on, that is of no use.

    A few images spread over it are tried, and many if one of these cannot be read.

    Args:
        source: the images.
        channels: of the network.
        files: how they are read.
        most: share that may be unreadable. More are certain once so many are found, and as good as certain where those
            tried have more by four standard deviations.
        option: that named the images, for messages.
        by_part: as for :func:`first_readable`.

    Raises:
        ValueError: with the first reason.
    """
    errors: list[str] = []
    few = spread(source, PROBED)
    more = [index for index in spread(source, PROBED_IF_BROKEN) if index not in few]
    for tried, index in enumerate([*few, *more], start=1):
        try:
            _look(source, index, channels, files, by_part=by_part)
        except UnreadableImage as error:
            errors.append(f"{printable(source.name(index))}: {error}")
        if tried < len(few):
            continue
        if len(errors) == len(few) == tried or _too_many(len(errors), tried, len(source), most):
            remedy = "" if len(errors) == tried else ". Remove them, or allow more of them by --max-broken"
            raise ValueError(
                f"{option}: {len(errors)} of {tried} images tried cannot be read as {channels} channels; {errors[0]}"
                f"{remedy}"
            )
        if not errors:
            return


def _too_many(broken: int, tried: int, images: int, most: float) -> bool:
    """Return whether more than a share of the images cannot be read, as far as those tried tell."""
    chance = SIGMAS * math.sqrt(most * (1 - most) * tried)
    return broken > most * images or (tried >= MANY_TRIED and broken > most * tried + chance)


class Moments:
    """Number, mean and sum of squared deviations of each channel, in double precision, without values that are NaN."""

    def __init__(self, channels: int) -> None:
        self.count, self.mean, self.squares = torch.zeros(3, channels, dtype=torch.float64)

    def add(self, image: Tensor) -> None:
        """Add the values of an image `(C, H, W)`, a piece at a time."""
        for place, channel in enumerate(image):
            for piece in channel.reshape(-1).split(PIECE):
                known = piece if piece.dtype == torch.uint8 else piece[~piece.isnan()]
                if known.numel():
                    scale = WHITE if piece.dtype == torch.uint8 else 1
                    self._merge(place, known.double() / scale)

    def _merge(self, place: int, values: Tensor) -> None:
        """Merge the moments of one piece of a channel with those so far (Chan et al. 1979)."""
        count, mean = values.numel(), values.mean()
        away, total = mean - self.mean[place], self.count[place] + count
        self.squares[place] += (values - mean).square().sum() + away.square() * self.count[place] * count / total
        self.mean[place] += away * count / total
        self.count[place] = total


def channel_statistics(
    source: ImageSource, channels: int, limit: int = 256, files: FileConfig = DEFAULT_FILES
) -> ChannelStatistics:
    """Measure up to `limit` images, spread evenly over a source; every pixel with data has the same weight.

    Memory beyond that of an image does not depend on its size. Nine windows of 512 x 512 pixels stand for a TIFF file
    of more than `files.max_pixels`.

    Raises:
        ValueError: if no image can be read, or a channel has no data.
    """
    first_readable(source, channels, files, by_part=True)
    moments, images = Moments(channels), 0
    for index in spread(source, limit):
        try:
            seen = list(pieces(open_image(source, index, files), channels, by_part=True))
        except UnreadableImage:
            continue  # they are counted and listed when they are trained on
        for piece in seen:
            moments.add(piece)
        images += 1
    if not moments.count.all():
        raise ValueError(f"channel {int((moments.count == 0).nonzero()[0])} has no data in {counted(images, 'image')}")
    mean, std = moments.mean, (moments.squares / moments.count).sqrt()
    std = torch.where(std > 1e-9 * mean.abs(), std, torch.ones_like(std))
    pairs = list(zip(mean.tolist(), std.tolist(), strict=True))
    return ChannelStatistics(
        tuple(_rounded(value, min(_place(value), _place(deviation))) for value, deviation in pairs),
        tuple(_rounded(deviation, _place(deviation)) for _, deviation in pairs),
        images,
    )


def input_statistics(source: ImageSource, channels: int, files: FileConfig = DEFAULT_FILES) -> ChannelStatistics:
    """Return mean and deviation for a network that says nothing of its input.

    They are ImageNet's for RGB of 8 bits, of no images, and measured for all other images.

    Raises:
        ValueError: if no image can be read.
    """
    if channels == 3 and first_readable(source, channels, files, by_part=True).dtype == torch.uint8:
        return ChannelStatistics(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, 0)
    return channel_statistics(source, channels, files=files)


def _reduced(source: ImageSource, index: int, channels: int, files: FileConfig) -> Tensor:
    """Decode an image at an eighth of its size where that is cheaper; of one that is too large its middle."""
    image = open_image(source, index, files)
    try:
        return image.decode(channels, 8)
    except TooManyPixels:
        return next(pieces(image, channels, by_part=True, windows=1))


def _place(value: float) -> int:
    """Return the power of ten of a number's last significant digit."""
    return math.floor(math.log10(abs(value))) + 1 - DIGITS if value else 0


def _rounded(value: float, place: int) -> float:
    return float(f"{round(value, -place):.15g}")


def peculiarities(source: ImageSource, channels: int, files: FileConfig = DEFAULT_FILES) -> list[str]:
    """Return what is odd about the first images of a source, a text for each: many constant, or equal, ones.

    Images are decoded at an eighth of their size where that is cheaper, a thousand at most, for two seconds at most.

    Args:
        source: the images.
        channels: of the network.
        files: how they are read.
    """
    end = time.monotonic() + SECONDS
    kinds: Counter[str] = Counter()
    seen: Counter[bytes] = Counter()
    first = source.first_indices()
    for index in range(min(LOOKED_AT, len(source))):
        if first is not None and first[index] != index:
            continue  # shown again on purpose
        try:
            image = _reduced(source, index, channels, files)
        except UnreadableImage:
            continue  # they are counted and listed when they are trained on
        known = image[~image.isnan()] if image.is_floating_point() else image
        if not known.numel():
            continue  # the middle of a large image, without data
        if known.amin() == known.amax():
            kinds["black" if known.amax() == 0 else "of one color"] += 1
        seen[hashlib.sha256(image.contiguous().numpy().tobytes()).digest()] += 1
        if time.monotonic() > end:
            break
    read = seen.total()
    kinds["equal to others"] = read - sum(count == 1 for count in seen.values())
    return [
        f"{count} of the first {read} {verb(count, 'are')} {kind}"
        for kind, count in kinds.items()
        if count > max(1, MANY * read)
    ]
