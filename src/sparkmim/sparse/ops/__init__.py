"""Rules by kind of operation; importing this package registers them."""

from . import conv, local, noise, norm, pad, pool, reduce, resample

__all__ = ["conv", "local", "noise", "norm", "pad", "pool", "reduce", "resample"]
