"""Windows that are padded by less than they need, followed by one that is padded by more: right, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import REFUSED, RIGHT, Host, constant, images_of, outcome, refusal, right_or_refused
from sparkmim import Backbone
from sparkmim.sparse import PatchGrid, SparseExecution, require_compilable, run

LAST = torch.channels_last


def k(*shape: int) -> Tensor:
    return constant(*shape)


def pooled(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, 1)


def rewritten(made: Tensor) -> Tensor:
    copy = made.contiguous()
    copy.mul_(2)
    return made + copy


CASES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "yolov9": (lambda x: F.conv2d(F.avg_pool2d(x, 2, 1, 0, False, True), k(8, 8, 3, 3), None, 2, 1), RIGHT),
    "its_other_half": (lambda x: F.max_pool2d(pooled(x).chunk(2, 1)[1], 3, 2, 1), RIGHT),
    "of_channels": (lambda x: F.conv2d(pooled(x).narrow(1, 2, 4), k(8, 4, 3, 3), padding=1, stride=2), RIGHT),
    "pointwise": (lambda x: F.conv2d((F.silu(pooled(x)) * 2).clone(), k(8, 8, 3, 3), None, 2, 1), RIGHT),
    "scaled": (lambda x: F.conv2d(pooled(x) * k(8, 1, 1), k(8, 8, 3, 3), None, 2, 1), RIGHT),
    "even_kernels": (lambda x: F.conv2d(F.conv2d(x, k(8, 8, 2, 2)), k(8, 8, 2, 2), padding=1), RIGHT),
    "max_pooling": (lambda x: F.conv2d(F.max_pool2d(x, 2, 1), k(8, 8, 2, 2), padding=1), RIGHT),
    "padded_by_half": (lambda x: F.max_pool2d(F.max_pool2d(x, 3, 1), 3, 1, 1), REFUSED),
    "wide": (lambda x: F.conv2d(F.conv2d(x, k(8, 8, 3, 3)), k(8, 8, 3, 3), padding=2), RIGHT),
    "dilated": (lambda x: F.conv2d(F.conv2d(x, k(8, 8, 2, 2), dilation=2), k(8, 8, 3, 3), padding=2), RIGHT),
    "partly_padded": (lambda x: F.conv2d(F.conv2d(x, k(8, 8, 4, 4), padding=1), k(8, 8, 2, 2), padding=1), RIGHT),
    "one_axis": (lambda x: F.conv2d(F.conv2d(x, k(8, 8, 1, 2)), k(8, 8, 1, 2), padding=(0, 1)), RIGHT),
    "averaged_behind": (lambda x: F.avg_pool2d(pooled(x), 3, 2, 1), RIGHT),
    "averaged_of_what_is_there": (lambda x: F.avg_pool2d(pooled(x), 3, 2, 1, count_include_pad=False), REFUSED),
    "padded_by_less": (lambda x: F.conv2d(F.conv2d(x, k(8, 8, 3, 3)), k(8, 8, 3, 3), padding=1), REFUSED),
    "padded_twice": (lambda x: F.conv2d(F.pad(pooled(x), (1, 1, 1, 1)), k(8, 8, 3, 3), None, 2), REFUSED),
    "normed": (lambda x: F.max_pool2d(F.batch_norm(pooled(x), None, None, training=True), 3, 2, 1), REFUSED),
    "averaged": (lambda x: x * pooled(x).mean((2, 3), keepdim=True), REFUSED),
    "in_place": (lambda x: F.conv2d(pooled(x).relu_(), k(8, 8, 3, 3), None, 2, 1), REFUSED),
    "added": (lambda x: F.conv2d(pooled(x) + pooled(x), k(8, 8, 3, 3), None, 2, 1), REFUSED),
    "returned": (lambda x: pooled(x), REFUSED),
    "log_of_what_is_there": (lambda x: F.conv2d((pooled(x.abs() + 2) - 1.9).log(), k(8, 8, 3, 3), None, 2, 1), RIGHT),
    "root_of_what_is_there": (lambda x: F.max_pool2d(F.max_pool2d(x.abs(), 2, 1).sqrt(), 3, 2, 1), RIGHT),
    "says_that_it_has_gradients": (lambda x: x * (pooled(x).requires_grad == x.requires_grad), RIGHT),
    "with_channels_last": (lambda x: rewritten(F.max_pool2d(pooled(x.to(memory_format=LAST)), 3, 2, 1)), REFUSED),
    "read": (lambda x: F.interpolate(pooled(x), x.shape[2:]), REFUSED),
}  # fmt: skip


@pytest.mark.parametrize("block", [(4, 4), (8, 6), (4, 2)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_right_or_refused(case: str, block: tuple[int, int]) -> None:
    function, expected = CASES[case]
    assert outcome(function, block) in (expected, REFUSED)
    if block != (4, 2):
        assert outcome(function, block) == expected
        assert right_or_refused(function, block) == (expected == RIGHT)


def test_patches_of_which_nothing_is_left() -> None:
    message = refusal(lambda x: F.conv2d(pooled(x), k(8, 8, 3, 3), None, 1, 1), (1, 1))
    assert "a patch has at most 1 positions at this depth, and its windows leave so many out" in message


def test_the_refusal_says_what_would_do() -> None:
    message = refusal(pooled, (4, 4))
    assert "a convolution or pooling right behind it that is padded by 1 more than it needs; pad it" in message


class Down(nn.Module):
    """How YOLOv9 goes down, in any number of dimensions."""

    def __init__(self, before: int, after: int, dims: int = 2) -> None:
        super().__init__()
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        self.average: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](2, 1)
        self.largest: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](3, 2, 1)
        self.one = nn.Sequential(conv(before // 2, after // 2, 3, 2, 1, bias=False), norm(after // 2), nn.SiLU())
        self.two = nn.Sequential(conv(before // 2, after // 2, 1, bias=False), norm(after // 2), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.average(x).chunk(2, 1)
        return torch.cat([self.one(first), self.two(self.largest(second))], 1)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("patch", [8, 16])
def test_check_of_a_network(dims: int, patch: int) -> None:
    torch.manual_seed(0)
    stem: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    network = nn.Sequential(stem(3, 8, 3, 2, 1), Down(8, 16, dims), Down(16, 16, dims))
    backbone = Backbone(network, in_chans=3)
    assert [stride[0] for stride in backbone.strides] == [2, 4, 8]
    report = backbone.check(patch_size=patch)
    assert report.passed, str(report)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("size", [16, 4])
def test_compiled(size: int) -> None:
    visible = torch.tensor([[[True, False], [True, True]], [[True, True], [False, True]]])
    network, grid, images = Host(Down(8, 8).double()), PatchGrid(visible, 3), images_of((8, 8))[..., :size, :size]
    require_compilable(grid, network, images)
    compiled = torch.compile(lambda x: run(SparseExecution(grid), network, x)[0], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), run(SparseExecution(grid), network, images)[0])
