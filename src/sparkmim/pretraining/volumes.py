"""What recipes need to know of volumes: how large a crop may be, and how many fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.sources.base import ImageSource, indices_in_whole, whole_of
from ..data.volumes import preparing
from ..data.volumes.fingerprint import Fingerprint
from ..data.volumes.opening import prepared_as
from ..data.volumes.slices import mixed_planes, slices_in_words, stored_orders
from ..data.volumes.store import MANIFEST, PreparedVolumes
from ..data.volumes.unprepared import UnpreparedVolumes
from ..models.masking import random_visible
from ..models.named.base import find_named
from ..models.spark import SparK
from ..training.config import Precision
from ..training.memory import images_that_fit
from ..utils.logging import log
from ..utils.orientation import axes_named
from ..utils.specs import scheme_of

LARGEST_CROP = 160
"""Most voxels of a crop along an axis where none are asked for: nnssl's."""

SMALLEST_SHARE = 0.5
"""Share of a crop that a volume of median size fills, below which the crop is reported as too large."""

AT_LEAST = 2
"""Crops that must fit into memory together."""


def median_extents(source: ImageSource) -> tuple[int, ...]:
    """Return the median number of voxels of volumes along each axis, of those that were measured."""
    source = whole_of(source)
    assert isinstance(source, (PreparedVolumes, UnpreparedVolumes))
    return tuple(int(extent) for extent in np.median(source.shapes, axis=0))


class Extents(NamedTuple):
    """The voxels of each volume along each axis, `(N, 3)`, and whether they are the median for lack of others."""

    sizes: np.ndarray
    estimated: bool


def extents_of(source: ImageSource) -> Extents:
    """Return the extents of volumes; a plan measures some of them alone."""
    whole = whole_of(source)
    assert isinstance(whole, (PreparedVolumes, UnpreparedVolumes))
    if len(whole.shapes) < len(whole):
        return Extents(np.tile(median_extents(source), (len(source), 1)), estimated=True)
    return Extents(whole.shapes[indices_in_whole(source)], estimated=False)


def is_normalized(source: ImageSource) -> bool:
    """Return whether a source's values have been normalized when it was prepared."""
    preparation = prepared_as(source)
    return preparation is not None and "none" not in preparation.kinds


def described(source: ImageSource) -> dict[str, str]:
    """Return the lines of the plan on how volumes were prepared; none for images."""
    preparation = prepared_as(source)
    if preparation is None:
        return {}
    spacing, orientation = preparation.spacing_along(), preparation.orientation
    resampled = "as they are" if spacing is None else f"resampled to {' x '.join(f'{s:.3g}' for s in spacing)} mm"
    size = " x ".join(map(str, median_extents(source)))
    axes = f"axes {axes_named(orientation)} ({orientation}), as sizes of views and patches"
    parts = [axes, resampled, f"{size} voxels (median)", f"intensities {' '.join(preparation.kinds)}"]
    source = whole_of(source)
    found = measured_fingerprint(source)
    if found is not None:
        parts.append(f"slices {slices_in_words(found)}")
    if isinstance(source, PreparedVolumes):
        left_out = len(source.unreadable)
        parts += [f"{left_out} cannot be read (see {source.root / MANIFEST})"] * (left_out > 0)
        parts.append(f"prepared in {source.root}")
    return {"volumes": "; ".join(parts)}


def require_few_unreadable(source: ImageSource, most: float) -> None:
    """Raise if a larger share of the volumes than is allowed cannot be prepared; of a plan, if all were looked at.

    Raises:
        ValueError: with the first reason.
    """
    source = whole_of(source)
    if isinstance(source, PreparedVolumes):
        preparing.require_few_unreadable(source.unreadable, len(source.unreadable) + len(source), most)
    elif isinstance(source, UnpreparedVolumes) and source.fingerprint is not None:
        found = source.fingerprint
        if len(found.cases) + len(found.unreadable) == len(source):
            preparing.require_few_unreadable(found.unreadable, len(source), most)


def measured_fingerprint(source: ImageSource) -> Fingerprint | None:
    """Return what was measured of volumes, None if nothing was."""
    source = whole_of(source)
    return source.fingerprint if isinstance(source, (PreparedVolumes, UnpreparedVolumes)) else None


def warn_of_slices(source: ImageSource, model: str, orientation: str) -> None:
    """Warn of slices in several planes, and of files whose axes the network's own library would see in another order.

    Args:
        source: the volumes.
        model: name of the network.
        orientation: order of the axes of the volumes as it sees them.
    """
    found = measured_fingerprint(source)
    if found is None:
        return
    warning = mixed_planes(found)
    if warning:
        log.warning(warning)
    named = find_named(model)
    if named is None or orientation != named.orientation():
        return  # the user has said otherwise
    orders = stored_orders(found)
    others = {stored: count for stored, count in orders.items() if named.orientation_of_file(stored) != orientation}
    if not others:
        return
    stored = max(others, key=lambda order: others[order])
    seen = named.orientation_of_file(stored)
    log.warning(
        f"{others[stored]} of {sum(orders.values())} files have their axes in the order {stored}, which "
        f"{scheme_of(model)} does not turn: it sees these as {seen}. Here all are turned, and seen as {orientation}. "
        f"If the labeled volumes are stored as {stored}, pretrain with --orientation {seen}; or turn them before they "
        "are planned for (nibabel.as_closest_canonical)"
    )


def warn_of_small_volumes(source: ImageSource, size: Sequence[int]) -> None:
    """Warn if most of a crop lies beyond most volumes, where there is nothing to see or to predict."""
    if prepared_as(source) is None:
        return
    extents = median_extents(source)
    share = math.prod(min(1.0, e / s) for e, s in zip(extents, size, strict=True))
    if share < SMALLEST_SHARE:
        by = [" x ".join(map(str, shape)) for shape in (size, extents)]
        log.warning(
            f"crops of {by[0]} are larger than volumes ({by[1]}, median): {share:.0%} of a crop has data, and nothing "
            "is predicted elsewhere; a smaller --image-size, or a finer --spacing, computes less in vain"
        )


def crop_size(
    extents: Sequence[int],
    unit: Sequence[int],
    fits: Callable[[tuple[int, ...]], int],
    largest: int = LARGEST_CROP,
) -> tuple[int, ...]:
    """Return the size of crops: that of most volumes or signals, up to a largest, and as small as memory demands.

    As nnU-Net's planner does, the axis that is largest is reduced first.

    Args:
        extents: of most volumes or signals, in voxels or samples.
        unit: what each side must be a multiple of.
        fits: tells how many crops of a size fit into memory.
        largest: side of a crop, or nearly so.
    """
    least = [u if e < 2 * u else 2 * u for e, u in zip(extents, unit, strict=True)]
    size = [
        max(low, min(round(largest / u), (e + u // 2) // u) * u) for e, u, low in zip(extents, unit, least, strict=True)
    ]
    while fits(tuple(size)) < AT_LEAST:
        reducible = [axis for axis in range(len(size)) if size[axis] > least[axis]]
        if not reducible:
            break
        axis = max(reducible, key=lambda axis: size[axis] / extents[axis])
        size[axis] -= unit[axis]
    return tuple(size)


def crops_that_fit(
    model: SparK, in_chans: int, mask_ratio: float, precision: Precision, memory_bytes: int
) -> Callable[[tuple[int, ...]], int]:
    """Return a function that tells how many crops of a size fit into memory, measured with small ones.

    What a convolutional network keeps for backward grows with the number of voxels.
    """
    unit = model.backbone.size_divisor(model.patch_size)
    small = tuple(2 * u for u in unit)

    def inputs(crops: int) -> tuple[Any, ...]:
        masks = random_visible(crops * model.masks_per_image, model.grid_shape(small), mask_ratio)
        blank = model.objective.blank(crops, small)  # of a teacher
        return torch.zeros(crops, in_chans, *small), masks, *([] if blank is None else [blank])

    voxels = images_that_fit(model, inputs, precision, memory_bytes) * math.prod(small)
    return lambda size: voxels // math.prod(size)
