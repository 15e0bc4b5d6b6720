"""Import every module of rules, which registers them."""

from .packed import conv, norm, pool, resample
from .shared import axes, noise, pad, pointwise, positions, reduce

__all__ = ["axes", "conv", "noise", "norm", "pad", "pointwise", "pool", "positions", "reduce", "resample"]
