"""Axes of extent one are told apart by where they come from, not by their size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from engine_helpers import LARGE, REFUSED, RIGHT, SMALL, Function, cases, constant, outcome, table

BLOCK_SIZES = {"patches_4x2": LARGE, "patches_1x1": SMALL}
BLOCKS = pytest.mark.parametrize("block", list(BLOCK_SIZES.values()), ids=list(BLOCK_SIZES))


def windows(x: Tensor, window: tuple[int, int], inner_last: bool) -> Tensor:
    """Windows by reshaping: `(B, C, h, window, w, window)`, or the window's axes first."""
    rows, columns = x.shape[2] // window[0], x.shape[3] // window[1]
    if inner_last:
        return x.reshape(*x.shape[:2], rows, window[0], columns, window[1])
    return x.reshape(*x.shape[:2], window[0], rows, window[1], columns).transpose(2, 3).transpose(4, 5)


REDUCED_WINDOWS: dict[str, tuple[Any, ...]] = {
    "pooled": (lambda w, x: w.mean((3, 5)), RIGHT),
    "pooled_and_added": (lambda w, x: w.mean((3, 5)) + x[:, :, :: w.shape[3], :: w.shape[5]], RIGHT),
    "biggest_and_added": (lambda w, x: w.amax((3, 5)) + F.avg_pool2d(x, (w.shape[3], w.shape[5])), RIGHT),
    "between_windows": (lambda w, x: (w - w.mean((2, 4), keepdim=True)).mean((3, 5)), RIGHT),
    "subtracted": (lambda w, x: (w - w.mean((3, 5), keepdim=True)).reshape(x.shape), RIGHT),
    "gate": (lambda w, x: w.mean((3, 5), keepdim=True).flatten(2).mean(2)[..., None, None] * x, RIGHT),
}
"""Functions of windows, and what each comes to for windows as large as a patch. All others are refused."""


@BLOCKS
@pytest.mark.parametrize("inner_last", [True, False], ids=["blocks", "dilated"])
@pytest.mark.parametrize("shape", ["patch", "half", "wide"])
@cases(REDUCED_WINDOWS)
def test_windows_by_reshaping(
    case: tuple[Callable[[Tensor, Tensor], Tensor], str], shape: str, inner_last: bool, block: tuple[int, int]
) -> None:
    """A window as large as a patch leaves axes of extent one: they are positions of windows, not free axes."""
    function, expected = case
    window = {"patch": block, "half": (max(block[0] // 2, 1), 1), "wide": (1, block[1])}[shape]
    known = shape == "patch" and inner_last and block == LARGE
    found = outcome(lambda x: function(windows(x, window, inner_last), x), block)  # raises for what is wrong
    if block == LARGE:
        assert found == (expected if known else REFUSED)
    else:  # patches of a pixel are cut into windows of whole maps
        assert found in (RIGHT, REFUSED)


WHATEVER_THE_SIZE: dict[str, tuple[Any, ...]] = {
    "one_channel_as_tokens": (lambda x: x * x[:, :1].reshape(x.shape[0], 1, -1).amax(2)[..., None, None], RIGHT),
    "one_channel_as_rows": (lambda x: x * x[:, 0].reshape(x.shape[0], -1).amax(1)[:, None, None, None], RIGHT),
    "one_channel_last": (
        lambda x: x * x[:, :1].permute(0, 2, 3, 1).reshape(x.shape[0], -1, 1).amax(1)[..., None, None],
        RIGHT,
    ),
    "one_channel_of_plain_sizes": (
        lambda x: x * x[:, :1].reshape(x.shape[0], 1, math.prod(int(s) for s in x.shape[2:])).amax(2)[..., None, None],
        RIGHT,
    ),
    "to_the_front": (lambda x: x.reshape(x.shape[0], 8, 1, *x.shape[2:]).mean(2), RIGHT),
    "groups_of_one": (lambda x: x.reshape(x.shape[0], 8, 1, *x.shape[2:]).mean(1), RIGHT),
    "to_the_end": (lambda x: x.reshape(*x.shape, 1).mean(-1), RIGHT),
    "between": (lambda x: x.reshape(*x.shape[:3], 1, x.shape[3]).mean(3), RIGHT),
    "of_one_channel": (lambda x: x[:, :1].reshape(x.shape[0], *x.shape[2:])[:, None] * x, RIGHT),
    "of_one_channel_first": (
        lambda x: (x[:, :1].reshape(x.shape[0], *x.shape[2:], 1) * x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        RIGHT,
    ),
    "of_channel_mean": (lambda x: x.mean(1).reshape(x.shape[0], 1, *x.shape[2:]) * x, RIGHT),
    "of_channel_mean_last": (
        lambda x: (x.mean(1).reshape(x.shape[0], *x.shape[2:], 1) * x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        RIGHT,
    ),
    "gate_expanded": (lambda x: x * x.mean((2, 3), keepdim=True).expand(x.shape), RIGHT),
    "gate_expanded_by_numbers": (
        lambda x: x * x.mean((2, 3), keepdim=True).expand(-1, -1, x.shape[2], x.shape[3]),
        RIGHT,
    ),
    "gate_expanded_and_summed": (
        lambda x: x * x.mean((2, 3), keepdim=True).expand(x.shape).sum((2, 3), keepdim=True),
        RIGHT,
    ),
    "gate_expanded_and_convolved": (
        lambda x: (
            F.conv2d(x.mean((2, 3), keepdim=True).expand(x.shape), constant(8, 8, 3, 3), padding=1).mean((2, 3), True)
            * x
        ),
        RIGHT,
    ),
    "squeezed_channel": (lambda x: x[:, :1].squeeze(1)[:, None] * x, RIGHT),
    "zeros_of_the_same_shape": (lambda x: x.new_zeros(x.shape) + x, RIGHT),
    "ones_of_the_same_shape": (lambda x: x.new_ones(x.shape[0], 8, *x.shape[2:]) * x, RIGHT),
    "full_of_one_channel": (lambda x: x.new_full((x.shape[0], 1, *x.shape[2:]), 2.0) * x, RIGHT),
}
"""Functions of axes that could be mistaken for space, and what each comes to, for patches of one pixel as of more."""


@table(WHATEVER_THE_SIZE, BLOCK_SIZES)
def test_does_not_depend_on_the_size_of_a_patch(case: Function, block: tuple[int, int], expected: str) -> None:
    assert outcome(case, block) == expected
