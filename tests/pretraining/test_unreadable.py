"""Every reader of views counts and lists what it cannot read, and measures nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import TINY_PRETRAIN, make_images, record
from sparkmim.data.config import DataConfig
from sparkmim.data.loader import MaskedViews, evaluation_batches
from sparkmim.data.sources.folder import find_images
from sparkmim.data.views import evaluation_view
from sparkmim.pretraining.evaluators import readable_views
from sparkmim.pretraining.reconstruct import reconstruct
from sparkmim.pretraining.run import pretrain

CONFIG = DataConfig(image_size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)


def spoilt(folder: Path, good: int, junk: int) -> Path:
    """Images, and files between them that are none."""
    make_images(folder, good)
    for number in range(junk):
        (folder / f"{number}_junk.png").write_bytes(b"junk")
    return folder


def views(folder: Path) -> MaskedViews:
    return MaskedViews(find_images(folder), evaluation_view(CONFIG), 3, (2, 2), 0.6, 0, replace=False)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 9])
@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_leaves_out_what_cannot_be_read(tmp_path: Path, batch_size: int, workers: int) -> None:
    if workers and batch_size != 3:
        pytest.skip("once is enough")
    shown = views(spoilt(tmp_path, 4, 5))
    batches = list(evaluation_batches(shown, batch_size, workers))
    assert len(batches) == -(-9 // batch_size)
    indices = [index for batch in batches for index in batch.indices]
    broken = [index for batch in batches for index, _ in batch.broken]
    assert sorted(indices + broken) == list(range(9))
    assert len(indices) == 4
    for batch in batches:
        assert len(batch.images) == len(batch.visible) == len(batch.indices)


def test_pictures_show_each_image_once(tmp_path: Path) -> None:
    shown, broken = readable_views(views(spoilt(tmp_path, 4, 5)), 8)
    assert len({view.indices[0] for view in shown}) == len(shown) == 4
    assert len(broken) == 5


@pytest.mark.parametrize("option", ["val_data", "monitor_data"])
@pytest.mark.parametrize(("good", "junk"), [(0, 3), (1, 5)])
def test_other_sets_are_tried_before_the_first_step(
    tmp_path: Path, images: Path, option: str, good: int, junk: int
) -> None:
    folder = tmp_path / "other"
    spoilt(folder / "a" if option == "monitor_data" else folder, good, junk)
    if option == "monitor_data":
        spoilt(folder / "b", 0, 1)
    chosen: dict[str, Any] = {"data": images, option: folder}
    chosen |= {"monitor": "knn"} if option == "monitor_data" else {}
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')}: . of . images tried cannot be read as 3"):
        pretrain(tmp_path / "run", chosen=TINY_PRETRAIN | chosen)
    assert not (tmp_path / "run").exists()


def test_the_held_out_loss_is_that_of_readable_images(tmp_path: Path, images: Path) -> None:
    clean, poor = make_images(tmp_path / "clean", 4, seed=5), make_images(tmp_path / "poor", 4, seed=5)
    for name in ("0_a", "1_b", "9_c"):
        (poor / f"{name}.png").write_bytes(b"junk")
    losses = []
    lines: list[str] = []
    for number, folder in enumerate((clean, poor)):
        chosen = {"data": images, "val_data": folder, "max_broken": 0.5, "epochs": 0.8, "warmup_epochs": 0.4}
        outcome = record(lines, pretrain, tmp_path / f"run{number}", chosen=TINY_PRETRAIN | chosen)
        losses.append(outcome.measured["val_loss"])
    assert losses[0] != losses[1], "masks differ with the number of an image, so the losses are alike, not equal"
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    listed = (tmp_path / "run1" / "broken_held_out_images.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["0_a.png", "1_b.png", "9_c.png"]
    assert any("held out: 3 of 7 images cannot be read and are left out" in line for line in lines)
    assert "9_c.png" in (tmp_path / "run1" / "report.html").read_text()
    found = record(lines, reconstruct, tmp_path / "run1", poor)
    assert len(found.images) == 4
    assert [name for name, _ in found.skipped] == ["0_a.png", "1_b.png", "9_c.png"]
    assert torch.isfinite(found.reconstructions).all()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"val_every": 2.0}, "--val-every 2.0 has no effect without held-out images; give --val-data or --val-share"),
        ({"monitor_every": 2.0}, "--monitor-every 2.0 has no effect without a monitor; give --monitor knn"),
        ({"crop": "native", "crop_scale": (0.2, 1.0)}, "--crop-scale 0.2 1.0 has no effect with --crop native"),
        ({"max_pixels": 100}, "60 x 80 pixels are more than the 100 of --max-pixels"),
        ({"max_pixels": 0}, "--max-pixels is a number of pixels, at least 1, not 0"),
        ({"nodata": float("nan")}, "--nodata must be a finite number"),
        ({"pages": "slices"}, "--pages takes channels or images or first, not 'slices'"),
    ],
)
def test_settings_without_effect_are_refused(
    tmp_path: Path, images: Path, chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        pretrain(tmp_path / "run", chosen=TINY_PRETRAIN | {"data": images} | chosen)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()
