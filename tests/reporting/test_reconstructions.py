"""The picture of images, visible patches and reconstructions, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sparkmim.reporting.reconstructions import (
    HIDDEN,
    LABEL_COLOR,
    as_colors,
    as_picture,
    reconstruction_grid,
    save_png,
    to_rgb,
)
from sparkmim.utils.orientation import axes_of

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def random_pixels(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Integers 0 to 255."""
    return torch.randint(0, 256, (batch, channels, height, width), generator=torch.Generator().manual_seed(seed))


def normalised(pixels: Tensor) -> Tensor:
    """As a network gets them."""
    return (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def checkered(batch: int, rows: int, columns: int) -> Tensor:
    """Every second patch visible, starting with the first."""
    return ((torch.arange(rows).view(-1, 1) + torch.arange(columns)) % 2 == 0).expand(batch, -1, -1)


def tiles(picture: Image.Image, batch: int, height: int, width: int) -> np.ndarray:
    """The tiles of a picture as `(3, batch, height, width, 3)`; they lie where columns and rows are fully opaque."""
    pixels = np.asarray(picture)
    gutter = max(4, width // 32)
    assert picture.width == batch * (width + gutter) - gutter
    opaque = np.flatnonzero((pixels[:, 0, 3] == 255) & (pixels[:, width - 1, 3] == 255))
    tops = opaque[np.diff(opaque, prepend=-2) > 1]
    assert len(tops) == 3
    assert len(opaque) == 3 * height
    assert tops[2] + height == picture.height
    return np.stack(
        [
            np.stack([pixels[top : top + height, i * (width + gutter) :][:, :width, :3] for i in range(batch)])
            for top in tops
        ]
    )


def test_pixels_of_all_three_rows() -> None:
    before, after = random_pixels(3, 3, 128, 192, seed=0), random_pixels(3, 3, 128, 192, seed=1)
    visible = checkered(3, 2, 3)
    picture = reconstruction_grid(normalised(before), visible, normalised(after), mean=MEAN, std=STD)
    image, seen, reconstruction = tiles(picture, 3, 128, 192)
    assert (image == before.permute(0, 2, 3, 1).numpy()).all()  # the round trip through the normalised space is exact
    assert (reconstruction == after.permute(0, 2, 3, 1).numpy()).all()
    for row in range(2):
        for column in range(3):
            patch = np.s_[:, 64 * row : 64 * (row + 1), 64 * column : 64 * (column + 1)]
            if visible[0, row, column]:
                assert (seen[patch] == image[patch]).all()
            else:
                assert (seen[patch] == HIDDEN).all()


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((32, 32), (128, 128)),
        ((96, 96), (192, 192)),
        ((128, 128), (128, 128)),
        ((256, 224), (256, 224)),
        ((512, 384), (256, 192)),
        ((64, 96), (128, 192)),
    ],
)
def test_tiles_have_a_size_to_look_at(size: tuple[int, int], shown: tuple[int, int]) -> None:
    images = torch.zeros(2, 3, *size)
    picture = reconstruction_grid(images, checkered(2, 2, 2), images, mean=MEAN, std=STD)
    assert tiles(picture, 2, *shown).shape == (3, 2, *shown, 3)


def test_small_images_keep_their_pixels_square() -> None:
    pixels = random_pixels(1, 3, 32, 32)
    picture = reconstruction_grid(normalised(pixels), checkered(1, 1, 1), normalised(pixels), mean=MEAN, std=STD)
    enlarged = pixels.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert (tiles(picture, 1, 128, 128)[0] == enlarged.permute(0, 2, 3, 1).numpy()).all()


def test_at_most_eight_images() -> None:
    images = normalised(random_pixels(9, 3, 128, 128))
    nine = reconstruction_grid(images, checkered(9, 4, 4), images, mean=MEAN, std=STD)
    eight = reconstruction_grid(images[:8], checkered(8, 4, 4), images[:8], mean=MEAN, std=STD)
    assert nine.tobytes() == eight.tobytes()
    tiles(nine, 8, 128, 128)


def test_out_of_range_predictions_are_clamped() -> None:
    images = torch.zeros(1, 1, 128, 128)
    prediction = torch.full_like(images, 7.0)
    prediction[..., 64:] = -7.0
    picture = reconstruction_grid(images, checkered(1, 2, 2), prediction, mean=[0.5], std=[0.25])
    reconstruction = tiles(picture, 1, 128, 128)[2, 0]
    assert (reconstruction[:, :64] == 255).all()
    assert (reconstruction[:, 64:] == 0).all()


def test_grey_images() -> None:
    pixels = random_pixels(2, 1, 128, 128)
    picture = reconstruction_grid(pixels / 255, checkered(2, 2, 2), pixels / 255, mean=[0.0], std=[1.0])
    assert (tiles(picture, 2, 128, 128)[0] == pixels.permute(0, 2, 3, 1).numpy()).all()  # on all three channels


def test_many_channels_show_the_first_three_in_the_range_of_the_image() -> None:
    pixels = random_pixels(1, 5, 128, 128)
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 255  # so stretching the range undoes the scale below
    images = pixels / 255 * torch.tensor([1.0, 20.0, 300.0, 1.0, 1.0]).view(5, 1, 1) - 40
    picture = reconstruction_grid(images, checkered(1, 2, 2), images - 400, mean=[0.0] * 5, std=[1.0] * 5)
    image, _, reconstruction = tiles(picture, 1, 128, 128)
    assert np.abs(image.astype(int) - pixels[:, :3].permute(0, 2, 3, 1).numpy()).max() <= 1  # float32 at an offset
    assert (reconstruction == 0).all()  # not stretched on its own


def test_two_channels_show_their_mean() -> None:
    pixels = random_pixels(1, 1, 128, 128)
    pixels[0, 0, 0, 0], pixels[0, 0, 0, 1] = 0, 255
    images = torch.cat([pixels, 3 * pixels], 1) / 255
    picture = reconstruction_grid(images, checkered(1, 2, 2), images, mean=[0.0, 0.0], std=[1.0, 1.0])
    assert (tiles(picture, 1, 128, 128)[0] == pixels.permute(0, 2, 3, 1).numpy()).all()


def test_constant_channels_do_not_divide_by_zero() -> None:
    images = torch.full((1, 4, 128, 128), 3.0)
    picture = reconstruction_grid(images, checkered(1, 2, 2), images, mean=[0.0] * 4, std=[1.0] * 4)
    assert (tiles(picture, 1, 128, 128)[0] == 0).all()


def test_labels_are_drawn_and_gutters_transparent() -> None:
    images = torch.zeros(2, 3, 128, 128)
    picture = reconstruction_grid(images, checkered(2, 2, 2), images, mean=MEAN, std=STD)
    pixels = np.asarray(picture)
    assert (pixels[:, 128:132, 3] == 0)[-128:].all()  # between the last row's two tiles
    label = pixels[: picture.height // 3 - 128 - 4]
    assert (label[..., :3] == LABEL_COLOR).all()
    assert (label[..., 3] == 255).any()
    assert (label[..., 3] == 0).mean() > 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_precision_and_gradients(dtype: torch.dtype) -> None:
    images = torch.zeros(1, 3, 128, 128, dtype=dtype, requires_grad=True)
    picture = reconstruction_grid(images, checkered(1, 2, 2), images, mean=[0.2, 0.4, 0.6], std=STD)
    assert (tiles(picture, 1, 128, 128)[0] == [51, 102, 153]).all()


@pytest.mark.parametrize(
    ("images", "visible", "prediction", "mean"),
    [
        ((2, 3, 64, 64), (1, 2, 2), (2, 3, 64, 64), MEAN),
        ((2, 3, 64, 64), (2, 2, 2), (2, 3, 32, 32), MEAN),
        ((2, 3, 64, 64), (2, 3, 2), (2, 3, 64, 64), MEAN),
        ((2, 3, 64, 64), (2, 4), (2, 3, 64, 64), MEAN),
        ((2, 3, 64, 64), (2, 2, 2), (2, 3, 64, 64), [0.5]),
        ((0, 3, 64, 64), (0, 2, 2), (0, 3, 64, 64), MEAN),
    ],
)
def test_what_does_not_fit_is_refused(
    images: tuple[int, ...], visible: tuple[int, ...], prediction: tuple[int, ...], mean: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"expected (images, visible|a mean and|at least one image)"):
        reconstruction_grid(
            torch.zeros(images), torch.ones(visible, dtype=torch.bool), torch.zeros(prediction), mean=mean, std=STD
        )


def test_save_png_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "reconstructions" / "step-1.png"
    for level in (10, 200):
        save_png(Image.new("RGB", (5, 4), (level, 0, 0)), path)
        with Image.open(path) as read:
            assert read.size == (5, 4)
            assert read.getpixel((0, 0)) == (level, 0, 0)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step-1.png"
    save_png(Image.new("L", (2, 2)), path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(Image.new("L", (3, 3)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mean", "std"), [(-40.0, 15.0), (287.0, 3.0), (0.5, 2.0), (1e5, 5.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_values_that_are_no_colors_are_stretched(mean: float, std: float, channels: int) -> None:
    values = mean + std * torch.linspace(-2, 2, 64).expand(2, channels, 64, 64)
    shown = to_rgb(as_colors(values, values, [mean] * channels, [std] * channels), values)
    assert shown.float().mean().item() == pytest.approx(127.5, abs=1)
    assert len(shown.unique()) > 60
    low, high = shown.aminmax()
    assert (low.item(), high.item()) == (0, 255)


@pytest.mark.parametrize(("mean", "std"), [(0.45, 0.22), (0.5, 0.5), (0.0, 1.0), (0.99, 0.05)])
def test_colors_are_shown_as_they_are(mean: float, std: float) -> None:
    colors = torch.rand(1, 3, 8, 8)
    assert torch.equal(as_colors(colors, colors, [mean] * 3, [std] * 3), colors)


@pytest.mark.parametrize("orientation", ["SAR", "ASR", "SRA"])
def test_volumes_of_every_order_of_axes_are_drawn_alike(orientation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images, predicted = torch.randn(2, 2, 1, 8, 12, 16, generator=generator)
    visible = torch.rand(2, 2, 3, 4, generator=generator) > 0.5
    axes = axes_of(orientation)
    turned = [part.permute(0, 1, *(2 + axis for axis in axes)) for part in (images, predicted)]
    plain = reconstruction_grid(images, visible, predicted, mean=[0.0], std=[1.0])
    found = reconstruction_grid(
        turned[0],
        visible.permute(0, *(1 + axis for axis in axes)),
        turned[1],
        mean=[0.0],
        std=[1.0],
        orientation=orientation,
    )
    assert found.tobytes() == plain.tobytes()
    assert torch.equal(as_picture(turned[0], orientation), as_picture(images))
