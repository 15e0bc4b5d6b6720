"""Classification of volumes: fine-tuned from an encoder and from scratch, resumed, predicted, as of images."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import SMALLEST_PRETRAIN, TINY_FINETUNE
from sparkmim.evaluation.knn import knn
from sparkmim.pretraining.prepare import Pretraining
from sparkmim.pretraining.run import pretrain
from sparkmim.transfer.predictor import predict
from sparkmim.transfer.run import finetune
from volume_files import write_nifti

pytestmark = pytest.mark.slow

NETWORK = f"{Path(__file__).parents[1] / 'fixtures' / 'networks3d.py'}:tiny"
CHOSEN: dict[str, Any] = {name: value for name, value in TINY_FINETUNE.items() if name not in ("model", "image_size")}
CHOSEN |= {"batch_size": 4, "epochs": 6.0, "warmup_epochs": 0.5, "lr": 0.01}


def volume(kind: int, number: int) -> np.ndarray:
    """A volume whose texture tells its class: slow or fast along its coarse axis."""
    places = np.stack(np.meshgrid(*map(np.arange, (18, 20, 12)), indexing="ij"))
    noise = np.random.default_rng(100 * kind + number).normal(0, 0.3, places.shape[1:])
    return (100 + 20 * (np.sin(places[kind] * (0.4 + 1.2 * kind) + number) + noise)).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labeled")
    for split, first, count in (("train", 0, 6), ("val", 10, 3), ("test", 20, 2)):
        for kind, name in enumerate(("fast", "slow")):
            (root / split / name).mkdir(parents=True)
            for number in range(first, first + count):
                path = root / split / name / f"v{number}.nii.gz"
                write_nifti(path, volume(kind, number), np.diag([1.0, 1.0, 1.5, 1.0]))
    return root


@pytest.fixture(scope="module")
def encoder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pretrained") / "run"
    chosen = SMALLEST_PRETRAIN | {"model": NETWORK, "image_size": (8, 16, 16), "data": data / "train"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "check", lambda *_: None)
        pretrain(run, chosen=chosen | {"orientation": "SAR", "spacing": (1.0, 1.0, 1.5), "epochs": 1.0})
    return run


@pytest.fixture(scope="module", params=["encoder", "none"])
def trained(
    request: pytest.FixtureRequest, data: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("finetuned") / "run"
    start = {"encoder": encoder} if request.param == "encoder" else {"encoder": "none", "model": NETWORK, "in_chans": 1}
    finetune(run, chosen=CHOSEN | start | {"data": data}, trust=True)
    return run


def read(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / name).read_text())
    return found


def test_volumes_are_prepared_as_the_encoder_has_learned(trained: Path) -> None:
    config = read(trained, "config.json")
    own = config["volumes"]
    if config["model"]["encoder"] == "none":
        assert own["orientation"] == "RAS"
        assert config["data"]["image_size"] == [16, 16, 16], "what most volumes have, in whole strides"
    else:
        assert (own["orientation"], own["spacing"], own["intensity"]) == ("SAR", [1.0, 1.0, 1.5], "mr")
        assert config["data"]["image_size"] == [8, 16, 16]
    assert config["data"]["crop"] == "native"
    assert config["data"]["mean"] == [0.0]
    assert "prepared in" in read(trained, "plan.json")["volumes"]
    assert len(list((trained.parent / "volumes").glob("*/store.json"))) == 3, "a store for each split"


def test_it_learns_and_predicts_what_was_scored(trained: Path, data: Path) -> None:
    results = read(trained, "results.json")
    assert results["classes"] == ["fast", "slow"]
    assert results["validation"]["top1"] >= 0.5
    found = predict(trained, data / "test", trust=True, device="cpu", workers=0)
    right = [one.classes[0] == one.image.split("/")[0] for one in found]
    assert len(right) == 4
    assert np.mean(right) == results["test"]["top1"]
    for mistake in results["test"]["mistakes"]:
        assert (trained / "mistakes" / "test" / mistake["picture"]).is_file()


def test_a_resumed_run_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    class Stop(Exception): ...

    def stop(step: int) -> None:
        if step == 4:
            raise Stop

    table = tmp_path / "labels.csv"
    with table.open("w", newline="") as file:
        rows = [(str(path), path.parent.name, path.parts[-3]) for path in sorted(data.glob("*/*/*.nii.gz"))]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    own = {"encoder": "none", "model": NETWORK, "in_chans": 1, "data": table, "epochs": 3.0}
    chosen = CHOSEN | own | {"checkpoint_minutes": 0.0, "image_size": (16, 16, 8), "store": tmp_path / "store"}
    finetune(tmp_path / "whole", chosen=chosen, trust=True)
    with pytest.raises(Stop):
        finetune(tmp_path / "halves", chosen=chosen, after_step=stop, trust=True)
    finetune(tmp_path / "halves", trust=True)
    one, other = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "halves")
    )
    assert [line.get("loss") for line in one] == [line.get("loss") for line in other]
    assert [line.get("val_loss") for line in one] == [line.get("val_loss") for line in other]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mixup": 0.1}, "--mixup changes images of two dimensions, and --data holds volumes"),
        ({"erasing": 0.2}, "--erasing changes images"),
        ({"policy": "rand"}, "--policy changes images"),
        ({"crop": "resized"}, "--crop resized is for images; volumes are resampled once"),
        ({"recipe": "paper"}, "take --recipe small-data, which does not set it"),
        ({"orientation": "LPS"}, "--orientation is an order of the letters R, A and S"),
    ],
)
def test_what_is_for_images_alone_is_refused(changes: dict[str, Any], said: str, data: Path, tmp_path: Path) -> None:
    start = {"encoder": "none", "model": NETWORK, "in_chans": 1, "data": data, "store": tmp_path / "store"}
    recipe = changes.pop("recipe", None)
    with pytest.raises(ValueError, match=said):
        finetune(tmp_path / "run", recipe=recipe, chosen=CHOSEN | start | changes, trust=True)


def test_random_weights_are_scored_on_volumes(data: Path) -> None:
    found = knn("none", data, model=NETWORK, in_chans=1, device="cpu", workers=0)
    assert found.encoder["image_size"] == [16, 16, 16]
    assert 0 <= found.accuracy.top1 <= 1
