"""The packed engine: an untouched network on the visible patches alone.

A hidden patch is outside: a visible patch sees beyond its border what its visible neighbors hold there, and where the
neighbor is hidden exactly what it would see beyond the edge of the image. Work and memory are those of the visible
share. The rules are in :mod:`sparkmim.sparse.rules`.

Where patches are smaller than the network's total stride, there are maps whose positions hold several patches. Those
are answered by :class:`sparkmim.sparse.dense.coarse.CoarseExecution`, on whole maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..dense.coarse import CoarseExecution
from ..errors import unsupported
from ..execution import Execution
from ..extent import Told
from ..grid import PatchGrid
from ..layout import Layout
from ..memory import RESHAPING, VIEWING, may_write
from ..nested import map_tensors, tensors_in
from ..reduction import Reduction
from ..shared.pad import require_unchanged
from ..versions import version_of
from .kernel_choice import require_triton


class SparseExecution(Execution):
    """Runs a network on packed visible patches; its maps are `(N, C, *block)`, see :class:`PatchGrid`.

    Maps whose positions hold several patches are `(B, C, *size)`, see :class:`CoarseGrid`; `grid.at(size)` is the grid
    of either.

    Args:
        grid: the visible patches of the batch.
        triton: whether Triton kernels (:mod:`sparkmim.sparse.packed.triton_kernels`) gather neighbors, and compute
            depthwise convolutions of stride 1, where the map is on a GPU. None, the default: once they have been
            compared with PyTorch's operations on the device, and convolutions in 16 bits alone; with a warning in
            place of kernels that differ. True: always, unchecked. The numbers are the same but for rounding.

    Raises:
        ModuleNotFoundError: with `triton=True`, if Triton is not installed.

    Examples:
        >>> grid = PatchGrid(visible, visible_per_image=20)
        >>> feature_maps = sparkmim.sparse.run(SparseExecution(grid), network, images)
        >>> dense = [grid.unpack(feature) for feature in feature_maps]
    """

    coarser: CoarseExecution

    packs = True

    patch_size: tuple[int, ...]
    """Pixels of a patch along each spatial axis, known once the input is."""

    def __init__(self, grid: PatchGrid, *, triton: bool | None = None) -> None:
        super().__init__()
        if triton:
            require_triton()
        self.grid = grid
        self.triton = triton
        self.grid_shape = tuple(grid.visible.shape)
        self.told = Told(self.grid_shape[1:])
        self.coarser = CoarseExecution(grid)
        self.coarser.traced, self.coarser.told, self.coarser.memory = self.traced, self.told, self.memory

    def prepare(self, images: Tensor) -> Tensor:
        self.patch_size = self.grid.block_size(images.shape[2:])
        return self.start(self.grid.pack(images))

    def _whole(self, layout: Layout, axis: int, local: int) -> int:
        if axis == layout.batch:
            return self.grid.batch
        patches = self.told.grid if layout.flattened else (self.told.grid[layout.space.index(axis)],)
        return local * math.prod(patches)

    def count_rows(self) -> int:
        return self.grid.patches

    def one_row_per_image(self, values: Tensor, axis: int) -> Tensor:
        return self.grid.by_image(values, axis).select(axis + 1, 0)

    def all_rows(self, values: Tensor, axis: int) -> Tensor:
        return self.grid.repeat(values, axis)

    def reduce_space(self, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
        patch = (
            layout.batch + 1
        )  # splitting the batch axis moves what follows it by one; patches are one more to reduce
        whole = self.grid.by_image(x, layout.batch)
        out = reduce(whole, tuple(sorted({patch, *(a + (a > layout.batch) for a in axes)})))
        batch = layout.batch if reduce.keep else layout.batch - sum(a < layout.batch for a in axes)

        def repeated(values: Tensor) -> Tensor:
            return self.grid.repeat(values.squeeze(patch) if reduce.keep else values, batch)

        return repeated(out) if isinstance(out, Tensor) else tuple(repeated(values) for values in out)

    def reduce_batch(self, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
        return reduce(x if layout.is_map else self.one_row_per_image(x, layout.batch), axes)

    def visible_rows(self, x: Tensor, layout: Layout) -> Tensor:
        return x.view_as(x)

    def from_visible_rows(self, rows: Tensor, x: Tensor, layout: Layout) -> Tensor:
        return rows

    def outgrows(self, block: Sequence[int], stride: Sequence[int]) -> bool:
        """Return whether the positions that a window of `stride` makes of patches hold several patches each.

        Args:
            block: pixels of a patch along each axis.
            stride: of the window; of another number of axes, it makes nothing of patches.
        """
        if len(block) != len(stride):
            return False
        steps = list(zip(block, stride, strict=True))
        return any(b % s for b, s in steps) and all(b % s == 0 or s % b == 0 for b, s in steps)

    def answer_coarser(self, func: Any, x: Tensor, *args: Any) -> Any:
        """Compute `func` of a map of patches, whose result has positions that hold several: `coarser` answers."""
        layout = self.layout(x)
        if layout is None or not layout.is_map or layout.flattened:
            layout = self.require_map(func, x)
        self.has_scales = True
        order = [layout.batch, *[a for a in range(x.ndim) if a not in layout.tracked_axes], *layout.space]
        moved = x.permute(order)
        free = moved.shape[1 : x.ndim - len(layout.space)]
        maps = moved if len(free) == 1 else moved.reshape(len(moved), -1, *moved.shape[1 + len(free) :])
        whole = self.grid.unpack(maps)
        whole = whole if len(free) == 1 else whole.unflatten(1, free) if free else whole.squeeze(1)
        whole = whole.permute([order.index(axis) for axis in range(x.ndim)])
        padding = layout.padding
        if padding is not None:
            require_unchanged(func, x, padding)
            padding = padding._replace(version=version_of(whole))
        start = Layout(self.coarser, layout.batch, layout.space, padding)
        whole = self.memory.note(self.coarser.mark(whole, start), self.memory.noted(x))
        out = self.returned(self.coarser.answer(func, (whole, *args), {}))
        if func in VIEWING or func in RESHAPING:  # views of the map in the ordinary network
            for part in tensors_in(out):
                self.memory.doubt(x, part)
        return out

    def reshaped_coarser(self, func: Any, x: Tensor, shape: Sequence[Any]) -> Tensor:
        out: Tensor = self.answer_coarser(torch.Tensor.reshape, x, tuple(shape))
        return out

    def at_one_scale(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = [t for t in tensors_in((args, kwargs)) if self.marked(t) is not None]
        if len({id(self.origin_of(t)) for t in given}) < 2:
            return args, kwargs
        with_maps = {id(self.origin_of(t)) for t in given if self.is_map(t)}
        if len(with_maps) > 1:
            return args, kwargs  # maps of several scales meet, which is refused
        fine = id(self) in with_maps
        if args and isinstance(args[0], Tensor) and may_write(func, args, kwargs):
            other = self.origin_of(args[0])
            if other is not None and (other is self) != fine:
                raise unsupported(func, "it writes into a value per image that was made at another scale")
        return map_tensors(lambda value: self._at_scale(value, fine), (args, kwargs))

    def origin_of(self, value: Tensor) -> object:
        """Return the execution whose rules answer for a tensor, None if it does not descend from the input."""
        layout = self.marked(value)
        return None if layout is None else layout.origin

    def is_map(self, value: Tensor) -> bool:
        """Return whether a tensor has axes of space."""
        layout = self.marked(value)
        return layout is not None and layout.is_map

    def _at_scale(self, value: Tensor, fine: bool) -> Tensor:
        """Return a value per image with one row a patch (`fine`) or one row an image."""
        layout = self.marked(value)
        if layout is None or layout.is_map or (layout.origin is self) == fine:
            return value
        if fine:
            made = self.mark(self.all_rows(value, layout.batch), Layout(self, layout.batch, ()))
        else:
            rows = self.one_row_per_image(value, layout.batch)
            made = self.coarser.mark(rows, Layout(self.coarser, layout.batch, ()))
        return self.memory.note(made, self.memory.noted(value))

    def returned(self, out: Any) -> Any:
        """Pack maps that have become as fine as patches again."""
        layout = self.coarser.marked(out)
        if layout is None or layout.origin is not self.coarser or not layout.is_channels_first(out.ndim):
            return out
        if layout.padding is not None or not self.has_grid(out.shape[2:]):
            return out
        return self.memory.note(self.from_map(out), self.memory.noted(out))

    def total_per_image(self, values: Tensor, axis: int) -> Tensor:
        return self.grid.repeat(self.grid.by_image(values, axis).sum(axis + 1), axis)

    def where_seen(self, x: Tensor, layout: Layout) -> Tensor:
        return x

    def to_map(self, x: Tensor) -> Tensor:
        return self.grid.unpack(x)

    def from_map(self, whole: Tensor) -> Tensor:
        return self.start(self.grid.pack(whole))
