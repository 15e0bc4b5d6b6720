"""The masked-dense reference: what the packed engine must equal, computed the simple and expensive way.

The whole map is kept, garbage at hidden positions included, and every operation that mixes positions is preceded and
followed by `where`, so that hidden positions are seen as what lies outside the image. (Not by a product with the mask,
as in the official `pretrain/encoder.py`: NaN times zero is NaN.) Statistics are taken over the visible positions,
picked out. It saves neither time nor memory; it is the oracle of the tests and `execution="masked-dense"`.

A position that holds several patches, where these are smaller than the network's total stride, is visible if one of
them is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..grid import CoarseGrid, PatchGrid, has_mask, mask_at
from ..layout import Layout
from ..reduction import Reduction
from ..shared.pointwise import samples_and_channels_first
from ..shared.reduce import is_whole_map, over_whole_map
from ..shared.smooth import NEAREST, smooth
from ..window import Window, per_axis, require_near_edges, sees_one_position, window_over


class MaskedDenseExecution(Execution):
    """Runs a network on whole images as if hidden patches were outside; its maps are `(B, C, *size)`.

    Args:
        grid: the visible patches of the batch. Only its mask is used.
    """

    def __init__(self, grid: PatchGrid | CoarseGrid) -> None:
        super().__init__()
        self.visible = grid.visible
        self.grid_shape = tuple(grid.visible.shape)

    def mask(self, size: Sequence[int], func: Any = None) -> Tensor:
        """The mask at the resolution of a map: bool `(B, *size)`."""
        try:
            return mask_at(self.visible, size)
        except ValueError as error:
            raise unsupported(func, str(error)) from None

    def has_grid(self, size: Sequence[int]) -> bool:
        return has_mask(self.grid_shape[1:], size)

    def in_patches(self, size: Sequence[int]) -> bool:
        """Whether each position of a map of `size` lies in one patch."""
        return all(s % g == 0 for s, g in zip(size, self.visible.shape[1:], strict=True))

    def where_visible(self, x: Tensor, fill: float = 0.0, func: Any = None) -> Tensor:
        """`x` `(B, C, *size)` with hidden positions replaced."""
        return torch.where(self.mask(x.shape[2:], func).unsqueeze(1), x, fill)

    def mask_of(self, x: Tensor, layout: Layout) -> Tensor:
        """The mask of the positions of any map: bool `(B, *spatial axes)`."""
        if layout.flattened:
            return self.mask(layout.flattened).flatten(1)
        return self.mask([x.shape[a] for a in layout.space])

    def visible_rows(self, x: Tensor, layout: Layout) -> Tensor:
        return x.permute(_space_first(x, layout))[self.mask_of(x, layout)]

    def from_visible_rows(self, rows: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """As in :class:`Execution`; zero where hidden."""
        order = _space_first(x, layout)
        out = rows.new_zeros(*[x.shape[a] for a in order])
        out[self.mask_of(x, layout)] = rows
        return out.permute([order.index(a) for a in range(x.ndim)])

    def of_each_image(self, compute: Callable[[Tensor], Any], rows: Tensor, mask: Tensor) -> list[Any]:
        """`compute` of the visible positions `(images, positions, ...)` of all images, or of one after the other where
        they differ in number (as they may where positions hold several patches)."""
        numbers = mask.flatten(1).sum(1).tolist()
        if len(set(numbers)) == 1:
            return [compute(rows.unflatten(0, (len(mask), -1)))]
        return [compute(part.unsqueeze(0)) for part in rows.split(numbers)]

    def prepare(self, images: Tensor) -> Tensor:
        return self.start(self.where_visible(images))

    def one_row_per_image(self, values: Tensor, axis: int) -> Tensor:
        return values

    def all_rows(self, values: Tensor, axis: int) -> Tensor:
        return values

    def reduce_space(self, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
        free = [a for a in range(x.ndim) if a not in layout.tracked_axes]
        order = [layout.batch, *layout.space, *free]
        mask = self.mask_of(x, layout)

        def reduce_rows(rows: Tensor) -> Any:
            rows = rows.reshape(*rows.shape[:2], *[1] * (len(layout.space) - 1), *rows.shape[2:])
            return reduce(rows.permute([order.index(a) for a in range(x.ndim)]), axes)

        found = self.of_each_image(reduce_rows, x.permute(order)[mask], mask)
        batch = layout.batch if reduce.keep else layout.batch - sum(a < layout.batch for a in axes)
        if isinstance(found[0], Tensor):
            return torch.cat(found, batch)
        return tuple(torch.cat(parts, batch) for parts in zip(*found, strict=True))

    def total_per_image(self, values: Tensor, axis: int) -> Tensor:
        return values

    def where_seen(self, x: Tensor, layout: Layout) -> Tensor:
        mask = self.mask_of(x, layout)
        order = sorted(range(mask.ndim), key=lambda a: layout.tracked_axes[a])
        shape = [x.shape[a] if a in layout.tracked_axes else 1 for a in range(x.ndim)]
        return torch.where(mask.permute(order).reshape(shape), x, 0.0)

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

    def with_windows(
        self, func: Any, compute: Callable[..., Tensor], x: Tensor, window: Window, padding: Any
    ) -> Tensor:
        """`compute(map, padding)` of what windows see: of the whole map, or of each patch apart with its mirrored ring,
        for a hidden position stands for another one to each patch that sees it."""
        if window.edge == "constant":
            return compute(self.entering(func, x, window), padding)
        if not self.in_patches(window.out):
            raise unsupported(func, f"{window.edge} padding has no rule where positions of a map hold several patches")
        block = tuple(s // g for s, g in zip(x.shape[2:], self.visible.shape[1:], strict=True))
        span = tuple(lo + b + hi for lo, b, hi in zip(window.before, block, window.after, strict=True))
        window = window._replace(block=block, span=span)
        require_near_edges(func, window)
        seen = [
            (image, *place)
            for image, *cell in self.visible.nonzero().tolist()
            for place in _places_seen(self.visible[image].tolist(), cell, window)
        ]
        rows = x.movedim(1, -1)[torch.tensor(seen, device=x.device).unbind(1)]
        patches = compute(rows.unflatten(0, (-1, *span)).movedim(-1, 1), 0)
        out = patches.new_zeros(*self.visible.shape, *patches.shape[1:])
        out[self.visible] = patches
        behind = len(block) + 1  # (B, *grid, C, *block) to (B, C, *size)
        for _ in block:
            out = out.movedim(1, behind).flatten(behind, behind + 1)
        return out

    def leaving(self, func: Any, x: Tensor, layout: Layout) -> Tensor:
        return self.mark(self.where_visible(x, 0.0, func), layout.padded(None))


def _places_seen(shown: Any, cell: list[int], window: Window) -> list[tuple[int, ...]]:
    """Where the positions of a patch and of the ring around it lie in the map, mirrored where hidden.

    Args:
        shown: nested lists of bool, the mask of the image.
        cell: of the patch.
        window: with an edge that mirrors.
    """
    ranges = [range(-b, e + a) for b, e, a in zip(window.before, window.block, window.after, strict=True)]
    return [
        tuple(c * e + p for c, e, p in zip(cell, window.block, _seen(shown, cell, position, window), strict=True))
        for position in product(*ranges)
    ]


def _seen(shown: Any, cell: list[int], position: tuple[int, ...], window: Window) -> list[int]:
    """What stands for a position, both relative to a patch: the fewest reflections that lead to a visible patch."""
    beyond = [axis for axis, (p, e) in enumerate(zip(position, window.block, strict=True)) if not 0 <= p < e]

    def reflected(axes: Sequence[int]) -> list[int]:
        return [
            p if axis not in axes else _across(p, e, window.edge)
            for axis, (p, e) in enumerate(zip(position, window.block, strict=True))
        ]

    for count in range(len(beyond)):
        ways = [reflected(axes) for axes in combinations(beyond, count)]
        ways = [way for way in ways if _is_shown(shown, cell, way, window.block)]
        if ways:
            return ways[0] if len(ways) == 1 else reflected(beyond)
    return reflected(beyond)


def _across(position: int, extent: int, edge: str) -> int:
    if edge == "replicate":
        return 0 if position < 0 else extent - 1
    return -position if position < 0 else 2 * (extent - 1) - position


def _is_shown(shown: Any, cell: list[int], position: list[int], block: tuple[int, ...]) -> bool:
    for c, p, e in zip(cell, position, block, strict=True):
        if not 0 <= c + p // e < len(shown):
            return False
        shown = shown[c + p // e]
    return bool(shown)


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
    if sees_one_position(layout, weight.shape[2:], stride, padding):
        execution.require_no_padding(layout, func)
        return execution.mark(func(input, weight, bias, stride, padding, dilation, groups), layout)
    window = window_over(execution, func, input, weight.shape[2:], stride, padding, dilation)

    def convolve(x: Tensor, padding: Any) -> Tensor:
        return func(x, weight, bias, stride, padding, dilation, groups)

    out = execution.with_windows(func, convolve, input, window, padding)
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
    if is_whole_map(input, layout, kernel, padding):
        return over_whole_map(execution, torch.amax, input)
    window = window_over(
        execution, func, input, kernel, stride or kernel, padding, dilation, fill=-math.inf, ceil_mode=ceil_mode
    )

    if any(after < 0 for after in window.after) and not execution.in_patches(window.out):
        raise unsupported(func, "it passes over positions, which may be the only visible ones of several patches")

    def largest(x: Tensor, padding: Any) -> Tensor:
        return F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)

    out = execution.with_windows(func, largest, input, window, padding)
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
    if is_whole_map(input, layout, kernel, padding) and divisor_override is None:
        return over_whole_map(execution, torch.mean, input)
    window = window_over(execution, func, input, kernel, stride or kernel, padding, 1, ceil_mode=ceil_mode)

    def summed(x: Tensor, padding: Any) -> Tensor:
        return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, divisor_override=1)

    out = execution.with_windows(func, summed, input, window, padding)
    if count_include_pad or divisor_override is not None or layout.padding is not None:
        out = out / (divisor_override or math.prod(kernel))
    else:
        there = execution.mask(input.shape[2:]).unsqueeze(1).to(input.dtype)
        out = out / summed(there, padding).clamp_min(1)
    return execution.leaving(func, out, layout)


@MaskedDenseExecution.register(F.batch_norm, torch.batch_norm)
def batch_norm(execution: MaskedDenseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = samples_and_channels_first(execution, func, input)
    if not layout.is_map:
        return execution.mark(func(input, *args, **kwargs), layout)
    rows = func(execution.visible_rows(input, layout), *args, **kwargs)
    return execution.mark(execution.from_visible_rows(rows, input, layout), layout)


@MaskedDenseExecution.register(F.group_norm, torch.group_norm)
def group_norm(execution: MaskedDenseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = samples_and_channels_first(execution, func, input)
    if not layout.is_map:
        return execution.mark(func(input, *args, **kwargs), layout)
    found = _norms_of_images(execution, lambda x: func(x, *args, **kwargs), input, layout)
    return execution.mark(execution.from_visible_rows(torch.cat(found), input, layout), layout)


@MaskedDenseExecution.register(F.instance_norm, torch.instance_norm)
def instance_norm(execution: MaskedDenseExecution, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = execution.require_map(func, input)
    execution.require_no_padding(layout, func)
    found = _norms_of_images(execution, lambda x: func(x, *args, **kwargs), input, layout)
    place = 0 if func is F.instance_norm else 2
    if len(found) > 1 and kwargs.get("running_mean", args[place] if len(args) > place else None) is not None:
        raise unsupported(func, "its running statistics have no rule where images differ in what is visible")
    return execution.mark(execution.from_visible_rows(torch.cat(found), input, layout), layout)


def _norms_of_images(
    execution: MaskedDenseExecution, norm: Callable[[Tensor], Tensor], x: Tensor, layout: Layout
) -> list[Tensor]:
    """`norm` of `(B, C, *free axes, visible positions)` as rows, of all images at once where they are alike."""

    def of_rows(rows: Tensor) -> Tensor:
        return norm(rows.movedim(1, -1)).movedim(-1, 1).flatten(0, 1)

    return execution.of_each_image(of_rows, execution.visible_rows(x, layout), execution.mask_of(x, layout))


@MaskedDenseExecution.register(F.interpolate)
def interpolate(
    execution: MaskedDenseExecution,
    func: Any,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    layout = execution.require_map(func, input)
    execution.require_no_padding(layout, func)
    whole = execution.where_visible(input, 0.0, func)
    if mode in NEAREST:
        out = func(whole, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
        return execution.leaving(func, out, layout)
    grid = execution.grid_shape[1:]
    extents = func(whole, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias).shape[2:]
    if not (execution.in_patches(input.shape[2:]) and execution.in_patches(extents)):
        raise unsupported(func, f"{mode} resampling has no rule where positions of a map hold several patches")
    block = [s // g for s, g in zip(input.shape[2:], grid, strict=True)]
    wanted = [e // g for e, g in zip(extents, grid, strict=True)]
    if any(w % b and b % w for w, b in zip(wanted, block, strict=True)):
        raise unsupported(func, f"patches of {tuple(block)} pixels cannot be resampled to {tuple(wanted)} one by one")
    resampling = smooth(func, mode, block, wanted, align_corners, antialias)
    window = resampling.window(tuple(block))._replace(out=tuple(extents))
    return execution.leaving(func, execution.with_windows(func, lambda x, _: resampling(x), input, window, 0), layout)


def _space_first(x: Tensor, layout: Layout) -> list[int]:
    """The axes of a map: samples, space, then the others in their order."""
    return [*layout.tracked_axes, *[a for a in range(x.ndim) if a not in layout.tracked_axes]]
