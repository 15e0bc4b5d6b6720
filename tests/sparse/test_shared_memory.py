"""Writing in place, padding that waits, inference mode: which tensors share memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import (
    BATCH,
    CHANNELS,
    GRID,
    LARGE,
    REFUSED,
    RIGHT,
    SMALL,
    Function,
    Host,
    cases,
    constant,
    masked_dense,
    outcome,
    packed,
    random_grid,
    table,
)
from sparkmim.sparse import (
    PatchGrid,
    SparseExecution,
    run,
)

BLOCK_SIZES = {"patches_4x2": LARGE, "patches_1x1": SMALL}
BLOCKS = pytest.mark.parametrize("block", list(BLOCK_SIZES.values()), ids=list(BLOCK_SIZES))


def transposed_in_place(x: Tensor) -> Tensor:
    y = x * 1.0
    y.transpose_(2, 3)
    return y


def swapped_in_place(name: str, first: int, second: int) -> Function:
    def function(x: Tensor) -> Tensor:
        y = x * 1.0
        getattr(y, name)(first, second)
        z = y * constant(y.shape[1], 1, 1)
        getattr(z, name)(first, second)
        return z

    return function


def unsqueezed_in_place(x: Tensor) -> Tensor:
    y = x * 1.0
    y.unsqueeze_(1)
    return y.mean(1)


def squeezed_in_place(x: Tensor) -> Tensor:
    gate = x.mean((2, 3), keepdim=True)
    gate.squeeze_(3).squeeze_(2)
    return x * gate[:, :, None, None]


def written_after_padding(x: Tensor) -> Tensor:
    y = x * 1.0
    padded = F.pad(y, (1, 1, 1, 1))
    y.add_(1)
    return F.conv2d(padded, constant(8, 8, 3, 3)) + y


def relu_after_padding(x: Tensor) -> Tensor:
    y = x * 1.0
    padded = F.pad(y, (0, 1, 0, 1))
    z = F.relu(y, inplace=True)
    return F.max_pool2d(padded, 2, 1) + z


def written_after_empty_padding(x: Tensor) -> Tensor:
    y = x * 1.0
    F.pad(y, (0, 0, 0, 0)).mul_(3)
    return y


def written_after_flatten(x: Tensor) -> Tensor:
    y = x.unflatten(1, (2, 4)) * 1.0
    y.flatten(1, 2).mul_(2)
    return y.flatten(1, 2)


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 1.0
    y.view(y.shape[0], 4, 2, *y.shape[2:])[:, :, 0].add_(2)
    y.view(y.shape).mul_(constant(8, 1, 1))
    return y


def written_through_data(x: Tensor) -> Tensor:
    y = x * 1.0
    y.data.mul_(2)
    y.detach().add_(1)
    return y


def written_after_expand(x: Tensor) -> Tensor:
    y = x.mean(1, keepdim=True)
    z = y.expand_as(x) * 1.0
    y.mul_(2)
    return y + z


def written_after_dropout(x: Tensor) -> Tensor:
    y = x * 1.0
    F.dropout2d(y, 0.5, training=False).mul_(2)
    F.dropout(y, 0.5, training=False).mul_(3)
    return y


WRITTEN: dict[str, tuple[Any, ...]] = {
    "transpose_": (transposed_in_place, REFUSED),
    "transpose_twice": (swapped_in_place("transpose_", 2, 3), RIGHT),
    "swapaxes_": (swapped_in_place("swapaxes_", 1, 2), REFUSED),
    "swapdims_": (swapped_in_place("swapdims_", 1, -1), REFUSED),
    "unsqueeze_": (unsqueezed_in_place, RIGHT),
    "squeeze_": (squeezed_in_place, RIGHT),
    "pad": (written_after_padding, REFUSED),
    "pad_and_relu": (relu_after_padding, REFUSED),
    "pad_by_nothing": (written_after_empty_padding, RIGHT),
    "flatten": (written_after_flatten, RIGHT),
    "view": (written_through_a_view, RIGHT),
    "data": (written_through_data, RIGHT),
    "expand": (written_after_expand, RIGHT),
    "dropout": (written_after_dropout, RIGHT),
}
"""Functions that write in place, and what each comes to."""


@table(WRITTEN, BLOCK_SIZES)
def test_writing_in_place_changes_what_it_should(case: Function, block: tuple[int, int], expected: str) -> None:
    """Which tensors share memory is part of what a function means."""
    assert outcome(case, block) == expected


def padded_twice(value: float, channels: tuple[int, int], other: float, mode: str = "constant") -> Function:
    """Along space, then along channels, then seen by a convolution."""

    def function(x: Tensor) -> Tensor:
        around = F.pad(x * 2, (1, 1, 1, 1), mode, *([value] if mode == "constant" else []))
        return F.conv2d(F.pad(around, (0, 0, 0, 0, *channels), value=other), constant(8, 8 + sum(channels), 3, 3))

    return function


@cases(
    {
        "by_the_same": padded_twice(1.0, (1, 2), 1.0),
        "by_zeros": padded_twice(0.0, (0, 1), 0.0),
        "channels_left_out": padded_twice(1.0, (-1, 0), 0.0),
        "mirrored": padded_twice(0.0, (1, 1), 1.5, "reflect"),
    }
)
def test_channels_added_to_a_padded_map(case: Function) -> None:
    assert outcome(case, LARGE) == RIGHT


@BLOCKS
@cases({"zeros": padded_twice(1.0, (0, 1), 0.0), "ones": padded_twice(0.0, (1, 0), 1.0)})
def test_channels_that_differ_around_the_map_are_refused(case: Function, block: tuple[int, int]) -> None:
    """The ring of the new channels holds what they hold, that of the others what the map was padded with."""
    assert outcome(case, block) == REFUSED


@BLOCKS
@cases(
    {
        "pad": lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)), constant(8, 8, 3, 3)),
        "pad_twice": lambda x: F.max_pool2d(F.pad(F.pad(x, (1, 0, 0, 0)), (0, 1, 1, 1)), 3, 1),
        "pad_and_write": written_after_padding,
        "causal": lambda x: F.conv2d(x, constant(8, 8, 3, 3), padding=2)[..., :-2, :-2],
        "causal_by_pad": lambda x: F.conv2d(F.pad(x, (2, 0, 2, 0)), constant(8, 8, 3, 3)),
        "causal_and_dilated": lambda x: F.conv2d(x, constant(8, 8, 2, 3), padding=2, dilation=(2, 1))[..., :-2, :-2],
    }
)
def test_inference_mode(case: Function, block: tuple[int, int]) -> None:
    """Torch counts no writes to tensors there."""
    network, whole = Host(case), PatchGrid(torch.ones(BATCH, *GRID, dtype=torch.bool), 6)
    size = tuple(g * b for g, b in zip(GRID, block, strict=True))
    images = torch.randn(BATCH, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(packed(network, whole)(images), network(images))
        grid = random_grid()
        torch.testing.assert_close(packed(network, grid)(images), masked_dense(network, grid)(images))


def test_inference_mode_where_positions_hold_several_patches() -> None:
    def halved_and_doubled(x: Tensor) -> Tensor:
        return F.interpolate(F.conv2d(F.pad(x, (1, 0, 0, 0)), constant(8, 8, 2, 3), stride=2), scale_factor=2)

    network, grid = Host(halved_and_doubled), PatchGrid(torch.eye(2, dtype=torch.bool).expand(BATCH, 2, 2), 2)
    images = torch.randn(BATCH, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = packed(network, grid)(images)
    with torch.inference_mode():
        torch.testing.assert_close(packed(network, grid)(images), expected)


def test_parameters_are_never_marked() -> None:
    """`weight.to(x)` and the like return the weight itself: marking it would make it part of the input, for good."""
    gamma = nn.Parameter(constant(1, CHANNELS, 1, 1))
    for function in (lambda x: x * gamma.to(x), lambda x: x * gamma.type_as(x), lambda x: x * gamma.clone()):
        network = Host(function)
        network.gamma = gamma
        images = torch.randn(BATCH, 3, 8, 6, dtype=torch.float64)
        for _ in range(2):
            result = run(SparseExecution(random_grid()), network, images)[0]
            assert result.shape == (6, CHANNELS, 4, 2)
        assert not any(hasattr(parameter, "_sparkmim_layout") for parameter in network.parameters())
