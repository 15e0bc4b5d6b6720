"""Read volumes into one geometry, and refuse what is none."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...utils.orientation import RAS
from ...utils.text import verb
from ..decoding.encoded import UnreadableImage
from .base import Case
from .extensions import is_dicom
from .formats import Grid, read_files
from .geometry import require_rectangular, same_grid, spacing_of, stored_order, to_ras


class Volume(NamedTuple):
    """A volume as it was taken, in RAS orientation.

    Attributes:
        values: `(C, X, Y, Z)`, float32; X runs as nearly as possible to the right, Y forward, Z up.
        spacing: millimeters between voxels along each axis.
        affine: 4x4, from voxels to the RAS world.
        filled: voxels that were NaN, and have the smallest value of their channel now.
        stored: order of the axes in the file, by the letters of RAS whichever way they run.
    """

    values: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray
    filled: int = 0
    stored: str = RAS


def read_volume(case: Case) -> Volume:
    """Read a volume from its files.

    NaN, which some programs write outside of the brain, is replaced by the smallest value of the channel and counted;
    infinity is refused.

    Raises:
        UnreadableImage: if files are truncated or damaged, are of no format that is read, are a picture, have a fourth
            dimension that is not channels, axes that are not at right angles (gantry tilt), slices missing, channels on
            different grids; or if values are infinite, all NaN or all equal.
        ValueError: if the library for the format is not installed.
    """
    grid = read_grid(case)
    if min(grid.values.shape, default=0) == 0:
        raise UnreadableImage(f"it is empty: {_by(grid.values.shape[1:])} voxels")
    if grid.values.ndim != 4:
        raise UnreadableImage(f"expected a volume of three dimensions, got a picture of {_by(grid.values.shape[1:])}")
    if min(grid.values.shape[1:]) == 1:
        raise UnreadableImage(f"a picture of {_by(grid.values.shape[1:])} voxels, not a volume")
    require_rectangular(grid.affine)
    values, affine = to_ras(*grid)
    values, filled = _finite(values)
    return Volume(values, spacing_of(affine), affine, filled, stored_order(grid.affine))


def read_grid(case: Case) -> Grid:
    """Read the files of a volume as they are: neither turned to RAS nor checked for what is no image.

    Raises:
        UnreadableImage: if they cannot be read, or lie on different grids.
    """
    if len(case.files) == 1 or is_dicom(case.files[0]):
        return read_files(case.files)
    grids = []
    for file in case.files:
        try:
            grids.append(read_files([file]))
        except UnreadableImage as error:
            raise UnreadableImage(f"{file.name}: {error}") from error
    first = grids[0]
    for file, grid in zip(case.files, grids, strict=True):
        shape, expected = grid.values.shape[1:], first.values.shape[1:]
        if shape != expected or not same_grid(grid.affine, first.affine, shape):
            what = f"{_by(shape)} voxels" if shape != expected else "another position, spacing or direction"
            raise UnreadableImage(
                f"channels with different geometry: {file.name} has {what}, {case.files[0].name} {_by(expected)}; "
                "register and resample them to one grid first"
            )
    return Grid(np.concatenate([grid.values for grid in grids]), first.affine)


def _finite(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return values without NaN, and how many there were.

    Raises:
        UnreadableImage: if values are infinite, all NaN or all equal.
    """
    low, high = values.min(axis=(1, 2, 3)), values.max(axis=(1, 2, 3))
    filled = 0
    if not (np.isfinite(low) & np.isfinite(high)).all():  # NaN passes through both
        infinite, missing = int(np.isinf(values).sum()), np.isnan(values)
        if infinite:
            raise UnreadableImage(
                f"{infinite} of {values.size} values {verb(infinite, 'are')} infinite (beyond what float32 holds); "
                "repair the file"
            )
        filled = int(missing.sum())
        for channel, here in zip(values, missing, strict=True):
            if here.all():
                raise UnreadableImage("all values are NaN")
            channel[here] = channel[~here].min()
        low, high = values.min(axis=(1, 2, 3)), values.max(axis=(1, 2, 3))
    if (low == high).all():
        raise UnreadableImage(f"it is constant: all voxels are {float(low[0]):g}")
    return values, filled


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
