"""Random changes of the colors of a view, for losses that compare views: what stays the same then is what is shown."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

JITTERED = 0.8
"""Share of the views whose colors are changed (SimCLR, arXiv 2002.05709, appendix A)."""

BLUR = (0.1, 2.0)
"""Range of the deviation of a Gaussian blur, in pixels, likewise."""

SHARE_BLURRED = 10
"""Side of a view over the side of the blur's kernel, likewise."""


class PhotometricChange:
    """Change brightness, contrast, saturation and hue of a view, take its color away, or blur it, each at random.

    Of images that are not RGB of 8 bits, scale and offset of each channel are changed instead of the colors.

    Args:
        jitter: strength: 0.5 is that of 0.4, 0.4, 0.2 and 0.1 for the four; 0 changes none.
        gray: share of the views without color.
        blur: share of the views that are blurred.
    """

    def __init__(self, jitter: float, gray: float = 0.0, blur: float = 0.0) -> None:
        self.jitter, self.gray, self.blur = jitter, gray, blur

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return a view `(C, *size)` changed, in its dtype; NaN, where there is no data, stays."""
        with torch.random.fork_rng(devices=()):  # torchvision's transforms draw from the global generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            for change in self._changes(pixels):
                pixels = change(pixels)
        return pixels

    def _changes(self, pixels: Tensor) -> list[v2.Transform | _ChannelJitter]:
        bytes_ = pixels.dtype == torch.uint8 and pixels.ndim == 3
        strength = self.jitter
        changes: list[v2.Transform | _ChannelJitter] = []
        if strength and bytes_ and len(pixels) == 3:
            colors = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.4 * strength, min(0.5, 0.2 * strength))
            changes.append(v2.RandomApply([colors], JITTERED))
        elif strength and bytes_ and len(pixels) == 1:
            changes.append(v2.RandomApply([v2.ColorJitter(0.8 * strength, 0.8 * strength)], JITTERED))
        elif strength:
            changes.append(_ChannelJitter(0.8 * strength))
        if self.gray and bytes_ and len(pixels) == 3:
            changes.append(v2.RandomGrayscale(self.gray))
        if self.blur and pixels.ndim == 3 and (bytes_ or not pixels.isnan().any()):
            side = 2 * (min(pixels.shape[1:]) // (2 * SHARE_BLURRED)) + 1
            changes.append(v2.RandomApply([v2.GaussianBlur(max(3, side), BLUR)], self.blur))
        return changes


class _ChannelJitter:
    """Scale each channel about its mean, and shift it by a share of its deviation."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, pixels: Tensor) -> Tensor:
        if torch.rand(()) >= JITTERED:
            return pixels
        values = pixels.float()
        known = ~values.isnan()
        space = tuple(range(1, pixels.ndim))
        count = known.sum(space, keepdim=True).clamp_min(1)
        mean = values.nan_to_num(0.0).sum(space, keepdim=True) / count
        deviation = (((values - mean).nan_to_num(0.0).square().sum(space, keepdim=True)) / count).sqrt()
        scale, shift = ((2 * torch.rand(2, len(pixels), *[1 for _ in space]) - 1) * self.strength).unbind()
        changed = mean + (values - mean) * (1 + scale) + shift * deviation
        return changed.round().clamp(0, 255).to(torch.uint8) if pixels.dtype == torch.uint8 else changed
