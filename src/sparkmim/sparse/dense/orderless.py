"""Functions of all positions in any order (medians, quantiles, products) where positions hold several patches.

Images differ in how many positions are visible, so hidden ones are replaced by what does not count, or sorted behind
the others, and the place among the visible ones is counted from their number; nothing waits for the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import unsupported
from ..shared.over_space import OverPositions

_NEUTRAL = {"prod": 1, "any": False, "all": True, "count_nonzero": 0}


def over_visible(reduce: OverPositions, x: Tensor, visible: Tensor, axes: tuple[int, ...], fewest: int) -> Any:
    """Reduce `axes` of a map, over visible positions.

    Args:
        reduce: the function.
        x: the map.
        visible: its mask, which broadcasts against it.
        axes: all axes of space.
        fewest: positions that are visible in each image at least.

    Raises:
        UnsupportedOperation: for a function without a rule.
    """
    name, arguments = reduce.name, reduce.arguments
    if name in _NEUTRAL:
        return reduce(torch.where(visible, x, _NEUTRAL[name]), axes)
    if name == "topk":
        if arguments.get("k", 1) > fewest:
            raise unsupported(
                reduce.function,
                f"it takes {arguments['k']} positions, and perhaps only {fewest} are visible here, where positions "
                "hold several patches; take fewer, or use a larger patch size",
            )
        worst = -math.inf if arguments.get("largest", True) else math.inf
        return reduce(torch.where(visible, x, worst), axes)
    if name not in ("median", "kthvalue", "quantile") or arguments.get("interpolation", "linear") != "linear":
        raise unsupported(reduce.function, "it has no rule where positions hold several patches; use median or mean")
    behind = tuple(range(-len(axes), 0))
    ordered = torch.where(visible, x, math.inf).movedim(axes, behind).flatten(-len(axes)).sort(-1)[0]
    count = visible.expand_as(x).movedim(axes, behind).flatten(-len(axes)).sum(-1, keepdim=True)

    def placed(values: Tensor) -> Tensor:
        for _ in axes[1:]:
            values = values.unsqueeze(-1)
        values = values.movedim(behind, axes)
        return values if reduce.keep else values.squeeze(axes)

    if name == "quantile":
        place = arguments["q"] * (count - 1).to(x.dtype)
        low = place.floor().long()
        values = ordered.gather(-1, low).lerp(ordered.gather(-1, torch.minimum(low + 1, count - 1)), place - low)
        return placed(values)
    if name == "kthvalue" and arguments["k"] > fewest:
        raise unsupported(reduce.function, f"perhaps only {fewest} positions are visible here; take a smaller k")
    place = (count - 1) // 2 if name == "median" else torch.full_like(count, arguments["k"] - 1)
    values = placed(ordered.gather(-1, place))
    return values, torch.zeros_like(values, dtype=torch.int64)
