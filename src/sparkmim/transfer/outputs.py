"""What a network says of images: its outputs, of those that could be read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.config import ViewConfig
from ..data.loader import PlainViews, plain_batches, read
from ..data.normalize import Normalize, join
from ..data.sources.base import ImageSource
from ..data.views import evaluation_view
from ..utils.modules import eval_mode


class Outputs(NamedTuple):
    """A network's outputs for images.

    Attributes:
        values: one row an image, float32, on the CPU.
        indices: number of each row's image in its source.
        broken: number and error of each image that could not be read.
    """

    values: Float[Tensor, "image output"]
    indices: list[int]
    broken: list[tuple[int, str]]


@torch.no_grad()
def compute_outputs(
    module: nn.Module,
    source: ImageSource,
    view: ViewConfig,
    channels: int,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Outputs:
    """Return the outputs for every image, in order, of the module in evaluation mode and in its own precision.

    Args:
        module: from images to one row of outputs an image, on the device.
        source: the images.
        view: their size, mean and deviation.
        channels: of the images.
        batch_size: images at a time.
        workers: processes that read images.
        device: where to compute.
    """
    rows: list[Tensor] = []
    indices: list[int] = []
    broken: list[tuple[int, str]] = []
    normalize = Normalize(view, device)
    with (
        eval_mode(module),
        read(plain_batches(PlainViews(source, evaluation_view(view), channels), batch_size, workers)) as batches,
    ):
        for batch in batches:
            broken += batch.broken
            indices += batch.indices
            if batch.images:
                rows.append(module(normalize(join(batch.images))).float().cpu())
    return Outputs(torch.cat(rows) if rows else torch.zeros(0, 0), indices, broken)
