"""Import every module of rules, which registers them."""

from .dense import coarse_pool, coarse_rules
from .dense import pool as dense_pool
from .dense import rules as dense_rules
from .packed import conv, norm, pool, resample
from .shared import along, axes, compose, contract, noise, pad, pointwise, positions, reduce

__all__ = [
    "along",
    "axes",
    "coarse_pool",
    "coarse_rules",
    "compose",
    "contract",
    "conv",
    "dense_pool",
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
