"""Networks of other libraries are built by name, with all levels of a U-Net, and by nothing that a file could run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from plan_files import architecture
from sparkmim import Backbone, SparK, load_encoder
from sparkmim.checkpoints.encoder import save_encoder
from sparkmim.models.factory import is_registered, load_backbone, takes_drop_path
from sparkmim.models.named.base import find_named
from sparkmim.models.named.monai import Monai
from sparkmim.models.named.nnunet import NnUNet
from sparkmim.utils.specs import absolute_spec, is_function, scheme_of
from sparkmim.utils.trust import Untrusted

PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"

CUBES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def write_plans(folder: Path, channels: int = 1, **configurations: Any) -> Path:
    path = folder / "nnUNetPlans.json"
    for value in configurations.values():
        value.setdefault("normalization_schemes", ["ZScoreNormalization"] * channels)
    path.write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": configurations}))
    return path


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    configurations: dict[str, Any] = {
        "2d": {"architecture": architecture([[1, 1], [2, 2]], PLAIN)},
        "3d_fullres": {"architecture": architecture(CUBES), "patch_size": [16, 16, 16]},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
        "flat": {"architecture": architecture([[1, 1, 1], [1, 2, 2], [2, 2, 2]])},
        "twice": {"architecture": architecture([[1, 1, 1], [2, 2, 2], [1, 1, 1], [2, 2, 2]])},
        "halved": {"architecture": architecture([[2, 2, 2], [2, 2, 2]])},
    }
    return write_plans(tmp_path, **configurations)


def dynamic() -> Any:
    return pytest.importorskip("dynamic_network_architectures.architectures.unet")


# --- Names


@pytest.mark.parametrize(
    ("spec", "scheme"),
    [
        ("nnunet:resenc-l", "nnunet"),
        ("nnunet:a/b.json#3d_fullres", "nnunet"),
        ("monai:UNet(channels=(1, 2))", "monai"),
        ("resnet50", None),
        ("nnunet", None),
        ("net.py:nnunet", None),
        ("hf-hub:nnunet/monai", None),
        ("torchvision.models:resnet18", None),
        ("base:resnet18", None),
    ],
)
def test_scheme(spec: str, scheme: str | None) -> None:
    assert scheme_of(spec) == scheme
    assert (find_named(spec) is None) == (scheme is None)
    if scheme is not None:
        assert is_function(spec)
        assert not takes_drop_path(spec)


def test_files_are_named_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_spec("nnunet:plans.json#2d") == f"nnunet:{tmp_path}/plans.json#2d"
    assert absolute_spec("nnunet:resenc-l") == "nnunet:resenc-l"
    assert absolute_spec('monai:UNet(act="a#b")') == 'monai:UNet(act="a#b")'


ERRORS = {
    "nnunet:resenc": r"nnunet has no network 'resenc'; use one of resenc-m, resenc-l, resenc-xl, plain, or nnunet:",
    "nnunet:": "nnunet has no network ''",
    "nnunet:PLANS#3d": r"there is no configuration|has no configuration '3d'; use one of 2d, 3d_fullres, 3d_cascade",
    "nnunet:PLANS": r"expected nnunet:PLANS.json#CONFIGURATION, got .*nnUNetPlans.json has 2d, 3d_fullres",
    "nnunet:absent.json#2d": r"there is no file absent.json; expected nnU-Net's plans",
    "nnunet:BROKEN#2d": r"cannot be read as nnU-Net's plans",
    "nnunet:OTHER#2d": r"is not nnU-Net's plans: it has no 'configurations'",
    "nnunet:OLD#2d": r"does not describe its networks .* plan again with nnUNetv2_plan_experiment",
    "nnunet:OLD#half": r"does not describe the network of 'half': expected 'network_class_name' and 'arch_kwargs'",
    "nnunet:OLD#loop": r"inherits from itself",
}


@pytest.mark.parametrize("spec", ERRORS)
def test_errors_of_names(spec: str, plans: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("[]")
    old = {"2d": {"UNet_class_name": "PlainConvUNet"}, "half": {"architecture": {}}, "loop": {"inherits_from": "loop"}}
    (tmp_path / "old.json").write_text(json.dumps({"configurations": old}))
    places = {"PLANS": plans, "BROKEN": tmp_path / "broken.json", "OTHER": tmp_path / "other.json"}
    for word, path in {**places, "OLD": tmp_path / "old.json"}.items():
        spec_here = spec.replace(word, str(path))
        if spec_here != spec:
            break
    with pytest.raises(ValueError, match=ERRORS[spec]):
        load_backbone(spec_here)


@pytest.mark.parametrize(
    ("spec", "command"), [("nnunet:plain", "dynamic-network-architectures"), ("monai:UNet", "monai")]
)
def test_library_that_is_not_installed(spec: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == command.replace("-", "_")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, command.replace("-", "_"), None)
    with pytest.raises(ValueError, match=f"{spec} needs the package .*: pip install (--no-deps )?{command}"):
        load_backbone(spec)


def test_what_has_no_effect_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes no stochastic depth; use --drop-path 0"):
        load_backbone("nnunet:resenc-l", drop_path=0.1)
    with pytest.raises(ValueError, match=r"timm has no weights for nnunet:resenc-l"):
        load_backbone("nnunet:resenc-l", pretrained=True)


# --- nnU-Net


def test_presets() -> None:
    """Of one rule: what nnssl calls ResEncL (nnssl/architectures/architecture_registry.py)."""
    unet = dynamic()
    theirs = {
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[3, 3, 3] for _ in range(6)],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
        "num_classes": 2,
        "n_conv_per_stage_decoder": [1, 1, 1, 1, 1],
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    with torch.device("meta"):
        expected = unet.ResidualEncoderUNet(input_channels=2, **theirs).state_dict()
        for name in ("resenc-m", "resenc-l", "resenc-xl"):
            built = NnUNet(name).build(2)
            found = built.module.state_dict()
            assert {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in expected.items()}
            assert built.levels == 6
        plain = NnUNet("plain").build(None)
    assert [len(stage[0].convs) for stage in plain.module.encoder.stages] == [2] * 6
    assert [len(stage.convs) for stage in plain.module.decoder.stages] == [2] * 5
    assert plain.in_chans == 1
    assert isinstance(found["encoder.stem.convs.0.conv.weight"], Tensor)


@pytest.mark.parametrize(
    ("configuration", "strides", "stages"),
    [
        ("3d_fullres", [(1, 1, 1), (2, 2, 2), (4, 4, 4)], (0, 1, 2)),
        ("3d_cascade_fullres", [(1, 1, 1), (2, 2, 2), (4, 4, 4)], (0, 1, 2)),
        ("flat", [(1, 1, 1), (1, 2, 2), (2, 4, 4)], (0, 1, 2)),
        ("twice", [(1, 1, 1), (2, 2, 2), (4, 4, 4)], (0, 2, 3)),
        ("halved", [(2, 2, 2), (4, 4, 4)], (0, 1)),
        ("2d", [(1, 1), (2, 2)], (0, 1)),
    ],
)
def test_plans(configuration: str, strides: list[Any], stages: tuple[int, ...], plans: Path) -> None:
    dynamic()
    backbone = load_backbone(f"nnunet:{plans}#{configuration}")
    assert backbone.strides == strides
    assert backbone.stages == [f"encoder.stages.{k}" for k in stages]
    assert backbone.in_chans == 1
    assert not backbone.notes
    assert {name.split(".")[0] for name in backbone.unreached_tensors()} == {"decoder"}


def test_channels_and_levels(tmp_path: Path) -> None:
    dynamic()
    plans = write_plans(tmp_path, channels=3, full={"architecture": architecture(CUBES)})
    assert load_backbone(f"nnunet:{plans}#full").in_chans == 3
    backbone = load_backbone(f"nnunet:{plans}#full", in_chans=2, levels=2)
    assert backbone.in_chans == 2
    assert backbone.strides == [(2, 2, 2), (4, 4, 4)]
    assert backbone.module.encoder.stem.convs[0].conv.weight.shape[1] == 2
    assert load_backbone(f"nnunet:{plans}#full", ["encoder.stages.1"]).strides == [(2, 2, 2)]


def test_initialized_as_nnunet_does(plans: Path) -> None:
    dynamic()
    network = load_backbone(f"nnunet:{plans}#3d_fullres").module
    assert not network.get_parameter("encoder.stages.1.blocks.0.conv2.norm.weight").any()
    assert not network.get_parameter("encoder.stem.convs.0.conv.bias").any()
    weight = network.get_parameter("encoder.stages.2.blocks.0.conv2.conv.weight")
    torch.testing.assert_close(weight.var(), torch.tensor(2 / (1 + 1e-4) / (12 * 27)), rtol=0.2, atol=0)


@pytest.mark.parametrize("configuration", ["3d_fullres", "flat", "2d"])
def test_works_on_visible_patches(configuration: str, plans: Path) -> None:
    dynamic()
    backbone = load_backbone(f"nnunet:{plans}#{configuration}")
    report = backbone.check(grid=(3, 4, 3)[: backbone.dims], modes=("train",))
    assert report.passed, f"\n{report}"
    model = SparK(backbone, decoder_width=8, in_chans=1)
    loss = model(torch.randn(2, 1, *[4 * p for p in model.patch_size])).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.nn.functional.relu",
        "torch.nn.Parameter",
        "torch.nn.modules.module.torch",
        "torch.nn.modules.conv.Absent",
        "dynamic_network_architectures.architectures.unet.torch.load",
        "dynamic_network_architectures.architectures.unet.init_last_bn_before_add_to_0",
        "dynamic_network_architectures.initialization.weight_init.InitWeights_He",
        "ResidualEncoderUNet; import os",
        "../net.py",
        "",
        "3",
    ],
)
@pytest.mark.parametrize("place", ["network_class_name", "conv_op"])
def test_plans_name_modules_alone(name: str, place: str, tmp_path: Path) -> None:
    dynamic()
    described = architecture(CUBES)
    (described if place == "network_class_name" else described["arch_kwargs"])[place] = name
    plans = write_plans(tmp_path, full={"architecture": described})
    with pytest.raises(ValueError, match=r"plans may name modules of dynamic_network_architectures and torch.nn"):
        load_backbone(f"nnunet:{plans}#full")


@pytest.mark.parametrize(
    "changes", [{"n_stages": 4}, {"surplus": 1}, {"kernel_sizes": [[3, 3, 3]]}, {"norm_op_kwargs": "x"}]
)
def test_plans_that_the_network_does_not_take(changes: dict[str, Any], tmp_path: Path) -> None:
    dynamic()
    plans = write_plans(tmp_path, full={"architecture": architecture(CUBES, **changes)})
    with pytest.raises(ValueError, match=r"cannot be built: .* does not take its plans"):
        load_backbone(f"nnunet:{plans}#full")


def test_encoder_file_needs_no_trust(plans: Path, tmp_path: Path) -> None:
    dynamic()
    spec = f"nnunet:{plans}#3d_fullres"
    assert is_registered(spec)
    assert is_registered("nnunet:resenc-l")
    source = load_backbone(spec, in_chans=2)
    path = tmp_path / "encoder.safetensors"
    save_encoder(source.module, path, {"sparkmim": json.dumps({"model": spec, "in_chans": 2})})
    loaded = load_encoder(path)
    for name, tensor in source.module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    save_encoder(nn.Conv3d(1, 1, 1), path, {"sparkmim": '{"model": "nnunet:resenc-l"}'})
    with pytest.raises(ValueError, match=r"names nnunet:resenc-l, whose .* values do not fit into its"):
        load_encoder(path)


def test_weights_of_other_channels(plans: Path, tmp_path: Path) -> None:
    """Every name of the first convolution is adapted; output layers, as many as channels, are not taken."""
    dynamic()
    spec = f"nnunet:{plans}#3d_fullres"
    source, path = load_backbone(spec), tmp_path / "weights.pth"
    torch.save(source.module.state_dict(), path)
    loaded = load_encoder(path, spec, in_chans=3)
    image = torch.randn(1, 1, 16, 16, 16)
    theirs: Any = loaded
    with torch.no_grad():
        found = theirs.encoder(image.expand(-1, 3, -1, -1, -1))
        for mine, other in zip(source(image), found, strict=True):
            torch.testing.assert_close(mine, other)


# --- Levels of a U-Net


class Tiny(nn.Module):
    """Down twice, and up again if wanted."""

    def __init__(self, up: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, 1, 1)
        self.second = nn.Conv2d(4, 6, 2, 2)
        self.third = nn.Conv2d(6, 8, 2, 2)
        self.up = nn.ConvTranspose2d(8, 4, 4, 4) if up else None

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x).relu()
        third = self.third(self.second(first).relu()).relu()
        return third if self.up is None else self.up(third) + first


@pytest.mark.parametrize(("up", "strides"), [(True, [1, 2, 4]), (False, [2, 4])])
def test_all_levels(up: bool, strides: list[int]) -> None:
    backbone = Backbone(Tiny(up), in_chans=1, levels="all")
    assert backbone.strides == [(s, s) for s in strides]
    assert Backbone(Tiny(up), in_chans=1).strides == [(2, 2), (4, 4)]


# --- MONAI


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("UNet", {}),
        ("UNet()", {}),
        ("UNet(channels=(4, 8), norm=('batch', {'eps': 1e-3}), bias=False)",
         {"channels": (4, 8), "norm": ("batch", {"eps": 1e-3}), "bias": False}),
        ("UNet(a=-1, b=None, c=[1.5], d='x(')", {"a": -1, "b": None, "c": [1.5], "d": "x("}),
        ("UNet(3)", None),
        ("UNet(**{'a': 1})", None),
        ("UNet(a=open('x'))", None),
        ("UNet(a=b)", None),
        ("UNet(a=1).b", None),
        ("UNet(a=1", None),
        ("os.UNet(a=1)", None),
    ],
)  # fmt: skip
def test_arguments_are_values(name: str, found: dict[str, Any] | None) -> None:
    if found is not None:
        assert Monai(name)._arguments() == found
        return
    with pytest.raises(ValueError, match=r"is not monai:NAME\(key=value, ...\)"):
        Monai(name)._arguments()


MONAI = {
    "monai:UNet(spatial_dims=2, channels=(4, 8, 16), strides=(2, 2))": [(2, 2), (4, 4)],
    "monai:SegResNet(init_filters=8)": [(1,) * 3, (2,) * 3, (4,) * 3, (8,) * 3],
    "monai:DynUNet(kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(4, 8, 8))": [
        (1,) * 3,
        (2,) * 3,
        (4,) * 3,
    ],
    "monai:resnet10(conv1_t_size=3)": [(2,) * 3, (4,) * 3, (8,) * 3, (16,) * 3],
}


@pytest.mark.parametrize("spec", MONAI)
def test_monai(spec: str) -> None:
    pytest.importorskip("monai")
    backbone = load_backbone(spec)
    assert backbone.strides == MONAI[spec]
    assert backbone.in_chans == 1
    assert is_registered(spec)
    assert load_backbone(spec, in_chans=2).in_chans == 2


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("monai:Unett", r"monai has no network 'Unett'; did you mean .*Unet"),
        ("monai:UNet(foo=1)", r"has no argument foo; UNet has spatial_dims"),
        ("monai:UNet", r"cannot be built \(TypeError: .*strides"),
        ("monai:UNet(in_channels=3, channels=(4, 8), strides=(2,))", r"--in-chans 1, but .* takes 3 channels"),
        ("monai:drop_connect", r"does not take a number of input channels"),
    ],
)
def test_errors_of_monai(spec: str, match: str) -> None:
    pytest.importorskip("monai")
    with pytest.raises(ValueError, match=match):
        load_backbone(spec, in_chans=1)


def test_monai_that_fetches_weights_needs_trust(tmp_path: Path) -> None:
    pytest.importorskip("monai")
    assert is_registered('monai:EfficientNetBN(model_name="efficientnet-b0")')
    spec = 'monai:EfficientNetBN(model_name="efficientnet-b0", pretrained=True)'
    assert not is_registered(spec)
    path = tmp_path / "encoder.safetensors"
    save_encoder(nn.Conv2d(1, 1, 1), path, {"sparkmim": json.dumps({"model": spec})})
    with pytest.raises(Untrusted, match="monai would build it, and may fetch weights"):
        load_encoder(path)
