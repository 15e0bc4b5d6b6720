"""Checkpoints of every form: equal tensors and equal outputs, or an error that says what is wrong."""

from __future__ import annotations

import argparse
import itertools
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

import sparkmim
from sparkmim.checkpoints.encoder import read_metadata, save_encoder
from sparkmim.checkpoints.key_maps import our_key
from sparkmim.checkpoints.weights import load_pretraining, load_weights

State = Mapping[str, Tensor]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def resnet(depths: tuple[int, ...] = (1, 1, 1, 1), classes: int = 0, in_chans: int = 3, width: int = 8) -> ResNet:
    channels = tuple(width * 2**i for i in range(4))
    kind: Any = BasicBlock  # timm annotates an instance
    return ResNet(kind, depths, channels=channels, num_classes=classes, in_chans=in_chans)


def convnext() -> ConvNeXt:
    return ConvNeXt(depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), num_classes=0)


def randomised(module: ModuleT, seed: int = 0) -> ModuleT:
    """No tensor as its initialisation made it."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator) / (1 + tensor[0].numel()))
        else:
            tensor.fill_(7)
    return module.eval()


def prefixed(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    assert list(one.state_dict()) == list(theirs)
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, theirs[key]), key
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # on some CPUs the last bits depend on the weights' memory format
        torch.testing.assert_close(one.eval()(images), other.eval()(images))


def checkpoint_of_a_training(state: State) -> dict[str, Any]:
    optimizer = {"state": {0: {"step": torch.tensor(3), "exp_avg": torch.zeros(9)}}, "param_groups": [{"lr": 0.1}]}
    return {
        "epoch": 3,
        "arch": "resnet",
        "args": argparse.Namespace(lr=0.1),
        "optimizer": optimizer,
        "state_dict": state,
    }


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "state_dict": lambda s: {"state_dict": s},
    "model": lambda s: {"model": s, "epoch": 1},
    "module": lambda s: {"module": s, "config": {"width": 768}},
    "state": lambda s: {"state": s},
    "nested": lambda s: {"checkpoint": {"model_state": {"model": s}}, "numbers": [1, 2]},
    "training": checkpoint_of_a_training,
    "ddp": lambda s: {"state_dict": prefixed("module.", s)},
    "compiled": lambda s: prefixed("_orig_mod.", s),
    "compiled ddp": lambda s: {"model": prefixed("module._orig_mod.", s)},
    "averaged": lambda s: {"ema": {"n_averaged": torch.tensor(5), **prefixed("module.", s)}},
    "encoder": lambda s: prefixed("encoder.", s) | {"decoder.weight": torch.ones(3)},
    "detector": lambda s: {"meta": {"mmdet": "2"}, "state_dict": prefixed("backbone.", s) | {"neck.w": torch.ones(2)}},
    "in a sequence": lambda s: prefixed("1.", s),
    "momentum contrast": lambda s: {
        "state_dict": prefixed("module.encoder_q.", s) | {"module.queue": torch.ones(4, 4)}
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_forms(form: str, legacy: bool, tmp_path: Path) -> None:
    source, target = randomised(resnet()), resnet()
    path = tmp_path / "misleading.safetensors"
    content = FORMS[form](source.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    report = load_weights(target, path)
    assert_same(target, source)
    assert report.loaded == len(source.state_dict())
    assert report.missing == []
    left = {"averaged": ["n_averaged"], "encoder": ["decoder.weight"], "detector": ["neck.w"]}
    assert report.ignored == (left | {"momentum contrast": ["module.queue"]}).get(form, [])
    assert report.form.startswith("PyTorch file")


def test_safetensors_by_content(tmp_path: Path) -> None:
    source, target = randomised(resnet()), resnet()
    safetensors.torch.save_file(prefixed("backbone.", source.state_dict()), tmp_path / "weights.pth")
    report = load_weights(target, tmp_path / "weights.pth")
    assert_same(target, source)
    assert report.form == "safetensors file, behind 'backbone.'"


def test_classifier_is_ignored(tmp_path: Path) -> None:
    source, target = randomised(resnet(classes=10)), resnet()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert load_weights(target, tmp_path / "weights.pth").ignored == ["fc.weight", "fc.bias"]
    source.reset_classifier(0)
    assert_same(target, source)


def test_classifier_is_loaded_or_kept_where_the_network_has_one(tmp_path: Path) -> None:
    source, target = randomised(resnet(classes=10)), resnet(classes=10)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert load_weights(target, tmp_path / "weights.pth").ignored == []
    assert_same(target, source)
    fresh = resnet(classes=5)
    classifier = fresh.fc.weight.clone()
    torch.save(resnet().state_dict(), tmp_path / "encoder.pth")
    assert load_weights(fresh, tmp_path / "encoder.pth").missing == ["fc.weight", "fc.bias"]
    assert torch.equal(fresh.fc.weight, classifier)
    with pytest.raises(
        ValueError, match=r"fc.weight: \(10, 64\) in the file, \(5, 64\) in the network.*All but 'fc' fits"
    ):
        load_weights(fresh, tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])  # the latter through timm's conversion of old names
def test_torchvision_to_timm(name: str, tmp_path: Path) -> None:
    source = randomised(getattr(torchvision.models, name)(weights=None, num_classes=3))
    target = timm.create_model(name, num_classes=0).eval()
    old = {key.replace("norm1", "norm.1").replace("conv1", "conv.1"): t for key, t in source.state_dict().items()}
    torch.save(old if name == "densenet121" else source.state_dict(), tmp_path / "weights.pth")
    report = load_weights(target, tmp_path / "weights.pth")
    classifier = "fc" if name == "resnet18" else "classifier"
    ignored = [key for key in report.ignored if not key.endswith("num_batches_tracked")]
    assert ignored == [f"{classifier}.weight", f"{classifier}.bias"]
    setattr(source, classifier, nn.Identity())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(target(images), source(images))


def test_a_plain_module(tmp_path: Path) -> None:
    source = randomised(torchvision.models.resnet18(num_classes=2))
    target = torchvision.models.resnet18()
    target.fc = source.fc = nn.Identity()
    torch.save(source, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="refused"):
        load_weights(target, tmp_path / "whole.pth")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert load_weights(target, tmp_path / "weights.pth").loaded == 120
    assert_same(target, source)


def test_other_dtypes(tmp_path: Path) -> None:
    source, target = randomised(resnet()).half(), resnet()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    load_weights(target, tmp_path / "weights.pth")
    assert_same(target, source.float())


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    source, averaged, target = randomised(resnet()), randomised(resnet(), seed=1), resnet()
    torch.save({"module": source.state_dict(), "ema": averaged.state_dict()}, tmp_path / "weights.pth")
    assert "'ema'" in load_weights(target, tmp_path / "weights.pth").form
    assert_same(target, averaged)


@pytest.mark.parametrize("best", [True, False])
def test_of_a_fine_tuning_its_best_weights_or_their_average_are_taken(best: bool, tmp_path: Path) -> None:
    last, averaged, kept, target = (randomised(resnet(), seed=seed) for seed in range(4))
    entry = {"top1": 0.5, "step": 3, "model": kept.state_dict()} if best else None
    state = {"model": last.state_dict(), "average": averaged.state_dict(), "best": entry}
    torch.save(state, tmp_path / "step-4.pt")
    assert ("'best.model'" if best else "'average'") in load_weights(target, tmp_path / "step-4.pt").form
    assert_same(target, kept if best else averaged)


def test_statistics_of_a_classifiers_own_norm_may_be_missing(tmp_path: Path) -> None:
    source, target = (timm.create_model("repvit_m0_9", num_classes=classes).eval() for classes in (0, 4))
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    missing = load_weights(target, tmp_path / "weights.pth").missing
    assert "head.head.bn.running_mean" in missing
    assert all(key.startswith("head.") for key in missing)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(target.forward_features(images), source.forward_features(images))
    state = source.state_dict()
    del state["stages.3.blocks.1.token_mixer.bn.running_var"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match=r"1 of the network's .* missing \(stages.3.blocks.1.token_mixer.bn.running_var\)"
    ):
        load_weights(target, tmp_path / "weights.pth")


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path) -> None:
    source, target = randomised(resnet()), resnet()
    counters = [key for key in source.state_dict() if key.endswith("num_batches_tracked")]
    torch.save({k: t for k, t in source.state_dict().items() if k not in counters}, tmp_path / "weights.pth")
    assert load_weights(target, tmp_path / "weights.pth").missing == counters
    for key, tensor in source.state_dict().items():
        assert key in counters or torch.equal(tensor, target.state_dict()[key])


@pytest.mark.parametrize(("came", "wanted"), [(3, 1), (3, 2), (3, 5), (2, 4), (4, 1)])
def test_other_input_channels(came: int, wanted: int, tmp_path: Path) -> None:
    source, target = randomised(resnet(in_chans=came)), resnet(in_chans=wanted).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    report = load_weights(target, tmp_path / "weights.pth")
    assert report.form.endswith(f"conv1 adapted from {came} to {wanted} channels")
    repeated = [source.conv1.weight[:, i % came] * came / wanted for i in range(wanted)]
    expected = source.conv1.weight.sum(1, keepdim=True) if wanted == 1 else torch.stack(repeated, 1)
    torch.testing.assert_close(target.conv1.weight, expected)
    if wanted == 1:
        grey = torch.randn(2, 1, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(target(grey), source(grey.expand(2, came, 64, 64)))


# --- The authors' code


class OriginalBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(nn.functional.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OriginalConvNeXt(nn.Module):
    """The names of the original repository, as in the authors' pretrain/models/convnext.py (no norm, no classifier)."""

    def __init__(self, depths: tuple[int, ...] = (1, 1, 2, 1), dims: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), ChannelNorm(dims[0], eps=1e-6))
        others = [nn.Sequential(ChannelNorm(a, eps=1e-6), nn.Conv2d(a, b, 2, 2)) for a, b in itertools.pairwise(dims)]
        self.downsample_layers = nn.ModuleList([stem, *others])
        self.stages = nn.ModuleList(
            nn.Sequential(*[OriginalBlock(d) for _ in range(n)]) for n, d in zip(depths, dims, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return x


class OfficialBlock(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.up_sample = nn.ConvTranspose2d(cin, cin, 4, 2, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(cin, cin, 3, 1, 1, bias=False), nn.BatchNorm2d(cin), nn.ReLU6(),
            nn.Conv2d(cin, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.up_sample(x))


class OfficialSparK(nn.Module):
    """Densify and decode as pretrain/spark.py and pretrain/decoder.py do, under the same names."""

    def __init__(self, network: nn.Module, channels: list[int], width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.sparse_encoder = nn.Module()
        self.sparse_encoder.sp_cnn = network
        self.dense_decoder = nn.Module()
        widths = [width // 2**i for i in range(6)]
        self.dense_decoder.dec = nn.ModuleList(OfficialBlock(a, b) for a, b in itertools.pairwise(widths))
        self.dense_decoder.proj = nn.Conv2d(widths[-1], 3, 1)
        self.densify_norms, self.densify_projs = nn.ModuleList(), nn.ModuleList()
        self.mask_tokens = nn.ParameterList()
        for i, c in enumerate(reversed(channels)):
            self.mask_tokens.append(nn.Parameter(torch.zeros(1, c, 1, 1)))
            self.densify_norms.append(norm(c))
            kernel = 1 if i == 0 else 3
            same = i == 0 and c == width
            self.densify_projs.append(nn.Identity() if same else nn.Conv2d(c, widths[i], kernel, padding=kernel // 2))
        for name, size in [("imn_m", 1), ("imn_s", 1), ("norm_black", 64)]:
            self.register_buffer(name, torch.zeros(1, 3, size, size))

    def predict(self, features: list[Tensor], visible: Tensor) -> Tensor:
        x: Any = 0
        for i, feature in enumerate(reversed(features)):
            shown = visible[:, None].repeat_interleave(2**i, 2).repeat_interleave(2**i, 3)
            normed = self.densify_norms[i](feature)
            x = x + self.densify_projs[i](torch.where(shown, normed, self.mask_tokens[i]))
            x = self.dense_decoder.dec[i](x)
        return self.dense_decoder.proj(self.dense_decoder.dec[4](x))


def official_pair(kind: str) -> tuple[OfficialSparK, sparkmim.SparK]:
    """The authors' model, and ours to load it into."""
    if kind == "resnet":
        official = OfficialSparK(resnet(), [8, 16, 32, 64], 96, nn.BatchNorm2d)
        network: nn.Module = resnet()
    else:  # the deepest map is as wide as the decoder: no projection
        official = OfficialSparK(OriginalConvNeXt(), [16, 32, 64, 128], 128, lambda c: ChannelNorm(c, eps=1e-6))
        network = convnext()
    model = sparkmim.SparK(network, decoder_width=96 if kind == "resnet" else 128)
    return randomised(official), model


def official_checkpoint(official: OfficialSparK) -> dict[str, Any]:
    """As `save_checkpoint_with_meta_info_and_opt_state` of pretrain/utils/misc.py writes it."""
    config = {"mask_ratio": 0.6, "densify_norm_str": "bn", "sbn": False, "hierarchy": 4}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"params": [0], "lr": 0.1}]}
    return {
        "args": "{'model': 'resnet50'}", "input_size": 64, "arch": "resnet50", "epoch": 3, "performance_desc": "0.5",
        "module": {**official.state_dict(), "config": config}, "optimizer": optimizer, "is_pretrain": True,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_official_pretraining(kind: str, tmp_path: Path) -> None:
    official, model = official_pair(kind)
    torch.save(official_checkpoint(official), tmp_path / "x_withdecoder_1kpretrained_spark_style.pth")
    report = load_pretraining(model, tmp_path / "x_withdecoder_1kpretrained_spark_style.pth")
    assert sorted(report.ignored) == ["imn_m", "imn_s", "norm_black"]
    assert report.missing == ([] if kind == "resnet" else ["encoder.head.norm.weight", "encoder.head.norm.bias"])
    assert report.loaded == len(official.state_dict()) - 3
    assert "names of the official code" in report.form
    model.eval().double()
    official.double()
    visible = sparkmim.random_visible(2, (2, 2), 0.6)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        prediction = official.predict(model.encode(images, visible), visible)
        torch.testing.assert_close(model(images, visible).prediction, prediction)
        everything = torch.ones(2, 2, 2, dtype=torch.bool)
        network = official.sparse_encoder.sp_cnn
        deepest = network.forward_features(images) if kind == "resnet" else network(images)
        torch.testing.assert_close(model.encode(images, everything)[-1], deepest)


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
@pytest.mark.parametrize("form", ["timm_style", "withdecoder_spark_style", "finetuned"])
@pytest.mark.parametrize("frozen", [False, True], ids=["fresh", "in SparK"])  # SparK freezes what it does not reach
def test_official_encoder(kind: str, form: str, frozen: bool, tmp_path: Path) -> None:
    official, model = official_pair(kind)
    network = official.sparse_encoder.sp_cnn
    state = network.state_dict()
    if form == "finetuned" and kind == "convnext":  # downstream_imagenet/models/convnext_official.py
        last = {"norm.weight": torch.ones(128), "norm.bias": torch.zeros(128)}
        state = state | last | {"head.weight": torch.ones(9, 128), "head.bias": torch.ones(9)}
    elif form == "finetuned":
        state = state | {"fc.weight": torch.ones(9, 64), "fc.bias": torch.ones(9)}
    contents = {
        "timm_style": state,
        "withdecoder_spark_style": official_checkpoint(official),
        "finetuned": {"arch": "x", "module": state, "ema": prefixed("module.", state), "is_pretrain": False},
    }
    torch.save(contents[form], tmp_path / "weights.pth")
    target = model.encoder if frozen else resnet() if kind == "resnet" else convnext()
    report = load_weights(target, tmp_path / "weights.pth")
    lacks_norm = kind == "convnext" and form != "finetuned"
    assert report.missing == (["head.norm.weight", "head.norm.bias"] if lacks_norm else [])
    assert report.loaded == len(target.state_dict()) - len(report.missing)
    if form == "finetuned":
        assert [key.rsplit(".", 1)[1] for key in report.ignored] == ["weight", "bias"]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_features(images) if kind == "resnet" else network(images)
        torch.testing.assert_close(target.eval().forward_features(images), expected)


def test_our_key() -> None:
    official, model = official_pair("resnet")
    ours = {our_key(key) for key in official.state_dict()} - {"imn_m", "imn_s", "norm_black"}
    assert ours == set(model.state_dict())
    assert all(our_key(key) == key for key in ours)


# --- Ours


@pytest.mark.parametrize("prefix", ["", "module."])
def test_our_checkpoint(prefix: str, tmp_path: Path) -> None:
    source = randomised(sparkmim.SparK(resnet(), decoder_width=32))
    torch.save({"model": prefixed(prefix, source.state_dict()), "epoch": 3}, tmp_path / "checkpoint.pt")
    target = sparkmim.SparK(resnet(), decoder_width=32).eval()
    report = load_pretraining(target, tmp_path / "checkpoint.pt")
    assert (report.loaded, report.ignored, report.missing) == (len(source.state_dict()), [], [])
    images, visible = torch.randn(2, 3, 64, 64), sparkmim.random_visible(2, (2, 2), 0.6)
    with torch.no_grad():
        assert torch.equal(target(images, visible).loss, source(images, visible).loss)
    network = resnet()
    report = load_weights(network, tmp_path / "checkpoint.pt")
    assert_same(network, source.encoder)
    assert len(report.ignored) == len(source.state_dict()) - len(network.state_dict())


def test_an_encoder_alone_is_no_pretraining(tmp_path: Path) -> None:
    save_encoder(resnet(), tmp_path / "encoder.safetensors", {})
    with pytest.raises(ValueError, match="encoder alone, which load_weights reads"):
        load_pretraining(sparkmim.SparK(resnet(), decoder_width=32), tmp_path / "encoder.safetensors")


def test_another_decoder(tmp_path: Path) -> None:
    torch.save({"model": sparkmim.SparK(resnet(), decoder_width=64).state_dict()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"decoder.blocks.0.upsample.weight: \(64, 64, 4, 4\) in the file, \(32, 32"):
        load_pretraining(sparkmim.SparK(resnet(), decoder_width=32), tmp_path / "checkpoint.pt")


def test_save_encoder(tmp_path: Path) -> None:
    source, target = randomised(convnext()), convnext()
    path = tmp_path / "encoder.safetensors"
    save_encoder(resnet(), path, {})
    save_encoder(source, path, {"model": "convnext", "epochs": "3"})
    assert os.listdir(tmp_path) == ["encoder.safetensors"]
    assert read_metadata(path) == {"model": "convnext", "epochs": "3"}
    target.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert_same(target, source)
    report = load_weights(fresh := convnext(), path)
    assert_same(fresh, source)
    assert (report.form, report.ignored, report.missing) == ("safetensors file", [], [])


def test_save_tied_and_strided_tensors(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)).to(memory_format=torch.channels_last)
    source[1].weight = source[0].weight
    source[0].bias = nn.Parameter(torch.arange(6.0)[::2])
    path = tmp_path / "encoder.safetensors"
    save_encoder(source, path, {"1.weight.": "kept"})
    assert safetensors.torch.load_file(path).keys() == {"0.weight", "0.bias", "1.bias"}
    assert read_metadata(path) == {"1.weight.": "kept", "1.weight": "0.weight"}
    for load in (safetensors.torch.load_model, load_weights):
        target = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
        target[1].weight = target[0].weight
        load(target, path)
        assert_same(target, source)
    load_weights(untied := nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)), path)
    assert_same(untied, source)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(resnet(), path, {"epoch": "1"})

    def crash(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(OSError, match="disk full"):
        save_encoder(resnet(), path, {"epoch": "2"})
    assert os.listdir(tmp_path) == ["encoder.safetensors"]
    assert read_metadata(path) == {"epoch": "1"}


# --- What does not load, and leaves the module as it was


def refuses(module: nn.Module, path: Path, match: str) -> None:
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=match) as caught:
        load_weights(module, path)
    assert str(path) in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (
            lambda: resnet((2, 1, 1, 2)),
            r"20 are more than the network has \(layer1.1.conv1.weight.*another architecture",
        ),
        (lambda: resnet((1, 1, 1, 0)), r"layer4.0.conv1.weight, .*, \.\.\.\)"),
        (
            lambda: resnet(width=16),
            r"have another shape \(layer1.0.conv1.weight: \(16, 64, 3, 3\) in the file, \(8, 64",
        ),
        (convnext, r"65 of the network's 78 tensors are missing \(conv1.weight, .*what the file has \(stem.0.weight"),
    ],
    ids=["larger", "smaller", "wider", "another family"],
)
def test_another_architecture(source: Callable[[], nn.Module], match: str, tmp_path: Path) -> None:
    torch.save({"arch": "resnet99", "state_dict": source().state_dict()}, tmp_path / "weights.pth")
    refuses(resnet(), tmp_path / "weights.pth", match)


def test_the_file_names_its_architecture(tmp_path: Path) -> None:
    torch.save({"arch": "resnet99", "state_dict": convnext().state_dict()}, tmp_path / "weights.pth")
    refuses(resnet(), tmp_path / "weights.pth", r"name the model .* \(the file says resnet99\) by --model")


@pytest.mark.parametrize("key", ["layer2.0.conv1.weight", "layer2.0.bn1.running_var"])
def test_missing_key(key: str, tmp_path: Path) -> None:
    torch.save({k: t for k, t in resnet().state_dict().items() if k != key}, tmp_path / "weights.pth")
    refuses(resnet(), tmp_path / "weights.pth", rf"1 of the network's 78 tensors is missing \({key}\)")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_encoder(resnet(), path, {})
    else:
        torch.save(resnet().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuses(resnet(), path, "damaged")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"h", "not a checkpoint"),
        (b"these are not weights\n" * 9, "not a checkpoint"),
        (b'{"weights": [1, 2, 3]}', "not a checkpoint"),
        (bytes(range(256)), "not a checkpoint"),
    ],
    ids=["empty", "one byte", "text", "json", "bytes"],
)
def test_no_checkpoint(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    refuses(resnet(), tmp_path / "weights.pth", match)
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_metadata(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(3)], ids=["list", "no tensors", "a tensor"])
def test_no_weights(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    refuses(resnet(), tmp_path / "weights.pth", "holds no weights")


class Hostile:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_objects_are_refused(kind: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "weights.pth", tmp_path / "made"
    content = {"state_dict": dict(resnet().state_dict()), "hook": Hostile(folder)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Hostile(folder)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    refuses(resnet(), path, r"refused: .* Python objects.*weights_only=True")
    assert not folder.exists()


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_weights(resnet(), tmp_path / "weights.pth")
