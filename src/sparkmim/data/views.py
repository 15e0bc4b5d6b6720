"""Random views of images for training, and the fixed view for evaluation.

A view places its window by the image's size alone, so that the file may be decoded at a fraction of that size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .clips.base import Clip
from .clips.opening import Clips
from .config import ViewConfig
from .crops import CropTrainingView, CropView
from .decoding.encoded import Box, EncodedImage, UnreadableImage, require_pixels
from .normalize import unit_scale
from .sources.base import ImageSource, open_image, whole_of

ASPECT = (3 / 4, 4 / 3)
"""Least and greatest aspect ratio (width / height) of a random crop, relative to the view's."""

ATTEMPTS = 10
"""Random crops that may exceed the image before the largest one that fits is taken, at a random place."""

SPARE = 2
"""Largest extent of what is resized for an evaluation view, relative to the view. More of a long image would be cut off
again, at a price without limit."""

REDUCED_MARGIN = 1.5
"""Least size of a reduced crop, relative to the view, along each axis. Views of photographs then differ from those of
the whole image by 1 of 255 or less on average."""


class Window(NamedTuple):
    """The place of a view in an image.

    Attributes:
        whole: height and width of the image.
        top, left, height, width: the crop, in pixels of the whole image. It may extend beyond the image, whose edges
            are then repeated.
        size: height and width to which the crop is resized (bicubic, antialiased); the view is the center of that.
        reduction: 1, 2, 4 or 8, by which the image may be reduced beforehand. The crop's edges are multiples of it, or
            those of the image.
        flip: whether to flip left to right.
    """

    whole: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    reduction: int = 1
    flip: bool = False

    def box(self, view: Sequence[int]) -> tuple[float, float, float, float]:
        """Return what a view of a height and width shows: top, left, bottom and right, in pixels of the whole image."""
        tall, wide = self.height / self.size[0], self.width / self.size[1]
        top = self.top + center_start(self.size[0], view[0]) * tall
        left = self.left + center_start(self.size[1], view[1]) * wide
        return top, left, top + view[0] * tall, left + view[1] * wide

    def inside(self) -> Box:
        """Return the part of the crop that lies in the image."""
        bottom, right = self.top + self.height, self.left + self.width
        return Box(max(0, self.top), max(0, self.left), min(self.whole[0], bottom), min(self.whole[1], right))


@dataclass(frozen=True)
class View(ABC):
    """A rule that places and cuts views.

    Attributes:
        config: size of views, and how they are cropped.
    """

    config: ViewConfig

    @abstractmethod
    def place(self, height: int, width: int, generator: torch.Generator | None) -> Window:
        """Return the window of a view in an image of the given size."""

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Cut the view `(C, *image_size)` out of a whole image `(C, H, W)`, in its dtype."""
        return self.cut(image, self.place(image.shape[1], image.shape[2], generator))

    def look(self, source: ImageSource, index: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
        """Read the view of an image of a source, decoded at no larger a size than the view needs.

        Returns:
            `(C, *image_size)`: uint8, or float32 where images have more than 8 bits; NaN where there is no data.

        Raises:
            UnreadableImage: if the image cannot be decoded.
        """
        return self.look_and_tell(source, index, channels, generator)[0]

    def look_and_tell(
        self, source: ImageSource, index: int, channels: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Window]:
        """Read a view as :meth:`look` does; return its window too."""
        image = open_image(source, index, self.config)
        if self.config.crop == "native":
            return self._look_at_part(image, channels, generator)
        size = image.size(channels)
        if size is None:
            whole = image.decode(channels)
            window = self.place(whole.shape[1], whole.shape[2], generator)
            return self.cut(whole, window), window
        window = self.place(*size, generator)
        return self.cut(image.decode(channels, window.reduction), window), window

    def _look_at_part(
        self, image: EncodedImage, channels: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Window]:
        """Read the view of an image at its own resolution: no more is decoded than the window, if the format allows."""
        placed: list[Window] = []

        def choose(height: int, width: int) -> Box:
            window = self.place(height, width, generator)
            placed.append(window)
            return window.inside()

        part = image.decode_part(channels, choose)
        window = placed[0]
        box = window.inside()
        local = window._replace(whole=(box.height, box.width), top=window.top - box.top, left=window.left - box.left)
        return self.cut(part, local), window

    def cut(self, image: Tensor, window: Window) -> Tensor:
        """Cut a window out of an image that is whole, or reduced as the window allows."""
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
            image = resize(image, size)
        wanted_height, wanted_width = self.config.image_size
        top, left = center_start(size[0], wanted_height), center_start(size[1], wanted_width)
        image = image[:, top : top + wanted_height, left : left + wanted_width]
        return image.flip(2) if window.flip else image


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an image `(C, H, W)` (bicubic, antialiased); NaN stays where half of a pixel or more has no data."""
    empty = image.isnan() if image.is_floating_point() else None
    if empty is None or not empty.any():
        # torch interpolates uint8 in uint8, and fastest where channels are the last axis in memory.
        return F.interpolate(image.unsqueeze(0), size=size, mode="bicubic", antialias=True).squeeze(0)
    # Values of no data would spread as far as the filter reaches: what is known is weighted by how much of it there is.
    known = torch.cat([image.masked_fill(empty, 0), (~empty).to(image.dtype)]).unsqueeze(0)
    values, weights = F.interpolate(known, size=size, mode="bicubic", antialias=True).squeeze(0).chunk(2)
    return torch.where(weights > 0.5, values / weights, torch.nan)


class TrainingView(View):
    """The paper's augmentation: a random resized crop (bicubic) and a flip; or a native random crop and a flip.

    Source: the official `pretrain/utils/imagenet.py`, `build_dataset_to_pretrain`.
    """

    def place(self, height: int, width: int, generator: torch.Generator | None) -> Window:
        """Return a random window."""
        flip, *numbers = torch.rand(1 + 4 * ATTEMPTS, generator=generator, dtype=torch.float64).tolist()
        window = (self._native if self.config.crop == "native" else self._resized)(height, width, numbers)
        return window._replace(flip=self.config.flip and flip < 0.5)

    def _native(self, height: int, width: int, numbers: Sequence[float]) -> Window:
        """Return a random crop of the view's size; a smaller image lies at a random place in the view."""
        wanted_height, wanted_width = self.config.image_size
        top = _between(min(0, height - wanted_height), max(0, height - wanted_height), numbers[0])
        left = _between(min(0, width - wanted_width), max(0, width - wanted_width), numbers[1])
        return Window((height, width), top, left, wanted_height, wanted_width, (wanted_height, wanted_width))

    def _resized(self, height: int, width: int, numbers: Sequence[float]) -> Window:
        """Return a crop of random area and aspect ratio; for square views it is torchvision's RandomResizedCrop."""
        size = (self.config.image_size[0], self.config.image_size[1])
        narrowest, widest = (aspect * (size[1] / size[0]) for aspect in ASPECT)
        smallest, largest = self.config.crop_scale
        for i in range(ATTEMPTS):
            share, shape, down, across = numbers[4 * i : 4 * i + 4]
            area = height * width * (smallest + (largest - smallest) * share)
            aspect = narrowest * (widest / narrowest) ** shape
            crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top, left = _between(0, height - crop_height, down), _between(0, width - crop_width, across)
                return with_reduction(Window((height, width), top, left, crop_height, crop_width, size))
        crop_height = min(height, max(1, round(width / narrowest)))
        crop_width = min(width, max(1, round(height * widest)))
        top, left = _between(0, height - crop_height, numbers[-2]), _between(0, width - crop_width, numbers[-1])
        return with_reduction(Window((height, width), top, left, crop_height, crop_width, size))


class EvaluationView(View):
    """The center of the image, resized (bicubic) until it just covers the view.

    With native crops the image is not resized, and one that is too small is padded with its edges.
    """

    def place(self, height: int, width: int, generator: torch.Generator | None = None) -> Window:
        """Return the central window."""
        wanted_height, wanted_width = self.config.image_size
        if self.config.crop == "native":
            top, left = center_start(height, wanted_height), center_start(width, wanted_width)
            return Window((height, width), top, left, wanted_height, wanted_width, (wanted_height, wanted_width))
        scale = max(wanted_height / height, wanted_width / width)
        kept_height, kept_width = _kept(height, wanted_height / scale), _kept(width, wanted_width / scale)
        size = max(wanted_height, round(kept_height * scale)), max(wanted_width, round(kept_width * scale))
        top, left = (height - kept_height) // 2, (width - kept_width) // 2
        return with_reduction(Window((height, width), top, left, kept_height, kept_width, size))


class WholeView(View):
    """The whole image, resized (bicubic) to the view's height and width, whatever its own aspect ratio is."""

    def place(self, height: int, width: int, generator: torch.Generator | None = None) -> Window:
        """Return the window of all of the image."""
        size = self.config.image_size[0], self.config.image_size[1]
        return with_reduction(Window((height, width), 0, 0, height, width, size))


class ClipView:
    """Some frames of a clip in the middle of it, each seen by the same window.

    Frames beyond the clip have no data: they are NaN.

    Attributes:
        config: frames, height and width of views, and how frames are cropped.
    """

    spatial: type[View] = EvaluationView

    def __init__(self, config: ViewConfig) -> None:
        self.config = config
        self._window = self.spatial(replace(config, image_size=config.image_size[1:]))

    def look(self, source: ImageSource, index: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
        """Read the view of a clip of a source, no more frames than it shows.

        Returns:
            `(C, T, H, W)`: uint8, or float32 where frames have more than 8 bits or are beyond the clip.

        Raises:
            UnreadableImage: if it cannot be decoded.
        """
        clip = open_image(source, index, self.config)
        if not isinstance(clip, Clip):
            raise UnreadableImage("it is not a clip, and the network takes clips")
        size, count = clip.measure(channels), self.config.image_size[0]
        require_pixels(size.height, size.width, clip.files)
        start = self.start(size.frames, clip.stride * (count - 1) + 1, generator)
        window = self._window.place(size.height, size.width, generator)
        wanted = [start + clip.stride * number for number in range(count)]
        there = [0 <= place < size.frames for place in wanted]
        frames = clip.frames([p for p, known in zip(wanted, there, strict=True) if known], channels, window.reduction)
        seen = self._window.cut(frames.flatten(0, 1), window).unflatten(0, frames.shape[:2])
        if all(there):
            return seen
        view = torch.full((channels, count, *seen.shape[2:]), torch.nan)
        view[:, torch.tensor(there)] = unit_scale(seen)
        return view

    def start(self, frames: int, seen: int, generator: torch.Generator | None) -> int:
        """Return the first frame of a view that spans `seen` of a clip's frames; at least one of them is shown."""
        return max((frames - seen) // 2, 0)


class ClipTrainingView(ClipView):
    """Some frames of a clip from a random one on, each seen by the same random window."""

    spatial = TrainingView

    def start(self, frames: int, seen: int, generator: torch.Generator | None) -> int:
        """Return a random first frame: the first one of a clip that is too short."""
        return _between(0, max(0, frames - seen), torch.rand((), generator=generator, dtype=torch.float64).item())


AnyView = View | CropView | ClipView
"""Views of images, of volumes and signals, and of clips: each looks into a source."""


def training_view(config: ViewConfig, source: ImageSource | None = None, *, rotate: bool = True) -> AnyView:
    """Return the view of training that fits a source.

    Args:
        config: size of views, and how they are cropped.
        source: of clips; any other, or none, is of what the number of axes tells: images, signals, volumes.
        rotate: rotate and scale crops of volumes.
    """
    if _of_clips(source):
        return ClipTrainingView(config)
    if len(config.image_size) == 2:
        return TrainingView(config)
    return CropTrainingView(config, rotate=rotate and len(config.image_size) == 3)


def evaluation_view(config: ViewConfig, source: ImageSource | None = None) -> AnyView:
    """Return the fixed view for evaluation, likewise; without a source it is not of clips."""
    if _of_clips(source):
        return ClipView(config)
    return EvaluationView(config) if len(config.image_size) == 2 else CropView(config)


def _of_clips(source: ImageSource | None) -> bool:
    return source is not None and isinstance(whole_of(source), Clips)


def center_start(length: int, wanted: int) -> int:
    """Return the start of a centered piece of a length; negative if the piece is longer."""
    return round((length - wanted) / 2)


def with_reduction(window: Window) -> Window:
    """Return a window with the greatest reduction that leaves the crop larger than the view by the margin.

    The crop's edges move to the nearest pixels of the reduced image, by less than a pixel of the view.
    """
    wanted = window.size[0] * REDUCED_MARGIN, window.size[1] * REDUCED_MARGIN
    by = next((r for r in (8, 4, 2) if window.height >= r * wanted[0] and window.width >= r * wanted[1]), 1)
    top, left = (by * round(edge / by) for edge in (window.top, window.left))
    bottom = min(window.whole[0], by * round((window.top + window.height) / by))
    right = min(window.whole[1], by * round((window.left + window.width) / by))
    return window._replace(top=top, left=left, height=bottom - top, width=right - left, reduction=by)


def _kept(length: int, seen: float) -> int:
    """Return how much of a length is resized where a view sees `seen` in its middle: all, or the same less of each end.

    That is so much that the view's own part is resized as it would be with the rest.
    """
    spared = max(0, length - math.ceil(SPARE * seen)) // 2
    return length - 2 * spared


def _between(low: int, high: int, fraction: float) -> int:
    """Return the integer from `low` to `high` inclusive at a fraction between them, from 0 to below 1."""
    return low + int(fraction * (high - low + 1))
