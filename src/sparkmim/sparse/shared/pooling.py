"""torch's poolings in one, two and three dimensions, as functions of any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..layout import Layout
from .places import without_meaning

MAX_POOL: dict[Any, int] = {
    F.max_pool1d: 1, torch.max_pool1d: 1, F.max_pool2d: 2, torch.max_pool2d: 2, F.max_pool3d: 3, torch.max_pool3d: 3,
}  # fmt: skip
"""Max pooling under all its names, and its number of spatial axes."""

WITH_INDICES: dict[Any, int] = {
    F.max_pool1d_with_indices: 1, torch.max_pool1d_with_indices: 1,
    F.max_pool2d_with_indices: 2, F.max_pool3d_with_indices: 3,
}  # fmt: skip
"""Those forms of it that return indices too."""

VALUES = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
"""That which returns values alone, by the number of axes."""

AVG_POOL: dict[Any, int] = {
    F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3, torch._C._nn.avg_pool2d: 2, torch._C._nn.avg_pool3d: 3,
}  # fmt: skip
"""Average pooling likewise."""

_AVG = {2: F.avg_pool2d, 3: F.avg_pool3d}


def answer_max_pool(
    largest: Callable[..., Tensor], execution: Execution, func: Any, input: Tensor, args: tuple[Any, ...], kwargs: Any
) -> Any:
    """Return `largest(execution, func, input, ...)`, and where a call asks for them indices that raise when used.

    Args:
        largest: pools by the largest values, given all arguments but `return_indices`.
    """
    named = dict(kwargs)
    return_indices = args[5] if len(args) > 5 else named.pop("return_indices", False)
    out = largest(execution, func, input, *args[:5], *args[6:], **named)
    return (out, without_meaning(execution, func, out)) if return_indices or func in WITH_INDICES else out


def require_axes(func: Any, layout: Layout, dims: int) -> None:
    """Raise unless a map has as many spatial axes as a pooling's windows."""
    if len(layout.space) != dims:
        raise unsupported(func, f"its windows have {dims} axes and the map {len(layout.space)}")


def two_or_more(x: Tensor) -> Tensor:
    """Return a map with one spatial axis as one with two, the first of extent 1; others as they are."""
    return x.unsqueeze(2) if x.ndim == 3 else x


def two_or_three(values: Sequence[int], first: int) -> list[int]:
    """Return numbers per spatial axis likewise, `first` for the axis of extent 1."""
    return [first, *values] if len(values) == 1 else list(values)


def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
) -> Tensor:
    """Pool a map `(N, C, *size)` of one to three dimensions by its largest values; all arguments are per axis."""
    arguments = two_or_three(kernel, 1), two_or_three(stride, 1), two_or_three(padding, 0), two_or_three(dilation, 1)
    lifted = two_or_more(x)
    out: Tensor = VALUES[lifted.ndim - 2](lifted, *arguments, ceil_mode)
    return out if lifted is x else out.squeeze(2)


def sum_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool = False,
    divisor: int = 1,
) -> Tensor:
    """Sum the values in windows of a map likewise, and divide the sums."""
    lifted = two_or_more(x)
    out: Tensor = _AVG[lifted.ndim - 2](
        lifted,
        two_or_three(kernel, 1),
        two_or_three(stride, 1),
        two_or_three(padding, 0),
        ceil_mode,
        divisor_override=divisor,
    )
    return out if lifted is x else out.squeeze(2)
