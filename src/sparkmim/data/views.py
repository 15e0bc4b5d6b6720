"""What is trained on: random views of images, and the fixed view that is evaluated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from .config import ViewConfig

View = Callable[[Tensor], Tensor]


def training_view(config: ViewConfig) -> View:
    """The paper's augmentation: a random resized crop (bicubic) and a flip, then mean and standard deviation.

    Source: the official `pretrain/utils/imagenet.py`, `build_dataset_to_pretrain`. Draws from torch's global generator.
    """
    return v2.Compose([*crop_and_flip(config), *normalise(config)])


def evaluation_view(config: ViewConfig) -> View:
    """The middle of the image: resized (bicubic) until it just covers the view's size, then cut.

    With native crops it is not resized, and widened by its edges where it is too small.
    """
    height, width = config.image_size

    def cover(image: Tensor) -> Tensor:
        scale = max(height / image.shape[1], width / image.shape[2])
        size = [max(height, round(image.shape[1] * scale)), max(width, round(image.shape[2] * scale))]
        return v2.functional.resize(image, size, interpolation=InterpolationMode.BICUBIC, antialias=True)

    def widen(image: Tensor) -> Tensor:
        missing = [max(0, wanted - has) for wanted, has in zip((height, width), image.shape[1:], strict=True)]
        top, left = (m // 2 for m in missing)
        return v2.functional.pad(image, [left, top, missing[1] - left, missing[0] - top], padding_mode="edge")

    fit = widen if config.crop == "native" else cover
    return v2.Compose([fit, v2.CenterCrop([height, width]), *normalise(config)])


def crop_and_flip(config: ViewConfig) -> list[View]:
    """The random part of a training view, on pixels."""
    size = list(config.image_size)
    if config.crop == "native":
        crop = v2.RandomCrop(size, pad_if_needed=True, padding_mode="edge")
    else:
        crop = v2.RandomResizedCrop(
            size, scale=config.crop_scale, interpolation=InterpolationMode.BICUBIC, antialias=True
        )
    return [crop, *([v2.RandomHorizontalFlip()] if config.flip else [])]


def normalise(config: ViewConfig) -> list[View]:
    """From pixels to the network's input."""
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(config.mean), list(config.std))]
