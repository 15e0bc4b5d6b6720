"""Fuse a transposed convolution that doubles the resolution and the 3x3 convolution that follows it.

Both are linear and a decoder block has nothing in between, so they compose to one 3x3 convolution at the lower
resolution that gives the four pixels of each position. It takes 36 multiply-adds per position, input and output channel
instead of 16 + 36, and the intermediate map is neither computed nor kept. The result is equal up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MIN_POSITIONS_PER_CHANNEL = 27
"""Positions in a batch, per channel, from which fusing is faster. Composing the kernels takes the arithmetic that it
saves on 9 positions, but in small convolutions, which are a third as fast on two CPU cores."""


def can_fuse(upsample: nn.Module, conv: nn.Module) -> bool:
    """Return whether the layers have the form to fuse: transposed 4x4 with stride 2, then 3x3, both with padding 1."""
    return (
        isinstance(upsample, nn.ConvTranspose2d)
        and isinstance(conv, nn.Conv2d)
        and (upsample.kernel_size, upsample.stride, upsample.padding) == ((4, 4), (2, 2), (1, 1))
        and (upsample.output_padding, upsample.dilation, upsample.groups) == ((0, 0), (1, 1), 1)
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
        and conv.bias is None
    )


def upsample_conv(
    x: Float[Tensor, "batch channel *size"], upsample: Any, conv: Any
) -> Float[Tensor, "batch width *doubled"]:
    """Return `conv(upsample(x))`, fused where the layers allow it and the batch is large enough for it to be faster.

    Args:
        x: the map.
        upsample: a transposed convolution.
        conv: a convolution.
    """
    if can_fuse(upsample, conv) and x.shape[0] * x.shape[2:].numel() >= MIN_POSITIONS_PER_CHANNEL * x.shape[1]:
        return fused_upsample_conv(x, upsample.weight, upsample.bias, conv.weight)
    out: Tensor = conv(upsample(x))
    return out


def fused_upsample_conv(
    x: Float[Tensor, "batch channel height width"],
    up: Float[Tensor, "channel mid 4 4"],
    bias: Float[Tensor, "mid"] | None,
    weight: Float[Tensor, "out mid 3 3"],
) -> Float[Tensor, "batch out 2*height 2*width"]:
    """Return `F.conv2d(F.conv_transpose2d(x, up, bias, 2, 1), weight, padding=1)`."""
    if bias is None:
        bias = up.new_zeros(up.shape[1])
    constant = torch.einsum("omhw,m->o", weight, bias).repeat(4)
    pixels = F.conv2d(x, _fused_kernel(up, weight), constant, padding=1)
    # Beyond the edges of the intermediate map the second convolution sees zeros, but the fused one the continued map:
    # subtract what comes from that ring. The rows include its corners.
    rows = [
        F.conv1d(F.conv_transpose1d(x[:, :, edge], up[:, :, tap], bias, 2), weight[:, :, side])
        for edge, tap, side in ((0, 0, 0), (-1, 3, 2))
    ]
    columns = [
        F.conv1d(F.conv_transpose1d(x[..., edge], up[..., tap], bias, 2, 1), weight[..., side], padding=1)
        for edge, tap, side in ((0, 0, 0), (-1, 3, 2))
    ]
    out: Tensor = _Interleave.apply(pixels, *rows, *columns)  # type: ignore[no-untyped-call]
    return out


def _fused_kernel(up: Tensor, weight: Tensor) -> Tensor:
    """Return the fused kernel `(4 * out, channel, 3, 3)`: for each of a position's 2 x 2 pixels, `out` channels."""
    whole = F.conv2d(up, weight, padding=2)  # (channel, out, 6, 6), flipped, in steps of half a position
    taps = whole.unflatten(3, (3, 2)).unflatten(2, (3, 2)).flip(2, 4)
    return taps.permute(3, 5, 1, 0, 2, 4).flatten(0, 2).contiguous(memory_format=torch.channels_last)


class _Interleave(torch.autograd.Function):
    """Rearrange four pixels per position, `(B, 4 * C, H, W)`, to a map `(B, C, 2 * H, 2 * W)`, and subtract the surplus
    of its first and last row and column.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, pixels: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor
    ) -> Tensor:
        batch, channels, height, width = pixels.shape
        ctx.size = (batch, height, 2, width, channels // 2)
        rows = pixels.permute(0, 2, 3, 1).unflatten(3, (2, -1)).transpose(2, 3)
        out = rows.contiguous().view(batch, 2 * height, 2 * width, channels // 4).permute(0, 3, 1, 2)
        out[:, :, 0] -= top
        out[:, :, -1] -= bottom
        out[..., 0] -= left
        out[..., -1] -= right
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        rows = grad.permute(0, 2, 3, 1).contiguous().view(ctx.size)
        pixels = rows.transpose(2, 3).flatten(3).permute(0, 3, 1, 2)
        return pixels, -grad[:, :, 0], -grad[:, :, -1], -grad[..., 0], -grad[..., -1]
