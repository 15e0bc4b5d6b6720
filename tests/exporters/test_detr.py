"""Bodies of Hugging Face's detectors compute what the encoder does, and no tensor is left out."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import timm
import torch

from sparkmim.exporters.detr import rt_detr_name, to_detr, to_rt_detr
from sparkmim.exporters.equivalence import Mismatch


def make(name: str) -> Any:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if "running_var" in key:
                tensor.uniform_(0.5, 1.5)
    return network


NAMES = [
    ("conv1.3.weight", "embedder.embedder.1.convolution.weight"),
    ("bn1.running_mean", "embedder.embedder.2.normalization.running_mean"),
    ("layer1.0.downsample.1.weight", "encoder.stages.0.layers.0.shortcut.convolution.weight"),
    ("layer3.0.downsample.2.bias", "encoder.stages.2.layers.0.shortcut.1.normalization.bias"),
    ("layer4.11.conv3.weight", "encoder.stages.3.layers.11.layer.2.convolution.weight"),
    ("layer2.1.bn1.weight", "encoder.stages.1.layers.1.layer.0.normalization.weight"),
]


@pytest.mark.parametrize(("ours", "theirs"), NAMES)
def test_names_of_rt_detr(ours: str, theirs: str) -> None:
    assert rt_detr_name(ours) == theirs


@pytest.mark.slow
def test_rt_detr_takes_every_tensor_of_its_body() -> None:
    network = make("resnet50d")
    body = to_rt_detr(network)
    assert len(body.weights) == len(network.state_dict()) == len(set(body.weights))
    assert all(key.startswith(("embedder.", "encoder.stages.")) for key in body.weights)
    assert body.blocks == (3, 4, 6, 3)


@pytest.mark.slow
def test_transformers_computes_the_same() -> None:
    """Where transformers is installed."""
    transformers = pytest.importorskip("transformers")
    module = import_module("transformers.models.rt_detr.modeling_rt_detr_resnet")
    network, image = make("resnet50d"), torch.randn(1, 3, 64, 96)
    config = transformers.RTDetrResNetConfig(out_features=["stage2", "stage3", "stage4"])
    other = module.RTDetrResNetBackbone(config).eval()
    other.load_state_dict(to_rt_detr(network).weights)
    with torch.no_grad():
        theirs, mine = other(image).feature_maps, network.forward_intermediates(image, intermediates_only=True)[2:]
    for one, two in zip(theirs, mine, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(two.abs().max()))


def test_detr_has_torchvisions_names() -> None:
    body = to_detr(make("resnet18"))
    assert body.name == "resnet18"
    assert body.blocks == (2, 2, 2, 2)
    assert {"conv1.weight", "layer4.1.bn2.running_var"} <= body.weights.keys()
    assert not any(key.startswith("fc.") for key in body.weights)


@pytest.mark.parametrize(
    ("convert", "name", "said"),
    [
        (to_rt_detr, "resnet18d", "RT-DETR has timm's resnet50d, resnet101d, resnet152d .* ResNet is another"),
        (to_rt_detr, "resnet18", "--format detr"),
        (to_detr, "resnet18d", "no network with the structure"),
        (to_detr, "mobilenetv2_100", "this is torchvision's mobilenet_v2"),
    ],
)
def test_other_networks_are_refused(convert: Any, name: str, said: str) -> None:
    with pytest.raises(Mismatch, match=said):
        convert(make(name))
