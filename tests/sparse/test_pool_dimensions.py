"""Pooling and transposed convolution of maps with one, two and three spatial axes, by one rule each."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine_helpers import Apply, assert_agrees_with_crop, assert_agrees_with_oracle, assert_never_waits, assert_refused

RANDOM = {
    1: torch.tensor([[True, False, True, True], [True, True, False, True]]),
    2: torch.tensor([[[True, False, True], [True, True, False]], [[False, True, True], [True, True, False]]]),
    3: torch.rand(2, 8, generator=torch.Generator().manual_seed(1)).argsort(1).lt(5).view(2, 2, 2, 2),
}
BOXES = {
    1: torch.tensor([[False, True, True, True], [True, True, True, False]]),
    2: torch.tensor([[[True, True, False], [True, True, False]], [[False, True, True], [False, True, True]]]),
    3: torch.tensor([[[[False, True]] * 2] * 2, [[[True, False]] * 2] * 2]),
}
"""By the number of axes, masks of two images; those of the second kind show a box."""


def of(dims: int, name: str) -> Any:
    """Return what torch calls `name` with the number of axes in it."""
    full = name.format(f"{dims}d")
    return getattr(nn, full, None) or getattr(F, full)


def gated(dims: int, pool: str) -> nn.Module:
    """Return a gate by a pooling of the whole map, whose window is read off it."""
    return Apply(lambda x: x * of(dims, pool)(x, x.shape[2:]))


POOLS = {
    "max 2": lambda d: of(d, "MaxPool{}")(2),
    "max 3 s1 p1": lambda d: of(d, "MaxPool{}")(3, 1, 1),
    "max 3 s2 p1": lambda d: of(d, "MaxPool{}")(3, 2, 1),
    "max 3 s2 ceil": lambda d: of(d, "MaxPool{}")(3, 2, ceil_mode=True),
    "max 3 dilated": lambda d: nn.Sequential(of(d, "ConstantPad{}")(2, -9.0), of(d, "MaxPool{}")(3, 1, dilation=2)),
    "max 3 mirrored": lambda d: nn.Sequential(of(d, "ReplicationPad{}")(1), of(d, "MaxPool{}")(3, 2)),
    "max of the map": lambda d: gated(d, "max_pool{}"),
    "average 2": lambda d: of(d, "AvgPool{}")(2),
    "average 3 s1 p1": lambda d: of(d, "AvgPool{}")(3, 1, 1),
    "average 3 uncounted": lambda d: of(d, "AvgPool{}")(3, 1, 1, count_include_pad=False),
    "average 3 s2 p1": lambda d: of(d, "AvgPool{}")(3, 2, 1),
    "average 2 ceil": lambda d: of(d, "AvgPool{}")(2, ceil_mode=True),
    "average 3 divisor": lambda d: of(d, "AvgPool{}")(3, 1, 1, **({"divisor_override": 5} if d > 1 else {})),
    "average 3 mirrored": lambda d: nn.Sequential(of(d, "ReplicationPad{}")(1), of(d, "AvgPool{}")(3, 2)),
    "average of the map": lambda d: gated(d, "avg_pool{}"),
    "norm 2": lambda d: of(d, "LPPool{}")(2, 2),
    "adaptive to half": lambda d: Apply(lambda x: of(d, "adaptive_avg_pool{}")(x, tuple(s // 2 for s in x.shape[2:]))),
    "adaptive max to its own": lambda d: Apply(lambda x: of(d, "adaptive_max_pool{}")(x, x.shape[2:])),
    "adaptive to one": lambda d: Apply(lambda x: x * of(d, "adaptive_avg_pool{}")(x, 1)),
}

TRANSPOSED = {
    "kernel 2, stride 2": (2, 2, 0, 0, 1, 1),
    "kernel 3, stride 3, groups": (3, 3, 0, 0, 3, 1),
    "kernel 3, stride 2, output padding": (3, 2, 1, 1, 1, 1),
    "kernel 4, stride 2": (4, 2, 1, 0, 1, 1),
    "kernel 2, stride 3": (2, 3, 0, 1, 1, 1),
    "kernel 3, stride 1": (3, 1, 1, 0, 1, 1),
    "kernel 3, stride 2, dilated": (3, 2, 2, 1, 1, 2),
    "kernel 8, stride 2": (8, 2, 3, 0, 1, 1),
}
"""Kernel, stride, padding, output padding, groups, dilation."""


def transposed(dims: int, arguments: tuple[int, ...], dtype: torch.dtype = torch.float64) -> nn.Module:
    kernel, stride, padding, extra, groups, dilation = arguments
    torch.manual_seed(0)
    made: nn.Module = of(dims, "ConvTranspose{}")(
        3, 6, kernel, stride, padding, extra, groups, dilation=dilation, dtype=dtype
    )
    return made


@pytest.mark.parametrize(("dims", "name"), list(itertools.product((1, 2, 3), POOLS)))
def test_pooling(dims: int, name: str) -> None:
    network = POOLS[name](dims)
    assert_agrees_with_oracle(network, RANDOM[dims], 3, (4,) * dims)
    if not (dims == 1 and name.endswith("the map")):  # ordinary 1-D pooling takes no torch.Size
        assert_agrees_with_crop(network, BOXES[dims], 3, (4,) * dims)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize(("dims", "name"), list(itertools.product((1, 2, 3), TRANSPOSED)))
def test_transposed_convolution(dims: int, name: str, patch: int) -> None:
    network = transposed(dims, TRANSPOSED[name])
    assert_agrees_with_oracle(network, RANDOM[dims], 3, (patch,) * dims)
    assert_agrees_with_crop(network, BOXES[dims], 3, (patch,) * dims)


def test_transposed_convolution_that_is_not_aligned() -> None:
    assert_refused(nn.ConvTranspose2d(3, 3, 3, 2), RANDOM[2], 3, (2, 2), "a kernel as large as the stride")
    assert_agrees_with_oracle(nn.ConvTranspose2d(3, 3, 2, 2, dtype=torch.float64), RANDOM[2], 3, (2, 2))


@pytest.mark.parametrize("name", ["max 3 s2 p1", "average 3 uncounted", "norm 2"])
@pytest.mark.parametrize("dims", [1, 3])
def test_no_waiting_for_the_device(name: str, dims: int) -> None:
    assert_never_waits(lambda: POOLS[name](dims), (2, *(2,) * dims), 2, 3, (4,) * dims)
    assert_never_waits(
        lambda: transposed(dims, TRANSPOSED["kernel 4, stride 2"], torch.float32), (2, *(2,) * dims), 2, 3, (4,) * dims
    )


def test_pooling_of_another_number_of_axes() -> None:
    assert_refused(Apply(lambda x: F.avg_pool1d(x[:, 0], 1)), RANDOM[2], 3, (4, 4))
    assert_refused(Apply(lambda x: x * F.max_pool3d(x, 2)), RANDOM[2], 3, (4, 4))
