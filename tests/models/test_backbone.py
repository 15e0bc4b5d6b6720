"""Networks as pyramids of feature maps, which are otherwise left as they were."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import sparkmim
from helpers import FixedClassifier, conv_norm_relu
from sparkmim import Backbone, SparK

STAGES = FixedClassifier.stages
RESNET_STAGES = ["layer1", "layer2", "layer3", "layer4"]
RESNET18 = [(64, (4, 4)), (128, (8, 8)), (256, (16, 16)), (512, (32, 32))]


# --- which maps -----------------------------------------------------------------------------------------------------


def test_timm_name() -> None:
    backbone = Backbone.create("resnet18")
    assert backbone.levels == RESNET18
    assert backbone.channels == [64, 128, 256, 512]
    assert backbone.strides == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert backbone.dims == 2
    assert not any(name.startswith("fc") for name in backbone.module.state_dict()), "without classifier"


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_byobnet", "mobilenetv3_small_050"])
def test_timm_families(name: str) -> None:
    """Measured, not looked up; and what timm looks up is the same."""
    backbone = Backbone.create(name)
    declared = timm.create_model(name, features_only=True).feature_info
    assert backbone.channels == declared.channels()[-4:]
    assert backbone.strides == [(stride, stride) for stride in declared.reduction()[-4:]]


def test_timm_module_with_classifier() -> None:
    module = timm.create_model("resnet18", num_classes=10)
    backbone = Backbone(module)
    assert backbone.levels == RESNET18
    assert backbone.module is module


def test_timm_module_gives_its_intermediates() -> None:
    module = timm.create_model("resnet18").eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = Backbone(module)(images)
        wanted = module.forward_intermediates(images, intermediates_only=True)[1:]
    for ours, theirs in zip(maps, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_torchvision() -> None:
    module = torchvision.models.resnet18().eval()
    backbone = Backbone(module, stages=RESNET_STAGES)
    assert backbone.levels == RESNET18
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = backbone(images)
        x = module.maxpool(module.relu(module.bn1(module.conv1(images))))
        for stage, ours in zip(RESNET_STAGES, maps, strict=True):
            x = getattr(module, stage)(x)
            assert torch.equal(ours, x)


def test_stages_of_a_plain_module(network: FixedClassifier) -> None:
    backbone = Backbone(network, stages=STAGES)
    assert backbone.levels == [(4, (2, 2)), (8, (4, 4)), (10, (8, 8))], "of the two maps of stride 4 the last one"


def test_stages_take_precedence_over_timms_own_maps() -> None:
    module = timm.create_model("resnet18")
    assert Backbone(module, stages=["layer2.0", "layer4"]).levels == [RESNET18[1], RESNET18[3]]


@pytest.mark.parametrize("in_chans", [1, 5])
def test_in_chans(in_chans: int) -> None:
    named = Backbone.create("test_resnet", in_chans=in_chans)
    assert {p.shape[1] for p in named.module.parameters() if p.ndim == 4 and p.shape[2:] == (3, 3)} >= {in_chans}
    module = Backbone(FixedClassifier(in_chans), stages=STAGES, in_chans=in_chans)
    for backbone in (named, module):
        assert backbone.in_chans == in_chans
        maps = backbone(torch.zeros(1, in_chans, 64, 64))
        assert [m.shape[1] for m in maps] == backbone.channels


def test_dtype_of_the_network() -> None:
    backbone = Backbone(FixedClassifier().double(), stages=STAGES)
    assert {m.dtype for m in backbone(torch.zeros(1, 3, 16, 16).double())} == {torch.float64}


# --- what is refused ------------------------------------------------------------------------------------------------


def test_unknown_timm_name_suggests_near_ones() -> None:
    with pytest.raises(ValueError, match=r"timm knows no model called 'resnet5O'; did you mean .*\bresnet50\b"):
        Backbone.create("resnet5O")
    with pytest.raises(ValueError, match=r"timm knows no model called 'conv_next_tiny'; did you mean .*convnext_tiny"):
        SparK("conv_next_tiny")
    with pytest.raises(ValueError, match=r"'\$\$\$'; timm.list_models\(\) lists the names"):
        Backbone.create("$$$")


@pytest.mark.parametrize("stages", [[], None])
def test_module_without_convolutions(stages: list[str] | None) -> None:
    with pytest.raises(ValueError, match="Sequential has no convolution, so it offers no feature maps"):
        Backbone(nn.Sequential(nn.Linear(3, 3)), stages=stages)


# --- what is left as it was -----------------------------------------------------------------------------------------


def test_probing_leaves_no_trace(network: FixedClassifier) -> None:
    network.train()
    network.wide.eval()
    network.deep[1].eval()
    modes = [m.training for m in network.modules()]
    state = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    backbone = Backbone(network, stages=STAGES)
    backbone.unreached_parameters()
    backbone.blank_image((8, 8))
    assert [m.training for m in network.modules()] == modes
    assert len(set(modes)) == 2
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_modes_are_restored_after_an_error(network: FixedClassifier) -> None:
    network.train()
    network.wide.eval()
    modes = [m.training for m in network.modules()]
    with pytest.raises(ValueError, match="must offer maps"):
        Backbone(network, stages=["head"])
    assert [m.training for m in network.modules()] == modes


def test_check_works_on_a_copy(network: FixedClassifier) -> None:
    backbone = Backbone(network, stages=STAGES)
    state = copy.deepcopy(network.state_dict())
    report = backbone.check(modes=["train"])
    assert report.passed, str(report)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


# --- unreached parameters -------------------------------------------------------------------------------------------


def test_unreached_parameters(network: FixedClassifier) -> None:
    assert Backbone(network, stages=STAGES).unreached_parameters() == ["head.weight", "head.bias"]
    assert Backbone(network, stages=["stem", "wide"]).unreached_parameters() == [
        name for name, _ in network.named_parameters() if name.startswith(("same", "deep", "head"))
    ]


def test_unreached_parameters_between_stages() -> None:
    """A branch to the side of the maps is not reached, though it runs before the last one."""

    class Sided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.side, self.deep = conv_norm_relu(3, 4, 4), conv_norm_relu(4, 4), conv_norm_relu(4, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            self.side(x)
            return self.deep(x)

    network = Sided()
    unreached = Backbone(network, stages=["stem", "deep"]).unreached_parameters()
    assert unreached == [f"side.{name}" for name, _ in network.side.named_parameters()]


def test_frozen_parameters_are_not_reported(network: FixedClassifier) -> None:
    """Whether they are reached cannot be read off the graph, and whoever froze them knows."""
    network.stem.requires_grad_(False)
    network.head.bias.requires_grad_(False)
    backbone = Backbone(network, stages=STAGES)
    assert backbone.unreached_parameters() == ["head.weight"]
    assert not any(p.requires_grad for p in network.stem.parameters())


def test_unreached_parameters_of_timm_networks() -> None:
    assert Backbone.create("test_resnet").unreached_parameters() == []
    assert Backbone.create("test_convnext").unreached_parameters() == ["head.norm.weight", "head.norm.bias"]


# --- copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stages", "timm"])
def test_copy_of_a_model_is_independent(kind: str, network: FixedClassifier) -> None:
    torch.manual_seed(0)
    model = SparK(Backbone(network, stages=STAGES) if kind == "stages" else "test_resnet", decoder_width=32)
    model.eval()
    images, visible = torch.randn(2, 3, 64, 64), sparkmim.random_visible(2, model.grid_shape((64, 64)), 0.5)
    before = [m.detach() for m in model.encode(images, visible)]
    state = copy.deepcopy(model.state_dict())
    other = copy.deepcopy(model)
    assert other.backbone.module is other.encoder
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    other.train()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(images, visible).loss.backward()
    optimizer.step()
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for ours, theirs in zip(model.encode(images, visible), before, strict=True):
        assert torch.equal(ours, theirs)
    changed = [m.detach() for m in other.eval().encode(images, visible)]
    assert all(not torch.equal(ours, theirs) for ours, theirs in zip(changed, before, strict=True))
