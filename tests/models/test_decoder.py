"""The UNet decoder: what it computes, and pyramids of any strides and widths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparkmim import Backbone, SparK, random_visible
from sparkmim.models.config import DecoderBlock
from sparkmim.models.decoder import (
    ConvNeXtBlock,
    UNetBlock,
    UNetDecoder,
    upsampling_steps,
)

PAPER = [(32, 32), (16, 16), (8, 8), (4, 4)]
Strides = Sequence[tuple[int, ...]]


def both(*strides: int) -> Strides:
    return [(s, s) for s in strides]


# --- steps ----------------------------------------------------------------------------------------------------------

STEPS = {
    "paper": (PAPER, [(0, (2, 2)), (1, (2, 2)), (2, (2, 2)), (3, (2, 2)), (None, (2, 2))]),
    "hierarchy-off": (PAPER[:1], [(0, (2, 2)), *[(None, (2, 2))] * 4]),
    "7": (both(7), [(0, (7, 7))]),
    "28-14-7": (both(28, 14, 7), [(0, (2, 2)), (1, (2, 2)), (2, (7, 7))]),
    "16-4": (both(16, 4), [(0, (2, 2)), (None, (2, 2)), (1, (2, 2)), (None, (2, 2))]),
    "12": (both(12), [(0, (2, 2)), (None, (2, 2)), (None, (3, 3))]),
    "1-d": ([(8,), (4,)], [(0, (2,)), (1, (2,)), (None, (2,))]),
    "3-d": ([(4, 4, 4), (2, 2, 2)], [(0, (2, 2, 2)), (1, (2, 2, 2))]),
    "4x2": ([(4, 2)], [(0, (2, 1)), (None, (2, 2))]),
    "one-axis-at-a-time": ([(8, 4), (4, 4)], [(0, (2, 1)), (1, (2, 2)), (None, (2, 2))]),
    "6x4": ([(6, 4)], [(0, (2, 2)), (None, (3, 2))]),
    "to-stride-1": (both(4, 2, 1), [(0, (2, 2)), (1, (2, 2))]),
}


@pytest.mark.parametrize(("strides", "wanted"), STEPS.values(), ids=STEPS)
def test_steps(strides: Strides, wanted: list[tuple[int | None, tuple[int, ...]]]) -> None:
    assert [tuple(step) for step in upsampling_steps(strides)] == wanted


@pytest.mark.parametrize(
    "strides", [PAPER, both(28, 14, 7), both(16, 4), both(12), both(90, 30), [(16, 8), (8, 8), (4, 2)], [(8, 9, 5)]]
)
def test_steps_meet_every_stride(strides: Strides) -> None:
    """From the deepest stride down to 1, each map entering where the stride is its own."""
    now = strides[0]
    for step in upsampling_steps(strides):
        if step.level is not None:
            assert now == strides[step.level]
        now = tuple(n // f for n, f in zip(now, step.factor, strict=True))
        assert all(f == 1 or all(f % d for d in range(2, f)) for f in step.factor), "factors are prime"
    assert now == (1,) * len(strides[0])
    assert [step.level for step in upsampling_steps(strides) if step.level is not None] == list(range(len(strides)))


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        (both(32, 12), r"cannot go from stride \(32, 32\) to \(12, 12\)"),
        ([(8, 4), (4, 8)], r"cannot go from stride \(8, 4\) to \(4, 8\)"),
        (both(8, 8), r"two maps of a pyramid have the same stride \(8, 8\)"),
    ],
)
def test_strides_that_do_not_divide_are_refused(strides: Strides, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upsampling_steps(strides)


# --- the decoder ----------------------------------------------------------------------------------------------------


def test_five_blocks_of_the_paper() -> None:
    decoder = UNetDecoder(upsampling_steps(PAPER))
    assert decoder.widths == [768, 384, 192, 96, 48, 24]
    assert [decoder.width_of(level) for level in range(4)] == [768, 384, 192, 96]
    block: Any
    for block, (width, half) in zip(decoder.blocks, itertools.pairwise(decoder.widths), strict=True):
        assert block.upsample.weight.shape == (width, width, 4, 4)
        assert (block.upsample.stride, block.upsample.padding) == ((2, 2), (1, 1))
        assert block.upsample.bias is not None
        assert block.conv1.weight.shape == (width, width, 3, 3)
        assert block.conv2.weight.shape == (half, width, 3, 3)
        assert block.conv1.bias is None
        assert block.conv2.bias is None
        assert (block.norm1.num_features, block.norm2.num_features) == (width, half)
    assert decoder.proj.weight.shape == (3, 24, 1, 1)


def test_parameter_names() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 2, 2))
    model = SparK(Backbone(module, ["1", "2"]), decoder_width=32)
    conv, norm = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    leaves = {"upsample": conv, "conv1": conv[:1], "norm1": norm, "conv2": conv[:1], "norm2": norm}
    decoder = {f"decoder.blocks.{i}.{part}.{leaf}" for i in range(3) for part in leaves for leaf in leaves[part]}
    decoder |= {"decoder.proj.weight", "decoder.proj.bias"}
    densify = {f"densify.{i}.mask_token" for i in range(2)}
    densify |= {f"densify.{i}.norm.{leaf}" for i in range(2) for leaf in norm}
    densify |= {f"densify.{i}.proj.{leaf}" for i in range(2) for leaf in conv}
    assert {key for key in model.state_dict() if not key.startswith("encoder.")} == decoder | densify
    assert model.densify[0].mask_token.shape == (1, 16, 1, 1), "0 is the deepest"
    assert model.densify[0].proj.kernel_size == (1, 1)
    assert model.densify[1].proj.kernel_size == (3, 3)


def test_block_is_the_definition() -> None:
    torch.manual_seed(0)
    block = UNetBlock(6, 3, (2, 2)).double()
    with torch.no_grad():
        block.norm1.weight.fill_(5)  # far enough for the activation to cut at 6
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    y = F.conv_transpose2d(x, block.upsample.weight, block.upsample.bias, stride=2, padding=1)
    y = F.conv2d(y, block.conv1.weight, padding=1)
    y = F.batch_norm(y, None, None, training=True) * 5
    assert (y > 6).any()
    y = y.clamp(0, 6)
    y = F.batch_norm(F.conv2d(y, block.conv2.weight, padding=1), None, None, training=True)
    torch.testing.assert_close(block(x), y, rtol=1e-12, atol=1e-12)


def test_convnext_block_is_the_definition() -> None:
    torch.manual_seed(0)
    block = ConvNeXtBlock(6, 3, (2, 2)).double()
    with torch.no_grad():
        for p in block.parameters():
            p.uniform_(-1, 1)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)

    def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
        scale = (x.var(1, unbiased=False, keepdim=True) + 1e-6).rsqrt()
        return torch.einsum("bchw,c->bchw", (x - x.mean(1, keepdim=True)) * scale, layer.weight) + layer.bias.view(
            -1, 1, 1
        )

    y = F.conv_transpose2d(norm(x, block.norm1), block.upsample.weight, block.upsample.bias, stride=2)
    z = norm(F.conv2d(y, block.conv.weight, block.conv.bias, padding=3, groups=3), block.norm2)
    z = F.gelu(F.conv2d(z, block.expand.weight[..., None, None], block.expand.bias))
    z = F.conv2d(z, block.reduce.weight[..., None, None], block.reduce.bias)
    torch.testing.assert_close(block(x), y + z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [UNetBlock, ConvNeXtBlock])
@pytest.mark.parametrize("factor", [(2,), (7,), (1, 2), (3, 2), (7, 7), (5, 1), (2, 2, 2), (1, 3, 2)])
def test_block_upsamples_by_its_factor(factor: tuple[int, ...], block: type[UNetBlock | ConvNeXtBlock]) -> None:
    size = (4, 3, 2)[: len(factor)]
    out = block(4, 2, factor)(torch.randn(2, 4, *size))
    assert out.shape == (2, 2, *[s * f for s, f in zip(size, factor, strict=True)])


def test_each_map_enters_at_its_scale() -> None:
    """The definition, with the blocks as they are: add, then the block."""
    torch.manual_seed(0)
    decoder = UNetDecoder(upsampling_steps(both(16, 4)), 16, 2).eval()
    deep, fine = torch.randn(1, 16, 2, 3), torch.randn(1, 4, 8, 12)
    with torch.no_grad():
        x = decoder.blocks[1](decoder.blocks[0](deep))
        wanted = decoder.proj(decoder.blocks[3](decoder.blocks[2](x + fine)))
        assert torch.equal(decoder([deep, fine]), wanted)
        assert not torch.equal(decoder([deep, torch.zeros_like(fine)]), wanted)


@pytest.mark.parametrize(("strides", "width"), [(PAPER, 32), (both(7), 2), (both(12), 8)])
def test_width_must_be_halved(strides: Strides, width: int) -> None:
    steps = upsampling_steps(strides)
    assert UNetDecoder(steps, width).widths[-1] == 1
    message = f"decoder width {width - 1} cannot be halved {len(steps)} times; use at least {width}"
    with pytest.raises(ValueError, match=message):
        UNetDecoder(steps, width - 1)


def test_unknown_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="decoder block 'resnet' is unknown; use one of unet, convnext"):
        SparK("test_resnet", decoder_block="resnet")  # type: ignore[arg-type]


# --- initial values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", get_args(DecoderBlock))
def test_initial_values(block: DecoderBlock) -> None:
    torch.manual_seed(0)
    decoder = UNetDecoder(upsampling_steps(PAPER), 256, block=block)
    for name, p in decoder.named_parameters():
        if "norm" in name:
            assert torch.equal(p, torch.full_like(p, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert p.count_nonzero() == 0, name
        else:
            # Of an uncertain number of drawn values the deviation itself is uncertain: 1 / sqrt(2n), five times.
            wanted = math.sqrt(2 / (p.shape[0] * p[0, 0].numel())) if "upsample" in name else 0.02
            slack = 5 * wanted / math.sqrt(2 * p.numel())
            assert p.std().item() == pytest.approx(wanted, abs=slack), name
            assert abs(p.mean().item()) < 5 * wanted / math.sqrt(p.numel()), name
            assert p.abs().max() > 1.8 * wanted or p.numel() < 100, f"{name} is normal, not truncated at one deviation"


# --- pyramids of any strides and widths, end to end -----------------------------------------------------------------


class Pyramid(nn.Module):
    """One strided convolution and norm a level; the last norm is of layers if asked for."""

    def __init__(self, widths: Sequence[int], strides: Strides, in_chans: int = 3, batch_norm: bool = True) -> None:
        super().__init__()
        dims = len(strides[0])
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        before, channels = (1,) * dims, in_chans
        stages = []
        for width, stride in zip(widths, strides, strict=True):
            step = tuple(s // b for s, b in zip(stride, before, strict=True))
            stages.append(
                nn.Sequential(
                    conv(channels, width, step, step),
                    norm(width) if batch_norm else nn.GroupNorm(2, width),
                    nn.GELU(),
                    conv(width, width, 3, padding=1),
                )
            )
            before, channels = stride, width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


PYRAMIDS = {
    "widths-that-do-not-halve": ((24, 48, 96, 128), both(4, 8, 16, 32)),
    "7": ((8,), both(7)),
    "7-14-28": ((6, 8, 10), both(7, 14, 28)),
    "4-16": ((8, 6), both(4, 16)),
    "12": ((8,), both(12)),
    "3-12": ((8, 8), both(3, 12)),
    "1-2-4": ((8, 8, 8), both(1, 2, 4)),
    "4x2": ((8,), [(4, 2)]),
    "4x2-8x8": ((8, 10), [(4, 2), (8, 8)]),
    "4x8-8x8": ((8, 10), [(4, 8), (8, 8)]),
    "1-d": ((8, 12), [(4,), (8,)]),
    "3-d": ((4, 6), [(2, 2, 2), (4, 4, 4)]),
    "3-d-anisotropic": ((4, 6), [(1, 4, 2), (2, 8, 4)]),
}


def waves(batch: int, channels: int, size: Sequence[int]) -> Tensor:
    """Smooth images, of which there is something to learn in a few steps."""
    images = torch.zeros(batch, channels, *size, dtype=torch.float64)
    for axis, extent in enumerate(size):
        x = torch.arange(extent).view(-1, *[1] * (len(size) - 1 - axis))
        phase = torch.arange(batch * channels).view(batch, channels, *[1] * len(size))
        images = images + torch.sin(0.4 * x + phase)
    return images


@pytest.mark.parametrize(
    ("batch_norm", "block"),
    [(True, "unet"), (False, "unet"), (False, "convnext")],
    ids=["batch", "layer", "layer-convnext"],
)
@pytest.mark.parametrize(("widths", "strides"), PYRAMIDS.values(), ids=PYRAMIDS)
def test_any_pyramid_trains(widths: Sequence[int], strides: Strides, batch_norm: bool, block: DecoderBlock) -> None:
    torch.manual_seed(0)
    in_chans = 3 if len(strides[0]) == 2 else 1
    network = Pyramid(widths, strides, in_chans, batch_norm)
    backbone = Backbone(network, [f"stages.{i}" for i in range(len(widths))], in_chans=in_chans)
    assert backbone.levels == list(zip(widths, strides, strict=True))
    depth = len(upsampling_steps(strides[::-1]))
    model = SparK(backbone, decoder_width=4 * 2**depth, decoder_block=block).double()
    assert model.patch_size == strides[-1]
    assert model.unreached == []
    grid = (2, 4, 2)[: len(strides[0])] if len(strides[0]) > 1 else (6,)
    size = [g * p for g, p in zip(grid, model.patch_size, strict=True)]
    images = waves(2, in_chans, size)
    visible = random_visible(2, grid, 0.6, torch.Generator().manual_seed(1))
    out = model(images, visible)
    assert out.prediction.shape == images.shape
    out.loss.backward()
    # Batch norm takes away what a bias before it adds; every other parameter has an effect.
    idle = {f"encoder.stages.{i}.{part}.bias" for i in range(len(widths)) for part in (0, 3)} if batch_norm else set()
    gradients: list[Any] = [p.grad for p in model.parameters()]
    total = math.sqrt(sum(g.square().sum().item() for g in gradients))
    assert {name for name, p in model.named_parameters() if p.grad.norm() < 1e-10 * total} == idle
    # One small step downhill gains what the gradient promises, so the gradient is right for all parameters at once.
    assert torch.equal(model(images, visible).loss, out.loss), "the same numbers each time"
    step = 1e-6 / total**2
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(step * p.grad)
        gain = out.loss - model(images, visible).loss
    assert gain.item() == pytest.approx(1e-6, rel=1e-2)
