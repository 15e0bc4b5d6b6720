"""Maps whose positions hold several patches, where patches are smaller than the network's total stride.

A position is visible if one of its patches is. Images differ in how many positions are, and most of them are, so from
the first such map on the packed engine goes on with whole maps and a mask. Statistics over the visible positions are
sums over the whole map, of static shape, so that nothing waits for the device. The rules are in `coarse_rules.py`; the
reference (:mod:`sparkmim.sparse.dense.execution`), which picks visible positions out, has rules of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..layout import Layout
from ..reduction import Reduction
from ..window import Window
from .moments import NEUTRAL, Moments, at_least_single, count, deviation
from .whole_maps import WholeMaps


class CoarseExecution(WholeMaps):
    """Runs a network, or the part of one, whose maps are `(B, C, *size)` and whose positions hold several patches.

    Args:
        grid: a :class:`PatchGrid` or :class:`CoarseGrid`. Only its mask is used.
    """

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
        if name not in NEUTRAL:
            raise unsupported(reduce.function, "it has no rule where positions hold several patches")
        return reduce(torch.where(visible, x, NEUTRAL[name]), axes)

    def seen_by(self, func: Any, x: Tensor, window: Window) -> Tensor:
        """Return a map as a window sees it, hidden positions and a padding that waits holding what it is filled with.

        Raises:
            UnsupportedOperation: for a padding that mirrors the map.
        """
        if window.edge != "constant":
            raise unsupported(func, f"{window.edge} padding has no rule where positions of a map hold several patches")
        padding = self.require_map(func, x).padding
        shown = self.where_visible(x, window.fill, func)
        return shown if padding is None else F.pad(shown, padding.sides, value=window.fill)
