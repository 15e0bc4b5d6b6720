from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from sparkmim.data.config import DataConfig
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.decoding.images import read_image
from sparkmim.data.sources.folder import find_images
from sparkmim.data.statistics import channel_statistics, first_readable
from sparkmim.data.views import evaluation_view, training_view

NOISE = np.random.default_rng(0)


def test_npy_of_many_channels(tmp_path: Path) -> None:
    array = NOISE.normal(size=(13, 6, 8))
    np.save(tmp_path / "first.npy", array)
    np.save(tmp_path / "last.npy", array.transpose(1, 2, 0))
    for name in ("first.npy", "last.npy"):
        assert torch.equal(read_image(tmp_path / name, 13), torch.from_numpy(array).float())


def test_npy_of_one_channel_is_repeated(tmp_path: Path) -> None:
    array = NOISE.normal(size=(6, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    assert torch.equal(read_image(tmp_path / "x.npy", 1)[0], torch.from_numpy(array))
    assert torch.equal(read_image(tmp_path / "x.npy", 3), torch.from_numpy(array).expand(3, -1, -1))


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("uint8", None), (">u2", 65535), ("uint16", 65535), ("int16", 1), (">i4", 1), ("float64", 1), ("bool", 1)],
)
def test_types_of_numbers(tmp_path: Path, dtype: str, scale: int | None) -> None:
    array = NOISE.integers(0, 2 if dtype == "bool" else 200, (2, 6, 8)).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    image = read_image(tmp_path / "x.npy", 2)
    if scale is None:
        assert image.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(array))
    else:
        assert torch.equal(image, torch.from_numpy(array.astype(np.float32)) / scale)


@pytest.mark.parametrize(("shape", "axes"), [((13, 6, 8), "CYX"), ((6, 8, 13), "YXS"), ((5, 6, 8), "CYX")])
def test_tiff_of_many_channels(tmp_path: Path, shape: tuple[int, ...], axes: str) -> None:
    array = NOISE.integers(0, 65536, shape).astype(np.uint16)
    settings = {"planarconfig": "separate"} if axes == "CYX" else {"planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="minisblack", **settings)
    planes = array if axes == "CYX" else array.transpose(2, 0, 1)
    image = read_image(tmp_path / "x.tif", len(planes))
    assert torch.equal(image, torch.from_numpy(planes.astype(np.float32)) / 65535)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 5)), r"array of 13 channels, got one of shape \(3, 4, 5\); see --in-chans"),
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((13, 0, 5)), r"shape \(13, 0, 5\)"),
        (np.zeros((13, 4, 5), complex), "expected real numbers, got values of type complex128"),
        (np.full((13, 4, 5), np.inf), "expected finite values"),
        (np.array([{"a": 1}]), "allow_pickle"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UnreadableImage, match=message):
        read_image(tmp_path / "x.npy", 13)


def test_statistics_are_those_of_all_pixels(tmp_path: Path) -> None:
    arrays = [NOISE.normal(3, 2, size=(2, n, 10)) * [[[1]], [[100]]] for n in (5, 10, 20)]
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    measured = channel_statistics(find_images(tmp_path), 2)
    together = np.concatenate([a.reshape(2, -1) for a in arrays], axis=1)
    np.testing.assert_allclose(measured.mean, together.mean(1), rtol=1e-3)
    np.testing.assert_allclose(measured.std, together.std(1), rtol=1e-3)
    assert measured.images == 3


def test_statistics_of_pictures_are_shares(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4, 3), [0, 51, 255], dtype=np.uint8)).save(tmp_path / "x.png")
    measured = channel_statistics(find_images(tmp_path), 3)
    assert measured.mean == (0.0, 0.2, 1.0)
    assert measured.std == (1.0, 1.0, 1.0)  # constant channels cannot be scaled


def test_sources_without_a_readable_image_say_why(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.jpg")
    with pytest.raises(
        ValueError, match=r"none of 3 images tried can be read as 13 channels; 0\.jpg: a \.jpg file has no"
    ):
        first_readable(find_images(tmp_path), 13)


def test_native_crops_are_pieces_of_the_image() -> None:
    config = DataConfig(image_size=(8, 12), mean=(0.0,), std=(1.0,), crop="native", flip=False)
    image = torch.arange(30.0 * 40).view(1, 30, 40)
    corners = set()
    for seed in range(20):
        torch.manual_seed(seed)
        view = training_view(config)(image)
        top, left = divmod(int(view[0, 0, 0]), 40)
        assert torch.equal(view, image[:, top : top + 8, left : left + 12])
        corners.add((top, left))
    assert len(corners) > 15
    assert torch.equal(evaluation_view(config)(image), image[:, 11:19, 14:26])


def test_native_crops_of_small_images_repeat_their_edges() -> None:
    config = DataConfig(image_size=(8, 8), mean=(0.0,), std=(1.0,), crop="native", flip=False)
    image = torch.rand(1, 4, 20)
    assert training_view(config)(image).shape == (1, 8, 8)
    seen = evaluation_view(config)(image)
    assert torch.equal(seen[:, 2:6], image[:, :, 6:14])
    assert torch.equal(seen[:, 0], seen[:, 2])
    assert torch.equal(seen[:, 7], seen[:, 5])
