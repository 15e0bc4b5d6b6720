"""The masked-dense reference: what the packed engine must equal, computed the simple and expensive way.

The whole map is kept, garbage at hidden positions included, and every operation that mixes positions is preceded and
followed by `where`, so that hidden positions are seen as what lies outside the image. (Not by a product with the mask,
as in the official `pretrain/encoder.py`: NaN times zero is NaN.) Statistics are taken over the visible positions,
picked out. It saves neither time nor memory; it is the oracle of the tests and `execution="masked-dense"`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .execution import Execution, unsupported
from .grid import PatchGrid, mask_at
from .layout import Layout
from .ops.window import Window, per_axis, window_over


class MaskedDenseExecution(Execution):
    """Runs a network on whole images as if hidden patches were outside; its maps are `(B, C, *size)`.

    Args:
        grid: the visible patches of the batch. Only its mask is used.
    """

    def __init__(self, grid: PatchGrid) -> None:
        super().__init__()
        self.visible = grid.visible
        self.grid_shape = tuple(grid.visible.shape)
        self.visible_per_image = grid.visible_per_image

    def mask(self, size: Sequence[int], func: Any = None) -> Tensor:
        """The mask at the resolution of a map: bool `(B, *size)`."""
        try:
            return mask_at(self.visible, size)
        except ValueError as error:
            raise unsupported(func, str(error)) from None

    def where_visible(self, x: Tensor, fill: float = 0.0, func: Any = None) -> Tensor:
        """`x` `(B, C, *size)` with hidden positions replaced."""
        return torch.where(self.mask(x.shape[2:], func).unsqueeze(1), x, fill)

    def visible_rows(self, x: Tensor) -> Tensor:
        """`(B, C, *size)` to `(B, C, visible positions)`."""
        mask = self.mask(x.shape[2:])
        return x.movedim(1, -1)[mask].view(x.shape[0], -1, x.shape[1]).transpose(1, 2)

    def scatter_rows(self, rows: Tensor, size: Sequence[int]) -> Tensor:
        """The inverse of :meth:`visible_rows`, zero where hidden."""
        mask = self.mask(size)
        out = rows.new_zeros(rows.shape[0], *size, rows.shape[1])
        out[mask] = rows.transpose(1, 2).reshape(-1, rows.shape[1])
        return out.movedim(-1, 1)

    def prepare(self, images: Tensor) -> Tensor:
        return self.start(self.where_visible(images))

    def one_row_per_image(self, values: Tensor, axis: int) -> Tensor:
        return values

    def all_rows(self, values: Tensor, axis: int) -> Tensor:
        return values

    def reduce_space(
        self,
        reduce: Callable[[Tensor, tuple[int, ...]], Any],
        x: Tensor,
        layout: Layout,
        axes: tuple[int, ...],
        keep: bool,
    ) -> Any:
        free = [a for a in range(x.ndim) if a not in layout.tracked_axes]
        picked = x.permute(layout.batch, *layout.space, *free)[self.mask([x.shape[a] for a in layout.space])]
        picked = picked.view(x.shape[layout.batch], -1, *[1] * (len(layout.space) - 1), *[x.shape[a] for a in free])
        order = [layout.batch, *layout.space, *free]
        return reduce(picked.permute([order.index(a) for a in range(x.ndim)]), axes)

    def to_map(self, x: Tensor) -> Tensor:
        return self.where_visible(x)

    def from_map(self, whole: Tensor) -> Tensor:
        return self.start(self.where_visible(whole))

    def entering(self, func: Any, x: Tensor, window: Window) -> Tensor:
        """A map as a window sees it: hidden positions and padding by `F.pad` carried out."""
        layout = self.require_map(func, x)
        x = self.where_visible(x, window.fill, func)
        if layout.padding is None:
            return x
        sides = [s for pair in zip(layout.padding.after, layout.padding.before, strict=True) for s in pair]
        return F.pad(x, sides[::-1], value=layout.padding.value)

    def leaving(self, func: Any, x: Tensor, layout: Layout) -> Tensor:
        return self.mark(self.where_visible(x, 0.0, func), layout.padded(None))


@MaskedDenseExecution.register(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
def conv(
    execution: MaskedDenseExecution,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    layout = execution.layout(input)
    if layout is None or execution.layout(weight) is not None or execution.layout(bias) is not None:
        raise unsupported(func, "its weight descends from the input")
    if not layout.is_map:
        return execution.mark(func(input, weight, bias, stride, padding, dilation, groups), layout)
    window = window_over(execution, func, input, weight.shape[2:], stride, padding, dilation)
    out = func(execution.entering(func, input, window), weight, bias, stride, padding, dilation, groups)
    return execution.leaving(func, out, layout)


@MaskedDenseExecution.register(F.max_pool2d, torch.max_pool2d)
def max_pool2d(
    execution: MaskedDenseExecution,
    func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if return_indices:
        raise unsupported(func, "the indices it returns have no meaning on patches")
    layout = execution.require_map(func, input)
    kernel = per_axis(kernel_size, 2)
    window = window_over(
        execution, func, input, kernel, stride or kernel, padding, dilation, fill=-math.inf, ceil_mode=ceil_mode
    )
    out = F.max_pool2d(execution.entering(func, input, window), kernel, stride, padding, dilation, ceil_mode)
    return execution.leaving(func, out, layout)


@MaskedDenseExecution.register(F.avg_pool2d, torch._C._nn.avg_pool2d)
def avg_pool2d(
    execution: MaskedDenseExecution,
    func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    layout = execution.require_map(func, input)
    kernel = per_axis(kernel_size, 2)
    window = window_over(execution, func, input, kernel, stride or kernel, padding, 1, ceil_mode=ceil_mode)

    def summed(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, divisor_override=1)

    out = summed(execution.entering(func, input, window))
    if count_include_pad or divisor_override is not None:
        out = out / (divisor_override or math.prod(kernel))
    else:
        there = execution.mask(input.shape[2:]).unsqueeze(1).to(input.dtype)
        out = out / summed(there).clamp_min(1)
    return execution.leaving(func, out, layout)


@MaskedDenseExecution.register(F.batch_norm, torch.batch_norm)
def batch_norm(execution: MaskedDenseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = execution.layout(input)
    if layout is not None and not layout.is_map and layout.batch == 0:
        return execution.mark(func(input, *args, **kwargs), layout)
    layout = execution.require_map(func, input)
    execution.require_no_padding(layout, func)
    rows = execution.visible_rows(input)
    return execution.mark(execution.scatter_rows(func(rows, *args, **kwargs), input.shape[2:]), layout)


@MaskedDenseExecution.register(F.group_norm, torch.group_norm, F.instance_norm, torch.instance_norm)
def per_image_norm(execution: MaskedDenseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return batch_norm(execution, func, input, *args, **kwargs)


@MaskedDenseExecution.register(F.interpolate)
def interpolate(execution: MaskedDenseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "nearest")
    if mode not in ("nearest", "nearest-exact"):
        raise unsupported(func, f"{mode} resampling has no rule")
    layout = execution.require_map(func, input)
    execution.require_no_padding(layout, func)
    out = func(execution.where_visible(input, 0.0, func), *args, **kwargs)
    return execution.leaving(func, out, layout)
