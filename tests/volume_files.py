"""Files of volumes in every format, written by the formats' own libraries, whose values tell where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
import tifffile
import zarr
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SLOPES = np.array([3.0, -5.0, 7.0])


def place_values(shape: Sequence[int], affine: np.ndarray, offset: float = 1000.0) -> np.ndarray:
    """Return values that are a linear function of the place in the world: wherever axes lead, they must fit."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return world @ SLOPES + offset


def oblique(order: Sequence[int], signs: Sequence[int], spacing: Sequence[float], degrees: float) -> np.ndarray:
    """Return an affine of permuted and flipped axes, turned about two of the world's axes."""
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ (np.eye(3)[:, list(order)] * np.array(signs)) * np.array(spacing)
    affine[:3, 3] = (-31.0, 17.5, 60.0)
    return affine


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def load_nifti(path: Path) -> Any:
    return nib.load(path)


def itk_image(values: np.ndarray, affine: np.ndarray, *, vector: bool = False) -> Any:
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(values, [0, 1, 2], [2, 1, 0])), isVector=vector)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def write_itk(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    sitk.WriteImage(itk_image(values, affine, vector=values.ndim == 4), str(path))
    return path


def write_series(
    folder: Path,
    values: np.ndarray,
    affine: np.ndarray,
    *,
    uid: str | None = None,
    prefix: str = "slice",
    change: Callable[[Any, int], None] | None = None,
    extension: str = ".dcm",
) -> Path:
    """Write a series of CT slices along the third axis, named in another order than they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    uid = uid or generate_uid()
    for index in range(values.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = pydicom.Dataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = uid, "1.2.3", "CT"
        data.PatientID = data.PatientName = "phantom"
        data.Columns, data.Rows = values.shape[:2]
        data.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"]
        directions = (lps[:3, :3] / spacing).T
        data.ImageOrientationPatient = [f"{v:.10f}"[:16] for v in np.concatenate([directions[0], directions[1]])]
        data.ImagePositionPatient = [f"{v:.10f}"[:16] for v in (lps @ np.array([0, 0, index, 1.0]))[:3]]
        data.InstanceNumber = index + 1
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.RescaleSlope, data.RescaleIntercept = "0.5", "-1024"
        pixels = np.round((values[:, :, index].T + 1024) * 2).astype(np.uint16)
        data.PixelData = pixels.tobytes()
        if change is not None:
            change(data, index)
        name = f"{prefix}{(index * 7) % values.shape[2]:03d}_{index}{extension}"
        data.save_as(folder / name, enforce_file_format=True)
    return folder


def write_enhanced(path: Path, values: np.ndarray, affine: np.ndarray, *, backwards: bool = False) -> Path:
    """Write one DICOM file of many frames, from the first slice to the last or backwards."""
    folder = write_series(path.parent / "slices", values[:, :, :1], affine)
    (first,) = folder.iterdir()
    data = pydicom.dcmread(first)
    first.unlink()
    folder.rmdir()
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    shared, measures, plane, scaling = (pydicom.Dataset() for _ in range(4))
    measures.PixelSpacing, measures.SliceThickness = data.PixelSpacing, f"{spacing[2]:.8g}"
    plane.ImageOrientationPatient = data.ImageOrientationPatient
    scaling.RescaleSlope, scaling.RescaleIntercept, scaling.RescaleType = "0.5", "-1024", "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [scaling]
    data.SharedFunctionalGroupsSequence = [shared]
    for name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept"):
        delattr(data, name)
    frames, order = [], list(range(values.shape[2]))
    for index in reversed(order) if backwards else order:
        frame, place = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [f"{v:.10f}"[:16] for v in (lps @ np.array([0, 0, index, 1.0]))[:3]]
        frame.PlanePositionSequence = [place]
        frames.append((frame, np.round((values[:, :, index].T + 1024) * 2).astype(np.uint16)))
    data.PerFrameFunctionalGroupsSequence = [frame for frame, _ in frames]
    data.NumberOfFrames = len(frames)
    data.PixelData = b"".join(pixels.tobytes() for _, pixels in frames)
    data.save_as(path, enforce_file_format=True)
    return path


def write_tiff(path: Path, values: np.ndarray, spacing: Sequence[float] = (1, 1, 1)) -> Path:
    x, y, z = spacing
    tifffile.imwrite(
        path,
        values.astype(np.float32).transpose(2, 1, 0),
        imagej=True,
        resolution=(1 / x, 1 / y),
        metadata={"axes": "ZYX", "spacing": z, "unit": "mm"},
    )
    return path


def write_ome_zarr(
    path: Path,
    values: np.ndarray,
    spacing: Sequence[float] = (1, 1, 1),
    *,
    unit: str = "millimeter",
    axes: str = "zyx",
    new: bool = False,
) -> Path:
    """Write an OME-Zarr image of version 0.4, or 0.5 if new, from `(C, X, Y, Z)` or `(X, Y, Z)`."""
    group = zarr.open_group(str(path), mode="w", zarr_format=3 if new else 2)
    array = values.transpose((0, 3, 2, 1) if values.ndim == 4 else (2, 1, 0))
    while array.ndim < len(axes):
        array = array[None]
    stored = group.create_array(
        "0", shape=array.shape, chunks=tuple(min(16, n) for n in array.shape), dtype=array.dtype
    )
    stored[...] = array
    scale = [1.0] * (len(axes) - 3) + [spacing[2], spacing[1], spacing[0]]
    kinds = {"c": "channel", "t": "time"}
    named: Any = [
        {"name": a, "type": kinds[a]} if a in kinds else {"name": a, "type": "space", "unit": unit} for a in axes
    ]
    datasets: Any = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    scales: Any = [{"version": "0.4", "axes": named, "datasets": datasets}]
    group.attrs.update({"ome": {"version": "0.5", "multiscales": scales}} if new else {"multiscales": scales})
    return path


def write_blosc(path: Path, values: np.ndarray) -> Path:
    blosc2.asarray(np.ascontiguousarray(values), urlpath=str(path), mode="w")
    return path


def phantom(seed: int = 0, shape: Sequence[int] = (20, 24, 16), margin: int = 3) -> np.ndarray:
    """Return a bright noisy box in zeros, int16."""
    random = np.random.default_rng(seed)
    values = np.zeros(shape, np.int16)
    inner = tuple(slice(margin, n - margin) for n in shape)
    values[inner] = 200 + random.integers(0, 400, size=[n - 2 * margin for n in shape])
    return values
