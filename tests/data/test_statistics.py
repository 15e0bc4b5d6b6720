from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparkmim.data.config import FileConfig
from sparkmim.data.decoding.encoded import EncodedImage, UnreadableImage
from sparkmim.data.decoding.images import EncodedFile
from sparkmim.data.sources.base import ImageSource
from sparkmim.data.sources.folder import find_images
from sparkmim.data.statistics import (
    Moments,
    channel_statistics,
    first_readable,
    input_statistics,
    peculiarities,
    require_readable,
    spread,
)

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


@pytest.mark.parametrize(
    ("mean", "std"), [(101325, 5), (-40, 15), (287, 3), (0, 1), (0.5, 1e-3), (1e6, 1e-2), (3e-7, 1e-8)]
)
def test_digits_follow_the_deviation(tmp_path: Path, mean: float, std: float) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).normal(mean, std, (2, 64, 64)))
    everything = np.concatenate([np.load(path).astype(np.float32).reshape(2, -1) for path in tmp_path.iterdir()], 1)
    measured = channel_statistics(find_images(tmp_path), 2)
    wanted = everything.astype(np.float64)
    assert np.all(np.abs(measured.mean - wanted.mean(1)) <= 1e-3 * wanted.std(1) + 1e-12)
    np.testing.assert_allclose(measured.std, wanted.std(1), rtol=1e-3)
    assert all(len(repr(value)) < 16 for value in measured.mean + measured.std)


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    image = torch.from_numpy(NOISE.integers(0, 255, (3, 1200, 1600), dtype=np.uint8))
    moments = Moments(3)
    sizes: list[int] = []
    merge = Moments._merge

    def watched(self: Moments, place: int, values: torch.Tensor) -> None:
        sizes.append(values.numel() * values.element_size())
        merge(self, place, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Moments, "_merge", watched)
        moments.add(image)
    assert max(sizes) <= 2**21
    torch.testing.assert_close(moments.mean, image.double().mean((1, 2)) / 255)
    torch.testing.assert_close(
        (moments.squares / moments.count).sqrt(), image.double().flatten(1).std(1, correction=0) / 255
    )


def test_what_nothing_is_known_of_is_measured(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", NOISE.normal(300, 10, (3, 32, 32)))
    mean, std, images = input_statistics(find_images(tmp_path), 3)
    np.testing.assert_allclose(mean, [300] * 3, rtol=0.01)
    np.testing.assert_allclose(std, [10] * 3, rtol=0.1)
    assert images == 1
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert input_statistics(find_images(tmp_path), 3)[0] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda n: np.full((8, 8), n), "10 of the first 12 are of one color"),
        (lambda n: np.zeros((8, 8)), "10 of the first 12 are black"),
        (
            lambda n: NOISE.integers(0, 255, (8, 8)) * 0 + np.arange(64).reshape(8, 8),
            "10 of the first 12 are equal to others",
        ),
    ],
)
def test_sets_of_constant_or_equal_images_are_told(
    tmp_path: Path, make: Callable[[int], np.ndarray], said: str
) -> None:
    for number in range(12):
        pixels = make(number + 1) if number < 10 else NOISE.integers(0, 255, (8, 8))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number:02}.png")
    assert said in peculiarities(find_images(tmp_path), 1)


def test_ordinary_sets_have_no_peculiarity(tmp_path: Path) -> None:
    for number in range(12):
        Image.fromarray(NOISE.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    assert peculiarities(find_images(tmp_path), 3) == []


def test_sets_are_tried_before_they_are_needed(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    source = find_images(tmp_path)
    require_readable(source, 3, FileConfig(), 0.1, "--val-data")
    for name in "bcdef":
        (tmp_path / f"{name}.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"--val-data: 5 of 6 images tried cannot be read .*; b\.png.*by --max-broken"):
        require_readable(find_images(tmp_path), 3, FileConfig(), 0.1, "--val-data")
    require_readable(find_images(tmp_path), 3, FileConfig(), 0.9, "--val-data")
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="5 of 5 images tried cannot be read"):
        require_readable(find_images(tmp_path), 3, FileConfig(), 1.0, "--val-data")


class Marked(ImageSource):
    """Images of which some cannot be read, and a count of how many were tried."""

    def __init__(self, broken: list[bool]) -> None:
        self.broken, self.tried = broken, 0

    def __len__(self) -> int:
        return len(self.broken)

    def name(self, index: int) -> str:
        return f"{index}.png"

    def open(self, index: int) -> EncodedImage:
        self.tried += 1
        if self.broken[index]:
            raise UnreadableImage("junk")
        file = io.BytesIO()
        Image.new("L", (2, 2)).save(file, "PNG")
        return EncodedFile(file.getvalue(), "x.png")


@pytest.mark.parametrize("images", [5, 20, 400])
def test_sets_with_too_many_unreadable_images_are_refused(images: int) -> None:
    """Never those with as many as are allowed; those of a few dozen with one more as soon as one of eight is broken."""
    random = np.random.default_rng(images)
    for share, most in itertools.product((0.0, 0.05, 0.1, 0.3, 0.6, 1.0), (0.0, 0.1, 0.5)):
        broken = random.permutation(np.arange(images) < round(share * images)).tolist()
        source = Marked(broken)
        allowed = sum(broken) <= most * images
        refused = False
        try:
            require_readable(source, 1, FileConfig(), most, "--val-data")
        except ValueError:
            refused = True
        assert not (refused and allowed and not all(broken[index] for index in spread(source, 8)))
        seen = any(broken[index] for index in spread(source, 8))
        if not allowed and seen and (images <= 256 or share > most + 0.15):
            assert refused
        assert source.tried <= (256 if seen else 8)
