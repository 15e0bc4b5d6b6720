"""Measure the channels and strides of a network's feature maps by running it on blank images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from torch import Tensor

MAX_LEVELS = 4
"""Feature maps in a pyramid, unless more are asked for: the deepest ones (strides 4 to 32 for a ResNet), as in the
paper."""

PROBE_SIZES = (224, 256, 240, 288, 360, 1024, 1120, 1920, 4096, 5760, 40320, 322560)
"""Image sizes tried in turn for a first estimate of the strides, which needs a size that all of them divide. On meta
tensors a large one costs no more than a small one."""

HUGE_SIZES = {1: 1 << 22, 2: 1 << 20, 3: 1 << 13}
"""Size of an image whose maps tell strides well enough to find a size that all of them divide."""

COMPUTED_SIZES = {1: PROBE_SIZES[:-1], 2: PROBE_SIZES[:6], 3: (64, 96, 80, 112, 144)}
"""The same as :data:`PROBE_SIZES` for networks that must be computed, by number of dimensions."""

PROBE_PATCHES = 16
"""Patches along an axis of the images that verify the estimate, because a map's size may divide one image's by chance.
That many tell strides apart that differ by a sixteenth; on meta tensors there are more than a patch has pixels, which
tell all apart."""

FEW_PATCHES = (2, 4, 8)
"""Patches along the other axes, where such an image must be computed. The fewest are taken that the network runs on:
one that pools by 4 in a block needs four."""

MULTIPLES = (1, 2, 4, 8, 16)
"""Of the size of those images, for networks that take multiples of a number which their maps do not show."""


class Level(NamedTuple):
    """One map of a feature pyramid: its channels, and its stride along each spatial axis."""

    channels: int
    stride: tuple[int, ...]


class NotProportionalError(ValueError):
    """Raised where maps are not the image's size divided by a stride, or are not found; padding may help."""


class SomeSizesError(ValueError):
    """Raised where a network runs on images of some sizes alone."""


def measure_levels(
    run: Callable[[Sequence[int]], Sequence[object]],
    dims: int,
    network: str,
    sizes: Iterable[int] = PROBE_SIZES,
    computes: Callable[[], bool] = lambda: False,
) -> list[Level]:
    """Return the channels and stride of each map, in the network's order.

    Args:
        run: returns the network's maps of a blank image of the given size.
        dims: number of spatial dimensions.
        network: its name in errors.
        sizes: to try, of an image along each axis. If none fits, one is tried that the sizes of the maps suggest.
        computes: tells whether the network is computed, so that the images that verify an estimate must be small.

    Raises:
        NotProportionalError: if no size gives strides that hold for other sizes.
        SomeSizesError: if it runs on a size, but not on those that verify its strides.
        ValueError: if the network returns something else than maps `(1, C, *size)`, or nothing.
        Exception: what the network raises, if it runs on none of the sizes.
    """
    tried: list[str] = []
    failures: list[Exception] = []
    suggested = 0
    for extent in chain(sizes, (HUGE_SIZES[dims], 0)):
        size = extent or suggested
        if not size or (computes() and extent in (HUGE_SIZES[dims], 0)):
            break
        try:
            maps = run((size,) * dims)
        except Exception as error:  # too small an image for a deep network, for example
            failures.append(error)
            continue
        levels = _measure((size,) * dims, maps, network, tried)
        if levels is not None and _hold(levels, size, run, network, tried, computes()):
            return levels
        suggested = suggested_size([(size, e) for m in maps if isinstance(m, Tensor) for e in m.shape[2:]])
    if not tried:
        raise failures[0]
    raise NotProportionalError(
        f"the feature maps of {network} are not proportional to the image ({'; '.join(tried)}), not even with padding "
        "for unpadded convolutions and poolings; patches cannot be aligned with them"
    )


def suggested_size(extents: Iterable[tuple[int, int]]) -> int:
    """Return the size of an image that is large enough to tell all strides, and that all of them divide; 0 if none is.

    Args:
        extents: that of an image, and what a map has of it: its own, or what it gains for as many more pixels. Small
            maps tell a stride but roughly, which the size that it suggests tells better.
    """
    strides = Counter(round(image / extent) for image, extent in extents if 0 < extent <= image)
    whole = 1
    for stride, _ in strides.most_common():
        if math.lcm(whole, stride) <= LARGEST_STRIDE:
            whole = math.lcm(whole, stride)
    return whole * distinct_patches(whole) if strides else 0


LARGEST_STRIDE = 8192
"""Of images that are suggested by :func:`suggested_size`."""


def distinct_patches(patch: int) -> int:
    """Return so many patches, an even number, that maps of no two strides up to a patch's pixels have one size."""
    return max(PROBE_PATCHES, 2 * (patch // 2 + 1))


def verifying_size(levels: Sequence[Level]) -> tuple[int, ...]:
    """Return the size of an image that tells strides apart along every axis.

    An even number of patches, as some networks attend within windows of two positions.
    """
    patch = math.lcm(*[s for level in levels for s in level.stride])
    patches = distinct_patches(patch)
    return tuple((patches + 2 * axis) * patch for axis in range(len(levels[0].stride)))


def _hold(
    levels: list[Level],
    extent: int,
    run: Callable[[Sequence[int]], Sequence[object]],
    network: str,
    tried: list[str],
    computes: bool,
) -> bool:
    """Return whether strides that images of an extent suggest are those of oblong images, too.

    Raises:
        SomeSizesError: if the network does not run on any of those.
    """
    dims = len(levels[0].stride)
    patch = math.lcm(*[s for level in levels for s in level.stride])
    if not computes:
        few = tuple((PROBE_PATCHES + 2 * axis) * patch for axis in range(dims))
        sizes = [verifying_size(levels), *[tuple(m * f for f in few) for m in MULTIPLES]]
        size, maps = _first_that_runs(sizes, extent, run, network)
        return _measure(size, maps, network, tried) == levels
    for axis in range(dims):
        sizes = [tuple((PROBE_PATCHES if a == axis else n) * patch for a in range(dims)) for n in FEW_PATCHES]
        size, maps = _first_that_runs(sizes, extent, run, network)
        if _measure(size, maps, network, tried) != levels:
            return False
    return True


def _first_that_runs(
    sizes: Sequence[tuple[int, ...]], extent: int, run: Callable[[Sequence[int]], Sequence[object]], network: str
) -> tuple[tuple[int, ...], Sequence[object]]:
    """Return the first of several sizes that a network runs on, and its maps.

    Raises:
        SomeSizesError: if there is none, with the network's reason.
    """
    for size in sizes:
        try:
            return size, run(size)
        except Exception as error:
            failure = error
    shown = " x ".join([str(extent)] * len(sizes[0]))
    reason = " ".join(str(failure).split())[:200]
    raise SomeSizesError(
        f"{network} runs on images of {shown}, but not on others, as of {' x '.join(map(str, size))} ({reason}); "
        "expected a network that takes images of every size that its strides divide, oblong ones too"
    ) from failure


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
