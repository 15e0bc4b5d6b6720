"""Maps with one and three spatial axes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from engine_helpers import BATCH, REFUSED, RIGHT, Apply, Function, cases, constant
from sparkmim.sparse import (
    PatchGrid,
    SparseExecution,
    UnsupportedOperation,
    run,
)

SIGNALS: dict[str, tuple[Any, ...]] = {
    "gate": (lambda x: x * F.adaptive_avg_pool1d(x, 1), RIGHT),
    "mean": (lambda x: x - x.mean(-1, keepdim=True), RIGHT),
    "mean_without_axis": (lambda x: x - x.mean(2)[..., None], RIGHT),
    "channels_last": (lambda x: F.layer_norm(x.transpose(1, 2), (4,)).transpose(1, 2), RIGHT),
    "groups": (lambda x: x.view(x.shape[0], 2, 2, -1).softmax(1).view(x.shape), RIGHT),
    "unbatched_pool": (lambda x: x * F.adaptive_avg_pool2d(x, 1), REFUSED),
    "strided": (lambda x: x[..., ::2] * x[:, :, 1::2], RIGHT),
}
"""Functions of a map with one spatial axis: one of two axes would take the channels for the other."""


@cases(SIGNALS)
def test_one_axis(case: tuple[Function, str]) -> None:
    function, expected = case
    network = Apply(function)
    signal = torch.randn(BATCH, 4, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = PatchGrid(torch.ones(BATCH, 4, dtype=torch.bool), 4)
    try:
        (found,) = run(SparseExecution(grid), network, signal)
    except UnsupportedOperation:
        assert expected == REFUSED
        return
    assert expected == RIGHT
    torch.testing.assert_close(grid.unpack(found), function(signal))


@cases(
    {
        "gate": lambda x: x * F.adaptive_avg_pool3d(x, 1),
        "mean": lambda x: x - x.mean((2, 3, 4), keepdim=True),
        "channels_last": lambda x: F.layer_norm(x.movedim(1, -1), (4,)).movedim(-1, 1),
        "permuted": lambda x: (x.permute(0, 2, 3, 4, 1) * constant(4)).permute(0, 4, 1, 2, 3),
        "groups": lambda x: x.view(x.shape[0], 2, 2, *x.shape[2:]).softmax(1).view(x.shape),
        "strided": lambda x: x[..., ::2, ::2, 1::2],
    }
)
def test_three_axes(case: Function) -> None:
    network = Apply(case)
    volume = torch.randn(BATCH, 4, 4, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = PatchGrid(torch.ones(BATCH, 2, 2, 3, dtype=torch.bool), 12)
    (found,) = run(SparseExecution(grid), network, volume)
    torch.testing.assert_close(grid.unpack(found), case(volume))


@cases(
    {
        "mean_of_two": lambda x: x - x.mean((3, 4), keepdim=True),
        "pool_of_two": lambda x: F.adaptive_avg_pool2d(x, 1),
        "flatten_two": lambda x: x.flatten(3),
    }
)
def test_three_axes_are_reduced_together(case: Function) -> None:
    grid = PatchGrid(torch.ones(BATCH, 2, 2, 3, dtype=torch.bool), 12)
    with pytest.raises(UnsupportedOperation):
        run(SparseExecution(grid), Apply(case), torch.randn(BATCH, 4, 4, 8, 12))
