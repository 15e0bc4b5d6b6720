"""Views of whole images with their objects: at random scales and places to train on, fitted in to be scored."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from ...data.config import ViewConfig
from ...data.decoding.encoded import UnreadableImage
from ...data.detection.annotations import Mask
from ...data.detection.table import DetectionImages
from ...data.loader import first_shown
from ...data.normalize import Normalize
from ...data.sampler import Key
from ...data.seeding import Stream, keyed_generator
from ...data.sources.base import open_image
from ...data.views import resize
from ..config import DetectionSettings
from ..photometric import Photometric
from ..views import TargetBatch
from .targets import BatchObjects, ViewObjects, as_array

LEAST_VISIBLE = 0.2
"""Share of a box's area that a view must show to train on it."""

LEAST_SIDE = 1.0
"""Pixels of a box's sides in a view, at least."""


class Placement(NamedTuple):
    """Where a part of an image lies in a view.

    Attributes:
        source: top, left, height and width of the part, in pixels of the image.
        size: height and width to which it is resized.
        corner: row and column of its first pixel in the view.
    """

    source: tuple[int, int, int, int]
    size: tuple[int, int]
    corner: tuple[int, int]


def fitted(height: int, width: int, view: tuple[int, ...]) -> Placement:
    """Return the whole image, as large as the view takes it, in its first corner."""
    scale = min(view[0] / height, view[1] / width)
    size = (max(1, min(view[0], round(height * scale))), max(1, min(view[1], round(width * scale))))
    return Placement((0, 0, height, width), size, (0, 0))


def random_placement(
    height: int, width: int, view: tuple[int, ...], zoom: tuple[float, float], generator: torch.Generator
) -> Placement:
    """Return the image at a random scale relative to the one that fits, at a random place, as large-scale jitter does.

    Source: Ghiasi et al., Simple Copy-Paste, 2021.
    """
    drawn, down, across = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    low, high = zoom
    scale = low * (high / low) ** drawn * min(view[0] / height, view[1] / width)
    axes = [
        _along(extent, scale, side, share)
        for extent, side, share in zip((height, width), view, (down, across), strict=True)
    ]
    (top, tall, out_tall, row), (left, wide, out_wide, column) = axes
    return Placement((top, left, tall, wide), (out_tall, out_wide), (row, column))


def _along(extent: int, scale: float, side: int, share: float) -> tuple[int, int, int, int]:
    """Return start and length of the part of an axis that is shown, its length in the view, and where it begins."""
    scaled = max(1, round(extent * scale))
    if scaled <= side:
        return 0, extent, scaled, int(share * (side - scaled + 1))
    length = max(1, min(extent, round(side / scale)))
    return int(share * (extent - length + 1)), length, side, 0


def look(pixels: Tensor, placement: Placement) -> Tensor:
    """Return the part of an image `(C, H, W)` that a view shows, in the view's scale."""
    top, left, height, width = placement.source
    part = pixels[:, top : top + height, left : left + width]
    return part if tuple(part.shape[1:]) == placement.size else resize(part, placement.size)


def place(part: Tensor, placement: Placement, view: tuple[int, ...]) -> Tensor:
    """Return a view `(C, *view)` that shows a normalized part, and the mean beyond it."""
    row, column = placement.corner
    canvas = part.new_zeros(len(part), *view)
    canvas[:, row : row + part.shape[1], column : column + part.shape[2]] = part
    return canvas


class ObjectViews(Dataset[TargetBatch]):
    """Random views and their objects as batches of one, looked up by epoch and index.

    Args:
        images: with their objects.
        data: size of views, and how images are normalized.
        settings: of the detection.
        channels: of the images.
        seed: of the run.
        masks: of the objects are wanted.
    """

    def __init__(
        self,
        images: DetectionImages,
        data: ViewConfig,
        settings: DetectionSettings,
        channels: int,
        seed: int,
        *,
        masks: bool,
    ) -> None:
        self.images, self.data, self.channels, self.seed, self.masks = images, data, channels, seed, masks
        self.zoom = settings.zoom
        self._change = Photometric(Normalize(data), settings.jitter)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> TargetBatch:
        """Return the view of an image, of a random other one if it cannot be read.

        Raises:
            UnreadableImage: if a hundred in a row cannot be read.
        """
        epoch, index = key
        generator = keyed_generator(self.seed, Stream.VIEW, epoch, index)
        (view, objects), index, broken = first_shown(self.show, index, len(self.images), generator)
        return TargetBatch(view.unsqueeze(0), BatchObjects((objects,)), [index], broken)

    def show(self, index: int, generator: torch.Generator) -> tuple[Tensor, ViewObjects]:
        """Return the normalized view `(C, *size)` of an image, and its objects.

        Raises:
            UnreadableImage: if the image cannot be read, or has another size than when its annotations were read.
        """
        pixels = read_whole(self.images, index, self.data, self.channels)
        height, width = pixels.shape[1:]
        view = self.data.image_size
        placement = random_placement(height, width, view, self.zoom, generator)
        flip = self.data.flip and float(torch.rand((), generator=generator)) < 0.5
        canvas = place(self._change(look(pixels, placement), generator), placement, view)
        objects = self._objects(index, placement, (height, width))
        if flip:
            canvas = functional.horizontal_flip(canvas)
            objects = _flipped(objects, view)
        return canvas, objects

    def _objects(self, index: int, placement: Placement, size: tuple[int, int]) -> ViewObjects:
        own = self.images.objects[index]
        kept = np.flatnonzero(~own.ignored)
        plain = move_boxes(torch.from_numpy(own.boxes[kept]), placement)
        most = torch.tensor((self.data.image_size[1], self.data.image_size[0]) * 2)
        shown = torch.minimum(plain.clamp_min(0), most)
        sides, before = shown[:, 2:] - shown[:, :2], plain[:, 2:] - plain[:, :2]
        seen = (sides >= LEAST_SIDE).all(1) & (sides.prod(1) >= LEAST_VISIBLE * before.prod(1))
        masks = None
        if self.masks:
            drawn = [move_mask(own.masks[i], placement, size, self.data.image_size) for i in kept[seen.numpy()]]
            masks = torch.stack(drawn) if drawn else torch.zeros(0, *self.data.image_size, dtype=torch.uint8)
        labels = torch.from_numpy(own.labels[kept])[seen] + 1
        return ViewObjects(shown[seen], labels, masks)


def read_whole(images: DetectionImages, index: int, data: ViewConfig, channels: int) -> Tensor:
    """Return an image `(C, H, W)`.

    Raises:
        UnreadableImage: if it cannot be read, or has another size than when its annotations were read.
    """
    pixels = open_image(images.source, index, data).decode(channels)
    known = tuple(images.sizes[index].tolist())
    if any(known) and tuple(pixels.shape[1:]) != known:
        raise UnreadableImage(f"it has {tuple(pixels.shape[1:])} pixels, and its annotations are of {known}")
    return pixels


def move_boxes(boxes: Tensor, placement: Placement) -> Tensor:
    """Return the boxes of an image in a view, `(N, 4)`; they may reach beyond it, or lie outside.

    torchvision's crop of boxes clips them, after which one cannot tell how much of each is seen.
    """
    scale, start, corner = _axes(placement)
    return (boxes - start) * scale + corner


def restore_boxes(boxes: Tensor, placement: Placement) -> Tensor:
    """Return the boxes of a view in its image: the reverse of :func:`move_boxes`."""
    scale, start, corner = (part.to(boxes.device) for part in _axes(placement))
    return (boxes - corner) / scale + start


def _axes(placement: Placement) -> tuple[Tensor, Tensor, Tensor]:
    """Return scale, start in the image and corner in the view, for left, top, right and bottom edges."""
    top, left, height, width = placement.source
    scale = torch.tensor((placement.size[1] / width, placement.size[0] / height) * 2)
    return scale, torch.tensor((left, top) * 2), torch.tensor(placement.corner[::-1] * 2)


def move_mask(mask: Mask | None, placement: Placement, size: tuple[int, int], view: tuple[int, ...]) -> Tensor:
    """Return the mask of an object in a view, `(*view)`, uint8: polygons are drawn in its scale, pixels the nearest."""
    top, left, height, width = placement.source
    row, column = placement.corner
    down, across = placement.size[0] / height, placement.size[1] / width
    canvas = torch.zeros(*view, dtype=torch.uint8)
    window = (slice(row, row + placement.size[0]), slice(column, column + placement.size[1]))
    if isinstance(mask, list):
        scale, start = np.array([across, down]), np.array([left, top])
        moved = [((np.array(part).reshape(-1, 2) - start) * scale).reshape(-1).tolist() for part in mask]
        canvas[window] = torch.from_numpy(as_array(moved, *placement.size))
        return canvas
    drawn = torch.from_numpy(as_array(mask, *size))[top : top + height, left : left + width]
    rows, columns = (
        ((torch.arange(side, dtype=torch.float64) + 0.5) * extent / side).long()
        for side, extent in zip(placement.size, (height, width), strict=True)
    )
    canvas[window] = drawn[rows][:, columns]
    return canvas


def _flipped(objects: ViewObjects, view: tuple[int, ...]) -> ViewObjects:
    size = (view[0], view[1])
    boxes = tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=size)  # type: ignore[call-overload]
    masks = None if objects.masks is None else functional.horizontal_flip(tv_tensors.Mask(objects.masks))
    return ViewObjects(
        functional.horizontal_flip(boxes).as_subclass(Tensor),
        objects.labels,
        None if masks is None else masks.as_subclass(Tensor),
    )
