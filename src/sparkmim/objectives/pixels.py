"""Per-patch normalized pixels of hidden patches, the paper's objective (sections 3.3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..sparse import PatchGrid
from ..utils.fields import NoSettings
from .base import Decoded, Objective, all_patch_loss, hidden_patch_loss, patchify, pixel_axes
from .hidden import HiddenPatches
from .settings import PixelsSettings


class Pixels(Objective):
    """Regress images with each patch normalized by its own mean and standard deviation, or as they are."""

    settings_type = PixelsSettings
    reconstructs = True
    settings: PixelsSettings

    def __init__(self, settings: PixelsSettings | NoSettings, **given: Any) -> None:
        super().__init__(PixelsSettings() if isinstance(settings, NoSettings) else settings, **given)

    def target(self, images: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch channel *size"]:
        """Return the images, each patch normalized by its own statistics, if it is to be."""
        return normalize_patches(images, self.patch_size) if self.settings.normalize else images

    def compare(
        self,
        decoded: Decoded,
        images: Float[Tensor, "batch channel *size"],
        grid: PatchGrid,
        has_data: Bool[Tensor, "batch channel *size"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss, see :meth:`Objective.compare`; the target is made of hidden patches alone if it can be."""
        changed = type(self).target is not Pixels.target or type(self).loss is not Objective.loss
        if self.loss_on == "all" or has_data is not None or changed:
            return super().compare(decoded, images, grid, has_data)
        hidden = HiddenPatches(grid)
        target = _at_least_float32(hidden.of(images))
        if self.settings.normalize:
            variance, mean = torch.var_mean(target, tuple(range(2, target.ndim)), keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return F.mse_loss(hidden.of(decoded.prediction).to(target.dtype), target)

    def loss_where_data(
        self,
        prediction: Float[Tensor, "batch channel *size"],
        images: Float[Tensor, "batch channel *size"],
        has_data: Bool[Tensor, "batch channel *size"],
        grid: PatchGrid,
    ) -> Float[Tensor, ""]:
        """Return the loss with pixels without data left out: of each patch's statistics, its error, and the mean."""
        target = normalize_patches(images, self.patch_size, has_data) if self.settings.normalize else images
        if self.loss_on == "all":
            return all_patch_loss(prediction, target, has_data)
        return hidden_patch_loss(prediction, target, grid.visible, grid.visible.numel() - grid.patches, has_data)

    def to_pixels(
        self, prediction: Float[Tensor, "batch channel *size"], images: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch channel *size"]:
        """Return predictions in the images' own range, by the statistics of the patches of `images`."""
        if not self.settings.normalize:
            return prediction.to(images.dtype)
        return denormalize_patches(prediction.to(images.dtype), images, self.patch_size)


class PatchStatistics(NamedTuple):
    """Mean and standard deviation of each patch, shaped to broadcast against :func:`patchify`'s result."""

    mean: Tensor
    std: Tensor


def patch_statistics(
    images: Float[Tensor, "batch channel *size"],
    patch_size: Sequence[int],
    has_data: Bool[Tensor, "batch channel *size"] | None = None,
) -> PatchStatistics:
    """Compute statistics over all pixels and channels of a patch; the deviation is `sqrt(unbiased variance + 1e-6)`.

    Images in half precision are taken in float32. With `has_data`, pixels where it is False do not count.

    Source: the official `SparK.forward`, where the variable holding the deviation is called `var`.
    """
    patches = patchify(_at_least_float32(images), patch_size)
    axes = pixel_axes(len(patch_size))
    if has_data is not None:
        known = patchify(has_data, patch_size)
        pixels = known.sum(axes, keepdim=True)
        mean = (patches * known).sum(axes, keepdim=True) / pixels.clamp_min(1)
        squares = ((patches - mean).square() * known).sum(axes, keepdim=True)
        return PatchStatistics(mean, (squares / (pixels - 1).clamp_min(1) + 1e-6).sqrt())
    variance = patches.var(axes, keepdim=True)
    return PatchStatistics(patches.mean(axes, keepdim=True), (variance + 1e-6).sqrt())


def _at_least_float32(images: Tensor) -> Tensor:
    return images.float() if images.dtype.itemsize < torch.float32.itemsize else images


def normalize_patches(
    images: Float[Tensor, "batch channel *size"],
    patch_size: Sequence[int],
    has_data: Bool[Tensor, "batch channel *size"] | None = None,
) -> Float[Tensor, "batch channel *size"]:
    """Return images with each patch normalized: minus its mean, over its standard deviation, of pixels with data."""
    mean, std = patch_statistics(images, patch_size, has_data)
    return ((patchify(images, patch_size) - mean) / std).reshape(images.shape)


def denormalize_patches(
    prediction: Float[Tensor, "batch channel *size"],
    images: Float[Tensor, "batch channel *size"],
    patch_size: Sequence[int],
) -> Float[Tensor, "batch channel *size"]:
    """Invert :func:`normalize_patches`, with the statistics of `images`."""
    mean, std = patch_statistics(images, patch_size)
    return (patchify(prediction, patch_size) * std + mean).reshape(prediction.shape)
