"""Softmax and normalization over all positions of an image: over the visible ones alone.

As in global context blocks and additive attention. (Sums over positions written as products are in `contract.py`.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..functions import functions_named
from ..reduction import Reduction
from ..totals import note_total
from .pointwise import free_axes, own_layout

_SOFTMAX = functions_named("softmax log_softmax softmin")


@Execution.register(*_SOFTMAX)
def softmax(execution: Execution, func: Any, input: Tensor, dim: int | None = None, **kwargs: Any) -> Tensor:
    layout = own_layout(execution, func, input)
    if dim is None:
        raise unsupported(func, "it names no axis")
    axis = dim % input.ndim
    if layout.space != (axis,):
        free_axes(func, layout, input.ndim, axis)
        return execution.mark(func(input, dim=axis, **kwargs), layout)
    dtype = kwargs.pop("dtype", None)
    kwargs.pop("_stacklevel", None)
    if kwargs:
        raise unsupported(func, f"over positions it has no rule with {', '.join(kwargs)}")
    x = input.to(dtype or _accurate(input))
    x = -x if _SOFTMAX[func] == "softmin" else x
    total = execution.reduce_space(Reduction(torch.logsumexp, True, {}), x, layout, (axis,))
    out = x - total
    is_logarithm = _SOFTMAX[func] == "log_softmax"
    out = out if is_logarithm else out.exp()
    note_total(execution, "logsumexp" if is_logarithm else "softmax", None, out)
    return execution.mark(out, layout)


@Execution.register(torch.nn.functional.normalize)
def normalize(
    execution: Execution, func: Any, input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None
) -> Tensor:
    layout = own_layout(execution, func, input)
    if out is not None:
        raise unsupported(func, "it writes into a tensor that does not descend from the input")
    axes = tuple(d % input.ndim for d in ((dim,) if isinstance(dim, int) else dim))
    if set(axes) != set(layout.space) or not layout.is_map:
        free_axes(func, layout, input.ndim, axes)
        return execution.mark(func(input, p, dim, eps), layout)

    size = execution.reduce_space(Reduction(torch.linalg.vector_norm, True, {"ord": p}), input, layout, axes)
    out = input / size.clamp_min(eps)
    note_total(execution, "normalize", None, out)
    return execution.mark(out, layout)


def _accurate(x: Tensor) -> torch.dtype:
    """Return the precision that autocast gives a softmax."""
    low = torch.is_autocast_enabled(x.device.type) and x.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if low else x.dtype
