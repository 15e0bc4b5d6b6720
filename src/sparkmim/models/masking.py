"""Random masks: which patches of each image are visible. True = visible everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor


def visible_patches(grid: Sequence[int], mask_ratio: float) -> int:
    """How many patches of a grid stay visible: `round(patches * (1 - mask_ratio))`, as in the official `SparK.mask`.

    Raises:
        ValueError: if that hides all patches or none.
    """
    patches = math.prod(grid)
    visible = round(patches * (1 - mask_ratio))
    if not 0 < visible < patches:
        what = "all" if visible <= 0 else "none"
        raise ValueError(
            f"mask ratio {mask_ratio} hides {what} of the {patches} patches of a {' x '.join(map(str, grid))} grid; "
            "use a ratio further from 0 and 1, larger images or a smaller patch size"
        )
    return visible


def random_visible(
    batch: int,
    grid: Sequence[int],
    mask_ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "batch *grid"]:
    """A random mask for each image, all with the same number of visible patches (paper, section 3.1).

    Args:
        batch: number of images.
        grid: patches along each spatial axis.
        mask_ratio: share of patches to hide.
        generator: where randomness comes from (on the generator's own device); the device's default one otherwise.
        device: of the result.

    Raises:
        ValueError: if the ratio hides all patches or none.
    """
    keep = visible_patches(grid, mask_ratio)
    where = device if generator is None else generator.device
    order = torch.rand(batch, math.prod(grid), generator=generator, device=where).argsort(dim=1)
    visible = torch.zeros(batch, math.prod(grid), dtype=torch.bool, device=where)
    visible = visible.scatter(1, order[:, :keep], True)
    there = visible.device if device is None else torch.device(device)
    # A copy to the CPU is waited for: who reads it there would not.
    return visible.view(batch, *grid).to(there, non_blocking=there.type != "cpu")


def count_visible(visible: Bool[Tensor, "batch *grid"]) -> int:
    """The number of visible patches of each image. Waits for the device if the mask is on one.

    Raises:
        ValueError: if the images differ in it, or nothing is visible.
    """
    counts = set(visible.flatten(1).sum(1).tolist())
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            f"every image must show the same number of patches, at least one; this mask shows {sorted(counts)}"
        )
    return int(counts.pop())
