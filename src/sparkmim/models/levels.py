"""Measure the channels and strides of a network's feature maps by running it on blank images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

MAX_LEVELS = 4
"""Feature maps in a pyramid, at most: the deepest ones (strides 4 to 32 for a ResNet), as in the paper."""

PROBE_SIZES = (224, 256, 240, 288, 360)
"""Image sizes tried in turn for a first estimate of the strides, which needs a size that all of them divide."""

PROBE_SIZES_3D = (64, 96, 80, 112, 144)
"""The same for volumes."""

PROBE_PATCHES = 16
"""Patches along an axis of the images that verify the estimate, because a map's size may divide one image's by chance.
That many tell strides apart that differ by a sixteenth."""


class Level(NamedTuple):
    """One map of a feature pyramid: its channels, and its stride along each spatial axis."""

    channels: int
    stride: tuple[int, ...]


class NotProportionalError(ValueError):
    """Raised where maps are not the image's size divided by a stride, or are not found; padding may help."""


def measure_levels(run: Callable[[Sequence[int]], Sequence[object]], dims: int, network: str) -> list[Level]:
    """Return the channels and stride of each map, in the network's order.

    Args:
        run: returns the network's maps of a blank image of the given size.
        dims: number of spatial dimensions.
        network: its name in errors.

    Raises:
        NotProportionalError: if no size gives strides that hold for other sizes.
        ValueError: if the network returns something else than maps `(1, C, *size)`, or nothing.
    """
    tried: list[str] = []
    for extent in PROBE_SIZES_3D if dims == 3 else PROBE_SIZES:
        levels = _measure_at((extent,) * dims, run, network, tried)
        if levels is None:
            continue
        patch = math.lcm(*[s for level in levels for s in level.stride])
        sizes = [[(PROBE_PATCHES if a == axis else 2) * patch for a in range(dims)] for axis in range(dims)]
        if all(_measure_at(size, run, network, tried) == levels for size in sizes):
            return levels
    raise NotProportionalError(
        f"the feature maps of {network} are not proportional to the image ({'; '.join(tried)}), not even with padding "
        "for unpadded convolutions and poolings; patches cannot be aligned with them"
    )


def _measure_at(
    size: Sequence[int], run: Callable[[Sequence[int]], Sequence[object]], network: str, tried: list[str]
) -> list[Level] | None:
    """Return all levels at one image size, None if a map does not divide it; add a line to `tried`."""
    maps = run(size)
    shapes = [tuple(m.shape) for m in maps if isinstance(m, Tensor)]
    if len(shapes) != len(maps) or any(len(shape) != len(size) + 2 for shape in shapes):
        raise ValueError(f"a backbone must offer maps (B, C, *size); {network} gives {shapes}")
    if not shapes:
        raise ValueError(f"{network} offers no feature maps")
    extents = [shape[2:] for shape in shapes]
    tried.append(f"{' x '.join(map(str, size))} -> {', '.join(' x '.join(map(str, e)) for e in extents)}")
    if any(s % e for extent in extents for s, e in zip(size, extent, strict=True)):
        return None
    strides = [tuple(s // e for s, e in zip(size, extent, strict=True)) for extent in extents]
    return [Level(shape[1], stride) for shape, stride in zip(shapes, strides, strict=True)]


def pyramid(levels: Sequence[Level]) -> list[int]:
    """Return which maps make the pyramid, highest resolution first: of each stride the last, of those the deepest."""
    last = {level.stride: index for index, level in enumerate(levels)}
    return sorted(last.values(), key=lambda index: levels[index].stride)[-MAX_LEVELS:]
