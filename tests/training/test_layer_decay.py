"""Groups of layers by depth: the authors' own for their networks, and sensible ones for any other."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from helpers import build_classifier
from sparkmim.models.backbone import Backbone
from sparkmim.training.layer_decay import decayed_groups, layer_groups
from sparkmim.transfer.network import Network, PooledNetwork


def classifier_of(name: str, **settings: Any) -> Network:
    module = timm.create_model(name, num_classes=5, **settings)
    return Network(module, Backbone(module), module)


def official_resnet(name: str, blocks2: int, blocks3: int, depths: tuple[int, ...]) -> int:
    """`resnets_get_layer_id_and_scale_exp` of the authors' `downstream_imagenet/models/__init__.py`."""
    n2, n3 = math.ceil(depths[1] / blocks2), math.ceil(depths[2] / blocks3)
    last = 2 + n2 + n3
    if not name.startswith("layer"):
        return last + 1 if name.startswith("fc.") else 0
    stage, block = int(name.split(".")[0][5:]), int(name.split(".")[1])
    return {1: 1, 2: 2 + block // blocks2, 3: 2 + n2 + block // blocks3, 4: last}[stage]


def official_convnext(name: str, depths: tuple[int, ...]) -> int:
    """`convnext_get_layer_id_and_scale_exp`, with timm's names."""
    last = 12 if depths[2] > 9 else 6
    if name.startswith("stem"):
        return 0
    if not name.startswith("stages"):
        return last + 1
    parts = name.split(".")
    stage, block = int(parts[1]), int(parts[3]) if parts[2] == "blocks" else 0
    return {0: 1, 1: 2, 2: 3 + block // 3, 3: last}[stage]


@pytest.mark.parametrize(("name", "depths"), [("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3))])
def test_resnets_are_grouped_as_by_the_authors(name: str, depths: tuple[int, ...]) -> None:
    groups = layer_groups(classifier_of(name))
    assert groups == {key: official_resnet(key, 2, 3, depths) for key in groups}


@pytest.mark.parametrize("depth", [9, 27])
def test_convnexts_are_grouped_as_by_the_authors(depth: int) -> None:
    depths = (3, 3, depth, 3)
    groups = layer_groups(classifier_of("convnext_atto", depths=depths, dims=(8, 16, 24, 32)))
    assert groups == {key: official_convnext(key, depths) for key in groups}


class Own(nn.Module):
    """Stages of blocks of its own, registered without any name that others use."""

    def __init__(self) -> None:
        super().__init__()
        block = lambda: nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())  # noqa: E731
        self.enter = nn.Conv2d(3, 8, 4, 4)
        self.alpha = nn.ModuleList([Residual(block()) for _ in range(4)])
        self.down = nn.Conv2d(8, 8, 2, 2)
        self.omega = nn.ModuleList([Residual(block())])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for part in self.alpha:
            x = part(x)
        x = self.down(x)
        for part in self.omega:
            x = part(x)
        return x


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def test_own_network() -> None:
    backbone = Backbone(Own(), ["alpha.3", "omega.0"])
    module = PooledNetwork(backbone, nn.Linear(backbone.channels[-1], 5))
    by_group = defaultdict(set)
    for name, group in layer_groups(Network(module, backbone, backbone.module)).items():
        by_group[group].add(".".join(name.split(".")[:3]).removesuffix(".weight").removesuffix(".bias"))
    assert dict(by_group) == {
        0: {"encoder.enter"},
        1: {"encoder.alpha.0", "encoder.alpha.1"},
        2: {"encoder.alpha.2", "encoder.alpha.3"},
        3: {"encoder.down", "encoder.omega.0"},
        4: {"head"},
    }


@pytest.mark.parametrize(
    ("name", "depths", "block"),
    [
        ("regnety_016", (2, 6, 17, 2), "s{stage}.b{block}."),
        ("densenet121", (6, 12, 24, 16), "features.denseblock{stage}.denselayer{block}."),
    ],
)
def test_stages_are_divided_however_their_blocks_are_kept(name: str, depths: tuple[int, ...], block: str) -> None:
    groups = layer_groups(classifier_of(name))
    expected, first = {}, 1
    for stage, depth in enumerate(depths, 1):
        parts = math.ceil(depth / 3)
        for number in range(depth):
            expected[block.format(stage=stage, block=number + 1)] = first + number // math.ceil(depth / parts)
        first += parts
    found = {prefix: {group for key, group in groups.items() if key.startswith(prefix)} for prefix in expected}
    assert found == {prefix: {group} for prefix, group in expected.items()}
    assert groups["stem.conv.weight" if name == "regnety_016" else "features.conv0.weight"] == 0
    assert max(groups.values()) == first


@pytest.mark.parametrize("name", ["vovnet39a", "hgnet_tiny", "inception_v4"])
def test_nothing_of_a_stage_goes_with_what_comes_before_it(name: str) -> None:
    groups = layer_groups(classifier_of(name))
    assert groups[next(iter(groups))] == 0
    assert list(groups.values()) == sorted(groups.values())


def test_rates_fall_with_depth_and_every_parameter_is_in_one_group() -> None:
    classifier = classifier_of("test_convnext")
    groups = decayed_groups(classifier, 0.5)
    count = 1 + max(layer_groups(classifier).values())
    assert {group["lr_scale"] for group in groups} == {0.5**power for power in range(count)}
    found = [id(parameter) for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    assert sorted(found) == sorted(id(parameter) for parameter in classifier.module.parameters())
    for group in groups:
        for parameter in group["params"]:  # type: ignore[attr-defined]
            assert parameter.ndim > 1 or group["weight_decay_scale"] == 0.0
    head = {id(p) for p in classifier.module.head.fc.parameters()}  # type: ignore[union-attr]
    assert {g["lr_scale"] for g in groups for p in g["params"] if id(p) in head} == {1.0}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_050", "regnetx_002", "densenet121"])
def test_other_families_get_several_groups(name: str) -> None:
    groups = layer_groups(classifier_of(name))
    assert sorted(set(groups.values())) == list(range(1 + max(groups.values())))
    assert max(groups.values()) >= 4
    first = next(iter(groups))
    assert groups[first] == 0
    assert groups[list(groups)[-1]] == max(groups.values())


def test_file_of_a_network(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("import torchvision\ndef make(): return torchvision.models.resnet18()\n")
    classifier = build_classifier(4, model=f"{file}:make")
    groups = layer_groups(classifier)
    assert (groups["encoder.conv1.weight"], groups["encoder.layer4.1.conv2.weight"]) == (0, 4)
    assert groups["head.weight"] == 5
    assert classifier.module(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
