"""Frozen features of images: the mean over all positions of one of a network's maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.config import ViewConfig
from ..data.loader import PlainViews, plain_batches, read
from ..data.normalize import Normalise, join
from ..data.sources.base import ImageSource
from ..data.views import evaluation_view
from ..models.backbone import Backbone


class Features(NamedTuple):
    """Features of the images that could be read.

    Attributes:
        values: float32, on the CPU.
        indices: number of each row's image in its source.
        broken: number and error of each image that could not be read.
    """

    values: Float[Tensor, "image feature"]
    indices: list[int]
    broken: list[tuple[int, str]]


@torch.no_grad()
def pooled_features(
    backbone: Backbone,
    source: ImageSource,
    data: ViewConfig,
    stage: int = -1,
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Features:
    """Features of every image of a source, in one pass, in order, without augmentation.

    Args:
        backbone: the network, on the device, in evaluation mode.
        source: the images.
        data: their size, mean and deviation.
        stage: which map, from 0, the finest, to -1, the deepest.
        batch_size: images at a time.
        workers: processes that read images.
        device: where to compute.

    Raises:
        ValueError: if the network has no such map.
    """
    levels = len(backbone.levels)
    if not -levels <= stage < levels:
        raise ValueError(
            f"--stage {stage} is not one of the network's {levels} maps, 0 to {levels - 1} or -{levels} to -1"
        )
    rows: list[Tensor] = []
    indices: list[int] = []
    broken: list[tuple[int, str]] = []
    normalise = Normalise(data, device)
    views = PlainViews(source, evaluation_view(data), backbone.in_chans)
    with read(plain_batches(views, batch_size, workers)) as batches:
        for batch in batches:
            broken += batch.broken
            indices += batch.indices
            if batch.images:
                maps = backbone(normalise(join(batch.images)))
                rows.append(maps[stage].flatten(2).mean(2, dtype=torch.float32).cpu())
    values = torch.cat(rows) if rows else torch.zeros(0, backbone.channels[stage])
    return Features(values, indices, broken)
