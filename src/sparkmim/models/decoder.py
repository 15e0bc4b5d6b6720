"""Decode densified maps to a prediction by a light UNet (paper, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..objectives.base import Decoded
from ..utils.modules import CONV
from .config import DecoderBlock
from .fused_upsample import upsample_conv
from .memory_efficient import checkpointed, relu6

CONV_TRANSPOSE: dict[int, type[Any]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM: dict[int, type[Any]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class UNetBlock(nn.Module):
    """Upsample by a factor, then apply two 3x3 convolutions. Source: the official `pretrain/decoder.py`.

    Args:
        channels: of the input.
        width: channels of the output.
        factor: of upsampling along each axis, 2 in the paper. The transposed convolution has a kernel of factor + 2.
    """

    def __init__(self, channels: int, width: int, factor: tuple[int, ...]) -> None:
        super().__init__()
        dims = len(factor)
        kernel = tuple(f + 2 for f in factor)
        self.upsample = CONV_TRANSPOSE[dims](channels, channels, kernel, stride=factor, padding=1)
        self.conv1 = CONV[dims](channels, channels, 3, padding=1, bias=False)
        self.norm1 = BATCH_NORM[dims](channels)
        self.conv2 = CONV[dims](channels, width, 3, padding=1, bias=False)
        self.norm2 = BATCH_NORM[dims](width)
        self.recompute = True

    def forward(self, x: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch width *upsampled"]:
        """Return the block's output, of size `size * factor`."""
        x = upsample_conv(x, self.upsample, self.conv1)
        # These are the largest maps of all. Norm and activation are cheap to recompute, so their maps are not kept, if
        # memory is short.
        x = checkpointed(lambda x: self.conv2(relu6(self.norm1(x))), x, self.norm1, recompute=self.recompute)
        out: Tensor = self.norm2(x)
        return out


class ConvNeXtBlock(nn.Module):
    """Upsample by a factor directly to the lower width, then apply a ConvNeXt block (Liu et al., arXiv 2201.03545).

    A deviation from the paper. At width 768 and 224 pixels, five of these blocks take 1.56 billion multiply-adds per
    image, the paper's 10.1. The upsampling mirrors ConvNeXt's downsampling: a norm, then a convolution whose kernel
    equals its stride. Layer scale is left out, because it helps networks much deeper than five blocks.

    Args:
        channels: of the input.
        width: channels of the output.
        factor: of upsampling along each axis.
    """

    def __init__(self, channels: int, width: int, factor: tuple[int, ...]) -> None:
        super().__init__()
        dims = len(factor)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.upsample = CONV_TRANSPOSE[dims](channels, width, factor, stride=factor)
        self.conv = CONV[dims](width, width, 7, padding=3, groups=width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.reduce = nn.Linear(4 * width, width)
        self.recompute = True

    def forward(self, x: Float[Tensor, "batch channel *size"]) -> Float[Tensor, "batch width *upsampled"]:
        """Return the block's output, of size `size * factor`."""
        x = self.upsample(self.norm1(x.movedim(1, -1)).movedim(-1, 1))
        # The map with four times the channels is not kept: at full resolution it outweighs all other maps together.
        y = self.conv(x).movedim(1, -1)
        change = checkpointed(lambda y: self.reduce(self.act(self.expand(self.norm2(y)))), y, recompute=self.recompute)
        return x + change.movedim(-1, 1)


_BLOCKS: dict[DecoderBlock, type[UNetBlock | ConvNeXtBlock]] = {"unet": UNetBlock, "convnext": ConvNeXtBlock}


class Upsampling(NamedTuple):
    """One block of the decoder: the level of the densified map added to its input, and its factor of upsampling.

    Levels count from the deepest, 0; None if no map is added.
    """

    level: int | None
    factor: tuple[int, ...]


def upsampling_steps(strides: Sequence[tuple[int, ...]], end: tuple[int, ...] | None = None) -> list[Upsampling]:
    """Return the steps from the deepest stride to `end`, one per prime factor, through every stride of the pyramid.

    Args:
        strides: of the pyramid, deepest first.
        end: stride of the prediction, 1 along each axis if not given.

    Raises:
        ValueError: if a stride does not divide the next deeper one, or two strides are equal.
    """
    steps = []
    end = (1,) * len(strides[0]) if end is None else end
    for level, (coarse, fine) in enumerate(zip(strides, [*strides[1:], end], strict=True)):
        if any(c % f for c, f in zip(coarse, fine, strict=True)):
            raise ValueError(
                f"the decoder cannot go from stride {coarse} to {fine}: no whole factor leads from one to the other"
            )
        factors = [_prime_factors(c // f) for c, f in zip(coarse, fine, strict=True)]
        length = max(1, *map(len, factors)) if any(factors) else 0
        if length == 0 and level < len(strides) - 1:
            raise ValueError(f"two maps of a pyramid have the same stride {coarse}")
        padded = [[1] * (length - len(f)) + f for f in factors]
        steps += [Upsampling(level if i == 0 else None, factor) for i, factor in enumerate(zip(*padded, strict=True))]
    return steps


def _prime_factors(n: int) -> list[int]:
    factors, divisor = [], 2
    while n > 1:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1
    return factors


class UNetDecoder(nn.Module):
    """The light decoder: each block upsamples and halves the width; the densified map of its scale joins its input.

    For a pyramid of strides 4, 8, 16, 32 these are the paper's five blocks; for other strides, one per prime factor.

    Args:
        steps: see :func:`upsampling_steps`.
        width: channels at the deepest scale.
        out_chans: channels of the prediction; 0 leaves the last map as it is.
        block: "unet", the paper's :class:`UNetBlock`, or "convnext", the cheaper :class:`ConvNeXtBlock`.
        dims: number of spatial dimensions; by default that of the steps, or 2 if there are none (a map of stride 1).

    Raises:
        ValueError: for a width that cannot be halved once per block, or an unknown block.
    """

    def __init__(
        self,
        steps: Sequence[Upsampling],
        width: int = 768,
        out_chans: int = 3,
        *,
        block: DecoderBlock = "unet",
        dims: int | None = None,
    ) -> None:
        super().__init__()
        if block not in _BLOCKS:
            raise ValueError(f"decoder block {block!r} is unknown; use one of {', '.join(_BLOCKS)}")
        if width < 2 ** len(steps):
            raise ValueError(
                f"decoder width {width} cannot be halved {len(steps)} times; use at least {2 ** len(steps)}"
            )
        self.steps = list(steps)
        self.widths = [width // 2**i for i in range(len(steps) + 1)]
        dims = len(steps[0].factor) if steps else dims or 2
        self.blocks = nn.ModuleList(
            _BLOCKS[block](self.widths[i], self.widths[i + 1], step.factor) for i, step in enumerate(steps)
        )
        self.proj = CONV[dims](self.widths[-1], out_chans, 1) if out_chans else nn.Identity()
        self.reset_parameters()

    def set_recompute(self, enable: bool) -> None:
        """Compute norms and activations of the blocks again in backward, or keep them."""
        for block in self.blocks:
            block.recompute = enable  # type: ignore[assignment]

    def width_of(self, level: int) -> int:
        """Return the decoder's width where the densified map of a level (0 = deepest) is added; stride 1 comes last."""
        widths = [w for w, step in zip(self.widths, self.steps, strict=False) if step.level == level]
        return widths[0] if widths else self.widths[-1]

    def reset_parameters(self) -> None:
        """Initialize as the official code: normal 0.02 for convolutions, Kaiming fan-out for transposed ones.

        Linear layers, which the official decoder lacks, are initialized like convolutions.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            if not isinstance(module, nn.modules.conv._ConvNd):
                continue
            if module.transposed:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if module.weight.ndim == 4 and math.prod(module.kernel_size) > 1:  # as the maps, to avoid copies
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, maps: Sequence[Float[Tensor, "batch _ *_size"]]) -> Float[Tensor, "batch out_chans *size"]:
        """Return the prediction for densified maps, deepest first."""
        return self.decode(maps).prediction

    def decode(self, maps: Sequence[Float[Tensor, "batch _ *_size"]]) -> Decoded:
        """Return the prediction for densified maps, deepest first, and the map after each block."""
        remaining = iter(maps)
        x = next(remaining)
        inner = []
        for i, (step, block) in enumerate(zip(self.steps, self.blocks, strict=True)):
            if i > 0:
                x = x if step.level is None else x + next(remaining)
                inner.append(x)
            x = block(x)
        for finest in remaining:  # a map of the prediction's own stride
            x = x + finest
        return Decoded(self.proj(x), [*inner, x])
