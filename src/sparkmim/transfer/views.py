"""Views of images with their targets, to train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from ..data.config import ViewConfig
from ..data.loader import random_view
from ..data.normalize import Normalize
from ..data.sampler import Key
from ..data.seeding import Stream, keyed_generator
from ..data.sources.base import ImageSource
from ..data.views import AnyView, training_view


class TargetBatch(NamedTuple):
    """Views and their targets.

    Attributes:
        images: normalized.
        targets: one an image, as the task makes them: a tensor, or :class:`ObjectTargets`.
        indices: the images' numbers in their source.
        broken: number and error of each image that could not be read.
    """

    images: Float[Tensor, "batch channel height width"]
    targets: Shaped[Tensor, "batch ..."] | ObjectTargets
    indices: list[int]
    broken: list[tuple[int, str]]


class ImageView(Protocol):
    """How a training image is cut and changed."""

    crop: AnyView

    def transform(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the network's input `(C, H, W)` of a crop."""


class NormalizedView:
    """A random crop and flip, normalized.

    Attributes:
        crop: the random crop and flip.
    """

    def __init__(self, data: ViewConfig) -> None:
        self.crop: AnyView = training_view(data)
        self._normalize = Normalize(data)

    def transform(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the crop `(C, H, W)`, normalized."""
        return self._normalize(pixels)


class TargetViews(Dataset[TargetBatch]):
    """Images and their targets as batches of one view, looked up by epoch and index.

    Args:
        source: the images.
        target: returns the target of an image by its number, without the batch's axis.
        view: how images are cut and changed.
        channels: of the images.
        seed: of the run.
    """

    def __init__(
        self, source: ImageSource, target: Callable[[int], Tensor], view: ImageView, channels: int, seed: int
    ) -> None:
        self.source, self.target, self.view, self.channels, self.seed = source, target, view, channels, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> TargetBatch:
        epoch, index = key
        generator = keyed_generator(self.seed, Stream.VIEW, epoch, index)
        pixels, shown, broken = random_view(self.source, self.view.crop, self.channels, index, generator)
        image = self.view.transform(pixels, generator)
        return TargetBatch(image.unsqueeze(0), self.target(shown).unsqueeze(0), [shown], broken)


def collate(views: list[TargetBatch]) -> TargetBatch:
    """Return views as one batch."""
    return TargetBatch(
        torch.cat([view.images for view in views]),
        join_targets([view.targets for view in views]),
        [index for view in views for index in view.indices],
        [broken for view in views for broken in view.broken],
    )


class ObjectTargets(Protocol):
    """Targets of a batch that are not one tensor, as those of a detection."""

    def to(self, device: torch.device, non_blocking: bool) -> Self:
        """Return the targets on a device."""

    def joined(self, others: Sequence[Self]) -> Self:
        """Return the targets of several batches as those of one, this one first."""


def join_targets(parts: Sequence[Any]) -> Any:
    """Return the targets of several batches as those of one."""
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else parts[0].joined(parts[1:])


def blank_targets(target: Tensor, images: int) -> Any:
    """Return zeros of the shape of a target, for a batch of blank images."""
    return torch.zeros(images, *target.shape, dtype=target.dtype)
