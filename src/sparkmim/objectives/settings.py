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


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Settings of the objective distill."""

    pooled: float = setting(1.0, at_least(0, "a weight"), shapes_model=True)
    """Weight of the loss of whole images, their similarities to others, beside that of positions; 0 leaves it out."""

    temperature: float = setting(0.07, above_zero("a temperature"))
    """By which similarities of images are divided."""

    queue: int = setting(1024, at_least(2, "a number of images"), shapes_model=True)
    """Images before to which similarities are compared."""

    weight: float = setting(1.0, above_zero("a weight"))
    """Weight of this loss beside another objective's (pixels+distill)."""

    channels: tuple[int, int] = setting((0, 0), shapes_model=True)
    """Channels of the teacher's maps and of its vectors; found by running it, so leave it out."""
