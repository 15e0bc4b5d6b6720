"""The objective: squared error against per-patch normalised pixels, over hidden patches (paper, sections 3.3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def patchify(images: Float[Tensor, "batch channel *size"], patch_size: Sequence[int]) -> Tensor:
    """A view of images with each spatial axis split in two: `(B, C, g1, p1, g2, p2, ...)`, patch then place within."""
    for axis in reversed(range(len(patch_size))):
        images = images.unflatten(axis + 2, (-1, patch_size[axis]))
    return images


def pixel_axes(dims: int) -> tuple[int, ...]:
    """The axes of :func:`patchify`'s result that lie within a patch: channels and places."""
    return (1, *range(3, 3 + 2 * dims, 2))


class PatchStatistics(NamedTuple):
    """Mean and standard deviation of each patch, shaped to broadcast against :func:`patchify`'s result."""

    mean: Tensor
    std: Tensor


def patch_statistics(images: Float[Tensor, "batch channel *size"], patch_size: Sequence[int]) -> PatchStatistics:
    """Statistics over all pixels and channels of a patch; the deviation is `sqrt(unbiased variance + 1e-6)`.

    In float32 where images are in half precision.

    Source: the official `SparK.forward`, where the variable holding the deviation is called `var`.
    """
    patches = patchify(_at_least_float32(images), patch_size)
    axes = pixel_axes(len(patch_size))
    variance = patches.var(axes, keepdim=True)
    return PatchStatistics(patches.mean(axes, keepdim=True), (variance + 1e-6).sqrt())


def _at_least_float32(images: Tensor) -> Tensor:
    return images.float() if images.dtype.itemsize < torch.float32.itemsize else images


def normalise_patches(
    images: Float[Tensor, "batch channel *size"], patch_size: Sequence[int]
) -> Float[Tensor, "batch channel *size"]:
    """The target: each patch minus its mean, over its standard deviation."""
    mean, std = patch_statistics(images, patch_size)
    return ((patchify(images, patch_size) - mean) / std).reshape(images.shape)


def denormalise_patches(
    prediction: Float[Tensor, "batch channel *size"],
    images: Float[Tensor, "batch channel *size"],
    patch_size: Sequence[int],
) -> Float[Tensor, "batch channel *size"]:
    """The inverse of :func:`normalise_patches`, with the statistics of `images`."""
    mean, std = patch_statistics(images, patch_size)
    return (patchify(prediction, patch_size) * std + mean).reshape(prediction.shape)


def hidden_patch_loss(
    prediction: Float[Tensor, "batch channel *size"],
    target: Float[Tensor, "batch channel *size"],
    visible: Bool[Tensor, "batch *grid"],
    hidden: int,
) -> Float[Tensor, ""]:
    """Squared error averaged over each patch, then over hidden patches.

    Args:
        prediction: in the normalised space of `target`.
        target: see :func:`normalise_patches`.
        visible: True = visible.
        hidden: the number of hidden patches of the batch, known without asking the device. (The official code divides
            by `hidden + 1e-8`, a relative difference of 1e-8 / hidden.)
    """
    patch_size = [s // g for s, g in zip(target.shape[2:], visible.shape[1:], strict=True)]
    error = (prediction.to(target.dtype) - target).square()
    per_patch = patchify(error, patch_size).mean(pixel_axes(len(patch_size)))
    return per_patch.masked_fill(visible, 0.0).sum() / hidden


def all_patch_loss(
    prediction: Float[Tensor, "batch channel *size"], target: Float[Tensor, "batch channel *size"]
) -> Float[Tensor, ""]:
    """Squared error averaged over each patch, then over all patches, hidden or not (an ablation of the paper)."""
    return (prediction.to(target.dtype) - target).square().mean()
