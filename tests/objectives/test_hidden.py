"""Hidden patches, taken out of images and maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparkmim.models.masking import random_visible, visible_patches
from sparkmim.objectives.base import Decoded, hidden_patch_loss, patchify
from sparkmim.objectives.hidden import HiddenPatches
from sparkmim.objectives.pixels import Pixels
from sparkmim.objectives.settings import PixelsSettings
from sparkmim.sparse import PatchGrid

GRIDS = [((3,), (4,)), ((2, 3), (4, 2)), ((3, 1), (1, 5)), ((2, 3, 2), (2, 4, 3))]


def hidden_of(shape: tuple[int, ...], batch: int = 2) -> tuple[HiddenPatches, Tensor, PatchGrid]:
    visible = random_visible(batch, shape, 0.6, torch.Generator().manual_seed(0))
    grid = PatchGrid(visible, visible_patches(shape, 0.6))
    return HiddenPatches(grid), visible, grid


@pytest.mark.parametrize(("shape", "patch"), GRIDS)
def test_patches_are_those_that_are_hidden(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    hidden, visible, _ = hidden_of(shape)
    maps = torch.randn(2, 3, *(g * p for g, p in zip(shape, patch, strict=True)), dtype=torch.float64)
    dims = len(shape)
    cut = patchify(maps, patch).permute(0, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2), 1)
    wanted = cut.flatten(1, dims)[~visible.flatten(1)].unflatten(0, (2, -1))
    assert torch.equal(hidden.of(maps), wanted)
    last = maps.movedim(1, -1).contiguous().movedim(-1, 1)
    assert torch.equal(hidden.of(last), wanted)


@pytest.mark.parametrize(("shape", "patch"), GRIDS)
@pytest.mark.parametrize("normalize", [True, False])
def test_loss_equals_that_of_whole_images(shape: tuple[int, ...], patch: tuple[int, ...], normalize: bool) -> None:
    _, visible, grid = hidden_of(shape)
    size = [g * p for g, p in zip(shape, patch, strict=True)]
    images, prediction = (torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    pixels = Pixels(PixelsSettings(normalize=normalize), in_chans=3, patch_size=patch)
    ours = pixels.compare(Decoded(prediction), images, grid)
    wanted = hidden_patch_loss(prediction, pixels.target(images), visible, visible.numel() - grid.patches)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=0)
    for a, b in zip(*(torch.autograd.grad(x, [prediction, images]) for x in (ours, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_the_loss_can_be_differentiated_twice() -> None:
    _, _, grid = hidden_of((2, 2))
    pixels = Pixels(PixelsSettings(), in_chans=1, patch_size=(2, 2))
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    prediction = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda p: pixels.compare(Decoded(p), images, grid), prediction)


def test_half_precision_is_compared_in_float32() -> None:
    _, visible, grid = hidden_of((2, 3))
    images, prediction = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 8, 6).bfloat16().requires_grad_()
    pixels = Pixels(PixelsSettings(), in_chans=3, patch_size=(4, 2))
    loss = pixels.compare(Decoded(prediction), images, grid)
    wanted = hidden_patch_loss(prediction, pixels.target(images), visible, visible.numel() - grid.patches)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert prediction.grad is not None
    assert prediction.grad.dtype == torch.bfloat16


class OwnTarget(Pixels):
    def target(self, images: Tensor) -> Tensor:
        return 2 * images


class OwnLoss(Pixels):
    def loss(self, prediction: Tensor, target: Tensor, grid: PatchGrid) -> Tensor:
        return super().loss(prediction, 2 * target, grid)


@pytest.mark.parametrize("kind", [OwnTarget, OwnLoss])
def test_a_target_or_loss_of_one_s_own_is_used(kind: type[Pixels]) -> None:
    _, visible, grid = hidden_of((2, 3))
    images, prediction = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 8, 6)
    loss = kind(PixelsSettings(normalize=False), in_chans=3, patch_size=(4, 2)).compare(
        Decoded(prediction), images, grid
    )
    wanted = hidden_patch_loss(prediction, 2 * images, visible, visible.numel() - grid.patches)
    torch.testing.assert_close(loss, wanted)
