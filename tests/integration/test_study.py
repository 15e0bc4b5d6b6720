"""The driver of the study: it carries out what it says, once, and its table is of what was found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import study


def make_images(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, each in (("train", 10), ("val", 2), ("test", 2)):
        for number, name in enumerate(("blue", "red")):
            (root / split / name).mkdir(parents=True)
            for index in range(each):
                coarse = generator.integers(0, 200, (4, 4, 3)).astype(np.uint8)
                coarse[..., 2 - 2 * number] += 50
                Image.fromarray(coarse).resize((64, 64)).save(root / split / name / f"{index}.png")
    return root


def test_every_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    slow = "learning rate 1e-3"
    monkeypatch.setattr(study, "SETTINGS", {slow: {"lr": 1e-3}, "faster": {"lr": 3e-3, "policy": "trivial"}})
    monkeypatch.setattr(study, "MAIN_SHARE", 0.5)
    arms = {"spark": study.Arm("SparK", shares=(0.5,)), "scratch": study.Arm("scratch", "none", {}, (0.5,), "scratch")}
    monkeypatch.setattr(study, "ARMS", arms)
    settings = "--model test_resnet --image-size 64 --decoder-width 32 --epochs 0.8 --views 20 --choose-views 10 "
    settings += "--least-epochs 1 --folds 1 --seeds 2 --workers 0 --device cpu --arms spark scratch"
    output = tmp_path / "study"
    command = ["--data", str(make_images(tmp_path / "data")), "--output", str(output), *settings.split()]

    assert study.main([*command, "--plan"]) == 0
    planned = capsys.readouterr().out.splitlines()
    assert planned[-1] == "0 runs have ended, 12 are left"
    assert study.main([*command, "--only", "finetune/*"]) == 0
    assert not study.Study(study.parse(command)).results(), "they need encoders and settings"
    assert study.main([*command, "--only", "*/scratch/*"]) == 0
    assert len(study.Study(study.parse(command)).results()) == 6
    capsys.readouterr()
    assert study.main(command) == 0
    assert "=== pretrain/scratch/0" not in capsys.readouterr().out
    results = study.Study(study.parse(command)).results()
    assert sorted(results) == sorted(planned[:-1])
    assert results["finetune/spark/0.5/1"]["images"] == results["knn/spark/0"]["images"] == 8
    assert results["pretrain/spark/0"]["seconds"] > 0
    scores = {name: results[f"choose/scratch/{name}/0"]["top1"] for name in (0, 1)}
    assert results["finetune/scratch/0.5/0"]["setting"] == (slow if scores[0] >= scores[1] else "faster")
    chosen = json.loads((output / "choose" / "scratch" / "1" / "0" / "config.json").read_text())
    assert chosen["augment"]["policy"] == "trivial"
    assert chosen["schedule"]["epochs"] == 10 / 8  # views by the images that a fold leaves, of half of the labels
    assert chosen["optimizer"]["lr"] == 3e-3 * (chosen["run"]["batch_size"] / 64) ** 0.5
    config = json.loads((output / "finetune" / "spark" / "0.5" / "1" / "config.json").read_text())
    assert config["data"]["label_share"] == 0.5
    assert config["model"]["encoder"] == str(output / "pretrain" / "spark" / "0" / "encoder.safetensors")
    assert not list(output.rglob("*.pt"))
    with pytest.raises(SystemExit, match=r"other settings \(views 20 there, 40 asked for\)"):
        study.main([*command, "--views", "40"])
    (tmp_path / "data" / "train" / "red" / "9.png").rename(tmp_path / "data" / "train" / "red" / "10.png")
    with pytest.raises(SystemExit, match=r"other settings \(images 20 .* there, 20 .* asked for\)"):
        study.main(command)
    assert "| SparK |" in (output / "table.md").read_text()


def test_lightly_is_asked_for_before_anything_begins(tmp_path: Path) -> None:
    command = ["--data", str(make_images(tmp_path / "data")), "--output", str(tmp_path / "study")]
    with pytest.raises(SystemExit, match="the arm simclr needs --lightly FOLDER; or leave it out by --arms"):
        study.main([*command, "--arms", "spark", "simclr"])
    assert study.main([*command, "--plan"]) == 0


def test_seeds_and_choices_of_an_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: dict[str, int] = {}

    def pretrain(run: Path, chosen: dict[str, int]) -> None:
        begun["/".join(run.parts[-3:])] = chosen["seed"]
        raise study.Interrupted("SIGINT")

    monkeypatch.setattr(study, "pretrain", pretrain)
    command = ["--data", str(make_images(tmp_path / "data")), "--output", str(tmp_path / "study")]
    for seed in range(2):
        for arm in ("spark", "spark-again"):
            assert study.main([*command, "--pretrain-seeds", "2", "--only", f"pretrain/{arm}/{seed}"]) == 75
    assert len(set(begun.values())) == len(begun) == 4
    choices = study.Study(study.parse([*command, "--pretrain-seeds", "2"])).choices
    assert list(choices("simclr")) == [f"choose/simclr/{setting}/{fold}" for setting in (2, 6) for fold in (0, 1)]
    assert len(choices("spark")) == 14


def test_table() -> None:
    score = {"images": 700, "setting": "1e-3"}
    results: dict[str, dict[str, Any]] = {
        "pretrain/spark/0": {"seconds": 1200},
        "knn/spark/0": {"top1": 0.5, **score},
        **{f"finetune/spark/0.25/{seed}": {"top1": top1, **score} for seed, top1 in enumerate((0.62, 0.64, 0.69))},
        **{f"finetune/scratch/0.25/{seed}": {"top1": top1, **score} for seed, top1 in enumerate((0.56, 0.60))},
        "choose/spark/0/0": {"top1": 0.6, **score},
    }
    lines = study.table(results).splitlines()
    assert "| SparK, 60% hidden |  | 65.0 ± 3.6 (3) |  | 50.0 (1) | 20 |" in lines
    assert "| from scratch |  | 58.0 ± 2.8 (2) |  |  |  |" in lines
    assert "| SparK, 60% hidden |  | +5.0 ± 1.0 |  |  |" in lines  # 6 and 4 points
    assert "| 1e-3 | 60.0 (1) |" in lines
