"""Densify: norm, fill and projection against their definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparkmim import Backbone, random_visible
from sparkmim.models.decoder import UNetDecoder, upsampling_steps
from sparkmim.models.densify import Densify, build_densify, densify_norm_of, layer_norm
from sparkmim.sparse import PatchGrid


def test_initial_mask_token_and_projection() -> None:
    torch.manual_seed(0)
    densify = Densify(20_000, 2, "batch", 3)
    token = densify.mask_token.detach()
    assert token.abs().max() <= 0.02
    # The deviation of a standard normal cut at one: sqrt(1 - 2 phi(1) / (2 Phi(1) - 1)) = 0.53956.
    assert token.std().item() == pytest.approx(0.02 * 0.53956, rel=0.02)
    assert abs(token.mean().item()) < 5 * 0.011 / math.sqrt(20_000)
    bound = 1 / math.sqrt(20_000 * 9)  # of a convolution as torch makes it; the official code leaves it so
    assert densify.proj.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert densify.proj.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def packed_features(channels: int, block: tuple[int, ...] = (2, 3)) -> tuple[PatchGrid, Tensor]:
    visible = random_visible(3, (3, 4)[: len(block)], 0.5, torch.Generator().manual_seed(0))
    grid = PatchGrid(visible, int(visible[0].sum()))
    generator = torch.Generator().manual_seed(1)
    return grid, 5 + 2 * torch.randn(grid.patches, channels, *block, generator=generator, dtype=torch.float64)


def shown(grid: PatchGrid, block: tuple[int, ...]) -> Tensor:
    mask = grid.visible
    for axis, extent in enumerate(block):
        mask = mask.repeat_interleave(extent, dim=axis + 1)
    return mask


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_densify_normalizes_visible_and_fills_hidden_positions(norm: str) -> None:
    grid, packed = packed_features(6)
    densify = Densify(6, 6, norm, 1).double()
    assert isinstance(densify.proj, nn.Identity), "equal widths need no projection at the deepest scale"
    with torch.no_grad():
        densify.norm.weight.uniform_(0.5, 1.5)
        densify.norm.bias.uniform_(-1, 1)
    out = densify(packed, grid).movedim(1, -1)
    mask = shown(grid, (2, 3))
    x = packed.movedim(1, -1)
    if norm == "batch":
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2), unbiased=False)
        eps = 1e-5
        torch.testing.assert_close(densify.norm.running_mean, 0.1 * mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            densify.norm.running_var, 0.9 + 0.1 * x.var((0, 1, 2), unbiased=True), rtol=1e-12, atol=0
        )
    else:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        eps = 1e-6
    wanted = (x - mean) / (variance + eps).sqrt() * densify.norm.weight + densify.norm.bias
    whole = grid.unpack(wanted.movedim(-1, 1)).movedim(1, -1)
    torch.testing.assert_close(out[mask], whole[mask], rtol=1e-12, atol=1e-12)
    token = densify.mask_token.flatten().expand_as(out[~mask])
    assert torch.equal(out[~mask], token)


@pytest.mark.parametrize(("channels", "width", "kernel"), [(6, 4, 1), (6, 4, 3), (4, 4, 3)])
def test_densify_projects_the_filled_map(channels: int, width: int, kernel: int) -> None:
    grid, packed = packed_features(channels)
    densify: Any = Densify(channels, width, "layer", kernel).double()
    normed = F.layer_norm(packed.movedim(1, -1), (channels,), eps=1e-6).movedim(-1, 1)
    whole = grid.unpack(normed)
    filled = torch.where(shown(grid, (2, 3)).unsqueeze(1), whole, densify.mask_token)
    wanted = F.conv2d(filled, densify.proj.weight, densify.proj.bias, padding=kernel // 2)
    torch.testing.assert_close(densify(packed, grid), wanted, rtol=1e-12, atol=1e-12)


def test_densify_gradients() -> None:
    """The mask token gathers the gradient of all hidden positions, the features that of their own."""
    grid, packed = packed_features(4)
    densify = Densify(4, 4, "layer", 1).double()
    densify.norm = nn.LayerNorm(4, eps=1e-6).double()
    upstream = torch.randn(3, 4, 6, 12, dtype=torch.float64)
    packed.requires_grad_()
    densify(packed, grid).backward(upstream)
    hidden = ~shown(grid, (2, 3))
    torch.testing.assert_close(
        densify.mask_token.grad.flatten(), upstream.movedim(1, -1)[hidden].sum(0), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(densify.norm.bias.grad, upstream.movedim(1, -1)[~hidden].sum(0), rtol=1e-12, atol=1e-12)
    assert packed.grad.count_nonzero() == packed.numel()


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.GroupNorm(1, 3)), "batch"),
        (nn.Sequential(nn.Conv3d(3, 3, 1), nn.SyncBatchNorm(3)), "batch"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.LayerNorm(3)), "layer"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)), "layer"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3, affine=True)), "layer"),
        (nn.Sequential(nn.Conv2d(3, 3, 1)), "layer"),
    ],
)
def test_kind_of_norm_follows_the_network(network: nn.Module, wanted: str) -> None:
    assert densify_norm_of(network) == wanted


def test_one_densify_a_level() -> None:
    backbone = Backbone(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 12, 2, 2)), ["0", "1"])
    levels = backbone.levels[::-1]
    decoder = UNetDecoder(upsampling_steps([level.stride for level in levels]), 32)
    deep, fine = build_densify(levels, decoder, "layer")
    assert (deep.proj.in_channels, deep.proj.out_channels, deep.proj.kernel_size) == (12, 32, (1, 1))
    assert (fine.proj.in_channels, fine.proj.out_channels, fine.proj.kernel_size) == (8, 16, (3, 3))


def test_layer_norm_stays_in_half_precision_under_autocast() -> None:
    """Within a rounding or two of the norm in float32, and its gradients in the parameters' own precision."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(48, eps=1e-6)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(64, 48).bfloat16().requires_grad_()
    inputs = [x, norm.weight, norm.bias]
    with torch.autocast("cpu", torch.bfloat16):
        ours = layer_norm(x, norm)
    assert ours.dtype == torch.bfloat16
    wanted = norm(x.float())
    assert (ours - wanted).norm() < 0.01 * wanted.norm()
    upstream = torch.randn(64, 48)
    found, exact = (torch.autograd.grad((y * upstream).sum(), inputs) for y in (ours, wanted))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).float().norm() < 0.02 * b.float().norm()
    assert torch.equal(layer_norm(x.detach().float(), norm), norm(x.detach().float())), "in float32 it is the norm"
