"""Instance segmentation: a box, a class and a mask for each object of an image."""

from __future__ import annotations

from typing import ClassVar

from ..detection.scores import Kind
from .detection import Detection


class InstanceSegmentation(Detection):
    """Find objects: their boxes, classes and masks."""

    metric = "mask_map"
    kind: ClassVar[Kind] = "segm"
    heads: ClassVar[tuple[str, ...]] = ("mask-rcnn",)
