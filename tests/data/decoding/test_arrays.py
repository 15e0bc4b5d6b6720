from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.decoding.images import read_image

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
    settings: dict[str, Any] = {"planarconfig": "separate"} if axes == "CYX" else {"planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="minisblack", **settings)
    planes = array if axes == "CYX" else array.transpose(2, 0, 1)
    image = read_image(tmp_path / "x.tif", len(planes))
    assert torch.equal(image, torch.from_numpy(planes.astype(np.float32)) / 65535)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((3, 4, 5)),
            r"array of 13 channels, got one of shape \(3, 4, 5\); a network takes the channels that it was made",
        ),
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
