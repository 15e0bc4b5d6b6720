from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from sparkmim.data.config import DataConfig
from sparkmim.data.decoding.encoded import UnreadableImage
from sparkmim.data.loader import (
    MaskedViews,
    PlainViews,
    _collate,
    evaluation_batches,
    load,
    plain_batches,
    read,
    training_batches,
)
from sparkmim.data.normalize import Normalize, join
from sparkmim.data.sampler import InOrder, Positions, epoch_order
from sparkmim.data.seeding import Stream, keyed_generator, keyed_seed
from sparkmim.data.sources.folder import find_images
from sparkmim.data.views import evaluation_view, training_view

CONFIG = DataConfig(image_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return path


def views(folder: Path, seed: int = 0) -> MaskedViews:
    return MaskedViews(find_images(folder), training_view(CONFIG), 3, (4, 4), 0.6, seed)


@settings(deadline=None, max_examples=40)
@given(
    images=st.integers(4, 40),
    micro=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    processes=st.integers(1, 3),
    epochs=st.integers(1, 4),
    start=st.integers(0, 3),
)
def test_positions(images: int, micro: int, accumulate: int, processes: int, epochs: int, start: int) -> None:
    batch = micro * accumulate * processes
    steps = epochs * images // batch + 1
    one = list(Positions(images, batch, steps, 0, accumulate=accumulate * processes))
    # Every epoch shows every image once, whether or not the batch size divides.
    seen = [key for part in one for key in part]
    for epoch in range(seen[-1][0]):
        assert Counter(index for e, index in seen if e == epoch) == Counter(range(images))
    # N processes see what one process sees that accumulates N micro-batches.
    many = [
        list(Positions(images, batch, steps, 0, accumulate=accumulate, process=p, processes=processes))
        for p in range(processes)
    ]
    assert [part for parts in zip(*many, strict=True) for part in parts] == one
    # A later start gives the rest.
    late = Positions(images, batch, steps, 0, accumulate=accumulate * processes, start=start)
    assert list(late) == one[start * accumulate * processes :]
    assert len(late) == len(list(late))


def test_orders_differ_between_epochs_and_seeds() -> None:
    def order(seed: int) -> list[int]:
        return [index for part in Positions(50, 10, 10, seed) for _, index in part]

    assert order(0) == order(0)
    assert order(0)[:50] != order(0)[50:]
    assert order(0) != order(1)


@pytest.mark.parametrize("images", [1, 2, 1000, 100_003])
def test_orders_are_those_of_earlier_versions(images: int) -> None:
    wanted = torch.randperm(images, generator=torch.Generator().manual_seed(keyed_seed(7, 2, 3)))
    order = epoch_order(images, seed=7, epoch=3)
    assert order.tolist() == wanted.tolist()
    assert order.nbytes == 4 * images


def test_seeds_are_those_of_earlier_versions() -> None:
    assert [keyed_seed(0, stream) for stream in Stream] == [keyed_seed(0, number) for number in range(1, 9)]
    assert keyed_seed(0, Stream.VIEW, 2, 5) == 6493054163883110846
    assert keyed_generator(0, Stream.VIEW, 2, 5).initial_seed() == 6493054163883110846
    assert {stream.name: int(stream) for stream in Stream} == {
        "HELD_OUT": 1,
        "ORDER": 2,
        "VIEW": 3,
        "STEP": 4,
        "PRETRAIN_WEIGHTS": 5,
        "LABEL_SHARE": 6,
        "FOLDS": 7,
        "FINETUNE_WEIGHTS": 8,
    }


@settings(deadline=None, max_examples=40)
@given(images=st.integers(0, 40), batch=st.integers(1, 9), processes=st.integers(1, 4))
def test_in_order(images: int, batch: int, processes: int) -> None:
    keys = [(0, index) for index in range(images)]
    batches = [keys[first : first + batch] for first in range(0, images, batch)]
    for process in range(processes):
        order = InOrder(images, batch, process=process, processes=processes)
        assert list(order) == batches[process::processes]
        assert len(order) == len(list(order))


def test_batches_must_divide() -> None:
    with pytest.raises(ValueError, match="use a multiple of 6"):
        Positions(50, 10, 1, 0, accumulate=2, processes=3)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(folder: Path, workers: int) -> None:
    positions = Positions(10, 4, 4, 0)
    alone, shared = (list(training_batches(views(folder), positions, n)) for n in (0, workers))
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.visible, b.visible)
        assert a.indices == b.indices


def test_a_view_depends_on_seed_epoch_and_image_alone(folder: Path) -> None:
    first = views(folder)[2, 5]
    torch.rand(3)
    state = torch.get_rng_state()
    again = views(folder)[2, 5]
    assert torch.equal(torch.get_rng_state(), state)  # the network's randomness is left alone
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.visible, again.visible)
    for other in (views(folder)[3, 5], views(folder)[2, 6], views(folder, seed=1)[2, 5]):
        assert not torch.equal(first.images, other.images)
    masks = {tuple(views(folder)[epoch, 0].visible.flatten().tolist()) for epoch in range(20)}
    assert len(masks) > 10
    assert all(sum(mask) == 6 for mask in masks)


def test_evaluation_shows_every_image_once_the_same_way(folder: Path) -> None:
    shown = MaskedViews(find_images(folder), evaluation_view(CONFIG), 3, (4, 4), 0.6, 0)
    one = list(evaluation_batches(shown, 3, 0))
    assert [i for batch in one for i in batch.indices] == list(range(10))
    again = list(evaluation_batches(shown, 3, 1))
    assert all(
        torch.equal(a.images, b.images) and torch.equal(a.visible, b.visible) for a, b in zip(one, again, strict=True)
    )
    shared = [list(evaluation_batches(shown, 3, 0, process=p, processes=2)) for p in range(2)]
    assert sorted(i for part in shared for batch in part for i in batch.indices) == list(range(10))


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for i in range(6):
        if i in (1, 4):
            (tmp_path / f"{i}.png").write_bytes(b"no image")
        else:
            Image.fromarray(noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_more_workers_than_cores_are_no_reason_to_warn(damaged: Path) -> None:
    # A warning is an error in these tests.
    loader = load(views(damaged), [[(0, 0)], [(0, 2)]], len(os.sched_getaffinity(0)) + 1, _collate)
    with read(loader) as batches:
        assert [batch.indices for batch in batches] == [[0], [2]]


def test_another_image_takes_the_place_of_a_broken_one(damaged: Path) -> None:
    for index in (1, 4):
        got = views(damaged)[0, index]
        assert got.indices[0] not in (1, 4)
        assert got.broken[0][0] == index
        assert "UnidentifiedImageError" in got.broken[0][1]
        again = views(damaged)[0, index]
        assert torch.equal(got.images, again.images)
        assert got.indices == again.indices
    assert views(damaged)[0, 0].broken == []


def test_a_source_of_broken_images_is_given_up(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage):
        views(tmp_path)[0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_plain_views_leave_broken_images_out(damaged: Path, workers: int) -> None:
    batches = list(plain_batches(PlainViews(find_images(damaged), evaluation_view(CONFIG), 3), 4, workers))
    assert [i for batch in batches for i in batch.indices] == [0, 2, 3, 5]
    assert [i for batch in batches for i, _ in batch.broken] == [1, 4]
    assert [len(batch.images) for batch in batches] == [3, 1]


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


def test_bytes_are_normalised_as_their_share_of_white() -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    config = replace(CONFIG, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    wanted = v2.functional.normalize(pixels.float() / 255, config.mean, config.std)
    torch.testing.assert_close(Normalize(config)(pixels), wanted)
    floats = pixels.float() / 255
    kept = floats.clone()
    torch.testing.assert_close(Normalize(config)(floats), wanted)
    assert torch.equal(floats, kept)
    # Images of 8 and of more bits in one batch.
    torch.testing.assert_close(Normalize(config)(join([pixels, floats])), torch.cat([wanted, wanted]))
    assert join([pixels, pixels]).dtype == torch.uint8


def test_batches_are_bytes_unless_images_have_more(folder: Path, tmp_path: Path) -> None:
    assert views(folder)[0, 0].images.dtype == torch.uint8
    shutil.copy(folder / "0.png", tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 40), dtype=np.uint16)).save(tmp_path / "deep.png")
    (batch,) = training_batches(views(tmp_path), Positions(2, 2, 1, 0), 0)
    assert batch.images.dtype == torch.float32
    assert 0.5 < batch.images.flatten(1).amax(1).min() <= batch.images.max() < 1.2  # bicubic interpolation overshoots


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
