"""The resulting configuration decides what is read: plan, config.json and training images cannot differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import TINY_FINETUNE, make_data, make_split, record
from sparkmim import finetune, predict
from sparkmim.checkpoints.encoder import load_trained_encoder, save_encoder
from sparkmim.data.labels import read_labeled
from sparkmim.models.backbone import Backbone
from sparkmim.training.prepare import prepare
from sparkmim.transfer.model_file import load_model
from sparkmim.transfer.prepare import FineTuning
from sparkmim.transfer.run import finetune as run_finetune

RECIPE = """
from sparkmim.transfer.recipes import small_data


def mine(situation):
    return small_data(situation).replace({values!r})
"""

pytestmark = pytest.mark.slow


def prepared(output: Path, recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> Any:
    """What a run with a recipe of one's own and flags is prepared to do."""
    path = output.with_suffix(".py")
    path.write_text(RECIPE.format(values=dict(recipe)))
    return prepare(FineTuning(None), output, f"{path}:mine", "auto", dict(flags), 1)


def random_choices(generator: np.random.Generator, data: Path) -> dict[str, Any]:
    """Some fields that decide what is read, at random."""
    possible: dict[str, Any] = {
        "label_share": float(generator.choice([0.25, 0.5])),
        "seed": int(generator.integers(5)),
        "in_chans": int(generator.choice([1, 3])),
    }
    if generator.random() < 0.5:
        possible |= {"folds": int(generator.integers(2, 4)), "fold": int(generator.integers(2))}
    else:
        possible |= {"val_data": str(data / "val"), "test_data": str(data / "test")}
    return {name: value for name, value in possible.items() if generator.random() < 0.6 or name in ("folds", "fold")}


def names_of(images: Any) -> list[tuple[str, str]]:
    return [(images.source.name(index), images.classes[images.labels[index]]) for index in range(len(images))]


@pytest.mark.parametrize("seed", range(5))
def test_recipes_and_flags(seed: int, data: Path, tmp_path: Path) -> None:
    """A recipe's choice and the same choice as a flag read the same images, and the configuration says which."""
    generator = np.random.default_rng(seed)
    of_recipe, of_flags = random_choices(generator, data), {}
    if generator.random() < 0.5:
        of_flags = {"label_share": 0.75, "seed": 3}
    given = {**TINY_FINETUNE, "data": data / "train", "batch_size": 2, **of_flags}
    if "seed" not in of_flags:
        given.pop("seed")
    ready = prepared(tmp_path / "run", of_recipe, given)
    told = prepare(FineTuning(None), tmp_path / "told", None, "auto", {**of_recipe, **given}, 1)
    for name, value in {**of_recipe, **of_flags}.items():
        assert ready.config.flat()[name] == value
    again = FineTuning(None).read_data(ready.config)
    for mine, theirs, recorded in zip(ready.data, told.data, again, strict=True):
        assert (mine is None) == (theirs is None) == (recorded is None)
        if mine is not None:
            assert names_of(mine) == names_of(theirs) == names_of(recorded)
    assert len(ready.config.data.mean) == ready.config.model.in_chans


def test_a_run_of_such_a_recipe(data: Path, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(RECIPE.format(values={"label_share": 0.5, "folds": 2, "seed": 4}))
    chosen = {**TINY_FINETUNE, "data": data / "train", "batch_size": 2, "epochs": 0.5}
    chosen.pop("seed")
    said: list[str] = []
    record(said, run_finetune, tmp_path / "run", recipe=f"{tmp_path}/r.py:mine", chosen=chosen)
    (images,) = (line for line in said if line.startswith("images"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["label_share"] == 0.5
    assert "50% of the labels" in images
    assert "fold 0 of 2" in images
    assert images.split()[1] == str(results["train"]["images"]) == config["images"].split()[0] == "6"
    assert results["validation"]["images"] == 12
    finetune(tmp_path / "run")  # it can be continued: there is nothing left to do


def test_a_recipe_that_never_settles(data: Path, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(
        "from sparkmim.transfer.recipes import small_data\n\n\n"
        "def mine(situation):\n"
        "    return small_data(situation).replace({'label_share': 1 / (situation.images + 1)})\n"
    )
    with pytest.raises(ValueError, match=r"sets label_share anew whenever it is read; set it with a flag"):
        finetune(tmp_path / "run", recipe=f"{tmp_path}/r.py:mine", chosen={**TINY_FINETUNE, "data": data})
    chosen = {**TINY_FINETUNE, "data": data, "label_share": 0.5, "batch_size": 2, "epochs": 0.5}
    finetune(tmp_path / "run", recipe=f"{tmp_path}/r.py:mine", chosen=chosen)


def test_scores_are_those_of_predict(data: Path, tmp_path: Path) -> None:
    """In float32 whatever the run's precision: validation, test and predict give one answer."""
    chosen = {**TINY_FINETUNE, "data": data, "precision": "bf16-mixed", "epochs": 2.0}
    finetune(tmp_path / "run", chosen=chosen)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for name, split in (("validation", "val"), ("test", "test")):
        labeled = read_labeled(data / split)
        found = predict(tmp_path / "run", data / split, workers=0, device="cpu")
        right = [p.classes[0] == labeled.classes[label] for p, label in zip(found, labeled.labels, strict=True)]
        assert results[name]["top1"] == pytest.approx(sum(right) / len(right), abs=1e-12)
        certain = [p.probabilities[0] for p in found]
        shown = [m["probability"] for m in results[name]["mistakes"]]
        assert all(any(abs(one - other) < 1e-4 for other in certain) for one in shown)


def test_padded_networks_are_padded_everywhere(tmp_path: Path) -> None:
    """Inception v3's maps are not proportional to the image unless its layers are padded."""
    from helpers import build_classifier

    torch.manual_seed(0)
    network = build_classifier(3, model="inception_v3")
    assert network.backbone.aligned
    images = torch.randn(1, 3, 96, 96)
    module = network.module.eval()
    with torch.no_grad():
        wanted = network.backbone(images)[-1].mean((2, 3))
        found = module.forward_head(network.backbone(images)[-1], pre_logits=True)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(module(images), module.fc(wanted))
    assert not any("Alignment" in key for key in module.state_dict())


def test_images_that_are_trained_on_and_scored(tmp_path: Path) -> None:
    """Files are compared, not their names."""
    train = make_split(tmp_path / "train", 4)
    rows = [f"../train/./red/{i}.png,red\n" for i in range(3)] + ["../other/x.png,blue\n", "link.png,green\n"]
    (tmp_path / "val").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.png").write_bytes((train / "blue" / "0.png").read_bytes())  # a copy is another file
    (tmp_path / "val" / "link.png").symlink_to(train / "green" / "0.png")
    (tmp_path / "val" / "val.csv").write_text("".join(rows))
    said: list[str] = []
    chosen = {**TINY_FINETUNE, "data": train, "val_data": tmp_path / "val" / "val.csv", "epochs": 0.5}
    record(said, run_finetune, tmp_path / "run", plan=True, chosen=chosen)
    assert "4 of the 5 images to validate with are trained on too" in said


def test_classes_called_as_splits_are(tmp_path: Path) -> None:
    root = make_data(tmp_path / "data")
    for split in ("train", "val", "test"):
        for image in (root / split).rglob("*.png"):
            image.rename(root / split / f"{image.parent.name}{image.name}")
    finetune(tmp_path / "run", chosen={**TINY_FINETUNE, "data": f"{root}/.", "epochs": 0.5})
    assert load_model(tmp_path / "run" / "model.safetensors").targets["classes"] == ["test", "train", "val"]
    finetune(tmp_path / "run", chosen={"data": f"{root}/."})
    finetune(tmp_path / "run")


def test_an_encoder_without_statistics_is_given_those_of_the_images(tmp_path: Path) -> None:
    """From scratch as from a file: images of other values than photographs are normalized by their own statistics."""
    import tifffile

    generator = np.random.default_rng(0)
    for name, mean in (("a", 1000.0), ("b", 1040.0)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(6):
            values = generator.normal(mean, 22, (64, 64, 2)).astype(np.float32)
            tifffile.imwrite(tmp_path / "data" / name / f"{index}.tif", values, planarconfig="contig")
    torch.manual_seed(0)
    save_encoder(Backbone.create("test_resnet", in_chans=2).module, tmp_path / "w.safetensors", {})
    assert load_trained_encoder(tmp_path / "w.safetensors", "test_resnet").backbone.in_chans == 2, "the file's own"
    for encoder in ("none", tmp_path / "w.safetensors"):
        chosen = {**TINY_FINETUNE, "data": tmp_path / "data", "encoder": encoder, "in_chans": 2}
        ready = prepare(FineTuning(None), tmp_path / "run", None, "auto", chosen, 1)
        assert ready.config.data.mean == pytest.approx((1020, 1020), abs=10)
        assert all(20 < value < 40 for value in ready.config.data.std)
