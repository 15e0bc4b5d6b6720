"""Statistics over the visible positions of whole maps, as sums of static shape."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reduction import Reduction

NEUTRAL = {
    **dict.fromkeys(("sum", "nansum", "norm", "vector_norm"), 0.0),
    **dict.fromkeys(("amax", "logsumexp"), -math.inf),
    "amin": math.inf,
    "nanmean": math.nan,
}
"""What a hidden position holds so that it does not count, by the name of the reduction."""


class Moments(NamedTuple):
    """Mean, biased variance and number of visible values, all axes kept, and the values' differences from the mean."""

    mean: Tensor
    variance: Tensor
    number: Tensor
    centered: Tensor

    @classmethod
    def of(cls, x: Tensor, visible: Tensor, axes: tuple[int, ...]) -> Moments:
        """Compute them along `axes` of `x`, where the mask `visible` says; it broadcasts against `x`."""
        number = count(x, visible, axes, keep=True)
        mean = torch.where(visible, x, 0).sum(axes, True) / number
        centered = torch.where(visible, x - mean, 0)
        return cls(mean, centered.square().sum(axes, True) / number, number, centered)

    def unbiased(self) -> Tensor:
        """Return the unbiased variance."""
        return self.variance * self.number / (self.number - 1).clamp_min(1)

    def normalized(self, eps: float) -> Tensor:
        """Return the values with mean 0 and variance 1."""
        return self.centered * (self.variance + eps).rsqrt()


def count(x: Tensor, visible: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Return how many values of `x` along `axes` are visible, in the dtype of `x`."""
    return visible.expand_as(x).sum(axes, keep, dtype=x.dtype)


def deviation(moments: Moments, axes: tuple[int, ...], reduce: Reduction, dtype: torch.dtype) -> Any:
    """Return what one of var, std, var_mean and std_mean makes of moments along `axes`."""
    arguments = dict(reduce.arguments)
    unbiased = arguments.pop("unbiased", True)
    correction = arguments.pop("correction", 1 if unbiased else 0)
    spread = moments.variance * moments.number / (moments.number - correction)
    spread = (spread.sqrt() if reduce.name.startswith("std") else spread).to(dtype)
    mean = moments.mean.to(dtype)
    if not reduce.keep:
        spread, mean = spread.squeeze(axes), mean.squeeze(axes)
    return (spread, mean) if reduce.name.endswith("mean") else spread


def at_least_single(x: Tensor) -> Tensor:
    """Return half precision as single precision, in which torch computes statistics too."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
