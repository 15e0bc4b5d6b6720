"""Two views of each image, differently cut and colored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from ..data.config import ViewConfig
from ..data.loader import random_view
from ..data.normalize import join
from ..data.photometric import PhotometricChange
from ..data.sampler import Key
from ..data.seeding import Stream, keyed_generator
from ..data.sources.base import ImageSource, open_image
from ..data.views import TrainingView
from .config import StrongViewConfig


class PairBatch(NamedTuple):
    """Pairs of views.

    Attributes:
        images: `(2 B, C, H, W)`, uint8 or float32, not normalized; views `2 i` and `2 i + 1` are of one image.
        indices: number of each image in the source; for an unreadable image, that of its replacement.
        broken: number and error of each image that could not be read.
    """

    images: Shaped[Tensor, "view channel height width"]
    indices: list[int]
    broken: list[tuple[int, str]]


class PairView(TrainingView):
    """Cut two windows out of an image, which is decoded once where both need it at the same size."""

    def look(self, source: ImageSource, index: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
        """Read two views of an image: `(2, C, H, W)`.

        Raises:
            UnreadableImage: if the image cannot be decoded.
        """
        image = open_image(source, index, self.config)
        size = image.size(channels)
        whole = image.decode(channels) if size is None else None
        height, width = (whole.shape[1], whole.shape[2]) if whole is not None else size or (0, 0)
        decoded: dict[int, Tensor] = {}
        views = []
        for window in [self.place(height, width, generator) for _ in range(2)]:
            if whole is None and window.reduction not in decoded:
                decoded[window.reduction] = image.decode(channels, window.reduction)
            views.append(self.cut(decoded[window.reduction] if whole is None else whole, window))
        return torch.stack(views)


class PairedViews(Dataset[PairBatch]):
    """Batches of the two views of one image, looked up by epoch and index.

    Args:
        source: the images.
        data: how views are cut.
        strong: what is changed in them.
        channels: of the network.
        seed: of the run.
    """

    def __init__(
        self, source: ImageSource, data: ViewConfig, strong: StrongViewConfig, channels: int, seed: int
    ) -> None:
        self.source, self.channels, self.seed = source, channels, seed
        self.view = PairView(data)
        self.change = PhotometricChange(strong.jitter, strong.gray, strong.blur)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> PairBatch:
        epoch, index = key
        generator = keyed_generator(self.seed, Stream.VIEW, epoch, index)
        views, shown, broken = random_view(self.source, self.view, self.channels, index, generator)
        return PairBatch(torch.stack([self.change(view, generator) for view in views]), [shown], broken)


def collate_pairs(pairs: list[PairBatch]) -> PairBatch:
    """Return pairs as one batch."""
    return PairBatch(
        join([pair.images for pair in pairs]),
        [index for pair in pairs for index in pair.indices],
        [broken for pair in pairs for broken in pair.broken],
    )
