from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
from sparkmim.data.sampler import Positions
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


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for i in range(6):
        if i in (1, 4):
            (tmp_path / f"{i}.png").write_bytes(b"no image")
        else:
            Image.fromarray(noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


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


def test_batches_are_bytes_unless_images_have_more(folder: Path, tmp_path: Path) -> None:
    assert views(folder)[0, 0].images.dtype == torch.uint8
    shutil.copy(folder / "0.png", tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 40), dtype=np.uint16)).save(tmp_path / "deep.png")
    (batch,) = training_batches(views(tmp_path), Positions(2, 2, 1, 0), 0)
    assert batch.images.dtype == torch.float32
    assert 0.5 < batch.images.flatten(1).amax(1).min() <= batch.images.max() < 1.2  # bicubic interpolation overshoots
