"""Sizes and aspect ratios of anchors, from the strides of a pyramid and the boxes of the training images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.detection.table import DetectionImages

QUANTILES = 41
"""Numbers that describe the boxes of a data set."""

PER_STRIDE = {"retinanet": 4.0, "fcos": 1.0}
"""Size of a level's anchors by its stride, where it is not 8: as torchvision's."""

REACH = 2.0
"""Factor by which a level's anchors are at most larger or smaller than its stride has them."""

RATIOS = (0.5, 1.0, 2.0)
"""Height / width of anchors, where the data do not say."""

NARROW = 1.25
"""Factor that two ratios differ by, at least."""


def box_statistics(images: DetectionImages) -> dict[str, list[float]]:
    """Return quantiles of the boxes' sizes, relative to the longer side of their image, and of height / width.

    "aspects" is height / width of the images: that of nearly the widest, and of nearly the tallest.
    """
    known = images.sizes[images.sizes.all(1)]
    aspects = np.quantile(known[:, 0] / known[:, 1], (0.05, 0.95)).tolist() if len(known) else [1.0, 1.0]
    sizes, ratios = [], []
    for one, (height, width) in zip(images.objects, images.sizes.tolist(), strict=True):
        sides = one.boxes[~one.ignored, 2:] - one.boxes[~one.ignored, :2]
        if max(height, width) and len(sides):
            sizes.append(np.sqrt(sides.prod(1)) / max(height, width))
            ratios.append(sides[:, 1] / sides[:, 0])
    shares = np.linspace(0, 1, QUANTILES)
    found = {"sizes": np.concatenate(sizes), "ratios": np.concatenate(ratios)}
    quantiles = {name: np.quantile(values, shares).tolist() for name, values in found.items()}
    return {name: [float(f"{v:.4g}") for v in values] for name, values in {**quantiles, "aspects": aspects}.items()}


def default_sizes(strides: Sequence[int], head: str) -> tuple[float, ...]:
    """Return the sizes of anchors by the strides alone."""
    return tuple(PER_STRIDE.get(head, 8.0) * stride for stride in strides)


def anchor_sizes(
    boxes: Mapping[str, Any], strides: Sequence[int], head: str, extents: Sequence[int], size: Sequence[int]
) -> tuple[float, ...]:
    """Return the size of the anchors of each level, in pixels of a view.

    Boxes belong to the level whose anchors by stride (torchvision's) are nearest; its anchors get their median size,
    at most twice or half of that by stride. Levels without boxes keep it.

    Args:
        boxes: see :func:`box_statistics`.
        strides: of each level.
        head: of the detector.
        extents: median height and width of the images.
        size: height and width of a view.
    """
    plain = default_sizes(strides, head)
    if head == "fcos":
        return plain
    middle = (1 + 2 ** (2 / 3)) / 2 if head == "retinanet" else 1.0  # of the three octaves on a level
    fit = min(s / e for s, e in zip(size, extents, strict=True)) * max(extents)
    found = np.array(boxes["sizes"]) * fit / middle
    nearest = np.abs(np.log(found)[:, None] - np.log(plain)[None]).argmin(1)
    sizes = []
    for level, anchor in enumerate(plain):
        own = found[nearest == level]
        wanted = float(np.median(own)) if len(own) else anchor
        sizes.append(float(max(1, round(min(max(wanted, anchor / REACH), anchor * REACH)))))
    return tuple(sizes)


def anchor_ratios(boxes: Mapping[str, Any], head: str) -> tuple[float, ...]:
    """Return height / width of anchors: quantiles at 10, 50 and 90% of the boxes', those that differ by a quarter."""
    if head == "fcos":
        return (1.0,)
    found: list[float] = []
    low, middle, high = (float(v) for v in np.quantile(boxes["ratios"], (0.1, 0.5, 0.9)))
    for ratio in (middle, low, high):
        if all(abs(math.log(ratio / other)) >= math.log(NARROW) for other in found):
            found.append(float(f"{ratio:.2g}"))
    return tuple(sorted(found))
