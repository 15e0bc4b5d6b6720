"""Augmentations for classification: changes of color and shape, erasing, and mixtures of images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.transforms import v2

from ..data.config import ViewConfig
from ..data.normalize import Normalize
from ..data.views import AnyView, training_view
from .config import AugmentConfig


class AugmentedView:
    """Random crop, flip and augmentations of a training image.

    Attributes:
        crop: the random crop and flip.
    """

    def __init__(self, data: ViewConfig, augment: AugmentConfig, *, rotate: bool = True) -> None:
        smooth = v2.InterpolationMode.BILINEAR
        policies = {
            "none": [],
            "rand": [v2.RandAugment(num_ops=2, magnitude=9, interpolation=smooth)],
            "trivial": [v2.TrivialAugmentWide(interpolation=smooth)],
        }
        self.crop: AnyView = training_view(data, rotate=rotate)
        self._policy = policies[augment.policy]
        self._erasing = [v2.RandomErasing(augment.erasing, value="random")] if augment.erasing else []
        self._normalize = Normalize(data)

    def transform(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the crop `(C, H, W)` with its augmentations, normalized."""
        with torch.random.fork_rng(devices=()):  # torchvision's transforms draw from the global generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            pixels = self._normalize.fill(pixels) if self._policy else pixels
            for change in self._policy:
                pixels = change(pixels)
            view = self._normalize(pixels)
            for change in self._erasing:
                view = change(view)
        return view


def one_hot(labels: Tensor, classes: int) -> Float[Tensor, "batch class"]:
    """Return the targets of images that show one class each."""
    return F.one_hot(labels, classes).float()


def mix(
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, "batch"],
    augment: AugmentConfig,
    classes: int,
) -> tuple[Float[Tensor, "batch channel height width"], Float[Tensor, "batch class"]]:
    """Return images mixed with others of the batch, and their targets. Draws from torch's global generator."""
    ways: list[v2.Transform] = []
    if augment.mixup:
        ways.append(v2.MixUp(alpha=augment.mixup, num_classes=classes))
    if augment.cutmix:
        ways.append(v2.CutMix(alpha=augment.cutmix, num_classes=classes))
    if not ways:
        return images, one_hot(labels, classes)
    if augment.repeats > 1:  # views of an image lie side by side, and neighbors are mixed
        apart = (torch.arange(len(labels), device=labels.device) % augment.repeats).argsort(stable=True)
        images, labels = images[apart], labels[apart]
    mixed, targets = v2.RandomChoice(ways)(images, labels)
    return mixed, targets
