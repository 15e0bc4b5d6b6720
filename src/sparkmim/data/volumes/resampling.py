"""Resample volumes to a spacing, as nnU-Net's default resampling does (preprocessing/resampling/default_resampling.py).

Cubic splines along all axes; where voxels are more than three times as long along one axis as along another, each slice
across that axis by itself, and along it the nearest slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ANISOTROPIC = 3.0
"""Ratio of the longest to the shortest side of a voxel beyond which slices are resampled by themselves."""


def new_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Return the voxels along each axis after resampling, at least one."""
    return tuple(max(1, round(old / new * size)) for size, old, new in zip(shape, spacing, target, strict=True))


def separate_axis(spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """Return the axis along which slices are resampled by themselves, None if there is none.

    It is the longest of the voxels as they are, if these are anisotropic, or else of those wanted. Where two axes are
    the longest there is none.
    """
    for sides in (np.asarray(spacing), np.asarray(target)):
        if sides.max() / sides.min() > ANISOTROPIC:
            longest = np.flatnonzero(sides == sides.max())
            return int(longest[0]) if len(longest) == 1 else None
    return None


def resample(values: np.ndarray, shape: Sequence[int], axis: int | None) -> np.ndarray:
    """Resample a volume to a shape that covers the same extent.

    Args:
        values: `(C, X, Y, Z)`.
        shape: X, Y and Z of the result.
        axis: the one along which slices are resampled by themselves, see :func:`separate_axis`.

    Returns:
        `(C, *shape)`, float32, within the range of the values.
    """
    if values.shape[1:] == tuple(shape):
        return values
    result = np.empty((len(values), *shape), np.float32)
    for channel, into in zip(values, result, strict=True):
        if axis is None:
            into[...] = _resize(channel, shape)
            continue
        slices, target = np.moveaxis(channel, axis, 0), np.moveaxis(into, axis, 0)
        nearest = _nearest(len(slices), len(target))
        for index in np.unique(nearest):
            target[nearest == index] = _resize(slices[index], target.shape[1:])
    return result


def _nearest(size: int, count: int) -> np.ndarray:
    """Return the index of the slice nearest to each of `count` slices of the same extent."""
    places = (np.arange(count) + 0.5) * (size / count) - 0.5
    return np.clip(np.floor(places + 0.5), 0, size - 1).astype(int)


def _resize(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    from skimage.transform import resize

    if values.shape == tuple(shape):
        return values
    resized: np.ndarray = resize(
        values.astype(np.float64), shape, order=3, mode="edge", anti_aliasing=False, preserve_range=True
    )
    return resized
