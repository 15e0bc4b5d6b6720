"""Exported encoders compute in other libraries' networks what they compute here."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from sparkmim.checkpoints.encoder import load_trained_encoder, save_encoder
from sparkmim.cli import main
from sparkmim.commands.encoder_options import EncoderOptions
from sparkmim.commands.export import command
from sparkmim.exporters.detectron2 import detectron2_config, detectron2_name, to_detectron2
from sparkmim.exporters.equivalence import Mismatch, counterpart_weights
from sparkmim.exporters.openmmlab import to_openmmlab
from sparkmim.exporters.torchvision import to_torchvision

pytestmark = pytest.mark.slow


def export(encoder: Path, output: Path, format: Any = None, model: str | None = None, **settings: Any) -> int:
    return command(output, encoder, format=format, model=model, **settings)


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """With weights and running statistics that differ from layer to layer, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if "var" in name else tensor + 0.1 * (noise - 0.5))
    return network.eval()


def make(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return trained(timm.create_model(name, num_classes=0, **settings))


def image(channels: int = 3, size: int = 64) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    known = '{"model": "resnet18", "image_size": [96, 64], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "step": 7}'
    save_encoder(make("resnet18"), path, {"sparkmim": known})
    return path


# --- timm -----------------------------------------------------------------------------------------------------------


def test_timm_loads_the_folder(resnet18: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    assert export(resnet18, folder) == 0
    loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(image()), make("resnet18")(image()), rtol=0, atol=0)
    settings = timm.data.resolve_model_data_config(loaded)
    assert settings["input_size"] == (3, 96, 64)
    assert settings["mean"] == [0.5, 0.4, 0.3]
    assert settings["std"] == [0.2, 0.3, 0.4]
    assert settings["crop_pct"] == 1.0
    card = (folder / "README.md").read_text()
    assert "7 steps" in card
    assert "{" not in card.split("## Citation")[0]
    assert "apache" not in (folder / "config.json").read_text(), "the license of timm's own weights"
    with_classifier: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5)
    assert with_classifier(image()).shape == (2, 5)
    assert torch.equal(with_classifier.conv1.weight, loaded.conv1.weight)


def test_other_channels_and_other_weights(tmp_path: Path) -> None:
    torch.save(make("test_resnet", in_chans=3).state_dict(), tmp_path / "weights.pth")
    export(tmp_path / "weights.pth", tmp_path / "hub", model="test_resnet")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "SparK" not in card, "nothing is known of how they were trained"
    save_encoder(make("test_resnet", in_chans=1), tmp_path / "e", {"sparkmim": '{"model":"test_resnet","in_chans":1}'})
    export(tmp_path / "e", tmp_path / "grey")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'grey'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(image(1)), make("test_resnet", in_chans=1)(image(1)))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A run's folder."""
    known = '{"model": "test_resnet", "image_size": [64, 64], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}'
    save_encoder(make("test_resnet"), tmp_path / "run" / "encoder.safetensors", {"sparkmim": known})
    (tmp_path / "run" / "config.json").write_text('{"sparkmim": "0.1"}')
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["config.json", "README.md", "notes.txt"])
def test_what_is_not_an_export_is_not_written_over(small: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"run is not empty \(it holds config.json\) and not an earlier export"):
        export(small, small)
    assert (small / "config.json").read_text() == '{"sparkmim": "0.1"}'
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_text("[]")
    with pytest.raises(ValueError, match=f"it holds {name}"):
        export(small, tmp_path / "other")
    assert [path.read_text() for path in (tmp_path / "other").iterdir()] == ["[]"]


def test_an_earlier_export_is_renewed_but_for_its_card(small: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "hub"
    export(small, folder)
    (folder / "README.md").write_text("completed")
    capsys.readouterr()
    save_encoder(
        trained(make("test_resnet"), 5), small / "encoder.safetensors", {"sparkmim": '{"model":"test_resnet"}'}
    )
    export(small, folder)
    assert "README.md is left unchanged" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "README.md").read_text() == "completed"
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert torch.equal(loaded.conv1[0].weight, load_trained_encoder(small).backbone.module.conv1[0].weight)


def test_what_timm_makes_of_the_folder_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of timm's with another pooling: the same weights."""
    lines = (
        "import timm, torch",
        "def make():",
        "    network = timm.create_model('test_resnet', num_classes=0)",
        "    network.maxpool = torch.nn.AvgPool2d(3, 2, 1)",
        "    return network",
    )
    (tmp_path / "changed_by_hand.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    save_encoder(make("test_resnet"), tmp_path / "e", {"sparkmim": '{"model": "changed_by_hand:make"}'})
    with pytest.raises(Mismatch, match="is not changed_by_hand:make: it computes something else before its head"):
        export(tmp_path / "e", tmp_path / "hub", options=EncoderOptions(trust=True))
    assert list((tmp_path / "hub").iterdir()) == []


# --- torchvision ----------------------------------------------------------------------------------------------------


def pooled(network: nn.Module, classifier: str, images: Tensor) -> Tensor:
    """What a network of torchvision gives to its classifier."""
    given: list[Tensor] = []
    network.get_submodule(classifier).register_forward_hook(lambda _, arguments, __: given.append(arguments[0]))
    with torch.no_grad():
        network.eval()(images)
    return given[0]


@pytest.mark.parametrize(
    ("name", "builder", "classifier"),
    [
        ("resnet18", "resnet18", "fc"),
        ("convnext_tiny", "convnext_tiny", "classifier.2"),
        ("efficientnet_b0", "efficientnet_b0", "classifier.1"),
        ("densenet121", "densenet121", "classifier"),
        ("mobilenetv2_100", "mobilenet_v2", "classifier.1"),
        ("mnasnet_100", "mnasnet1_0", "classifier.1"),
    ],
)
def test_torchvision_computes_the_same(name: str, builder: str, classifier: str, tmp_path: Path) -> None:
    encoder = make(name)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    found = to_torchvision(encoder)
    assert found.builder == builder
    torch.save(found.weights, tmp_path / "weights.pth")
    network = torchvision.models.get_model(builder, weights=None)
    report = network.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True), strict=False)
    assert set(report.missing_keys) == {f"{classifier}.weight", f"{classifier}.bias"}
    assert report.unexpected_keys == []
    with torch.no_grad():
        wanted = encoder(image())
    torch.testing.assert_close(pooled(network, classifier, image()), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items()), "it is not changed"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test_resnet", "no network with the structure of this ResNet"),
        ("resnet18d", "no network with the structure"),
        ("mobilenetv3_small_100", "mobilenet_v3_small has tensors of the same sizes, but it computes something else"),
        ("tf_efficientnet_b0", "efficientnet_b0 has tensors of the same sizes, but it computes something else"),
    ],
)
def test_structure_decides(name: str, reason: str) -> None:
    """A batch norm with another epsilon, padding elsewhere: the names and shapes agree, the networks do not."""
    with pytest.raises(Mismatch, match=reason):
        to_torchvision(make(name))


def test_a_network_under_any_name(tmp_path: Path) -> None:
    """torchvision's own network, wrapped: other names, the same structure."""
    own = torchvision.models.resnet18()
    own.fc = nn.Identity()
    found = to_torchvision(trained(nn.Sequential(own)))
    assert found.builder == "resnet18"
    assert torch.equal(found.weights["layer3.1.conv2.weight"], own.state_dict()["layer3.1.conv2.weight"])


class Twice(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


@pytest.mark.parametrize(
    ("own", "other", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 3, 1, stride=2)), "the maps before its end"),
        (nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 4, 1)), r"its 0 has \[12, 4\] values"),
        (nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), "before its end"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 3, 1)), "1 layers"),
        (Twice(nn.Conv2d(3, 3, 1)), Twice(nn.Conv2d(3, 3, 1)), "0 is used more than once"),
    ],
)
def test_what_differs_is_named(own: nn.Module, other: nn.Module, reason: str) -> None:
    with pytest.raises(Mismatch, match=reason):
        counterpart_weights(own, other)


def test_what_the_forward_pass_does_not_use_has_no_counterpart() -> None:
    own, other = nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 3, 1))
    own[0].register_module("spare", nn.Linear(2, 2))
    with pytest.raises(Mismatch, match=r"0\.spare\.bias has no counterpart"):
        counterpart_weights(own, other)


# --- Detectron2 -----------------------------------------------------------------------------------------------------


class Convolution(nn.Conv2d):
    """Detectron2's: a convolution that has its norm within."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Block(nn.Module):
    """Detectron2's `BasicBlock` (one width) and `BottleneckBlock` with STRIDE_IN_1X1 off."""

    def __init__(self, inside: int, outside: int, stride: int, bottleneck: int | None, groups: int) -> None:
        super().__init__()
        self.shortcut = Convolution(inside, outside, 1, stride) if inside != outside else None
        if bottleneck is None:
            self.conv1, self.conv2 = Convolution(inside, outside, 3, stride), Convolution(outside, outside, 3)
        else:
            self.conv1 = Convolution(inside, bottleneck, 1)
            self.conv2 = Convolution(bottleneck, bottleneck, 3, stride, groups)
            self.conv3 = Convolution(bottleneck, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x).relu())
        if hasattr(self, "conv3"):
            out = self.conv3(out.relu())
        return (out + (x if self.shortcut is None else self.shortcut(x))).relu()


class Detectron2ResNet(nn.Module):
    """Detectron2's names and structure (`modeling/backbone/resnet.py`), from its configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        config = {key.removeprefix("MODEL.RESNETS."): value for key, value in config.items()}
        blocks = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}[config["DEPTH"]]
        self.stem = nn.Module()
        self.stem.conv1 = Convolution(3, 64, 7, 2)
        inside, outside = 64, config.get("RES2_OUT_CHANNELS", 256)
        bottleneck = None if config["DEPTH"] < 50 else config["NUM_GROUPS"] * config["WIDTH_PER_GROUP"]
        assert config["STRIDE_IN_1X1"] is False
        for stage, count in enumerate(blocks):
            made = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                made.append(Block(inside, outside, stride, bottleneck, config["NUM_GROUPS"]))
                inside = outside
            self.add_module(f"res{stage + 2}", nn.Sequential(*made))
            outside, bottleneck = 2 * outside, bottleneck and 2 * bottleneck

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.stem.conv1(x).relu(), 3, 2, 1)
        return self.res5(self.res4(self.res3(self.res2(x))))


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_detectron2_computes_the_same(name: str) -> None:
    encoder = make(name)
    weights, found = to_detectron2(encoder)
    network = Detectron2ResNet(detectron2_config(found, (0.5,) * 3, (0.2,) * 3)).eval()
    report = network.load_state_dict(weights, strict=False)
    assert all(key.endswith("num_batches_tracked") for key in report.missing_keys)
    assert report.unexpected_keys == []
    with torch.no_grad():
        wanted = encoder.forward_features(image())
        torch.testing.assert_close(network(image()), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


def test_detectron2_file(resnet18: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(resnet18, tmp_path / "d2.pkl", "detectron2")
    with open(tmp_path / "d2.pkl", "rb") as file:
        content = pickle.load(file)
    assert content["matching_heuristics"] is True
    weight = content["model"]["res4.0.shortcut.norm.running_mean"]
    assert weight.tolist() == make("resnet18").layer3[0].downsample[1].running_mean.tolist()
    printed = capsys.readouterr().out
    assert "MODEL.RESNETS.RES2_OUT_CHANNELS 64" in printed
    assert "MODEL.PIXEL_MEAN [127.5, 102.0, 76.5]" in printed


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv2.weight", "res2.0.conv2.weight"),
        ("layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.weight", "res3.0.shortcut.norm.weight"),
    ],
)
def test_detectron2_names(theirs: str, ours: str) -> None:
    """As its `tools/convert-torchvision-to-d2.py` makes them."""
    assert detectron2_name(theirs) == ours


# --- MMPretrain and MMDetection -------------------------------------------------------------------------------------


class GlobalResponseNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class MMConvNeXtBlock(nn.Module):
    def __init__(self, channels: int, use_grn: bool, layer_scale: float, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        layer = nn.Linear if linear else lambda a, b: nn.Conv2d(a, b, 1)
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pointwise_conv1, self.pointwise_conv2 = layer(channels, 4 * channels), layer(4 * channels, channels)
        self.grn = GlobalResponseNorm(4 * channels) if use_grn else nn.Identity()
        self.gamma = nn.Parameter(torch.ones(channels)) if layer_scale > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise_conv(x).permute(0, 2, 3, 1))
        if self.linear:
            y = self.pointwise_conv2(self.grn(nn.functional.gelu(self.pointwise_conv1(y)))).permute(0, 3, 1, 2)
        else:
            y = nn.functional.gelu(self.pointwise_conv1(y.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
            y = self.pointwise_conv2(self.grn(y).permute(0, 3, 1, 2))
        return x + (y if self.gamma is None else self.gamma.view(-1, 1, 1) * y)


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MMConvNeXt(nn.Module):
    """MMPretrain's names and structure (`models/backbones/convnext.py`), from its settings."""

    def __init__(
        self,
        arch: dict[str, list[int]],
        use_grn: bool = False,
        layer_scale_init_value: float = 1e-6,
        linear_pw_conv: bool = True,
    ) -> None:
        super().__init__()
        widths = arch["channels"]
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(arch["depths"]):
            if stage:
                before, width = widths[stage - 1], widths[stage]
                self.downsample_layers.append(
                    nn.Sequential(ChannelNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, 2))
                )
            settings = (widths[stage], use_grn, layer_scale_init_value, linear_pw_conv)
            self.stages.append(nn.Sequential(*[MMConvNeXtBlock(*settings) for _ in range(depth)]))
        self.norm3 = nn.LayerNorm(widths[-1], eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.norm3(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["convnext_tiny", "convnextv2_atto", "convnext_atto"])
def test_mmpretrain_convnext_computes_the_same(name: str) -> None:
    encoder = make(name)
    exported = to_openmmlab(encoder, "mmpretrain")
    settings = dict(exported.backbone)
    assert settings.pop("type") == "ConvNeXt"
    network = MMConvNeXt(**settings).eval()
    network.load_state_dict(exported.weights, strict=True)
    with torch.no_grad():
        wanted = encoder(image())
        torch.testing.assert_close(network(image()), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


def test_mm_resnet_has_torchvisions_names(resnet18: Path, tmp_path: Path) -> None:
    export(resnet18, tmp_path / "pretrain.pth", "mmpretrain")
    export(resnet18, tmp_path / "det.pth", "mmdet")
    plain = torchvision.models.resnet18(num_classes=1).state_dict()
    wanted = {key for key in plain if not key.startswith("fc.")}
    assert torch.load(tmp_path / "det.pth", weights_only=True)["state_dict"].keys() == wanted
    prefixed = torch.load(tmp_path / "pretrain.pth", weights_only=True)["state_dict"]
    assert prefixed.keys() == {f"backbone.{key}" for key in wanted}
    export(resnet18, tmp_path / "seg.pth", "mmseg")
    assert torch.load(tmp_path / "seg.pth", weights_only=True)["state_dict"].keys() == wanted
    assert torch.equal(prefixed["backbone.conv1.weight"], make("resnet18").conv1.weight)


def test_mm_settings_make_images_rgb(resnet18: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(resnet18, tmp_path / "pretrain.pth", "mmpretrain")
    export(resnet18, tmp_path / "det.pth", "mmdet")
    export(resnet18, tmp_path / "seg.pth", "mmseg")
    values = "mean=[127.5, 102.0, 76.5], std=[51.0, 76.5, 102.0])"
    told = capsys.readouterr().out
    assert f"data_preprocessor=dict(to_rgb=True, {values}" in told
    assert f'data_preprocessor=dict(type="DetDataPreprocessor", bgr_to_rgb=True, {values}' in told
    assert f'data_preprocessor=dict(type="SegDataPreProcessor", bgr_to_rgb=True, {values}' in told


def test_mmdet_convnext_gives_a_detector_all_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_encoder(make("convnext_atto"), tmp_path / "e", {"sparkmim": '{"model": "convnext_atto"}'})
    export(tmp_path / "e", tmp_path / "det.pth", "mmdet")
    told = capsys.readouterr().out
    assert "'type': 'mmpretrain.ConvNeXt'" in told
    assert "'out_indices': [0, 1, 2, 3], 'gap_before_final_norm': False" in told
    assert 'custom_imports=dict(imports=["mmpretrain.models"])' in told


@pytest.mark.parametrize(
    ("convert", "name", "reason"),
    [
        (to_detectron2, "convnext_tiny", "Detectron2 has ResNet and ResNeXt; this is torchvision's convnext_tiny"),
        (to_detectron2, "test_resnet", "no network with the structure"),
        (lambda m: to_openmmlab(m, "mmdet"), "wide_resnet50_2", "no wide ResNet"),
        (lambda m: to_openmmlab(m, "mmdet"), "mnasnet_100", "supported; this is torchvision's mnasnet1_0"),
        (lambda m: to_openmmlab(m, "mmdet"), "test_resnet", "have another structure than this ResNet"),
        (lambda m: to_openmmlab(m, "mmdet"), "test_convnext", "is not the ConvNeXt of the paper"),
    ],
)
def test_networks_that_are_not_there(convert: Callable[[nn.Module], Any], name: str, reason: str) -> None:
    with pytest.raises(Mismatch, match=reason):
        convert(make(name))


# --- segmentation-models-pytorch ------------------------------------------------------------------------------------


def smp_encoder(name: str) -> tuple[nn.Module, str]:
    """Build the encoder as smp does, and return the prefix of timm's names in it: smp itself where it is installed."""
    try:
        smp = import_module("segmentation_models_pytorch")
    except ImportError:
        if name.startswith("tu-"):
            return timm.create_model(name.removeprefix("tu-"), features_only=True), "model."
        network = torchvision.models.get_model(name)
        del network.fc
        return network, ""
    encoder: nn.Module = smp.encoders.get_encoder(name, weights=None)
    return encoder, ""


@pytest.mark.parametrize(
    ("name", "encoder_name"),
    [("resnet18", "resnet18"), ("test_convnext", "tu-test_convnext"), ("test_resnet", "tu-test_resnet")],
)
def test_smp_takes_the_file(name: str, encoder_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = make(name)
    save_encoder(own, tmp_path / "e", {"sparkmim": f'{{"model": "{name}"}}'})
    export(tmp_path / "e", tmp_path / "smp.pth", "smp")
    assert f'smp.Unet("{encoder_name}", encoder_weights=None, in_channels=3, classes=N)' in capsys.readouterr().out
    network, prefix = smp_encoder(encoder_name)
    weights = torch.load(tmp_path / "smp.pth", weights_only=True)
    network.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in weights.items()})
    if encoder_name.startswith("tu-"):
        with torch.no_grad():
            found = [each for each in network.eval()(image()) if each.shape[1]]
            wanted = own.forward_intermediates(image(), intermediates_only=True)
        for one in wanted[-2:]:
            assert any(each.shape == one.shape and torch.equal(each, one) for each in found)


def test_smp_has_no_networks_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import timm\ndef make():\n    return timm.create_model('test_resnet')\n")
    save_encoder(
        timm.create_model("test_resnet"), tmp_path / "e", {"sparkmim": f'{{"model": "{tmp_path}/own.py:make"}}'}
    )
    with pytest.raises(Mismatch, match=r"ResNets and networks of timm, and .* is neither"):
        export(tmp_path / "e", tmp_path / "x.pth", "smp", options=EncoderOptions(trust=True))


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "format", "reason"),
    [
        ("x.pkl", "torchvision", "must end in .pth"),
        ("x.pth", "detectron2", "must end in .pkl"),
        ("x.pth", "timm", "takes a folder"),
        ("x.pth", "onnx", "--format onnx is for a whole fine-tuned model: name it by --run"),
        ("x.pth", "keras", "--format keras is unknown"),
    ],
)
def test_wrong_outputs(resnet18: Path, tmp_path: Path, output: str, format: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        export(resnet18, tmp_path / output, format)
    assert list(tmp_path.iterdir()) == []


def test_the_encoder_is_not_written_over(tmp_path: Path) -> None:
    torch.save(make("resnet18").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is the file of --encoder; name another"):
        export(tmp_path / "weights.pth", tmp_path / "weights.pth", "torchvision", "resnet18")


def test_networks_that_take_three_channels(tmp_path: Path) -> None:
    save_encoder(make("resnet18", in_chans=1), tmp_path / "e", {"sparkmim": '{"model": "resnet18", "in_chans": 1}'})
    with pytest.raises(ValueError, match="take images of 3 channels, this one 1"):
        export(tmp_path / "e", tmp_path / "x.pth", "torchvision")


def test_a_network_of_ones_own_is_none_of_timms(tmp_path: Path) -> None:
    code = "import timm\ndef make():\n    return timm.create_model('test_resnet', num_classes=0)\n"
    (tmp_path / "own.py").write_text(code)
    save_encoder(make("test_resnet"), tmp_path / "e", {"sparkmim": f'{{"model": "{tmp_path}/own.py:make"}}'})
    with pytest.raises(Mismatch, match="timm has no network"):
        export(tmp_path / "e", tmp_path / "hub", options=EncoderOptions(trust=True))


def test_command(resnet18: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--encoder", resnet18, "--output", tmp_path / "tv.pth", "--format", "torchvision"]
    monkeypatch.setattr("sys.argv", ["sparkmim", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "torchvision.models.resnet18()" in capsys.readouterr().out
    assert "layer1.0.conv1.weight" in torch.load(tmp_path / "tv.pth", weights_only=True)


def test_a_classifier_leaves_its_head_and_its_steps_behind(tmp_path: Path) -> None:
    classifier = timm.create_model("test_resnet", num_classes=3)
    known = '{"model": "test_resnet", "classes": ["a", "b", "c"], "step": 9}'
    save_encoder(classifier, tmp_path / "run" / "model.safetensors", {"sparkmim": known})
    with pytest.raises(ValueError, match=r"run is the folder of a fine-tuning; take .*model\.safetensors"):
        export(tmp_path / "run", tmp_path / "hub")
    export(tmp_path / "run" / "model.safetensors", tmp_path / "hub")
    loaded = timm.create_model(f"local-dir:{tmp_path}/hub", pretrained=True)
    wanted = {key: value for key, value in classifier.state_dict().items() if not key.startswith("fc.")}
    assert loaded.state_dict().keys() == wanted.keys()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in wanted.items())
    assert "pretrained on images without labels" not in (tmp_path / "hub" / "README.md").read_text()


def test_encoders_by_name(resnet18: Path) -> None:
    one, other = (load_trained_encoder("none", "test_resnet", seed=seed).backbone.module for seed in (0, 1))
    again = load_trained_encoder("none", "test_resnet").backbone.module
    assert torch.equal(one.conv1[0].weight, again.conv1[0].weight)
    assert not torch.equal(one.conv1[0].weight, other.conv1[0].weight)
    with pytest.raises(ValueError, match="--encoder none does not say which network"):
        load_trained_encoder("none")
    with pytest.raises(ValueError, match=r"takes a file of weights, a run folder, timm, or none"):
        load_trained_encoder("nowhere")
    assert load_trained_encoder(resnet18.parent).step == 7
