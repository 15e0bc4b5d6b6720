"""The packed engine: an untouched network on the visible patches alone.

A hidden patch is outside: a visible patch sees beyond its border what its visible neighbours hold there, and where the
neighbour is hidden exactly what it would see beyond the edge of the image. Work and memory are those of the visible
share. The rules are in :mod:`sparkmim.sparse.ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .execution import Execution
from .grid import PatchGrid
from .layout import Layout


class SparseExecution(Execution):
    """Runs a network on packed visible patches; its maps are `(N, C, *block)`, see :class:`PatchGrid`.

    Args:
        grid: the visible patches of the batch.

    Example:
        >>> grid = PatchGrid(visible, visible_per_image=20)
        >>> feature_maps = SparseExecution(grid).run(network, images)
        >>> dense = [grid.unpack(feature) for feature in feature_maps]
    """

    patch_size: tuple[int, ...]
    """Pixels of a patch along each spatial axis, known once the input is."""

    def __init__(self, grid: PatchGrid) -> None:
        super().__init__()
        self.grid = grid
        self.grid_shape = tuple(grid.visible.shape)

    def prepare(self, images: Tensor) -> Tensor:
        self.patch_size = self.grid.block_size(images.shape[2:])
        return self.start(self.grid.pack(images))

    def one_row_per_image(self, values: Tensor, axis: int) -> Tensor:
        return self.grid.by_image(values, axis).select(axis + 1, 0)

    def all_rows(self, values: Tensor, axis: int) -> Tensor:
        return self.grid.repeat(values, axis)

    def reduce_space(
        self,
        reduce: Callable[[Tensor, tuple[int, ...]], Any],
        x: Tensor,
        layout: Layout,
        axes: tuple[int, ...],
        keep: bool,
    ) -> Any:
        patch = (
            layout.batch + 1
        )  # splitting the batch axis moves what follows it by one; patches are one more to reduce
        whole = self.grid.by_image(x, layout.batch)
        out = reduce(whole, tuple(sorted({patch, *(a + (a > layout.batch) for a in axes)})))
        batch = layout.batch if keep else layout.batch - sum(a < layout.batch for a in axes)

        def repeated(values: Tensor) -> Tensor:
            return self.grid.repeat(values.squeeze(patch) if keep else values, batch)

        return repeated(out) if isinstance(out, Tensor) else tuple(repeated(values) for values in out)

    def to_map(self, x: Tensor) -> Tensor:
        return self.grid.unpack(x)

    def from_map(self, whole: Tensor) -> Tensor:
        return self.start(self.grid.pack(whole))
