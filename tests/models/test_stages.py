"""Stages that a network does not name are found by running it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from helpers import conv_norm_relu
from sparkmim import Backbone, SparK


def test_module_that_cannot_be_run_asks_for_stages() -> None:
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.Unflatten(1, (3, 3)), nn.Conv2d(3, 4, 2, 2))
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


# --- networks in miniature, of each way to write one ------------------------------------------------------------------


def block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return conv_norm_relu(before, after, stride)


class Joined(nn.Module):
    """Residual blocks written out in `forward`, main branch first; what follows the last sum is to choose."""

    def __init__(self, head: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.main1, self.short1 = block(8, 16, 2), nn.Conv2d(8, 16, 1, 2)
        self.main2, self.short2 = block(16, 32, 2), nn.Conv2d(16, 32, 1, 2)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.main1(x) + self.short1(x))
        return self.head(torch.relu(self.main2(x) + self.short2(x)))


class SharedActivation(nn.Module):
    """One ReLU for all sums, and a sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.pool = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        self.stem, self.down = block(3, 8, 4), block(8, 16, 2)
        self.branch1, self.branch2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.branch1(x)
        y += x
        x = self.down(self.relu(y))
        return self.pool(self.relu(self.branch2(x) + x))


class UNet(nn.Module):
    """Down thrice, and up again with skip connections, to a map of classes."""

    def __init__(self, up: str = "interpolate") -> None:
        super().__init__()
        self.inc, self.down1, self.down2, self.down3 = block(3, 4), block(4, 8, 2), block(8, 16, 2), block(16, 32, 2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(c, c, 2, 2) for c in (32, 16, 8)) if up == "transposed" else None
        self.merge = nn.ModuleList([block(48, 16), block(24, 8), block(12, 4)])
        self.classes = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.inc(x)]
        for down in (self.down1, self.down2, self.down3):
            maps.append(down(maps[-1]))
        x = maps.pop()
        for number, merge in enumerate(self.merge):
            x = F.interpolate(x, scale_factor=2.0) if self.up is None else self.up[number](x)
            x = merge(torch.cat([maps.pop(), x], 1))
        return self.classes(x)


class Pyramid(nn.Module):
    """A feature pyramid of few channels, all lateral convolutions first, or one at a time, with coarser maps on top."""

    def __init__(self, laterals_first: bool) -> None:
        super().__init__()
        self.body = nn.ModuleList([block(3, 8, 4), block(8, 16, 2), block(16, 32, 2)])
        self.lateral = nn.ModuleList(nn.Conv2d(c, 6, 1) for c in (8, 16, 32))
        self.out = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.extra = nn.Conv2d(6, 6, 3, 2, 1)
        self.laterals_first = laterals_first

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = []
        for part in self.body:
            x = part(x)
            maps.append(x)
        found: list[Tensor] = []
        laterals = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)] if self.laterals_first else []
        top = laterals[2] if laterals else self.lateral[2](maps[2])
        if not laterals:
            found.append(self.out[2](top))
        for level in (1, 0):
            side = laterals[level] if laterals else self.lateral[level](maps[level])
            top = side + F.interpolate(top, size=side.shape[2:])
            found.append(self.out[level](top))
        if laterals:
            found.append(self.out[2](laterals[2]))
        return {
            **{f"p{number}": m for number, m in enumerate(found)},
            "extra": self.extra(found[-1 if laterals else 0]),
        }


class Segmenter(nn.Module):
    """A head of classes on the deepest map, and up to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 8, 2), block(8, 16, 2), block(16, 32, 2))
        self.head = nn.Sequential(block(32, 8), nn.Conv2d(8, 5, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": F.interpolate(self.head(self.body(x)), size=x.shape[2:], mode="bilinear")}


class Parallel(nn.Module):
    """Two resolutions side by side that exchange maps, as in HRNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = block(3, 8, 4), block(8, 16, 2)
        self.high, self.low = block(8, 8), block(16, 16)
        self.up, self.across = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        high = self.stem(x)
        low = self.low(self.down(high))
        high = self.high(high)
        return [F.relu(high + F.interpolate(self.up(low), size=high.shape[-2:])), F.relu(low + self.across(high))]


class Calibrated(nn.Module):
    """Blocks that pool by four and go up again inside (SCNet), in a network that goes down."""

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.conv, self.gate = block(before, after, stride), nn.Conv2d(after, after, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x * torch.sigmoid(x + F.interpolate(self.gate(F.avg_pool2d(x, 4)), size=x.shape[2:]))

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = self.Block(3, 8, 4), self.Block(8, 16, 2), self.Block(16, 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))


class Flow(nn.Module):
    """Convolutions of one axis at a time, so that a resolution in between belongs to no stage."""

    class Block(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.across = nn.Conv2d(before, after, (1, 3), (1, 2), (0, 1))
            self.down = nn.Conv2d(after, after, (3, 1), (2, 1), (1, 0))
            self.short = nn.Conv2d(before, after, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.across(x)) + self.short(x)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 2, 2), self.Block(8, 16), self.Block(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(self.stem(x)))


class ReadsValues(nn.Module):
    """Looks at the values of a map, so that it must be computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = block(3, 8, 4), block(8, 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x if x.abs().max().item() < 1e9 else x / 2)


class PooledInEvaluation(nn.Module):
    """DPN of pretrainedmodels: in evaluation mode the classifier sees positions, in training mode the pooled map."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 8, 4), block(8, 16, 2))
        self.classes = nn.Conv2d(16, 10, 1)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.training:
            return self.classes(x.mean((2, 3), keepdim=True)).flatten(1)
        x = F.avg_pool2d(x, self.window, 1) if self.window > 1 else x
        return self.classes(x).mean((2, 3))


class SkippedInTraining(nn.Module):
    """Stochastic depth that does not run a block at all: here always, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = block(3, 8, 4), block(8, 16, 2), block(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x))
        return x if self.training else self.last(x)


def deep(number: int, dims: int) -> nn.Sequential:
    kind: Any = nn.Conv1d if dims == 1 else nn.Conv2d
    return nn.Sequential(*[nn.Sequential(kind(3 if i == 0 else 4, 4, 3, 2, 1), nn.ReLU()) for i in range(number)])


def signal(strides: list[int]) -> nn.Sequential:
    return nn.Sequential(*[nn.Conv1d(3 if i == 0 else 4, 4, s, s) for i, s in enumerate(strides)])


CLASSIFIER = nn.Sequential(nn.Flatten(), nn.Linear(7, 2))

NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[int], list[str] | None]] = {
    # sums in forward, whatever follows them
    "output": (Joined, [4, 8, 16], ["stem", "main2:input", ""]),
    "mean": (lambda: Joined(lambda x: x.mean((2, 3))), [4, 8, 16], ["stem", "main2:input", ":relu[1]"]),
    "pooled": (lambda: Joined(lambda x: F.adaptive_avg_pool2d(x, 1)), [4, 8, 16], None),
    "module": (lambda: Joined(nn.AdaptiveAvgPool2d(1)), [4, 8, 16], ["stem", "main2:input", "head:input"]),
    "shared": (SharedActivation, [4, 8], ["down:input", "pool:input"]),
    "traced": (lambda: torch.fx.symbolic_trace(Joined(torch.flatten)), [4, 8, 16], None),
    "traced resnet": (lambda: torch.fx.symbolic_trace(torchvision.models.resnet18()), [4, 8, 16, 32], None),
    # passes that end in an error
    "linear": (lambda: nn.Sequential(block(3, 8, 4), block(8, 16, 2), CLASSIFIER), [4, 8], ["0", "1"]),
    "fixed pool": (lambda: nn.Sequential(block(3, 8, 4), block(8, 16, 2), nn.AvgPool2d(7), CLASSIFIER), [4, 8], None),
    # deep ones
    **{f"2-D {2**n}": (lambda n=n: deep(n, 2), [2**k for k in range(n - 3, n + 1)], None) for n in (6, 7, 10)},  # type: ignore[misc]
    **{f"1-D {2**n}": (lambda n=n: deep(n, 1), [2**k for k in range(n - 3, n + 1)], None) for n in (8, 9)},  # type: ignore[misc]
    "1-D 320": (lambda: signal([5, 2, 2, 2, 2, 2, 2]), [40, 80, 160, 320], None),
    "1-D 315": (lambda: signal([7, 5, 9]), [7, 35, 315], None),
    "2-D 28": (lambda: nn.Sequential(nn.Conv2d(3, 4, 7, 7), nn.Conv2d(4, 4, 4, 4)), [7, 28], None),
    # networks that go up again
    "u-net": (UNet, [2, 4, 8], ["down1", "down2", "down3"]),
    "u-net transposed": (lambda: UNet("transposed"), [2, 4, 8], ["down1", "down2", "down3"]),
    "pyramid": (lambda: Pyramid(False), [4, 8, 16], ["body.0", "body.1", "body.2"]),
    "pyramid, laterals first": (lambda: Pyramid(True), [4, 8, 16], ["body.0", "body.1", "body.2"]),
    "segmenter": (Segmenter, [2, 4, 8], ["body.0", "body.1", "body"]),
    "parallel": (Parallel, [4, 8], [":output[0]", ":output[1]"]),
    "calibrated": (Calibrated, [4, 8, 16], ["layer1", "layer2", "layer3"]),
    "one axis at a time": (Flow, [2, 4, 8], ["stem", "one", "two"]),
    # networks that do something else in training mode
    "pooled in evaluation": (lambda: PooledInEvaluation(1), [4, 8], ["body.0", "body"]),
    "windows in evaluation": (lambda: PooledInEvaluation(7), [4, 8], ["body.0", "body"]),
    "skipped in training": (SkippedInTraining, [4, 8], ["one", "last"]),
    "reads values": (ReadsValues, [4, 8], ["one", "two"]),
}

NOT_REACHED = {
    "linear": 2,
    "fixed pool": 2,
    "traced resnet": 2,
    "pooled in evaluation": 2,
    "windows in evaluation": 2,
}
"""Parameters of classifiers."""


@pytest.mark.parametrize("name", NETWORKS)
def test_last_map_of_each_resolution_on_the_way_down(name: str) -> None:
    make, strides, names = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    backbone = Backbone(network)
    assert [level.stride[0] for level in backbone.levels] == strides
    assert names is None or backbone.stages == names
    assert backbone.overlooked == []
    unreached = backbone.unreached_parameters()
    if not isinstance(network, (UNet, Pyramid, Segmenter)):
        assert len(unreached) == NOT_REACHED.get(name, 0), unreached
    # The names are enough to read the same maps, from a copy too.
    again = Backbone(copy.deepcopy(network), backbone.stages)
    images = torch.randn(1, 3, *[(4 if name == "calibrated" else 1) * s for s in backbone.strides[-1]])
    for module in (backbone.module, again.module):
        module.train(False)
    for ours, theirs in zip(backbone(images), again(images), strict=True):
        assert torch.equal(ours, theirs)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("name", ["output", "mean", "module", "shared", "traced", "linear"])
def test_maps_that_forward_computes_work_on_patches(name: str) -> None:
    torch.manual_seed(0)
    report = Backbone(NETWORKS[name][0]()).check(modes=["train"])
    assert report.passed, str(report)


def test_an_early_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sparkmim"):
        backbone = Backbone(NETWORKS["linear"][0]())
    (note,) = backbone.notes
    assert "forward pass of Sequential ends in an error" in note
    assert note in caplog.text


# --- how many ---------------------------------------------------------------------------------------------------------


def test_as_many_levels_as_asked_for() -> None:
    assert Backbone(UNet(), levels=4).stages == ["inc", "down1", "down2", "down3"]
    assert Backbone(UNet(), levels=2).strides == [(4, 4), (8, 8)]
    assert len(Backbone(deep(6, 2), levels=6).levels) == 6
    assert Backbone.create("test_resnet", levels=5).strides[0] == (2, 2)
    model = SparK(UNet(), levels=4, decoder_width=32)
    assert model.levels == 4
    model(torch.randn(2, 3, 16, 24)).loss.backward()
    with pytest.raises(ValueError, match=r"levels=7, but UNet has maps of 4 resolutions \(inc, down1"):
        Backbone(UNet(), levels=7)
    with pytest.raises(ValueError, match="levels is a number of feature maps, at least 1, not 0"):
        Backbone(UNet(), levels=0)


def test_stride_1_is_for_whoever_asks() -> None:
    flat = nn.Sequential(block(3, 8), block(8, 8))
    with pytest.raises(ValueError, match="levels=1 admits"):
        Backbone(flat)
    assert Backbone(flat, levels=1).levels == [(8, (1, 1))]


@pytest.mark.parametrize(("kind", "dims"), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
def test_pretraining_without_stride(kind: Any, dims: int) -> None:
    network = nn.Sequential(kind(2, 8, 3, padding=1), nn.ReLU())
    model = SparK(network, in_chans=2, levels=1, patch_size=4, decoder_width=8)
    model(torch.randn(2, 2, *[8] * dims)).loss.backward()
    assert network[0].weight.grad is not None


# --- what is not trained ----------------------------------------------------------------------------------------------


def test_overlooked_parameters_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sparkmim"):
        backbone = Backbone(Joined(), ["stem", "short1", "short2"])
    branch = [name for name, _ in backbone.module.named_parameters() if name.startswith("main2")]
    assert backbone.overlooked == branch
    assert "no feature map of Joined depends on" in caplog.text
    assert "main2.0.weight" in caplog.text


# --- what is computed beside maps -------------------------------------------------------------------------------------


class EndsOnTokens(nn.Module):
    """A last stage that works on another layout than that of maps, before the classifier."""

    def __init__(self, last: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 16, 2, 2)
        self.norm, self.mlp, self.head = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self, self.down(self.stem(x))))


BESIDE_MAPS = {
    "tokens": (lambda net, x: net.mlp(net.norm(x.flatten(2).transpose(1, 2))).mean(1), ["norm", "mlp"]),
    "channels last": (lambda net, x: net.mlp(net.norm(x.permute(0, 2, 3, 1))).mean((1, 2)), ["norm", "mlp"]),
    "a norm of tokens": (lambda net, x: net.mlp(net.norm(x.flatten(2).transpose(1, 2)).mean(1)), ["norm"]),
    "pooled": (lambda net, x: net.mlp(net.norm(x.mean((2, 3)))), []),
    "unused": (lambda net, x: x.mean((2, 3)), []),
}


@pytest.mark.parametrize(("last", "named"), BESIDE_MAPS.values(), ids=BESIDE_MAPS.keys())
def test_parameters_that_end_on_no_map_are_named(last: Callable[..., Tensor], named: list[str]) -> None:
    backbone = Backbone(EndsOnTokens(last))
    assert backbone.overlooked == [f"{name}.{tensor}" for name in named for tensor in ("weight", "bias")]
    assert bool(backbone.notes) == bool(named)


def test_a_convolution_that_gives_classes_is_not_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 64, 2, 2), nn.Conv2d(64, 2, 1))
    backbone = Backbone(network)
    assert backbone.stages == ["0", "1"]
    assert backbone.overlooked == []
