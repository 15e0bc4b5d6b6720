"""Doubt boxes whose numbers fit their images in another order, or in another unit."""

from __future__ import annotations

import numpy as np

from ...utils.text import counted
from .annotations import Annotations

SMALLEST = 1.5
"""Pixels: where all edges of all boxes lie below, they are shares of the image."""

PLAY = 0.05
"""Share of an image's side by which boxes may reach beyond it: annotators are not exact."""

EXCHANGED, CORNERS = 0.05, 0.5
"""Share of the boxes that must reach beyond their images before they are doubted."""


def require_order(read: Annotations, sizes: np.ndarray, option: str) -> None:
    """Raise for boxes that look like shares of the image, like y before x, or like corners in YOLO's files.

    Args:
        read: the annotations.
        sizes: height and width of each image, `(N, 2)`, 0 where unknown.
        option: that named the data, for messages.

    Raises:
        ValueError: naming the first box and the remedy.
    """
    objects = [
        (written, (1, 1) if written.relative else (int(size[0]), int(size[1])))
        for image, size in zip(read.images, sizes, strict=True)
        for written in image.objects
        if written.relative or size.all()
    ]
    if len(objects) < 2:
        return
    boxes = np.array([written.box for written, _ in objects], np.float64)
    height, width = np.array([size for _, size in objects], np.float64).T
    relative = np.array([written.relative for written, _ in objects])
    right, bottom = boxes[:, 2], boxes[:, 3]
    if not relative.any() and np.abs(boxes).max() <= SMALLEST:
        raise ValueError(
            f"{option}: no box of {len(boxes)} reaches beyond {SMALLEST} pixels from the first corner of the image, "
            f"the first in {objects[0][0].where}: they look like shares of the image, 0 to 1, and {read.kind} counts "
            "pixels; multiply x and widths by the image's width, and y and heights by its height"
        )
    far = (right > (1 + PLAY) * width) | (bottom > (1 + PLAY) * height)
    exchanged = (bottom > (1 + PLAY) * width) | (right > (1 + PLAY) * height)
    what = f"{option}: {counted(int(far.sum()), 'box', 'boxes')} of {len(boxes)} beyond the image, the first in "
    if far.sum() >= max(2, EXCHANGED * len(boxes)) and not exchanged.any():
        raise ValueError(
            f"{what}{objects[int(far.argmax())][0].where}; with x and y exchanged, all boxes lie within their images. "
            "Write x before y, and width before height"
        )
    middles, extents = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    outside = (boxes[:, :2] < 0).any(1) | (boxes[:, 2:] > 1).any(1)
    corners = relative.all() and (extents > middles).all() and (extents <= 1).all()
    if corners and outside.sum() > CORNERS * len(boxes):
        raise ValueError(
            f"{option}: {int(outside.sum())} of {len(boxes)} boxes beyond the image, the first in "
            f"{objects[int(outside.argmax())][0].where}; they look like `class x1 y1 x2 y2`, and {read.kind} has the "
            "middle, width and height: write `class (x1+x2)/2 (y1+y2)/2 x2-x1 y2-y1`"
        )
