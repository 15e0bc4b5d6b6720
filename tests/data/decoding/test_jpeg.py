"""JPEG files: decoded without Pillow to the same numbers, and at a fraction of their size where that is enough."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sparkmim.data.config import DataConfig
from sparkmim.data.decoding import jpeg
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.decoding.images import EncodedFile, read_image
from sparkmim.data.sources.folder import find_images
from sparkmim.data.views import View, evaluation_view, training_view

HEIGHT, WIDTH = 90, 131
needs_simplejpeg = pytest.mark.skipif(jpeg.simplejpeg is None, reason="needs simplejpeg")


@pytest.fixture(params=["pillow", pytest.param("simplejpeg", marks=needs_simplejpeg)])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pillow":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    return str(request.param)


def photograph(width: int, height: int) -> Image.Image:
    with Image.open(Path(str(resources.files("skimage.data"))) / "coffee.png") as file:
        return file.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def decoded(path: Path, by: int = 1) -> np.ndarray:
    """What Pillow makes of it."""
    with Image.open(path) as file:
        if by > 1:
            file.draft(None, (file.width // by, file.height // by))
        return np.array(ImageOps.exif_transpose(file).convert("RGB"))


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "full color": {"subsampling": 0},
    "no exif": {"quality": 50},
    "upright": {"orientation": 1},
    "on its head": {"orientation": 3},
    "on its side": {"orientation": 6},
}


@pytest.mark.parametrize("by", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_numbers_are_pillows(tmp_path: Path, decoder: str, variant: str, mode: str, by: int) -> None:
    settings = dict(VARIANTS[variant])
    orientation = settings.pop("orientation", None)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        settings["exif"] = exif
    path = tmp_path / "x.jpg"
    photograph(WIDTH, HEIGHT).convert(mode).save(path, **settings)
    whole = decoded(path)
    file = EncodedFile(path)
    assert file.size(3) == EncodedFile(path).size(1) == whole.shape[:2]
    seen = file.decode(3, by)
    # Turned round, an image is reduced only if that divides its sides.
    reduces = orientation in (None, 1)
    assert torch.equal(seen, torch.from_numpy(decoded(path, by) if reduces else whole).permute(2, 0, 1))
    assert seen.shape[1:] == ((-(-HEIGHT // by), -(-WIDTH // by)) if reduces else whole.shape[:2])


def test_turned_images_are_reduced_where_that_divides_their_sides(tmp_path: Path, decoder: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(160, 96).save(tmp_path / "x.jpg", exif=exif)
    file = EncodedFile((tmp_path / "x.jpg").read_bytes(), "x.jpg")
    assert file.size(3) == (160, 96)
    seen = file.decode(3, 4)
    assert torch.equal(seen, torch.from_numpy(decoded(tmp_path / "x.jpg", 4)).permute(2, 0, 1))
    assert seen.shape == (3, 40, 24)


@needs_simplejpeg
def test_simplejpeg_does_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph(WIDTH, HEIGHT).save(tmp_path / "x.jpg", exif=Image.Exif())
    data = (tmp_path / "x.jpg").read_bytes()
    size = jpeg.jpeg_size(data)
    assert size == (HEIGHT, WIDTH)
    assert jpeg.decode_jpeg(data, size) is not None
    # What it makes a fuss about, Pillow reads; what is cut off, nobody does.
    flawed = data[:2] + b"\xff\xe2\x00\x04ab" + b"\x00" + data[2:]
    size = jpeg.jpeg_size(flawed)
    assert size is None or jpeg.decode_jpeg(flawed, size) is None
    assert torch.equal(EncodedFile(flawed, "x.jpg").decode(3), EncodedFile(data, "x.jpg").decode(3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # Pillow's limit is not the project's
    assert jpeg.jpeg_size(data) == (HEIGHT, WIDTH)


def test_cut_off_files_are_unreadable(tmp_path: Path, decoder: str) -> None:
    photograph(WIDTH, HEIGHT).save(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    for kept in (3, 30, len(data) // 2, len(data) - 40):
        (tmp_path / "cut.jpg").write_bytes(data[:kept])
        with pytest.raises(UnreadableImage):
            read_image(tmp_path / "cut.jpg")


CONFIG = DataConfig(image_size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(("width", "by"), [(130, 1), (300, 2), (301, 2), (601, 4), (1203, 8)])
@pytest.mark.parametrize("make", [training_view, evaluation_view])
def test_views_of_reduced_images_look_the_same(
    tmp_path: Path, decoder: str, make: type[View], width: int, by: int
) -> None:
    photograph(width, width * 3 // 4).save(tmp_path / "x.jpg", quality=92)
    source, view = find_images(tmp_path), make(CONFIG)
    whole = source.open(0).decode(3)
    for seed in range(5):
        window = view.place(whole.shape[1], whole.shape[2], torch.Generator().manual_seed(seed))
        assert window.reduction == by
        assert window.height >= by * 64
        assert window.width >= by * 64
        seen = view.look(source, 0, 3, torch.Generator().manual_seed(seed))
        wanted = view.cut(whole, window)
        apart = (seen.float() - wanted.float()).abs().mean()
        assert apart == 0 if by == 1 else 0 < apart < 1.5  # of 255
        # A view that were one of its own pixels off would be far more different.
        off = wanted.float().roll(1, 2)[..., 1:-1] - wanted.float()[..., 1:-1]
        assert apart < 0.2 * off.abs().mean()


def test_a_window_may_show_all_of_a_reduced_image() -> None:
    """Down to the last pixel, which stands for less than the others."""
    config = DataConfig(image_size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, crop_scale=(0.95, 1.0), flip=False)
    rows = torch.arange(99.0)[None, :, None].expand(3, 99, 101)
    reduced = torch.stack([rows[:, i : i + 8].mean(1) for i in range(0, 99, 8)], 1)[:, :, :13]
    for seed in range(200):
        window = training_view(config).place(99, 101, torch.Generator().manual_seed(seed))
        if window.reduction == 8:
            assert window.top % 8 == 0
            assert window.left % 8 == 0
            assert window.top + window.height <= 99
            seen = training_view(config).cut(reduced, window)
            assert (seen - training_view(config).cut(rows, window)).abs().max() < 3
