"""Pages as images, and other settings of files, in every command: counted, named, labeled, measured and recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import sparkmim
from helpers import FOUR_STEPS, TINY_FINETUNE
from sparkmim.commands.stats import command as stats
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.training.prepare import prepare

pytestmark = pytest.mark.slow

PAGES = 3


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four stacks and a single image each, to train on and to validate with."""
    root = tmp_path_factory.mktemp("stacks")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, level in (("dark", 80), ("light", 170)):
            (root / split / name).mkdir(parents=True)
            for number in range(5):
                shape = (PAGES, 64, 64) if number < 4 else (64, 64)
                pixels = random.normal(level, 30, shape).clip(0, 255).astype(np.uint8)
                tifffile.imwrite(root / split / name / f"{number}.tif", pixels, photometric="minisblack")
    return root


def names() -> list[str]:
    return [
        f"{name}/{number}.tif" + f"#{page}" * (number < 4)
        for name in ("dark", "light")
        for number in range(5)
        for page in range(PAGES if number < 4 else 1)
    ]


def plan(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "plan.json").read_text())
    return found


def test_pages_in_every_command(stacks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats(str(stacks / "train"), pages="images") == 0
    assert "measured on 26 images" in capsys.readouterr().err
    data = {"data": str(stacks / "train"), "pages": "images"}
    monitor = {"monitor": "knn", "monitor_data": str(stacks), "monitor_every": 1.0}
    chosen: dict[str, Any] = FOUR_STEPS | data | monitor | {"val_share": 0.2, "batch_size": 5}
    sparkmim.pretrain(tmp_path / "run", chosen=chosen)
    told = json.dumps(plan(tmp_path / "run"))
    assert "pages of 8 files" in told
    assert "26 labeled images by 26 others" in told
    held_out = sparkmim.embed(tmp_path / "run", stacks / "val", workers=0, device="cpu")  # pages as recorded
    assert held_out.names == names()
    found = sparkmim.knn(tmp_path / "run", stacks, workers=0, device="cpu")
    assert (found.train_images, found.test_images) == (26, 26)
    probed = sparkmim.linear_probe(tmp_path / "run", stacks, workers=0, device="cpu")
    assert (probed.train_images, probed.val_images) == (26, 26)
    chosen = TINY_FINETUNE | {"encoder": tmp_path / "run", "data": str(stacks)}
    chosen.pop("model")
    sparkmim.finetune(tmp_path / "tuned", chosen=chosen)
    scored = json.loads((tmp_path / "tuned/results.json").read_text())["validation"]
    assert scored["images"] == 26
    predicted = sparkmim.predict(tmp_path / "tuned", stacks / "val", workers=0, device="cpu")
    assert [prediction.image for prediction in predicted] == names()
    right = np.mean([prediction.image.startswith(prediction.classes[0]) for prediction in predicted])
    assert right == pytest.approx(scored["top1"])
    drawn = sparkmim.reconstruct(tmp_path / "run", stacks / "val", count=5)
    assert len(drawn.images) == 5


def test_pages_of_a_file_stay_together(stacks: Path, tmp_path: Path) -> None:
    settings = FOUR_STEPS | {"data": str(stacks / "train"), "pages": "images", "val_share": 0.3}
    data = prepare(Pretraining(), tmp_path / "run", "auto", "auto", settings, 1).data
    assert data.held_out is not None
    sources = (data.source, data.held_out)
    parts = [{source.name(i).split("#")[0] for i in range(len(source))} for source in sources]
    assert len(parts[0]) + len(parts[1]) == 10
    assert not parts[0] & parts[1]


RECIPE = """
from sparkmim.pretraining.recipes import auto


def mine(situation):
    return auto(situation).replace({values!r})
"""


@pytest.mark.parametrize("values", [{"nodata": 0.0}, {"pages": "images", "nodata": 7.0}])
def test_a_recipe_that_says_how_files_are_read(values: dict[str, Any], tmp_path: Path) -> None:
    """The statistics and the count of images are what the same settings give as flags."""
    (tmp_path / "images").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(100, 110, (64, 64)).astype(np.uint8)
        pixels[:20] = 0 if number % 2 else 7
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    if "pages" in values:  # of one channel, so that a stack is refused unless its pages are images
        tifffile.imwrite(tmp_path / "images/z.tif", np.stack([pixels] * 3), photometric="minisblack")
    (tmp_path / "recipe.py").write_text(RECIPE.format(values=values))
    settings = FOUR_STEPS | {"data": str(tmp_path / "images"), "in_chans": 1, "batch_size": 2}
    one = prepare(Pretraining(), tmp_path / "a", f"{tmp_path}/recipe.py:mine", "auto", dict(settings), 1)
    other = prepare(Pretraining(), tmp_path / "b", "auto", "auto", settings | values, 1)
    assert one.config.data == other.config.data
    assert len(one.data.source) == len(other.data.source) == (7 if "pages" in values else 4)
    assert Pretraining().fingerprints(one.data) == Pretraining().fingerprints(other.data)
