"""Losses of a segmentation: cross entropy over pixels, soft Dice over classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...data.segmentation.classes import IGNORED

SMOOTH = 1e-5
"""Added to both sides of Dice's fraction: nnU-Net's."""


def cross_entropy(
    logits: Float[Tensor, "batch class *size"],
    targets: Int[Tensor, "batch *size"],
    weights: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean of the cross entropy over pixels that have a class, weighted by their classes; 0 without any.

    Args:
        logits: of the classes.
        targets: numbers of classes, 255 for none.
        weights: of the classes.
    """
    weight = None if weights is None else torch.tensor(weights, dtype=logits.dtype, device=logits.device)
    wanted = targets.long()
    total = F.cross_entropy(logits, wanted, weight, ignore_index=IGNORED, reduction="sum")
    known = wanted != IGNORED
    if weight is None:
        return total / known.sum().clamp_min(1)
    return total / weight[wanted[known]].sum().clamp_min(1e-12)


def dice_loss(
    logits: Float[Tensor, "batch class *size"], targets: Int[Tensor, "batch *size"], background: int | None = None
) -> Float[Tensor, ""]:
    """Return 1 - the mean of soft Dice over the classes that the batch shows, its images taken together; 0 without any.

    Args:
        logits: of the classes.
        targets: numbers of classes, 255 for none.
        background: number of a class to leave out.
    """
    known = targets != IGNORED
    probabilities = logits.softmax(1) * known.unsqueeze(1)
    wanted = F.one_hot(targets.long().masked_fill(~known, 0), logits.shape[1]).movedim(-1, 1) * known.unsqueeze(1)
    axes = [0, *range(2, logits.ndim)]
    shared = (probabilities * wanted).sum(axes)
    predicted, there = probabilities.sum(axes), wanted.sum(axes)
    counted = there > 0
    if background is not None:
        counted = counted & (torch.arange(len(counted), device=counted.device) != background)
    dice = (2 * shared + SMOOTH) / (predicted + there + SMOOTH)
    return ((1 - dice) * counted).sum() / counted.sum().clamp_min(1)


def segmentation_loss(
    logits: Tensor,
    targets: Tensor,
    loss: str,
    weights: Sequence[float] | None = None,
    background: int | None = None,
) -> Tensor:
    """Return the loss that a setting names: "ce", "dice", or the sum "ce+dice"; in float32 or float64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = logits.new_zeros(())
    if "ce" in loss.split("+"):
        total = total + cross_entropy(logits, targets, weights)
    if "dice" in loss.split("+"):
        total = total + dice_loss(logits, targets, background)
    return total


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Return the median share of the classes by each class's own: 0 for those that no pixel shows.

    Source: median frequency balancing (Eigen and Fergus, 2015).
    """
    shares = torch.tensor(counts, dtype=torch.float64) / max(1, sum(counts))
    present = shares > 0
    median = shares[present].median()
    return torch.where(present, median / shares.clamp_min(1e-300), 0.0).tolist()
