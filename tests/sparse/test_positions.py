"""Space as one axis, cut into cells, or given to a value per image; softmax and sums over all positions of an image."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.evo_norm import EvoNorm2dB0, EvoNorm2dS0, EvoNorm2dS0a, EvoNorm2dS1, EvoNorm2dS2
from timm.layers.filter_response_norm import FilterResponseNormAct2d, FilterResponseNormTlu2d
from timm.layers.space_to_depth import DepthToSpace, SpaceToDepth
from torch import Tensor, nn

from engine_helpers import (
    Apply,
    assert_agrees_with_crop,
    assert_agrees_with_oracle,
    assert_never_waits,
    assert_refused,
    draw_rectangles,
    draw_visible,
    weights_of,
)
from sparkmim.sparse import PatchGrid, SparseExecution, run
from sparkmim.sparse.extent import Extent, degrees_of, local_of

Function = Callable[[Tensor], Any]

MASK = torch.tensor([
    [[True, True, False], [True, False, False], [False, False, True]],
    [[False, True, False], [True, False, True], [False, True, False]],
])  # fmt: skip
BOXES = torch.tensor([
    [[True, True, False], [True, True, False], [False, False, False]],
    [[False, False, False], [False, True, True], [False, True, True]],
])  # fmt: skip
PATCHES = [(4, 6), (1, 1), (1, 3), (3, 1)]


def gate(x: Tensor) -> Tensor:
    """A map of one channel, and its positions as one axis: `(N, 1, h * w)`."""
    one = F.conv2d(x, weights_of(1, x.shape[1], 1, 1).to(x))
    return one.reshape(x.shape[0], 1, x.shape[2] * x.shape[3])


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


# --- what must work, for patches of any size, and the same for each ---------------------------------------------------

POSITIONS: dict[str, Function] = {
    "softmax": lambda x: x * gate(x).softmax(-1).reshape(x.shape[0], 1, *x.shape[2:]),
    "softmax, free function": lambda x: x * F.softmax(gate(x), dim=2).view(x.shape[0], 1, x.shape[2], x.shape[3]),
    "softmax in a precision": lambda x: (
        x * F.softmax(gate(x), dim=-1, dtype=x.dtype).view(x.shape[0], -1, x.shape[2], x.shape[3])
    ),
    "log of softmax": lambda x: x + F.log_softmax(x.flatten(2), 2).reshape(x.shape),
    "softmin, channels behind": lambda x: x * F.softmin(last(x).flatten(1, 2), 1).reshape(last(x).shape).movedim(-1, 1),
    "large numbers": lambda x: x * (500 * gate(x)).softmax(-1).reshape(x.shape[0], 1, *x.shape[2:]),
    "global context": lambda x: x * (
        x.reshape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]).unsqueeze(1) @ gate(x).softmax(-1).unsqueeze(3)
    ).view(x.shape[0], x.shape[1], 1, 1),
    "sums of products": lambda x: x * (x.flatten(2) @ x.relu().flatten(2).transpose(1, 2)).mean(2)[..., None, None],
    "sums of products, heads": lambda x: x * torch.matmul(
        x.unflatten(1, (2, 2)).flatten(3), x.unflatten(1, (2, 2)).flatten(3).transpose(2, 3)
    ).reshape(x.shape[0], 8, 1, 1).mean(1, keepdim=True),
    "normalized": lambda x: F.normalize(x.flatten(2), dim=-1).reshape(x.shape) + F.normalize(x, 1.0, (2, 3)),  # type: ignore[arg-type]
    "windows of an unfolded map": lambda x: x * (
        x.reshape(*x.shape[:2], math.ceil(x.shape[2] / 1), 1 * x.shape[3])
    ).flatten(2).softmax(2).amax(2)[..., None, None],
    "batch norm": lambda x: F.batch_norm(x.flatten(2), None, None, training=True).reshape(x.shape) * x,
    "convolution of each": lambda x: F.conv1d(x.flatten(2), weights_of(4, 4, 1).to(x)).reshape(x.shape),
    "group norm": lambda x: F.group_norm(x.flatten(2), 2).reshape(x.shape),
    "group norm of groups": lambda x: F.group_norm(x.reshape(x.shape[0], 2, 2, -1), 1).reshape(x.shape),
    "mean": lambda x: x - x.flatten(2).mean(-1)[..., None, None],
    "mean, positions in front": lambda x: x - x.flatten(2).permute(2, 0, 1).mean(0)[:, :, None, None],
    "largest": lambda x: x - x.view(*x.shape[:2], -1).amax(2, keepdim=True).unsqueeze(3),
    "deviation of groups": lambda x: x / x.reshape(x.shape[0], 2, 2, -1).std((2, 3)).sum(1)[:, None, None, None],
    "there and back": lambda x: x.flatten(2).transpose(1, 2).relu().transpose(1, 2).reshape(x.shape) * x,
    "there and back, tokens": lambda x: (
        F.linear(F.layer_norm(x.flatten(2).transpose(1, 2), (4,)), weights_of(4, 4).to(x))
        .transpose(1, 2)
        .view(*x.shape)
    ),
    "joined": lambda x: torch.cat([x.flatten(2), 2 * x.flatten(2)], 1).reshape(x.shape[0], -1, *x.shape[2:]),
    "softmax of channels": lambda x: x.flatten(2).softmax(1).reshape(x.shape),
}  # fmt: skip

EXPANDED: dict[str, Function] = {
    "to the shape": lambda x: x * x.mean((2, 3), keepdim=True).expand(x.shape),
    "to numbers": lambda x: x * x.mean((2, 3), keepdim=True).expand(-1, -1, x.shape[2], x.size(3)),
    "to more axes": lambda x: x * x.mean((2, 3)).mean(1).view(-1, 1, 1, 1).expand(x.shape),
    "of groups": lambda x: x / x.view(x.shape[0], 2, 2, *x.shape[2:]).std((2, 3, 4), keepdim=True).expand(
        x.shape[0], 2, 2, *x.shape[2:]
    ).reshape(x.shape),
    "convolved": lambda x: x + F.conv2d(
        x.mean((2, 3), keepdim=True).expand(x.shape), weights_of(4, 4, 3, 3).to(x), padding=1
    ),
    "pooled again": lambda x: x * x.amax((2, 3), keepdim=True).expand(x.shape).sum((2, 3), keepdim=True),
    "channels behind": lambda x: x * last(x).mean((1, 2), keepdim=True).expand(last(x).shape).movedim(-1, 1),
}  # fmt: skip


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("function", [*POSITIONS.values(), *EXPANDED.values()], ids=[*POSITIONS, *EXPANDED])
def test_functions(function: Function, patch: tuple[int, int]) -> None:
    assert_agrees_with_oracle(Apply(function), MASK, 4, patch)
    assert_agrees_with_crop(Apply(function), BOXES, 4, patch)
    assert_agrees_with_crop(Apply(function), torch.ones(2, 2, 3, dtype=torch.bool), 4, patch)


@given(data=st.data(), dims=st.integers(1, 3), heads=st.integers(1, 2))
@settings(max_examples=80, deadline=None)
def test_context_of_any_mask(
    data: st.DataObject,
    dims: int,
    heads: int,
) -> None:
    """A global context: the sum of all positions of an image, each weighed by a softmax."""
    patch = tuple(data.draw(st.integers(1, 3)) for _ in range(dims))

    def context(x: Tensor, query: Tensor) -> Tensor:
        positions = x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))
        share = F.linear(positions.transpose(1, 2), query).softmax(1)
        return x * (positions @ share).mean(2)[(..., *[None] * dims)]

    network = Apply(context, query=weights_of(heads, 2))
    assert_agrees_with_oracle(network, data.draw(draw_visible(dims, largest=3)), 2, patch)
    assert_agrees_with_crop(network, data.draw(draw_rectangles(dims, largest=3)), 2, patch)


@given(data=st.data(), dims=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_cells_of_any_size(
    data: st.DataObject,
    dims: int,
) -> None:
    """Space to depth: positions of a cell become channels, or are averaged."""
    cell = [data.draw(st.integers(1, 3)) for _ in range(dims)]
    patch = tuple(c * data.draw(st.integers(1, 2)) for c in cell)
    averaged = data.draw(st.booleans())

    def to_depth(x: Tensor) -> Tensor:
        counts = [s // c for s, c in zip(x.shape[2:], cell, strict=True)]
        sizes = [[n] if c == 1 else [n, c] for n, c in zip(counts, cell, strict=True)]
        inner = [1 + sum(map(len, sizes[: axis + 1])) for axis in range(dims) if cell[axis] > 1]
        cells = x.reshape(*x.shape[:2], *[s for of_axis in sizes for s in of_axis])
        if averaged:
            return cells.mean(inner) if inner else cells
        return cells.movedim(inner, list(range(1, 1 + len(inner)))).flatten(1, 1 + len(inner))

    assert_agrees_with_oracle(Apply(to_depth), data.draw(draw_visible(dims, largest=3)), 2, patch)
    assert_agrees_with_crop(Apply(to_depth), data.draw(draw_rectangles(dims, largest=3)), 2, patch)


class AdditiveAttention(nn.Module):
    """As in SwiftFormer."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.weight = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.zeros(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).permute(0, 2, 1)
        query = F.normalize(self.query(tokens), dim=-1)
        share = F.normalize(query @ self.weight, dim=1)
        context = torch.sum(share * query, dim=1, keepdim=True)
        return (context * self.key(tokens) + query).permute(0, 2, 1).reshape(x.shape)


class SeparableAttention(nn.Module):
    """As in MobileViTv2, over positions of the same place in cells of 2 x 2."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (math.ceil(s / 2) * 2 // 2 for s in x.shape[2:])
        cells = x.reshape(*x.shape[:2], rows, 2, columns, 2).permute(0, 1, 3, 5, 2, 4)
        cells = cells.reshape(*x.shape[:2], -1, rows * columns)
        context = (cells[:, 1:] * F.softmax(cells[:, :1], dim=-1)).sum(dim=-1, keepdim=True)
        cells = F.relu(cells[:, 1:]) * context.expand_as(cells[:, 1:])
        cells = cells.reshape(x.shape[0], 3, 2, 2, rows, columns).permute(0, 1, 4, 2, 5, 3)
        return cells.reshape(x.shape[0], 3, *x.shape[2:])


LAYERS: dict[str, nn.Module] = {
    "additive attention": AdditiveAttention(),
    "separable attention": nn.Sequential(SeparableAttention(), nn.AvgPool2d(3, 1, 1)),
    "evo norm S0": EvoNorm2dS0(4, groups=2),
    "evo norm S0a": EvoNorm2dS0a(4, groups=2),
    "evo norm S1": EvoNorm2dS1(4, groups=2),
    "evo norm S2": EvoNorm2dS2(4, groups=2),
    "filter response norm": FilterResponseNormTlu2d(4),
    "filter response norm and activation": FilterResponseNormAct2d(4),
    "global context": timm.layers.GlobalContext(4, rd_channels=2),
    "global context, added": timm.layers.GlobalContext(4, rd_channels=2, fuse_add=True, fuse_scale=False),
    "space to depth": SpaceToDepth(4),
    "space to depth and back": nn.Sequential(SpaceToDepth(4), DepthToSpace(2), nn.AvgPool2d(3, 1, 1)),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layers(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # which some use to gain precision, not to lose it
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), copy.deepcopy(layer)).double()
    for p in network.parameters():
        p.data.add_(0.3 * weights_of(*p.shape))
    assert_agrees_with_oracle(network, MASK, 4, (4, 8))
    assert_agrees_with_crop(network, BOXES, 4, (4, 8))


# --- what must not ---------------------------------------------------------------------------------------------------


def cut(x: Tensor, rows: int, height: int) -> Tensor:
    return x.reshape(*x.shape[:2], rows, height, x.shape[3])


def corrected(x: Tensor, *counts: int) -> Tensor:
    n = math.prod(counts)
    return x.var((0, 2, 3), unbiased=False, keepdim=True) * (n / (n - 1))


REFUSED: dict[str, Function] = {
    # Of (2, h / 2) and (h / 2, 2) only one is cells of two rows, whatever the numbers.
    "as many cells for every map": lambda x: cut(x, 2, x.shape[2] // 2).mean(3),
    "as many cells for every map, plain number": lambda x: cut(x, 2, int(x.shape[2]) // 2).mean(3),
    "cells of which nothing is known": lambda x: cut(x, int(x.shape[2]) // 2, 2).mean(3),
    "cells of which nothing is known, worked out": lambda x: x.reshape(*x.shape[:2], 2, -1, x.shape[3]).mean(3),
    "cells of the other axis": lambda x: cut(x, x.shape[3] // 2, 2).mean(3),
    "dilated cells": lambda x: cut(x, 2, x.shape[2] // 2).transpose(2, 3).mean(3),
    "cells larger than a patch": lambda x: cut(x, x.shape[2] // 8, 8).mean(3),
    "cells that do not fill a patch": lambda x: cut(x, x.shape[2] // 3, 3).mean(3),
    "depth to space, as many cells for every map": lambda x: (
        x.unflatten(1, (2, 2)).transpose(1, 3).reshape(x.shape[0], 2, 2 * x.shape[2], x.shape[3])
    ),
    "rows and channels": lambda x: x.reshape(x.shape[0], 4 * x.shape[2], x.shape[3]).mean(1)[:, None, None],
    "channels and columns": lambda x: last(x).reshape(x.shape[0], x.shape[2], -1).mean(2)[:, None, :, None],
    "positions of plain sizes": lambda x: x.reshape(*x.shape[:2], 4 * 4).mean(2)[..., None, None] * x,
    "half the positions": lambda x: x.reshape(x.shape[0], -1, x.shape[2] * x.shape[3] // 2).mean(2).mean(1),
    "positions, columns first": lambda x: x.flatten(2).reshape(*x.shape[:2], x.shape[3], x.shape[2]),
    "positions as a map": lambda x: x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], 1),
    "convolution of neighbors": lambda x: F.conv1d(x.flatten(2), weights_of(4, 4, 3), padding=1).reshape(x.shape),
    "convolution of some": lambda x: F.conv1d(x.flatten(2), weights_of(4, 4, 1), stride=2),
    "convolution of positions as channels": lambda x: F.conv1d(x.flatten(2).mT, weights_of(4, 16, 1)),
    "softmax of rows": lambda x: x.softmax(2),
    "softmax of samples": lambda x: x.flatten(2).softmax(0),
    "softmax that names no axis": lambda x: F.softmax(x.flatten(2), None, 3),
    "sums of other positions": lambda x: x.flatten(2) @ x[..., ::2, ::2].flatten(2).transpose(1, 2),
    "products of positions": lambda x: x.flatten(2).transpose(1, 2) @ x.flatten(2),
    "sums of a padded map": lambda x: F.pad(x, (1, 1, 1, 1)).flatten(2).mean(2)[..., None, None] * x,
    "map and positions": lambda x: x[:, 0] + x.flatten(2),
    "expanded to plain sizes": lambda x: x * x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4),
    "expanded along one axis": lambda x: x * x.mean((2, 3), keepdim=True).expand(-1, -1, x.shape[2], 1),
    "expanded along all positions": lambda x: x.flatten(2) * x.mean((2, 3))[..., None].expand(-1, -1, x[0, 0].numel()),
    "number of positions": lambda x: x / (x.shape[2] * x.shape[3]),
    "number of rows": lambda x: torch.sub(x, x.shape[2]),
    "variance of the batch corrected by its size": lambda x: EvoNorm2dB0(4).double()(x),
    "variance of the batch corrected by an int": lambda x: (
        x / x.var((0, 2, 3), keepdim=True).mul(1 / int(x[:, 0].numel()))
    ),
    "variance of the batch corrected by ints": lambda x: x / corrected(x, *map(int, (x.shape[0], *x.shape[2:]))),
    "mean of the batch times rows": lambda x: x * torch.mul(x.mean(), x.shape[2]),
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED.keys())
def test_refused(function: Function) -> None:
    assert_refused(Apply(function), MASK, 4, (4, 4))


def test_a_patch_that_is_too_small_is_named() -> None:
    assert_refused(SpaceToDepth(4), MASK, 4, (2, 2), match="larger patch size")


# --- sizes that know what they are -----------------------------------------------------------------------------------


def sizes_seen(function: Callable[[Tensor], Any]) -> Any:
    seen: list[Any] = []
    grid = PatchGrid(MASK, 3)

    def network(x: Tensor) -> Any:
        seen.append(function(x))
        return x

    run(SparseExecution(grid), nn.Identity(), torch.randn(2, 4, 12, 18), network)
    return seen[0]


def test_sizes_are_those_of_the_whole_map() -> None:
    h, w, area = (1,), (0, 1), (1, 1)
    assert [degrees_of(s) for s in sizes_seen(lambda x: x.shape)] == [(), (), h, w]
    assert [degrees_of(s) for s in sizes_seen(lambda x: x.permute(0, 3, 1, 2).size())] == [(), w, (), h]
    assert degrees_of(sizes_seen(lambda x: x.size(-1))) == w
    assert degrees_of(sizes_seen(lambda x: x.size(dim=2))) == h
    assert degrees_of(sizes_seen(lambda x: x.flatten(2).shape[2])) == area
    assert degrees_of(sizes_seen(lambda x: math.prod(x.shape[2:]))) == area
    assert degrees_of(sizes_seen(lambda x: x.shape[2:].numel())) == area
    assert degrees_of(sizes_seen(lambda x: x.numel() / (x.shape[0] * 4))) == area
    assert sizes_seen(lambda x: x.mean((2, 3)).shape) == (2, 4)
    assert sizes_seen(lambda x: x.shape) == (2, 4, 12, 18)
    assert sizes_seen(len) == 2
    assert sizes_seen(lambda x: F.pad(x, (1, 2, 0, 0)).shape) == (2, 4, 12, 21)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_extents_are_copied(copied: Callable[[Any], Any]) -> None:
    size = copied(Extent(12, 4, (1,)))
    assert (size, degrees_of(size), local_of(size)) == (12, (1,), 4)


def test_arithmetic_of_extents() -> None:
    rows, columns = Extent(12, 4, (1,)), Extent(18, 6, (0, 1))
    kept = {
        "product": (rows * columns, 216, 24, (1, 1)),
        "times a number": (3 * rows, 36, 12, (1,)),
        "times a fraction": (0.5 * rows, 6, 2, (1,)),
        "half": (rows // 2, 6, 2, (1,)),
        "half, as a fraction": (rows / 2, 6, 2, (1,)),
        "rounded up": (math.ceil(rows / 2) * 2, 12, 4, (1,)),
        "rounded down": (math.floor(rows), 12, 4, (1,)),
        "square": (rows * rows, 144, 16, (2,)),
        "one of two": (rows * columns // rows, 18, 6, (0, 1)),
        "largest": (max(7, rows), 12, 4, (1,)),  # type: ignore[call-overload]
        "cells of three patches": (rows // 12, 1, Fraction(1, 3), (1,)),
    }
    for name, (size, value, local, degrees) in kept.items():
        assert (size, local_of(size), degrees_of(size)) == (value, local, degrees), name
    derived = {
        "rounded": (rows // 5, 2),
        "more": (rows + 1, 13),
        "less": (rows - 1, 11),
        "from the other side": (20 - rows, 8),
        "negative": (-rows, -12),
        "rest": (rows % 5, 2),
        "root": (rows**0.5, 12**0.5),
        "inverse": (1 / rows, 1 / 12),
        "inverse of a fraction": (1.0 / rows, 1 / 12),
        "two axes": (rows / columns, 12 / 18),
        "float times": (2.5 * (rows - 1), 27.5),
    }
    for name, (size, value) in derived.items():  # type: ignore[assignment]
        assert type(size) is Extent, name
        assert (size, degrees_of(size)) == (value, ()), name  # type: ignore[comparison-overlap]
    assert type(rows // rows) is int


def test_extents_count_as_the_numbers_that_they_are_on_the_whole_map() -> None:
    rows = Extent(12, 4, (1,))
    assert isinstance(rows, int)  # type: ignore[unreachable]
    assert isinstance(rows / 5, float)  # type: ignore[unreachable]
    assert {12: "twelve"}[rows] == "twelve"
    assert (rows > 11, rows < 13, rows == 12, rows != 4, rows >= 13) == (True, True, True, True, False)
    assert (list(range(rows)), [0] * rows, f"{rows:3d}") == (list(range(12)), [0] * 12, " 12")
    assert (int(rows), float(rows), math.log2(rows), divmod(rows, 5)) == (12, 12.0, math.log2(12), (2, 2))


@pytest.mark.parametrize("function", [*POSITIONS.values(), *EXPANDED.values()], ids=[*POSITIONS, *EXPANDED])
def test_no_waiting_for_the_device(function: Function) -> None:
    assert_never_waits(lambda: Apply(function), (2, 3, 3), 4, 4, (4, 8))
