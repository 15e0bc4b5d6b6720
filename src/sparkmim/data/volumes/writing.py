"""Write prepared volumes, crops and reconstructions as NIfTI files in their place in the world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ...utils.io import write_atomically
from .geometry import cropped
from .libraries import library

NIFTI_FILES = (".nii", ".nii.gz")
"""Endings of names of NIfTI files."""


def volume_to_nifti(
    values: np.ndarray | Tensor, affine: np.ndarray, path: str | Path, start: Sequence[int] = (0, 0, 0)
) -> None:
    """Write a volume as a NIfTI file, atomically.

    Args:
        values: `(C, X, Y, Z)` or `(X, Y, Z)`; channels become the fourth dimension.
        affine: 4x4, from the voxels of the volume to the RAS world in millimeters, such as `StoredVolume.affine`.
        path: of a file that ends in .nii or .nii.gz.
        start: voxel of the volume at which `values` begin, of a crop.

    Raises:
        ValueError: for another ending or shape.
        OSError: if the file cannot be written.
    """
    import gzip

    nib = library("nibabel")
    path = Path(path)
    if not path.name.lower().endswith(NIFTI_FILES):
        raise ValueError(f"{path} must end in .nii or .nii.gz")
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float32)
    if array.ndim not in (3, 4):
        raise ValueError(f"expected (C, X, Y, Z) or (X, Y, Z), got {array.shape}")
    if array.ndim == 4:
        array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    image = nib.Nifti1Image(array, cropped(np.asarray(affine, np.float64), start))
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, 6, mtime=0)
    write_atomically(path, lambda file: file.write(content))


def labels_to_nifti(values: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write a label map `(X, Y, Z)` of integers as a NIfTI file, `.nii.gz`, atomically.

    Raises:
        OSError: if the file cannot be written.
    """
    import gzip

    nib = library("nibabel")
    image = nib.Nifti1Image(np.ascontiguousarray(values), np.asarray(affine, np.float64))
    image.header.set_xyzt_units("mm")
    content = gzip.compress(image.to_bytes(), 6, mtime=0)
    write_atomically(path, lambda file: file.write(content))
