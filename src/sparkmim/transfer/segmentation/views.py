"""Crops of images and of their masks to train on, changed together; likewise of volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from ...data.config import ViewConfig
from ...data.decoding.encoded import UnreadableImage
from ...data.loader import first_shown
from ...data.normalize import Normalize
from ...data.sampler import Key
from ...data.seeding import Stream, keyed_generator
from ...data.segmentation.classes import IGNORED
from ...data.segmentation.images import SegmentedImages
from ...data.segmentation.masks import read_mask
from ...data.segmentation.volumes import SegmentedVolumes
from ...data.sources.base import open_image
from ...data.views import resize
from ...data.volumes.label_views import LabeledVolumeView
from ..config import SegmentationSettings
from ..photometric import Photometric, change_values
from ..views import TargetBatch


class SegmentedViews(Dataset[TargetBatch]):
    """Crops and their masks as batches of one, looked up by epoch and index.

    Args:
        images: how many there are.
        show: returns the normalized crop `(C, *size)` and the mask `(*size)` of an image, given its number and a
            generator.
        seed: of the run.
    """

    def __init__(self, images: int, show: Callable[[int, torch.Generator], tuple[Tensor, Tensor]], seed: int) -> None:
        self.images, self.show, self.seed = images, show, seed

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, key: Key) -> TargetBatch:
        """Return the crop of an image, of a random other one if it cannot be read.

        Raises:
            UnreadableImage: if a hundred in a row cannot be read.
        """
        epoch, index = key
        generator = keyed_generator(self.seed, Stream.VIEW, epoch, index)
        (view, mask), index, broken = first_shown(self.show, index, self.images, generator)
        return TargetBatch(view.unsqueeze(0), mask.unsqueeze(0), [index], broken)


class ImageCrops:
    """Random crops of images at their own resolution or near it, flipped, with other colors, and of their masks.

    Args:
        images: with their masks.
        data: size of crops, and how images are normalized.
        settings: of the segmentation.
        channels: of the images.
    """

    def __init__(
        self, images: SegmentedImages, data: ViewConfig, settings: SegmentationSettings, channels: int
    ) -> None:
        self.images, self.data, self.channels = images, data, channels
        self.zoom = settings.zoom
        self._change = Photometric(Normalize(data), settings.jitter)

    def __call__(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the normalized crop `(C, *size)` and its mask `(*size)`, uint8.

        Raises:
            UnreadableImage: if the image or its mask cannot be read.
        """
        image = open_image(self.images.source, index, self.data).decode(self.channels)
        try:
            numbers = torch.from_numpy(read_mask(self.images.masks[index], self.images.table))
        except ValueError as error:
            raise UnreadableImage(str(error)) from error
        if image.shape[1:] != numbers.shape:
            raise UnreadableImage(f"it has {tuple(image.shape[1:])} pixels, and its mask {tuple(numbers.shape)}")
        pixels, mask = self.cut(tv_tensors.Image(image), tv_tensors.Mask(numbers), generator)
        return self._change(pixels.as_subclass(Tensor), generator), mask.as_subclass(Tensor)

    def cut(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask, generator: torch.Generator
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Return a random crop of both: edges of the image are repeated beyond it, where the mask has no class."""
        size = self.data.image_size
        scale, down, across, flip = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        low, high = self.zoom
        zoom = low * (high / low) ** scale
        height, width = (max(1, round(side / zoom)) for side in size)
        missing = [max(0, wanted - extent) for wanted, extent in zip((height, width), image.shape[1:], strict=True)]
        if any(missing):
            near = [int(fraction * (m + 1)) for fraction, m in zip((down, across), missing, strict=True)]
            pads = [near[1], near[0], missing[1] - near[1], missing[0] - near[0]]
            image = functional.pad(image, pads, padding_mode="edge")
            mask = functional.pad(mask, pads, fill=IGNORED)
        top = int(down * (image.shape[1] - height + 1))
        left = int(across * (image.shape[2] - width + 1))
        parts = []
        for part in (image, mask):
            part = functional.crop(part, top, left, height, width)
            parts.append(functional.horizontal_flip(part) if self.data.flip and flip < 0.5 else part)
        image, mask = parts
        if (height, width) != tuple(size):
            image = tv_tensors.wrap(resize(image.as_subclass(Tensor), (size[0], size[1])), like=image)
            mask = tv_tensors.wrap(nearest(mask.as_subclass(Tensor), size), like=mask)
        return image, mask


def nearest(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a mask `(H, W)` to a size, each pixel to the nearest one of its center.

    torchvision's, whose nearest is that of a pixel's corner, moves masks against their images by up to a pixel.
    """
    rows, columns = (
        ((torch.arange(side, dtype=torch.float64) + 0.5) * extent / side).long()
        for side, extent in zip(size, mask.shape, strict=True)
    )
    return mask[rows][:, columns]


class VolumeCrops:
    """Random crops of volumes and their label maps, see :class:`LabeledVolumeView`, with other scale and offset.

    Args:
        volumes: with their label maps.
        data: size of crops, and how values are normalized.
        settings: of the segmentation.
        rotate: rotate and scale a share of the crops.
    """

    def __init__(
        self, volumes: SegmentedVolumes, data: ViewConfig, settings: SegmentationSettings, *, rotate: bool
    ) -> None:
        self.volumes, self.data, self.strength = volumes, data, settings.jitter
        self._view = LabeledVolumeView(data, rotate=rotate, oversample=settings.oversample)
        self._normalize = Normalize(data)

    def __call__(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the normalized crop `(C, *size)` and its mask `(*size)`, uint8.

        Raises:
            UnreadableImage: if the volume or its label map cannot be read.
        """
        volume = open_image(self.volumes.source, index, self.data)
        labels = self.volumes.labels[index].open()
        places = self.volumes.places(index)
        values, drawn = self._view.look_at_both(volume, labels, places, generator)  # type: ignore[arg-type]
        view = change_values(self._normalize(values), self.strength, generator)
        return view, self.volumes.numbers(drawn)
