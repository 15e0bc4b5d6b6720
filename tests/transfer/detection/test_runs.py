"""Runs of detections: scored, resumed, predicted with, and what they write and say."""

from __future__ import annotations

import csv
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detection_data import DETECT, as_coco, make_images, write_coco, write_voc
from helpers import assert_same_training, in_two_processes, interrupt_at, lines, printed
from sparkmim import detect, finetune, load_encoder, predict
from sparkmim.cli import run_command
from sparkmim.transfer.model_file import load_model

pytest.importorskip("pycocotools")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO files with masks, of images to train on, to validate and to test with."""
    root = tmp_path_factory.mktemp("data")
    for seed, (name, count) in enumerate((("train", 6), ("val", 5), ("test", 2))):
        write_coco(root / name, make_images(root / name, count, seed=seed), "_annotations.coco.json")
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something."""
    run = tmp_path_factory.mktemp("run") / "run"
    chosen = {**DETECT, "data": data, "head": "fcos", "epochs": 40.0, "val_every": 20.0, "lr": 0.01, "zoom": (1.0, 1.0)}
    finetune(run, chosen={**chosen, "jitter": 0.0, "flip": False, "batch_size": 3})
    return run


def results_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def scored(predictions: Path, truth: Path, kind: str) -> list[float]:
    """mAP and mAP50 of a COCO file of predictions, as anyone would compute them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        wanted, found = COCO(str(truth)), json.loads(predictions.read_text())
        numbers = {image["file_name"]: key for key, image in wanted.imgs.items()}
        names = {image["id"]: image["file_name"] for image in found["images"]}
        rows = [{**one, "image_id": numbers[names[one["image_id"]]]} for one in found["annotations"]]
        if not rows:
            return [0.0, 0.0]
        evaluation = COCOeval(wanted, wanted.loadRes(rows), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:2]]


def test_one_answer(trained: Path, data: Path, tmp_path: Path) -> None:
    """What is validated, tested and predicted has the same scores; batches and their order change nothing."""
    results = results_of(trained)
    last = [line for line in lines(trained) if "val_map" in line]
    assert max(line["val_map"] for line in last) == results["validation"]["map"]
    assert results["validation"]["map50"] > 0.1, "it has learned"
    for split, name, batch_size in (("val", "validation", 2), ("test", "test", 5)):
        found = detect(trained, data / split, tmp_path / split, trust=True, batch_size=batch_size, draw=True)
        assert [one.error for one in found] == [""] * len(found)
        tiled = detect(trained, data / split, trust=True, batch_size=batch_size, tiles=True)
        assert tiled == found, "one tile suffices"
        mine = [results[name]["map"], results[name]["map50"]]
        truth = data / split / "_annotations.coco.json"
        assert scored(tmp_path / split / "detections.json", truth, "bbox") == pytest.approx(mine, abs=1e-6)
        rows = list(csv.DictReader(io.StringIO((tmp_path / split / "detections.csv").read_text())))
        assert len(rows) == sum(len(one.boxes) for one in found)
        assert {row["class"] for row in rows} <= {"dark", "light"}
        assert len(list((tmp_path / split / "overlays").iterdir())) == len(found)
    ids = {one["category_id"] for one in json.loads((tmp_path / "val" / "detections.json").read_text())["annotations"]}
    assert ids <= {3, 7}, "those of the training's file"
    assert min(min(one.scores, default=1) for one in detect(trained, data / "val", trust=True, min_score=0.4)) >= 0.4


def test_what_a_run_writes(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, report = results_of(trained), (trained / "report.html").read_text()
    own = results["validation"]
    assert results["categories"] == [{"name": "dark", "id": 3}, {"name": "light", "id": 7}]
    assert sum(own["objects"]) == sum(a + b for a, b in zip(own["found"], _missed(own), strict=True))
    assert len(results["train"]["per_class"]) == 2
    for text in ("Precision by recall", "mAP50", "false alarms", "Average precision of validation"):
        assert text in report
    for one in own["worst"]:
        with Image.open(trained / "mistakes" / "validation" / one["picture"]) as picture:
            assert picture.size == (480, 393)
    config = json.loads((trained / "config.json").read_text())
    assert config["data"]["crop"] == "native"
    assert load_model(trained / "model.safetensors", trust=True).task.settings.head == "fcos"
    plan = json.loads((trained / "plan.json").read_text())
    assert "6 with" in plan["images"]
    assert plan["annotations"].startswith("COCO")
    network, weights = (
        load_encoder(trained / "model.safetensors", trust=True),
        load_model(trained / "model.safetensors", trust=True).module.state_dict(),
    )
    assert all(torch.equal(value, weights[f"backbone.body.{key}"]) for key, value in network.state_dict().items())
    with pytest.raises(ValueError, match=r"which finds boxes: use sparkmim\.detect"):
        predict(trained, trained, trust=True)
    assert "categories" in results


def _missed(score: dict[str, Any]) -> list[int]:
    return [total - hits for total, hits in zip(score["objects"], score["found"], strict=True)]


def test_a_resumed_run_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    """To the bit, with random choices among proposals, workers, and broken images."""
    broken = tmp_path / "broken"
    write_coco(broken, make_images(broken, 6), "_annotations.coco.json")
    (broken / "3.png").write_bytes(b"nothing")
    chosen = {**DETECT, "data": broken / "_annotations.coco.json", "val_data": data / "val", "epochs": 3.0}
    chosen |= {"max_broken": 0.5, "label_share": 0.9}
    finetune(tmp_path / "whole", chosen=chosen)
    outcome = finetune(tmp_path / "parts", chosen={**chosen, "workers": 1}, after_step=interrupt_at(2))
    assert outcome is not None
    assert outcome.interrupted
    finetune(tmp_path / "parts", trust=True)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    whole, parts = results_of(tmp_path / "whole"), results_of(tmp_path / "parts")
    assert whole == parts
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert len(config["detection"]["anchor_sizes"]) == 4, "the recipe's choice is recorded"


def test_masks(data: Path, tmp_path: Path) -> None:
    chosen = {**DETECT, "task": "instance", "data": data, "epochs": 5.0, "val_every": 5.0, "lr": 0.01}
    finetune(tmp_path / "run", chosen={**chosen, "batch_size": 3})
    own = results_of(tmp_path / "run")["validation"]
    found = detect(tmp_path / "run", data / "val", tmp_path / "out", trust=True, draw=True)
    assert all(len(one.masks) == len(one.boxes) for one in found)
    path = tmp_path / "out" / "detections.json"
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        mine = [own[f"{prefix}map"], own[f"{prefix}map50"]]
        assert scored(path, data / "val" / "_annotations.coco.json", kind) == pytest.approx(mine, abs=1e-6)
    assert "masks" in (tmp_path / "run" / "report.html").read_text()


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"head": "mask-rcnn"}, "--head mask-rcnn is for --task instance"),
    ({"task": "instance", "head": "fcos"}, "--head fcos is for --task detection"),
    ({"head": "fcos", "anchor_sizes": (8.0,) * 3}, "--anchor-sizes .*with --head fcos"),
    ({"anchor_sizes": (8.0, 16.0)}, "names 2 sizes"),
    ({"fpn_width": 33}, "a multiple of 32"),
    ({"crop": "resized"}, "use --crop native"),
    ({"val_share": 0.5, "data": "."}, "--val-share 0.5 has no effect"),
    ({"compile": "on"}, "use --compile off"),
    ({"val_share": 0.5, "folds": 2}, "--val-share .*with --val-data or --folds"),
    ({"classes": "nothing.txt"}, "there is no file .*nothing.txt"),
    ({"zoom": (2.0, 1.0)}, "the smaller one first"),
]


@pytest.mark.parametrize(("given", "said"), FAULTS)
def test_settings_that_do_not_fit(given: dict[str, Any], said: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        finetune(tmp_path / "run", chosen={**DETECT, **given, "data": data / given.get("data", "train")})
    assert not (tmp_path / "run").exists()


def test_boxes_alone_are_no_masks(tmp_path: Path) -> None:
    write_voc(tmp_path, make_images(tmp_path / "images"))
    with pytest.raises(ValueError, match=r"9 of 9 objects have no mask.*use --task detection"):
        finetune(tmp_path / "run", chosen={**DETECT, "task": "instance", "data": tmp_path})


def test_the_papers_recipe(data: Path, tmp_path: Path) -> None:
    from sparkmim.training.prepare import prepare
    from sparkmim.transfer.prepare import FineTuning

    chosen = {name: DETECT[name] for name in ("model", "device", "workers", "task")} | {"image_size": (64, 64)}
    chosen |= {"encoder": DETECT["encoder"], "data": str(data), "accumulate": 1, "in_chans": 3, "fpn_width": 32}
    config: Any = prepare(FineTuning("detection"), tmp_path / "run", "paper", "auto", chosen, 1).config
    assert config.optimizer.lr == pytest.approx(2.5e-4 * 6 / 16, rel=0.05)
    assert config.detection.anchor_ratios == (0.5, 1.0, 2.0)
    assert config.detection.head_norm == "batch"
    assert config.schedule.epochs == 12.17
    assert config.optimizer.weight_decay == 1e-4
    assert config.optimizer.layer_decay == 1.0, "from scratch"


def test_commands(trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["predict", "--run", str(trained), "--data", str(data / "test"), "--trust", "--device", "cpu"]
    assert printed(run_command, [*own, "--output", str(tmp_path / "out"), "--draw", "--min-score", "0.3"]) == 0
    assert "objects in 2 images" in capsys.readouterr().out
    for flags, said in (
        (["--output", str(tmp_path / "out")], "holds detections.json, detections.csv, overlays already"),
        (["--output", str(tmp_path / "a.csv")], "name a folder"),
        (["--output", str(data / "test" / "out")], "is in the folder of the images"),
        (["--output", str(tmp_path / "b"), "--top-k", "2"], "--top-k 2 is for classifiers"),
        (["--output", str(tmp_path / "b"), "--mask-format", "palette"], "is for segmentations"),
        (["--output", str(tmp_path / "b"), "--min-score", "2"], "is not a score"),
    ):
        assert printed(run_command, [*own, *flags]) != 0
        assert said in capsys.readouterr().err


def test_scores_of_two_processes_are_those_of_the_saved_weights(data: Path, tmp_path: Path) -> None:
    flags = "finetune --task detection --encoder none --head retinanet --image-size 32 --batch-size 4 --epochs 3"
    flags += " --warmup-epochs 0.5 --precision 32 --device cpu --workers 0 --lr 0.01 --fpn-width 32 --ema 0.5"
    paths = ["--model", DETECT["model"], "--data", str(data), "--output", str(tmp_path / "run")]
    in_two_processes(*flags.split(), *paths, seconds=240)
    own = results_of(tmp_path / "run")["validation"]
    assert own["images"] == 5
    detect(tmp_path / "run", data / "val", tmp_path / "out", trust=True)
    truth = data / "val" / "_annotations.coco.json"
    assert scored(tmp_path / "out" / "detections.json", truth, "bbox") == pytest.approx(
        [own["map"], own["map50"]], abs=1e-6
    )


def test_images_of_other_sizes_than_their_annotations(data: Path, tmp_path: Path) -> None:
    """One that is replaced after its annotations were read is met as unreadable, not scored at other places."""
    from sparkmim.data.config import ViewConfig
    from sparkmim.data.detection.opening import Source, read_splits
    from sparkmim.transfer.detection.whole import FittedImages

    root = tmp_path / "data"
    images = make_images(root, 2)
    (root / "a.json").write_text(json.dumps(as_coco(images)))
    own = read_splits(Source(str(root / "a.json"), None, None, None, None, 0.0), 0).train
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(root / "1.png")
    view = ViewConfig(image_size=(32, 32), crop="native", mean=(0.0,) * 3, std=(1.0,) * 3)
    found = [FittedImages(own.source, view, 3, own.sizes)[(0, index)][0].error for index in range(2)]
    assert found[0] == ""
    assert "its annotations are of (36, 44)" in found[1]
