"""The loss of a classification: cross entropy over the classes, or binary cross entropy for each."""

from __future__ import annotations

from jaxtyping import Float
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor


def classification_loss(
    logits: Float[Tensor, "batch class"], targets: Float[Tensor, "batch class"], loss: str, *, smoothing: float
) -> Float[Tensor, ""]:
    """Return the mean loss.

    Args:
        logits: of the classes.
        targets: shares that add up to 1, as mixing images makes them.
        loss: "cross-entropy", or "binary".
        smoothing: share of each target that is spread evenly over all classes.
    """
    smooth = targets * (1 - smoothing) + smoothing / targets.shape[1]
    criterion = SoftTargetCrossEntropy() if loss == "cross-entropy" else BinaryCrossEntropy(smoothing=0.0)
    value: Tensor = criterion(logits.float(), smooth)
    return value
