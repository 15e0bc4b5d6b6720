"""Mean and standard deviation of the channels of a set of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.text import printable
from .decoding.encoded import UnreadableImage
from .sources.base import ImageSource

PROBED = 8
"""Images tried before a source is reported as unreadable."""


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of each channel, with images of 8 or 16 bits scaled to 0 to 1, and the images read.

    The standard deviation of a constant channel is given as 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int


def spread(source: ImageSource, limit: int) -> list[int]:
    """Return the indices of up to `limit` images, spread evenly over a source."""
    count = min(limit, len(source))
    return [index * len(source) // count for index in range(count)]


def first_readable(source: ImageSource, channels: int) -> Tensor:
    """Decode the first image that can be read, of a few spread over a source.

    Raises:
        ValueError: if none can be read, with the reason.
    """
    errors = []
    for index in spread(source, PROBED):
        try:
            return source.open(index).decode(channels)
        except UnreadableImage as error:
            errors.append(f"{printable(source.name(index))}: {error}")
    raise ValueError(f"none of {len(errors)} images tried can be read as {channels} channels; {errors[0]}")


def channel_statistics(source: ImageSource, channels: int, limit: int = 256) -> ChannelStatistics:
    """Measure up to `limit` images, spread evenly over a source; every pixel has the same weight.

    Raises:
        ValueError: if no image can be read.
    """
    first_readable(source, channels)
    counts, means, variances = [], [], []
    for pixels in _pixels(source, channels, limit):
        counts.append(pixels.shape[1])
        means.append(pixels.mean(1))
        variances.append(pixels.var(1, correction=0))
    weight = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    mean = weight @ torch.stack(means)
    std = (weight @ (torch.stack(variances) + (torch.stack(means) - mean).square())).sqrt()
    std = torch.where(std > 1e-9 * mean.abs(), std, torch.ones_like(std))
    return ChannelStatistics(_rounded(mean), _rounded(std), len(counts))


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)


def _pixels(source: ImageSource, channels: int, limit: int) -> Iterator[Tensor]:
    for index in spread(source, limit):
        try:
            image = source.open(index).decode(channels)
        except UnreadableImage:
            continue  # they are counted and listed when they are trained on
        scale = 255 if image.dtype == torch.uint8 else 1
        yield image.flatten(1).double() / scale
