"""How a classifier's outputs compare with labels, and pictures of its worst mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.config import ViewConfig
from ..data.labels import LabeledImages
from ..data.normalize import Normalize, unit_scale
from ..data.views import evaluation_view
from ..evaluation.knn import accuracy
from ..reporting.reconstructions import as_colors, as_picture, save_png, tile, to_rgb
from ..utils.orientation import RAS
from .augment import one_hot
from .losses import classification_loss
from .outputs import Outputs

MISTAKES = 12
"""Images that are shown, the most certain mistakes."""


@dataclass(frozen=True)
class Score:
    """How a classifier's outputs compare with labels.

    Attributes:
        images: that could be read.
        broken: that could not.
        loss: mean of the training loss, without smoothing or mixing.
        top1: share of images classified correctly.
        mean_per_class: mean over the classes that have images.
        confusion: number of images of each class (row) taken for each class (column).
    """

    images: int
    broken: int
    loss: float
    top1: float
    mean_per_class: float
    confusion: list[list[int]]

    @classmethod
    def of(cls, outputs: Outputs, labeled: LabeledImages, loss: str) -> Score:
        """Compute the scores of at least one image; `loss` is that of the training."""
        labels = torch.from_numpy(labeled.labels[outputs.indices])
        predicted = outputs.values.argmax(1)
        right = accuracy(predicted, labels)
        count = len(labeled.classes)
        confusion = torch.bincount(labels * count + predicted, minlength=count * count).view(count, count)
        return cls(
            images=len(labels),
            broken=len(outputs.broken),
            loss=float(classification_loss(outputs.values, one_hot(labels, count), loss, smoothing=0.0)),
            top1=right.top1,
            mean_per_class=right.class_mean,
            confusion=confusion.tolist(),
        )


def draw_mistakes(
    outputs: Outputs,
    labeled: LabeledImages,
    view: ViewConfig,
    channels: int,
    folder: Path,
    orientation: str = RAS,
) -> list[dict[str, Any]]:
    """Save pictures of the images that are taken for another class with the highest probability; slices of volumes.

    Returns:
        For each its name, class, predicted class, the probability of that class, and the file of its picture.
    """
    labels = labeled.labels[outputs.indices]
    certain, predicted = outputs.values.softmax(1).max(1)
    wrong = np.flatnonzero(predicted.numpy() != labels)
    worst = wrong[np.argsort(-certain.numpy()[wrong], kind="stable")][:MISTAKES]
    shown, normalize, found = evaluation_view(view), Normalize(view), []
    for place, row in enumerate(worst.tolist()):
        index = outputs.indices[row]
        image = normalize.fill(unit_scale(shown.look(labeled.source, index, channels))).unsqueeze(0)
        image = as_colors(image, image, view.mean, view.std)
        path = folder / f"{place:02}.png"
        save_png(tile(to_rgb(flat := as_picture(image, orientation), flat)[0]), path)
        found.append(
            {
                "image": labeled.source.name(index),
                "class": labeled.classes[labels[row]],
                "predicted": labeled.classes[int(predicted[row])],
                "probability": round(float(certain[row]), 4),
                "picture": path.name,
            }
        )
    return found
