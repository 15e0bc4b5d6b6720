"""Predicted masks in the pixels of their image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from .whole import Detections

TOGETHER = 16
"""Masks that are pasted at a time; each takes four bytes for each pixel of the image."""


def paste(found: Detections, height: int, width: int) -> list[dict[str, Any]]:
    """Return the masks of detections as COCO's compressed run lengths: where they are likelier than not."""
    from pycocotools import mask as coco

    return [coco.encode(np.asfortranarray(mask)) for part in pasted(found, height, width) for mask in part]


def pasted(found: Detections, height: int, width: int) -> list[np.ndarray]:
    """Return masks `(n, height, width)`, uint8, in groups of a few."""
    assert found.masks is not None
    parts = []
    for start in range(0, len(found.boxes), TOGETHER):
        chosen = slice(start, start + TOGETHER)
        masks = torch.from_numpy(found.masks[chosen]).unsqueeze(1)
        drawn = paste_masks_in_image(masks, torch.from_numpy(found.boxes[chosen]), (height, width))
        parts.append((drawn[:, 0] >= 0.5).numpy().astype(np.uint8))
    return parts
