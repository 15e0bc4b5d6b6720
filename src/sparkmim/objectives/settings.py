"""Settings of the objectives that come with the package. Imports nothing heavy: the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.fields import Valid, above_zero, at_least, setting


@dataclass(frozen=True, kw_only=True)
class PixelsSettings:
    """Settings of the objective pixels."""

    normalize: bool = setting(True)
    """Predict each patch normalized by its own mean and deviation, as the paper does; off: the values of the image as
    the network gets them, as nnssl does."""


@dataclass(frozen=True, kw_only=True)
class LatentsSettings:
    """Settings of the objective latents."""

    stages: int = setting(2, at_least(1, "a number of feature maps"))
    """Feature maps of the teacher that are predicted, the deepest ones."""

    momentum: float = setting(0.99, Valid(lambda v: 0 <= v <= 1, "is between 0 and 1"))
    """Share of the teacher that stays at each step when training begins; it rises to 1 by a cosine."""

    weight: float = setting(1.0, above_zero("a weight"))
    """Weight of this loss beside another objective's (pixels+latents)."""
