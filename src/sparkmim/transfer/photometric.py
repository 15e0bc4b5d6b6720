"""Random changes of brightness and color of views for dense tasks, which leave every pixel where it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from ..data.normalize import Normalize


class Photometric:
    """Normalize views with other brightness, contrast and saturation.

    Images of 8 bits and one or three channels are changed in color before; all others, whose values may exceed 0 to 1,
    in scale and offset after.

    Args:
        normalize: of the run.
        strength: of the changes, 0 for none.
    """

    def __init__(self, normalize: Normalize, strength: float) -> None:
        self._normalize, self.strength = normalize, strength
        self._jitter = v2.ColorJitter(strength, strength, strength) if strength else None

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return pixels `(C, H, W)`, changed and normalized."""
        if self._jitter is not None and pixels.dtype == torch.uint8 and len(pixels) in (1, 3):
            with torch.random.fork_rng(devices=()):  # torchvision's transforms draw from the global generator
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                pixels = self._jitter(pixels)
            return self._normalize(pixels)
        return change_values(self._normalize(pixels), self.strength, generator)


def change_values(view: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Return normalized values `(C, *size)` with another scale and offset in each channel, at most by a strength."""
    if not strength:
        return view
    numbers = torch.rand(2, len(view), *(1 for _ in view.shape[1:]), generator=generator) * 2 - 1
    return view * (1 + strength * numbers[0]) + strength * numbers[1]
