"""Maps whose positions hold several patches, where patches are smaller than the network's total stride.

A position is visible if one of its patches is. Images differ in how many positions are, and most of them are, so from
the first such map on the packed engine goes on with whole maps and a mask. Statistics over the visible positions are
sums over the whole map, of static shape, so that nothing waits for the device. The rules are in `coarse_rules.py`; the
reference (:mod:`sparkmim.sparse.dense.execution`), which picks visible positions out, has rules of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..grid import CoarseGrid, PatchGrid
from ..layout import Layout
from ..reduction import Reduction
from ..shared.over_space import OverPositions
from ..window import Window, of_one_position
from .cut import CutLayout
from .edges import around_positions
from .moments import NEUTRAL, Moments, at_least_single, count, deviation
from .orderless import over_visible
from .whole_maps import WholeMaps


class CoarseExecution(WholeMaps):
    """Runs a network, or the part of one, whose maps are `(B, C, *size)` and whose positions hold several patches.

    Args:
        grid: a :class:`PatchGrid` or :class:`CoarseGrid`. Only its mask is used.
    """

    def __init__(self, grid: PatchGrid | CoarseGrid) -> None:
        super().__init__(grid)
        self.visible_per_image = grid.visible_per_image if isinstance(grid, PatchGrid) else 1

    def reduce_space(self, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
        name = reduce.name
        visible = self.mask_along(x, layout)
        if name == "mean":
            dtype = reduce.arguments.get("dtype") or x.dtype
            values = at_least_single(x.to(dtype))
            total = torch.where(visible, values, 0).sum(axes, reduce.keep)
            return (total / count(values, visible, axes, reduce.keep)).to(dtype)
        if name in ("var", "std", "var_mean", "std_mean"):
            return deviation(Moments.of(at_least_single(x), visible, axes), axes, reduce, x.dtype)
        if name in ("norm", "vector_norm") and reduce.arguments.get("p", reduce.arguments.get("ord", 2)) <= 0:
            raise unsupported(reduce.function, "a norm of that order has no rule where positions hold several patches")
        function: Any = reduce
        if isinstance(function, OverPositions):
            extents = layout.flattened or [x.shape[axis] for axis in layout.space]
            size = layout.sizes(extents) if isinstance(layout, CutLayout) else extents
            return over_visible(function, x, visible, axes, self._fewest(size))
        if name not in NEUTRAL:
            raise unsupported(reduce.function, "it has no rule where positions hold several patches")
        return reduce(torch.where(visible, x, NEUTRAL[name]), axes)

    def reduce_batch(self, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
        return self.reduce_space(reduce, x, layout, axes) if layout.is_map else reduce(x, axes)

    def _fewest(self, size: Sequence[int]) -> int:
        """Return how many positions of a map are visible in each image at least."""
        held = math.prod([max(g // s, 1) for g, s in zip(self.grid_shape[1:], size, strict=True)])
        return -(-self.visible_per_image // held)

    def with_windows(
        self, func: Any, compute: Callable[[Tensor, Any], Tensor], x: Tensor, window: Window, padding: Any
    ) -> Tensor:
        """Return `compute(map, padding)` of what windows see, marked.

        That is the map with hidden positions and a padding that waits holding what it is filled with, or each position
        apart with its mirrored ring, since there a hidden position stands for another one to each that sees it.

        Raises:
            UnsupportedOperation: for a padding that mirrors more of the map than one position.
        """
        layout = self.require_map(func, x)
        if window.edge == "constant":
            shown = self.where_visible(x, window.fill, func)
            shown = shown if layout.padding is None else F.pad(shown, layout.padding.sides, value=window.fill)
            return self.leaving(func, compute(shown, padding), layout)
        own = of_one_position(func, window, x.shape[2:])
        out = around_positions(lambda around: compute(around, 0), x, self.mask(x.shape[2:], func), own)
        return self.leaving(func, out, layout)
