"""Import every module of rules, which registers them."""

from .dense import coarse_rules
from .dense import rules as dense_rules
from .packed import conv, norm, pool, resample
from .shared import along, axes, noise, pad, pointwise, positions, reduce

__all__ = [
    "along",
    "axes",
    "coarse_rules",
    "conv",
    "dense_rules",
    "noise",
    "norm",
    "pad",
    "pointwise",
    "pool",
    "positions",
    "reduce",
    "resample",
]
