"""Sizes that a network reads are those of the whole map: it behaves as on the whole map, or is refused."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from engine_helpers import Apply, assert_agrees_with_crop, assert_agrees_with_oracle, assert_refused, weights_of
from sparkmim.sparse import (
    MaskedDenseExecution,
    PatchGrid,
    SparseExecution,
    UnsupportedOperation,
    check,
    require_compilable,
    run,
)

Function = Callable[[Tensor], Any]

MASK = torch.tensor([
    [[True, True, False, False], [True, False, False, True], [False, False, True, True]],
    [[False, True, True, False], [True, False, True, True], [False, True, False, False]],
])  # fmt: skip
EVERYTHING = torch.ones_like(MASK)
PATCHES = [(4, 6), (1, 1), (2, 1)]


def depthwise(x: Tensor, kernel: int, **options: Any) -> Tensor:
    return F.conv2d(x, weights_of(4, 1, kernel, kernel), groups=4, **options)


def stochastic_depth(draw: Callable[..., Tensor]) -> Function:
    """A branch that is dropped for some images, whose noise `draw` makes of a map."""
    return lambda x: x + depthwise(x, 3, padding=1) * draw(x).floor() / 0.8


def ones(x: Tensor) -> tuple[int, ...]:
    return (1,) * (x.ndim - 1)


def _with_first_channel(new: Tensor, x: Tensor) -> Tensor:
    new[:, :1] = x[:, :1]
    return new


DECISIONS: dict[str, Function] = {
    "comparison": lambda x: x * 2 if x.shape[2] > 8 else x * 3,
    "equality": lambda x: x * 2 if x.size(-1) == 24 else x * 3,
    "between two axes": lambda x: x * 2 if x.shape[3] > x.shape[2] + 5 else x * 3,
    "kernel": lambda x: depthwise(x, 7 if x.shape[2] >= 10 else 3, padding=3 if x.shape[2] >= 10 else 1),
    "dilation": lambda x: depthwise(x, 3, padding=max(1, x.shape[2] // 3), dilation=max(1, x.shape[2] // 3)),
    "table": lambda x: x * {12: 2.0, 3: 3.0, 6: 5.0, 24: 7.0, 4: 11.0}[x.shape[3 if x.shape[3] == 24 else 2]],
    "logarithm": lambda x: x * int(math.log2(x.shape[3])),
    "number of values": lambda x: x * 2 if x.numel() > 100 else x * 3,
    "repetitions": lambda x: sum([x] * (x.shape[2] // 3)),
    "loop": lambda x: [x := x * 1.5 for _ in range(x.shape[2] // 3)][-1],
    "number of images": lambda x: x / len(x) if len(x) == 2 else x,
    "size of the batch": lambda x: x / x.shape[0],
    "size after padding": lambda x: x * 2 if F.pad(x, (1, 1)).shape[3] % 2 else x * 3,
    "channels": lambda x: x * torch.arange(x.shape[1]).view(1, -1, 1, 1),
    "slice of channels": lambda x: x[:, : min(2, x.shape[2])],
}

SIZES: dict[str, Function] = {
    "view": lambda x: x.view(x.shape[0], 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "ordinary numbers": lambda x: x.view(int(x.shape[0]), 2, 2, int(x.shape[2]), int(x.shape[3])).sum(1),
    "positions": lambda x: x.view(x.shape[0], 4, x.numel() // (x.shape[0] * 4)).exp().view(x.shape),
    "positions and channels": lambda x: (
        x.permute(0, 2, 3, 1).reshape(len(x), x.shape[2] * x.shape[3], 4).transpose(1, 2).reshape(x.shape)
    ),
    "unflatten": lambda x: x.flatten(2).cumsum(1).unflatten(2, x.shape[2:]),
    "slices of everything": lambda x: x[:, :, : x.size(2), : x.shape[3]] * 2,
    "expand": lambda x: x + x.mean((2, 3), keepdim=True).expand(-1, -1, x.shape[2], x.shape[3]),
    "expand to a shape": lambda x: x + x.amax((2, 3), keepdim=True).expand(x.shape),
    "zeros per image": lambda x: x + x.new_zeros(x.shape[0], 4, 1, 1),
    "map of ones": lambda x: x * torch.ones(x.shape[0], 1, x.shape[2], x.shape[3], dtype=x.dtype),
    "joined with a map of ones": lambda x: torch.cat([x, torch.ones(x.shape, dtype=x.dtype)], 1),
    "written into a new map": lambda x: torch.zeros(x.shape, dtype=x.dtype).copy_(x) * 2,
    "added to a new map": lambda x: torch.zeros(x.shape, dtype=x.dtype).add_(x) * 2,
    "written to a part of a new map": lambda x: _with_first_channel(torch.zeros(x.shape, dtype=x.dtype), x),
    "pooling to one": lambda x: x * F.avg_pool2d(x, x.shape[2:]),
    "normalization of what is seen": lambda x: (
        depthwise(x, 3, padding=1)
        / F.conv2d(torch.ones(len(x), 1, *x.shape[2:], dtype=x.dtype), weights_of(1, 1, 3, 3).abs(), padding=1)
    ),
}

NOISE: dict[str, Function] = {
    "rand of a tuple": lambda x: torch.rand((x.shape[0], *ones(x)), dtype=x.dtype) + 0.5,
    "rand of numbers": lambda x: torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype) + 0.5,
    "rand of a list": lambda x: torch.rand([x.shape[0], 1, 1, 1], dtype=x.dtype) + 0.5,
    "rand of len": lambda x: torch.rand(len(x), 1, 1, 1, dtype=x.dtype) + 0.5,
    "rand of int": lambda x: torch.rand(int(x.size(0)), 1, 1, 1, dtype=x.dtype) + 0.5,
    "rand of channels": lambda x: torch.rand(x.shape[:2], dtype=x.dtype)[..., None, None] + 0.5,
    "rand by name": lambda x: torch.rand(size=(x.shape[0], 1, 1, 1), dtype=x.dtype) + 0.5,
    "empty": lambda x: torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype).bernoulli_(0.5),
    "ones": lambda x: torch.ones((x.shape[0], *ones(x)), dtype=x.dtype).bernoulli_(0.5),
    "zeros": lambda x: torch.zeros(x.shape[0], 1, 1, 1, dtype=x.dtype).uniform_(0, 2),
    "full": lambda x: torch.bernoulli(torch.full((x.shape[0], 1, 1, 1), 0.5, dtype=x.dtype)),
    "method of full": lambda x: torch.full((x.shape[0], 1, 1, 1), 0.5, dtype=x.dtype).bernoulli(),
    "of torchvision": lambda x: torchvision.ops.stochastic_depth(torch.ones_like(x), 0.5, "row", training=True),
    "new empty": lambda x: x.new_empty((x.shape[0], *ones(x))).bernoulli_(0.5),
    "random integers": lambda x: torch.randint(0, 2, (x.shape[0], 1, 1, 1)).to(x),
    "normal": lambda x: torch.randn(x.shape[0], 1, 1, 1, dtype=x.dtype),
    "comparison": lambda x: (torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype) < 0.5).to(x.dtype) * 2,
}

RIGHT = DECISIONS | SIZES | {f"stochastic depth, {name}": stochastic_depth(draw) for name, draw in NOISE.items()}

REFUSED: dict[str, Function] = {
    "sum over number": lambda x: x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]) + x,
    "inverse": lambda x: x * (1 / (x.shape[2] * x.shape[3])),
    "inverse of a fraction": lambda x: x * (1.0 / (x.shape[2] * x.shape[3])),
    "less one": lambda x: x / (x.shape[2] * x.shape[3] - 1),
    "root": lambda x: x / (x.shape[2] * x.shape[3]) ** 0.5,
    "root of math": lambda x: x / math.sqrt(x.shape[2] * x.shape[3]),
    "int": lambda x: x / int(x.shape[2] * x.shape[3]),
    "float": lambda x: x * float(x.shape[2] * x.shape[3]),
    "tensor": lambda x: x / torch.tensor(x.shape[2] * x.shape[3]),
    "tensor of several": lambda x: x * torch.tensor([x.shape[2], x.shape[3]]).prod().sqrt(),
    "numel of a shape": lambda x: x / x.shape[2:].numel(),
    "numel by images": lambda x: x * (x.numel() / x.shape[0]),
    "function": lambda x: torch.sub(x, x.shape[2]),
    "method": lambda x: x.mul(x.shape[3]),
    "on the left": lambda x: x.shape[3] * x,
    "bound": lambda x: x.clamp(max=x.shape[2]),
    "compared": lambda x: x * (x > x.shape[2]),
    "in place": lambda x: x.clone().div_(x.shape[2]),
    "written": lambda x: x.clone().fill_(x.shape[2]),
    "positions": lambda x: x * torch.linspace(-1, 1, x.shape[3], dtype=x.dtype),
    "table of positions": lambda x: x + weights_of(1, 4, 40, 40)[:, :, : x.shape[2], : x.shape[3]],
    "resampled table": lambda x: x + F.interpolate(weights_of(1, 4, 5, 5), size=x.shape[2:]),
    "weight scaled by size": lambda x: F.conv2d(x, weights_of(4, 4, 1, 1) / x.shape[2]),
}


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("function", RIGHT.values(), ids=RIGHT)
def test_behaves_as_on_the_whole_map(function: Function, patch: tuple[int, int]) -> None:
    assert_agrees_with_oracle(Apply(function), MASK, 4, patch)
    assert_agrees_with_crop(Apply(function), EVERYTHING, 4, patch)


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_is_refused_where_a_size_meets_the_input(function: Function, patch: tuple[int, int]) -> None:
    assert_refused(Apply(function), EVERYTHING, 4, patch, match="size of the map")


def per_axis(convert: Callable[[Any], Any], combine: Callable[[Tensor, Any], Any] = operator.truediv) -> Function:
    """Return a sum over space that is divided by the extents, one by one, after `convert`."""
    return lambda x: combine(combine(x.sum((2, 3)), convert(x.shape[2])), convert(x.shape[3]))


def in_place(s: Tensor, number: Any) -> Tensor:
    s /= number
    return s


BY_HAND: dict[str, Function] = {
    "float": per_axis(float),
    "int": per_axis(int),
    "square root": per_axis(math.sqrt),
    "inverse": per_axis(lambda n: 1.0 / int(n), operator.mul),
    "inverse of a float": per_axis(lambda n: 1 / float(n), operator.mul),
    "inverse square root": per_axis(lambda n: int(n) ** -0.5, operator.mul),
    "inverse on the left": per_axis(lambda n: 1 / float(n), lambda s, n: n * s),
    "method": per_axis(float, Tensor.div),
    "function": per_axis(int, torch.true_divide),
    "in place": per_axis(float, Tensor.div_),
    "operator in place": per_axis(float, in_place),
    "format": per_axis(lambda n: int(str(int(n)))),
    "tensor": per_axis(lambda n: torch.tensor(float(n))),
    "tensor of double precision": per_axis(lambda n: torch.tensor(int(n), dtype=torch.float64)),
    "inverse of a tensor": per_axis(lambda n: 1 / torch.tensor(float(n)), operator.mul),
    "filled": per_axis(lambda n: torch.full((1,), float(n))),
    "number of NumPy": per_axis(np.float64),
    "integer of NumPy": per_axis(lambda n: np.int64(int(n))),
    "product": lambda x: x.sum((2, 3)) / (int(x.shape[2]) * int(x.shape[3])),
    "product of floats": lambda x: x.sum((2, 3)) * (1 / float(x.shape[2]) / float(x.shape[3])),
    "one of the axes": lambda x: x.sum((2, 3)) / float(x.shape[3]),
    "sizes read later": lambda x: (lambda s: s / float(x.shape[2]) / float(x.shape[3]))(x.sum((2, 3))),
    "axes kept": lambda x: x * (x.sum((2, 3), keepdim=True) / float(x.shape[2]) / float(x.shape[3])),
    "axes in turn": lambda x: x.sum(3).sum(2) / float(x.shape[2]) / float(x.shape[3]),
    "flattened": lambda x: x.flatten(2).sum(2) / float(x.shape[2]) / float(x.shape[3]),
    "einsum": lambda x: torch.einsum("bchw->bc", x) / float(x.shape[2]) / float(x.shape[3]),
    "norm": lambda x: x.norm(dim=(2, 3)) / math.sqrt(x.shape[2]) / math.sqrt(x.shape[3]),
    "norm of vectors": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)) / math.sqrt(x.shape[2]),
    "root of a sum of squares": lambda x: x.square().sum((2, 3)).sqrt() / math.sqrt(x.shape[2] * 1.0),
    "logarithm of a sum": lambda x: x.logsumexp((2, 3)) - math.log(x.shape[2]) - math.log(x.shape[3]),
    "logarithm of a sum at once": lambda x: x.logsumexp((2, 3)) - math.log(x.shape[2] * x.shape[3]),
    "mean times sizes": lambda x: x.mean((2, 3)) * float(x.shape[2]) * float(x.shape[3]),
    "scaled before": lambda x: (x / float(x.shape[2]) / float(x.shape[3])).sum((2, 3)),
    "after a layer": lambda x: F.linear(x.sum((2, 3)), weights_of(4, 4)) / float(x.shape[2]) / float(x.shape[3]),
    "weights of a layer": lambda x: F.linear(x.sum((2, 3)), weights_of(4, 4) / float(x.shape[2])),
    "after views": lambda x: x.sum((2, 3)).view(len(x), 2, 2).transpose(1, 2).flatten(1)[:, 1:] / int(x.shape[2]),
    "softmax": lambda x: (x.flatten(2).softmax(-1) * float(x.shape[2]) * float(x.shape[3])).unflatten(2, x.shape[2:]),
    "normalized": lambda x: (
        F.normalize(x, dim=(2, 3)) * math.sqrt(x.shape[2]) * math.sqrt(x.shape[3])  # type: ignore[arg-type]
    ),
}
"""Averages by sizes that have become ordinary numbers, which are known by their value alone."""


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("function", BY_HAND.values(), ids=BY_HAND)
def test_an_average_by_ordinary_numbers_is_refused(function: Function, patch: tuple[int, int]) -> None:
    def as_map(x: Tensor) -> Tensor:
        out = function(x)
        return x + out.view(len(x), -1, 1, 1)[:, :1] if out.ndim < 4 else x + out

    assert_refused(Apply(as_map), EVERYTHING, 4, patch, match=r"size of the map.*x\.mean\(\(2, 3\)\)")


TWELVE = torch.tensor(12.0)

CONSTANTS: dict[str, Function] = {
    "sum": lambda x: x + x.sum((2, 3), keepdim=True) / 10,
    "mean": lambda x: x + x.mean((2, 3), keepdim=True) * 1.5,
    "norm": lambda x: x / (x.norm(dim=(2, 3), keepdim=True) + 1e-6) * 0.7,
    "gate": lambda x: x * F.relu6(F.conv2d(x.mean((2, 3), keepdim=True), weights_of(4, 4, 1, 1)) + 3) / 6,
    "map": lambda x: depthwise(x / 11 * 7, 3, padding=1),
    "weights": lambda x: F.conv2d(x, weights_of(4, 4, 1, 1) / 11),
    "global response": lambda x: (lambda g: x * (g / (g.mean(1, keepdim=True) + 1e-6)) + x)(
        x.norm(dim=(2, 3), keepdim=True)
    ),
    "buffer": lambda x: x + x.sum((2, 3), keepdim=True) / TWELVE,
}


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("function", CONSTANTS.values(), ids=CONSTANTS)
def test_constants_are_no_sizes(function: Function, patch: tuple[int, int]) -> None:
    def measured(x: Tensor) -> Tensor:
        return function(x.view(int(x.shape[0]), 4, int(x.shape[2]), int(x.shape[3])))

    assert_agrees_with_oracle(Apply(measured), MASK, 4, patch)
    assert_agrees_with_crop(Apply(measured), EVERYTHING, 4, patch)


WITHIN_PATCHES: dict[str, Function] = {
    "upsampled to the size of a map": lambda x: depthwise(
        F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:]), 3, padding=1
    ),
    "half of a size": lambda x: F.interpolate(x, size=(x.shape[2] // 2, x.shape[3] // 2)),
    "cells": lambda x: x.view(len(x), 4, x.shape[2] // 2, 2, x.shape[3] // 2, 2).amax((3, 5)),
    "padding to even": lambda x: F.conv2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), weights_of(4, 4, 1, 1)),
}


@pytest.mark.parametrize("function", WITHIN_PATCHES.values(), ids=WITHIN_PATCHES)
def test_behaves_as_on_the_whole_map_within_patches(function: Function) -> None:
    assert_agrees_with_oracle(Apply(function), MASK, 4, (4, 6))
    assert_agrees_with_crop(Apply(function), EVERYTHING, 4, (4, 6))


def test_fixed_sizes_are_of_the_whole_map() -> None:
    def resampled(x: Tensor) -> Tensor:
        return F.interpolate(x, size=(6, 8)) * 2

    assert_agrees_with_crop(Apply(resampled), EVERYTHING, 4, (4, 6))
    assert_agrees_with_oracle(Apply(resampled), MASK, 4, (4, 6))
    assert_refused(Apply(lambda x: F.interpolate(x, size=(4, 4))), EVERYTHING, 4, (4, 6), match="patch by patch")


def test_sizes_told_of_a_rectangle() -> None:
    """A check of a rectangle of patches tells the network its sizes, as the ordinary network reads them."""
    visible = torch.zeros(1, 3, 4, dtype=torch.bool)
    visible[:, :2, :3] = True
    execution = SparseExecution(PatchGrid(visible, 6))
    execution.told.grid = (2, 3)
    seen: list[Any] = []

    def network(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return x

    run(execution, Apply(network), torch.zeros(1, 4, 12, 24))
    assert seen == [(1, 4, 8, 18)]


def test_raw_errors_of_torch_name_the_module() -> None:
    with pytest.raises(UnsupportedOperation, match="size of the map"):
        run(SparseExecution(PatchGrid(EVERYTHING, 12)), Apply(lambda x: x.add(x.shape[2])), torch.zeros(2, 4, 12, 24))


COMPILED = {"branch": DECISIONS["comparison"], "table": DECISIONS["table"], "batch": DECISIONS["size of the batch"]}


@pytest.mark.parametrize("function", COMPILED.values(), ids=COMPILED)
def test_a_network_that_decides_by_sizes_is_not_compiled(function: Function) -> None:
    with pytest.raises(UnsupportedOperation, match="cannot be compiled"):
        require_compilable(PatchGrid(MASK, 6), Apply(function), torch.randn(2, 4, 12, 24))


SAME = {"view": SIZES["view"], "noise": stochastic_depth(NOISE["rand of numbers"]), "no sizes": torch.relu}


@pytest.mark.parametrize("function", SAME.values(), ids=SAME)
def test_a_network_that_gives_sizes_back_can_be_compiled(function: Function) -> None:
    images, state = torch.randn(2, 4, 12, 24).double(), torch.get_rng_state()
    require_compilable(PatchGrid(MASK, 6), Apply(function), images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "seen"])
def test_a_run_is_compiled_for_networks_that_have_been_seen(seen: bool) -> None:
    """Dynamo would tell it the sizes of patches."""
    grid, images, network = PatchGrid(MASK, 6), torch.randn(2, 4, 12, 24), nn.Sequential(nn.Conv2d(4, 4, 1))
    if seen:
        require_compilable(grid, network, images)
    compiled = torch.compile(lambda x: run(SparseExecution(grid), network, x), backend="eager", fullgraph=True)
    with nullcontext() if seen else pytest.raises(Exception, match="has not been checked before it is compiled"):
        torch.testing.assert_close(compiled(images), run(SparseExecution(grid), network, images))
    reference = torch.compile(lambda x: run(MaskedDenseExecution(grid), network, x), backend="eager", fullgraph=True)
    torch.testing.assert_close(reference(images), run(MaskedDenseExecution(grid), network, images))


@pytest.mark.parametrize("threshold", range(4, 20, 2))
def test_a_check_tells_a_rectangle_its_own_sizes(threshold: int) -> None:
    """Wherever a network decides between the size of the images and that of their rectangle, the check passes."""
    network = nn.Sequential(nn.Conv2d(4, 4, 1), Apply(lambda x: x * (2 if x.shape[2] >= threshold else 3)))
    assert check(network, patch_size=(4, 4), in_chans=4, modes=["eval"]).passed
