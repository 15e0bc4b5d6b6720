"""Classification from a few images of each class, over many random draws of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.seeding import Stream, keyed_generator
from .frozen import LabeledFeatures


class Measured(NamedTuple):
    """A number and its uncertainty.

    Attributes:
        value: mean over queries, draws or repetitions.
        error: standard error of that mean over queries; standard deviation over draws and repetitions.
    """

    value: float
    error: float


def share_of(right: Tensor) -> Measured:
    """Return the share of True in a tensor, and its standard error."""
    share = float(right.double().mean())
    return Measured(share, math.sqrt(share * (1 - share) / max(1, len(right))))


def few_shot(
    train: LabeledFeatures, test: LabeledFeatures | None, shots: int, *, draws: int, seed: int
) -> Measured | None:
    """Classify images by the nearest class mean of a few images of each class, by cosine similarity.

    Args:
        train: labeled images from which a few of each class are drawn; a class that has fewer gives all it has.
        test: images to classify; None for all those of `train` that are not drawn.
        shots: images of a class.
        draws: random choices of them.
        seed: of the draws.

    Returns:
        Mean and standard deviation of the accuracy over the draws; None if no class has more images than are drawn, so
        that all draws would be the same, or nothing is left to classify.
    """
    classes = train.labels.unique()
    of_class = [(train.labels == label).nonzero().flatten() for label in classes]
    if all(len(members) <= shots for members in of_class):
        return None
    features = F.normalize(train.values.double(), dim=1)
    scored = None if test is None else F.normalize(test.values.double(), dim=1)
    found = []
    for draw in range(draws):
        generator = keyed_generator(seed, Stream.FEW_SHOT, shots, draw)
        drawn = [members[torch.randperm(len(members), generator=generator)[:shots]] for members in of_class]
        means = F.normalize(torch.stack([features[chosen].mean(0) for chosen in drawn]), dim=1)
        rest = torch.ones(len(train), dtype=torch.bool)
        rest[torch.cat(drawn)] = False
        queries, labels = (
            (features[rest], train.labels[rest]) if test is None or scored is None else (scored, test.labels)
        )
        found.append((classes[(queries @ means.T).argmax(1)] == labels).double().mean())
    each = torch.stack(found)
    return Measured(float(each.mean()), float(each.std(correction=1)) if draws > 1 else math.nan)
