"""Stages that a network does not name are found by running it."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from sparkmim import Backbone, SparK


def test_module_that_cannot_be_run_asks_for_stages() -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(), nn.Linear(9, 9))
    wanted = r"Sequential does not offer its feature maps.*stages=\[\.\.\.\]\), of 0, 1, 2"
    with pytest.raises(ValueError, match=wanted):
        Backbone(fixed)
    with pytest.raises(ValueError, match=wanted):
        SparK(fixed)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        pytest.param(
            "vgg11_bn", ["features.6", "features.13", "features.20", "features.27", "features"], marks=pytest.mark.slow
        ),
        pytest.param(
            "densenet121",
            ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features"],
            marks=pytest.mark.slow,
        ),
        ("mobilenet_v2", ["features.3", "features.6", "features.13", "features"]),
        ("efficientnet_b0", ["features.2", "features.3", "features.5", "features"]),
        ("regnet_y_400mf", [*(f"trunk_output.block{n}" for n in (1, 2, 3)), "trunk_output"]),
        pytest.param("convnext_tiny", ["features.1", "features.3", "features.5", "features"], marks=pytest.mark.slow),
    ],
)
def test_stages_are_found(name: str, stages: list[str]) -> None:
    module = getattr(torchvision.models, name)(weights=None).eval()
    found, named = Backbone(module), Backbone(copy.deepcopy(module), stages)
    assert found.levels == named.levels
    images = torch.randn(1, 3, 64, 96)
    for a, b in zip(found(images), named(images), strict=True):
        assert torch.equal(a, b)
