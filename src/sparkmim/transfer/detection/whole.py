"""Detect objects in whole images: the same for validation, test and `sparkmim predict`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

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
from ...utils.modules import eval_mode
from .network import COLUMNS, MASK_SIDE, nms_overlap
from .tiles import merge, tile_placements
from .views import Placement, fitted, look, place, restore_boxes

SCORE, LABEL = 4, 5
"""Columns of a detection."""


class Fitted(NamedTuple):
    """An image, or a tile of it, in a view.

    Attributes:
        number: in the source.
        part: the resized image `(C, h, w)`; None if it cannot be read.
        placement: where it lies in the view; None if it cannot be read.
        size: height and width of the image.
        error: why it cannot be read.
    """

    number: int
    part: Tensor | None
    placement: Placement | None = None
    size: tuple[int, int] = (0, 0)
    error: str = ""


class Detections(NamedTuple):
    """What is found in an image.

    Attributes:
        boxes: left, top, right and bottom edge in pixels of the image, `(N, 4)`.
        scores: from the highest on, `(N,)`.
        labels: number of each one's class, from 0, `(N,)`.
        masks: probabilities within the box, `(N, 28, 28)`; None without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None

    @classmethod
    def of(cls, row: Tensor) -> Detections:
        """Return what a row of outputs says, see :func:`flat_rows`; `(detections, columns)`."""
        table = row.numpy()
        table = table[table[:, LABEL] > 0]
        masks = table[:, COLUMNS:].reshape(-1, MASK_SIDE, MASK_SIDE) if table.shape[1] > COLUMNS else None
        return cls(table[:, :4], table[:, SCORE], table[:, LABEL].astype(np.int64) - 1, masks)

    def at_least(self, score: float) -> Detections:
        """Return those of a score or above."""
        kept = self.scores >= score
        return Detections(*(None if part is None else part[kept] for part in self))  # type: ignore[arg-type]


class FittedImages(Dataset[list[Fitted]]):
    """Whole images, brought to the size of a view; looked up by a key that ends in their number.

    Of each image there is a list: of one, or of its tiles.

    Args:
        source: the images.
        data: size of views.
        channels: of the images.
        sizes: height and width that each image must have, `(N, 2)`, 0 for any; None for any.
        tiles: cut images that are larger than a view into tiles instead of scaling them down.
    """

    def __init__(
        self, source: ImageSource, data: ViewConfig, channels: int, sizes: np.ndarray | None, *, tiles: bool = False
    ) -> None:
        self.source, self.data, self.channels, self.sizes, self.tiles = source, data, channels, sizes, tiles

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> list[Fitted]:
        _, index = key
        try:
            pixels = open_image(self.source, index, self.data).decode(self.channels)
        except UnreadableImage as error:
            return [Fitted(index, None, error=str(error))]
        size = (pixels.shape[1], pixels.shape[2])
        if self.sizes is not None and self.sizes[index].any() and size != tuple(self.sizes[index].tolist()):
            known = tuple(self.sizes[index].tolist())
            return [Fitted(index, None, error=f"it has {size} pixels, and its annotations are of {known}")]
        view = self.data.image_size
        larger = any(extent > side for extent, side in zip(size, view, strict=True))
        placements = tile_placements(*size, view) if self.tiles and larger else [fitted(*size, view)]
        return [Fitted(index, look(pixels, one), one, size) for one in placements]


@torch.no_grad()
def each_detected(
    module: nn.Module,
    source: ImageSource,
    data: ViewConfig,
    channels: int,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    sizes: np.ndarray | None = None,
    tiles: bool = False,
) -> Iterator[tuple[Fitted, Tensor | None]]:
    """Yield every image of a source in order with its detections; None for one that cannot be read.

    All views have one size, whatever the images beside them, so that batches change results by rounding alone.

    Args:
        module: on the device.
        source: the images.
        data: size of views, and how they are normalized.
        channels: of the images.
        batch_size: images at a time.
        workers: processes that read images.
        device: where to compute.
        sizes: height and width that each image must have, `(N, 2)`.
        tiles: cut images that are larger than a view into tiles, whose detections are merged.

    Yields:
        Of detections `(detections, columns)`, boxes in pixels of the image; those that there are not have the class 0.
    """
    indices = list(range(len(source)))
    order = [
        [(0, index) for index in indices[start : start + batch_size]] for start in range(0, len(indices), batch_size)
    ]
    loader = load(FittedImages(source, data, channels, sizes, tiles=tiles), order, workers, _joined)
    normalize = Normalize(data, device)
    with eval_mode(module), read(loader) as batches:
        for batch in batches:
            readable = [one for one in batch if one.part is not None]
            rows: list[Tensor] = []
            for start in range(0, len(readable), batch_size):
                some = readable[start : start + batch_size]
                views = [place(normalize(one.part), one.placement, data.image_size) for one in some]  # type: ignore[arg-type]
                rows += [row.cpu() for row in module(torch.stack(views)).float()]
            found = iter(rows)
            for _, parts in groupby(batch, lambda one: one.number):
                own = list(parts)
                if own[0].placement is None:
                    yield own[0], None
                else:
                    yield own[0], _of_image(module, [next(found) for _ in own], own)


def _of_image(module: Any, rows: list[Tensor], parts: list[Fitted]) -> Tensor:
    """Return the detections of an image from those of its view, or of its tiles."""
    size, placements = parts[0].size, [part.placement for part in parts if part.placement is not None]
    own = [in_image(row, placement, size) for row, placement in zip(rows, placements, strict=True)]
    return merge(own, placements, size, nms_overlap(module))


def in_image(row: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    """Return detections of a view with boxes in pixels of the image, clipped to it; without those outside of it."""
    found = row[row[:, LABEL] > 0]
    boxes = restore_boxes(found[:, :4], placement)
    most = torch.tensor((size[1], size[0]) * 2, device=row.device)
    boxes = torch.minimum(boxes.clamp_min(0), most)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    table = torch.zeros_like(row)
    table[: int(kept.sum())] = torch.cat([boxes, found[:, 4:]], 1)[kept]
    return table


def _joined(parts: list[list[Fitted]]) -> list[Fitted]:
    """Return lists of images as one."""
    return [one for part in parts for one in part]
