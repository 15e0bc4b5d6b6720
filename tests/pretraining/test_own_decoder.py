"""`--decoder own` in whole runs: resumed, started from, and left in the encoder's file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from helpers import TINY_PRETRAIN, assert_same_training, final, interrupt_at, record
from sparkmim.checkpoints.encoder import load_encoder
from sparkmim.models.own_decoder import OwnDecoder
from sparkmim.objectives.pixels import Pixels
from sparkmim.pretraining.model import build_model, load_run
from sparkmim.pretraining.run import pretrain

pytestmark = pytest.mark.slow

UNET = """
import torch
from torch import nn

def block(i, o, stride=1):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o), nn.ReLU())

class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([block(3, 4), block(4, 8, 4), block(8, 8, 4)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(8, 8, 4, 4), nn.ConvTranspose2d(8, 4, 4, 4)])
        self.join = nn.ModuleList([block(16, 8), block(8, 4)])
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        for up, join in zip(self.up, self.join):
            x = join(torch.cat([up(x), skips.pop()], 1))
        return self.head(x)
"""


@pytest.fixture
def network(tmp_path: Path) -> str:
    path = tmp_path / "unet.py"
    path.write_text(UNET)
    return f"{path}:UNet"


def test_encoder_and_decoder_are_trained_resumed_and_transferred(tmp_path: Path, images: Path, network: str) -> None:
    chosen = TINY_PRETRAIN | {"data": images, "model": network, "decoder": "own", "objective.normalize": False}
    del chosen["decoder_width"]
    lines: list[str] = []
    whole = tmp_path / "whole"
    record(lines, pretrain, whole, chosen=chosen)
    assert any("its own decoder; projections and mask embeddings" in line for line in lines)
    assert json.loads((whole / "config.json").read_text())["objective"] == {"normalize": False}
    for stop in (3, None):
        pretrain(tmp_path / "run", chosen=chosen, after_step=interrupt_at(stop) if stop else None)
    assert_same_training(tmp_path / "run", whole)

    model = load_run(whole, chosen={"model": network}).model
    assert isinstance(model.decoder, OwnDecoder)
    assert isinstance(model.objective, Pixels)
    assert not model.objective.settings.normalize
    assert model.unreached == ["head.weight", "head.bias"]
    saved = safetensors.torch.load_file(whole / "encoder.safetensors")
    ordinary: nn.Module = load_encoder(whole, network)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(saved[name], tensor), "the file holds the decoder too"
        assert torch.equal(ordinary.state_dict()[name], tensor), name

    config = load_run(whole, chosen={"model": network}).config
    started = build_model(replace(config.model, init=str(whole)), config.objective).state_dict()
    for name, tensor in final(whole)["model"].items():
        assert torch.equal(started[name], tensor), "a run is started from all weights of another"


@pytest.mark.parametrize("setting", [{"decoder_width": 64}, {"decoder_block": "convnext"}])
def test_settings_without_effect(tmp_path: Path, images: Path, network: str, setting: dict[str, object]) -> None:
    chosen = {**TINY_PRETRAIN, "data": images, "model": network, "decoder": "own"}
    del chosen["decoder_width"]
    with pytest.raises(ValueError, match=r"--decoder-(width 64|block convnext) has no effect with --decoder own"):
        pretrain(tmp_path / "run", chosen=chosen | setting)


def test_a_network_without_a_decoder(tmp_path: Path, images: Path) -> None:
    chosen = {**TINY_PRETRAIN, "data": images, "decoder": "own"}
    del chosen["decoder_width"]
    with pytest.raises(ValueError, match=r"use decoder='unet'"):
        pretrain(tmp_path / "run", chosen=chosen)
