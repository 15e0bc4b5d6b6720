"""Pixels without data: resized, filled, left out of statistics and of the loss, and of what is visible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import TINY_PRETRAIN
from sparkmim import SparK, random_visible
from sparkmim.data.config import DataConfig, FileConfig
from sparkmim.data.loader import MaskedViews, evaluation_batches
from sparkmim.data.normalize import Normalize, where_data
from sparkmim.data.sources.folder import find_images
from sparkmim.data.statistics import channel_statistics
from sparkmim.data.views import evaluation_view, resize, training_view
from sparkmim.models.masking import visible_where_data
from sparkmim.objectives.pixels import patch_statistics
from sparkmim.pretraining.run import pretrain

CONFIG = DataConfig(image_size=(32, 32), mean=(5.0, 50.0), std=(2.0, 20.0))


def scene(seed: int, empty: float = 0.3) -> np.ndarray:
    """Two channels, of which a side has no data."""
    array = np.random.default_rng(seed).normal([[[5]], [[50]]], [[[2]], [[20]]], (2, 48, 48)).astype(np.float32)
    array[:, :, : int(48 * empty)] = np.nan
    return array


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(6):
        np.save(tmp_path / f"{seed}.npy", scene(seed, 0.3 if seed % 2 else 0.0))
    return tmp_path


def test_statistics_leave_them_out(folder: Path) -> None:
    everything = np.concatenate([scene(s, 0.3 if s % 2 else 0.0).reshape(2, -1) for s in range(6)], axis=1)
    measured = channel_statistics(find_images(folder), 2)
    np.testing.assert_allclose(measured.mean, np.nanmean(everything, 1, dtype=np.float64), rtol=1e-3)
    np.testing.assert_allclose(measured.std, np.nanstd(everything, 1, dtype=np.float64), rtol=1e-3)
    for path in folder.iterdir():
        np.save(path, np.nan_to_num(np.load(path), nan=-9999))
    assert channel_statistics(find_images(folder), 2, files=FileConfig(nodata=-9999)) == measured


def test_a_channel_without_data_is_named(tmp_path: Path) -> None:
    array = scene(0)
    array[1] = np.nan
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match="channel 1 has no data in 1 image"):
        channel_statistics(find_images(tmp_path), 2)


@pytest.mark.parametrize("size", [(24, 24), (96, 70), (48, 31)])
def test_resizing_does_not_spread_them(size: tuple[int, int]) -> None:
    constant = torch.full((3, 48, 48), 7.0)
    constant[:, 10:20, :24] = torch.nan
    resized = resize(constant, size)
    known = resized[~resized.isnan()]
    torch.testing.assert_close(known, torch.full_like(known, 7.0))
    share = resized.isnan().float().mean().item()
    assert share == pytest.approx(240 / 48**2, abs=0.03)


def test_they_are_filled_with_the_mean() -> None:
    image = torch.from_numpy(scene(1))
    normalized = Normalize(CONFIG)(image)
    assert normalized.isfinite().all()
    assert (normalized[image.isnan()] == 0).all()
    filled = Normalize(CONFIG).fill(image)
    assert torch.equal(filled[:, 0, 0], torch.tensor([5.0, 50.0]))
    torch.testing.assert_close(Normalize(CONFIG)(filled), normalized)


def test_blank_patches_are_visible_only_where_there_are_no_others() -> None:
    generator = torch.Generator().manual_seed(0)
    visible = random_visible(8, (4, 4), 0.6, generator)
    has_data = torch.ones(8, 2, 16, 16, dtype=torch.bool)
    has_data[:, :, :, :8] = False  # eight of the patches; six are visible
    has_data[4:, :, 4:] = False  # leaves two patches with data
    has_data[0] = True
    moved = visible_where_data(visible, has_data, generator)
    assert torch.equal(moved.flatten(1).sum(1), visible.flatten(1).sum(1))
    assert torch.equal(moved[0], visible[0])
    assert not moved[1:4, :, :2].any()
    assert moved[4:, 0, 2:].all(), "all that there are"
    assert not torch.equal(moved[4], visible[4])


@pytest.mark.parametrize("loss_on", ["hidden", "all"])
def test_the_loss_depends_on_pixels_with_data_alone(loss_on: str) -> None:
    torch.manual_seed(0)
    model = SparK("test_resnet", in_chans=2, decoder_width=32, loss_on=loss_on).double().eval()  # type: ignore[arg-type]
    images, visible = torch.randn(3, 2, 64, 64).double(), random_visible(3, (2, 2), 0.6)
    has_data = torch.rand(3, 2, 64, 64) < 0.7
    has_data[0, :, :32, :32] = False  # a patch without any
    plain, all_there = model(images, visible), model(images, visible, has_data=torch.ones_like(has_data))
    torch.testing.assert_close(all_there.loss, plain.loss)
    filled = images.where(has_data, 0.0)
    out = model(filled, visible, has_data=has_data)
    # By hand: normalize each patch by what it has, compare what it has.
    losses = []
    for image in range(3):
        for row in range(2):
            for column in range(2):
                place = image, slice(None), slice(32 * row, 32 * row + 32), slice(32 * column, 32 * column + 32)
                known = has_data[place]
                if not known.any() or (loss_on == "hidden" and visible[image, row, column]):
                    continue
                values = filled[place][known]
                target = (values - values.mean()) / (values.var() + 1e-6).sqrt()
                losses.append((out.prediction[place][known] - target).square())
    wanted = torch.cat(losses).mean() if loss_on == "all" else torch.stack([part.mean() for part in losses]).mean()
    torch.testing.assert_close(out.loss, wanted)


def test_a_batch_without_hidden_data_gives_no_gradient() -> None:
    model = SparK("test_resnet", in_chans=2, decoder_width=32)
    visible = random_visible(2, (2, 2), 0.6)
    has_data = visible.repeat_interleave(32, 1).repeat_interleave(32, 2).unsqueeze(1).expand(-1, 2, -1, -1)
    loss = model(torch.randn(2, 2, 64, 64), visible, has_data=has_data).loss
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())
    mean, std = patch_statistics(torch.zeros(1, 2, 64, 64), (32, 32), torch.zeros(1, 2, 64, 64, dtype=torch.bool))
    assert torch.equal(mean, torch.zeros_like(mean))
    assert std.isfinite().all()


def test_batches_know_them(folder: Path) -> None:
    views = MaskedViews(find_images(folder), evaluation_view(CONFIG), 2, (4, 4), 0.6, 0, replace=False)
    (batch,) = evaluation_batches(views, 6, 0)
    assert batch.has_data is not None
    assert torch.equal(batch.has_data, ~batch.images.isnan())
    assert batch.has_data[0].all()
    assert not batch.has_data[1].all()
    blank = ~batch.has_data.unflatten(2, (4, 8)).unflatten(4, (4, 8)).any((1, 3, 5))
    assert blank.any()
    assert not (batch.visible & blank).any()
    assert torch.equal(batch.visible.flatten(1).sum(1), torch.full((6,), 6))
    again = MaskedViews(find_images(folder), training_view(CONFIG), 2, (4, 4), 0.6, 0)
    assert torch.equal(again[3, 1].visible, again[3, 1].visible)
    assert where_data(torch.zeros(1, dtype=torch.uint8)) is None
    assert where_data(torch.zeros(1)) is None


@pytest.mark.slow
def test_a_run_with_gaps(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for path in folder.iterdir():
        np.save(path, np.nan_to_num(np.load(path), nan=-9999))
    run = tmp_path_factory.mktemp("gaps") / "run"
    chosen = {"data": folder, "in_chans": 2, "nodata": -9999.0, "val_share": 0.34, "epochs": 2.0, "warmup_epochs": 0.5}
    outcome = pretrain(run, chosen=TINY_PRETRAIN | chosen)
    assert outcome is not None
    assert outcome.loss is not None
    assert 0 < outcome.loss < 5
    assert 0 < outcome.measured["val_loss"] < 5
    assert '"nodata": -9999.0' in (run / "config.json").read_text()
