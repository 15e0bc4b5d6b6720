"""Two convolutions as one: a transposed convolution that doubles the resolution, then a 3x3 convolution.

Nothing stands between the two in a block of the decoder, so their product is a 3x3 convolution at the lower resolution
that gives the four pixels of each position at once. It takes 36 products a position, for a channel in and out, in place
of 16 + 36, and its intermediate map is neither computed nor kept. The numbers are the same but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

POSITIONS_PER_CHANNEL = 27
"""Positions of a batch, for each channel, from which composing pays. The product of the kernels takes as much
arithmetic as it saves on 9, but as small convolutions, a third as fast on two CPU cores."""


def composes(upsample: nn.Module, conv: nn.Module) -> bool:
    """Whether two layers are of the form that can be composed: 4x4 with stride 2 transposed, then 3x3, both padded."""
    return (
        isinstance(upsample, nn.ConvTranspose2d)
        and isinstance(conv, nn.Conv2d)
        and (upsample.kernel_size, upsample.stride, upsample.padding) == ((4, 4), (2, 2), (1, 1))
        and (upsample.output_padding, upsample.dilation, upsample.groups) == ((0, 0), (1, 1), 1)
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
        and conv.bias is None
    )


def upsample_conv(x: Tensor, upsample: Any, conv: Any) -> Tensor:
    """`conv(upsample(x))`, as one convolution where that can be and pays for the size of the batch.

    Args:
        x: `(B, C, *size)`.
        upsample: a transposed convolution.
        conv: a convolution.
    """
    if composes(upsample, conv) and x.shape[0] * x.shape[2:].numel() >= POSITIONS_PER_CHANNEL * x.shape[1]:
        return composed(x, upsample.weight, upsample.bias, conv.weight)
    out: Tensor = conv(upsample(x))
    return out


def composed(x: Tensor, up: Tensor, bias: Tensor | None, weight: Tensor) -> Tensor:
    """`F.conv2d(F.conv_transpose2d(x, up, bias, 2, 1), weight, padding=1)`.

    Args:
        x: `(B, C, H, W)`.
        up: `(C, M, 4, 4)`.
        bias: `(M,)` or None.
        weight: `(C', M, 3, 3)`.
    """
    if bias is None:
        bias = up.new_zeros(up.shape[1])
    constant = torch.einsum("omhw,m->o", weight, bias).repeat(4)
    pixels = F.conv2d(x, _product(up, weight), constant, padding=1)
    # The composed convolution goes on beyond the edges of the intermediate map, where the second one sees zeros:
    # what comes from the ring around that map is taken back. Rows have the corners.
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


def _product(up: Tensor, weight: Tensor) -> Tensor:
    """The composed kernel `(4 * C', C, 3, 3)`: for each of the 2 x 2 pixels of a position, `C'` channels."""
    whole = F.conv2d(up, weight, padding=2)  # (C, C', 6, 6): steps of half a position, backwards
    taps = whole.unflatten(3, (3, 2)).unflatten(2, (3, 2)).flip(2, 4)
    return taps.permute(3, 5, 1, 0, 2, 4).flatten(0, 2).contiguous(memory_format=torch.channels_last)


class _Interleave(torch.autograd.Function):
    """The four pixels of each position `(B, 4 * C, H, W)` as a map `(B, C, 2 * H, 2 * W)`, less what its first and last
    row and column have too much."""

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
