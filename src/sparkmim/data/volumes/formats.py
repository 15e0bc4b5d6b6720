"""Read files of volumes by their libraries: nibabel, SimpleITK, tifffile, zarr, blosc2 and NumPy."""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from ...utils.memory import host_memory
from ..decoding.encoded import UnreadableImage
from ..decoding.headers import HEADERS, npy_file_header, opened_npz
from ..decoding.tiff_pages import images_of, opened, reading_pixels, require_all_pages
from .dicom import read_series
from .extensions import ARRAYS, BLOSC, ITK, NIFTI, TIFF, ZARR, extension_of, is_dicom
from .geometry import LPS_TO_RAS, affine_from
from .libraries import library

MOST_CHANNELS = 8
"""Longest fourth axis that is taken for channels; longer ones are time series or diffusion directions."""

NIFTI_HEADER = 544
"""Bytes of a NIfTI file that tell where its voxels are, of version 1 or 2."""

ARRAY_NAMES = ("image", "data")
"""Arrays of an .npz file that are read where it holds several; nnU-Net calls it `data`."""

MILLIMETERS = {
    "angstrom": 1e-7,
    "nanometer": 1e-6,
    "nm": 1e-6,
    "micrometer": 1e-3,
    "micron": 1e-3,
    "um": 1e-3,
    "\u00b5m": 1e-3,
    "\u03bcm": 1e-3,
    "\\u00b5m": 1e-3,
    "millimeter": 1.0,
    "mm": 1.0,
    "centimeter": 10.0,
    "cm": 10.0,
    "meter": 1000.0,
    "m": 1000.0,
    "inch": 25.4,
}
"""Millimeters of a unit; unknown units count as millimeters."""


class Grid(NamedTuple):
    """What a file holds, in the order in which it is stored.

    Attributes:
        values: `(C, X, Y, Z)`, float32.
        affine: 4x4, from its voxels to the RAS world in millimeters.
    """

    values: np.ndarray
    affine: np.ndarray


def read_files(files: Sequence[Path]) -> Grid:
    """Read a file, or the files of a DICOM series.

    Raises:
        UnreadableImage: if they cannot be read in full, or are not one volume.
        ValueError: if a library is not installed.
    """
    path = files[0]
    for file in files:
        if not file.exists():
            raise UnreadableImage(f"the file {file.name} does not exist, or is a link that leads nowhere")
        which = f"the file {file.name}" if len(files) > 1 else "the file"
        if file.is_file() and file.stat().st_size == 0:
            raise UnreadableImage(f"{which} is empty (0 bytes); copy it again")
    with unreadable(), np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
        extension = extension_of(path.name)
        for kinds, read in _READERS:
            if extension in kinds:
                return read(path)
        if is_dicom(path):
            return Grid(*read_series(files))
    raise UnreadableImage(f"expected a file of a volume, got one that ends in {extension or 'nothing'}")


@contextmanager
def unreadable() -> Iterator[None]:
    """Raise :class:`UnreadableImage` for whatever a library raises on a broken file."""
    try:
        yield
    except (MemoryError, UnreadableImage, KeyboardInterrupt):
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableImage(f"the file is truncated or damaged ({error}); copy it again") from error
    except Exception as error:
        if isinstance(error, ValueError) and isinstance(error.__cause__, ImportError):
            raise  # a library is missing
        raise UnreadableImage(_as_reason(error)) from error


def _as_reason(error: Exception) -> str:
    """Return what a library says on one line, without addresses of memory; of SimpleITK from where ITK speaks."""
    text = re.sub(r"\(0x[0-9a-f]+\)", "", " ".join(str(error).split()))
    if isinstance(error, OSError) and "could the file be damaged" in text:  # nibabel's, of files without compression
        return f"the file is truncated ({text.split(' from ')[0]}); copy it again"
    if "SimpleITK" in text or "sitk::" in text:
        said = text[max(0, text.find("ITK ERROR:"), text.find("sitk::ERROR:"), text.rfind("[nrrd]")) :]
        return f"the file, or one that its header names, is missing, truncated, damaged or of another format ({said})"
    return f"{type(error).__name__}: {text}"


def channels_first(values: np.ndarray, axis: int) -> np.ndarray:
    """Move a fourth axis to the front, as channels.

    Raises:
        UnreadableImage: if it is too long for channels.
    """
    if values.shape[axis] > MOST_CHANNELS:
        raise UnreadableImage(
            f"a fourth dimension of {values.shape[axis]} values without a meaning: more than {MOST_CHANNELS} channels, "
            "so probably a time series or diffusion directions; write the volumes to train on as files of their own "
            "(fslsplit, nibabel.four_to_three)"
        )
    return np.moveaxis(values, axis, 0)


def of_array(array: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0), axis: int | None = None) -> Grid:
    """Return an array without a geometry as a volume of cubes of 1 mm, its axes taken as they are.

    Args:
        array: `(X, Y, Z)`; or `(C, X, Y, Z)` or `(X, Y, Z, C)`, whichever has fewer channels, and no more than 8.
        spacing: of its voxels, in millimeters.
        axis: of the channels, where it is known.

    Raises:
        UnreadableImage: if its values are not real numbers, or its axes have no plain meaning.
    """
    if array.dtype.kind not in "buif":
        raise UnreadableImage(f"expected real numbers, got values of type {array.dtype}")
    if array.ndim == 4:
        if axis is None:
            axis = 0 if array.shape[0] <= array.shape[3] else 3
        if array.shape[axis] > MOST_CHANNELS:
            raise UnreadableImage(
                f"four dimensions without a meaning, {_by(array.shape)}: neither the first nor the last are at "
                f"most {MOST_CHANNELS} channels; save one volume a file"
            )
        array = np.moveaxis(array, axis, 0)
    elif array.ndim == 3:
        array = array[None]
    else:
        raise UnreadableImage(f"expected three dimensions, or four with channels, got {_by(array.shape) or 'none'}")
    return Grid(array.astype(np.float32), affine_from(np.eye(3), spacing, np.zeros(3)))


def _read_nifti(path: Path) -> Grid:
    nib = library("nibabel")
    packed = extension_of(path.name) == ".nii.gz"
    with gzip.open(path) if packed else path.open("rb") as file:
        _require_voxels_soon(file.read(NIFTI_HEADER))
    image = _from_gzip(path) if packed else nib.load(path)
    _require_memory(image.shape)
    kind = image.get_data_dtype()
    if kind.names:  # colors
        raw = np.asarray(image.dataobj)
        values = np.stack([raw[name].astype(np.float32) for name in kind.names])
    elif kind.kind not in "buif":
        raise UnreadableImage(f"expected real numbers, got values of type {kind}")
    else:
        values = np.asarray(image.dataobj, dtype=np.float32)
        while values.ndim > 3 and values.shape[-1] == 1:
            values = values[..., 0]
        if values.ndim == 5 and values.shape[3] == 1:  # vectors
            values = values[:, :, :, 0]
        if values.ndim > 4:
            raise UnreadableImage(f"expected three dimensions, or four with channels, got {_by(values.shape)}")
        values = channels_first(values, 3) if values.ndim == 4 else values[None]
    affine = np.array(image.affine, np.float64)
    affine[:3] *= MILLIMETERS.get(image.header.get_xyzt_units()[0], 1.0)
    return Grid(values, affine)


def _from_gzip(path: Path) -> Any:
    """Return the image in a compressed file, all of which is read, so that its checksum is compared."""
    nib = library("nibabel")
    with gzip.open(path) as file:
        start = file.read(NIFTI_HEADER)
        version_2 = 540 in (int.from_bytes(start[:4], order) for order in _ORDERS)
        kind = nib.Nifti2Image if version_2 else nib.Nifti1Image
        header = kind.header_class.from_fileobj(io.BytesIO(start), check=False)
        _require_memory(header.get_data_shape())
        needed = int(header["vox_offset"]) + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        data = start + file.read(max(0, needed - len(start)))
        if len(file.read(HEADERS + 1)) > HEADERS:  # to the end, where its checksum is
            raise UnreadableImage(f"it holds far more than the {needed} bytes that its header names")
    return kind.from_bytes(data)


def _require_voxels_soon(start: bytes) -> None:
    """Raise if a header says that voxels begin behind more than a header and its extensions can have.

    Raises:
        UnreadableImage: with the place.
    """
    for order, mark in (("<", "little"), (">", "big")):
        size = int.from_bytes(start[:4], mark)  # type: ignore[arg-type]
        if size == 348 and len(start) >= 112:
            (place,) = struct.unpack(f"{order}f", start[108:112])
        elif size == 540 and len(start) >= 176:
            (place,) = struct.unpack(f"{order}q", start[168:176])
        else:
            continue
        if not 0 <= place <= HEADERS:
            raise UnreadableImage(f"its header names {place:.0f} bytes before the voxels, and may have {HEADERS}")


_ORDERS: tuple[Any, ...] = ("little", "big")


def _read_itk(path: Path) -> Grid:
    sitk = library("SimpleITK")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # C++ writes them into the terminal
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    _require_memory((*reader.GetSize(), reader.GetNumberOfComponents()))
    return of_itk(reader.Execute())


def of_itk(image: Any) -> Grid:
    """Return an image of SimpleITK as a volume."""
    sitk = library("SimpleITK")
    dimensions, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    _require_memory((*image.GetSize(), components))
    array = sitk.GetArrayFromImage(image)  # the last axis first, components last
    if array.dtype.kind not in "buif":
        raise UnreadableImage(f"expected real numbers, got {image.GetPixelIDTypeAsString()}")
    values = array.astype(np.float32)
    if dimensions not in (3, 4) or (dimensions == 4 and components > 1):
        raise UnreadableImage(f"expected three dimensions, or four with channels, got {_by(image.GetSize())}")
    if components > 1:
        values = channels_first(values, 3)
    elif dimensions == 4:
        values = channels_first(values, 0)
    else:
        values = values[None]
    directions = np.array(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = LPS_TO_RAS @ affine_from(directions, image.GetSpacing()[:3], image.GetOrigin()[:3])
    return Grid(values.transpose(0, 3, 2, 1), affine)


def _read_numpy(path: Path) -> Grid:
    if extension_of(path.name) == ".npy":
        _require_memory(npy_file_header(path).shape)
        return of_array(np.load(path, allow_pickle=False))
    if not zipfile.is_zipfile(path):
        raise UnreadableImage("the file is truncated or damaged: its list of arrays, at the end, is missing")
    with opened_npz(path) as archive:
        arrays = archive.headers()
        names = [name for name, held in arrays.items() if len(held.shape) >= 3]
        chosen = names if len(names) == 1 else [name for name in ARRAY_NAMES if name in names][:1]
        if not chosen:
            found = ", ".join(archive.names[:4]) or "none"
            raise UnreadableImage(f"expected one array, or one named image or data among several, got {found}")
        if "spacing" in arrays and arrays["spacing"].shape != (3,):
            raise UnreadableImage(f"expected a spacing of three numbers, got {_by(arrays['spacing'].shape) or 'one'}")
        spacing = archive.array("spacing").tolist() if "spacing" in arrays else (1.0, 1.0, 1.0)
        _require_memory(arrays[chosen[0]].shape)
        return of_array(archive.array(chosen[0]), spacing)


def _read_blosc(path: Path) -> Grid:
    try:
        array = library("blosc2").open(str(path), mode="r")
    except RuntimeError as error:
        raise UnreadableImage("the file is truncated, damaged or not of blosc2; copy it again") from error
    _require_memory(array.shape)
    values = np.asarray(array[...])
    return of_array(values, axis=0)  # nnU-Net's, channels first


def _read_tiff(path: Path) -> Grid:
    with opened(path) as file:
        parts, axes, shape = _stack(file)
        _require_memory(shape)
        spacing = _tiff_spacing(file)
        with reading_pixels(file):
            array = np.stack([part.asarray() for part in parts]).reshape([n for n in shape if n > 1])
    values = array.transpose([axes.index(letter) for letter in ("CXYZ" if "C" in axes else "XYZ")])
    if values.ndim == 4:
        values = channels_first(values, 0)
    return of_array(values, spacing, axis=0)


def _stack(file: Any) -> tuple[list[Any], str, tuple[int, ...]]:
    """Return the images of a file, and their axes and shape as those of one stack, see :func:`stack_axes`.

    Raises:
        UnreadableImage: if they are none.
    """
    parts = images_of(file)
    shapes = sorted({part.shape for part in parts})
    if len(shapes) > 1:
        held = " and ".join(_by(shape) for shape in shapes[:2])
        raise UnreadableImage(f"expected one stack, got {len(parts)} images of several sizes ({held}); save one a file")
    first = parts[0]
    axes, shape = (first.axes, first.shape) if len(parts) == 1 else (f"Z{first.axes}", (len(parts), *first.shape))
    return parts, stack_axes(axes, shape), tuple(shape)


def stack_axes(axes: str, shape: Sequence[int]) -> str:
    """Return the axes of a TIFF file that are longer than 1, of X, Y, Z and C; pages of no other meaning are Z.

    Raises:
        UnreadableImage: if they are not those of a volume.
    """
    found = "".join(axis for axis, size in zip(axes, shape, strict=True) if size > 1).replace("S", "C")
    if "Z" not in found:
        found = found.replace("I", "Z", 1) if "I" in found else found.replace("Q", "Z", 1)
    if "T" in found:
        raise UnreadableImage(f"a fourth dimension in time ({_by(shape)}, {axes}); save one volume a file")
    if sorted(found) not in (list("XYZ"), list("CXYZ")):
        raise UnreadableImage(f"expected a stack of slices, got a picture of {_by(shape)} ({axes})")
    return found


def _tiff_spacing(file: Any) -> tuple[float, float, float]:
    """Return the spacing of a stack along X, Y and Z that OME or ImageJ wrote, 1 mm where nothing is said.

    Raises:
        UnreadableImage: if it is no length: a negative one would count as mirrored.
    """
    try:
        sizes = _written_spacing(file)
    except (ElementTree.ParseError, ValueError, TypeError) as error:
        raise UnreadableImage(
            f"what it says of the size of its voxels cannot be read ({error}); save it again"
        ) from error
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        shown = " x ".join(f"{size:g}" for size in sizes)
        raise UnreadableImage(f"its voxels have a size of {shown} mm; repair its metadata (PhysicalSize, spacing)")
    return sizes


def _written_spacing(file: Any) -> tuple[float, float, float]:
    if file.is_ome:
        for element in ElementTree.fromstring(file.ome_metadata).iter():
            if element.tag.endswith("Pixels"):
                sizes = [_ome_size(element.attrib, axis) for axis in "XYZ"]
                return sizes[0], sizes[1], sizes[2]
    if file.is_imagej:
        said, tags = file.imagej_metadata or {}, file.pages[0].tags
        unit = MILLIMETERS.get(str(said.get("unit", "")).lower(), 1.0)
        plane = [_per_pixel(tags[name].value) if name in tags else 1.0 for name in ("XResolution", "YResolution")]
        return plane[0] * unit, plane[1] * unit, float(said.get("spacing", 1.0)) * unit
    return 1.0, 1.0, 1.0


def _ome_size(attributes: dict[str, str], axis: str) -> float:
    size = attributes.get(f"PhysicalSize{axis}")
    return 1.0 if size is None else float(size) * MILLIMETERS.get(attributes.get(f"PhysicalSize{axis}Unit", "um"), 1.0)


def _per_pixel(resolution: tuple[int, int]) -> float:
    return resolution[1] / resolution[0] if resolution[0] else 1.0


def _read_zarr(path: Path) -> Grid:
    zarr = library("zarr")
    node = zarr.open(str(path), mode="r")
    if isinstance(node, zarr.Array):
        _require_memory(node.shape)
        return of_array(np.asarray(node[...]))
    said = ome_metadata(node)
    if not said.get("multiscales"):
        raise UnreadableImage("expected an array, or an OME-Zarr image with multiscales, in the .zarr folder")
    scales = said["multiscales"][0]
    array = node[scales["datasets"][0]["path"]]
    _require_memory(array.shape)
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in scales.get("axes", "tczyx")]
    steps = [*scales["datasets"][0].get("coordinateTransformations", []), *scales.get("coordinateTransformations", [])]
    scale, shift = np.ones(len(axes)), np.zeros(len(axes))
    for step in steps:
        if step["type"] == "scale":
            scale, shift = scale * step["scale"], shift * step["scale"]
        elif step["type"] == "translation":
            shift = shift + step["translation"]
    letters = "".join(axis["name"][0].upper() for axis in axes)
    long = [index for index, size in enumerate(array.shape) if size > 1 or letters[index] in "XYZ"]
    names = "".join(letters[index] for index in long)
    if "T" in names:
        raise UnreadableImage(f"a fourth dimension in time ({_by(array.shape)}, {letters}); save one volume each")
    if sorted(names) not in (list("XYZ"), list("CXYZ")):
        raise UnreadableImage(f"expected a volume, got an image of {_by(array.shape)} ({letters})")
    values = np.asarray(array[...]).reshape([array.shape[index] for index in long])
    values = values.transpose([names.index(letter) for letter in ("CXYZ" if "C" in names else "XYZ")])
    places = [letters.index(letter) for letter in "XYZ"]
    units = np.array([MILLIMETERS.get(axes[place].get("unit", ""), 1.0) for place in places])
    grid = of_array(channels_first(values, 0) if values.ndim == 4 else values)
    return Grid(grid.values, affine_from(np.eye(3), scale[places] * units, shift[places] * units))


def ome_metadata(group: Any) -> dict[str, Any]:
    """Return what OME says of a group of a Zarr file, of version 0.5 or of an older one."""
    said = dict(group.attrs)
    found: dict[str, Any] = said.get("ome", said)
    return found


def _require_memory(shape: Sequence[int]) -> None:
    """Raise if the values of an array, as float32, do not fit into memory.

    Raises:
        UnreadableImage: with both sizes.
    """
    needed, free = 4 * math.prod(shape), host_memory()
    if needed > free:
        raise UnreadableImage(
            f"{_by(shape)} values take {needed / 1e9:,.0f} GB, and {free / 1e9:,.0f} GB of memory are free; cut it "
            "into several files"
        )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


_READERS = (
    (NIFTI, _read_nifti),
    (ITK, _read_itk),
    (ARRAYS, _read_numpy),
    (BLOSC, _read_blosc),
    (TIFF, _read_tiff),
    (ZARR, _read_zarr),
)


def is_flat(path: Path) -> bool:
    """Return whether an array or TIFF file holds a picture instead of a volume, by its header alone."""
    extension = extension_of(path.name)
    try:
        if extension in TIFF:
            with opened(path, complete=False) as file:
                if _is_whole(file):
                    _stack(file)
        elif extension == ".npy":
            return len(npy_file_header(path).shape) < 3
        elif extension == ".npz":
            with opened_npz(path) as archive:
                return all(len(held.shape) < 3 for held in archive.headers().values())
    except UnreadableImage:
        return True
    except Exception:  # a broken file, which is told of when it is read
        return False
    return False


def _is_whole(file: Any) -> bool:
    try:
        require_all_pages(file)
    except UnreadableImage:
        return False
    return True
