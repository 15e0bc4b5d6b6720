"""Measure the channels and strides of a network's feature maps by running it on blank images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

MAX_LEVELS = 4
"""Feature maps in a pyramid, unless more are asked for: the deepest ones (strides 4 to 32 for a ResNet), as in the
paper."""

PROBE_SIZES = (224, 256, 240, 288, 360, 1024, 1120, 1920, 4096, 5760, 40320, 322560)
"""Image sizes tried in turn for a first estimate of the strides, which needs a size that all of them divide. On meta
tensors a large one costs no more than a small one."""

COMPUTED_SIZES = {1: PROBE_SIZES[:-1], 2: PROBE_SIZES[:6], 3: (64, 96, 80, 112, 144)}
"""The same for networks that must be computed, by number of dimensions."""

PROBE_PATCHES = 16
"""Patches along an axis of the images that verify the estimate, because a map's size may divide one image's by chance.
That many tell strides apart that differ by a sixteenth."""


class Level(NamedTuple):
    """One map of a feature pyramid: its channels, and its stride along each spatial axis."""

    channels: int
    stride: tuple[int, ...]


class NotProportionalError(ValueError):
    """Raised where maps are not the image's size divided by a stride, or are not found; padding may help."""


def measure_levels(
    run: Callable[[Sequence[int]], Sequence[object]],
    dims: int,
    network: str,
    sizes: Iterable[int] = PROBE_SIZES,
    others: Sequence[int] = (2, 4, 8),
) -> list[Level]:
    """Return the channels and stride of each map, in the network's order.

    Args:
        run: returns the network's maps of a blank image of the given size.
        dims: number of spatial dimensions.
        network: its name in errors.
        sizes: to try, of an image along each axis.
        others: patches along the other axes of the images that verify the estimate; the fewest are taken that the
            network runs on (one that pools by 4 in a block needs four). If empty, one image verifies all axes.

    Raises:
        NotProportionalError: if no size gives strides that hold for other sizes.
        ValueError: if the network returns something else than maps `(1, C, *size)`, or nothing.
        Exception: what the network raises, if it runs on none of the sizes.
    """
    tried: list[str] = []
    failures: list[Exception] = []
    for extent in sizes:
        try:
            maps = run((extent,) * dims)
        except Exception as error:  # too small an image for a deep network, for example
            failures.append(error)
            continue
        levels = _measure((extent,) * dims, maps, network, tried)
        if levels is not None and _hold(levels, run, network, tried, others):
            return levels
    if not tried:
        raise failures[0]
    raise NotProportionalError(
        f"the feature maps of {network} are not proportional to the image ({'; '.join(tried)}), not even with padding "
        "for unpadded convolutions and poolings; patches cannot be aligned with them"
    )


def verifying_size(levels: Sequence[Level]) -> tuple[int, ...]:
    """Return the size of an image that tells strides apart along every axis.

    An even number of patches, as some networks attend within windows of two positions.
    """
    patch = math.lcm(*[s for level in levels for s in level.stride])
    return tuple((PROBE_PATCHES + 2 * axis) * patch for axis in range(len(levels[0].stride)))


def _hold(
    levels: list[Level],
    run: Callable[[Sequence[int]], Sequence[object]],
    network: str,
    tried: list[str],
    others: Sequence[int],
) -> bool:
    """Return whether strides are those of oblong images, too."""
    size = verifying_size(levels)
    if not others:
        return _measure(size, run(size), network, tried) == levels
    patch = size[0] // PROBE_PATCHES
    for axis in range(len(size)):
        for few in others:
            oblong = [(PROBE_PATCHES if a == axis else few) * patch for a in range(len(size))]
            try:
                maps = run(oblong)
            except Exception:
                if few == others[-1]:
                    raise
            else:
                break
        if _measure(oblong, maps, network, tried) != levels:
            return False
    return True


def _measure(size: Sequence[int], maps: Sequence[object], network: str, tried: list[str]) -> list[Level] | None:
    """Return all levels at one image size, None if a map does not divide it; add a line to `tried`."""
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


def pyramid(levels: Sequence[Level], count: int = MAX_LEVELS) -> list[int]:
    """Return which maps make the pyramid, highest resolution first: of each stride the last, of those the deepest."""
    last = {level.stride: index for index, level in enumerate(levels)}
    return sorted(last.values(), key=lambda index: levels[index].stride)[-count:]
