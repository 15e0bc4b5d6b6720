"""Channels and strides are measured, and of all maps the deepest of each resolution are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import FixedClassifier, conv_norm_relu
from sparkmim import Backbone


def test_last_map_of_each_resolution() -> None:
    """With its stride held at 16, a network offers two maps of stride 16."""
    backbone = Backbone.create("test_convnext", output_stride=16)
    assert backbone.levels == [(24, (4, 4)), (32, (8, 8)), (64, (16, 16))]


def test_four_deepest() -> None:
    module = nn.Sequential(*[conv_norm_relu(3 if i == 0 else 4, 4, 2) for i in range(6)])
    backbone = Backbone(module, stages=[str(i) for i in range(6)])
    assert backbone.strides == [(8, 8), (16, 16), (32, 32), (64, 64)]
    assert [m.shape[2:] for m in backbone(torch.zeros(1, 3, 128, 64))] == [(16, 8), (8, 4), (4, 2), (2, 1)]


def test_anisotropic_strides() -> None:
    module = nn.Sequential(conv_norm_relu(3, 4, (4, 2)), conv_norm_relu(4, 8, (1, 2)), conv_norm_relu(8, 6, 2))
    backbone = Backbone(module, stages=["0", "1", "2"])
    assert backbone.levels == [(4, (4, 2)), (8, (4, 4)), (6, (8, 8))]
    assert [m.shape[2:] for m in backbone(torch.zeros(1, 3, 16, 40))] == [(4, 20), (4, 10), (2, 5)]


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 7, 9, 10, 12, 14, 15, 16, 20, 24, 28, 30, 32, 48, 56, 64])
def test_strides_are_measured(stride: int) -> None:
    """Also where a map happens to divide an image that its stride does not: 224 pixels at stride 48 give 4."""
    backbone = Backbone(nn.Sequential(nn.Conv2d(3, 4, stride, stride)), stages=["0"])
    assert backbone.levels == [(4, (stride, stride))]


@pytest.mark.parametrize(("dims", "layer"), [(1, nn.Conv1d), (3, nn.Conv3d)])
def test_other_numbers_of_dimensions(dims: int, layer: type[nn.Module]) -> None:
    module = nn.Sequential(layer(2, 4, 16, 16), layer(4, 8, 2, 2))
    backbone = Backbone(module, stages=["0", "1"], in_chans=2)
    assert backbone.dims == dims
    assert backbone.levels == [(4, (16,) * dims), (8, (32,) * dims)]


def test_no_stages(network: FixedClassifier) -> None:
    with pytest.raises(ValueError, match="FixedClassifier offers no feature maps"):
        Backbone(network, stages=[])


def test_stage_that_is_not_a_map(network: FixedClassifier) -> None:
    with pytest.raises(ValueError, match=r"must offer maps \(B, C, \*size\); FixedClassifier gives .*\(1, 5\)"):
        Backbone(network, stages=["deep", "head"])
