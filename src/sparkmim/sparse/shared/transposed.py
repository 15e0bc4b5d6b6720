"""What the transposed convolutions of all executions share: their arguments and geometry."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.axes import per_axis
from ..errors import unsupported
from ..execution import Execution
from ..layout import Layout

CONV_TRANSPOSE: dict[Any, int] = {
    F.conv_transpose1d: 1, F.conv_transpose2d: 2, F.conv_transpose3d: 3,
    torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3,
}  # fmt: skip
"""Transposed convolutions under all their names, and their number of spatial axes."""


class Upward(NamedTuple):
    """The geometry of a transposed convolution that makes `n * stride` positions of `n`, per spatial axis.

    Attributes:
        stride, padding, dilation, output_padding: of the function.
        reach: positions from the first to the last that one input position writes, less one.
        before, after: positions of the input beyond a patch that write into what becomes of the patch.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    reach: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


def upward(
    execution: Execution,
    func: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
) -> tuple[Layout, Upward]:
    """Return the layout and the geometry of a call; raise where the result would not be aligned with the patches."""
    if execution.layout(x) is None or execution.layout(weight) is not None or execution.layout(bias) is not None:
        raise unsupported(func, "its weight descends from the input")
    layout = execution.require_map(func, x)
    execution.require_no_padding(layout, func)
    dims = CONV_TRANSPOSE[func]
    if len(layout.space) != dims:
        raise unsupported(func, f"its window has {dims} axes and the map {len(layout.space)}")
    step, pad, spread, extra = (per_axis(value, dims) for value in (stride, padding, dilation, output_padding))
    reach = tuple((k - 1) * d for k, d in zip(weight.shape[2:], spread, strict=True))
    for s, p, r, o in zip(step, pad, reach, extra, strict=True):
        if r + 1 + o - 2 * p != s:
            raise unsupported(
                func,
                f"with kernel extent {r + 1}, stride {s}, padding {p} and output padding {o} a map of n positions does "
                f"not become one of n * {s}, so the result is not aligned with the patches; a kernel as large as the "
                "stride without padding does",
            )
    # Input position i writes the output positions from i * stride - padding to that + reach.
    before = tuple(max((r - p) // s, 0) for r, p, s in zip(reach, pad, step, strict=True))
    after = tuple((p + s - 1) // s for p, s in zip(pad, step, strict=True))
    return layout, Upward(step, pad, spread, extra, reach, before, after)
