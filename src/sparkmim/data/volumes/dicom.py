"""DICOM series: which files belong together, and whether they are the slices of one volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..decoding.encoded import UnreadableImage
from ..decoding.headers import bounded
from .geometry import LPS_TO_RAS, affine_from
from .libraries import library

GROUPING = ["SeriesInstanceUID", "Modality", "Rows", "NumberOfFrames"]
"""What is read of each file to find the series."""

PLACING = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SamplesPerPixel",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
"""What is read of each slice to place it."""

NO_IMAGES = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC"}
"""Modalities that are not images of a patient."""

UNEVEN = 0.1
"""Share of the distance between slices by which distances may differ."""

SAME_PLACE = 1e-3
"""Millimeters between slices that lie at the same place."""


class Series(NamedTuple):
    """Files of a series, in alphabetical order, and its identifier."""

    uid: str
    files: tuple[Path, ...]


class Slices(NamedTuple):
    """Where the slices of a series lie.

    Attributes:
        order: indices of the slices from the first to the last.
        affine: 4x4, from column, row and slice to the RAS world.
    """

    order: list[int]
    affine: np.ndarray


def find_series(files: Iterable[Path]) -> tuple[list[Series], list[tuple[Path, str]]]:
    """Group DICOM files by series; those of several frames are series of their own.

    Returns:
        The series in the order of their first files, and the files that hold no volume with the reason.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    skipped: list[tuple[Path, str]] = []
    for path in sorted(files):
        try:
            header = _header(path, GROUPING)
            uid, modality = str(header.get("SeriesInstanceUID") or ""), str(header.get("Modality") or "")
            rows, frames = header.get("Rows"), int(header.get("NumberOfFrames") or 1)
        except Exception as error:
            skipped.append((path, f"not readable as DICOM ({type(error).__name__}: {error})"))
            continue
        if modality in NO_IMAGES or not rows:
            skipped.append((path, f"DICOM of modality {modality or 'unknown'}, not an image"))
        else:
            groups[f"{uid}/{path.name}" if frames > 1 or not uid else uid].append(path)
    found = [Series(uid, tuple(paths)) for uid, paths in groups.items()]
    return sorted(found, key=lambda series: series.files[0]), skipped


def _header(path: Path, tags: list[str]) -> Any:
    """Read some elements of a file, and no more than a header may have."""
    with bounded(path, each=32) as file:  # some have a hundred thousand elements
        return library("pydicom").dcmread(file, stop_before_pixels=True, specific_tags=tags)


def read_series(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read the slices of a series, or a file of several frames.

    Returns:
        `(1, columns, rows, slices)` in the units of the scanner (HU for CT), and the affine to the RAS world.

    Raises:
        UnreadableImage: if the files are not the slices of one volume.
    """
    sitk = library("SimpleITK")
    headers = [_header(path, PLACING) for path in files]
    if any(int(header.get("SamplesPerPixel") or 1) > 1 for header in headers):
        raise UnreadableImage("a series of color pictures; expected gray ones, as CT and MR have")
    frames = int(headers[0].get("NumberOfFrames") or 1)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if frames > 1:
        slices = place_slices(*_of_frames(headers[0], frames), _size(headers[0]))
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(files[0]), sitk.sitkFloat32))[slices.order]
    else:
        _require_alike(headers)
        slices = place_slices(*_of_files(headers), _size(headers[0]))
        reader = sitk.ImageSeriesReader()
        reader.SetOutputPixelType(sitk.sitkFloat32)  # PET has another slope in each slice
        reader.SetFileNames([str(files[index]) for index in slices.order])
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError:
            _require_readable(files)
            raise
    return array.transpose(2, 1, 0)[None].astype(np.float32, copy=False), slices.affine


def place_slices(positions: np.ndarray, orientation: np.ndarray, spacing: np.ndarray, size: tuple[int, int]) -> Slices:
    """Order the slices of a series along its normal.

    Args:
        positions: `(N, 3)`, the centers of the first voxel of each slice, in the LPS world.
        orientation: six cosines, of the directions in which columns and rows increase.
        spacing: of rows and of columns.
        size: rows and columns.

    Raises:
        UnreadableImage: if slices are missing, lie at one place or are spaced unevenly.
    """
    if len(positions) < 2:
        raise UnreadableImage(f"a single slice of {size[0]} x {size[1]}, not a volume")
    across, down = orientation[:3], orientation[3:]
    normal = np.cross(across, down)
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    typical = float(np.median(gaps))
    if (gaps < SAME_PLACE).any():
        places = 1 + int((gaps >= SAME_PLACE).sum())
        raise UnreadableImage(
            f"{len(positions)} slices at {places} places: several volumes (phases, echoes) in one series; keep one, or "
            "convert them by dcm2niix"
        )
    wide = np.flatnonzero(gaps > 1.5 * typical)
    if len(wide):
        missing = int((np.round(gaps[wide] / typical) - 1).sum())
        raise UnreadableImage(
            f"missing slices: about {missing} of {len(positions) + missing}, the first after slice {wide[0] + 1}, with "
            f"a gap of {gaps[wide[0]]:.4g} mm instead of {typical:.4g} mm; copy the series again in full"
        )
    if np.abs(gaps - typical).max() > UNEVEN * typical:
        raise UnreadableImage(
            f"slices are spaced unevenly, by {gaps.min():.4g} to {gaps.max():.4g} mm; resample the series to even "
            "slices (dcm2niix does so)"
        )
    step = (positions[order[-1]] - positions[order[0]]) / (len(positions) - 1)
    distance = float(np.linalg.norm(step))
    directions = np.stack([across, down, step / distance], axis=1)
    affine = affine_from(directions, [spacing[1], spacing[0], distance], positions[order[0]])
    return Slices(order.tolist(), LPS_TO_RAS @ affine)


def _of_files(headers: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions, orientation and spacing of slices that are files of their own."""
    positions = np.array([_numbers(header, "ImagePositionPatient", 3) for header in headers])
    return positions, *_plane(headers[0])


def _plane(header: Any) -> tuple[np.ndarray, np.ndarray]:
    return _numbers(header, "ImageOrientationPatient", 6), _numbers(header, "PixelSpacing", 2)


def _of_frames(header: Any, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions, orientation and spacing of the frames of an enhanced file."""
    shared = _first(header, "SharedFunctionalGroupsSequence")
    each = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if len(each) != frames:
        raise UnreadableImage(f"{frames} frames without a place each: not a volume, or not of the enhanced kind")
    planes = [
        (
            _numbers(_first(frame, "PlaneOrientationSequence") or _first(shared, "PlaneOrientationSequence"), _TURN, 6),
            _numbers(_first(frame, "PixelMeasuresSequence") or _first(shared, "PixelMeasuresSequence"), _SIDES, 2),
        )
        for frame in each
    ]
    if any(not np.allclose(a, b, atol=1e-3) for plane in planes for a, b in zip(plane, planes[0], strict=True)):
        raise UnreadableImage("frames differ in orientation or spacing: a localizer, or several volumes in one file")
    positions = [_numbers(_first(frame, "PlanePositionSequence"), "ImagePositionPatient", 3) for frame in each]
    return np.array(positions), *planes[0]


_TURN, _SIDES = "ImageOrientationPatient", "PixelSpacing"


def _first(header: Any, name: str) -> Any:
    """Return the first item of a sequence, None if there is none."""
    items = header.get(name) if header is not None else None
    return items[0] if items else None


def _require_alike(headers: Sequence[Any]) -> None:
    """Raise unless slices have one size, orientation and spacing."""
    sizes = sorted({_size(header) for header in headers})
    if len(sizes) > 1:
        raise UnreadableImage(f"slices of several sizes in one series: {', '.join(f'{a} x {b}' for a, b in sizes[:4])}")
    planes = [np.concatenate(_plane(header)) for header in headers]
    if any(not np.allclose(plane, planes[0], atol=1e-3) for plane in planes):
        raise UnreadableImage("slices differ in orientation or spacing: a localizer, or several volumes in one series")


def _require_readable(files: Sequence[Path]) -> None:
    """Raise with the name of the first file that cannot be read.

    Raises:
        UnreadableImage: if there is one.
    """
    sitk = library("SimpleITK")
    for path in files:
        try:
            sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise UnreadableImage(f"{path.name} is truncated, damaged or compressed in an unknown way") from error


def _size(header: Any) -> tuple[int, int]:
    return int(header.Rows), int(header.Columns)


def _numbers(header: Any, name: str, count: int) -> np.ndarray:
    values = header.get(name) if header is not None else None
    if values is None or len(values) != count:
        raise UnreadableImage(f"DICOM without {name}: its slices have no place in space")
    return np.array([float(value) for value in values])
