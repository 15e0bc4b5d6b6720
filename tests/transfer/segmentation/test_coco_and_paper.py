"""Runs on COCO files are those on the same masks, and the paper's recipe says what the paper's code does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from helpers import assert_same_training
from segmentation_data import SEGMENT, make_pairs
from sparkmim import finetune, segment
from sparkmim.transfer.config import SegmentationConfig
from sparkmim.transfer.prepare import FineTuning

pytestmark = pytest.mark.slow


def to_coco(folder: Path) -> Path:
    """Write the masks of a folder as run lengths, one an image and class, beside them."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, file in enumerate(sorted((folder / "masks").iterdir())):
        mask = np.asarray(Image.open(file))
        images.append({"id": number, "file_name": file.name, "height": mask.shape[0], "width": mask.shape[1]})
        for category in set(np.unique(mask).tolist()) - {0}:
            changes = np.flatnonzero(np.diff((mask == category).T.ravel(), prepend=False))
            runs = np.diff([0, *changes.tolist(), mask.size]).tolist()
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": category,
                    "bbox": [0, 0, 4, 4],
                    "segmentation": {"size": list(mask.shape), "counts": runs},
                }
            )
    categories = [{"id": 1, "name": "box"}, {"id": 2, "name": "disk"}]
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_a_coco_file_trains_as_its_masks_do(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    for seed, name in enumerate(("train", "val")):
        make_pairs(tmp_path / "data" / name, 4 - seed, seed=seed)
    table = tmp_path / "classes.csv"
    table.write_text("background,0\nbox,1\ndisk,2\n")
    finetune(tmp_path / "masks", chosen={**SEGMENT, "data": tmp_path / "data", "classes": table})
    train, val = (to_coco(tmp_path / "data" / name) for name in ("train", "val"))
    finetune(tmp_path / "coco", chosen={**SEGMENT, "data": train, "val_data": val, "workers": 1})
    assert_same_training(tmp_path / "masks", tmp_path / "coco")
    found, wanted = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("coco", "masks"))
    assert found["classes"] == ["background", "box", "disk"]
    assert found["validation"] == wanted["validation"]
    segment(tmp_path / "coco", tmp_path / "data" / "val" / "images", tmp_path / "out", trust=True)
    assert (tmp_path / "out" / "classes.csv").read_text().startswith("name,index,color\nbackground,0,")


@pytest.mark.parametrize(
    ("model", "lr", "layer_decay", "weight_decay", "drop_path"),
    [("test_resnet", 2.5e-4, 0.6, 1e-4, 0.0), ("test_convnext", 2e-4, 0.65, 0.05, 0.5)],
)
def test_the_papers_recipe(
    tmp_path: Path, model: str, lr: float, layer_decay: float, weight_decay: float, drop_path: float
) -> None:
    make_pairs(tmp_path / "data", 20)
    chosen = {"task": "segmentation", "encoder": "none", "model": model, "data": tmp_path / "data", "precision": "32"}
    chosen |= {"image_size": (64, 64), "accumulate": 1}
    config = FineTuning("segmentation").resolve("paper", chosen, 1)[0]
    assert isinstance(config, SegmentationConfig)
    assert config.run.batch_size == 16
    assert config.schedule.epochs * 20 / 16 == pytest.approx(90_000)
    assert config.schedule.warmup_epochs * 20 / 16 == pytest.approx(1000)
    assert config.optimizer.lr == pytest.approx(lr)
    assert config.optimizer.weight_decay == weight_decay
    assert config.optimizer.layer_decay == 1.0, "from scratch"
    assert config.model.drop_path == drop_path
    assert (config.segmentation.head, config.segmentation.loss) == ("fpn", "ce")
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model(model, num_classes=0).state_dict(), weights)
    started = FineTuning("segmentation").resolve("paper", chosen | {"encoder": weights}, 1)[0]
    assert started.optimizer.layer_decay == layer_decay
