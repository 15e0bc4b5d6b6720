"""Normalization: statistics are those of visible positions, and running statistics are updated once, as they should."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from engine_helpers import (
    Apply,
    assert_agrees_with_crop,
    assert_agrees_with_oracle,
    assert_never_waits,
    assert_refused,
    draw_rectangles,
    draw_visible,
)
from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, run
from sparkmim.sparse.shared import pointwise

BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MASKS = {
    "one patch": torch.tensor([[[False, True, False]], [[True, False, False]]]),
    "all patches": torch.ones(2, 2, 3, dtype=torch.bool),
    "row": torch.tensor([[[True, True, False, True, False]], [[False, True, True, False, True]]]),
    "boxes": torch.tensor([
        [[True, True, False], [True, True, False], [False, False, False]],
        [[False, False, False], [False, True, True], [False, True, True]],
    ]),
}  # fmt: skip
BOXES = ["all patches", "boxes"]


def randomized(network: nn.Module) -> nn.Module:
    """Affine parameters and running statistics that are not the neutral ones."""
    generator = torch.Generator().manual_seed(0)
    network = network.double()
    for tensor in [*network.parameters(), *network.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 2.0, generator=generator)
    return network


class GlobalResponseNorm(nn.Module):
    """As ConvNeXt V2 has it, on channels-last maps: a norm over space, set in relation to its mean over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        spread = x.norm(p=2, dim=(1, 2), keepdim=True)
        spread = spread / (spread.mean(dim=-1, keepdim=True) + 1e-6)
        x = x + torch.addcmul(self.bias.view(1, 1, 1, -1), self.weight.view(1, 1, 1, -1), x * spread)
        return x.permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """A gate of each image, with a `norm` of the pooled values inside."""

    def __init__(self, norm: nn.Module, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.reduce, self.norm, self.expand = nn.Conv2d(4, 4, 1), norm, nn.Conv2d(4, 4, 1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.norm(self.reduce(self.pool(x))).relu()).sigmoid()


class ChannelsLast(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.movedim(1, -1)).movedim(-1, 1)


class BatchNormByHand(nn.Module):
    """A batch norm whose statistics of the batch, mean and variance, are given by a function."""

    def __init__(self, statistics: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.statistics = statistics
        self.weight = nn.Parameter(torch.ones(4, 1, 1))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = (s.reshape(-1) for s in self.statistics(x))
            self.running_mean.lerp_(mean.detach(), 0.1)
            self.running_var.mul_(0.9).add_(0.1 * var.detach())
        return (x - mean.view(1, -1, 1, 1)) * (var[:, None, None] + 1e-5).rsqrt() * self.weight


def of_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.size(1))
    return rows.mean(0), rows.var(0, unbiased=False)


def of_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    columns = x.transpose(0, 1).flatten(1)
    mean = columns.mean(1, keepdim=True)
    return mean, (columns - mean).square().mean(1)


def of_images(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean((2, 3)).mean(0)
    return mean, x.square().mean((2, 3), keepdim=True).mean(0, keepdim=True)[0, :, 0, 0] - mean**2


BATCH_STATISTICS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "mean": lambda x: (m := x.mean((0, 2, 3), keepdim=True), ((x - m) ** 2).mean(dim=(0, 2, 3))),
    "var_mean": lambda x: torch.var_mean(x, (0, 2, 3), unbiased=False, keepdim=True)[::-1],  # type: ignore[return-value]
    "std": lambda x: (x.mean((0, -1, -2)), x.float().to(x.dtype).std((0, 2, 3)) ** 2),
    "channels last": lambda x: (x.movedim(1, -1).mean((0, 1, 2)), x.movedim(1, -1).var((0, 1, 2), correction=0)),
    "positions in one axis": lambda x: (x.flatten(2).mean((0, 2)), x.flatten(2).var((0, 2))),
    "rows": of_rows,
    "columns": of_columns,
    "of images": of_images,
    "all channels": lambda x: (x.mean().expand(4), x.var().expand(4)),
    "range": lambda x: ((x.amax((0, 2, 3)) + x.amin((0, 2, 3))) / 2, x.amax((0, 2, 3)) - x.amin((0, 2, 3))),
}


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch, not affine": lambda: nn.BatchNorm2d(4, affine=False),
    "batch, cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
    "batch, no running statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "batch of pooled values": lambda: SqueezeExcite(nn.BatchNorm2d(4), pooled),
    "batch of values pooled by a module": lambda: SqueezeExcite(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)),
    **{f"batch, by hand, {name}": partial(BatchNormByHand, of) for name, of in BATCH_STATISTICS.items()},
    "batch of pooled values, by hand": lambda: SqueezeExcite(BatchNormByHand(BATCH_STATISTICS["mean"]), pooled),
    "group": lambda: nn.GroupNorm(2, 4),
    "group of one channel each": lambda: nn.GroupNorm(4, 4, affine=False),
    "group of all channels": lambda: nn.GroupNorm(1, 4),
    "group of pooled values": lambda: SqueezeExcite(nn.GroupNorm(2, 4), pooled),
    "instance": lambda: nn.InstanceNorm2d(4),
    "instance, affine": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance, running statistics": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "layer": lambda: ChannelsLast(nn.LayerNorm(4)),
    "layer of the whole map": lambda: Apply(lambda x: F.layer_norm(x, x.shape[1:], eps=1e-3)),
    "layer of pooled values": lambda: SqueezeExcite(ChannelsLast(nn.LayerNorm(4)), pooled),
    "root mean square": lambda: ChannelsLast(nn.RMSNorm(4)),
    "global response": lambda: GlobalResponseNorm(4),
    "between convolutions": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_layers(make: Callable[[], nn.Module], visible: Tensor, training: bool) -> None:
    assert_agrees_with_oracle(randomized(make()).train(training), visible, 4, (4, 2))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("mask", BOXES)
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_layers_on_boxes(make: Callable[[], nn.Module], mask: str, training: bool) -> None:
    assert_agrees_with_crop(randomized(make()).train(training), MASKS[mask], 4, (4, 2))


def norms(dims: int) -> dict[str, Callable[[], nn.Module]]:
    return {
        "batch": lambda: BATCH_NORMS[dims](4),
        "group": lambda: nn.GroupNorm(2, 4),
        "instance": lambda: INSTANCE_NORMS[dims](4, affine=True, track_running_stats=True),
        "layer": lambda: ChannelsLast(nn.LayerNorm(4)),
    }


@given(data=st.data(), dims=st.integers(1, 3), kind=st.sampled_from(sorted(norms(2))), training=st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_mask(data: st.DataObject, dims: int, kind: str, training: bool) -> None:
    visible = data.draw(draw_visible(dims, largest=3))
    patch = (2, *[data.draw(st.integers(1, 3)) for _ in range(dims - 1)])  # more than one value to normalize over
    assert_agrees_with_oracle(randomized(norms(dims)[kind]()).train(training), visible, 4, patch)


@given(data=st.data(), dims=st.integers(1, 3), kind=st.sampled_from(sorted(norms(2))), training=st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_box(data: st.DataObject, dims: int, kind: str, training: bool) -> None:
    visible = data.draw(draw_rectangles(dims, largest=3))
    patch = (2, *[data.draw(st.integers(1, 3)) for _ in range(dims - 1)])
    assert_agrees_with_crop(randomized(norms(dims)[kind]()).train(training), visible, 4, patch)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", sorted(norms(2)))
def test_one_image(kind: str, training: bool) -> None:
    """The axis of images vanishes from memory layouts, and the gradient comes channels last, as a convolution sends it:
    torch's batch norm of a contiguous map mistakes the one for the other (seen in 2.15)."""
    network: nn.Module = nn.Sequential(norms(2)[kind](), nn.Conv2d(4, 4, 3, padding=1))
    network = randomized(network).train(training)
    assert_agrees_with_oracle(network, MASKS["boxes"][:1], 4, (3, 2))
    assert_agrees_with_crop(network, MASKS["boxes"][:1], 4, (3, 2))


@pytest.mark.parametrize("mask", BOXES)
def test_standardized_weights(mask: str) -> None:
    """Weight standardization calls batch norm with a weight: the engine must leave it alone, in train mode too."""

    def convolve(x: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
        standardized = F.batch_norm(weight.reshape(1, 4, -1), None, None, gain, training=True, momentum=0.0)
        return F.conv2d(x, standardized.reshape_as(weight), padding=1)

    network = Apply(convolve, weight=torch.randn(4, 4, 3, 3).double(), gain=torch.rand(4).double())
    assert_agrees_with_oracle(network, MASKS[mask], 4, (2, 2))
    assert_agrees_with_crop(network, MASKS[mask], 4, (2, 2))


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_no_waiting_for_the_device(name: str) -> None:
    assert_never_waits(LAYERS[name], (2, 3, 3), 4, 4, (4, 2))


def test_waiting_is_noticed() -> None:
    """The reference picks out visible positions with a mask, which has to be read."""
    with pytest.raises(DynamicOutputShapeException):
        assert_never_waits(LAYERS["batch"], (2, 3, 3), 4, 4, (4, 2), MaskedDenseExecution)


REFUSED = {
    "layer norm with a weight a position": lambda x: F.layer_norm(x, x.shape[1:], torch.ones(4, 12, 12).double()),
    "layer norm of channels that come second": lambda x: F.layer_norm(x, x.shape[-1:]),
    "batch norm of channels that come last": lambda x: F.batch_norm(x.permute(0, 2, 3, 1), None, None, training=True),
    "group norm of channels that come last": lambda x: F.group_norm(x.permute(0, 2, 3, 1), 1),
    "instance norm of channels that come last": lambda x: F.instance_norm(x.permute(0, 2, 3, 1)),
    "instance norm of pooled values": lambda x: F.instance_norm(pooled(x)),
    "batch norm with samples elsewhere": lambda x: F.batch_norm(x.transpose(0, 1), None, None, training=True),
    "batch norm after padding": lambda x: F.batch_norm(F.pad(x, (1, 1, 1, 1)), None, None, training=True),
    "group norm after padding": lambda x: F.group_norm(F.pad(x, (1, 1, 1, 1)), 1),
    "a weight made of the input": lambda x: F.group_norm(x, 1, x.amax((1, 2, 3))),
    "a sum over the batch": lambda x: x - x.sum((0, 2, 3), keepdim=True),
    "a mean of each position": lambda x: x - x.mean(0),
    "a mean of each row": lambda x: x - x.mean((0, 3), keepdim=True),
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED.keys())
def test_refused(function: Callable[[Tensor], Tensor]) -> None:
    assert_refused(Apply(function), MASKS["boxes"], 4, (4, 4))


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_in_16_bits_as_on_cuda(affine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of 16 bits stays in these under autocast, within their rounding; one of float32 is left alone."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 4, 4), Permuted(nn.LayerNorm(32, elementwise_affine=affine)))
    images = torch.randn(2, 3, 16, 16)
    grid = PatchGrid(torch.tensor([[[True, False], [True, True]], [[False, True], [True, True]]]), 3)

    def passed(enabled: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (out,) = run(SparseExecution(grid), network, images)
        return [out, *torch.autograd.grad(out.float().square().sum(), list(network.parameters()))]

    exact, autocast = passed(False), passed(True)
    monkeypatch.setattr(pointwise, "_on_cuda", lambda x: True)
    assert all(torch.equal(same, expected) for same, expected in zip(passed(False), exact, strict=True))
    mine = passed(True)
    assert mine[0].dtype == torch.bfloat16
    for a, b, c in zip(mine, autocast, exact, strict=True):
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + 2e-2 * c.abs().max()


class Permuted(nn.Module):
    """Applies a layer with channels last."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out
