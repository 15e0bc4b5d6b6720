"""Extensions of files that hold volumes."""

from __future__ import annotations

import os
from pathlib import Path

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
DICOM = (".dcm", ".dicom", ".ima")
ZARR = (".zarr",)
BLOSC = (".b2nd",)
ARRAYS = (".npy", ".npz")
TIFF = (".tif", ".tiff")

DECISIVE = frozenset((*NIFTI, *ITK, *DICOM, *ZARR, *BLOSC))
"""Those that hold nothing but volumes."""

READABLE = DECISIVE | {*ARRAYS, *TIFF}
"""All that are read; arrays and TIFF files may be pictures as well."""

DICOM_START = b"DICM"
"""What follows the first 128 bytes of a DICOM file, which often has no extension."""


def extension_of(name: str) -> str:
    """Return the extension of a file in lower case, `.nii.gz` as one."""
    name = name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]


def stem_of(name: str) -> str:
    """Return a path without its extension: of `.ome.tif` and `.ome.zarr` without both."""
    stem = name[: len(name) - len(extension_of(name))]
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def is_dicom(path: str | Path) -> bool:
    """Return whether a file is DICOM by its extension or, where it has none that is known, by its first bytes."""
    name = os.path.basename(path)
    if extension_of(name) in DICOM:
        return True
    if any(letter.isalpha() for letter in extension_of(name)) or name.upper() == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == DICOM_START
    except OSError:
        return False
