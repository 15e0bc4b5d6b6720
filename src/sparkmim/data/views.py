"""What is trained on: random views of images, and the fixed view that is evaluated.

A view decides where to look from an image's size alone, so that the file may be decoded at a fraction of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ViewConfig
from .sources.base import ImageSource

ASPECT = (3 / 4, 4 / 3)
"""Width by height of a random crop, at least and at most, relative to the view's: how far it may be stretched."""

ATTEMPTS = 10
"""Random crops that may fall outside of an image before its middle is taken."""

REDUCED_MARGIN = 1.5
"""How many times a view's size the reduced crop must have along each axis: so many that it hardly shows (photographs
differ by 1 of 255 or less on average)."""


class Window(NamedTuple):
    """Where a view looks.

    Attributes:
        whole: height and width of the image.
        top, left, height, width: of the crop, in pixels of the whole image. It may reach beyond the image, whose edges
            are then repeated.
        size: height and width that the crop is brought to (bicubic, antialiased); the view is the middle of that.
        reduction: 1, 2, 4 or 8, by which the image may be reduced beforehand. The crop's edges are multiples of it, or
            those of the image.
        flip: left to right.
    """

    whole: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    reduction: int = 1
    flip: bool = False


@dataclass(frozen=True)
class View(ABC):
    """A way to look at images.

    Attributes:
        config: size of views, and how they are cut.
    """

    config: ViewConfig

    @abstractmethod
    def place(self, height: int, width: int, generator: torch.Generator | None) -> Window:
        """Where to look in an image of a size."""

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The view `(C, *image_size)` of a whole image `(C, H, W)`, in its dtype."""
        return self.cut(image, self.place(image.shape[1], image.shape[2], generator))

    def look(self, source: ImageSource, index: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
        """The view of an image of a source, which is decoded at no more than the size that it needs.

        Returns:
            `(C, *image_size)`: uint8, or float32 where images have more than 8 bits.

        Raises:
            UnreadableImage: if the image cannot be decoded.
        """
        image = source.open(index)
        size = image.size(channels)
        if size is None:
            return self(image.decode(channels), generator)
        window = self.place(*size, generator)
        return self.cut(image.decode(channels, window.reduction), window)

    def cut(self, image: Tensor, window: Window) -> Tensor:
        """What a window shows of an image, which may be whole or reduced by what the window allows."""
        by = 1 if image.shape[1:] == window.whole else window.reduction
        top, bottom = window.top // by, -(-(window.top + window.height) // by)
        left, right = window.left // by, -(-(window.left + window.width) // by)
        if top >= 0 and left >= 0 and bottom <= image.shape[1] and right <= image.shape[2]:
            image = image[:, top:bottom, left:right]
        else:
            rows = torch.arange(top, bottom).clamp(0, image.shape[1] - 1)
            columns = torch.arange(left, right).clamp(0, image.shape[2] - 1)
            image = image[:, rows][:, :, columns]
        size = window.size
        if image.shape[1:] != size:
            # Of bytes, torch computes this in bytes, and fastest where channels are the last axis in memory.
            image = F.interpolate(image.unsqueeze(0), size=size, mode="bicubic", antialias=True).squeeze(0)
        wanted_height, wanted_width = self.config.image_size
        top, left = middle(size[0], wanted_height), middle(size[1], wanted_width)
        image = image[:, top : top + wanted_height, left : left + wanted_width]
        return image.flip(2) if window.flip else image


class TrainingView(View):
    """The paper's augmentation: a random resized crop (bicubic) and a flip; or a random crop as it is, and a flip.

    Source: the official `pretrain/utils/imagenet.py`, `build_dataset_to_pretrain`.
    """

    def place(self, height: int, width: int, generator: torch.Generator | None) -> Window:
        """At random."""
        flip, *numbers = torch.rand(1 + 4 * ATTEMPTS, generator=generator, dtype=torch.float64).tolist()
        window = (self._native if self.config.crop == "native" else self._resized)(height, width, numbers)
        return window._replace(flip=self.config.flip and flip < 0.5)

    def _native(self, height: int, width: int, numbers: Sequence[float]) -> Window:
        """A piece of the image, or an image smaller than that somewhere in the view."""
        wanted_height, wanted_width = self.config.image_size
        top = _among(min(0, height - wanted_height), max(0, height - wanted_height), numbers[0])
        left = _among(min(0, width - wanted_width), max(0, width - wanted_width), numbers[1])
        return Window((height, width), top, left, wanted_height, wanted_width, (wanted_height, wanted_width))

    def _resized(self, height: int, width: int, numbers: Sequence[float]) -> Window:
        """A crop of random area and aspect, as torchvision's RandomResizedCrop chooses it for views that are square."""
        size = (self.config.image_size[0], self.config.image_size[1])
        narrowest, widest = (aspect * (size[1] / size[0]) for aspect in ASPECT)
        smallest, largest = self.config.crop_scale
        for i in range(ATTEMPTS):
            share, shape, down, across = numbers[4 * i : 4 * i + 4]
            area = height * width * (smallest + (largest - smallest) * share)
            aspect = narrowest * (widest / narrowest) ** shape
            crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top, left = _among(0, height - crop_height, down), _among(0, width - crop_width, across)
                return reduced(Window((height, width), top, left, crop_height, crop_width, size))
        crop_height = min(height, max(1, round(width / narrowest)))
        crop_width = min(width, max(1, round(height * widest)))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return reduced(Window((height, width), top, left, crop_height, crop_width, size))


class EvaluationView(View):
    """The middle of the image: resized (bicubic) until it just covers the view's size, then cut.

    With native crops it is not resized, and widened by its edges where it is too small.
    """

    def place(self, height: int, width: int, generator: torch.Generator | None = None) -> Window:
        """Always the same."""
        wanted_height, wanted_width = self.config.image_size
        if self.config.crop == "native":
            top, left = middle(height, wanted_height), middle(width, wanted_width)
            return Window((height, width), top, left, wanted_height, wanted_width, (wanted_height, wanted_width))
        scale = max(wanted_height / height, wanted_width / width)
        size = max(wanted_height, round(height * scale)), max(wanted_width, round(width * scale))
        return reduced(Window((height, width), 0, 0, height, width, size))


def training_view(config: ViewConfig) -> View:
    """See :class:`TrainingView`."""
    return TrainingView(config)


def evaluation_view(config: ViewConfig) -> View:
    """See :class:`EvaluationView`."""
    return EvaluationView(config)


def middle(length: int, wanted: int) -> int:
    """Where a piece of a length begins that lies in the middle; negative if it is longer."""
    return round((length - wanted) / 2)


def reduced(window: Window) -> Window:
    """A window with the greatest reduction that leaves the crop larger than the view by the margin.

    The crop's edges move to the nearest pixels of the reduced image, by less than a pixel of the view.
    """
    wanted = window.size[0] * REDUCED_MARGIN, window.size[1] * REDUCED_MARGIN
    by = next((r for r in (8, 4, 2) if window.height >= r * wanted[0] and window.width >= r * wanted[1]), 1)
    top, left = (by * round(edge / by) for edge in (window.top, window.left))
    bottom = min(window.whole[0], by * round((window.top + window.height) / by))
    right = min(window.whole[1], by * round((window.left + window.width) / by))
    return window._replace(top=top, left=left, height=bottom - top, width=right - left, reduction=by)


def _among(low: int, high: int, number: float) -> int:
    """The whole number, from `low` to `high` inclusive, at a place between them from 0 to below 1."""
    return low + int(number * (high - low + 1))
