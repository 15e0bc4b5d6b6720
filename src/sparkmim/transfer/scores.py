"""What a classifier says of images, and how often it is right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.config import ViewConfig
from ..data.labels import LabelledImages
from ..data.loader import PlainViews, plain_batches, read
from ..data.normalize import Normalise, join, unit_scale
from ..data.sources.base import ImageSource
from ..data.views import evaluation_view
from ..evaluation.knn import accuracy
from ..reporting.reconstructions import save_png, tile, to_rgb
from .objective import ObjectiveConfig, classification_loss, one_hot

MISTAKES = 12
"""Images that are shown, the most certain mistakes."""


class Predictions(NamedTuple):
    """Of the images that could be read.

    Attributes:
        logits: float32, on the CPU.
        indices: number of each row's image in its source.
        broken: number and error of each image that could not be read.
    """

    logits: Float[Tensor, "image class"]
    indices: list[int]
    broken: list[tuple[int, str]]

    @property
    def probabilities(self) -> Float[Tensor, "image class"]:
        """Of the classes, which exclude each other; they add up to 1."""
        return self.logits.softmax(1)


@torch.no_grad()
def predict_source(
    module: nn.Module,
    source: ImageSource,
    view: ViewConfig,
    channels: int,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Predictions:
    """Logits of the classes for every image, in order; the module is in evaluation mode meanwhile."""
    rows: list[Tensor] = []
    indices: list[int] = []
    broken: list[tuple[int, str]] = []
    normalise = Normalise(view, device)
    training = module.training
    module.eval()
    with read(plain_batches(PlainViews(source, evaluation_view(view), channels), batch_size, workers)) as batches:
        for batch in batches:
            broken += batch.broken
            indices += batch.indices
            if batch.images:
                with autocast():
                    logits = module(normalise(join(batch.images)))
                rows.append(logits.float().cpu())
    module.train(training)
    return Predictions(torch.cat(rows) if rows else torch.zeros(0, 0), indices, broken)


@dataclass(frozen=True)
class Score:
    """How predictions compare with labels.

    Attributes:
        images: that could be read.
        broken: that could not.
        loss: mean of what training reduces, of one image and one class each.
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
    def of(cls, predictions: Predictions, labelled: LabelledImages, objective: ObjectiveConfig) -> Score:
        """Measured on at least one image."""
        labels = torch.from_numpy(labelled.labels[predictions.indices])
        predicted = predictions.logits.argmax(1)
        right = accuracy(predicted, labels)
        count = len(labelled.classes)
        confusion = torch.bincount(labels * count + predicted, minlength=count * count).view(count, count)
        certain = replace(objective, smoothing=0.0)
        return cls(
            images=len(labels),
            broken=len(predictions.broken),
            loss=float(classification_loss(predictions.logits, one_hot(labels, count), certain)),
            top1=right.top1,
            mean_per_class=right.class_mean,
            confusion=confusion.tolist(),
        )


def draw_mistakes(
    predictions: Predictions, labelled: LabelledImages, view: ViewConfig, channels: int, folder: Path
) -> list[dict[str, Any]]:
    """Save pictures of the images that are taken for another class with the highest probability.

    Returns:
        For each its name, class, predicted class, the probability of that, and the file of its picture.
    """
    labels = labelled.labels[predictions.indices]
    certain, predicted = predictions.probabilities.max(1)
    wrong = np.flatnonzero(predicted.numpy() != labels)
    worst = wrong[np.argsort(-certain.numpy()[wrong], kind="stable")][:MISTAKES]
    shown, found = evaluation_view(view), []
    for place, row in enumerate(worst.tolist()):
        index = predictions.indices[row]
        image = unit_scale(shown.look(labelled.source, index, channels)).unsqueeze(0)
        path = folder / f"{place:02}.png"
        save_png(tile(to_rgb(image, image)[0]), path)
        found.append(
            {
                "image": labelled.source.name(index),
                "class": labelled.classes[labels[row]],
                "predicted": labelled.classes[int(predicted[row])],
                "probability": round(float(certain[row]), 4),
                "picture": path.name,
            }
        )
    return found
