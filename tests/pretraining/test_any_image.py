"""Runs from end to end on images that are no square RGB photographs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from sparkmim import cli

pytestmark = pytest.mark.slow


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sparkmim", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("channels", "size", "stored"),
    [(1, (128, 608), (130, 620)), (13, (64, 96), (70, 100))],
    ids=["spectrogram", "thirteen_bands"],
)
def test_from_end_to_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    channels: int,
    size: tuple[int, int],
    stored: tuple[int, int],
) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    noise = np.random.default_rng(0)
    for i in range(6):
        array = noise.normal(-40, 12, (channels, *stored))
        np.save(images / f"{i}.npy", array[0] if channels == 1 else array)
    code = command(
        monkeypatch,
        *("pretrain", "--model", "test_resnet", "--data", images, "--output", run, "--in-chans", channels),
        *("--image-size", *size, "--crop", "native", "--flip", "off", "--decoder-width", 32, "--batch-size", 3),
        *("--epochs", 2, "--warmup-epochs", 0, "--workers", 0, "--pictures", 1),
    )
    assert code == 0
    config = json.loads((run / "config.json").read_text())
    np.testing.assert_allclose(config["data"]["mean"], [-40] * channels, atol=1)  # measured, as they are not 0 to 1
    np.testing.assert_allclose(config["data"]["std"], [12] * channels, atol=1)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert all(0.8 < loss < 1.3 for loss in losses)
    network = timm.create_model("test_resnet", num_classes=0, in_chans=channels)
    network.load_state_dict(load_file(run / "encoder.safetensors"))
    assert network(torch.zeros(1, channels, *size)).isfinite().all()
    assert list((run / "reconstructions").glob("step-*.png"))
    features = tmp_path / "features.npz"
    assert (
        command(monkeypatch, "embed", "--encoder", run / "encoder.safetensors", "--data", images, "--output", features)
        == 0
    )
    assert np.load(features)["features"].shape[0] == 6
    capsys.readouterr()
    assert command(monkeypatch, "stats", "--data", images, "--in-chans", channels) == 0
    printed = capsys.readouterr().out.split()
    assert [float(v) for v in printed[1 : channels + 1]] == config["data"]["mean"]
