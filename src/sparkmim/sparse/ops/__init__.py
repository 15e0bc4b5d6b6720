"""Rules by kind of operation; importing this package registers them."""

from . import axes, conv, noise, norm, pad, pointwise, pool, positions, reduce, resample

__all__ = ["axes", "conv", "noise", "norm", "pad", "pointwise", "pool", "positions", "reduce", "resample"]
