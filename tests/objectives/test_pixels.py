"""The objective against loops over patches that spell the definition out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkmim.models.masking import random_visible
from sparkmim.objectives.base import hidden_patch_loss, patchify, pixel_axes
from sparkmim.objectives.pixels import Pixels, denormalize_patches, normalize_patches, patch_statistics
from sparkmim.objectives.settings import PixelsSettings
from sparkmim.sparse import PatchGrid, mask_at

# Patch and grid: square, not square, not square either way, 1-D, 3-D; with 3, 1, 2, 4 and 1 channels.
SHAPES = {
    "square": (3, (4, 4), (3, 3)),
    "oblong-image": (1, (4, 4), (2, 5)),
    "oblong-patch": (2, (2, 6), (4, 3)),
    "1-d": (4, (5,), (6,)),
    "3-d": (1, (2, 3, 4), (3, 2, 2)),
}
shapes = pytest.mark.parametrize(("channels", "patch", "grid"), SHAPES.values(), ids=SHAPES)


def drawn(channels: int, patch: tuple[int, ...], grid: tuple[int, ...], seed: int, batch: int = 3) -> Tensor:
    size = [p * g for p, g in zip(patch, grid, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    return 2 + 3 * torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)


def cells(patch: tuple[int, ...], grid: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Of each patch, its place in the grid and its pixels."""
    return [
        (cell, tuple(slice(c * p, (c + 1) * p) for c, p in zip(cell, patch, strict=True)))
        for cell in itertools.product(*map(range, grid))
    ]


def mean_and_deviation(pixels: list[float]) -> tuple[float, float]:
    mean = math.fsum(pixels) / len(pixels)
    variance = math.fsum((v - mean) ** 2 for v in pixels) / (len(pixels) - 1)
    return mean, math.sqrt(variance + 1e-6)


def loss_by_loop(
    prediction: Tensor, images: Tensor, visible: Tensor, patch: tuple[int, ...], grid: tuple[int, ...]
) -> float:
    errors = []
    for b in range(len(images)):
        for cell, place in cells(patch, grid):
            if visible[(b, *cell)]:
                continue
            pixels = images[(b, slice(None), *place)].flatten().tolist()
            predicted = prediction[(b, slice(None), *place)].flatten().tolist()
            mean, deviation = mean_and_deviation(pixels)
            squares = [(p - (v - mean) / deviation) ** 2 for p, v in zip(predicted, pixels, strict=True)]
            errors.append(math.fsum(squares) / len(squares))
    return math.fsum(errors) / len(errors)


@shapes
def test_loss_is_the_definition(channels: int, patch: tuple[int, ...], grid: tuple[int, ...]) -> None:
    images, prediction = drawn(channels, patch, grid, 0), drawn(channels, patch, grid, 1)
    visible = random_visible(3, grid, 0.6, torch.Generator().manual_seed(2))
    loss = hidden_patch_loss(prediction, normalize_patches(images, patch), visible, int((~visible).sum()))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(loss_by_loop(prediction, images, visible, patch, grid), rel=1e-12)


@shapes
def test_target_is_the_definition(channels: int, patch: tuple[int, ...], grid: tuple[int, ...]) -> None:
    images = drawn(channels, patch, grid, 0)
    target = normalize_patches(images, patch)
    assert target.shape == images.shape
    for b in range(len(images)):
        for _, place in cells(patch, grid):
            pixels = images[(b, slice(None), *place)]
            mean, deviation = mean_and_deviation(pixels.flatten().tolist())
            torch.testing.assert_close(
                target[(b, slice(None), *place)], (pixels - mean) / deviation, rtol=1e-12, atol=1e-12
            )


@shapes
def test_denormalise_is_the_inverse(channels: int, patch: tuple[int, ...], grid: tuple[int, ...]) -> None:
    images = drawn(channels, patch, grid, 0)
    back = denormalize_patches(normalize_patches(images, patch), images, patch)
    torch.testing.assert_close(back, images, rtol=1e-13, atol=1e-13)
    other = drawn(channels, patch, grid, 1)
    there = normalize_patches(denormalize_patches(other, images, patch), patch)
    assert there.shape == images.shape
    # Statistics are those of `images`, not of what is denormalised: only the former map 0 to the patch's mean.
    means = denormalize_patches(torch.zeros_like(images), images, patch)
    for _, place in cells(patch, grid):
        region = images[(slice(None), slice(None), *place)].flatten(1)
        torch.testing.assert_close(
            means[(slice(None), slice(None), *place)].flatten(1), region.mean(1, keepdim=True).expand_as(region)
        )


def test_numbers_by_hand() -> None:
    """Two patches of 0 and 1 and of 2 and 6: variances 1/2 and 8, without the bias of dividing by n."""
    images = torch.tensor([[[0.0, 1.0, 2.0, 6.0]]], dtype=torch.float64)
    wanted = torch.tensor([[[-1, 1, -4, 4]]]) * 0.5 / torch.tensor([0.5, 0.5, 8.0, 8.0]).double().add(1e-6).sqrt()
    target = normalize_patches(images, (2,))
    torch.testing.assert_close(target, wanted, rtol=1e-14, atol=0)
    visible = torch.tensor([[True, False]])
    loss = hidden_patch_loss(torch.zeros_like(images), target, visible, 1)
    assert loss.item() == pytest.approx(4 / (8 + 1e-6), rel=1e-14)


def test_channels_share_a_patch_mean() -> None:
    """A patch whose channels differ by a constant keeps the difference: statistics are over channels too."""
    images = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    images[:, 1] = 1
    deviation = math.sqrt(8 * 0.25 / 7 + 1e-6)
    target = normalize_patches(images, (2, 2))
    assert target[0, 0].unique().tolist() == pytest.approx([-0.5 / deviation])
    assert target[0, 1].unique().tolist() == pytest.approx([0.5 / deviation])


def test_constant_patch_is_zero() -> None:
    images = torch.full((1, 3, 4, 4), 7.25, requires_grad=True)
    target = normalize_patches(images, (2, 2))
    assert torch.equal(target, torch.zeros_like(images))
    _, std = patch_statistics(images, (2, 2))
    assert std.detach().flatten().tolist() == pytest.approx([1e-3] * 4)


@shapes
def test_only_hidden_patches_count(channels: int, patch: tuple[int, ...], grid: tuple[int, ...]) -> None:
    images = drawn(channels, patch, grid, 0)
    prediction = drawn(channels, patch, grid, 1).requires_grad_()
    visible = random_visible(3, grid, 0.6, torch.Generator().manual_seed(2))
    hidden = int((~visible).sum())
    target = normalize_patches(images, patch)
    (gradient,) = torch.autograd.grad(hidden_patch_loss(prediction, target, visible, hidden), prediction)
    share = 2 / (hidden * channels * math.prod(patch))
    for b in range(3):
        for cell, place in cells(patch, grid):
            at = (b, slice(None), *place)
            wanted = 0 if visible[(b, *cell)] else share * (prediction - target)[at]
            assert torch.equal(gradient[at], torch.zeros_like(gradient[at])) == bool(visible[(b, *cell)])
            torch.testing.assert_close(gradient[at], torch.zeros_like(gradient[at]) + wanted, rtol=1e-12, atol=1e-15)


def test_perfect_prediction_costs_nothing_and_one_off_costs_one() -> None:
    images = drawn(3, (4, 4), (3, 3), 0)
    target = normalize_patches(images, (4, 4))
    visible = random_visible(3, (3, 3), 0.6, torch.Generator().manual_seed(2))
    hidden = int((~visible).sum())
    assert hidden_patch_loss(target, target, visible, hidden).item() == 0
    assert hidden_patch_loss(target + 1, target, visible, hidden).item() == pytest.approx(1)


def test_low_precision_prediction_is_compared_in_the_precision_of_the_target() -> None:
    images = drawn(3, (4, 4), (3, 3), 0).float()
    target = normalize_patches(images, (4, 4))
    prediction = drawn(3, (4, 4), (3, 3), 1).bfloat16()
    visible = random_visible(3, (3, 3), 0.6, torch.Generator().manual_seed(2))
    hidden = int((~visible).sum())
    loss = hidden_patch_loss(prediction, target, visible, hidden)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, hidden_patch_loss(prediction.float(), target, visible, hidden))


@shapes
def test_patchify_splits_axes(channels: int, patch: tuple[int, ...], grid: tuple[int, ...]) -> None:
    images = drawn(channels, patch, grid, 0)
    patches = patchify(images, patch)
    assert patches.shape == (3, channels, *itertools.chain(*zip(grid, patch, strict=True)))
    assert patches.data_ptr() == images.data_ptr()
    assert [patches.shape[a] for a in pixel_axes(len(patch))] == [channels, *patch]
    for cell, place in cells(patch, grid):
        at: list[Any] = [slice(None)] * patches.ndim
        at[2::2] = cell
        assert torch.equal(patches[tuple(at)], images[(slice(None), slice(None), *place)])


def test_values_as_they_are() -> None:
    """Without normalization the loss is the mean squared error over hidden pixels, of those with data."""
    channels, patch, grid = SHAPES["oblong-patch"]
    images, prediction = (drawn(channels, patch, grid, seed) for seed in (0, 1))
    objective = Pixels(PixelsSettings(normalize=False), in_chans=channels, patch_size=patch)
    visible = random_visible(3, grid, 0.5, torch.Generator().manual_seed(2))
    at = PatchGrid(visible, int(visible[0].sum()))
    hidden = ~mask_at(visible, images.shape[2:]).unsqueeze(1).expand_as(images)
    wanted = (prediction - images)[hidden].square().mean()
    torch.testing.assert_close(objective.loss(prediction, objective.target(images), at), wanted)
    everywhere = torch.ones_like(images, dtype=torch.bool)
    torch.testing.assert_close(objective.loss_where_data(prediction, images, everywhere, at), wanted)
    assert objective.to_pixels(prediction, images) is prediction
