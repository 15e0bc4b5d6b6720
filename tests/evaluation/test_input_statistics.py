"""Mean and deviation of a frozen network's input: recorded, published, or measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from sparkmim.checkpoints.encoder import (
    input_of_weights,
    load_trained_encoder,
    network_metadata,
    read_network_metadata,
    save_encoder,
)
from sparkmim.checkpoints.state import PARTS
from sparkmim.data.config import DataConfig
from sparkmim.data.sources.folder import find_images
from sparkmim.evaluation.features import embed, input_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("floats")
    for number in range(3):
        np.save(root / f"{number}.npy", np.random.default_rng(number).normal(300, 10, (3, 32, 32)))
    return root


def test_images_are_measured_where_nothing_is_known(folder: Path, tmp_path: Path) -> None:
    network = load_trained_encoder("none", "test_resnet")
    data = input_for(network, find_images(folder))
    np.testing.assert_allclose(data.mean, [300] * 3, rtol=0.01)
    np.testing.assert_allclose(data.std, [10] * 3, rtol=0.1)
    features = embed("none", folder, model="test_resnet", image_size=32, workers=0).features
    assert np.abs(features).max() < 100, "inputs of 1300 deviations would be seen"


@pytest.mark.parametrize("weights", ["file", "recorded"])
def test_what_is_known_is_used(folder: Path, tmp_path: Path, weights: str) -> None:
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=0)
    path = tmp_path / "x.safetensors"
    view = DataConfig(image_size=(64, 64), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), nodata=-1.0, pages="first")
    metadata = network_metadata("test_resnet", (), 3, view) if weights == "recorded" else {}
    save_encoder(module, path, metadata)
    network = load_trained_encoder(path, "test_resnet")
    data = input_for(network, find_images(folder))
    known = input_of_weights(str(path), network.backbone)
    if weights == "recorded":
        assert (data.mean, data.std, data.nodata, data.pages) == (view.mean, view.std, -1.0, "first")
        assert read_network_metadata(path)["max_pixels"] == view.max_pixels
    else:
        assert data.mean == tuple(module.pretrained_cfg["mean"])
        assert data.std == tuple(module.pretrained_cfg["std"])
    assert tuple(known["mean"]) == data.mean
    assert input_of_weights("none", network.backbone) == {}


def test_weights_to_start_from_are_read_as_data(tmp_path: Path) -> None:
    """What names code gives its statistics, and the code does not run; what cannot be is refused."""
    network = load_trained_encoder("none", "test_resnet")
    (tmp_path / "net.py").write_text("raise SystemExit('it ran')\n")
    view = DataConfig(image_size=(64, 64), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    path = tmp_path / "x.safetensors"
    save_encoder(network.backbone.module, path, network_metadata(f"{tmp_path}/net.py:make", (), 3, view))
    assert input_of_weights(path, network.backbone)["mean"] == [1, 2, 3]
    save_encoder(network.backbone.module, path, {"sparkmim": '{"mean": [1e999, 0, 0]}'})
    with pytest.raises(ValueError, match=r"x\.safetensors is not an encoder of this project"):
        input_of_weights(path, network.backbone)
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.pt is empty: not a checkpoint"):
        input_of_weights(tmp_path / "empty.pt", network.backbone)


def test_a_checkpoint_to_start_from_tells_its_input(tmp_path: Path) -> None:
    network = load_trained_encoder("none", "test_resnet")
    data = {"image_size": [64, 64], "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "nodata": -1.0}
    config = json.dumps({"model": {"model": "test_resnet", "encoder": "none"}, "data": data})
    parts = {name: {} for name in PARTS} | {"config": config, "step": 1, "model": network.backbone.module.state_dict()}
    torch.save(parts, tmp_path / "x.pt")
    known = input_of_weights(tmp_path / "x.pt", network.backbone)
    assert (known["mean"], known["std"], known["nodata"]) == ([1, 2, 3], [4, 5, 6], -1)
