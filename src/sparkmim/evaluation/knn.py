"""k-nearest-neighbour classification of frozen features.

Source: Wu et al. 2018 (arXiv 1805.01978), as DINO evaluates (its `eval_knn.py`): cosine similarity, each of the k
nearest votes for its class with weight exp(similarity / 0.07).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

TEMPERATURE = 0.07
"""Of the votes, as in DINO."""

NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
"""Numbers of neighbours that are tried."""

CHUNK = 1024
"""Images that are compared with all others at once."""


class Accuracy(NamedTuple):
    """Shares of images classified correctly: of all, and the mean over the classes that have images."""

    top1: float
    class_mean: float


def knn_predictions(
    features: Float[Tensor, "image feature"],
    bank: Float[Tensor, "other feature"],
    bank_labels: Int[Tensor, "other"],
    neighbours: Sequence[int] = NEIGHBOURS,
    *,
    classes: int,
    temperature: float = TEMPERATURE,
    leave_one_out: bool = False,
) -> dict[int, Int[Tensor, "image"]]:
    """The class of each image by its neighbours among labelled ones, for several numbers of neighbours.

    Args:
        features: of the images to classify.
        bank: of labelled images.
        bank_labels: their classes.
        neighbours: numbers of neighbours; repeated ones, and larger ones than there are others, are left out.
        classes: how many there are.
        temperature: of the votes.
        leave_one_out: `features` are those of the bank, and no image is its own neighbour.
    """
    others = len(bank) - leave_one_out
    wanted = [k for k in dict.fromkeys(neighbours) if k <= others]
    bank = F.normalize(bank, dim=1)
    queries = F.normalize(features, dim=1)
    found: dict[int, list[Tensor]] = {k: [] for k in wanted}
    for start in range(0, len(queries) if wanted else 0, CHUNK):
        similarity = queries[start : start + CHUNK] @ bank.T
        if leave_one_out:
            similarity.diagonal(start).fill_(-torch.inf)
        nearest, which = similarity.topk(max(wanted), dim=1)
        # Weights relative to the nearest one: exp of large arguments would overflow for small temperatures.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        labels = bank_labels[which]
        for k in wanted:
            votes = weights.new_zeros(len(weights), classes).scatter_add_(1, labels[:, :k], weights[:, :k])
            found[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in found.items()}


def accuracy(predicted: Int[Tensor, "image"], labels: Int[Tensor, "image"]) -> Accuracy:
    """How many predictions are right."""
    right = (predicted == labels).double()
    each = [right[labels == label].mean() for label in labels.unique()]
    return Accuracy(float(right.mean()), float(torch.stack(each).mean()))


def leave_one_out(
    features: Float[Tensor, "image feature"],
    labels: Int[Tensor, "image"],
    neighbours: Sequence[int] = NEIGHBOURS,
    *,
    classes: int,
) -> dict[int, Accuracy]:
    """Accuracy when each image is classified by all others, for several numbers of neighbours."""
    predicted = knn_predictions(features, features, labels, neighbours, classes=classes, leave_one_out=True)
    return {k: accuracy(prediction, labels) for k, prediction in predicted.items()}


def best_neighbours(accuracies: dict[int, Accuracy]) -> int:
    """The number of neighbours with the highest accuracy, the smaller one of equals."""
    return max(accuracies, key=lambda k: (accuracies[k].top1, -k))
