"""Pooling over packed patches: maxima ignore hidden neighbors, averages count them as they count padding."""

import math
from collections.abc import Callable
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
from sparkmim.sparse import PatchGrid, SparseExecution, run

MASKS = {
    "one patch": torch.tensor([[[False, True, False]], [[True, False, False]]]),
    "all patches": torch.ones(2, 2, 3, dtype=torch.bool),
    "row": torch.tensor([[[True, True, False, True, False]]]),
    "boxes": torch.tensor([
        [[True, True, False], [True, True, False], [False, False, False]],
        [[False, False, False], [False, True, True], [False, True, True]],
    ]),
}  # fmt: skip
BOXES = ["all patches", "boxes"]


class Axis(NamedTuple):
    """A pooling along one axis. Of the padding `low`, `high`, so much as `own` is left to the pooling."""

    kernel: int
    stride: int
    dilation: int
    low: int
    high: int
    own: int
    out: int


@st.composite
def axes(draw: st.DrawFn, ceil_mode: bool, dilations: int, symmetric: bool) -> Axis:
    """Any aligned geometry: n positions become n / stride."""
    stride = draw(st.sampled_from([1, 2, 2, 3]))
    kernel = draw(st.integers(stride if ceil_mode else 1, 5))
    dilation = draw(st.integers(1, dilations)) if kernel > 1 else 1
    extent = (kernel - 1) * dilation + 1
    # What is missing to one more window, extent - total, is at most a stride; in ceil mode that window is there too.
    least, most = (extent - 2 * stride + 1, extent - stride) if ceil_mode else (extent - stride, extent - 1)
    total = draw(st.integers(max(least, 0), most))
    if symmetric and total % 2:  # nothing may be left to F.pad
        total = total - 1 if total - 1 >= max(least, 0) else total + 1
        if total > most:
            stride, kernel, dilation, total = 1, 1, 1, 0
    out = draw(st.integers(1, 3))
    # Of one side, which the other makes up for; in ceil mode a window would pad again what is cropped.
    crop = 0 if ceil_mode else draw(st.sampled_from([0, 0, min(stride * out - 1, 2)]))
    low = total // 2 if symmetric else draw(st.integers(-crop, total + crop))
    # The pooling itself accepts no more than half its kernel. And a dilated window that steps over a small map sees
    # nothing: for that, torch gives a place outside the map, and writes there in backward (2.15, CPU).
    widest = max(min(low, total - low, kernel // 2), 0) if dilation == 1 else 0
    own = widest if symmetric else draw(st.integers(0, widest))
    return Axis(kernel, stride, dilation, low, total - low, own, out)


def padded(x: Tensor, along: list[Axis], value: float) -> Tensor:
    sides = [side for axis in along for side in (axis.high - axis.own, axis.low - axis.own)][::-1]
    return F.pad(x, sides, value=value) if any(sides) else x


class Pooling(NamedTuple):
    """A drawn pooling and the patches it takes."""

    function: Callable[[Tensor], Tensor]
    along: list[Axis]
    arguments: tuple[Any, ...]

    @property
    def patch(self) -> tuple[int, ...]:
        return tuple(axis.stride * axis.out for axis in self.along)


@st.composite
def max_poolings(draw: st.DrawFn) -> Pooling:
    ceil_mode = draw(st.booleans())
    along = [draw(axes(ceil_mode, dilations=2, symmetric=False)) for _ in range(2)]
    kernel, stride, dilation, own = (
        tuple(getattr(a, name) for a in along) for name in ("kernel", "stride", "dilation", "own")
    )
    # The pooling itself pads with -inf, also where ceil_mode lets a window leave the map.
    value = -math.inf if any(own) or ceil_mode else draw(st.sampled_from([0.0, 0.5, -math.inf]))

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(padded(x, along, value), kernel, stride, own, dilation, ceil_mode)

    return Pooling(pool, along, (value, ceil_mode))


@st.composite
def average_poolings(draw: st.DrawFn) -> Pooling:
    count_include_pad = draw(st.booleans())
    divisor = draw(st.sampled_from([None, None, 1, 7]))
    # Padding of its own that is not counted, and F.pad before that, have no rule.
    uncounted = not count_include_pad and divisor is None
    symmetric = uncounted and draw(st.booleans())
    along = [draw(axes(ceil_mode=False, dilations=1, symmetric=symmetric)) for _ in range(2)]
    if uncounted and not symmetric:
        along = [axis._replace(own=0) for axis in along]
    kernel, stride, own = (tuple(getattr(axis, name) for axis in along) for name in ("kernel", "stride", "own"))
    value = 0.0 if any(own) else draw(st.sampled_from([0.0, 1.5]))

    def pool(x: Tensor) -> Tensor:
        return F.avg_pool2d(padded(x, along, value), kernel, stride, own, False, count_include_pad, divisor)

    return Pooling(pool, along, (value, count_include_pad, divisor))


POOLINGS = {"max": max_poolings, "average": average_poolings}


@given(data=st.data(), kind=st.sampled_from(sorted(POOLINGS)))
@settings(max_examples=200, deadline=None)
def test_any_pooling(data: st.DataObject, kind: str) -> None:
    visible = data.draw(draw_visible())
    pooling = data.draw(POOLINGS[kind]())
    assert_agrees_with_oracle(Apply(pooling.function), visible, 2, pooling.patch)


@given(data=st.data(), kind=st.sampled_from(sorted(POOLINGS)))
@settings(max_examples=150, deadline=None)
def test_a_box_is_pooled_as_its_crop(data: st.DataObject, kind: str) -> None:
    visible = data.draw(draw_rectangles())
    pooling = data.draw(POOLINGS[kind]())
    assert_agrees_with_crop(Apply(pooling.function), visible, 2, pooling.patch)


LAYERS = {
    "max 3 s2 p1": nn.MaxPool2d(3, 2, 1),
    "max 3 s2 ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max 2": nn.MaxPool2d(2),
    "max 3 s1 p1": nn.MaxPool2d(3, 1, 1),
    "max 5 s1 p2": nn.MaxPool2d(5, stride=1, padding=2),
    "max dilated": nn.MaxPool2d(3, 4, 1, dilation=2),
    "max per axis": nn.MaxPool2d((3, 1), (2, 1), (1, 0)),
    "max after zero padding": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)),
    "max after -inf padding": nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -math.inf), nn.MaxPool2d(3, 2)),
    "max after -inf padding and its own": nn.Sequential(
        nn.ConstantPad2d((1, 0, 1, 0), -math.inf), nn.MaxPool2d(4, 1, 1)
    ),
    "average 2": nn.AvgPool2d(2),
    "average 3 s1 p1": nn.AvgPool2d(3, 1, 1),
    "average 3 s1 p1, padding not counted": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "average 3 s2 p1": nn.AvgPool2d(3, 2, 1),
    "average 3 s2 p1, padding not counted": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average with divisor": nn.AvgPool2d(3, 1, 1, divisor_override=5),
    "average with divisor, padding not counted": nn.AvgPool2d(3, 2, 1, count_include_pad=False, divisor_override=2),
    "average after padding": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1)),
    "average after padding and its own": nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.AvgPool2d(4, 1, 1)),
    "average, ceil without effect": nn.AvgPool2d(2, 2, ceil_mode=True),
    "average, ceil within its padding": nn.AvgPool2d(4, 2, 1, ceil_mode=True),
    "average, ceil within its padding, not counted": nn.AvgPool2d(4, 2, 1, ceil_mode=True, count_include_pad=False),
    "average after padding, its own not counted": nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1, count_include_pad=False)
    ),
    "average, shifted": nn.Sequential(nn.ZeroPad2d((-1, 1, -1, 1)), nn.AvgPool2d(1, 2, count_include_pad=False)),
    "max, shifted": nn.Sequential(nn.ZeroPad2d((1, -1, -1, 1)), nn.MaxPool2d(1, 1)),
    "strided twice": nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("network", LAYERS.values(), ids=LAYERS.keys())
def test_layers(network: nn.Module, visible: Tensor) -> None:
    assert_agrees_with_oracle(network, visible, 2, (4, 8))


@pytest.mark.parametrize("mask", BOXES)
@pytest.mark.parametrize("network", LAYERS.values(), ids=LAYERS.keys())
def test_layers_on_boxes(network: nn.Module, mask: str) -> None:
    assert_agrees_with_crop(network, MASKS[mask], 2, (4, 8))


@pytest.mark.parametrize(
    "network", [nn.MaxPool2d(5, 1, 2), nn.AvgPool2d(5, 1, 2), nn.AvgPool2d(5, 1, 2, count_include_pad=False)], ids=str
)
def test_window_wider_than_a_patch(network: nn.Module) -> None:
    visible = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0)).argsort(2) < 3
    assert_agrees_with_oracle(network, visible, 2, (1, 1))
    assert_agrees_with_oracle(network, visible, 2, (1, 2))


@pytest.mark.parametrize("mask", BOXES)
def test_forms_of_calling(mask: str) -> None:
    def pool(x: Tensor) -> list[Tensor]:
        return [
            F.max_pool2d(x, [2]),
            torch.max_pool2d(x, 3, stride=[2, 2], padding=[1, 1]),
            F.max_pool2d(x, kernel_size=3, stride=1, padding=(1,)),
            F.avg_pool2d(x, (3,), (1,), (1,)),
            F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False),
        ]

    assert_agrees_with_oracle(Apply(pool), MASKS[mask], 2, (4, 4))
    assert_agrees_with_crop(Apply(pool), MASKS[mask], 2, (4, 4))


@pytest.mark.parametrize("patch", [(4, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d], ids=["max", "average"])
def test_window_of_the_whole_map(
    pool: Callable[..., Tensor], patch: tuple[int, int],
) -> None:  # fmt: skip
    """Its sizes are read off the map, so it means the whole map, not a patch."""
    for mask in BOXES:
        network = Apply(lambda x: x * pool(x, x.shape[2:]) + pool(x, kernel_size=(x.size(2), x.size(3)), stride=1))
        assert_agrees_with_oracle(network, MASKS[mask], 2, patch)
        assert_agrees_with_crop(network, MASKS[mask], 2, patch)
    square = Apply(lambda x: x * pool(x, x.shape[2]))  # of one axis for both, which fits square maps alone
    assert_agrees_with_oracle(square, MASKS["boxes"], 2, (4, 4))
    assert_refused(square, MASKS["all patches"], 2, patch)
    for part in (
        lambda x: pool(x, (2 * x.shape[2], x.shape[3])),
        *([lambda x: pool(x, 1, x.shape[2:])] if pool is F.max_pool2d else []),  # averages count hidden as padding
        lambda x: pool(x, x.shape[2:], 1, [x.shape[2] // 1, 0]),
    ):
        assert_refused(Apply(part), MASKS["boxes"], 2, patch)


def test_hidden_neighbors_never_win_a_maximum() -> None:
    """Zeros at hidden positions would win against a map of negative numbers, as they do in careless implementations."""
    visible = MASKS["boxes"]
    images = -1 - torch.rand(2, 2, 12, 12)
    (out,) = run(SparseExecution(PatchGrid(visible, 4)), nn.MaxPool2d(3, 2, 1), images)
    assert out.max() < -1


def test_gradient_of_ties_goes_where_the_ordinary_pooling_sends_it() -> None:
    """After a ReLU or in flat regions a window holds its maximum many times."""
    network = Apply(lambda x: F.max_pool2d(x.sign(), 3, 2, 1) * x[:, :, ::2, ::2])
    assert_agrees_with_oracle(network, MASKS["boxes"], 2, (4, 4))
    assert_agrees_with_crop(network, MASKS["boxes"], 2, (4, 4))


# --- memory and waiting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max 3 s2 p1", "average 3 s1 p1", "average 3 s1 p1, padding not counted"])
def test_backward_keeps_no_halo(name: str) -> None:
    """Nothing of the map at all: the places of maxima, tables, and counts that are the same for all channels."""
    grid = PatchGrid(torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).argsort(2) < 2, 8)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    images = torch.randn(2, 16, 64, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        (out,) = run(SparseExecution(grid), LAYERS[name], images)
    assert saved
    assert not [t.shape for t in saved if t.is_floating_point() and t.numel() > grid.patches * 16 * 16]
    assert not [t.shape for t in saved if t.dtype == torch.int64 and t.numel() > out.numel()]
    assert not [t.shape for t in saved if t.dtype == torch.int32 and t.numel() > 9 * grid.patches * 16 * 16]
    out.sum().backward()


@pytest.mark.parametrize("name", ["max 3 s2 p1", "average 3 s1 p1"])
def test_nothing_but_patches_outlives_forward(name: str) -> None:
    """Nor may a halo be kept where autograd's hooks do not see it, as an attribute of the context."""
    grid = PatchGrid(torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).argsort(2) < 2, 8)
    images = torch.randn(2, 16, 64, 64, requires_grad=True)
    with StoragesMade(but_not_of=[images]) as storages:
        (out,) = run(SparseExecution(grid), LAYERS[name], images)
    assert storages.bytes_alive() == out.nbytes
    out.sum().backward()


@pytest.mark.parametrize("network", LAYERS.values(), ids=LAYERS.keys())
def test_no_waiting_for_the_device(network: nn.Module) -> None:
    assert_never_waits(lambda: network, (2, 3, 3), 4, 2, (4, 4))


# --- what cannot be aligned with the patches, and what has no rule --------------------------------------------------

REFUSED = {
    "max 3 s2": (nn.MaxPool2d(3, 2), "aligned"),
    "max 3 s2 p1 ceil": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), "aligned"),
    "max 2 s1": (nn.MaxPool2d(2, 1), "aligned"),
    "max 2 s1 p1": (nn.MaxPool2d(2, 1, 1), "aligned"),
    "max 3": (nn.MaxPool2d(3), "does not divide a patch"),
    "max 8": (nn.MaxPool2d(8), "does not divide a patch"),
    "max with indices": (nn.MaxPool2d(2, return_indices=True), "indices"),
    "max after zero padding and its own": (nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(5, 1, 1)), "pads with"),
    "max after zero padding, ceil beyond it": (
        nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.MaxPool2d(4, 2, ceil_mode=True)), "pads with",
    ),
    "max after a crop, ceil beyond it": (
        nn.Sequential(nn.ConstantPad2d((3, -1, 3, -1), -math.inf), nn.MaxPool2d(5, 2, ceil_mode=True)), "cropped",
    ),
    "average 3 s2": (nn.AvgPool2d(3, 2), "aligned"),
    "average 3 s1": (nn.AvgPool2d(3, 1), "aligned"),
    "average 3 s2 ceil": (nn.AvgPool2d(3, 2, ceil_mode=True), "divisor shrinks"),
    "average after padding, padding not counted": (
        nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), nn.AvgPool2d(4, 1, 1, count_include_pad=False)), "count",
    ),
    "adaptive to 2": (nn.AdaptiveAvgPool2d(2), "size 1"),
    "adaptive max to 2": (nn.AdaptiveMaxPool2d((1, 2)), "size 1"),
    "fractional": (nn.FractionalMaxPool2d(2, 2), "no rule"),
}  # fmt: skip


@pytest.mark.parametrize(("network", "match"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(network: nn.Module, match: str) -> None:
    assert_refused(network, MASKS["boxes"], 2, (4, 4), match)


@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d], ids=["max", "average"])
def test_other_layouts_are_refused(pool: Callable[..., Tensor]) -> None:
    assert_refused(Apply(lambda x: pool(x.permute(0, 2, 3, 1), 2)), MASKS["boxes"], 2, (4, 4), "laid out as")
    assert_refused(Apply(lambda x: pool(x.mean((2, 3), keepdim=True), 1)), MASKS["boxes"], 2, (4, 4))


@pytest.mark.parametrize(("block", "bytes_each"), [(8, 1), (32, 2)])
def test_places_of_maxima_take_a_byte_or_two(block: int, bytes_each: int) -> None:
    """Not eight, as torch's: there is one for each position of a stem's map."""
    kept: list[Tensor] = []
    grid = PatchGrid(torch.tensor([[[True, False], [True, True]]]), 3)
    images = torch.randn(1, 4, 2 * block, 2 * block, requires_grad=True)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        (out,) = run(SparseExecution(grid), nn.MaxPool2d(3, 2, 1), images)
    places = [tensor for tensor in kept if tensor.shape == out.shape]
    assert [tensor.element_size() for tensor in places] == [bytes_each]
