"""Two processes train a segmenter together and share the scoring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import in_two_processes
from segmentation_data import SEGMENT, make_pairs
from sparkmim import segment


@pytest.mark.slow
def test_scores_of_two_processes_are_those_of_the_saved_weights(tmp_path: Path) -> None:
    for seed, (name, count) in enumerate((("train", 6), ("val", 5))):
        make_pairs(tmp_path / "data" / name, count, seed=seed)
    model = SEGMENT["model"].replace(":network", ":unet")
    flags = "finetune --task segmentation --encoder none --head own --image-size 32 --batch-size 4 --epochs 2"
    flags += " --warmup-epochs 0.5 --precision 32 --device cpu --workers 0 --lr 0.01 --log-every 1"
    paths = ["--model", model, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")]
    in_two_processes(*flags.split(), *paths, seconds=240)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    pixels = np.zeros((3, 3), np.int64)
    for one in segment(tmp_path / "run", tmp_path / "data" / "val" / "images", tmp_path / "masks", trust=True):
        assert one.mask is not None
        truth = np.asarray(Image.open(tmp_path / "data" / "val" / "masks" / one.image))
        np.add.at(pixels, (truth, np.asarray(Image.open(one.mask))), 1)
    assert results["validation"]["images"] == 5
    assert results["validation"]["pixels"] == pixels.tolist()
