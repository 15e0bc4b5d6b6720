"""Patches smaller than the network's total stride: maps whose positions hold several of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparkmim
from sparkmim import Backbone, SparK
from sparkmim.sparse import (
    CoarseExecution,
    CoarseGrid,
    MaskedDenseExecution,
    PatchGrid,
    SparseExecution,
    UnsupportedOperation,
    check,
    dense_fallback,
    mask_at,
    run,
)
from sparkmim.sparse.registry import RULES

GRID = (4, 6)


def some_visible(images: int = 3, shown: int = 5, seed: int = 0) -> Tensor:
    """A mask that hides all patches of some positions, some of others, none of none."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(images, *GRID, generator=generator)
    order[:, :2, :2] += 1
    order = order.flatten(1).argsort(1)[:, :shown]
    return torch.zeros(images, GRID[0] * GRID[1], dtype=torch.bool).scatter(1, order, True).view(images, *GRID)


def grid_of(visible: Tensor) -> PatchGrid:
    return PatchGrid(visible, int(visible[0].sum()))


def blocks(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, C, H, W)` as `(B, C, *size, pixels)`."""
    b, c, h, w = image.shape
    cells = image.view(b, c, size[0], h // size[0], size[1], w // size[1])
    return cells.transpose(3, 4).flatten(4)


# --- masks ----------------------------------------------------------------------------------------------------------


def test_position_is_visible_if_one_of_its_patches_is() -> None:
    visible = some_visible()
    found = mask_at(visible, (2, 3))
    assert torch.equal(found, blocks(visible[:, None], (2, 3)).any(-1)[:, 0])
    assert 0 < found.sum() < found.numel()
    assert len(set(found.flatten(1).sum(1).tolist())) > 1, "images differ in what is visible"


def test_mask_of_maps_coarser_along_one_axis_and_finer_along_the_other() -> None:
    visible = some_visible()
    expected = visible.view(3, 2, 2, 6).any(2).repeat_interleave(4, dim=2)
    assert torch.equal(mask_at(visible, (2, 24)), expected)


@pytest.mark.parametrize("size", [(3, 6), (4, 5), (0, 6), (4, 6, 1)])
def test_positions_that_straddle_patches(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"cannot be cut into a grid of \(4, 6\) patches"):
        mask_at(some_visible(), size)


def test_grid_of_a_scale() -> None:
    grid = grid_of(some_visible())
    assert grid.at((4, 6)) is grid
    assert grid.at((8, 6)) is grid
    coarse = grid.at((2, 6))
    assert isinstance(coarse, CoarseGrid)
    maps = torch.randn(3, 5, 2, 6)
    filled = coarse.unpack(coarse.pack(maps), fill=torch.arange(5.0))
    expected = torch.where(coarse.visible[:, None], maps, torch.arange(5.0).view(5, 1, 1))
    assert torch.equal(filled, expected)


# --- operations, against their definitions ---------------------------------------------------------------------------


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def coarse_map(network: nn.Module, images: Tensor, visible: Tensor) -> Tensor:
    """The last map, whole, zero where hidden."""
    packed = SparseExecution(grid_of(visible))
    return packed.whole_map(run(packed, network, images)[-1])


def shown_images(visible: Tensor, channels: int = 4) -> tuple[Tensor, Tensor]:
    """Images of one pixel a patch with NaN where hidden, and with zeros."""
    images = torch.randn(len(visible), channels, *GRID, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shown = visible[:, None]
    return images.where(shown, torch.nan), images.where(shown, 0)


def test_convolution_reads_zeros_where_hidden_and_gives_them_where_all_is() -> None:
    visible = some_visible()
    images, zeroed = shown_images(visible)
    conv = nn.Conv2d(4, 5, 3, 2, 1).double()
    then = nn.Conv2d(5, 5, 3, 1, 1).double()
    seen = mask_at(visible, (2, 3))[:, None]
    first = conv(zeroed).where(seen, 0)
    torch.testing.assert_close(coarse_map(conv, images, visible), first)
    torch.testing.assert_close(coarse_map(nn.Sequential(conv, then), images, visible), then(first).where(seen, 0))


def test_max_pooling_ignores_what_is_hidden() -> None:
    visible = some_visible()
    images, zeroed = shown_images(visible)
    lowest = zeroed.where(visible[:, None], -torch.inf)
    expected = blocks(lowest, (2, 3)).amax(-1).where(mask_at(visible, (2, 3))[:, None], 0)
    torch.testing.assert_close(coarse_map(nn.MaxPool2d(2), images, visible), expected)


@pytest.mark.parametrize("counted", [True, False])
def test_average_pooling_counts_what_is_hidden_as_it_counts_padding(counted: bool) -> None:
    visible = some_visible()
    images, zeroed = shown_images(visible)
    number = 4 if counted else blocks(visible[:, None].double(), (2, 3)).sum(-1).clamp_min(1)
    pool = nn.AvgPool2d(2, count_include_pad=counted)
    torch.testing.assert_close(coarse_map(pool, images, visible), blocks(zeroed, (2, 3)).sum(-1) / number)


STATISTICS: dict[str, Callable[[Tensor], Any]] = {
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean without axes": lambda x: x.mean((2, 3))[:, :, None, None],
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, 1),
    "sum": lambda x: x.sum((2, 3), keepdim=True),
    "largest": lambda x: x.amax((2, 3), keepdim=True),
    "smallest": lambda x: x.amin((2, 3), keepdim=True),
    "norm": lambda x: x.norm(p=2, dim=(2, 3), keepdim=True),
    "vector norm": lambda x: torch.linalg.vector_norm(x, 3, dim=(2, 3), keepdim=True),
    "logsumexp": lambda x: x.logsumexp((2, 3), keepdim=True),
    "nanmean": lambda x: x.nanmean((2, 3), keepdim=True),
    "variance": lambda x: x.var((2, 3), keepdim=True),
    "variance, biased": lambda x: x.var((2, 3), unbiased=False, keepdim=True),
    "variance, corrected": lambda x: x.var((2, 3), correction=0, keepdim=True),
    "deviation": lambda x: x.std((2, 3), keepdim=True),
    "deviation and mean": lambda x: sum(torch.std_mean(x, (2, 3), keepdim=True)),
    "mean of channels too": lambda x: x.mean((1, 2, 3), keepdim=True),
    "mean of channels that come last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2))[:, :, None, None],
    "group norm": lambda x: F.group_norm(x, 2, torch.arange(1.0, 5).double(), torch.arange(4.0).double()),
    "layer norm of all": lambda x: F.group_norm(x, 1),
    "instance norm": lambda x: F.instance_norm(x),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_an_image_are_over_its_visible_positions(name: str) -> None:
    """Each image apart, its visible positions as an image of one row."""
    visible = some_visible(shown=7)
    images, _ = shown_images(visible)
    conv = nn.Conv2d(4, 4, 2, 2).double()
    function = STATISTICS[name]
    network = Calls(lambda self, x: [y := self.conv(x), y + function(y)], conv=conv)
    seen = mask_at(visible, (2, 3))
    found = coarse_map(network, images, visible)
    for image, maps, mask in zip(found, coarse_map(conv, images, visible), seen, strict=True):
        row = maps[:, mask][None, :, None]
        torch.testing.assert_close(image[:, mask], (row + function(row))[0, :, 0])


@pytest.mark.parametrize("name", ["batch", "batch, no statistics kept", "instance"])
@pytest.mark.parametrize("training", [True, False])
def test_norms(name: str, training: bool) -> None:
    """Batch norm of the visible positions of all images; values, gradients, running statistics."""
    made: dict[str, Callable[[], Any]] = {
        "batch": lambda: nn.BatchNorm2d(4),
        "batch, no statistics kept": lambda: nn.BatchNorm2d(4, track_running_stats=False),
        "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    }
    visible = some_visible(shown=7)
    images, zeroed = shown_images(visible)
    conv, norm, other = nn.Conv2d(4, 4, 2, 2).double(), made[name]().double(), made[name]().double()
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.rand_like(p))
    other.load_state_dict(norm.state_dict())
    norm.train(training)
    other.train(training)
    seen = mask_at(visible, (2, 3))
    found = coarse_map(nn.Sequential(conv, norm), images, visible).movedim(1, -1)[seen]
    maps = conv(zeroed).movedim(1, -1)
    if name == "instance":
        rows = [image[mask].t()[None] for image, mask in zip(maps, seen, strict=True)]
        expected = torch.cat([F.instance_norm(row, weight=other.weight, bias=other.bias)[0].t() for row in rows])
    else:
        batch = training or other.running_mean is None
        expected = F.batch_norm(maps[seen], other.running_mean, other.running_var, other.weight, other.bias, batch)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    ours = torch.autograd.grad(found, [conv.weight, *norm.parameters()], upstream)
    theirs = torch.autograd.grad(expected, [conv.weight, *other.parameters()], upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    for buffer, value in norm.named_buffers():
        if buffer.startswith("running"):
            torch.testing.assert_close(value, other.get_buffer(buffer))


# --- against the reference, which has rules of its own ---------------------------------------------------------------


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "convolution": lambda x: F.conv2d(x, random(4, 4, 3, 3), random(4), padding=1),
    "convolution in groups": lambda x: F.conv2d(x, random(8, 2, 3, 3), None, 1, "same", groups=2),
    "convolution, dilated": lambda x: F.conv2d(x, random(4, 4, 3, 3), padding=2, dilation=2),
    "convolution of one pixel": lambda x: F.conv2d(x, random(4, 4, 1, 1)),
    "convolution of positions in a row": lambda x: F.conv1d(x.flatten(2), random(4, 4, 1)).view(x.shape),
    "convolution of a value per image": lambda x: x * F.conv2d(x.mean((2, 3), True), random(4, 4, 1, 1)),
    "convolution, padded before": lambda x: F.conv2d(F.pad(x, (2, 0, 1, 1), value=0.7), random(4, 4, 3, 3)),
    "maximum": lambda x: F.max_pool2d(x, 3, 1, 1),
    "maximum of a wide window": lambda x: F.max_pool2d(x, 5, 1, 2),
    "maximum, padded before": lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1),
    "maximum of all": lambda x: x * F.max_pool2d(x, x.shape[2:]),
    "average": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "average without padding": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "average, divided by a number": lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=5),
    "average, padded before": lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), value=2.0), 3, 1, count_include_pad=False),
    "average of all": lambda x: x * F.avg_pool2d(x, x.shape[2:]),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest, to a size": lambda x: F.interpolate(x, (4, 6), mode="nearest-exact"),
    "batch norm": lambda x: F.batch_norm(x, None, None, random(4), random(4), training=True),
    "batch norm, evaluated": lambda x: F.batch_norm(x, random(4), random(4)),
    "batch norm of values per image": lambda x: (
        x * F.batch_norm(x.mean((2, 3)), None, None, training=True)[..., None, None]
    ),
    "batch norm of torch": lambda x: torch.batch_norm(x, random(4), None, None, None, True, 0.1, 1e-5, False),
    "group norm": lambda x: F.group_norm(x, 2, random(4), random(4)),
    "group norm of values per image": lambda x: x * F.group_norm(x.mean((2, 3)), 2)[..., None, None],
    "group norm of torch": lambda x: torch.group_norm(x, 2, random(4)),
    "instance norm": lambda x: F.instance_norm(x, weight=random(4), bias=random(4)),
    "instance norm of torch": lambda x: torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5, False),
    "batch norm in groups": lambda x: F.batch_norm(x.unflatten(1, (2, 2)), None, None, training=True).flatten(1, 2),
    "batch norm of a row": lambda x: F.batch_norm(x.flatten(2), None, None, training=True).view(x.shape),
    "group norm in groups": lambda x: F.group_norm(x.unflatten(1, (2, 2)), 2).flatten(1, 2),
    "group norm of a row": lambda x: F.group_norm(x.flatten(2), 2, random(4)).view(x.shape),
    "instance norm, evaluated": lambda x: F.instance_norm(x, random(4), random(4), use_input_stats=False),
    "softmax over positions": lambda x: x.flatten(2).softmax(-1).view(x.shape),
    "sum of products": lambda x: x * (x.flatten(2) @ x.flatten(2).transpose(1, 2)).sum(-1)[..., None, None],
    **{f"statistic, {name}": lambda x, f=f: x + f(x) for name, f in STATISTICS.items()},  # type: ignore[misc]
}  # fmt: skip


def cells_of(x: Tensor) -> Tensor:
    """`(B, C, H, W)` to `(B, C, H / 2, 2, W / 3, 3)`."""
    return x.view(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 3, 3)


def to_depth(x: Tensor) -> Tensor:
    whole = cells_of(x).permute(0, 1, 3, 5, 2, 4)
    return whole.reshape(x.shape[0], 6 * x.shape[1], x.shape[2] // 2, x.shape[3] // 3)


def patch_merging(x: Tensor) -> Tensor:
    """Space to depth of a map with channels last."""
    b, h, w, c = x.permute(0, 2, 3, 1).shape
    cut = x.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 3, 3 * c)
    return cut.permute(0, 1, 3, 2, 4).flatten(3).permute(0, 3, 1, 2)


MERGING: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "slices": (lambda x: x[..., ::2, 1::3], lambda x: F.conv2d(x, one_of_six(1), stride=(2, 3), groups=4)),
    "slices of channels last": (
        lambda x: x.permute(0, 2, 3, 1)[:, 1::2, ::3].permute(0, 3, 1, 2),
        lambda x: F.conv2d(x, one_of_six(3), stride=(2, 3), groups=4),
    ),
    "depth": (to_depth, lambda x: F.conv2d(x, every_one_of_six(), stride=(2, 3), groups=4)),
    "depth, padded": (
        lambda x: F.pad(to_depth(x), (0, 0, 0, 0, 0, 0)),
        lambda x: F.conv2d(x, every_one_of_six(), stride=(2, 3), groups=4),
    ),
    "depth of channels last": (
        patch_merging,
        lambda x: (
            F.conv2d(x, every_one_of_six(), stride=(2, 3), groups=4).unflatten(1, (4, 6)).transpose(1, 2).flatten(1, 2)
        ),
    ),
    "mean": (lambda x: cells_of(x).mean((3, 5)), lambda x: F.avg_pool2d(x, (2, 3))),
    "sum": (lambda x: cells_of(x).sum((3, 5)), lambda x: F.avg_pool2d(x, (2, 3), divisor_override=1)),
    "largest": (lambda x: cells_of(x).amax((3, 5)), lambda x: F.max_pool2d(x, (2, 3))),
    "smallest": (lambda x: cells_of(x).amin((3, 5), True)[:, :, :, 0, :, 0], lambda x: -F.max_pool2d(-x, (2, 3))),
    "norm": (
        lambda x: torch.linalg.vector_norm(cells_of(x), dim=(3, 5)),
        lambda x: F.avg_pool2d(x * x, (2, 3), divisor_override=1).sqrt(),
    ),
    "cut and joined": (lambda x: (cells_of(x) + 1).view(x.shape).sigmoid(), lambda x: (x + 1).sigmoid()),
    "cut, moved and joined": (
        lambda x: cells_of(x).permute(0, 2, 3, 4, 5, 1).reshape(len(x), x.shape[2], x.shape[3], 4).permute(0, 3, 1, 2),
        lambda x: x,
    ),
    "one of each cell": (
        lambda x: cells_of(x)[:, :, :, 0].unbind(4)[1],
        lambda x: F.conv2d(x, one_of_six(1), stride=(2, 3), groups=4),
    ),
    "mean of the cells": (
        lambda x: x * cells_of(x).mean((2, 3, 4, 5))[..., None, None],
        lambda x: x * x.mean((2, 3), keepdim=True),
    ),
}  # fmt: skip
"""Functions that merge or pick out positions, and the same said by a convolution or pooling."""


def one_of_six(place: int) -> Tensor:
    """A depthwise kernel of 2 x 3 that picks out one position."""
    return torch.eye(6, dtype=torch.float64)[place].view(1, 1, 2, 3).expand(4, -1, -1, -1)


def every_one_of_six() -> Tensor:
    return torch.eye(6, dtype=torch.float64).view(6, 1, 2, 3).repeat(4, 1, 1, 1)


@pytest.mark.parametrize("kind", [SparseExecution, MaskedDenseExecution])
@pytest.mark.parametrize("name", MERGING)
def test_merging_positions_sees_hidden_ones_as_outside(name: str, kind: type[Any]) -> None:
    """As a convolution or pooling does, in values and gradients; whatever stands at hidden positions before."""
    visible = some_visible(shown=7)
    images = shown_images(visible)[0].requires_grad_()
    conv = nn.Conv2d(4, 4, 1, dtype=torch.float64)
    found, expected = (
        _passed(
            Calls(lambda self, x, f=f: f(self.conv(F.avg_pool2d(x, (2, 1), (2, 1)))), conv=conv), images, visible, kind
        )
        for f in MERGING[name]
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def _passed(network: nn.Module, images: Tensor, visible: Tensor, kind: type[Any]) -> list[Tensor]:
    """Return the last map, zero where hidden, and the gradients of images and parameters."""
    execution = kind(grid_of(visible))
    out = execution.whole_map(run(execution, network, images)[-1])
    return [out, *torch.autograd.grad(out, [images, *network.parameters()], random(*out.shape))]


def test_running_statistics_of_instance_norm_are_the_mean_over_images() -> None:
    """As torch takes them, of each image over its visible positions."""
    visible = some_visible(shown=7)
    images, _ = shown_images(visible)
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True).double()
    conv = nn.Conv2d(4, 4, 2, 2).double()
    first = coarse_map(conv, images, visible)
    coarse_map(nn.Sequential(conv, norm), images, visible)
    rows = [image[:, mask] for image, mask in zip(first, mask_at(visible, (2, 3)), strict=True)]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, 0.1 * torch.stack([r.mean(1) for r in rows]).mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * torch.stack([r.var(1) for r in rows]).mean(0))
    other = nn.InstanceNorm2d(4, affine=True, track_running_stats=True).double()
    grid = grid_of(visible)
    run(MaskedDenseExecution(grid), nn.Sequential(conv, other), images)
    torch.testing.assert_close(other.running_mean, norm.running_mean)
    torch.testing.assert_close(other.running_var, norm.running_var)


FROM_PATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "convolution": lambda x: F.conv2d(x, random(4, 4, 3, 3), stride=2, padding=1),
    "convolution, padded before": lambda x: F.conv2d(F.pad(x, (1, 0, 1, 0), value=0.7), random(4, 4, 3, 3), stride=2),
    "maximum": lambda x: F.max_pool2d(x, 3, 2, 1),
    "maximum, ceiled": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "average": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "slices": lambda x: x[:, :, ::2, 1::2],
    "slices of one axis": lambda x: x[..., ::2],
    "unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "gate of coarse maps": lambda x: x * F.max_pool2d(x, 2).mean((2, 3), keepdim=True).sigmoid(),
    "gate of fine maps": lambda x: F.max_pool2d(x, 2) * x.mean((2, 3), keepdim=True).sigmoid(),
    "gates of both": lambda x: x * (x.mean((2, 3), True) + F.max_pool2d(x, 2).mean((2, 3), True)),
    "gates joined": lambda x: (
        x * F.glu(torch.cat([x.mean((2, 3)), F.max_pool2d(x, 2).amax((2, 3))], 1))[..., None, None]
    ),
    "of one axis": lambda x: F.conv2d(x, random(4, 4, 2, 1), stride=(2, 1)),
}


@pytest.mark.parametrize("name", [f"coarse: {name}" for name in OPERATIONS] + [f"to coarse: {n}" for n in FROM_PATCHES])
def test_operation_equals_the_reference(name: str) -> None:
    """Values where visible, and gradients of what is seen."""
    kind, _, operation = name.partition(": ")
    conv = nn.Conv2d(4, 4, 2, 2, dtype=torch.float64)
    if kind == "coarse":
        network = Calls(lambda self, x: OPERATIONS[operation](self.conv(x)), conv=conv)
    else:
        network = Calls(lambda self, x: FROM_PATCHES[operation](x))
    visible = some_visible(shown=7)
    images = shown_images(visible)[0].requires_grad_()
    grid = grid_of(visible)
    dense = MaskedDenseExecution(grid)
    found = coarse_map(network, images, visible)
    expected = dense.whole_map(run(dense, network, images)[-1])
    torch.testing.assert_close(found, expected)
    upstream = random(*found.shape)
    leaves = [images, *network.parameters()]
    ours, theirs = (torch.autograd.grad(out, leaves, upstream) for out in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_reference_shares_no_rule_with_what_it_checks() -> None:
    """But those that every execution shares, and those that move positions."""
    grid = grid_of(some_visible())
    coarse, reference = CoarseExecution(grid).names, MaskedDenseExecution(grid).names
    assert set(coarse) & set(reference) == {"WholeMaps", "Execution"}
    moving = [rules["WholeMaps"] for rules in RULES.values() if "WholeMaps" in rules]
    assert {rule.__module__ for rule in moving} == {"sparkmim.sparse.dense.positions"}
    for rules in RULES.values():
        assert rules.get("CoarseExecution") is None or rules["CoarseExecution"] is not rules.get("MaskedDenseExecution")


def test_maps_that_become_fine_again_are_packed() -> None:
    visible = some_visible()
    images, _ = shown_images(visible)
    network = Calls(lambda self, x: x + F.interpolate(F.max_pool2d(x, 2), scale_factor=2))
    grid = grid_of(visible)
    (found,) = run(SparseExecution(grid), network, images)
    assert found.shape == (grid.patches, 4, 1, 1)
    (dense,) = run(MaskedDenseExecution(grid), network, images)
    torch.testing.assert_close(found, grid.pack(dense))


def test_dense_fallback_of_coarse_maps() -> None:
    visible = some_visible()
    images, _ = shown_images(visible)
    pool, odd = nn.MaxPool2d(2), Calls(lambda self, x: x.flip(2).cumsum(3))
    seen = mask_at(visible, (2, 3))[:, None]
    whole = coarse_map(pool, images, visible)
    found = coarse_map(nn.Sequential(pool, dense_fallback(odd)), images, visible)
    torch.testing.assert_close(found, whole.flip(2).cumsum(3).where(seen, 0))


# --- what stays impossible ------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "stride that straddles": (lambda self, x: F.avg_pool2d(x, 3), "cannot be cut into a grid|does not divide a patch"),
    "mirrored": (
        lambda self, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "reflect"), 3, 2),
        "reflect padding has no",
    ),
    "maxima of some": (lambda self, x: F.max_pool2d(x, 1, 2), "passes over positions"),
    "fine and coarse": (lambda self, x: x * F.max_pool2d(x, 2)[..., :1, :1], "picks out samples or positions"),
    "maps of two scales": (lambda self, x: x + F.max_pool2d(x, 2), "several patches"),
    "value of another scale written": (
        lambda self, x: x.mean((2, 3), keepdim=True).mul_(F.max_pool2d(x, 2)),
        "writes into a value per image that was made at another scale",
    ),
    "deviation in cells": (lambda self, x: cells_of(F.avg_pool2d(x, (2, 1))).std((3, 5)), "several patches"),
    "norm of order zero": (lambda self, x: F.max_pool2d(x, 2).norm(p=0, dim=(2, 3)), "several patches"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, message = REFUSED[name]
    visible = some_visible()
    with pytest.raises(UnsupportedOperation, match=message):
        run(SparseExecution(grid_of(visible)), Calls(function), shown_images(visible)[0].float())


def test_check_wants_a_grid_that_fits() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4))
    assert check(network, patch_size=(2, 2), stride=(4, 4), grid=(4, 6)).passed
    for grid in ((4, 5), (2, 4)):
        with pytest.raises(ValueError, match=r"must hold multiples of \(2, 2\), at least twice"):
            check(network, patch_size=(2, 2), stride=(4, 4), grid=grid)


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("test_resnet", 16),
        ("test_resnet", 8),
        ("test_resnet", (8, 64)),
        ("test_convnext", 16),
        ("test_efficientnet", 16),
        pytest.param("regnety_002", 8, marks=pytest.mark.slow),
    ],
)
def test_identity_crop_leak_oracle(name: str, patch: int | tuple[int, int]) -> None:
    backbone = Backbone.create(name)
    size = backbone.resolve_patch_size(patch)
    height, width = backbone.size_divisor(size)
    report = backbone.check(patch, grid=(2 * height // size[0], 3 * width // size[1]))
    assert len(report.results) == 10
    assert report.passed, f"\n{report}"


def model_and_batch(patch: int = 16, **settings: Any) -> tuple[SparK, Tensor, Tensor]:
    torch.manual_seed(0)
    model = SparK("test_resnet", patch_size=patch, decoder_width=32, **settings).double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    visible = sparkmim.random_visible(2, model.grid_shape((64, 96)), 0.85, torch.Generator().manual_seed(3))
    return model, images, visible


def gradients(model: SparK, images: Tensor, visible: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = model(images, visible).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("patch", [16, 8])
def test_pretraining_step_equals_the_masked_dense_one(patch: int) -> None:
    model, images, visible = model_and_batch(patch)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    loss, ours = gradients(model, images, visible)
    after = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    model.execution = "masked-dense"
    expected, theirs = gradients(model, images, visible)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    assert ours.keys() == theirs.keys()
    scale = max(g.norm() for g in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-9 * (gradient.norm() + 1e-3 * scale), name
    for name, value in model.state_dict().items():
        torch.testing.assert_close(after[name], value)


def test_hidden_pixels_change_nothing() -> None:
    model, images, visible = model_and_batch()
    shown = mask_at(visible, images.shape[2:]).unsqueeze(1)
    grid = model.mask(images, visible)
    before = model.encode(images, visible)
    after = model.encode(images.where(shown, torch.nan), visible)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
    for feature, level, at in zip(before, model.backbone.levels, model.grids(grid, (64, 96)), strict=True):
        assert feature.shape == (2, level.channels, 64 // level.stride[0], 96 // level.stride[1])
        hidden = ~mask_at(visible, feature.shape[2:])
        assert hidden.any()
        assert feature.movedim(1, -1)[hidden].count_nonzero() == 0
        assert isinstance(at, CoarseGrid) == (level.stride[0] > 16)


def test_hidden_positions_are_filled_with_the_mask_embedding() -> None:
    """And the norm before it, over visible positions, is the ordinary one of those."""
    model, images, visible = model_and_batch()
    grid = model.mask(images, visible)
    deepest: Any = model.densify[0]
    deepest.proj = nn.Identity()
    coarse = grid.at((2, 3))
    assert isinstance(coarse, CoarseGrid)
    feature = torch.randn(2, model.backbone.channels[-1], 2, 3, dtype=torch.float64)
    dense = deepest(feature, coarse).movedim(1, -1)
    hidden = ~coarse.visible
    assert hidden.any()
    torch.testing.assert_close(dense[hidden], deepest.mask_token.flatten().expand(int(hidden.sum()), -1))
    rows = feature.movedim(1, -1)[coarse.visible]
    expected = F.batch_norm(rows, None, None, deepest.norm.weight, deepest.norm.bias, True, 0.1, deepest.norm.eps)
    torch.testing.assert_close(dense[coarse.visible], expected)


def test_images_must_fit_the_stride_too() -> None:
    model, _, _ = model_and_batch()
    assert model.grid_shape((64, 96)) == (4, 6)
    with pytest.raises(ValueError, match=r"80 x 96 is not divisible by 32 x 32, as patches of 16 x 16 .*; use 64 x 96"):
        model(torch.zeros(1, 3, 80, 96, dtype=torch.float64))


@pytest.mark.parametrize("execution", ["packed", "masked-dense", "zero-out"])
def test_training_step_runs(execution: Any) -> None:
    model, images, _ = model_and_batch(execution=execution)
    out = model(images, generator=torch.Generator().manual_seed(0))
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert out.visible.shape == (2, 4, 6)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_one_graph() -> None:
    model, images, _ = model_and_batch()
    model.mask_ratio = 0.85
    visible = sparkmim.random_visible(2, (4, 6), 0.85, torch.Generator().manual_seed(3))
    expected, theirs = gradients(model, images, visible)
    model, _, _ = model_and_batch()
    model.mask_ratio = 0.85
    model.compile(fullgraph=True, backend="eager")
    loss, ours = gradients(model, images, visible)
    torch.testing.assert_close(loss, expected)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient)
    torch._dynamo.reset()
