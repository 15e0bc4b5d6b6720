"""Labelled views of images: random ones to train on, the middle of the image to score, and mixtures of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..data.config import ViewConfig
from ..data.labels import LabelledImages
from ..data.loader import random_view
from ..data.normalize import Normalise
from ..data.sampler import VIEW, Key
from ..data.seeding import keyed_generator
from ..data.views import View, training_view
from .objective import one_hot


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to training images beside the crop and the flip."""

    policy: Literal["none", "rand", "trivial"] = "none"
    """Changes of colour and shape: rand (RandAugment: two of magnitude 9 of 30), trivial (TrivialAugment: one of any
    magnitude), or none."""

    erasing: float = 0.0
    """Share of views in which a rectangle is replaced by noise."""

    mixup: float = 0.0
    """Parameter of the Beta distribution of the weights by which two images are added; 0 never adds them."""

    cutmix: float = 0.0
    """Likewise of the area of one image that replaces that of another; with mixup, each for half of the batches."""

    repeats: int = 1
    """Views of each image that follow each other; an epoch then shows a part of the images (repeated augmentation)."""


class LabelledBatch(NamedTuple):
    """Views and their classes.

    Attributes:
        images: normalised.
        labels: numbers of their classes.
        indices: the images' numbers in their source.
        broken: number and error of each image that could not be read.
    """

    images: Float[Tensor, "batch channel height width"]
    labels: Int[Tensor, "batch"]
    indices: list[int]
    broken: list[tuple[int, str]]


class LabelledViews(Dataset[LabelledBatch]):
    """Labelled images as batches of one view, looked up by epoch and index."""

    def __init__(self, labelled: LabelledImages, view: AugmentedView, channels: int, seed: int) -> None:
        self.labelled, self.view, self.channels, self.seed = labelled, view, channels, seed

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, key: Key) -> LabelledBatch:
        epoch, index = key
        generator = keyed_generator(self.seed, VIEW, epoch, index)
        pixels, shown, broken = random_view(self.labelled.source, self.view.crop, self.channels, index, generator)
        label = torch.tensor([int(self.labelled.labels[shown])])
        return LabelledBatch(self.view.changed(pixels, generator).unsqueeze(0), label, [shown], broken)


def collate(views: list[LabelledBatch]) -> LabelledBatch:
    """Views as one batch."""
    return LabelledBatch(
        torch.cat([view.images for view in views]),
        torch.cat([view.labels for view in views]),
        [index for view in views for index in view.indices],
        [broken for view in views for broken in view.broken],
    )


class AugmentedView:
    """Random crop, flip and changes of a training image.

    Attributes:
        crop: the random crop and flip.
    """

    def __init__(self, data: ViewConfig, augment: AugmentConfig) -> None:
        smooth = v2.InterpolationMode.BILINEAR
        policies = {
            "none": [],
            "rand": [v2.RandAugment(num_ops=2, magnitude=9, interpolation=smooth)],
            "trivial": [v2.TrivialAugmentWide(interpolation=smooth)],
        }
        self.crop: View = training_view(data)
        self._policy = policies[augment.policy]
        self._erasing = [v2.RandomErasing(augment.erasing, value="random")] if augment.erasing else []
        self._normalise = Normalise(data)

    def changed(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """The crop `(C, H, W)` with its changes, normalised."""
        with torch.random.fork_rng(devices=()):  # torchvision's transforms draw from the global generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for change in self._policy:
                pixels = change(pixels)
            view = self._normalise(pixels)
            for change in self._erasing:
                view = change(view)
        return view


def mix(
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, "batch"],
    augment: AugmentConfig,
    classes: int,
) -> tuple[Float[Tensor, "batch channel height width"], Float[Tensor, "batch class"]]:
    """Images mixed with others of the batch, and their targets. Draws from torch's global generator."""
    ways: list[v2.Transform] = []
    if augment.mixup:
        ways.append(v2.MixUp(alpha=augment.mixup, num_classes=classes))
    if augment.cutmix:
        ways.append(v2.CutMix(alpha=augment.cutmix, num_classes=classes))
    if not ways:
        return images, one_hot(labels, classes)
    if augment.repeats > 1:  # views of an image lie side by side, and neighbours are mixed
        apart = (torch.arange(len(labels), device=labels.device) % augment.repeats).argsort(stable=True)
        images, labels = images[apart], labels[apart]
    mixed, targets = v2.RandomChoice(ways)(images, labels)
    return mixed, targets
