from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sparkmim.data.config import DataConfig
from sparkmim.data.sources.folder import find_images
from sparkmim.data.views import Window, evaluation_view, training_view


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


CONFIG = DataConfig(image_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return path


def test_training_view_is_torchvisions(folder: Path) -> None:
    image = find_images(folder).open(0).decode(3)
    view = training_view(CONFIG)
    seen = set()
    for seed in range(10):
        window = view.place(40, 48, torch.Generator().manual_seed(seed))
        ours = view(image, torch.Generator().manual_seed(seed))
        wanted = v2.functional.resized_crop(
            image,
            window.top,
            window.left,
            window.height,
            window.width,
            [32, 32],
            interpolation=v2.InterpolationMode.BICUBIC,
        )
        assert torch.equal(ours, v2.functional.horizontal_flip(wanted) if window.flip else wanted)
        assert ours.dtype == torch.uint8
        assert 0.6 < window.height * window.width / (40 * 48) <= 1
        seen.add(window)
    assert len(seen) == 10


def test_windows_are_spread_as_torchvisions() -> None:
    config = replace(CONFIG, crop_scale=(0.2, 1.0))
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    ours = torch.tensor([training_view(config).place(300, 400, generator)[1:5] for _ in range(3000)]).float()
    crop = v2.RandomResizedCrop((32, 32), scale=(0.2, 1.0))
    blank = torch.zeros(3, 300, 400)
    params = [crop.make_params([blank]) for _ in range(3000)]
    wanted = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in params]).float()
    # Of 3000 draws a mean is certain to 0.02 of the deviation; 0.1 is five times that.
    assert ((ours.mean(0) - wanted.mean(0)).abs() < 0.1 * wanted.std(0)).all()
    assert ((ours.std(0) / wanted.std(0)).log().abs() < 0.1).all()


@pytest.mark.parametrize("image", [(400, 1900), (600, 600), (1900, 400)])
@pytest.mark.parametrize("size", [(128, 608), (608, 128), (96, 128)])
def test_views_that_are_not_square_are_stretched_no_more_than_others(
    image: tuple[int, int], size: tuple[int, int]
) -> None:
    view = training_view(replace(CONFIG, image_size=size))
    generator = torch.Generator().manual_seed(0)
    stretches = []
    for _ in range(50):
        window = view.place(*image, generator)
        assert 0 <= window.top <= window.top + window.height <= image[0]
        assert 0 <= window.left <= window.left + window.width <= image[1]
        stretches.append(window.width / window.height * size[0] / size[1])
    assert all(0.74 < stretch < 1.35 for stretch in stretches)


def test_an_image_too_narrow_for_a_wide_view_is_still_one() -> None:
    view = training_view(replace(CONFIG, image_size=(32, 320)))
    assert view(torch.zeros(1, 100, 1, dtype=torch.uint8)).shape == (1, 32, 320)


def test_crops_and_flips(folder: Path) -> None:
    # Brightness grows from left to right by one a pixel, so a view's range is the width of its crop, its sign the flip.
    image = torch.arange(200, dtype=torch.float32).expand(3, 200, 200) / 200
    config = DataConfig(image_size=(50, 50), mean=(0.0,) * 3, std=(1.0,) * 3, crop_scale=(0.25, 0.5))
    torch.manual_seed(0)
    spans = torch.stack([(view := training_view(config)(image))[0, 25, -1] - view[0, 25, 0] for _ in range(400)])
    assert 0.4 < (spans < 0).float().mean() < 0.6
    # Aspect ratios are 3/4 to 4/3, so widths are between sqrt(0.25 * 3/4) and sqrt(0.5 * 4/3) of the image's.
    assert spans.abs().min() > 0.40
    assert spans.abs().max() < 0.83
    assert spans.abs().max() - spans.abs().min() > 0.3


@pytest.mark.parametrize(
    ("size", "view"), [((40, 48), (32, 32)), ((32, 96), (32, 96)), ((50, 200), (32, 96)), ((3, 2), (8, 8))]
)
def test_evaluation_view_is_the_middle(size: tuple[int, int], view: tuple[int, int]) -> None:
    rows = torch.arange(size[0], dtype=torch.float32)[:, None] / size[0]
    image = rows.expand(*size).clone()[None].expand(3, -1, -1)
    config = DataConfig(image_size=view, mean=(0.0,) * 3, std=(1.0,) * 3)
    seen = evaluation_view(config)(image)
    assert seen.shape == (3, *view)
    middle = (size[0] - 1) / 2 / size[0]
    assert abs(seen.mean().item() - middle) < 0.02
    torch.testing.assert_close(
        seen.mean((0, 2)).flip(0) + seen.mean((0, 2)), torch.full((view[0],), 2 * middle), atol=0.03, rtol=0
    )


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (3, 90_000), (10, 5000)])
def test_evaluation_views_of_long_images_cost_what_the_view_does(size: tuple[int, int]) -> None:
    config = DataConfig(image_size=(224, 224), mean=(0.0,), std=(1.0,))
    window = evaluation_view(config).place(*size, None)
    assert max(window.size) <= 2 * 224 * max(1, 224 / min(size)) + 1
    assert window.size[0] * window.size[1] < 2.1 * 224 * max(224, 224 / min(size))
    assert abs(2 * window.left + window.width - size[1]) <= 0
    assert abs(2 * window.top + window.height - size[0]) <= 0
    assert evaluation_view(config)(torch.zeros(1, *size, dtype=torch.uint8)).shape == (1, 224, 224)


@pytest.mark.parametrize("size", [(64, 152), (64, 304), (304, 64), (64, 1000)])
def test_evaluation_views_are_those_of_the_whole_image(size: tuple[int, int]) -> None:
    rows, columns = (torch.arange(length, dtype=torch.float32) for length in size)
    image = (torch.sin(rows / 9)[:, None] * torch.cos(columns / 7))[None]
    view = evaluation_view(DataConfig(image_size=(32, 32), mean=(0.0,), std=(1.0,)))
    scale = 32 / min(size)
    whole = Window(size, 0, 0, *size, (max(32, round(size[0] * scale)), max(32, round(size[1] * scale))))
    assert (view(image) - view.cut(image, whole)).abs().max() < 0.05


@pytest.mark.parametrize("size", [(64, 128), (64, 200), (300, 64), (1, 4000)])
@pytest.mark.parametrize("flip", [True, False])
def test_random_crops_reach_both_ends_of_long_images(size: tuple[int, int], flip: bool) -> None:
    view = training_view(replace(CONFIG, flip=flip))
    generator = torch.Generator().manual_seed(0)
    windows = [view.place(*size, generator) for _ in range(300)]
    long = 0 if size[0] > size[1] else 1
    starts = [(w.top, w.left)[long] for w in windows]
    ends = [start + (w.height, w.width)[long] for start, w in zip(starts, windows, strict=True)]
    assert min(starts) < 0.05 * size[long]
    assert max(ends) > 0.95 * size[long]
    assert len(set(starts)) > 10
