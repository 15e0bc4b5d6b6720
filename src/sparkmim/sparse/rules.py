"""Import every module of rules, which registers them."""

from .dense import coarse_pool, coarse_rules, coarse_transposed
from .dense import pool as dense_pool
from .dense import positions as dense_positions
from .dense import rules as dense_rules
from .dense import transposed as dense_transposed
from .packed import conv, norm, pool, resample, transposed
from .packed import positions as packed_positions
from .shared import (
    along,
    axes,
    compose,
    contract,
    conversions,
    draws,
    hooks,
    noise,
    observe,
    pad,
    pointwise,
    positions,
    reduce,
    repeat,
    spread,
)

__all__ = [
    "along",
    "axes",
    "coarse_pool",
    "coarse_rules",
    "coarse_transposed",
    "compose",
    "contract",
    "conv",
    "conversions",
    "dense_pool",
    "dense_positions",
    "dense_rules",
    "dense_transposed",
    "draws",
    "hooks",
    "noise",
    "norm",
    "observe",
    "packed_positions",
    "pad",
    "pointwise",
    "pool",
    "positions",
    "reduce",
    "repeat",
    "resample",
    "spread",
    "transposed",
]
