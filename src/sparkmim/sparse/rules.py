"""Import every module of rules, which registers them."""

from .dense import coarse_rules
from .dense import rules as dense_rules
from .packed import conv, norm, pool, resample
from .shared import axes, noise, observe, pad, pointwise, positions, reduce

__all__ = [
    "axes",
    "coarse_rules",
    "conv",
    "dense_rules",
    "noise",
    "norm",
    "observe",
    "pad",
    "pointwise",
    "pool",
    "positions",
    "reduce",
    "resample",
]
