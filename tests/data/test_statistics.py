from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparkmim.data.sources.folder import find_images
from sparkmim.data.statistics import channel_statistics, first_readable

NOISE = np.random.default_rng(0)


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
