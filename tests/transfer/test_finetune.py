"""Fine-tuning learns, goes on where it was interrupted, and keeps what was best."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.utils.model_ema import ModelEmaV3

from helpers import CLASSES, TINY_FINETUNE, make_split
from sparkmim.checkpoints.encoder import save_encoder
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.cli import main
from sparkmim.data.labels import read_labeled
from sparkmim.training.errors import RunStopped
from sparkmim.training.loop import Outcome
from sparkmim.training.prepare import validate_training
from sparkmim.transfer.augment import mix
from sparkmim.transfer.config import AugmentConfig
from sparkmim.transfer.model_file import load_model
from sparkmim.transfer.outputs import compute_outputs
from sparkmim.transfer.prepare import FineTuning
from sparkmim.transfer.run import finetune
from sparkmim.utils.trust import Untrusted

pytestmark = pytest.mark.slow


def run(
    folder: Path, after_step: Callable[[int], None] | None = None, recipe: str | None = None, **chosen: Any
) -> Outcome:
    outcome = finetune(folder, recipe=recipe, chosen=chosen, after_step=after_step)
    assert outcome is not None
    return outcome


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of a run that learns the three classes."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    run(folder, **TINY_FINETUNE | {"data": data, "epochs": 10.0, "lr": 2e-3})
    return folder


def test_learns_classes(learned: Path) -> None:
    found = results(learned)
    assert found["classes"] == list(CLASSES)
    assert found["train"] == {"images": 24, "per_class": [8, 8, 8]}
    for split in ("validation", "test"):
        score = found[split]
        assert score["images"] == 12
        assert score["top1"] > 0.9
        assert sum(map(sum, score["confusion"])) == 12
        assert sum(score["confusion"][i][i] for i in range(3)) == round(score["top1"] * 12)
    assert (learned / "report.html").read_text().count("class=confusion") == 2
    evaluated = [line for line in lines(learned) if "val_top1" in line]
    assert len(evaluated) == 20
    assert {"val_loss", "val_top1", "val_mean_per_class"} <= evaluated[0].keys()


def test_weights_that_are_kept_are_the_best(learned: Path) -> None:
    best = max(
        (line for line in lines(learned) if "val_top1" in line), key=lambda line: (line["val_top1"], line["step"])
    )
    assert results(learned)["weights"] == {"step": best["step"], "average": True}
    assert results(learned)["validation"]["top1"] == best["val_top1"]
    network = timm.create_model("test_resnet", num_classes=3)
    network.load_state_dict(load_file(learned / "model.safetensors"))  # timm's own names, classifier included


def test_predictions_are_those_of_the_scores(learned: Path, data: Path, tmp_path: Path) -> None:
    images = make_split(tmp_path / "images", each=4, seed=2)  # the test images
    (images / "broken.png").write_bytes(b"no picture")
    main_with("predict", "--run", learned, "--data", images, "--output", tmp_path / "out.csv", "--top-k", 2)
    with (tmp_path / "out.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert len(rows) == 13
    broken = rows.pop("broken.png")
    assert broken["class"] == ""
    assert "UnidentifiedImageError" in broken["error"]
    right = sum(name.split("/")[0] == row["class"] for name, row in rows.items())
    assert right == round(12 * results(learned)["test"]["top1"])
    for row in rows.values():
        assert row["class"] != row["class_2"]
        assert 0.5 <= float(row["probability"]) + float(row["probability_2"]) <= 1.0 + 1e-5


def main_with(*arguments: object) -> None:
    """The command line; it has to succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sparkmim", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == 0


VARIANTS: dict[str, dict[str, Any]] = {
    "average": {"drop_path": 0.2, "model": "test_convnext"},
    "mixed": {
        "mixup": 0.8,
        "cutmix": 1.0,
        "loss": "binary",
        "ema": 0.0,
        "policy": "trivial",
        "erasing": 0.5,
        "repeats": 4,  # the batch ends amid the views of an image
        "optimizer": "lamb",
    },
    "accumulated": {"accumulate": 2, "policy": "rand"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_and_continued(tmp_path: Path, data: Path, variant: str) -> None:
    chosen = TINY_FINETUNE | {"data": data} | VARIANTS[variant]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, **chosen)

    def interrupt(done: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    first = run(parts, interrupt, **chosen)
    assert (first.step, first.steps, first.interrupted) == (2, 4, "SIGTERM")
    assert not (parts / "results.json").exists()
    assert run(parts).interrupted is None
    ends = [end for folder in (whole, parts) if (end := RunFolder(folder).newest_checkpoint()) is not None]
    states = [end[0] for end in ends]
    assert states[0].pop("config") == states[1].pop("config")
    assert states[0]["best"].pop("images") == states[1]["best"].pop("images")
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    kept = [load_file(folder / "model.safetensors") for folder in (whole, parts)]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    assert results(whole) == results(parts)
    losses = [[(line["step"], line["loss"]) for line in lines(folder) if "loss" in line] for folder in (whole, parts)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("recipe", ["small-data", "paper"])
def test_recipes_accumulate_what_does_not_fit(data: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    chosen = {"encoder": "none", "model": "resnet18", "data": data, "image_size": (64, 64), "batch_size": 24}
    chosen |= {"precision": "32"}

    def parts(memory: int, **more: Any) -> int:
        monkeypatch.setattr("sparkmim.transfer.prepare.free_memory", lambda device, processes: memory)
        return FineTuning(None).resolve(recipe, chosen | more, 1)[0].run.accumulate

    assert parts(2**34) == 1
    little = 16 * 11_200_000 + 2**24  # a state of 11 million parameters, and six images
    assert parts(little) == 4
    assert parts(little + 2**24) == 2
    assert parts(0) == 24, "the smallest parts can only be tried"
    assert parts(0, accumulate=3) == 3


@pytest.mark.parametrize("recipe", ["small-data", "paper"])
@pytest.mark.parametrize("model", ["test_resnet", "test_convnext"])
def test_processes_share_the_batch(tmp_path: Path, recipe: str, model: str) -> None:
    images = make_split(tmp_path, each=9)
    chosen = {"encoder": "none", "model": model, "data": images, "image_size": (64, 64), "accumulate": 1}
    for processes, batch in ((1, 27), (2, 26), (8, 24)):
        config, sets = FineTuning(None).resolve(recipe, chosen, processes)
        assert config.run.batch_size == (batch if recipe == "paper" else 8)
        validate_training(config, len(sets.train), 3, processes)
    ready = FineTuning(None).resolve(recipe, chosen | {"batch_size": 27}, 1)[0]
    with pytest.raises(ValueError, match=r"--batch-size 27 is not divisible by 2 processes .*; use 26, or another"):
        validate_training(ready, 27, 3, 2)
    with pytest.raises(ValueError, match="27 images are too few for 30 processes times --accumulate 1; use fewer"):
        validate_training(ready, 27, 3, 30)


def test_finished_run_writes_its_results_again(tmp_path: Path, data: Path) -> None:
    run(tmp_path, **TINY_FINETUNE | {"data": data})
    before = results(tmp_path)
    (tmp_path / "results.json").unlink()
    run(tmp_path)
    assert results(tmp_path) == before


def test_encoder_is_where_it_starts(tmp_path: Path, data: Path) -> None:
    torch.manual_seed(5)
    encoder = timm.create_model("test_resnet", num_classes=0)
    known = {"model": "test_resnet", "image_size": (64, 64), "mean": (0.5,) * 3, "std": (0.25,) * 3, "in_chans": 3}
    save_encoder(encoder, tmp_path / "encoder.safetensors", {"sparkmim": json.dumps(known)})
    chosen = {name: value for name, value in TINY_FINETUNE.items() if name not in ("model", "image_size", "ema")}
    chosen |= {"lr": 1e-30, "weight_decay": 0.0, "weight_decay_end": 0.0, "data": data, "ema": 0.0}
    run(tmp_path / "run", **chosen | {"encoder": tmp_path / "encoder.safetensors"})
    kept = load_file(tmp_path / "run" / "model.safetensors")
    for name, tensor in encoder.named_parameters():
        torch.testing.assert_close(kept[name], tensor, rtol=0, atol=1e-20)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["model"] == "test_resnet"
    assert (config["data"]["image_size"], config["data"]["mean"]) == ([64, 64], [0.5] * 3)
    assert config["optimizer"]["layer_decay"] < 1  # an encoder is worth sparing


def test_average_is_that_of_the_weights_after_each_step(tmp_path: Path, data: Path) -> None:
    snapshots: list[dict[str, torch.Tensor]] = []
    original = ModelEmaV3.update

    def update(self: ModelEmaV3, model: torch.nn.Module, step: int | None = None) -> None:
        snapshots.append({name: tensor.clone() for name, tensor in model.named_parameters()})
        original(self, model, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelEmaV3, "update", update)
        run(tmp_path / "run", **TINY_FINETUNE | {"data": data / "train", "ema": 0.6})
    assert len(snapshots) == 4
    average = {name: tensor.double() for name, tensor in snapshots[0].items()}
    for step, later in enumerate(snapshots[1:], start=2):
        decay = min(0.6, 1 - 1 / step)  # the mean of all, up to a memory of two and a half
        average = {name: decay * average[name] + (1 - decay) * tensor for name, tensor in later.items()}
    kept = load_file(tmp_path / "run" / "model.safetensors")
    for name, tensor in average.items():
        torch.testing.assert_close(kept[name].double(), tensor, rtol=1e-5, atol=1e-6)
    assert results(tmp_path / "run").keys() == {"classes", "weights", "train"}


def test_share_and_fold_of_the_labels(tmp_path: Path, data: Path) -> None:
    chosen = TINY_FINETUNE | {"data": data / "train", "label_share": 0.5, "folds": 4, "fold": 1, "batch_size": 3}
    run(tmp_path / "run", **chosen)
    found = results(tmp_path / "run")
    assert found["train"] == {"images": 9, "per_class": [3, 3, 3]}
    assert found["validation"]["images"] == 6


def test_own_network(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    conv = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 4, 4), nn.BatchNorm2d(o), nn.ReLU())\n"
        "    return nn.Sequential(conv(3, 16), conv(16, 32))\n"
    )
    chosen = TINY_FINETUNE | {"model": f"{file}:make", "data": data, "epochs": 6.0, "lr": 5e-3}
    run(tmp_path / "run", **chosen)
    assert results(tmp_path / "run")["validation"]["top1"] > 0.9
    with pytest.raises(Untrusted, match=r"make of the file .*own\.py would run on the file's word alone"):
        load_model(tmp_path / "run" / "model.safetensors")
    saved = load_model(tmp_path / "run" / "model.safetensors", f"{file}:make")
    assert tuple(saved.targets["classes"]) == CLASSES


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext"])
def test_paper_recipe_learns(tmp_path: Path, data: Path, model: str) -> None:
    chosen = {name: TINY_FINETUNE[name] for name in ("image_size", "encoder", "precision", "device", "seed", "workers")}
    run(tmp_path / "run", recipe="paper", model=model, data=data, batch_size=12, epochs=12.0, ema=0.8, **chosen)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    by_batch = model == "test_resnet"
    assert config["optimizer"]["optimizer"] == ("lamb" if by_batch else "adamw")
    assert config["augment"]["repeats"] == (1 if by_batch else 3)
    assert config["objective"]["loss"] == ("binary" if by_batch else "cross-entropy")
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0]
    saved, held_out = load_model(tmp_path / "run" / "model.safetensors"), read_labeled(data / "val")
    logits = compute_outputs(
        saved.module, held_out.source, saved.view, 3, batch_size=12, workers=0, device=torch.device("cpu")
    ).values
    labels = torch.from_numpy(held_out.labels)
    wanted = (
        F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 3).float())
        if by_batch
        else F.cross_entropy(logits, labels)
    )
    assert results(tmp_path / "run")["validation"]["loss"] == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("begins_at", [0, 1, 2])
@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_views_of_an_image_are_mixed_with_other_images(begins_at: int, way: str) -> None:
    labels = torch.arange(begins_at, begins_at + 12) // 3  # three views of each image, as they lie in a batch
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    torch.manual_seed(3)
    chosen: dict[str, Any] = {way: 1.0}
    mixed, targets = mix(images, labels, AugmentConfig(repeats=3, **chosen), 5)
    assert ((targets > 0).sum(1) == 2).all()
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(5.0))


def test_stops_where_the_loss_is_not_finite(tmp_path: Path, data: Path) -> None:
    with pytest.raises(RunStopped, match=r"step \d+, learning rate .*A lower --lr(,| or) a longer --warmup-epochs"):
        run(tmp_path / "run", **TINY_FINETUNE | {"data": data, "lr": 1e30, "clip": 0.0, "epochs": 4.0})
