"""Geometry of volumes: from voxels to the world in millimeters, RAS (right, anterior, superior)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...utils.orientation import RAS, axes_of
from ..decoding.encoded import UnreadableImage
from .libraries import library

Vector = Sequence[float] | np.ndarray

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the world of DICOM and ITK (left, posterior, superior) to that of NIfTI."""

LARGEST_COSINE = 0.01
"""Largest cosine between two axes of a grid that counts as rectangular: 0.6 degrees."""

TOLERANCE = 0.02
"""Share of a voxel by which the corners of two channels may differ."""


def affine_from(directions: np.ndarray, spacing: Vector, origin: Vector) -> np.ndarray:
    """Return the affine of a grid.

    Args:
        directions: 3x3, the unit vectors of the axes in its columns.
        spacing: of voxels along each axis.
        origin: center of the first voxel.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions) * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Return the distance of voxels along each axis, in millimeters."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return x, y, z


def require_rectangular(affine: np.ndarray) -> None:
    """Raise unless an affine has voxels of a size, along axes at right angles.

    Raises:
        UnreadableImage: with what is odd about it.
    """
    if not np.isfinite(affine).all():
        raise UnreadableImage("its affine has NaN or infinite numbers; repair the header")
    spacing = np.array(spacing_of(affine))
    if (spacing <= 0).any() or spacing.max() > 1e6 * spacing.min():
        raise UnreadableImage(f"its voxels have a size of {_millimeters(spacing)}; repair the header")
    units = affine[:3, :3] / spacing
    cosines = np.abs(units.T @ units - np.eye(3))
    if cosines.max() > LARGEST_COSINE:
        angle = np.degrees(np.arcsin(min(1.0, float(cosines.max()))))
        raise UnreadableImage(
            f"its axes are {angle:.1f} degrees off right angles (gantry tilt, or a sheared affine); resample it to a "
            "rectangular grid first: dcm2niix does so for tilted CT"
        )


def to_ras(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorder and flip the axes of a volume so that they run as nearly as possible right, anterior and superior.

    Args:
        values: `(C, X, Y, Z)`.
        affine: 4x4, from its voxels to the RAS world.

    Returns:
        A view of the volume, and its affine; no value is interpolated.
    """
    orientations = library("nibabel.orientations")
    turn = orientations.io_orientation(affine)
    turned = orientations.apply_orientation(np.moveaxis(values, 0, -1), turn)
    new = affine @ orientations.inv_ornt_aff(turn, values.shape[1:])
    return np.moveaxis(turned, -1, 0), new


def stored_order(affine: np.ndarray) -> str:
    """Return the order of a file's axes by the letters of RAS, whichever way they run: ASR of sagittal slices."""
    turn = library("nibabel.orientations").io_orientation(affine)
    return "".join(RAS[int(axis)] for axis in turn[:, 0])


def from_ras(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return a volume in RAS orientation in the order of axes of the volume that :func:`to_ras` was given.

    Args:
        values: `(X, Y, Z)`.
        affine: 4x4, of that volume.
    """
    orientations = library("nibabel.orientations")
    turn = orientations.io_orientation(affine)
    straight = np.stack([np.arange(3.0), np.ones(3)], axis=1)
    back: np.ndarray = orientations.apply_orientation(values, orientations.ornt_transform(straight, turn))
    return back


def in_orientation(
    values: np.ndarray, affine: np.ndarray, orientation: str, now: str = RAS
) -> tuple[np.ndarray, np.ndarray]:
    """Reorder the axes of a volume.

    Args:
        values: `(C, *size)`.
        affine: 4x4, from its voxels to the RAS world.
        orientation: order of its axes afterwards, such as SAR.
        now: order of its axes as it is.

    Returns:
        A view of the volume, and its affine.
    """
    axes = axes_of(orientation, now)
    return values.transpose(0, *(1 + axis for axis in axes)), reordered(affine, axes)


def reordered(affine: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Return the affine of a volume whose axes are taken in another order."""
    return affine[:, [*axes, 3]]


def axes_along(affine: np.ndarray, like: np.ndarray) -> tuple[int, ...] | None:
    """Return the axis of one grid that is nearest to each axis of another one, None if that is not one to one.

    Args:
        affine: 4x4, of the grid whose axes are returned.
        like: 4x4, of the other one.
    """
    one, other = (a[:3, :3] / np.linalg.norm(a[:3, :3], axis=0) for a in (affine, like))
    axes = tuple(int(axis) for axis in (one.T @ other).argmax(axis=0))
    return axes if sorted(axes) == [0, 1, 2] else None


def same_grid(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> bool:
    """Return whether two affines place the corners of a volume at the same points, to a fiftieth of a voxel."""
    sides = [(0.0, float(size - 1)) for size in shape]
    corners = np.array(np.meshgrid(*sides, [1.0])).reshape(4, -1)
    apart = np.linalg.norm(((one - other) @ corners)[:3], axis=0)
    return bool(apart.max() <= TOLERANCE * min(spacing_of(one)))


def cropped(affine: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """Return the affine of a part of a volume that begins at a voxel."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(start, np.float64)
    return moved


def resampled(affine: np.ndarray, shape: Sequence[int], new_shape: Sequence[int]) -> np.ndarray:
    """Return the affine of a volume whose extent is divided into other voxels."""
    scale = np.asarray(shape, np.float64) / np.asarray(new_shape)
    new = cropped(affine, list(0.5 * scale - 0.5))
    new[:3, :3] = affine[:3, :3] * scale
    return new


def _millimeters(spacing: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{float(side):.4g}" for side in spacing) + " mm"
