"""The example of a transfer task of one's own: a single file, chosen and set by flags, trained, resumed and used."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import TINY_FINETUNE, TINY_PRETRAIN, assert_same_training, interrupt_at, lines
from sparkmim import finetune, predict, pretrain
from sparkmim.cli import main
from sparkmim.training.errors import RunStopped
from sparkmim.transfer.model_file import load_model
from sparkmim.transfer.tasks.base import find_task
from sparkmim.utils.specs import plugin_names

REGRESSION = f"{Path(__file__).parents[2] / 'examples' / 'regression.py'}:Regression"


def make_table(folder: Path, name: str, count: int, seed: int) -> Path:
    """Images of one gray each, and how bright it is, from 10 to 20."""
    generator = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        brightness = generator.uniform()
        picture = f"{name}-{number}.png"
        Image.new("RGB", (64, 64), (round(255 * brightness),) * 3).save(folder / picture)
        rows.append((picture, 10 + 10 * brightness))
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / f"{name}.csv"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    for seed, (name, count) in enumerate((("train", 24), ("val", 8), ("test", 8))):
        make_table(folder, name, count, seed)
    return folder


def settings(tables: Path) -> dict[str, object]:
    return TINY_FINETUNE | {
        "task": REGRESSION,
        "data": tables / "train.csv",
        "val_data": tables / "val.csv",
        "test_data": tables / "test.csv",
        "epochs": 10.0,
        "lr": 3e-3,
    }


def test_found_by_name() -> None:
    assert "classification" in plugin_names("sparkmim.transfer.tasks")
    assert find_task("classification").__name__ == "Classification"
    with pytest.raises(ValueError, match=r"--task 'classify' is unknown; use one of .*classification.*, or FILE"):
        find_task("classify")


def test_a_run(tables: Path, tmp_path: Path) -> None:
    chosen = settings(tables) | {"task.loss": "smooth-l1"}
    finetune(tmp_path / "whole", chosen=chosen)
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["validation"]["mae"] < 1.0, "the targets spread over 10"
    assert results["test"].keys() >= {"mae", "r2", "loss", "images", "unreadable"}
    scores = [line["val_mae"] for line in lines(tmp_path / "whole") if "val_mae" in line]
    assert results["validation"]["mae"] == pytest.approx(min(scores), rel=1e-4), "the best weights are kept"
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (config["task"], config["task_settings"]) == ("finetune", {"loss": "smooth-l1"})
    assert (tmp_path / "whole" / "report.html").exists()
    finetune(tmp_path / "parts", chosen=chosen, after_step=interrupt_at(9))
    with pytest.raises(ValueError, match=r"task\.loss: smooth-l1 there, squared asked for"):
        finetune(tmp_path / "parts", chosen={"task.loss": "squared"}, trust=True)
    finetune(tmp_path / "parts", trust=True)
    assert_same_training(tmp_path / "parts", tmp_path / "whole")
    assert json.loads((tmp_path / "parts" / "results.json").read_text()) == results


def test_a_checkpoint_brings_its_task(tables: Path, images: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.py"  # without settings, so that its configuration has the groups of a pretraining
    source = Path(REGRESSION.partition(":")[0]).read_text().replace("    settings_type = RegressionSettings\n", "")
    plain.write_text(source.replace('self.settings.loss == "squared"', "True"))
    finetune(tmp_path / "run", chosen=settings(tables) | {"task": f"{plain}:Regression"}, after_step=interrupt_at(3))
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    finetune(tmp_path / "other", resume=str(checkpoint), chosen={"epochs": 2.0}, trust=True)
    assert json.loads((tmp_path / "other" / "config.json").read_text())["model"]["task"] == f"{plain}:Regression"
    with pytest.raises(ValueError, match=r"another task \(.*plain\.py:Regression there, classification asked for"):
        finetune(tmp_path / "new", resume=str(checkpoint), chosen={"task": "classification"}, trust=True)
    with pytest.raises(ValueError, match=r"another task \(.*plain\.py:Regression there, classification asked for"):
        finetune(tmp_path / "run", chosen={"task": "classification"}, trust=True)
    with pytest.raises(ValueError, match="is a checkpoint of a fine-tuning; start from the weights of its run"):
        pretrain(tmp_path / "new", resume=str(checkpoint), trust=True)
    pretrain(tmp_path / "pixels", chosen=TINY_PRETRAIN | {"data": images}, after_step=interrupt_at(2))
    (checkpoint,) = (tmp_path / "pixels" / "checkpoints").iterdir()
    with pytest.raises(ValueError, match="is a checkpoint of a pretraining; start from the encoder of its run"):
        finetune(tmp_path / "new", resume=str(checkpoint), chosen={"task": f"{plain}:Regression"})


def test_tasks_that_do_not_keep_the_contract(tables: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    source = Path(REGRESSION.partition(":")[0]).read_text().replace('metric = "mae"', 'metric = "rmse"')
    own.write_text(
        f"{source}\n\nfrom sparkmim.transfer.tasks.classification import Classification\n\n\n"
        "class Finer(Classification):\n    pass\n"
    )
    with pytest.raises(RunStopped, match=r"own\.py:Regression names 'rmse' its metric, but scores loss, mae, r2"):
        finetune(tmp_path / "run", chosen=settings(tables) | {"task": f"{own}:Regression"})
    with pytest.raises(ValueError, match=r"own\.py:Finer derives from Classification"):
        finetune(tmp_path / "new", chosen=settings(tables) | {"task": f"{own}:Finer"})


def test_its_model_is_used(tables: Path, tmp_path: Path) -> None:
    finetune(tmp_path / "run", chosen=settings(tables) | {"epochs": 1.0})
    saved = load_model(tmp_path / "run" / "model.safetensors", trust=True)
    assert saved.module(torch.zeros(2, 3, 64, 64)).shape == (2, 1)
    assert saved.targets["mean"] == pytest.approx(15, abs=2)
    found = predict(tmp_path / "run", tables, workers=0, device="cpu", trust=True)
    assert len(found) == 40
    assert all(len(prediction.values) == 1 and 5 < prediction.values[0] < 25 for prediction in found)


def test_folds_and_shares(tables: Path) -> None:
    kind = find_task(REGRESSION)
    task = kind(kind.settings_type())
    images = task.read_split(tables / "train.csv", "--data", None)
    folds = [task.fold(images, 3, index, seed=4) for index in range(3)]
    held_out = [held.source.name(i) for _, held in folds for i in range(len(held))]
    assert sorted(held_out) == sorted(images.source.name(i) for i in range(len(images)))
    for train, held in folds:
        names = {train.source.name(i) for i in range(len(train))} | {held.source.name(i) for i in range(len(held))}
        assert len(names) == len(images) == len(train) + len(held)
    small, large = (
        {part.source.name(i) for i in range(len(part))} for part in (task.share(images, s, 4) for s in (0.25, 0.5))
    )
    assert small < large
    assert (len(small), len(large)) == (6, 12)


def test_bad_input(tables: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a.png,none\n")
    with pytest.raises(ValueError, match=r"expected rows `path,number` in .*bad\.csv"):
        finetune(tmp_path / "run", chosen=settings(tables) | {"data": tmp_path / "bad.csv"})
    with pytest.raises(ValueError, match="recipe paper is for classification"):
        finetune(tmp_path / "run", recipe="paper", chosen=settings(tables))
    with pytest.raises(ValueError, match="the configuration has no field 'mixup'"):
        finetune(tmp_path / "run", chosen=settings(tables) | {"mixup": 0.2})
    assert not (tmp_path / "run").exists()


def test_its_settings_are_flags(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sparkmim(command: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sparkmim", *command.split()])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    code, out = sparkmim(f"finetune --task {REGRESSION} --help")
    assert code == 0
    assert "--task.loss squared|smooth-l1" in out
    assert "--mixup" not in out
    where = f"--data {tables / 'train.csv'} --val-data {tables / 'val.csv'} --output {tmp_path / 'run'}"
    tiny = "--encoder none --model test_resnet --image-size 64 --epochs 1 --device cpu --workers 0 --precision 32"
    code, out = sparkmim(f"finetune --task {REGRESSION} --task.loss smooth-l1 {where} {tiny}")
    assert code == 0, out
    assert "mae" in out
    table = f"predict --run {tmp_path / 'run'} --data {tables} --output {tmp_path / 'table.csv'}"
    code, out = sparkmim(table)
    assert code == 2
    assert f"names the task '{REGRESSION}', and Regression of the file " in out
    assert f"    sparkmim {table} --trust" in out
    code, out = sparkmim(f"{table} --trust")
    assert code == 0, out
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert len(rows) == 40
    assert all(5 < float(row["prediction"]) < 25 for row in rows)


SETS_ITS_OWN = """
from dataclasses import dataclass
from sparkmim.transfer.recipes import small_data
from torch import nn
from regression import Regression

@dataclass(frozen=True, kw_only=True)
class Settings:
    loss: str = "squared"
    \"\"\"The loss.\"\"\"
    hidden: int = 0
    \"\"\"Channels of a hidden layer; 0 for none.\"\"\"

class Deep(Regression):
    settings_type = Settings

    def head(self, channels, targets):
        last = super().head(self.settings.hidden or channels, targets)
        return nn.Sequential(nn.Linear(channels, self.settings.hidden), last) if self.settings.hidden else last

def hidden(situation):
    return small_data(situation).replace({"task.hidden": 8})
"""


def test_the_network_is_built_by_the_settings_that_a_recipe_chose(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(REGRESSION.rpartition(":")[0]).parent))
    (tmp_path / "deep.py").write_text(SETS_ITS_OWN)
    chosen = settings(tables) | {"task": f"{tmp_path / 'deep.py'}:Deep", "epochs": 1.0}
    finetune(tmp_path / "run", recipe=f"{tmp_path / 'deep.py'}:hidden", chosen=chosen)
    saved = load_model(tmp_path / "run" / "model.safetensors", trust=True)
    assert saved.task.settings.hidden == 8
    assert saved.module.get_parameter("head.0.weight").shape[0] == 8
