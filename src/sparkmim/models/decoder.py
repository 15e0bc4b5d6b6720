"""From sparse features to pixels: densify every scale, then a light UNet (paper, sections 3.2 and 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..sparse import CoarseExecution, CoarseGrid, PatchGrid, run
from .backbone import Level
from .config import DecoderBlock
from .fused_upsample import upsample_conv
from .memory_efficient import recomputed, relu6
from .sparse_projection import project

# Kernels and strides may differ per axis, which torch's annotations of the 1-D forms do not foresee.
_CONV: dict[int, type[Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE: dict[int, type[Any]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM: dict[int, type[Any]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Densify(nn.Module):
    """Visible features of one scale as a whole map: normalise, fill hidden positions, project to the decoder's width.

    Source: the official `SparK.__init__` and `forward`, step 3.

    Args:
        channels: of the encoder's map.
        width: of the decoder at that scale.
        norm: "batch" or "layer"; over visible positions.
        kernel_size: of the projection, 1 at the deepest scale and 3 at the others.
        dims: number of spatial dimensions.
    """

    def __init__(self, channels: int, width: int, norm: str, kernel_size: int, dims: int = 2) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, channels, *[1] * dims))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.norm: nn.Module = _BATCH_NORM[dims](channels) if norm == "batch" else nn.LayerNorm(channels, eps=1e-6)
        self.proj: nn.Module
        if kernel_size == 1 and channels == width:
            self.proj = nn.Identity()
        else:
            self.proj = _CONV[dims](channels, width, kernel_size, padding=kernel_size // 2)

    def forward(self, packed: Tensor, grid: PatchGrid | CoarseGrid) -> Tensor:
        """`(N, C, *block)` features of the visible patches, or `(B, C, *size)` where positions hold several patches,
        to a map `(B, width, *size)`."""
        if isinstance(self.norm, nn.LayerNorm):
            packed = self.norm(packed.movedim(1, -1)).movedim(-1, 1)
        elif isinstance(grid, CoarseGrid):
            (packed,) = run(CoarseExecution(grid), self.norm, packed)
        else:
            packed = self.norm(packed)
        fill = self.mask_token.flatten()[: packed.shape[1]]  # one that scales share is as wide as the widest map
        return project(packed, fill, self.proj, grid)


class UNetBlock(nn.Module):
    """Upsampling by a factor, and two 3x3 convolutions. Source: the official `pretrain/decoder.py`.

    Args:
        channels: of the input.
        width: of the output.
        factor: of upsampling along each axis; the paper's is 2. The transposed convolution has a kernel of factor + 2.
    """

    def __init__(self, channels: int, width: int, factor: tuple[int, ...]) -> None:
        super().__init__()
        dims = len(factor)
        kernel = tuple(f + 2 for f in factor)
        self.upsample = _CONV_TRANSPOSE[dims](channels, channels, kernel, stride=factor, padding=1)
        self.conv1 = _CONV[dims](channels, channels, 3, padding=1, bias=False)
        self.norm1 = _BATCH_NORM[dims](channels)
        self.conv2 = _CONV[dims](channels, width, 3, padding=1, bias=False)
        self.norm2 = _BATCH_NORM[dims](width)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, *size)` to `(B, width, *size * factor)`."""
        x = upsample_conv(x, self.upsample, self.conv1)
        # The largest maps of all are not kept, for what is between two convolutions costs little to compute again.
        x = recomputed(lambda x: self.conv2(relu6(self.norm1(x))), x, self.norm1)
        out: Tensor = self.norm2(x)
        return out


class ConvNeXtBlock(nn.Module):
    """Upsampling by a factor straight to the lower width, and a ConvNeXt block there (Liu et al., arXiv 2201.03545).

    Not the paper's. At width 768 and 224 pixels, five of them take 1.56 billion multiply-accumulates an image, those of
    the paper 10.1. The upsampling mirrors ConvNeXt's downsampling: a norm, then a convolution whose kernel is its
    stride. There is no layer scale, which is to help networks much deeper than five blocks.

    Args:
        channels: of the input.
        width: of the output.
        factor: of upsampling along each axis.
    """

    def __init__(self, channels: int, width: int, factor: tuple[int, ...]) -> None:
        super().__init__()
        dims = len(factor)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.upsample = _CONV_TRANSPOSE[dims](channels, width, factor, stride=factor)
        self.conv = _CONV[dims](width, width, 7, padding=3, groups=width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.reduce = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, *size)` to `(B, width, *size * factor)`."""
        x = self.upsample(self.norm1(x.movedim(1, -1)).movedim(-1, 1))
        # The map of four times the channels is not kept: at full resolution it is larger than all others together.
        change = recomputed(lambda y: self.reduce(self.act(self.expand(self.norm2(y)))), self.conv(x).movedim(1, -1))
        return x + change.movedim(-1, 1)


_BLOCKS: dict[DecoderBlock, type[UNetBlock | ConvNeXtBlock]] = {"unet": UNetBlock, "convnext": ConvNeXtBlock}


class Upsampling(NamedTuple):
    """One step of the decoder: which densified map enters before it (0 = deepest, None = none), and its factor."""

    level: int | None
    factor: tuple[int, ...]


def upsampling_steps(strides: Sequence[tuple[int, ...]], end: tuple[int, ...] | None = None) -> list[Upsampling]:
    """Return the blocks that lead from the deepest stride to `end`, by prime factors, meeting every stride between.

    Args:
        strides: of the pyramid, deepest first.
        end: stride of the prediction, 1 along each axis if not given.

    Raises:
        ValueError: if a stride does not divide the next deeper one.
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
    """The light decoder: each block upsamples and halves the width, and takes in the densified map of its scale.

    For a pyramid of strides 4, 8, 16, 32 these are the paper's five blocks; other strides are met by prime factors.

    Args:
        steps: see :func:`upsampling_steps`.
        width: of the deepest map.
        out_chans: channels of the prediction.
        block: "unet", the paper's :class:`UNetBlock`, or "convnext", the cheaper :class:`ConvNeXtBlock`.

    Raises:
        ValueError: for a width that cannot be halved so often, or an unknown block.
    """

    def __init__(
        self, steps: Sequence[Upsampling], width: int = 768, out_chans: int = 3, *, block: DecoderBlock = "unet"
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
        dims = len(steps[0].factor) if steps else 2
        self.blocks = nn.ModuleList(
            _BLOCKS[block](self.widths[i], self.widths[i + 1], step.factor) for i, step in enumerate(steps)
        )
        self.proj = _CONV[dims](self.widths[-1], out_chans, 1)
        self.reset_parameters()

    def width_of(self, level: int) -> int:
        """Width of the decoder where the densified map `level` (0 = deepest) enters; one of stride 1 enters last."""
        entered = [w for w, step in zip(self.widths, self.steps, strict=False) if step.level == level]
        return entered[0] if entered else self.widths[-1]

    def reset_parameters(self) -> None:
        """The official initialisation: normal 0.02 for convolutions (and linear layers), Kaiming fan-out for transposed
        ones."""
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
            if module.weight.ndim == 4 and math.prod(module.kernel_size) > 1:  # as the maps are, which costs no copies
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Densified maps, deepest first, to a prediction `(B, out_chans, *size)`."""
        coming = iter(maps)
        x = next(coming)
        for i, (step, block) in enumerate(zip(self.steps, self.blocks, strict=True)):
            if i > 0 and step.level is not None:
                x = x + next(coming)
            x = block(x)
        for full_resolution in coming:  # a map of stride 1
            x = x + full_resolution
        prediction: Tensor = self.proj(x)
        return prediction


def densify_norm_of(network: nn.Module) -> str:
    """The kind of norm that fits a network: "batch" if it has batch norms, "layer" otherwise."""
    return "batch" if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()) else "layer"


def build_densify(
    levels: Sequence[Level], decoder: UNetDecoder, norm: str, *, shared_mask_token: bool = False
) -> nn.ModuleList:
    """One :class:`Densify` a level, deepest first; with one mask embedding for all of them on request."""
    dims = len(levels[0].stride)
    made = [
        Densify(level.channels, decoder.width_of(i), norm, 1 if i == 0 else 3, dims) for i, level in enumerate(levels)
    ]
    if shared_mask_token:
        widest = max((densify.mask_token for densify in made), key=Tensor.numel)
        for densify in made:
            densify.mask_token = widest
    return nn.ModuleList(made)
