"""What is reduced: cross entropy over the classes, or one yes or no for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss."""

    loss: Literal["cross-entropy", "binary"] = "cross-entropy"
    """cross-entropy (one class is right), or binary (the mean over classes of the cross entropy of yes and no)."""

    smoothing: float = 0.1
    """Share of each target that is spread evenly over all classes."""


def classification_loss(
    logits: Float[Tensor, "batch class"], targets: Float[Tensor, "batch class"], config: ObjectiveConfig
) -> Float[Tensor, ""]:
    """The mean loss; targets are shares that add up to 1, as mixing images makes them."""
    smooth = targets * (1 - config.smoothing) + config.smoothing / targets.shape[1]
    criterion = SoftTargetCrossEntropy() if config.loss == "cross-entropy" else BinaryCrossEntropy(smoothing=0.0)
    loss: Tensor = criterion(logits.float(), smooth)
    return loss


def one_hot(labels: Tensor, classes: int) -> Float[Tensor, "batch class"]:
    """Targets of images that show one class each."""
    return F.one_hot(labels, classes).float()
