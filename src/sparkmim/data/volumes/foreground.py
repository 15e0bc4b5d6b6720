"""What of a volume is the body, and not air or the empty margin around a brain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AIR = -500.0
"""Hounsfield units above which a voxel of CT is not air."""

Box = tuple[slice, slice, slice]


def raw_foreground(values: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
    """Return which voxels are not background in any channel, holes left as they are.

    In CT it is what lies above -500 HU; elsewhere what differs from the value that at least half of the corners have
    (as zeros around a brain), or everything if there is no such value.

    Args:
        values: `(C, X, Y, Z)`.
        modalities: of each channel, `ct` or another.

    Returns:
        `(X, Y, Z)`, bool.
    """
    found = np.zeros(values.shape[1:], bool)
    for channel, modality in zip(values, modalities, strict=True):
        if modality == "ct":
            found |= channel > AIR
            continue
        corners, counts = np.unique(
            channel[:: channel.shape[0] - 1, :: channel.shape[1] - 1, :: channel.shape[2] - 1], return_counts=True
        )
        if 2 * counts.max() < counts.sum():
            return np.ones(values.shape[1:], bool)
        found |= channel != corners[counts.argmax()]
    return found


def bounding_box(mask: np.ndarray) -> Box:
    """Return the smallest box that holds all of a mask; the whole of an empty one."""
    sides = []
    for axis in range(3):
        held = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        sides.append(slice(int(held[0]), int(held[-1]) + 1) if len(held) else slice(0, mask.shape[axis]))
    return sides[0], sides[1], sides[2]


def without_holes(mask: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
    """Return a mask with its holes filled; those of CT slice by slice, so that lungs are filled."""
    from scipy import ndimage

    flat = "ct" in modalities
    structure = ndimage.generate_binary_structure(3, 1)
    if flat:
        structure[:, :, [0, 2]] = False
    parts, count = ndimage.label(~mask, structure)
    if not count:
        return mask
    sides = [parts[0], parts[-1], parts[:, 0], parts[:, -1], *(() if flat else (parts[..., 0], parts[..., -1]))]
    outside = np.zeros(count + 1, bool)
    for side in sides:
        outside[side] = True
    outside[0] = False
    return ~outside[parts]
