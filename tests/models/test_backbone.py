"""Any network as a pyramid: which maps, their channels and strides, and what is left as it was."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import sparkmim
from sparkmim import Backbone, SparK

STAGES = ["layer1", "layer2", "layer3", "layer4"]


def conv(
    inputs: int, outputs: int, stride: int | tuple[int, ...] = 1, kernel: int = 3, padding: int = 1
) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs), nn.ReLU())


class Classifier(nn.Module):
    """Strides 2, 4, 4, 8 and a head that only fits maps of 7 x 7, as VGG's: it cannot run on patches."""

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        self.stem = conv(in_chans, 4, 2)
        self.wide = conv(4, 6, 2)
        self.same = conv(6, 8)
        self.deep = conv(8, 10, 2)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.head = nn.Linear(10 * 49, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.same(self.wide(self.stem(x))))
        return self.head(self.pool(x).flatten(1))


ALL = ["stem", "wide", "same", "deep"]


@pytest.fixture
def network() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


def levels(backbone: Backbone) -> list[tuple[int, tuple[int, ...]]]:
    return [tuple(level) for level in backbone.levels]


RESNET18 = [(64, (4, 4)), (128, (8, 8)), (256, (16, 16)), (512, (32, 32))]


# --- which maps -----------------------------------------------------------------------------------------------------


def test_timm_name() -> None:
    backbone = Backbone.create("resnet18")
    assert levels(backbone) == RESNET18
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
    assert levels(backbone) == RESNET18
    assert backbone.module is module


def test_timm_module_gives_its_intermediates() -> None:
    module = timm.create_model("resnet18").eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = Backbone(module)(images)
        wanted = module.forward_intermediates(images, intermediates_only=True)[1:]
    for ours, theirs in zip(maps, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_last_map_of_each_resolution() -> None:
    """With its stride held at 16, a network offers two maps of stride 16."""
    backbone = Backbone.create("test_convnext", output_stride=16)
    assert levels(backbone) == [(24, (4, 4)), (32, (8, 8)), (64, (16, 16))]


def test_torchvision() -> None:
    module = torchvision.models.resnet18().eval()
    backbone = Backbone(module, stages=STAGES)
    assert levels(backbone) == RESNET18
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = backbone(images)
        x = module.maxpool(module.relu(module.bn1(module.conv1(images))))
        for stage, ours in zip(STAGES, maps, strict=True):
            x = getattr(module, stage)(x)
            assert torch.equal(ours, x)


def test_stages_of_a_plain_module(network: Classifier) -> None:
    backbone = Backbone(network, stages=ALL)
    assert levels(backbone) == [(4, (2, 2)), (8, (4, 4)), (10, (8, 8))], "of the two maps of stride 4 the last one"


def test_stages_in_any_order(network: Classifier) -> None:
    assert levels(Backbone(network, stages=["deep", "stem"])) == [(4, (2, 2)), (10, (8, 8))]


def test_four_deepest() -> None:
    module = nn.Sequential(*[conv(3 if i == 0 else 4, 4, 2) for i in range(6)])
    backbone = Backbone(module, stages=[str(i) for i in range(6)])
    assert backbone.strides == [(8, 8), (16, 16), (32, 32), (64, 64)]
    assert [m.shape[2:] for m in backbone(torch.zeros(1, 3, 128, 64))] == [(16, 8), (8, 4), (4, 2), (2, 1)]


def test_stages_take_precedence_over_timms_own_maps() -> None:
    module = timm.create_model("resnet18")
    assert levels(Backbone(module, stages=["layer2.0", "layer4"])) == [RESNET18[1], RESNET18[3]]


def test_nested_stage_names(network: Classifier) -> None:
    backbone = Backbone(network, stages=["wide.0", "deep.1"])
    assert levels(backbone) == [(6, (4, 4)), (10, (8, 8))]
    network.eval()
    images = torch.randn(2, 3, 56, 56)
    wide, deep = backbone(images)
    x = network.stem(images)
    assert torch.equal(wide, network.wide[0](x))
    assert torch.equal(deep, network.deep[1](network.deep[0](network.same(network.wide(x)))))


def test_anisotropic_strides() -> None:
    module = nn.Sequential(conv(3, 4, (4, 2)), conv(4, 8, (1, 2)), conv(8, 6, 2))
    backbone = Backbone(module, stages=["0", "1", "2"])
    assert levels(backbone) == [(4, (4, 2)), (8, (4, 4)), (6, (8, 8))]
    assert [m.shape[2:] for m in backbone(torch.zeros(1, 3, 16, 40))] == [(4, 20), (4, 10), (2, 5)]


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 7, 9, 10, 12, 14, 15, 16, 20, 24, 28, 30, 32, 48, 56, 64])
def test_strides_are_measured(stride: int) -> None:
    """Also where a map happens to divide an image that its stride does not: 224 pixels at stride 48 give 4."""
    backbone = Backbone(nn.Sequential(nn.Conv2d(3, 4, stride, stride)), stages=["0"])
    assert levels(backbone) == [(4, (stride, stride))]


@pytest.mark.parametrize(("dims", "layer"), [(1, nn.Conv1d), (3, nn.Conv3d)])
def test_other_numbers_of_dimensions(dims: int, layer: type[nn.Module]) -> None:
    module = nn.Sequential(layer(2, 4, 16, 16), layer(4, 8, 2, 2))
    backbone = Backbone(module, stages=["0", "1"], in_chans=2)
    assert backbone.dims == dims
    assert levels(backbone) == [(4, (16,) * dims), (8, (32,) * dims)]


@pytest.mark.parametrize("in_chans", [1, 5])
def test_in_chans(in_chans: int) -> None:
    named = Backbone.create("test_resnet", in_chans=in_chans)
    assert {p.shape[1] for p in named.module.parameters() if p.ndim == 4 and p.shape[2:] == (3, 3)} >= {in_chans}
    module = Backbone(Classifier(in_chans), stages=ALL, in_chans=in_chans)
    for backbone in (named, module):
        assert backbone.in_chans == in_chans
        maps = backbone(torch.zeros(1, in_chans, 64, 64))
        assert [m.shape[1] for m in maps] == backbone.channels


def test_dtype_of_the_network() -> None:
    backbone = Backbone(Classifier().double(), stages=ALL)
    assert {m.dtype for m in backbone(torch.zeros(1, 3, 16, 16).double())} == {torch.float64}


# --- what is refused ------------------------------------------------------------------------------------------------


def test_unknown_timm_name_suggests_near_ones() -> None:
    with pytest.raises(ValueError, match=r"timm knows no model called 'resnet5O'; did you mean .*\bresnet50\b"):
        Backbone.create("resnet5O")
    with pytest.raises(ValueError, match=r"timm knows no model called 'conv_next_tiny'; did you mean .*convnext_tiny"):
        SparK("conv_next_tiny")
    with pytest.raises(ValueError, match=r"'\$\$\$'; timm.list_models\(\) lists the names"):
        Backbone.create("$$$")


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
        ("vgg11_bn", ["features.6", "features.13", "features.20", "features.27", "features"]),
        ("densenet121", ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features"]),
        ("mobilenet_v2", ["features.3", "features.6", "features.13", "features"]),
        ("efficientnet_b0", ["features.2", "features.3", "features.5", "features"]),
        ("regnet_y_400mf", [*(f"trunk_output.block{n}" for n in (1, 2, 3)), "trunk_output"]),
        ("convnext_tiny", ["features.1", "features.3", "features.5", "features"]),
    ],
)
def test_stages_are_found(name: str, stages: list[str]) -> None:
    module = getattr(torchvision.models, name)(weights=None)
    found = Backbone(module)
    named = Backbone(getattr(torchvision.models, name)(weights=None), stages)
    assert found.levels == named.levels
    found.module.load_state_dict(named.module.state_dict())
    found.module.eval()
    named.module.eval()
    images = torch.randn(1, 3, 64, 96)
    for a, b in zip(found(images), named(images), strict=True):
        assert torch.equal(a, b)


def test_unknown_stage(network: Classifier) -> None:
    with pytest.raises(ValueError, match=r"Classifier has no submodule 'deeep'; the nearest are deep\b"):
        Backbone(network, stages=["stem", "deeep"])


def test_stage_that_is_not_called(network: Classifier) -> None:
    network.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="forward pass of Classifier does not call spare"):
        Backbone(network, stages=["stem", "spare", "deep"])


@pytest.mark.parametrize("stages", [[], None])
def test_module_without_convolutions(stages: list[str] | None) -> None:
    with pytest.raises(ValueError, match="Sequential has no convolution, so it offers no feature maps"):
        Backbone(nn.Sequential(nn.Linear(3, 3)), stages=stages)


def test_no_stages(network: Classifier) -> None:
    with pytest.raises(ValueError, match="Classifier offers no feature maps"):
        Backbone(network, stages=[])


def test_stage_that_is_not_a_map(network: Classifier) -> None:
    with pytest.raises(ValueError, match=r"must offer maps \(B, C, \*size\); Classifier gives .*\(1, 5\)"):
        Backbone(network, stages=["deep", "head"])


UNPADDED = [str(i) for i in range(5)]


@pytest.mark.parametrize("stages", [UNPADDED, UNPADDED[-1:], UNPADDED[-2:]], ids=["all", "deepest", "two"])
def test_unpadded_convolutions_are_padded(stages: list[str]) -> None:
    """Their own maps lie between the patches. At some sizes the last one happens to divide the image: 240 gives 6."""
    module = nn.Sequential(*[conv(3 if i == 0 else 4, 4, 2, padding=0) for i in range(5)])
    backbone = Backbone(module, stages=stages)
    assert backbone.aligned == [f"{name}.0" for name in UNPADDED]
    assert backbone.strides[-1] == (32, 32)
    assert module(torch.zeros(1, 3, 240, 240)).shape[2:] == (6, 6)


def test_maps_that_no_padding_aligns_are_refused() -> None:
    """A kernel of even extent and stride 1 would need more padding on one side."""
    module = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 4, 4, 2 if i == 2 else 3, 1 + (i != 2)) for i in range(5)])
    with pytest.raises(ValueError, match=r"feature maps of Sequential are not proportional to the image .* padding"):
        Backbone(module, stages=UNPADDED)


def test_unpadded_stem_of_timm_is_padded() -> None:
    with torch.device("meta"):
        module = timm.create_model("inception_v3", num_classes=0, aux_logits=False)
    backbone = Backbone(module)
    assert backbone.strides == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert backbone.aligned[:3] == ["Conv2d_1a_3x3.conv", "Conv2d_2a_3x3.conv", "Pool1"]
    assert {"Mixed_6a", "Mixed_7a"} <= set(backbone.aligned)  # which pool by a function


# --- what is left as it was -----------------------------------------------------------------------------------------


def test_probing_leaves_no_trace(network: Classifier) -> None:
    network.train()
    network.wide.eval()
    network.deep[1].eval()
    modes = [m.training for m in network.modules()]
    state = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    backbone = Backbone(network, stages=ALL)
    backbone.unreached_parameters()
    backbone.blank_image((8, 8))
    assert [m.training for m in network.modules()] == modes
    assert len(set(modes)) == 2
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_modes_are_restored_after_an_error(network: Classifier) -> None:
    network.train()
    network.wide.eval()
    modes = [m.training for m in network.modules()]
    with pytest.raises(ValueError, match="must offer maps"):
        Backbone(network, stages=["head"])
    assert [m.training for m in network.modules()] == modes


def test_check_works_on_a_copy(network: Classifier) -> None:
    backbone = Backbone(network, stages=ALL)
    state = copy.deepcopy(network.state_dict())
    report = backbone.check(modes=["train"])
    assert report.passed, str(report)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_hooks_are_inert_outside_a_pass(network: Classifier) -> None:
    """Used ordinarily, the network runs to its end and nothing of it is kept."""
    plain = copy.deepcopy(network)
    backbone = Backbone(network, stages=ALL)
    images = torch.randn(2, 3, 56, 56)
    network.eval()
    plain.eval()
    assert torch.equal(network(images), plain(images))
    maps: list[weakref.ref[Tensor]] = []
    for stage in ALL:
        network.get_submodule(stage).register_forward_hook(lambda module, args, out: maps.append(weakref.ref(out)))
    with torch.no_grad():
        network(images)
    gc.collect()
    assert [ref() for ref in maps] == [None] * len(ALL)
    assert backbone.module.state_dict().keys() == plain.state_dict().keys()


def test_a_pass_keeps_no_maps(network: Classifier) -> None:
    backbone = Backbone(network, stages=ALL)
    maps = [weakref.ref(m) for m in backbone(torch.randn(1, 3, 16, 16))]
    gc.collect()
    assert [ref() for ref in maps] == [None] * len(maps)


def test_pass_ends_at_the_last_stage(network: Classifier) -> None:
    """What follows could not run on patches: pooling to 7 x 7 has no meaning there."""
    calls = []
    network.pool.register_forward_hook(lambda *_: calls.append("pool"))
    backbone = Backbone(network, stages=ALL)
    assert len(backbone(torch.randn(1, 3, 16, 16))) == 3
    out = SparK(backbone, decoder_width=32)(torch.randn(2, 3, 32, 48))
    assert torch.isfinite(out.loss)
    assert calls == []
    network(torch.randn(1, 3, 56, 56))
    assert calls == ["pool"]


def test_a_pass_that_fails_does_not_disarm_the_network(network: Classifier) -> None:
    backbone = Backbone(network, stages=ALL)
    with pytest.raises(RuntimeError):
        backbone(torch.randn(1, 4, 16, 16))
    network.eval()
    assert network(torch.randn(1, 3, 56, 56)).shape == (1, 5)
    assert len(backbone(torch.randn(1, 3, 16, 16))) == 3


# --- unreached parameters -------------------------------------------------------------------------------------------


def test_unreached_parameters(network: Classifier) -> None:
    assert Backbone(network, stages=ALL).unreached_parameters() == ["head.weight", "head.bias"]
    assert Backbone(network, stages=["stem", "wide"]).unreached_parameters() == [
        name for name, _ in network.named_parameters() if name.startswith(("same", "deep", "head"))
    ]


def test_unreached_parameters_between_stages() -> None:
    """A branch to the side of the maps is not reached, though it runs before the last one."""

    class Sided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.side, self.deep = conv(3, 4, 4), conv(4, 4), conv(4, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            self.side(x)
            return self.deep(x)

    network = Sided()
    unreached = Backbone(network, stages=["stem", "deep"]).unreached_parameters()
    assert unreached == [f"side.{name}" for name, _ in network.side.named_parameters()]


def test_frozen_parameters_are_not_reported(network: Classifier) -> None:
    """Whether they are reached cannot be read off the graph, and whoever froze them knows."""
    network.stem.requires_grad_(False)
    network.head.bias.requires_grad_(False)
    backbone = Backbone(network, stages=ALL)
    assert backbone.unreached_parameters() == ["head.weight"]
    assert not any(p.requires_grad for p in network.stem.parameters())


def test_unreached_parameters_of_timm_networks() -> None:
    assert Backbone.create("test_resnet").unreached_parameters() == []
    assert Backbone.create("test_convnext").unreached_parameters() == ["head.norm.weight", "head.norm.bias"]


# --- copies ---------------------------------------------------------------------------------------------------------


def test_copy_of_a_backbone_has_taps_of_its_own(network: Classifier) -> None:
    network.eval()
    backbone = Backbone(network, stages=ALL)
    images = torch.randn(1, 3, 16, 16)
    before = backbone(images)
    other = copy.deepcopy(backbone)
    assert other.module is not network
    with torch.no_grad():
        for p in other.module.parameters():
            p.zero_()
    assert all(m.count_nonzero() == 0 for m in other(images))
    for ours, theirs in zip(backbone(images), before, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.count_nonzero() > 0


@pytest.mark.parametrize("kind", ["stages", "timm"])
def test_copy_of_a_model_is_independent(kind: str, network: Classifier) -> None:
    torch.manual_seed(0)
    model = SparK(Backbone(network, stages=ALL) if kind == "stages" else "test_resnet", decoder_width=32)
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


def test_stage_that_is_converted_to_synchronised_batch_norm(network: Classifier) -> None:
    """Conversion puts a new module in the place of a batch norm, and with it goes whatever hung on the old one."""
    model = SparK(Backbone(network, stages=["stem.1", "wide", "deep.1"]), decoder_width=32).eval()
    images, visible = torch.randn(2, 3, 16, 24), sparkmim.random_visible(2, (2, 3), 0.5)
    before = model.encode(images, visible)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model.encoder.deep[1], nn.SyncBatchNorm)
    for ours, theirs in zip(model.encode(images, visible), before, strict=True):
        assert torch.equal(ours, theirs)
