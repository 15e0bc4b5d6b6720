"""Pictures of images with the boundaries of truth and prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.config import ViewConfig
from ...data.normalize import unit_scale
from ...data.segmentation.classes import IGNORED, ClassTable
from ...reporting.reconstructions import as_colors, save_png, to_rgb
from ...reporting.segmentation import enlarged, overlay, side_by_side
from ...utils.orientation import RAS, axes_of

SHOWN = 320
"""Pixels of the longer side of a picture, about: small images are enlarged by a whole factor, large ones reduced."""

RED = (255, 59, 48)
"""Color of pixels that are predicted wrong."""


def planes(pixels: Tensor, wrong: np.ndarray) -> list[tuple[int, int]]:
    """Return axis and place of the slices of a volume that are shown: of each direction the one with most errors."""
    if pixels.ndim == 3:
        return [(-1, 0)]
    found = []
    for axis in (2, 1, 0):
        counts = wrong.sum(tuple(a for a in range(3) if a != axis))
        found.append((axis, int(counts.argmax()) if counts.any() else wrong.shape[axis] // 2))
    return found


def plane_of(values: np.ndarray, axis: int, place: int) -> np.ndarray:
    """Return a slice of a volume `(X, Y, Z)` as one looks at it on paper, or an image itself."""
    return values if axis < 0 else np.ascontiguousarray(values.take(place, axis).T[::-1])


def to_be_drawn(pixels: Tensor, orientation: str, *numbers: np.ndarray) -> tuple[Tensor, list[np.ndarray]]:
    """Return a volume `(C, *size)` and arrays `(*size)` of it in RAS orientation; an image as it is."""
    if pixels.ndim == 3:
        return pixels, list(numbers)
    axes = axes_of(RAS, orientation)
    return pixels.permute(0, *(1 + axis for axis in axes)), [part.transpose(axes) for part in numbers]


def draw_worst(
    pixels: Tensor,
    truth: np.ndarray,
    predicted: np.ndarray,
    table: ClassTable,
    data: ViewConfig,
    path: Path,
    orientation: str = RAS,
) -> None:
    """Save an image, its truth, its prediction and where they differ; of a volume three slices.

    Args:
        pixels: `(C, *size)`, as they are read.
        truth: numbers of classes `(*size)`, 255 for none.
        predicted: numbers of classes.
        table: the classes.
        data: how images are normalized.
        path: of the PNG file.
        orientation: order of the axes of a volume.
    """
    pixels, (truth, predicted) = to_be_drawn(pixels, orientation, truth, predicted)
    wrong = (truth != predicted) & (truth != IGNORED)
    bare = [] if table.background is None else [table.background]
    rows = []
    for axis, place in planes(pixels, wrong):
        own = pixels if axis < 0 else torch.stack([torch.from_numpy(plane_of(c.numpy(), axis, place)) for c in pixels])
        shown, *parts = scaled(picture_of(own, data), *(plane_of(v, axis, place) for v in (truth, predicted)))
        errors = (parts[0] != parts[1]) & (parts[0] != IGNORED)
        marked = overlay(shown, np.where(errors, 0, 1).astype(np.uint8), [RED], fill=0.6)
        rows.append([shown, *(overlay(shown, part, table.colors, bare) for part in parts), marked])
    save_png(side_by_side(rows, ("image", "truth", "prediction", "wrong")), path)


def picture_of(pixels: Tensor, data: ViewConfig) -> np.ndarray:
    """Return an image, or a slice of a volume, in colors."""
    image = unit_scale(pixels)
    mean = torch.tensor(data.mean).view(-1, 1, 1)
    image = torch.where(image.isnan(), mean, image).unsqueeze(0)
    colors: np.ndarray = to_rgb(as_colors(image, image, data.mean, data.std), image)[0].contiguous().numpy()
    return colors


def scaled(picture: np.ndarray, *numbers: np.ndarray) -> list[np.ndarray]:
    """Return a picture and masks of it in the size in which they are shown."""
    longest = max(picture.shape[:2])
    if longest <= SHOWN:
        factor = max(1, round(SHOWN / longest))
        return [enlarged(part, factor) for part in (picture, *numbers)]
    height, width = (max(1, round(side * SHOWN / longest)) for side in picture.shape[:2])
    reduced = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
    masks = [np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST)) for part in numbers]
    return [np.asarray(reduced), *masks]
