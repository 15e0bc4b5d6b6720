"""Geometry and values of every format, against a linear function of the place in the world and the libraries' own."""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr
from pydicom.uid import RLELossless

from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.volumes.cases import Case, find_cases
from sparkmim.data.volumes.reading import Volume, read_volume
from volume_files import (
    itk_image,
    load_nifti,
    oblique,
    phantom,
    place_values,
    write_blosc,
    write_enhanced,
    write_itk,
    write_nifti,
    write_ome_zarr,
    write_series,
    write_tiff,
)

SHAPE = (7, 9, 6)
ORIENTATIONS = [
    ((0, 1, 2), (1, 1, 1), (1.0, 1.0, 1.0), 0.0),
    ((0, 1, 2), (-1, -1, 1), (0.8, 0.8, 5.0), 0.0),
    ((2, 0, 1), (1, -1, 1), (0.7, 0.9, 2.0), 12.0),
    ((1, 2, 0), (-1, 1, -1), (1.1, 3.0, 0.6), -25.0),
    ((2, 1, 0), (1, 1, -1), (0.5, 0.6, 1.7), 30.0),
]


def read(*files: Path) -> Volume:
    return read_volume(Case("case", files))


def require_in_place(volume: Volume, tolerance: float, shape: tuple[int, ...] = SHAPE) -> None:
    """Values, read where the affine says that they are, are those of the place."""
    assert volume.values.dtype == np.float32
    assert sorted(volume.values.shape[1:]) == sorted(shape)
    expected = place_values(volume.values.shape[1:], volume.affine)
    np.testing.assert_allclose(volume.values[0], expected, atol=tolerance)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    np.testing.assert_allclose(volume.spacing, np.linalg.norm(volume.affine[:3, :3], axis=0))


@pytest.mark.parametrize("layout", ORIENTATIONS)
@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", "dicom"])
def test_geometry_of_every_format(kind: str, layout: Any, tmp_path: Path) -> None:
    affine = oblique(*layout)
    values = place_values(SHAPE, affine)
    if kind == "dicom":
        write_series(tmp_path / "series", values, affine)
        (case,) = find_cases(tmp_path)
        require_in_place(read_volume(case), 0.3)
        return
    write = write_nifti if kind.startswith(".nii") else write_itk
    path = write(tmp_path / f"volume{kind}", values.astype(np.float32), affine)
    require_in_place(read(path), 2e-3)


@pytest.mark.parametrize("layout", ORIENTATIONS)
def test_as_nibabel_and_simpleitk_see_it(layout: Any, tmp_path: Path) -> None:
    affine = oblique(*layout)
    values = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
    ours = read(write_nifti(tmp_path / "a.nii.gz", values, affine))
    theirs = nib.as_closest_canonical(nib.load(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(ours.values[0], theirs.get_fdata())
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
    itk = read(write_itk(tmp_path / "a.nrrd", values, affine))
    np.testing.assert_array_equal(itk.values, ours.values)
    np.testing.assert_allclose(itk.affine, ours.affine, atol=1e-4)
    point = sitk.ReadImage(str(tmp_path / "a.nrrd")).TransformIndexToPhysicalPoint((2, 3, 4))
    found = np.linalg.inv(itk.affine) @ [-point[0], -point[1], point[2], 1]
    assert itk.values[0][tuple(np.round(found[:3]).astype(int))] == values[2, 3, 4]


@pytest.mark.parametrize(
    "write",
    [
        lambda folder, values: write_tiff(folder / "v.tif", values, (0.5, 0.5, 2.0)),
        lambda folder, values: write_ome_zarr(folder / "v.ome.zarr", values, (0.5, 0.5, 2.0)),
        lambda folder, values: write_ome_zarr(
            folder / "v.zarr", values, (500, 500, 2000), unit="micrometer", axes="tczyx"
        ),
        lambda folder, values: write_ome_zarr(folder / "v.zarr", values, (0.5, 0.5, 2.0), new=True),
        lambda folder, values: _npz(folder / "v.npz", values, (0.5, 0.5, 2.0)),
        lambda folder, values: _ome_tiff(folder / "v.ome.tif", values, (0.5, 0.5, 2.0)),
    ],
    ids=["imagej", "ome-zarr", "ome-zarr-5d", "ome-zarr-0.5", "npz", "ome-tiff"],
)
def test_formats_without_directions_keep_spacing(write: Callable[[Path, np.ndarray], Path], tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    volume = read(write(tmp_path, values))
    np.testing.assert_array_equal(volume.values[0], values)
    np.testing.assert_allclose(volume.spacing, (0.5, 0.5, 2.0))


def _npz(path: Path, values: np.ndarray, spacing: Any) -> Path:
    np.savez(path, image=values, other=values[0], spacing=spacing)
    return path


def _ome_tiff(path: Path, values: np.ndarray, spacing: Any) -> Path:
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("XYZ", spacing, strict=True)}
    units = {f"PhysicalSize{axis}Unit": "mm" for axis in "XYZ"}
    tifffile.imwrite(path, values.transpose(2, 1, 0), ome=True, metadata={"axes": "ZYX", **sizes, **units})
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_of_one_file(channels: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(channels, *SHAPE)).astype(np.float32)
    last = np.moveaxis(values, 0, -1)
    files = [write_nifti(tmp_path / "v.nii.gz", last), write_blosc(tmp_path / "v.b2nd", values)]
    files.append(write_ome_zarr(tmp_path / "v.zarr", values, axes="czyx"))
    np.save(tmp_path / "first.npy", values)
    np.save(tmp_path / "last.npy", last)
    files += [tmp_path / "first.npy", tmp_path / "last.npy"]
    if channels > 1:
        files.append(write_itk(tmp_path / "v.nrrd", last, np.diag([-1.0, -1.0, 1.0, 1.0])))
    for file in files:
        read_values = read(file).values
        expected = values[:, ::-1, ::-1] if file.suffix == ".nrrd" else values
        np.testing.assert_array_equal(read_values, expected, err_msg=file.name)


def test_channels_of_several_files(tmp_path: Path) -> None:
    one, other = phantom(0), phantom(1)
    affine = oblique((0, 1, 2), (-1, 1, 1), (1.0, 1.0, 2.0), 5.0)
    files = [write_nifti(tmp_path / f"a_000{i}.nii.gz", v, affine) for i, v in enumerate((one, other))]
    np.testing.assert_array_equal(read(*files).values, np.stack([one[::-1], other[::-1]]))


def test_units_of_the_header(tmp_path: Path) -> None:
    image = nib.Nifti1Image(phantom(), np.diag([500.0, 500.0, 800.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read(tmp_path / "a.nii").spacing, (0.5, 0.5, 0.8))


def test_scaled_values_of_nifti(tmp_path: Path) -> None:
    image = nib.Nifti1Image(phantom(), np.eye(4))
    image.header.set_slope_inter(0.25, -100)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read(tmp_path / "a.nii.gz").values[0], load_nifti(tmp_path / "a.nii.gz").get_fdata())


def test_colors_of_nifti(tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    values = read(write_nifti(tmp_path / "a.nii", colors.view(kind)[..., 0])).values
    np.testing.assert_array_equal(values, np.moveaxis(colors, -1, 0))


def test_nan_is_background_and_counted(tmp_path: Path) -> None:
    values = phantom().astype(np.float32)
    values[0, :2, 0] = np.nan
    volume = read(write_nifti(tmp_path / "a.nii.gz", values))
    assert volume.filled == 2
    np.testing.assert_array_equal(volume.values[0], np.nan_to_num(values))


# Bad input: each with the words that its message must have.


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def _truncated_gz(folder: Path) -> tuple[Path, ...]:
    return (_cut(write_nifti(folder / "a.nii.gz", phantom()), 0.6),)


def _ome_slices(path: Path) -> None:
    with tifffile.TiffWriter(path, ome=True) as file:
        planes = (plane for plane in phantom().transpose(2, 1, 0))
        file.write(planes, shape=(16, 24, 20), dtype=np.int16, metadata={"axes": "ZYX"})


def _own_slices(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        for plane in phantom().transpose(2, 1, 0):
            file.write(plane, contiguous=False)


STACKS: dict[str, Callable[[Path], object]] = {
    "pages": lambda path: tifffile.imwrite(path, phantom().transpose(2, 1, 0), photometric="minisblack", metadata=None),
    "shaped": lambda path: tifffile.imwrite(path, phantom().transpose(2, 1, 0), photometric="minisblack"),
    "zlib": lambda path: tifffile.imwrite(
        path, phantom().transpose(2, 1, 0), photometric="minisblack", compression="zlib", metadata=None
    ),
    "ImageJ": lambda path: write_tiff(path, phantom()),
    "OME": lambda path: _ome_tiff(path, phantom(), (1.0, 1.0, 1.0)),
    "OME by slices": _ome_slices,
    "slices of their own": _own_slices,
}


LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

FILES: dict[str, Callable[[Path], object]] = {
    **{f"a.{kind}.tif": write for kind, write in STACKS.items()},
    "a.nii": lambda path: write_nifti(path, phantom()),
    "a.nii.gz": lambda path: write_nifti(path, phantom()),
    "a.nrrd": lambda path: write_itk(path, phantom(), LPS),
    "packed.nrrd": lambda path: sitk.WriteImage(itk_image(phantom(), LPS), str(path), useCompression=True),
    "a.mha": lambda path: write_itk(path, phantom(), LPS),
    "packed.mha": lambda path: sitk.WriteImage(itk_image(phantom(), LPS), str(path), useCompression=True),
    "a.npy": lambda path: np.save(path, phantom()),
    "a.npz": lambda path: np.savez_compressed(path, phantom()),
    "a.b2nd": lambda path: write_blosc(path, phantom()),
    "a.dcm": lambda path: write_enhanced(path, phantom(), LPS),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_cut_off_are_refused(name: str, tmp_path: Path) -> None:
    """Read in full, where what is cut off is of no matter, or refused; never a part of it."""
    path = tmp_path / name
    FILES[name](path)
    whole = read(path).values
    assert sorted(whole.shape) == [1, 16, 20, 24]
    data = path.read_bytes()
    reasons = []
    for share in (0.99, 0.9, 0.5, 0.2, 0.0):
        path.write_bytes(data[: int(share * len(data))])
        try:
            np.testing.assert_array_equal(read(path).values, whole)
        except UnreadableImage as error:
            reasons.append(str(error))
            if share > 0.3 and path.suffix == ".tif":
                assert find_cases(tmp_path)  # broken, not flat
    assert len(reasons) >= 3
    assert not any("picture" in reason for reason in reasons)
    assert "is empty (0 bytes); copy it again" in reasons[-1]


def _flipped_bit(folder: Path) -> tuple[Path, ...]:
    path = write_nifti(folder / "a.nii.gz", phantom())
    data = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(data), compresslevel=0))
    packed[len(packed) // 2] ^= 1
    path.write_bytes(bytes(packed))
    return (path,)


def _values(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], tuple[Path, ...]]:
    return lambda folder: (write_nifti(folder / "a.nii.gz", change(phantom().astype(np.float32))),)


def _with(values: np.ndarray, value: float) -> np.ndarray:
    values[3, 3, 3] = value
    return values


def _sheared(extension: str) -> Callable[[Path], tuple[Path, ...]]:
    def make(folder: Path) -> tuple[Path, ...]:
        affine = np.eye(4)
        affine[1, 2] = np.tan(np.radians(15.0))
        if extension == "dicom":
            write_series(folder, phantom(), affine)
            return find_cases(folder)[0].files
        return (write_nifti(folder / "a.nii.gz", phantom(), affine),)

    return make


def _truncated_slice(folder: Path) -> tuple[Path, ...]:
    files = sorted(write_series(folder, phantom(), np.eye(4)).glob("*.dcm"))
    _cut(files[3], 0.7)
    return tuple(files)


def _missing_raw(folder: Path) -> tuple[Path, ...]:
    write_itk(folder / "a.mhd", phantom(), np.eye(4))
    (folder / "a.raw").unlink()
    return (folder / "a.mhd",)


def _series(change: Callable[[Any, int], None], drop: tuple[int, ...] = ()) -> Callable[[Path], tuple[Path, ...]]:
    def make(folder: Path) -> tuple[Path, ...]:
        write_series(folder, phantom(), np.diag([1.0, 1.0, 2.5, 1.0]), change=change)
        for index in drop:
            next(folder.glob(f"*_{index}.dcm")).unlink()
        return tuple(sorted(folder.glob("*.dcm")))

    return make


def _move(data: Any, index: int) -> None:
    if index == 5:
        data.ImagePositionPatient = [*data.ImagePositionPatient[:2], float(data.ImagePositionPatient[2]) + 0.9]


def _same_place(data: Any, index: int) -> None:
    data.ImagePositionPatient = [0, 0, 2.5 * (index // 2)]


def _turned(data: Any, index: int) -> None:
    if index % 2:
        data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def _without_place(data: Any, index: int) -> None:
    del data.ImagePositionPatient


def _other_grid(folder: Path) -> tuple[Path, ...]:
    moved = np.eye(4)
    moved[0, 3] = 0.5
    return write_nifti(folder / "a_0000.nii.gz", phantom()), write_nifti(folder / "a_0001.nii.gz", phantom(1), moved)


def _other_shape(folder: Path) -> tuple[Path, ...]:
    other = phantom(1, (20, 24, 17))
    return write_nifti(folder / "a_0000.nii.gz", phantom()), write_nifti(folder / "a_0001.nii.gz", other)


def _object_array(folder: Path) -> tuple[Path, ...]:
    np.save(folder / "a.npy", np.array([[[{}]]]), allow_pickle=True)
    return (folder / "a.npy",)


def _array(values: np.ndarray) -> Callable[[Path], tuple[Path, ...]]:
    def make(folder: Path) -> tuple[Path, ...]:
        np.save(folder / "a.npy", values)
        return (folder / "a.npy",)

    return make


def _zero_spacing(folder: Path) -> tuple[Path, ...]:
    image = nib.Nifti1Image(phantom(), np.eye(4))
    image.header["sform_code"], image.header["qform_code"] = 2, 0
    image.header["srow_z"] = 0
    nib.save(nib.Nifti1Image(phantom(), None, image.header), folder / "a.nii")
    return (folder / "a.nii",)


BAD: dict[str, tuple[Callable[[Path], tuple[Path, ...]], str]] = {
    "truncated gz": (_truncated_gz, "truncated or damaged"),
    "flipped bit": (_flipped_bit, "truncated or damaged"),
    "truncated slice": (_truncated_slice, r"slice.*dcm is truncated"),
    "raw file missing": (_missing_raw, "."),
    "infinite": (_values(lambda v: _with(v, np.inf)), "1 of .* infinite"),
    "beyond float32": (
        lambda folder: (write_nifti(folder / "a.nii", _with(phantom().astype(np.float64), 1e300)),),
        "infinite",
    ),
    "all NaN": (_values(lambda v: v * np.nan), "NaN"),
    "constant": (_values(lambda v: v * 0 + 7), "constant: all voxels are 7"),
    "a picture": (_values(lambda v: v[:, :, :1]), "picture of 20 x 24 x 1"),
    "complex": (lambda f: (write_nifti(f / "a.nii", phantom().astype(np.complex64)),), "real numbers"),
    "time series": (_values(lambda v: np.stack([v] * 20, axis=-1)), "fourth dimension of 20 .* without a meaning"),
    "five dimensions": (_values(lambda v: np.ones((4, 4, 4, 3, 2), np.float32)), "4 x 4 x 4 x 3 x 2"),
    "sheared": (_sheared(".nii.gz"), "15.0 degrees off right angles"),
    "gantry tilt": (_sheared("dicom"), "15.0 degrees off .*gantry tilt"),
    "no spacing": (_zero_spacing, "size of"),
    "missing slices": (_series(lambda d, i: None, drop=(6, 7, 10)), "about 3 of 16, the first after slice 6"),
    "uneven slices": (_series(_move), "spaced unevenly"),
    "several volumes": (_series(_same_place), "16 slices at 8 places"),
    "localizer": (_series(_turned), "differ in orientation"),
    "no place": (_series(_without_place), "without ImagePositionPatient"),
    "other grid": (_other_grid, "a_0001.nii.gz has another position"),
    "other shape": (_other_shape, "20 x 24 x 17"),
    "objects": (_object_array, "allow_pickle"),
    "four axes": (_array(np.zeros((9, 10, 11, 12))), "four dimensions without a meaning, 9 x 10 x 11 x 12"),
    "empty": (_array(np.zeros((0, 4, 4))), "empty"),
    "flat array": (_array(np.zeros((4, 4))), "expected three dimensions"),
    "missing file": (lambda folder: (folder / "nowhere.nii.gz",), "nowhere"),
    "text": (lambda folder: (_text(folder / "a.nrrd"),), "."),
    "unknown": (lambda folder: (_text(folder / "a.xyz"),), "ends in .xyz"),
    "movie": (lambda folder: (write_ome_zarr(folder / "a.zarr", np.ones((3, 4, 4, 4)), axes="tzyx"),), "in time"),
    "empty zarr": (lambda folder: (_folder(folder / "a.zarr"),), "."),
}


def _text(path: Path) -> Path:
    path.write_text("hello\n" * 100)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_with_a_reason(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, words = BAD[kind]
    files = make(tmp_path)
    with pytest.raises(UnreadableImage, match=words) as refused:
        read(*files)
    assert len(str(refused.value)) > 10
    assert "\n" not in str(refused.value)
    if kind != "raw file missing":  # whose reader writes to the terminal by itself
        assert not capfd.readouterr().err


def _zarr(path: Path, values: Any) -> None:
    zarr.save(str(path), values)


FLAT: dict[str, Callable[[Path, np.ndarray], Any]] = {
    ".nii": lambda path, values: nib.save(nib.Nifti1Image(values, np.eye(4)), path),
    ".nii.gz": lambda path, values: nib.save(nib.Nifti1Image(values, np.eye(4)), path),
    ".nrrd": lambda path, values: sitk.WriteImage(sitk.GetImageFromArray(values), str(path)),
    ".mha": lambda path, values: sitk.WriteImage(sitk.GetImageFromArray(values), str(path)),
    ".b2nd": lambda path, values: blosc2.asarray(values, urlpath=str(path), mode="w"),
    ".npy": lambda path, values: np.save(path, values),
    ".npz": lambda path, values: np.savez(path, image=values),
    ".tif": lambda path, values: tifffile.imwrite(path, values),
    ".zarr": _zarr,
}


@pytest.mark.parametrize("shape", [(12, 10), (12,), (12, 10, 1)], ids=str)
@pytest.mark.parametrize("extension", FLAT)
def test_what_is_flat_is_refused_in_every_format(extension: str, shape: Any, tmp_path: Path) -> None:
    path = tmp_path / f"flat{extension}"
    try:
        FLAT[extension](path, np.arange(math.prod(shape), dtype=np.float32).reshape(shape))
    except Exception:
        pytest.skip("the format has no such files")
    with pytest.raises(UnreadableImage):
        read(path)


def test_color_of_dicom_is_refused(tmp_path: Path) -> None:
    def color(data: Any, index: int) -> None:
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit = 7
        data.PixelData = bytes(3 * data.Rows * data.Columns)

    write_series(tmp_path, phantom(), np.eye(4), change=color)
    with pytest.raises(UnreadableImage, match="color"):
        read_volume(find_cases(tmp_path)[0])


def test_slopes_of_each_slice(tmp_path: Path) -> None:
    """PET has another slope in each slice."""

    def scale(data: Any, index: int) -> None:
        data.RescaleSlope, data.RescaleIntercept = f"{0.1 * (index + 1):.3f}", "0"
        data.PixelData = np.arange(data.Rows * data.Columns, dtype=np.uint16).tobytes()

    write_series(tmp_path, phantom(), np.diag([-1.0, -1.0, 1.0, 1.0]), change=scale)
    volume = read_volume(find_cases(tmp_path)[0])
    raw = np.arange(24 * 20).reshape(24, 20).T[::-1, ::-1]
    for index in range(16):
        np.testing.assert_allclose(volume.values[0, :, :, index], raw * 0.1 * (index + 1), rtol=1e-5)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("layout", ORIENTATIONS[1:3])
def test_dicom_of_many_frames(layout: Any, backwards: bool, tmp_path: Path) -> None:
    affine = oblique(*layout)
    write_enhanced(tmp_path / "a.dcm", place_values(SHAPE, affine), affine, backwards=backwards)
    (case,) = find_cases(tmp_path)
    require_in_place(read_volume(case), 0.3)


def test_compressed_dicom(tmp_path: Path) -> None:
    affine = oblique(*ORIENTATIONS[2])
    values = place_values(SHAPE, affine)
    write_series(tmp_path, values, affine, change=lambda data, _: data.compress(RLELossless))
    require_in_place(read_volume(find_cases(tmp_path)[0]), 0.3)


@pytest.mark.parametrize(("order", "signs"), [*itertools.product([(0, 1, 2), (2, 1, 0)], [(1, 1, 1), (-1, 1, -1)])])
def test_vector_image_of_itk(order: Any, signs: Any, tmp_path: Path) -> None:
    affine = oblique(order, signs, (1.0, 2.0, 3.0), 0.0)
    values = np.stack([place_values(SHAPE, affine), place_values(SHAPE, affine, 0.0)], axis=-1).astype(np.float32)
    sitk.WriteImage(itk_image(values, affine, vector=True), str(tmp_path / "a.mha"))
    volume = read(tmp_path / "a.mha")
    assert volume.values.shape[0] == 2
    np.testing.assert_allclose(volume.values[0], place_values(volume.values.shape[1:], volume.affine), atol=1e-3)
    np.testing.assert_allclose(volume.values[0] - volume.values[1], 1000, atol=1e-3)


def test_array_that_is_no_image_of_blosc(tmp_path: Path) -> None:
    blosc2.asarray(np.zeros((4, 4)), urlpath=str(tmp_path / "a.b2nd"))
    with pytest.raises(UnreadableImage, match="expected three dimensions"):
        read(tmp_path / "a.b2nd")


SPACINGS = {
    "zero": ('PhysicalSizeX="0"', "voxels have a size of 0 x 1 x 1 mm"),
    "NaN": ('PhysicalSizeY="nan"', "voxels have a size of 1 x nan"),
    "negative": ('PhysicalSizeZ="-1" PhysicalSizeZUnit="mm"', "voxels have a size of 1 x 1 x -1 mm"),
    "word": ('PhysicalSizeX="x"', "size of its voxels cannot be read"),
    "no XML": ("<", "size of its voxels cannot be read"),
}


@pytest.mark.parametrize("name", SPACINGS)
def test_sizes_of_voxels_that_cannot_be(name: str, tmp_path: Path) -> None:
    said, message = SPACINGS[name]
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, phantom().transpose(2, 1, 0).astype(np.float32), metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        text = str(file.ome_metadata)
    assert text.count("<Pixels ") == 1
    tifffile.tiffcomment(path, text.replace("<Pixels ", f"<Pixels {said} "))
    with pytest.raises(UnreadableImage, match=message):
        read(path)
