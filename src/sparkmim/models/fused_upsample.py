"""Fuse a transposed convolution that doubles the resolution and the 3x3 convolution that follows it.

Both are linear and a decoder block has nothing in between, so they compose to one 3x3 convolution at the lower
resolution that gives the four pixels of each position. It takes 36 multiply-adds per position, input and output channel
instead of 16 + 36, and the intermediate map is neither computed nor kept. The result is equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..sparse.autocast import autocast_arguments

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
    """Return `F.conv2d(F.conv_transpose2d(x, up, bias, 2, 1), weight, padding=1)`.

    It can be differentiated once; a second derivative raises RuntimeError.
    """
    if bias is None:
        bias = up.new_zeros(up.shape[1])
    out: Tensor = _FusedUpsample.apply(x, up, bias, weight)  # type: ignore[no-untyped-call]
    return out


class _Edge(NamedTuple):
    """The rows or columns on both edges of a map, `(B, 2 * C, length)`, and what two layers make of the ring beyond.

    Beyond the edges of the intermediate map the second convolution sees zeros, but the fused one the continued map.
    What comes from that ring is computed for both edges at once, by convolutions of two groups, and taken off. The rows
    include the ring's corners, the columns do not: `padding`.
    """

    axis: int
    padding: int

    def of(self, maps: Tensor) -> Tensor:
        """Return the first and the last row or column, `(B, C, 2, W)` or `(B, C, H, 2)`; a view."""
        size = maps.shape[self.axis]
        if size == 1:
            return maps.expand(*(2 if axis == self.axis else -1 for axis in range(4)))
        every = [slice(None)] * 4
        every[self.axis] = slice(None, None, size - 1)
        return maps[tuple(every)]

    def grouped(self, maps: Tensor) -> Tensor:
        """Return :meth:`of` as a batch of signals with both edges along the channels, `(B, 2 * C, length)`."""
        return self.of(maps).movedim(self.axis, 1).flatten(1, 2)

    def placed(self, signals: Tensor) -> Tensor:
        """Invert :meth:`grouped`: `(B, 2 * C, length)` to `(B, C, 2, W)` or `(B, C, H, 2)`; a view."""
        return signals.unflatten(1, (2, -1)).movedim(1, self.axis)

    def kernels(self, up: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outer taps, which meet the ring: `(2 * C, M, 4)` of `up` and `(2 * out, M, 3)` of `weight`."""
        return tuple(self.of(kernel).movedim(self.axis, 0).flatten(0, 1) for kernel in (up, weight))  # type: ignore[return-value]


_EDGES = (_Edge(axis=2, padding=0), _Edge(axis=3, padding=1))


class _FusedUpsample(torch.autograd.Function):
    """The two layers as one convolution, and its gradients; edges are added to maps in place, not as maps of their own.

    Autocast converts the arguments as those of the two layers, and each gradient has its argument's dtype.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, bias: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtypes = (x.dtype, up.dtype, bias.dtype, weight.dtype)
        x, up, bias, weight = autocast_arguments(x, up, bias, weight)
        with torch.autocast(x.device.type, enabled=False):
            constant = torch.einsum("omhw,m->o", weight, bias).repeat(4)
            kernel = _fused_kernel(up, weight)
            pixels = F.conv2d(x, kernel, constant, padding=1)
            of_edges, surplus = [], []
            twice = bias.repeat(2)
            for edge in _EDGES:
                outer, outer_weight = edge.kernels(up, weight)
                signals = edge.grouped(x)
                middle = F.conv_transpose1d(signals, outer, twice, 2, edge.padding, groups=2)
                surplus.append(edge.placed(F.conv1d(middle, outer_weight, padding=edge.padding, groups=2)))
                of_edges += [signals, outer, middle, outer_weight]
            out = _subtract_at_edges(_interleave(pixels), surplus)
        ctx.save_for_backward(x, up, bias, weight, kernel, *of_edges)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, up, bias, weight, kernel, *of_edges = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            pixels = _deinterleave(grad)
            grad_x, grad_kernel = _gradients(pixels, x, kernel, padding=1)
            grad_up, grad_weight = _fused_kernel_gradients(grad_kernel, up, weight)
            grad_constant = pixels.sum((0, 2, 3)).view(4, -1).sum(0)
            grad_weight += torch.outer(grad_constant, bias)[..., None, None]
            grad_bias = torch.einsum("omhw,o->m", weight, grad_constant)
            surplus = []
            for edge, kept in zip(_EDGES, (of_edges[:4], of_edges[4:]), strict=True):
                signals, outer, middle, outer_weight = kept
                padding = edge.padding
                grad_middle, of_weight = _gradients(edge.grouped(grad), middle, outer_weight, padding=padding, groups=2)
                of_x, of_up = _gradients(
                    grad_middle, signals, outer, padding=padding, groups=2, stride=2, transposed=True
                )
                grad_bias -= grad_middle.sum((0, 2)).view(2, -1).sum(0)
                edge.of(grad_up).sub_(of_up.unflatten(0, (2, -1)).movedim(0, edge.axis))
                edge.of(grad_weight).sub_(of_weight.unflatten(0, (2, -1)).movedim(0, edge.axis))
                surplus.append(edge.placed(of_x))
            grad_x = _subtract_at_edges(grad_x, surplus)
        found = (grad_x, grad_up, grad_bias, grad_weight)
        return tuple(g.to(dtype) for g, dtype in zip(found, ctx.dtypes, strict=True))


def _gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, *, padding: int, groups: int = 1, stride: int = 1, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a convolution's input and kernel."""
    dims = x.ndim - 2
    many = ([stride] * dims, [padding] * dims, [1] * dims, transposed, [0] * dims, groups)
    of_x, of_kernel, _ = torch.ops.aten.convolution_backward(grad, x, kernel, None, *many, [True, True, False])
    return of_x, of_kernel


def _subtract_at_edges(maps: Tensor, surplus: Sequence[Tensor]) -> Tensor:
    """Subtract `(B, C, 2, W)` from a map's first and last row and `(B, C, H, 2)` from its columns, in place if eager.

    A compiler makes of each change in place a copy of the whole map, so it is given one expression instead.
    """
    for edge, change in zip(_EDGES, surplus, strict=True):
        size = maps.shape[edge.axis]
        if not torch.compiler.is_compiling():
            if size > 1:
                edge.of(maps).sub_(change)
            else:
                maps.sub_(change.sum(edge.axis, keepdim=True))
            continue
        place = torch.arange(size, device=maps.device).view(-1, *[1] * (3 - edge.axis))
        first, last = change.narrow(edge.axis, 0, 1), change.narrow(edge.axis, 1, 1)
        maps = maps - torch.where(place == 0, first, 0) - torch.where(place == size - 1, last, 0)
    return maps


def _fused_kernel(up: Tensor, weight: Tensor) -> Tensor:
    """Return the fused kernel `(4 * out, channel, 3, 3)`: for each of a position's 2 x 2 pixels, `out` channels."""
    whole = F.conv2d(up, weight, padding=2)  # (channel, out, 6, 6), flipped, in steps of half a position
    taps = whole.unflatten(3, (3, 2)).unflatten(2, (3, 2)).flip(2, 4)
    return taps.permute(3, 5, 1, 0, 2, 4).flatten(0, 2).contiguous(memory_format=torch.channels_last)


def _fused_kernel_gradients(grad: Tensor, up: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of what :func:`_fused_kernel` takes."""
    taps = grad.unflatten(0, (2, 2, -1)).permute(3, 2, 4, 0, 5, 1).flip(2, 4)
    whole = taps.reshape(len(up), len(weight), 6, 6)
    return _gradients(whole, up, weight, padding=2)


def _interleave(pixels: Tensor) -> Tensor:
    """Rearrange four pixels per position, `(B, 4 * C, H, W)`, to a map `(B, C, 2 * H, 2 * W)`, channels last."""
    batch, channels, height, width = pixels.shape
    rows = pixels.permute(0, 2, 3, 1).unflatten(3, (2, -1)).transpose(2, 3)
    return rows.contiguous().view(batch, 2 * height, 2 * width, channels // 4).permute(0, 3, 1, 2)


def _deinterleave(maps: Tensor) -> Tensor:
    """Invert :func:`_interleave`."""
    batch, channels, height, width = maps.shape
    rows = maps.permute(0, 2, 3, 1).contiguous().view(batch, height // 2, 2, width // 2, 2 * channels)
    return rows.transpose(2, 3).flatten(3).permute(0, 3, 1, 2)
