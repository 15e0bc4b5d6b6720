"""Convolution over packed patches is convolution of the masked image: values and gradients, any geometry."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from engine_helpers import (
    Apply,
    StoragesMade,
    assert_agrees_with_crop,
    assert_agrees_with_oracle,
    assert_never_waits,
    assert_refused,
    draw_rectangles,
    draw_visible,
)
from sparkmim.sparse import MaskedDenseExecution, PatchGrid, SparseExecution, run
from sparkmim.sparse.packed import conv as conv_rules

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

# The three ways of computing a convolution, forced: GEMM_PIXELS, DENSE_ADVANTAGE.
PATHS = {"halo": (0, math.inf), "matrix product": (10**6, math.inf), "whole map": (0, 0.0), "chosen": (4, 2.0)}


@pytest.fixture(params=list(PATHS.values()), ids=list(PATHS))
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    take(request.param, monkeypatch)


def take(path: tuple[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_rules, "GEMM_PIXELS", path[0])
    monkeypatch.setattr(conv_rules, "DENSE_ADVANTAGE", path[1])


class Axis(NamedTuple):
    """A convolution along one axis. Of the padding `low`, `high`, so much as `own` is left to the convolution."""

    kernel: int
    stride: int
    dilation: int
    low: int
    high: int
    own: int
    out: int


@st.composite
def axes(draw: st.DrawFn, widest: int = 7) -> Axis:
    """Any aligned geometry: n positions become n / stride, with whatever padding before and after."""
    kernel = draw(st.integers(1, widest))
    dilation = draw(st.integers(1, 3 if widest > 3 else 2)) if kernel > 1 else 1
    stride = draw(st.sampled_from([1, 1, 2, 3, 4]))
    extent = (kernel - 1) * dilation + 1
    total = draw(st.integers(max(extent - stride, 0), extent - 1))
    out = draw(st.integers(1, 3))
    crop = draw(st.sampled_from([0, 0, min(stride * out - 1, 2)]))  # of one side, which the other makes up for
    low = draw(st.integers(-crop, total + crop))
    own = draw(st.integers(0, max(min(low, total - low), 0)))
    return Axis(kernel, stride, dilation, low, total - low, own, out)


class Convolution(NamedTuple):
    """A drawn convolution: `function(x, weight, bias)`, and the maps it takes."""

    function: Callable[..., Tensor]
    weight: Tensor
    bias: Tensor | None
    channels: int
    patch: tuple[int, ...]


@st.composite
def convolutions(draw: st.DrawFn, dims: int) -> Convolution:
    along = [draw(axes(widest=3 if dims == 3 else 7)) for _ in range(dims)]
    groups, per_group = draw(st.sampled_from([(1, 2), (1, 3), (2, 1), (2, 2), (3, 1)]))
    out = groups * draw(st.integers(1, 2))
    kernel = [axis.kernel for axis in along]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, per_group, *kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(out, generator=generator, dtype=torch.float64) if draw(st.booleans()) else None
    own = tuple(axis.own for axis in along)
    sides = [side for axis in along for side in (axis.high - axis.own, axis.low - axis.own)][::-1]
    value = 0.0 if any(own) else draw(st.sampled_from([0.0, 1.5]))

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if any(sides):
            x = F.pad(x, sides, value=value)
        return CONVOLUTIONS[dims](
            x, weight, bias, [a.stride for a in along], own, [a.dilation for a in along], groups=groups
        )

    return Convolution(convolve, weight, bias, groups * per_group, tuple(a.stride * a.out for a in along))


# --- against the oracle ---------------------------------------------------------------------------------------------


@given(data=st.data(), dims=st.sampled_from([1, 2, 2, 2, 3]), path=st.sampled_from(sorted(PATHS)))
@settings(max_examples=300, deadline=None)
def test_any_convolution(data: st.DataObject, dims: int, path: str) -> None:
    visible = data.draw(draw_visible(dims, largest={1: 6, 2: 4, 3: 2}[dims]))
    case = data.draw(convolutions(dims))
    network = Apply(case.function, weight=case.weight, bias=case.bias)
    with pytest.MonkeyPatch.context() as monkeypatch:
        take(PATHS[path], monkeypatch)
        assert_agrees_with_oracle(network, visible, case.channels, case.patch)


CROPS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
    "a slice": (nn.ZeroPad2d((2, 1, 2, 1)), lambda x: x[:, :, 1:, 1:]),
    "a slice of its size": (nn.ZeroPad2d((1, 3, 1, 3)), lambda x: x[..., : x.shape[2] - 2, : x.shape[3] - 2]),
    "slices": (nn.ConstantPad2d(2, 1.0), lambda x: x[:, :, 1:][..., :-1][..., 1:].contiguous()[:, :, :-1, :]),
    "negative bounds": (nn.ReflectionPad2d((2, 1, 2, 1)), lambda x: x[:, :, -x.size(2) + 1 :, 1:]),
    "pad": (nn.ReplicationPad2d(2), lambda x: F.pad(x, (-1, -1, -1, -1))),
}


def cropped_within(pad: nn.Module, cut: Callable[[Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(pad, Apply(cut), nn.Conv2d(4, 6, 3))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "3x3": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "3x3 without bias": lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "3x3 stride 2": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "1x1 stride 2": lambda: nn.Conv2d(4, 6, 1, stride=2),
    "2x2 stride 2": lambda: nn.Conv2d(4, 6, 2, stride=2),
    "7x7 stride 2": lambda: nn.Conv2d(4, 6, 7, stride=2, padding=3),
    "7x7 depthwise": lambda: nn.Conv2d(4, 4, 7, padding=3, groups=4),
    "7x7 depthwise stride 2": lambda: nn.Conv2d(4, 8, 7, stride=2, padding=3, groups=4),
    "3x3 stride 4 depthwise": lambda: nn.Conv2d(4, 8, 3, stride=4, padding=1, groups=4),  # leaves pixels unread
    "4x4 same": lambda: nn.Conv2d(4, 6, 4, padding="same"),
    "3x5 same, dilated": lambda: nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 3)),
    "per axis": lambda: nn.Conv2d(4, 6, (1, 5), stride=(1, 2), padding=(0, 2)),
    "asymmetric": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(4, 6, (3, 3), stride=(1, 2))),
    "tensorflow same": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 6, 3, stride=2)),
    "padded twice": lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 0, 1)), nn.ZeroPad2d(1), nn.Conv2d(4, 6, 4)),
    "padded with ones": lambda: nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(4, 6, 3)),
    "no padding asked for": lambda: nn.Sequential(nn.ZeroPad2d(0), nn.Conv2d(4, 6, 1, padding="valid")),
    "shifted": lambda: nn.Sequential(nn.ZeroPad2d((-1, 1, -1, 1)), nn.Conv2d(4, 6, 1, stride=2)),
    "shifted, nothing else": lambda: nn.Sequential(nn.ZeroPad2d((2, -2, -1, 1)), nn.Conv2d(4, 6, 1)),
    "shifted by more than is padded": lambda: nn.Sequential(nn.ZeroPad2d((-2, 4, 0, 2)), nn.Conv2d(4, 4, 3, groups=4)),
    "padded, then cropped": lambda: nn.Sequential(nn.ZeroPad2d(2), nn.ZeroPad2d(-1), nn.Conv2d(4, 6, 3)),
    **{f"padded, then cropped by {name}": partial(cropped_within, *how) for name, how in CROPS.items()},
    "shifted by slices": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), Apply(lambda x: x[:, :, 1:, 1:]), nn.Conv2d(4, 6, 1, stride=2)
    ),
    "a slice of what is not padded": lambda: nn.Sequential(Apply(lambda x: x[:, :, 1:, :-1]), nn.Conv2d(4, 6, 1, 2)),
    "channels padded": lambda: nn.Sequential(nn.ConstantPad3d((0, 0, 0, 0, 1, 1), 2.0), nn.Conv2d(6, 4, 3, padding=1)),
    "channels and space padded": lambda: nn.Sequential(nn.ConstantPad3d((1, 1, 1, 1, 0, 2), 0.0), nn.Conv2d(6, 4, 3)),
    "three layers": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 5, padding=2), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 2, 7, padding=3)
    ),
}

MASKS = {
    "one patch": torch.tensor([[[False, True, False]], [[True, False, False]]]),
    "all patches": torch.ones(2, 2, 3, dtype=torch.bool),
    "row": torch.tensor([[[True, True, False, True, False]]]),
    "column": torch.tensor([[[True], [False], [True], [True]]]),
    "boxes": torch.tensor([
        [[True, True, False], [True, True, False], [False, False, False]],
        [[False, False, False], [False, True, True], [False, True, True]],
    ]),
}  # fmt: skip


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
# torch says that "same" padding of an even kernel makes a copy of the dense map
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_layers(make: Callable[[], nn.Module], visible: Tensor) -> None:
    assert_agrees_with_oracle(make().double(), visible, 4, (4, 8))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("block", [(1, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_halo_wider_than_a_patch(block: tuple[int, ...], groups: int) -> None:
    visible = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0)).argsort(2) < 3
    network = nn.Conv2d(4, 4, 7, padding=3, groups=groups).double()
    assert_agrees_with_oracle(network, visible, 4, block)


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_signals_and_volumes(dims: int, groups: int) -> None:
    layer = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    network = nn.Sequential(
        layer(4, 4, 3, padding=1, groups=groups),
        layer(4, 8, 3, stride=2, padding=1, groups=groups),
        layer(8, 2, 5, padding=2),
    ).double()
    scattered = torch.rand(2, *[3] * dims, generator=torch.Generator().manual_seed(0)).argsort(dims) < 2
    assert_agrees_with_oracle(network, scattered, 4, (2, 4, 2)[:dims])
    box = torch.zeros(1, *[3] * dims, dtype=torch.bool)
    box[(slice(None), *[slice(0, 2)] * dims)] = True
    assert_agrees_with_crop(network, box, 4, (2, 4, 2)[:dims])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("wanted", ["input", "weight", "bias"])
def test_each_gradient_alone(wanted: str, stride: int, groups: int) -> None:
    """Backward computes only what is asked for, so each part must stand on its own."""
    visible = MASKS["boxes"]
    grid = PatchGrid(visible, 4)
    layer = nn.Conv2d(4, 4, 3, padding=1, stride=stride, groups=groups).double()
    images = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    def gradients(execution: Any, wanted: list[str]) -> list[Tensor]:
        leaves = {"input": images.clone(), **{name: p.detach().clone() for name, p in layer.named_parameters()}}
        for name in wanted:
            leaves[name].requires_grad_()
        params = {name: leaves[name] for name in ("weight", "bias")}
        (out,) = run(execution, layer, leaves["input"], lambda x: torch.func.functional_call(layer, params, (x,)))
        out = out if isinstance(execution, SparseExecution) else grid.pack(out)
        upstream = torch.ones_like(out).cumsum(1).cumsum(2)
        return list(torch.autograd.grad(out, [leaves[name] for name in wanted], upstream))

    actual, expected = gradients(SparseExecution(grid), [wanted]), gradients(MaskedDenseExecution(grid), [wanted])
    torch.testing.assert_close(actual, expected)


# --- independent of the oracle --------------------------------------------------------------------------------------


@given(data=st.data(), dims=st.sampled_from([1, 2, 2, 3]), path=st.sampled_from(sorted(PATHS)))
@settings(max_examples=150, deadline=None)
def test_a_box_is_convolved_as_its_crop(data: st.DataObject, dims: int, path: str) -> None:
    visible = data.draw(draw_rectangles(dims, largest={1: 6, 2: 4, 3: 2}[dims]))
    case = data.draw(convolutions(dims))
    network = Apply(case.function, weight=case.weight, bias=case.bias)
    with pytest.MonkeyPatch.context() as monkeypatch:
        take(PATHS[path], monkeypatch)
        assert_agrees_with_crop(network, visible, case.channels, case.patch)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("mask", ["all patches", "boxes"])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_layers_on_boxes(make: Callable[[], nn.Module], mask: str) -> None:
    assert_agrees_with_crop(make().double(), MASKS[mask], 4, (4, 8))


def test_convolution_of_pooled_values() -> None:
    """Squeeze and excite, and ECA's convolution along channels, whose batch are the images."""

    def excite(x: Tensor, weight: Tensor, kernel: Tensor) -> Tensor:
        gate = F.conv2d(x.mean((2, 3), keepdim=True), weight)
        return x * gate * F.conv1d(x.mean((2, 3))[:, None], kernel, padding=1)[:, 0, :, None, None]

    network = Apply(excite, weight=torch.randn(4, 4, 1, 1).double(), kernel=torch.randn(1, 1, 3).double())
    assert_agrees_with_oracle(network, MASKS["row"], 4, (2, 3))
    assert_agrees_with_crop(network, MASKS["boxes"], 4, (2, 3))


@pytest.mark.parametrize("padding", [0, (0, 0), [0, 0], (0,), "valid"], ids=str)
def test_every_way_to_write_no_padding(padding: Any) -> None:
    """Padding of ones goes before a convolution that does not pad, however it says so."""
    network = Apply(
        lambda x, weight: F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), weight, padding=padding),
        weight=torch.randn(4, 4, 3, 3).double(),
    )
    assert_agrees_with_oracle(network, MASKS["boxes"], 4, (2, 2))


def test_weight_computed_from_parameters() -> None:
    """A weight has the shape of a map but never is one: standardizing it is none of the engine's business."""

    def standardized(x: Tensor, weight: Tensor) -> Tensor:
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, padding=1)

    network = Apply(standardized, weight=torch.randn(4, 4, 3, 3).double())
    assert_agrees_with_oracle(network, MASKS["boxes"], 4, (3, 3))


@pytest.mark.parametrize("groups", [1, 4])
def test_autocast(groups: int) -> None:
    grid = PatchGrid(MASKS["boxes"], 4)
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=groups)
    images = torch.randn(2, 4, 12, 12)
    outs, gradients = [], []
    for execution in (SparseExecution(grid), MaskedDenseExecution(grid)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (out,) = run(execution, layer, images)
        assert out.dtype == torch.bfloat16
        outs.append(out if isinstance(execution, SparseExecution) else grid.pack(out))
        gradients.append(torch.autograd.grad(outs[-1].float().square().sum(), list(layer.parameters())))
    torch.testing.assert_close(outs[0], outs[1], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=2e-2, atol=0.5)


# --- memory and waiting ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("groups", [1, 16], ids=["full", "depthwise"])
@pytest.mark.parametrize("stride", [1, 2])
def test_backward_keeps_patches_and_not_halos(groups: int, stride: int) -> None:
    grid = PatchGrid(torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).argsort(2) < 2, 8)
    layers = [nn.Conv2d(16, 16, 3, padding=1, stride=stride, groups=groups) for _ in range(3)]
    saved: dict[str, dict[int, int]] = {"float": {}, "table": {}}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved["float" if tensor.is_floating_point() else "table"][storage.data_ptr()] = storage.nbytes()
        return tensor

    network = nn.Sequential(*layers)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        (out,) = run(SparseExecution(grid), network, torch.randn(2, 16, 64, 64))
    inputs = sum(16 * 16 * 16 * 16 * 4 // stride ** (2 * depth) for depth in range(3))  # N, C, h, w, bytes
    assert sum(saved["float"].values()) == inputs + sum(layer.weight.nbytes for layer in layers)
    out.sum().backward()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("groups", [1, 16], ids=["full", "depthwise"])
def test_nothing_but_patches_outlives_forward(groups: int) -> None:
    """Nor may a halo be kept where autograd's hooks do not see it, as an attribute of the context."""
    grid = PatchGrid(torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).argsort(2) < 2, 8)
    layer = nn.Conv2d(16, 16, 3, padding=1, groups=groups)
    images = torch.randn(2, 16, 64, 64)
    with StoragesMade(but_not_of=[images, *layer.parameters()]) as storages:
        (out,) = run(SparseExecution(grid), layer, images)
    assert storages.bytes_alive() == 2 * out.nbytes  # what went into the layer and what came out of it
    assert out.nbytes == images.nbytes // 2
    out.sum().backward()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("groups", [1, 16], ids=["full", "depthwise"])
def test_no_waiting_for_the_device(groups: int) -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=groups),
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(16, 16, 3, stride=2, groups=groups),
            nn.Conv2d(16, 16, 7, padding=3, groups=groups),
        )

    assert_never_waits(make, (2, 4, 4), 6, 16, (4, 4))


# --- what cannot be aligned with the patches ------------------------------------------------------------------------

MISALIGNED = {
    "unpadded 3x3": nn.Conv2d(4, 4, 3),
    "unpadded 3x3 stride 2": nn.Conv2d(4, 4, 3, stride=2),
    "valid 2x2": nn.Conv2d(4, 4, 2, padding="valid"),
    "padded too much": nn.Conv2d(4, 4, 3, padding=2),
    "padded 1x1": nn.Conv2d(4, 4, 1, padding=1),
    "even kernel": nn.Conv2d(4, 4, 2, padding=1),
    "dilated and padded as if not": nn.Conv2d(4, 4, 3, padding=1, dilation=2),
    "padded before and within": nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3, padding=1)),
    "only one axis": nn.Conv2d(4, 4, 3, padding=(1, 0)),
    "stride wider than a patch": nn.Conv2d(4, 4, 8, stride=8),
    "stride that does not divide a patch": nn.Conv2d(4, 4, 3, stride=3),
}


@pytest.mark.parametrize("network", MISALIGNED.values(), ids=MISALIGNED.keys())
def test_what_cannot_be_aligned_is_refused(network: nn.Module) -> None:
    assert_refused(network.double(), MASKS["boxes"], 4, (4, 4), "aligned with the patches|does not divide a patch")


REFUSED = {
    "two values of padding": nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(4, 4, 5, padding=1)),
    "padded twice with two values": nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 5)),
    "wrapped around": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    "cropped": nn.Sequential(nn.ZeroPad2d(-1), nn.ReLU()),
    "cropped by a slice": nn.Sequential(Apply(lambda x: x[..., 1:, 1:]), nn.ReLU()),
    "cropped into and mirrored": nn.Sequential(
        nn.ReflectionPad2d(1), Apply(lambda x: x[:, :, 2:, 2:]), nn.Conv2d(4, 4, 1, stride=2)
    ),
    "cropped and padded again": nn.Sequential(nn.ZeroPad2d((-1, 0, -1, 0)), nn.Conv2d(4, 4, 4, padding=2)),
    "cropped and padded again before": nn.Sequential(
        nn.ZeroPad2d((-1, 0, 0, 0)), nn.ZeroPad2d((1, 0, 0, 0)), nn.Conv2d(4, 4, 1)
    ),
    "something else after padding": nn.Sequential(nn.ZeroPad2d(1), nn.ReLU(), nn.Conv2d(4, 4, 3)),
    "transposed with a kernel beyond its stride": nn.ConvTranspose2d(4, 4, 3, stride=2),
}


@pytest.mark.parametrize("network", REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_rule_is_refused(network: nn.Module) -> None:
    assert_refused(network.double(), MASKS["boxes"], 4, (4, 4))


def test_a_weight_made_of_the_input_is_refused() -> None:
    assert_refused(Apply(lambda x: F.conv2d(x, x.mean((2, 3), keepdim=True))), MASKS["boxes"], 4, (4, 4), "weight")


def test_channels_last_maps_are_refused() -> None:
    network = Apply(lambda x, weight: F.conv2d(x.permute(0, 2, 3, 1), weight), weight=torch.ones(4, 4, 1, 1).double())
    assert_refused(network, MASKS["boxes"], 4, (4, 4), "laid out as")


def test_large_volumes_are_convolved_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, forward and backward: torch writes out what each kernel sees of volumes in float64."""
    network, images = nn.Conv3d(2, 3, 3, padding=1).double(), torch.randn(2, 2, 4, 6, 4, dtype=torch.float64)
    grid = PatchGrid(torch.tensor([[[[1, 0], [1, 1], [0, 0]]], [[[0, 1], [1, 0], [1, 0]]]]).bool(), 3)

    def outcome() -> list[Tensor]:
        given = images.clone().requires_grad_()
        (out,) = run(SparseExecution(grid), network, given)
        return [out, *torch.autograd.grad(out.sin().sum(), [given, *network.parameters()])]

    whole = outcome()
    monkeypatch.setattr("sparkmim.sparse.packed.conv.MOST_COLUMNS", 2000)
    for ours, expected in zip(outcome(), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)
