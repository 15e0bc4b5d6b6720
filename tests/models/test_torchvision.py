"""torchvision's networks as plain modules: their stages are found by running them, and they work on visible patches.

Members that repeat another's structure are left out; `sparkmim check torchvision.models:wide_resnet50_2` is for those.
"""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.ops import StochasticDepth

from sparkmim import Backbone, SparK
from sparkmim.models.factory import load_backbone, takes_drop_path
from sparkmim.models.masking import random_visible
from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, run

HEADLESS: dict[str, Any] = {"aux_logits": False, "init_weights": False}  # without the auxiliary classifiers

NETWORKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "resnet18": ({}, ["layer1", "layer2", "layer3", "layer4"]),
    "convnext_tiny": ({}, ["features.1", "features.3", "features.5", "features"]),
    "efficientnet_b0": ({}, ["features.2", "features.3", "features.5", "features"]),
    "regnet_y_400mf": ({}, [*(f"trunk_output.block{i}" for i in (1, 2, 3)), "trunk_output"]),
    "densenet121": ({}, [*(f"features.denseblock{i}" for i in (1, 2, 3)), "features"]),
    "mobilenet_v2": ({}, ["features.3", "features.6", "features.13", "features"]),
    "mobilenet_v3_small": ({}, ["features.1", "features.3", "features.8", "features"]),
    "shufflenet_v2_x0_5": ({}, ["maxpool", "stage2", "stage3", "conv5"]),
    "mnasnet0_5": ({}, ["layers.8", "layers.9", "layers.11", "layers"]),
    "squeezenet1_0": ({}, ["features.1", "features.5", "features.10", "classifier.2"]),
    "googlenet": (HEADLESS, ["conv3", "inception3b", "inception4e", "inception5b"]),
    "inception_v3": (HEADLESS, ["Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"]),
}


def made(name: str, short: bool = False) -> nn.Module:
    """The network; a ConvNeXt on request with fewer and narrower blocks, for its full size would take a minute."""
    torch.manual_seed(0)
    if short and name == "convnext_tiny":
        return ConvNeXt([CNBlockConfig(w, None if w == 192 else 2 * w, 2) for w in (24, 48, 96, 192)], 0.1)
    return torchvision.models.get_model(name, weights=None, **NETWORKS[name][0])


def last_of_each_size(network: nn.Module, stages: list[str]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the named outputs, by resolution."""
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    for stage in stages:
        network.get_submodule(stage).register_forward_hook(
            lambda module, args, out: shapes.__setitem__(tuple(out.shape[2:]), tuple(out.shape))
        )
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, 224, 224))
    return shapes


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_stages_and_properties(name: str) -> None:
    """Each map of the pyramid is the output of the submodule one would name oneself, and all properties hold."""
    stages = NETWORKS[name][1]
    backbone = Backbone(made(name, short=True))
    assert backbone.strides[-1] == ((16, 16) if name == "squeezenet1_0" else (32, 32))
    assert Backbone(made(name, short=True), stages=stages).levels == backbone.levels
    assert len(last_of_each_size(made(name, short=True), stages)) == 4, "one map of each resolution"
    report = backbone.check(grid=(2, 3))
    assert len(report.results) == 8
    assert report.passed, f"\n{report}"


LIKE_TIMM = {
    "resnet18": "resnet18",
    "densenet121": "densenet121",
    "regnet_y_400mf": "regnety_004",
    "convnext_tiny": "convnext_tiny",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "inception_v3": "inception_v3",
    # These end with a pointwise convolution that timm counts to the classifier: it is pretrained too.
    "mobilenet_v2": "mobilenetv2_100",
    "efficientnet_b0": "efficientnet_b0",
    "mnasnet0_5": "mnasnet_050",
}


@pytest.mark.parametrize("name", LIKE_TIMM)
def test_pyramid_is_that_of_timm(name: str) -> None:
    settings: dict[str, Any] = {"aux_logits": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        known = timm.create_model(LIKE_TIMM[name], num_classes=0, **settings)
    theirs = [(info["num_chs"], info["reduction"]) for info in known.feature_info][-4:]
    ours = [(level.channels, level.stride[0]) for level in Backbone(made(name)).levels]
    assert ours[:-1] == theirs[:-1]
    assert ours[-1][1] == theirs[-1][1] == 32
    assert ours[-1][0] == (1280 if name in ("mobilenet_v2", "efficientnet_b0", "mnasnet0_5") else theirs[-1][0])


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_stand_beside_the_maps(name: str) -> None:
    """They run in training mode, before the deepest map, and pool to fixed sizes, which no map needs."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, aux_logits=True, init_weights=False)
    network = network.double().train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = torch.randn(2, 3, 96, 96).double()
    visible = random_visible(2, (3, 3), 0.6, torch.Generator().manual_seed(0))
    losses = []
    for execution in ("packed", "masked-dense"):
        torch.manual_seed(0)
        model = SparK(network, decoder_width=32, execution=execution).double()
        losses.append(model(images, visible).loss)
    torch.testing.assert_close(*losses)
    assert any("aux" in path.lower() for path in model.backbone.unreached)


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_stochastic_depth_is_drawn_once_an_image(mode: str) -> None:
    network = nn.Sequential(nn.Conv2d(2, 5, 1), StochasticDepth(0.5, mode))
    images = torch.randn(6, 2, 8, 8)
    visible = torch.zeros(6, 4, 4, dtype=torch.bool)
    visible[:, 1:, :2] = True
    grid = PatchGrid(visible, 6)

    def drawn(run: Any) -> Tensor:
        torch.manual_seed(3)
        return run()

    ordinary = drawn(lambda: network(images))
    packed = drawn(lambda: run(SparseExecution(grid), network, images)[0])
    dense = drawn(lambda: run(MaskedDenseExecution(grid), network, images)[0])
    torch.testing.assert_close(packed, grid.pack(ordinary))
    torch.testing.assert_close(grid.pack(dense), packed)
    zeros = ordinary.flatten(1).abs().amax(1) == 0
    assert zeros.any() if mode == "row" else zeros.all() or not zeros.any()
    network.eval()
    torch.testing.assert_close(run(SparseExecution(grid), network, images)[0], grid.pack(network(images)))


# --- by the name of a module ----------------------------------------------------------------------------------------


def test_function_of_a_module() -> None:
    backbone = load_backbone("torchvision.models:mobilenet_v3_small")
    assert isinstance(backbone.module, torchvision.models.MobileNetV3)
    assert backbone.channels == [16, 24, 48, 576]
    assert not takes_drop_path("torchvision.models:mobilenet_v3_small")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("torchvision.models:resnet51", "torchvision.models defines no function 'resnet51'; did you mean resnet50"),
        ("torchvision.nothing:resnet50", "is not FILE.py:FUNCTION, nor MODULE:FUNCTION of a module"),
        (":resnet50", "is not FILE.py:FUNCTION, nor MODULE:FUNCTION of a module"),
        ("torchvision.models:", "defines no function ''"),
    ],
)
def test_function_that_is_not_there(model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(model)
