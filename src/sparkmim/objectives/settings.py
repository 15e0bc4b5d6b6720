"""Settings of the objectives that come with the package. Imports nothing heavy: the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.fields import setting


@dataclass(frozen=True, kw_only=True)
class PixelsSettings:
    """Settings of the objective pixels."""

    normalize: bool = setting(True)
    """Predict each patch normalized by its own mean and deviation, as the paper does; off: the values of the image as
    the network gets them, as nnssl does."""
