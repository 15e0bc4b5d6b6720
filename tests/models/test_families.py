"""One member of each family of convolutional networks works on visible patches, untouched."""

from __future__ import annotations

import pytest
import timm
import torch

import sparkmim
from sparkmim import SparK, sparse

FAMILIES = {
    "resnet": "resnet18",
    "resnet-d": "resnet26d",
    "resnext": "resnext50_32x4d",
    "senet": "legacy_seresnet18",
    "res2net": "res2net50_26w_4s",
    "resnest": "resnest14d",
    "sknet": "skresnet18",
    "convnext": "convnext_atto",
    "convnextv2": "convnextv2_atto",
    "efficientnet": "efficientnet_b0",
    "tf_efficientnet": "tf_efficientnet_b0",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv4": "mobilenetv4_conv_small_050",
    "regnet": "regnety_002",
    "densenet": "densenet121",
    "vgg_bn": "vgg11_bn",
    "hrnet": "hrnet_w18_small",
    "nfnet": "nf_regnet_b0",
    "resnetv2": "resnetv2_50x1_bit",
    "vovnet": "ese_vovnet19b_dw",
    "dla": "dla34",
    "ghostnet": "ghostnet_050",
    "inception_next": "inception_next_atto",
    "rexnet": "rexnetr_100",
}


def require_offered(name: str) -> None:
    """Skip a network that the installed timm does not have, or whose maps it does not offer yet."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    if name == "vgg11_bn" and not hasattr(timm.models.vgg.VGG, "forward_intermediates"):
        pytest.skip(f"timm {timm.__version__} does not offer the maps of VGG")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_identity_crop_leak_oracle(name: str) -> None:
    require_offered(name)
    report = sparkmim.Backbone.create(name).check(grid=(2, 3))
    assert len(report.results) == 8
    assert report.passed, f"\n{report}"


SMALLEST = (
    "test_byobnet", "gcresnext26ts", "cs3darknet_focus_s", "cspnext_tiny", "dpn48b", "fasternet_t0",
    "fastvit_t8", "focalnet_tiny_srf", "hardcorenas_b", "hgnetv2_b0", "inception_v3", "inception_v4", "lcnetv2_small",
    "lowformer_e1", "test_mambaout", "poolformer_s12", "convformer_s18", "mobilevitv2_050", "test_nfnet", "rdnet_tiny",
"repghostnet_050", "repvit_m1", "selecsls42", "starnet_s050", "swiftformer_xs", "tresnet_m",
    "xception41p", "efficientnet_b0_g8_gn", "resnetv2_50d_frn", "ghostnetv2_100",
)  # fmt: skip
"""Of timm's other modules, and of some others that compute in ways of their own."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_other_families(name: str) -> None:
    """Like `sparkmim models`, but while training alone: the table in docs is of all networks."""
    require_offered(name)
    torch.manual_seed(0)
    backbone = sparkmim.Backbone.create(name)
    patch = backbone.resolve_patch_size()
    if name in DOUBLED:
        patch = tuple(2 * s for s in patch)
    report = sparse.check(backbone.module, backbone, patch_size=patch, grid=(2, 3), modes=("train",))
    assert len(report.results) == 4
    assert report.passed, f"\n{report}"


def test_convmixer() -> None:
    """A small one: timm's have 768 channels and more at every position."""
    network = timm.models.convmixer.ConvMixer(dim=32, depth=3, kernel_size=9, patch_size=7, num_classes=0)
    report = sparkmim.Backbone(network).check(grid=(2, 3))
    assert report.passed, f"\n{report}"


DOUBLED = ("ghostnetv2_100", "mobilevitv2_050")
"""Those whose total stride is too small a patch: they halve the map once more within a block."""


@pytest.mark.slow
@pytest.mark.parametrize("name", DOUBLED)
def test_refused_at_their_total_stride(name: str) -> None:
    backbone = sparkmim.Backbone.create(name)
    report = sparse.check(backbone.module, backbone, patch_size=(32, 32), grid=(2, 2), batch=2, modes=("eval",))
    assert not report.passed
    assert report.errors


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES)
def test_encoder_loads_into_the_ordinary_network(name: str) -> None:
    torch.manual_seed(0)
    model = SparK(name, decoder_width=32).double().eval()
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for p in model.encoder.parameters():  # a zero-initialized branch would compare nothing
            p.add_(0.02 * torch.randn_like(p))
        network = timm.create_model(name, num_classes=0).double().eval()
        network.load_state_dict(model.encoder.state_dict(), strict=True)
        pyramid = network.forward_intermediates(images, intermediates_only=True)[-4:]
        encoded = model.encode(images, torch.ones(1, 2, 3, dtype=torch.bool))
    ordinary = {tuple(m.shape): m for m in pyramid}
    for feature in encoded:
        torch.testing.assert_close(feature, ordinary[tuple(feature.shape)], rtol=1e-9, atol=1e-9)


def test_check_finds_what_is_wrong() -> None:
    """Arithmetic with the size of the map means something else where some of it is hidden."""

    class Centered(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.sum((2, 3), keepdim=True) * (1 / (x.shape[2] * x.shape[3]))

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, stride=4), Centered())
    assert sparkmim.Backbone(network, ["0"]).check().passed
    report = sparkmim.Backbone(network, ["1"]).check()
    assert not any(result.passed for result in report.results)
    assert "computes with the size of the map" in report.errors[0]


@pytest.mark.slow
def test_unreached_parameters_are_left_out() -> None:
    model = SparK("vgg11_bn", decoder_width=32)
    unreached = [p for name, p in model.encoder.named_parameters() if name in model.unreached]
    assert sum(p.numel() for p in unreached) > 100e6
    assert not any(p.requires_grad for p in unreached)
    model(torch.rand(2, 3, 64, 96)).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
