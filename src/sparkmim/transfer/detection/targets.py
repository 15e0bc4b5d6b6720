"""The objects of a batch of views, and masks as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...data.detection.annotations import Mask
from ...data.detection.coco_masks import run_lengths


class ViewObjects(NamedTuple):
    """The objects of a view.

    Attributes:
        boxes: left, top, right and bottom edge in pixels of the view, `(N, 4)`, float32.
        labels: number of each one's class, from 1, `(N,)`, int64.
        masks: `(N, H, W)`, uint8; None without masks.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None

    def moved(self, device: Any, *, non_blocking: bool = False) -> ViewObjects:
        """Return the objects on a device."""
        return ViewObjects(*(None if p is None else p.to(device, non_blocking=non_blocking) for p in self))  # type: ignore[arg-type]

    def as_torchvision(self) -> dict[str, Tensor]:
        """Return what torchvision's detectors take."""
        own = {"boxes": self.boxes, "labels": self.labels}
        return own if self.masks is None else {**own, "masks": self.masks}


class BatchObjects(NamedTuple):
    """The objects of several views, as the target of a :class:`~sparkmim.transfer.views.TargetBatch`.

    Attributes:
        views: the objects of each.
    """

    views: tuple[ViewObjects, ...]

    def to(self, device: Any, non_blocking: bool = False) -> BatchObjects:
        """Return the objects on a device."""
        return BatchObjects(tuple(view.moved(device, non_blocking=non_blocking) for view in self.views))

    def joined(self, others: Sequence[BatchObjects]) -> BatchObjects:
        """Return the objects of several batches as those of one, this one first."""
        return BatchObjects(tuple(view for part in [self, *others] for view in part.views))

    def as_torchvision(self) -> list[dict[str, Tensor]]:
        """Return what torchvision's detectors take."""
        return [view.as_torchvision() for view in self.views]


def as_array(mask: Mask, height: int, width: int) -> np.ndarray:
    """Return a mask as an array `(H, W)`, uint8, 1 within."""
    from pycocotools import mask as coco

    found: np.ndarray = coco.decode(run_lengths(mask, height, width))
    return found
