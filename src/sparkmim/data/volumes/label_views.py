"""Crops of volumes and of their label maps at the same place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..config import ViewConfig
from ..crops import NUMBERS, Crop, CropTrainingView, cut, places_of_crop
from .store import StoredVolume

OTHERS = 4
"""Random numbers drawn for a crop beside those of its rotation and its place."""


class LabeledVolumeView(CropTrainingView):
    """A random crop of a volume and of its label map, flipped, rotated and scaled alike.

    A share of the crops lies around a voxel of a random label, as nnU-Net's do.

    Args:
        config: size of views, and whether they are flipped.
        rotate: rotate and scale a share of the crops.
        oversample: share of the crops around a labeled voxel.
    """

    def __init__(self, config: ViewConfig, *, rotate: bool, oversample: float) -> None:
        super().__init__(config, rotate=rotate)
        self.oversample = oversample

    def look_at_both(
        self,
        volume: StoredVolume,
        labels: StoredVolume,
        places: Mapping[int, Sequence[Sequence[int]]],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return a crop `(C, *size)` of a volume, NaN beyond it, and of its label map `(*size)`, -1 beyond it.

        Args:
            volume: prepared.
            labels: prepared likewise.
            places: some voxels of each label.
            generator: for its random numbers.

        Raises:
            UnreadableImage: if one of them cannot be read.
        """
        crop = self.place(volume.shape[1:], places, generator)
        return cut(volume, crop, self.size), cut_labels(labels, crop, self.size)

    def place(
        self, space: Sequence[int], places: Mapping[int, Sequence[Sequence[int]]], generator: torch.Generator
    ) -> Crop:
        """Return a random crop of a volume of some size."""
        dims = len(self.size)
        numbers = torch.rand(NUMBERS + OTHERS + dims, generator=generator, dtype=torch.float64).tolist()
        flip = tuple(bit == "1" for bit in f"{int(numbers[NUMBERS - 1] * 2**dims):0{dims}b}")
        matrix = self._matrix(numbers[:NUMBERS]) if self.rotate else None
        around, which, voxel, _ = numbers[NUMBERS : NUMBERS + OTHERS]
        start = [
            _between(min(0, s - w), max(0, s - w), number)
            for s, w, number in zip(space, self.size, numbers[NUMBERS + OTHERS :], strict=True)
        ]
        if around < self.oversample and places:
            labels = sorted(places)
            voxels = places[labels[int(which * len(labels))]]
            center = voxels[int(voxel * len(voxels))]
            start = [
                min(max(c - w // 2, min(0, s - w)), max(0, s - w))
                for c, s, w in zip(center, space, self.size, strict=True)
            ]
        return Crop(tuple(start), matrix, flip if self.config.flip else (False,) * dims)


def cut_labels(labels: StoredVolume, crop: Crop, size: Sequence[int]) -> Tensor:
    """Cut a view of `size` voxels out of a label map `(*size)`, int64: the nearest label, -1 beyond the map."""
    if crop.matrix is None:
        view = _straight(labels, crop.start, size)
    else:
        placed = places_of_crop(crop, size)
        region = _straight(labels, placed.low, placed.read)
        places = (placed.places + 0.5).floor().long() - torch.tensor(placed.low)  # within the part that is read
        view = region[tuple(places.unbind(-1))]
    axes = [axis for axis, flipped in enumerate(crop.flip) if flipped]
    return view.flip(axes) if axes else view


def _straight(labels: StoredVolume, start: Sequence[int], size: Sequence[int]) -> Tensor:
    space = labels.shape[1:]
    inside = [(max(0, a), min(s, a + w)) for a, w, s in zip(start, size, space, strict=True)]
    view = torch.full(tuple(size), -1, dtype=torch.int64)
    if all(a < b for a, b in inside):
        place = tuple(slice(a - first, b - first) for (a, b), first in zip(inside, start, strict=True))
        part = labels.crop([a for a, _ in inside], [b for _, b in inside])[0]
        view[place] = torch.from_numpy(part.numpy().astype(np.int64))
    return view


def _between(low: int, high: int, fraction: float) -> int:
    return low + int(fraction * (high - low + 1))
