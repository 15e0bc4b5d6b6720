"""Custom autograd functions of weights alone are the network's own; those that may hide the input are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine_helpers import BLOCKS, Host, constant, images_of, random_grid, right_or_refused
from sparkmim.sparse import SparseExecution, UnsupportedOperation, run


class Sign(torch.autograd.Function):
    """The sign of a tensor, whose gradient goes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Quantized(torch.autograd.Function):
    """A learned step, as LSQ quantizes weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(x, step)
        scaled = (x / step).clamp(-levels, levels)
        return scaled.round() * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, step = ctx.saved_tensors
        return grads[0], (grads[0] * (x / step).round()).sum().reshape(step.shape), None


class Unseen(torch.autograd.Function):
    """What is computed outside torch's functions, as by an extension, and then by one of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            y = x * 2
        return y + 1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 2


def apply(function: Any, *args: Any) -> Tensor:
    return function.apply(*args)  # type: ignore[no-any-return]


class Conv(nn.Module):
    """A convolution whose weight is a function of a parameter."""

    def __init__(self, of: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(constant(8, 8, 3, 3) - 0.7)
        self.step = nn.Parameter(torch.tensor([0.1], dtype=torch.float64))
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x * self.step, self.of(self.weight, self.step), padding=1)


OF_WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sign": lambda w, s: apply(Sign, w),
    "scaled": lambda w, s: apply(Sign, w) * w.abs().mean((1, 2, 3), keepdim=True),
    "standardized": lambda w, s: apply(Sign, w - w.mean((1, 2, 3), keepdim=True)),
    "quantized": lambda w, s: apply(Quantized, w, s, 7),
    "twice": lambda w, s: apply(Sign, apply(Quantized, w.tanh() / w.tanh().abs().max(), s, 3)),
}


@BLOCKS
@pytest.mark.parametrize("of", OF_WEIGHTS.values(), ids=OF_WEIGHTS)
def test_functions_of_weights(of: Callable[[Tensor, Tensor], Tensor], block: tuple[int, int]) -> None:
    assert right_or_refused(Conv(of), block)


OF_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": lambda x: apply(Sign, x),
    "pooled": lambda x: x * apply(Sign, x.mean((2, 3), keepdim=True)),
    "unseen": lambda x: x * apply(Unseen, x),
}


@BLOCKS
@pytest.mark.parametrize("of", OF_MAPS.values(), ids=OF_MAPS)
def test_functions_of_maps_are_refused(of: Callable[[Tensor], Tensor], block: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedOperation):
        run(SparseExecution(random_grid()), Host(of), images_of(block))
