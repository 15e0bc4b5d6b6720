"""Import every module of rules, which registers them."""

from .dense import coarse_rules
from .dense import positions as dense_positions
from .dense import rules as dense_rules
from .packed import conv, norm, pool, resample
from .packed import positions as packed_positions
from .shared import axes, noise, pad, pointwise, positions, reduce

__all__ = [
    "axes",
    "coarse_rules",
    "conv",
    "dense_positions",
    "dense_rules",
    "noise",
    "norm",
    "packed_positions",
    "pad",
    "pointwise",
    "pool",
    "positions",
    "reduce",
    "resample",
]
