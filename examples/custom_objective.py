"""An objective of one's own: predict HOG features of hidden patches (MaskFeat, Wei et al. 2022).

Use it by naming the file and the class; its settings are flags:

    sparkmim pretrain --model resnet50 --data FOLDER --output runs/hog \
        --objective examples/custom_objective.py:Hog --objective.cell-size 8
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparkmim import Objective


@dataclass(frozen=True, kw_only=True)
class HogSettings:
    """The settings of the objective."""

    cell_size: int = 8
    """Pixels of a cell along each axis; it divides the patch size."""

    bins: int = 9
    """Directions that are told apart, between 0 and 180 degrees."""


class Hog(Objective):
    """Regress histograms of oriented gradients: how strong the edges of each direction are in a cell and channel."""

    settings_type = HogSettings
    sobel: Tensor

    def __init__(self, settings: HogSettings, *, in_chans: int, patch_size: tuple[int, ...], **others: Any) -> None:
        super().__init__(settings, in_chans=in_chans, patch_size=patch_size, **others)
        if len(patch_size) != 2 or any(size % settings.cell_size for size in patch_size):
            raise ValueError(
                f"expected a --objective.cell-size that divides the patch size {patch_size} of an image, got "
                f"{settings.cell_size}"
            )
        self.channels = in_chans * settings.bins
        self.stride = (settings.cell_size, settings.cell_size)
        slope = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        self.register_buffer("sobel", torch.stack([slope, slope.T]).unsqueeze(1), persistent=False)

    def target(self, images: Tensor) -> Tensor:
        """Return the features `(B, C * bins, H / cell, W / cell)`, of unit norm in each cell and channel."""
        batch, channels, height, width = images.shape
        cell, bins = self.settings.cell_size, self.settings.bins
        with torch.autocast(images.device.type, enabled=False):
            planes = F.pad(images.float().flatten(0, 1).unsqueeze(1), (1, 1, 1, 1), mode="reflect")
            across, down = F.conv2d(planes, self.sobel).unbind(1)
            angle = torch.atan2(down, across) / torch.pi % 1.0 * bins
            strength = torch.hypot(across, down)
            histogram = strength.new_zeros(len(planes), bins, height, width)
            histogram.scatter_(1, angle.floor().long().clamp(0, bins - 1).unsqueeze(1), strength.unsqueeze(1))
            cells = F.normalize(F.avg_pool2d(histogram, cell), dim=1)
        return cells.view(batch, channels * bins, height // cell, width // cell)
