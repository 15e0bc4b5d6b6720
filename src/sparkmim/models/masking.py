"""Random masks. They tell which patches of each image are visible: True is visible, False is hidden."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from .config import MaskShape


def visible_patches(grid: Sequence[int], mask_ratio: float) -> int:
    """Return the number of visible patches in a grid, `round(patches * (1 - mask_ratio))`; all for a ratio of 0.

    Source: the official `SparK.mask`.

    Args:
        grid: patches along each spatial axis.
        mask_ratio: share of patches to hide; 0 says that nothing is to be hidden.

    Raises:
        ValueError: if a ratio above 0 hides all patches or none.
    """
    patches = math.prod(grid)
    if mask_ratio == 0:
        return patches
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
    """Draw a random mask for each image, all with the same number of visible patches (paper, section 3.1).

    Args:
        batch: number of images.
        grid: patches along each spatial axis.
        mask_ratio: share of patches to hide.
        generator: source of randomness, on its own device; by default the default generator of `device`.
        device: of the result.

    Raises:
        ValueError: if the ratio hides all patches or none.
    """
    keep = visible_patches(grid, mask_ratio)
    drawn_on = device if generator is None else generator.device
    order = torch.rand(batch, math.prod(grid), generator=generator, device=drawn_on).argsort(dim=1)
    visible = torch.zeros(batch, math.prod(grid), dtype=torch.bool, device=drawn_on)
    visible.scatter_(1, order[:, :keep], True)
    target = visible.device if device is None else torch.device(device)
    # A copy to the CPU is synchronous: the caller could read it there before an asynchronous one arrives.
    return visible.view(batch, *grid).to(target, non_blocking=target.type != "cpu")


BLOCK = (0.15, 0.25)
"""Least and largest share of the patches in one block (I-JEPA, arXiv 2301.08243, takes 0.15 to 0.2)."""


def block_visible(
    batch: int,
    grid: Sequence[int],
    mask_ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "batch *grid"]:
    """Draw a mask of hidden blocks for each image, all with the same number of visible patches.

    Blocks of random size, shape and place are hidden, which may overlap, until enough is; of the last one as many
    patches, at random.

    Args:
        batch: number of images.
        grid: patches along each spatial axis.
        mask_ratio: share of patches to hide.
        generator: source of randomness, on its own device; by default the default generator of `device`.
        device: of the result.

    Raises:
        ValueError: if the ratio hides all patches or none.
    """
    patches = math.prod(grid)
    hide = patches - visible_patches(grid, mask_ratio)
    drawn_on = torch.device("cpu" if device is None else device) if generator is None else generator.device
    masks = []
    for _ in range(batch):
        visible = torch.ones(*grid, dtype=torch.bool)
        missing = hide
        while missing:
            block = _random_block(grid, torch.rand(2 * len(grid) + 1, generator=generator, device=drawn_on).tolist())
            new = torch.zeros(*grid, dtype=torch.bool)
            new[block] = True
            places = (new & visible).flatten().nonzero().flatten()
            if len(places) > missing:
                order = torch.rand(len(places), generator=generator, device=drawn_on).argsort()
                places = places[order[:missing].to(places.device)]
            visible.view(-1)[places] = False
            missing -= len(places)
        masks.append(visible)
    made = torch.stack(masks) if masks else torch.ones(0, *grid, dtype=torch.bool)
    return made.to(drawn_on if device is None else device)


def _random_block(grid: Sequence[int], drawn: Sequence[float]) -> tuple[slice, ...]:
    """Return a block of a grid for `2 * dims + 1` numbers between 0 and 1: of its size, its shape and its place."""
    dims = len(grid)
    share = BLOCK[0] + (BLOCK[1] - BLOCK[0]) * drawn[0]
    stretch = [(3 / 4) ** (1 - 2 * value) for value in drawn[1 : dims + 1]]  # from 3/4 to 4/3 along each axis
    stretch = [value / math.prod(stretch) ** (1 / dims) for value in stretch]
    sides = [min(max(round(g * share ** (1 / dims) * s), 1), g) for g, s in zip(grid, stretch, strict=True)]
    starts = [int(value * (g - side + 1)) for value, g, side in zip(drawn[dims + 1 :], grid, sides, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))


MASKS: dict[MaskShape, Callable[..., Tensor]] = {"random": random_visible, "blocks": block_visible}
"""How masks are drawn, by their shape."""


def visible_where_data(
    visible: Bool[Tensor, "batch *grid"],
    has_data: Bool[Tensor, "batch channel *size"],
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "batch *grid"]:
    """Move visible patches without any data to places that have some, as far as there are any, at random.

    Args:
        visible: True = visible.
        has_data: True where a pixel of a channel has data; its size is a multiple of the grid.
        generator: source of randomness.
    """
    grid = visible.shape[1:]
    known = has_data.any(1)
    for axis, patches in enumerate(grid, start=1):
        known = known.unflatten(axis, (patches, -1)).any(axis + 1)
    moved = visible.flatten(1).clone()
    for image, patches in zip(moved, known.flatten(1), strict=True):
        blank = (image & ~patches).nonzero().flatten()
        free = (~image & patches).nonzero().flatten()
        free = free[torch.randperm(len(free), generator=generator)]
        count = min(len(blank), len(free))
        image[blank[:count]] = False
        image[free[:count]] = True
    return moved.view_as(visible)


def count_visible(visible: Bool[Tensor, "batch *grid"]) -> int:
    """Return the number of visible patches in each image. Synchronizes with the mask's device.

    Raises:
        ValueError: if the images differ in that number, or nothing is visible.
    """
    counts = set(visible.flatten(1).sum(1).tolist())
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"expected the same number (>= 1) of visible patches in every image, got {sorted(counts)}")
    return int(counts.pop())


def require_mask(visible: object, shape: tuple[int, ...]) -> None:
    """Raise unless a mask is a bool tensor `(batch, *grid)` of this shape.

    Raises:
        ValueError: for another dtype or shape.
        TypeError: for what is not a tensor.
    """
    if not isinstance(visible, Tensor):
        raise TypeError(
            f"visible must be a bool tensor of shape {shape} (batch, patches), not a {type(visible).__name__}; "
            "torch.tensor(visible) makes one"
        )
    if visible.dtype != torch.bool or tuple(visible.shape) != shape:
        raise ValueError(
            f"visible must be a bool tensor of shape {shape} (batch, patches), not {visible.dtype} of shape "
            f"{tuple(visible.shape)}"
        )


def require_count(visible: Bool[Tensor, "batch *grid"], count: int) -> None:
    """Raise unless every image has as many visible patches as its caller says.

    On an accelerator the mask is not read back: an error surfaces there as an asynchronous assertion.

    Raises:
        ValueError: with the numbers found, for a mask on the CPU; for a count below 1.
    """
    if count < 1:
        raise ValueError(f"expected a count of at least 1 visible patch in every image, got {count}")
    counts = visible.flatten(1).sum(1)
    if visible.device.type != "cpu":
        torch._assert_async((counts == count).all(), f"expected {count} visible patches in every image of the mask")
        return
    found = sorted(set(counts.tolist()))
    if found != [count]:
        raise ValueError(f"expected {count} visible patches in every image, got {found}")
