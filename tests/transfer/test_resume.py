"""Going on from a checkpoint that is named: under its settings, and refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import FOUR_STEPS, TINY_FINETUNE, make_data, make_split
from sparkmim.checkpoints.run_folder import RunFolder
from sparkmim.pretraining.run import pretrain
from sparkmim.transfer.run import finetune

pytestmark = pytest.mark.slow

SHORT = FOUR_STEPS | {"epochs": 0.5, "warmup_epochs": 0.1}


def run(folder: Path, resume: str = "auto", recipe: str | None = None, **chosen: Any) -> dict[str, Any]:
    """The newest checkpoint of a run."""
    finetune(folder, recipe=recipe, resume=resume, chosen=chosen)
    newest = RunFolder(folder).newest_checkpoint()
    assert newest is not None
    return newest[0]


def checkpoint(folder: Path) -> str:
    return str(RunFolder(folder).list_checkpoints()[-1])


@pytest.fixture(scope="module")
def without_average(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "run"
    run(folder, **TINY_FINETUNE | {"data": data, "ema": 0.0, "epochs": 0.5})
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(folder, chosen=SHORT | {"data": data / "train"})
    return folder


def test_a_new_folder_takes_the_settings_of_the_checkpoint(tmp_path: Path, without_average: Path) -> None:
    finetune(tmp_path / "run", resume=checkpoint(without_average))
    there, here = (json.loads((f / "config.json").read_text()) for f in (without_average, tmp_path / "run"))
    assert there.pop("recipe") == "small-data"
    assert here.pop("recipe").startswith("of step-")
    assert there == here


def test_settings_of_groups_are_those_of_now(tmp_path: Path, without_average: Path) -> None:
    now: dict[str, Any] = {"layer_decay": 0.5, "betas": (0.8, 0.9), "eps": 1e-5, "epochs": 1.0}
    groups = run(tmp_path / "run", checkpoint(without_average), **now)["optimizer"]["param_groups"]
    assert sorted({group["lr_scale"] for group in groups})[-2:] == [0.5, 1.0]
    assert {(tuple(group["betas"]), group["eps"]) for group in groups} == {((0.8, 0.9), 1e-5)}
    assert {group["weight_decay_scale"] for group in groups} == {0.0, 1.0}


def test_betas_of_a_pretraining_are_those_of_now(tmp_path: Path, pretrained: Path) -> None:
    chosen = {"betas": (0.5, 0.6), "epochs": 1.0}
    pretrain(tmp_path / "run", resume=checkpoint(pretrained), chosen=chosen)
    newest = RunFolder(tmp_path / "run").newest_checkpoint()
    assert newest is not None
    assert {tuple(group["betas"]) for group in newest[0]["optimizer"]["param_groups"]} == {(0.5, 0.6)}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "average": ({"ema": 0.9}, r"--ema 0\.9, but .*\.pt holds no average of weights; use --ema 0"),
    "optimiser": ({"optimizer": "lamb"}, r"optimizer: adamw there, lamb asked for.*--encoder RUN/model\.safetensors"),
    "network": ({"model": "test_convnext"}, r"model: test_resnet there, test_convnext asked for"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_the_checkpoint_is_refused(tmp_path: Path, without_average: Path, case: str) -> None:
    chosen, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", checkpoint(without_average), **chosen)
    assert not (tmp_path / "run").exists()


def test_another_optimiser_of_a_pretraining_is_refused(tmp_path: Path, pretrained: Path) -> None:
    with pytest.raises(ValueError, match="optimizer: lamb there, adamw asked for"):
        pretrain(tmp_path / "run", resume=checkpoint(pretrained), chosen={"optimizer": "adamw"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", [None, "small-data"])
def test_checkpoints_of_the_other_kind_are_told(
    tmp_path: Path, data: Path, without_average: Path, pretrained: Path, recipe: str | None
) -> None:
    with pytest.raises(ValueError, match=r"\.pt is a checkpoint of a pretraining; .*--encoder RUN$"):
        run(tmp_path / "run", checkpoint(pretrained), recipe, **TINY_FINETUNE | {"data": data})
    with pytest.raises(ValueError, match=r"\.pt is a checkpoint of a fine-tuning; .*--init RUN/model\.safetensors$"):
        pretrain(tmp_path / "run", resume=checkpoint(without_average), chosen={"data": data / "train"})


def test_the_best_on_other_images_is_forgotten(tmp_path: Path, data: Path, without_average: Path) -> None:
    state = torch.load(checkpoint(without_average), weights_only=True)
    state["best"]["top1"] = 2.0  # better than any
    torch.save(state, tmp_path / "state.pt")
    there = str(tmp_path / "state.pt")
    assert run(tmp_path / "same", there, epochs=1.0)["best"]["top1"] == 2.0
    other = make_split(tmp_path / "val", each=2, seed=7)
    assert run(tmp_path / "other", there, epochs=1.0, val_data=other)["best"]["top1"] <= 1.0
    assert run(tmp_path / "none", there, epochs=1.0, data=data / "train", val_data=None)["best"] is None


@pytest.mark.parametrize("inside", ["", "train/blue", "val", "test"])
def test_a_run_within_its_images_is_refused(tmp_path: Path, inside: str) -> None:
    data = make_data(tmp_path / "data")
    named = {"data": data / "train", "val_data": data / "val", "test_data": data / "test"} if inside else {"data": data}
    with pytest.raises(ValueError, match=r"--output .* is in the folder of --(val-|test-)?data .*; use an --output"):
        run(data / inside / "run", **TINY_FINETUNE | named)
    assert not (data / inside / "run").exists()


def test_images_may_move(tmp_path: Path) -> None:
    for old in ("train", "val", "test"):
        make_split(tmp_path / old, each=4)
    named = {"data": "train", "val_data": "val", "test_data": "test"}
    run(tmp_path / "run", **TINY_FINETUNE | {name: tmp_path / folder for name, folder in named.items()})
    (tmp_path / "moved").mkdir()
    for old in named.values():
        (tmp_path / old).rename(tmp_path / "moved" / old)
    moved: dict[str, Any] = {name: tmp_path / "moved" / folder for name, folder in named.items()}
    run(tmp_path / "run", **moved)
