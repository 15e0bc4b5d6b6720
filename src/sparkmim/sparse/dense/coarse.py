"""Maps whose positions hold several patches, where patches are smaller than the network's total stride.

A position is visible if one of its patches is. Images differ in how many positions are, and most of them are, so from
the first such map on the packed engine goes on with whole maps and a mask, as the reference does. Statistics over the
visible positions are computed here by sums over the whole map, of static shape, so that nothing waits for the device.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..layout import Layout
from ..reduction import Reduction
from .execution import MaskedDenseExecution


class CoarseExecution(MaskedDenseExecution):
    """As :class:`MaskedDenseExecution`, with statistics of static shape.

    Args:
        grid: a :class:`PatchGrid` or :class:`CoarseGrid`. Only its mask is used.
    """

    def reduce_space(self, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
        name = reduce.name
        shown = self._mask_along(x, layout)
        if name == "mean":
            dtype = reduce.arguments.get("dtype") or x.dtype
            values = _at_least_single(x.to(dtype))
            total = torch.where(shown, values, 0).sum(axes, reduce.keep)
            return (total / _count(values, shown, axes, reduce.keep)).to(dtype)
        if name in ("var", "std", "var_mean", "std_mean"):
            return _deviation(name, Moments.of(_at_least_single(x), shown, axes), axes, reduce, x.dtype)
        if name in ("norm", "vector_norm") and reduce.arguments.get("p", reduce.arguments.get("ord", 2)) <= 0:
            raise unsupported(reduce.function, "a norm of that order has no rule where positions hold several patches")
        if name not in _NEUTRAL:
            raise unsupported(reduce.function, "it has no rule where positions hold several patches")
        return reduce(torch.where(shown, x, _NEUTRAL[name]), axes)

    def _mask_along(self, x: Tensor, layout: Layout) -> Tensor:
        """The mask, shaped to broadcast against `x`."""
        mask = self.mask_of(x, layout)
        free = [a for a in range(x.ndim) if a not in layout.tracked_axes]
        order = [*layout.tracked_axes, *free]
        return mask.view(*mask.shape, *[1] * len(free)).permute([order.index(a) for a in range(x.ndim)])


_NEUTRAL = {
    **dict.fromkeys(("sum", "nansum", "norm", "vector_norm"), 0.0),
    **dict.fromkeys(("amax", "logsumexp"), -math.inf),
    "amin": math.inf,
    "nanmean": math.nan,
}
"""What a hidden position holds so that it does not count."""


class Moments(NamedTuple):
    """Mean, biased variance and number of visible values, all axes kept, and the values' differences from the mean."""

    mean: Tensor
    variance: Tensor
    number: Tensor
    centred: Tensor

    @classmethod
    def of(cls, x: Tensor, shown: Tensor, axes: tuple[int, ...]) -> Moments:
        """Along `axes` of `x`, at the positions that the mask `shown`, which broadcasts against it, says."""
        count = _count(x, shown, axes, keep=True)
        mean = torch.where(shown, x, 0).sum(axes, True) / count
        centred = torch.where(shown, x - mean, 0)
        return cls(mean, centred.square().sum(axes, True) / count, count, centred)


def _count(x: Tensor, shown: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return shown.expand_as(x).sum(axes, keep, dtype=x.dtype)


def _deviation(name: str, moments: Moments, axes: tuple[int, ...], reduce: Reduction, dtype: torch.dtype) -> Any:
    arguments = dict(reduce.arguments)
    unbiased = arguments.pop("unbiased", True)
    correction = arguments.pop("correction", 1 if unbiased else 0)
    spread = moments.variance * moments.number / (moments.number - correction)
    spread = (spread.sqrt() if name.startswith("std") else spread).to(dtype)
    mean = moments.mean.to(dtype)
    if not reduce.keep:
        spread, mean = spread.squeeze(axes), mean.squeeze(axes)
    return (spread, mean) if name.endswith("mean") else spread


def _normalised(moments: Moments, eps: float) -> Tensor:
    return moments.centred * (moments.variance + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 2))
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _layout_of_batches(execution: CoarseExecution, func: Any, input: Tensor) -> Layout:
    """The layout of a norm's argument: a map or a value per image, with samples first and channels second."""
    layout = execution.layout(input)
    if layout is None or layout.is_map or layout.batch != 0:
        layout = execution.require_map(func, input)
        execution.require_no_padding(layout, func)
    return layout


@CoarseExecution.register(F.batch_norm)
def batch_norm(
    execution: CoarseExecution,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    layout = _layout_of_batches(execution, func, input)
    if not (training and layout.is_map):
        out = func(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return execution.mark(out, layout)
    shown = execution.mask(input.shape[2:]).unsqueeze(1)
    moments = Moments.of(_at_least_single(input), shown, (0, *layout.space))
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = moments.variance * moments.number / (moments.number - 1).clamp_min(1)
            running_mean.lerp_(moments.mean.flatten().to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.flatten().to(running_var.dtype), momentum)
    return execution.mark(_affine(_normalised(moments, eps), weight, bias).to(input.dtype), layout)


@CoarseExecution.register(F.group_norm)
def group_norm(
    execution: CoarseExecution,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    layout = _layout_of_batches(execution, func, input)
    if not layout.is_map:
        return execution.mark(func(input, num_groups, weight, bias, eps), layout)
    shown = execution.mask(input.shape[2:]).view(input.shape[0], 1, 1, *input.shape[2:])
    groups = _at_least_single(input).unflatten(1, (num_groups, -1))
    out = _normalised(Moments.of(groups, shown, tuple(range(2, groups.ndim))), eps).flatten(1, 2)
    return execution.mark(_affine(out, weight, bias).to(input.dtype), layout)


@CoarseExecution.register(F.instance_norm)
def instance_norm(
    execution: CoarseExecution,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is not None:
        raise unsupported(func, "its running statistics have no rule where images differ in what is visible")
    return group_norm(execution, F.group_norm, input, input.shape[1], weight, bias, eps)


def _at_least_single(x: Tensor) -> Tensor:
    """Statistics of half precision are computed in single precision, as torch does."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
