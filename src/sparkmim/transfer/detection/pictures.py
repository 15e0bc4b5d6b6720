"""Pictures of images with their hits, misses and false alarms, and with what is found in new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.config import ViewConfig
from ...data.decoding.encoded import UnreadableImage
from ...data.detection.table import DetectionImages
from ...reporting.boxes import ALARM, HIT, MISS, Drawn, draw_boxes
from ...reporting.reconstructions import save_png
from ..segmentation.pictures import picture_of
from .scores import compare
from .views import read_whole
from .whole import Detections

FILL = 0.45
"""Opacity of a mask."""

WORST = 8
"""Images that are shown, those of most mistakes."""


def draw_errors(
    found: Mapping[int, Detections], images: DetectionImages, data: ViewConfig, channels: int, folder: Path
) -> list[dict[str, Any]]:
    """Draw the images of most mistakes, and return what `results.json` says of each.

    Args:
        found: of each image by its number, from the threshold on.
        images: with their objects.
        data: how images are read and normalized.
        channels: of the images.
        folder: for the pictures.
    """
    verdicts = {index: compare(one, *images.objects[index][:3]) for index, one in found.items()}
    errors = {index: len(v.missed) + int((~v.hits).sum()) for index, v in verdicts.items()}
    order = sorted((index for index, count in errors.items() if count), key=lambda index: (-errors[index], index))
    shown: list[dict[str, Any]] = []
    for index in order[:WORST]:
        try:
            pixels = read_whole(images, index, data, channels)
        except UnreadableImage:  # since it was scored
            continue
        one, verdict, own = found[index], verdicts[index], images.objects[index]
        names = images.classes
        missed = zip(own.boxes[verdict.missed], own.labels[verdict.missed], strict=True)
        boxes = [Drawn(box, names[label], MISS) for box, label in missed]
        boxes += [
            Drawn(box, f"{names[label]} {score:.0%}", HIT if hit else ALARM)
            for box, label, score, hit in zip(one.boxes, one.labels, one.scores, verdict.hits, strict=True)
        ]
        path = folder / f"{len(shown):02}.png"
        save_png(draw_boxes(picture_of(pixels, data), boxes), path)
        counts = {"hits": int(verdict.hits.sum()), "missed": len(verdict.missed), "false": int((~verdict.hits).sum())}
        shown.append({"image": images.source.name(index), **counts, "picture": path.name})
    return shown


def draw_found(picture: np.ndarray, boxes: Sequence[Drawn], masks: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Return a picture of an image with what is found in it.

    Args:
        picture: `(H, W, 3)`, uint8.
        boxes: of objects, the most certain ones first.
        masks: of each, run lengths; empty without masks.
    """
    tinted = picture.astype(np.float32)
    if masks:
        from pycocotools import mask as coco

        for drawn, mask in zip(boxes, masks, strict=True):
            within = coco.decode(mask) > 0
            tinted[within] = tinted[within] * (1 - FILL) + np.array(drawn.color, np.float32) * FILL
    return draw_boxes(tinted.round().astype(np.uint8), boxes[::-1])  # the most certain ones on top
