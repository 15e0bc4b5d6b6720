"""How fast this machine pretrains: `sparkmim benchmark`."""

from .command import benchmark

__all__ = ["benchmark"]
