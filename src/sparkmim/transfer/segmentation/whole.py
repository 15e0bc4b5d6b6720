"""Predict whole images and volumes, each in its own grid: the same for validation, test and `sparkmim predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...data.config import ViewConfig
from ...data.decoding.encoded import UnreadableImage
from ...data.loader import load, read
from ...data.normalize import Normalize
from ...data.sampler import Key
from ...data.sources.base import ImageSource, open_image
from ...data.volumes.geometry import axes_along, reordered
from ...data.volumes.label_store import grid_in
from ...utils.modules import eval_mode
from .sliding import slide


class Whole(NamedTuple):
    """A whole image as it is read.

    Attributes:
        number: in the source.
        pixels: `(C, *size)`; None if it cannot be read.
        affine: from its voxels to the RAS world, of a volume.
        error: why it cannot be read.
    """

    number: int
    pixels: Tensor | None
    affine: np.ndarray | None = None
    error: str = ""


class WholeImages(Dataset[list[Whole]]):
    """Whole images as lists of one, looked up by a key whose second part is their number."""

    def __init__(self, source: ImageSource, data: ViewConfig, channels: int) -> None:
        self.source, self.data, self.channels = source, data, channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> list[Whole]:
        _, index = key
        try:
            image = open_image(self.source, index, self.data)
            pixels = image.decode(self.channels)
        except UnreadableImage as error:
            return [Whole(index, None, error=str(error))]
        return [Whole(index, pixels, getattr(image, "affine", None))]


def joined(parts: list[list[Whole]]) -> list[Whole]:
    """Return lists of images as one."""
    return [whole for part in parts for whole in part]


@dataclass(frozen=True)
class Predictor:
    """A network that predicts whole images.

    Attributes:
        module: from images to logits, on the device.
        data: window's size, and how images are normalized.
        channels: of the images.
        overlap: share of a window that the next one covers too.
        batch_size: windows at a time.
        device: where to compute.
    """

    module: nn.Module
    data: ViewConfig
    channels: int
    overlap: float
    batch_size: int
    device: torch.device

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits `(classes, *size)` of a whole image, float32, on the device."""
        image = Normalize(self.data, self.device)(pixels)
        return slide(self.module, image, self.data.image_size, overlap=self.overlap, batch_size=self.batch_size)

    def each(self, source: ImageSource, workers: int) -> Iterator[tuple[Whole, Tensor | None]]:
        """Yield every image of a source in order with its logits; None for one that cannot be read."""
        order = [[(0, index)] for index in range(len(source))]
        loader = load(WholeImages(source, self.data, self.channels), order, workers, joined)
        with eval_mode(self.module), read(loader) as batches:
            for batch in batches:
                for whole in batch:
                    yield whole, None if whole.pixels is None else self.logits(whole.pixels)


def to_grid(logits: Tensor, affine: np.ndarray, grid: np.ndarray, shape: Sequence[int], background: int) -> Tensor:
    """Return the classes of a volume's voxels in the grid in which it was taken, `(*shape)`, uint8.

    Logits are interpolated linearly; voxels outside of what was prepared (cropped away) are background.

    Args:
        logits: `(classes, *size)`, of the prepared volume, whose axes may be in another order than the grid's.
        affine: of the prepared volume.
        grid: affine of the volume as it was taken, RAS.
        shape: of that.
        background: number of the class of voxels outside.

    Raises:
        ValueError: if the grids have different axes.
    """
    axes = axes_along(affine, grid)
    placed = None if axes is None else grid_in(grid, reordered(affine, axes))
    if axes is None or placed is None:
        raise ValueError("the prepared volume has other axes than the volume as it was taken; prepare it again")
    logits = logits.permute(0, *(1 + axis for axis in axes))
    outside = torch.zeros(tuple(shape), dtype=torch.bool, device=logits.device)
    for axis, (scale, offset, size) in enumerate(zip(*placed, shape, strict=True)):
        extent = logits.shape[axis + 1]
        places = torch.arange(size, dtype=torch.float64) * scale + offset
        places = torch.where((places - places.round()).abs() < 1e-4, places.round(), places)
        there = ((places < -0.5) | (places > extent - 0.5)).to(logits.device)
        outside |= there.view(*(-1 if a == axis else 1 for a in range(len(shape))))
        places = places.clamp(0, extent - 1)
        low = places.floor().long()
        part = (places - low).float().to(logits.device)
        low, high = low.to(logits.device), (low + 1).clamp_max(extent - 1).to(logits.device)
        share = part.view(*(-1 if a == axis + 1 else 1 for a in range(logits.ndim)))
        if part.any():
            logits = logits.index_select(axis + 1, low) * (1 - share) + logits.index_select(axis + 1, high) * share
        else:
            logits = logits.index_select(axis + 1, low)
    return logits.argmax(0).to(torch.uint8).masked_fill(outside, background)
