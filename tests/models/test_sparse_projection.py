"""The convolution of a densified map from its visible positions, against the convolution of the whole map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import differentiate
from sparkmim.models import sparse_projection as projection
from sparkmim.models.masking import random_visible
from sparkmim.models.sparse_projection import is_faster, project, project_visible
from sparkmim.sparse import CoarseGrid, PatchGrid

CONV: dict[int, type[Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def grid_of(shape: tuple[int, ...], batch: int = 2, ratio: float = 0.6) -> PatchGrid:
    visible = random_visible(batch, shape, ratio, generator=torch.Generator().manual_seed(0))
    return PatchGrid(visible, int(visible[0].sum()))


@pytest.mark.parametrize(
    ("shape", "block", "kernel"),
    [
        ((4, 4), (1, 1), (3, 3)),
        ((3, 5), (2, 2), (3, 3)),
        ((3, 2), (4, 3), (3, 3)),
        ((1, 3), (2, 2), (3, 3)),
        ((3, 3), (2, 1), (5, 3)),
        ((3, 4), (1, 2), (7, 7)),
        ((7,), (3,), (3,)),
        ((2, 3, 2), (2, 1, 2), (3, 3, 3)),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_the_convolution(
    shape: tuple[int, ...], block: tuple[int, ...], kernel: tuple[int, ...], channels_last: bool
) -> None:
    torch.manual_seed(0)
    grid = grid_of(shape)
    conv = CONV[len(shape)](5, 3, kernel, padding=[k // 2 for k in kernel]).double()
    packed = torch.randn(grid.patches, 5, *block, dtype=torch.float64)
    if channels_last:
        packed = packed.movedim(1, -1).contiguous().movedim(-1, 1)
    packed.requires_grad_()
    fill = torch.randn(5, dtype=torch.float64, requires_grad=True)
    inputs = [packed, fill, *conv.parameters()]
    wanted = differentiate(conv(grid.unpack(packed, fill=fill)), inputs)
    for ours, theirs in zip(differentiate(project_visible(packed, fill, conv, grid), inputs), wanted, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("kernel_size", [None, 1, 3])
def test_every_projection(coarse: bool, kernel_size: int | None) -> None:
    torch.manual_seed(0)
    grid: PatchGrid | CoarseGrid = grid_of((4, 6))
    size = (4, 6)
    if coarse:
        assert isinstance(grid, PatchGrid)
        size = (2, 3)
        grid = grid.at(size)
        assert isinstance(grid, CoarseGrid)
    packed = grid.pack(torch.randn(2, 5, *size, dtype=torch.float64)).requires_grad_()
    conv = nn.Identity() if kernel_size is None else nn.Conv2d(5, 3, kernel_size, padding=kernel_size // 2).double()
    fill = torch.randn(5, dtype=torch.float64, requires_grad=True)
    inputs = [packed, fill, *conv.parameters()]
    wanted = differentiate(conv(grid.unpack(packed, fill=fill)), inputs)
    for ours, theirs in zip(differentiate(project(packed, fill, conv, grid), inputs), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse, half, whole = (grid_of((10, 10), ratio=ratio) for ratio in (0.6, 0.4, 0.1))
    wide, narrow = nn.Conv2d(512, 8, 3, padding=1), nn.Conv2d(64, 8, 3, padding=1)
    assert is_faster(sparse, wide)
    assert is_faster(half, wide)
    assert not is_faster(whole, wide)
    assert not is_faster(sparse, narrow)
    assert not is_faster(grid_of((2, 5, 10)), nn.Conv3d(512, 8, 3, padding=1))
    calls = []
    monkeypatch.setattr(projection, "project_visible", lambda *arguments: calls.append(arguments))
    for grid, conv in ((sparse, wide), (whole, wide), (sparse, narrow)):
        project(torch.randn(grid.patches, conv.in_channels, 1, 1), torch.randn(conv.in_channels), conv, grid)
    assert len(calls) == 1


def test_bf16_rounds_no_worse_than_the_convolution() -> None:
    """The products that meet at a position are added up in float32, as is the gradient of what fills the gaps."""
    torch.manual_seed(0)
    grid = grid_of((7, 7), batch=8)
    conv = nn.Conv2d(128, 32, 3, padding=1)
    packed = torch.randn(grid.patches, 128, 8, 8, requires_grad=True)
    fill = torch.randn(128, requires_grad=True)
    inputs = [packed, fill, *conv.parameters()]
    exact = differentiate(conv(grid.unpack(packed, fill=fill)), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        ours = differentiate(project_visible(packed, fill, conv, grid), inputs)
        dense = differentiate(conv(grid.unpack(packed, fill=fill)), inputs)
    assert ours[0].dtype == torch.bfloat16
    for a, b, wanted in zip(ours, dense, exact, strict=True):
        norm = wanted.norm()
        assert (a - wanted).norm() / norm <= 1.5 * (b - wanted).norm() / norm + 2**-9


@pytest.mark.slow
def test_compiles_in_one_piece() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 4, 3, padding=1)
    grid = grid_of((4, 4))
    packed = torch.randn(grid.patches, 16, 2, 2, requires_grad=True)
    fill = torch.randn(16, requires_grad=True)
    inputs = [packed, fill, *conv.parameters()]

    def function(packed: Tensor, fill: Tensor) -> Tensor:
        return project_visible(packed, fill, conv, PatchGrid(grid.visible, grid.visible_per_image))

    wanted = differentiate(function(packed, fill), inputs)
    ours = differentiate(torch.compile(function, fullgraph=True, backend="aot_eager")(packed, fill), inputs)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b)
