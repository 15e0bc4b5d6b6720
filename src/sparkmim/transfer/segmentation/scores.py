"""How predicted classes compare with masks: intersection over union and Dice, of exact counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...data.segmentation.classes import IGNORED


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return how many pixels of each class (row) are predicted as each class (column), int64; those of none are not.

    Args:
        truth: numbers of classes, 255 for none.
        predicted: numbers of classes, of the same shape.
        classes: how many there are.
    """
    known = truth != IGNORED
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class SegmentationScore:
    """Scores of a set of images.

    Attributes:
        miou: mean over the classes of the intersection over union of all images' pixels together.
        dice: mean over the classes but the background of Dice, likewise; None where none of them is shown or predicted.
        dice_per_image: mean over the classes but the background of the mean of Dice over the images that show the class
            or are predicted to; as volumes are scored. None likewise.
        accuracy: share of the pixels.
        iou: of each class; None for one that no image shows and none is predicted to.
        dice_of_classes: likewise.
        dice_per_image_of_classes: likewise.
        recall: share of each class's pixels that are found; None without any.
        precision: share of the pixels predicted as each class that are of it; None without any.
    """

    miou: float
    dice: float | None
    dice_per_image: float | None
    accuracy: float
    iou: list[float | None]
    dice_of_classes: list[float | None]
    dice_per_image_of_classes: list[float | None]
    recall: list[float | None]
    precision: list[float | None]

    @classmethod
    def of(cls, confusions: np.ndarray, background: int | None) -> SegmentationScore:
        """Compute the scores of the confusion matrices of images, `(images, classes, classes)`."""
        total = confusions.sum(0)
        iou, dice = _iou(total), _dice(total)
        with np.errstate(invalid="ignore", divide="ignore"):
            per_image = _nanmean(np.stack([_dice(one) for one in confusions]), 0)
            recall = np.diag(total) / total.sum(1)
            precision = np.diag(total) / total.sum(0)
        kept = np.arange(len(total)) != (-1 if background is None else background)
        return cls(
            miou=_mean(iou) or 0.0,
            dice=_mean(dice[kept]),
            dice_per_image=_mean(per_image[kept]),
            accuracy=float(np.diag(total).sum() / max(1, total.sum())),
            iou=_plain(iou),
            dice_of_classes=_plain(dice),
            dice_per_image_of_classes=_plain(per_image),
            recall=_plain(recall),
            precision=_plain(precision),
        )


def image_scores(confusions: np.ndarray, background: int | None) -> np.ndarray:
    """Return mean Dice of each image over the classes, but the background, that it shows or is predicted to.

    NaN for one without any.
    """
    kept = [c for c in range(confusions.shape[1]) if c != background]
    return _nanmean(np.stack([_dice(one)[kept] for one in confusions]), 1)


def _iou(matrix: np.ndarray) -> np.ndarray:
    shared = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - shared
    return np.where(union > 0, shared / np.maximum(union, 1), np.nan)


def _dice(matrix: np.ndarray) -> np.ndarray:
    shared = np.diag(matrix).astype(np.float64)
    both = matrix.sum(0) + matrix.sum(1)
    return np.where(both > 0, 2 * shared / np.maximum(both, 1), np.nan)


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
