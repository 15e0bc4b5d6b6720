"""Padding that mirrors the map: a hidden neighbor is outside, so a patch sees its own mirror image there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BlurPool2d
from torch import Tensor, nn

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

MODES = ["reflect", "replicate"]
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@st.composite
def windows(draw: st.DrawFn, mode: str, dims: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, stride, sides for `F.pad` and patch: n positions become n / stride, no side wider than a patch."""
    kernel, stride, sides, patch = [], [], [], []
    for _ in range(dims):
        stride.append(draw(st.sampled_from([1, 2])))
        kernel.append(draw(st.integers(stride[-1], 4)))
        total = kernel[-1] - draw(st.integers(1, stride[-1]))
        low = draw(st.integers(0, total))
        sides.append((low, total - low))
        widest = max(low, total - low) + (mode == "reflect")
        patch.append(stride[-1] * -(-max(widest, draw(st.integers(1, 4))) // stride[-1]))
    return kernel, stride, [side for pair in reversed(sides) for side in pair], patch


def mirroring(draw: Callable[..., Any]) -> tuple[nn.Module, tuple[int, ...]]:
    """A drawn network of padding and what follows it, and the patches it takes."""
    mode, dims = draw(st.sampled_from(MODES)), draw(st.integers(1, 3))
    kernel, stride, sides, patch = draw(windows(mode, dims))
    after = draw(st.sampled_from(["convolution", "depthwise", "maximum", "average"] if dims == 2 else ["convolution"]))
    weight = torch.randn(2, 1 if after == "depthwise" else 2, *kernel, dtype=torch.float64)
    bias = torch.randn(2, dtype=torch.float64)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        padded = F.pad(x, sides, mode=mode) if any(sides) else x
        if after == "maximum":
            return F.max_pool2d(padded, kernel, stride) * bias.view(-1, 1, 1) * weight.sum()
        if after == "average":
            return F.avg_pool2d(padded, kernel, stride) * bias.view(-1, 1, 1) * weight.sum()
        return CONVOLUTIONS[dims](padded, weight, bias, stride, groups=2 if after == "depthwise" else 1)

    return Apply(function, weight=weight, bias=bias), tuple(patch)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_window(data: st.DataObject) -> None:
    network, patch = mirroring(data.draw)
    visible = data.draw(draw_visible(len(patch), largest=4 if len(patch) < 3 else 3))
    assert_agrees_with_oracle(network, visible, 2, patch)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_box_is_seen_as_its_crop(data: st.DataObject) -> None:
    network, patch = mirroring(data.draw)
    visible = data.draw(draw_rectangles(len(patch), largest=4 if len(patch) < 3 else 3))
    assert_agrees_with_crop(network, visible, 2, patch)


MASK = torch.tensor([
    [[True, True, False], [True, False, False], [False, False, True]],
    [[False, True, False], [True, False, True], [False, True, False]],
])  # fmt: skip

LAYERS = {
    "blur": BlurPool2d(4),
    "blur 5": BlurPool2d(4, filt_size=5),
    "blur, edges repeated": BlurPool2d(4, pad_mode="replicate"),
    "convolution": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "convolution, edges repeated": nn.Conv2d(4, 4, 5, stride=2, padding=2, padding_mode="replicate"),
    "maximum, then blur": nn.Sequential(nn.MaxPool2d(3, 1, 1), BlurPool2d(4)),
    "average, padding not counted": nn.Sequential(nn.ReflectionPad2d(1), nn.AvgPool2d(3, 2, count_include_pad=False)),
}


@pytest.mark.parametrize("network", LAYERS.values(), ids=LAYERS)
def test_layers(network: nn.Module) -> None:
    assert_agrees_with_oracle(network.double(), MASK, 4, (4, 6))
    assert_agrees_with_crop(network, torch.ones(2, 2, 3, dtype=torch.bool), 4, (4, 6))


@pytest.mark.parametrize("execution", [SparseExecution, MaskedDenseExecution])
def test_corners(execution: Any) -> None:
    """What a patch sees beyond its corner, by hand: patches of 2 x 2 of which the left upper one looks to the right
    and down, with a kernel that picks the position diagonally beyond its last one."""
    pick = torch.zeros(1, 1, 3, 3)
    pick[..., 2, 2] = 1
    image = torch.arange(16.0).view(1, 1, 4, 4)
    mirrored = {
        (True, True, True, True): 10,  # the neighbor across the corner
        (True, False, False, True): 10,  # likewise, though it touches at the corner alone
        (True, True, False, False): 2,  # the right neighbor, mirrored downwards
        (True, False, True, False): 8,  # the lower neighbor, mirrored to the right
        (True, True, True, False): 0,  # both would do: the patch itself
        (True, False, False, False): 0,
    }
    for cells, wanted in mirrored.items():
        visible = torch.tensor(cells).view(1, 2, 2)
        grid = PatchGrid(visible, sum(cells))
        (out,) = run(execution(grid), _Pick(pick), image)
        first = out[0] if execution is SparseExecution else out[0, :, :2, :2]
        assert first[0, 1, 1] == wanted, cells


class _Pick(nn.Module):
    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.weight)


REFUSED = {
    "wider than a patch": nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(4, 4, 5)),
    "repeated, wider than a patch": nn.Sequential(nn.ReplicationPad2d(3), nn.Conv2d(4, 4, 7)),
    "padded again by the convolution": nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 5, padding=1)),
    "padded twice": nn.Sequential(nn.ReflectionPad2d(1), nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 5)),
    "padded twice, in two ways": nn.Sequential(nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 5)),
    "not aligned": nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 2)),
    "something else behind it": nn.Sequential(nn.ReflectionPad2d(1), nn.ReLU(), nn.Conv2d(4, 4, 3)),
    "overhanging": nn.Sequential(nn.ReflectionPad2d((1, 0, 1, 0)), nn.MaxPool2d(4, 2, ceil_mode=True)),
}


@pytest.mark.parametrize("network", REFUSED.values(), ids=REFUSED)
def test_refused(network: nn.Module) -> None:
    assert_refused(network.double(), MASK, 4, (2, 2))


def test_no_waiting_for_the_device() -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.ReplicationPad2d((1, 0, 1, 0)), nn.MaxPool2d(3, 2)
        )

    assert_never_waits(make, (2, 3, 3), 4, 4, (4, 4))
