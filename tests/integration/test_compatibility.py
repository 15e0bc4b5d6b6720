"""Run folders and encoder files of sparkmim 0.1.0 load, and their runs continue as if never interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_convnet
import torch
from safetensors.torch import load_file

from helpers import lines, make_data, make_images
from sparkmim import embed, finetune, load_encoder, predict, pretrain, reconstruct
from sparkmim.pretraining.model import load_run

OLD = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
WHOLE = json.loads((OLD / "uninterrupted.json").read_text())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the folders, for what continues them writes to them."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


def assert_same_metrics(run: Path, kind: str) -> None:
    """Other processors round differently, so not to the bit."""
    found = [
        {name: line[name] for name in line if name not in ("images_per_second", "peak_memory_bytes", "data_wait")}
        for line in lines(run)
    ]
    assert len(found) == len(WHOLE[kind])
    for ours, theirs in zip(found, WHOLE[kind], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_a_pretraining_continues(old: Path, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"data": make_images(tmp_path / "images")}
    outcome = pretrain(old / "pretrain", chosen=chosen, trust=True)
    assert outcome is not None
    assert outcome.step == outcome.steps == 5
    assert_same_metrics(old / "pretrain", "pretrain")
    config = json.loads((old / "pretrain" / "config.json").read_text())
    before = json.loads((OLD / "pretrain" / "config.json").read_text())
    assert all(config[group].keys() >= before[group].keys() for group in ("model", "data", "optimizer", "schedule"))
    assert {name: config["run"][name] for name in before["run"]} == before["run"], "new settings have their defaults"


def test_a_fine_tuning_continues(old: Path, tmp_path: Path) -> None:
    outcome = finetune(old / "finetune", chosen={"data": make_data(tmp_path / "labeled")}, trust=True)
    assert outcome is not None
    assert outcome.step == outcome.steps == 8
    assert_same_metrics(old / "finetune", "finetune")
    assert json.loads((old / "finetune" / "results.json").read_text())["test"]["images"] == 12


def test_settings_that_differ_are_refused(old: Path) -> None:
    with pytest.raises(ValueError, match=r"another configuration \(decoder_width: 8 there, 16 asked for\)"):
        pretrain(old / "pretrain", chosen={"decoder_width": 16}, trust=True)
    with pytest.raises(ValueError, match=r"another configuration \(ema: 0\.9 there, 0\.5 asked for\)"):
        finetune(old / "finetune", chosen={"ema": 0.5}, trust=True)


def test_an_encoder_file_loads() -> None:
    path = OLD / "pretrain" / "encoder.safetensors"
    network = tiny_convnet.build()
    network.load_state_dict(load_file(path))
    loaded = load_encoder(path, trust=True)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_checkpoints_and_models_are_used(old: Path, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 3)
    trained = load_run(old / "pretrain", trust=True)
    assert trained.step == 3
    assert trained.config.model.objective == "pixels"
    reconstruct(old / "pretrain", images, count=2, trust=True)
    assert embed(old / "pretrain" / "encoder.safetensors", images, workers=0, trust=True).features.shape == (3, 8)
    found = predict(old / "finetune", images, workers=0, device="cpu", trust=True)
    assert [prediction.error for prediction in found] == ["", "", ""]
    assert all(prediction.classes[0] in ("blue", "green", "red") for prediction in found)
