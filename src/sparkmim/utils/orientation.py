"""Order of the axes of a volume, named by where each of them runs: RAS for right, anterior, superior."""

from __future__ import annotations

RAS = "RAS"
"""Orientation of volumes as files are read: the first axis runs to the right, the second forward, the third up."""

EXPECTED = "is an order of the letters R, A and S, such as RAS (X, Y, Z) or SAR (Z, Y, X)"


def is_orientation(value: object) -> bool:
    """Return whether a value names an order of the axes R, A and S."""
    return isinstance(value, str) and sorted(value) == sorted(RAS)


def axes_of(orientation: str, now: str = RAS) -> tuple[int, ...]:
    """Return the axes in the order `now` that become the axes of an orientation, in turn: those of SAR are 2, 1, 0."""
    return tuple(now.index(direction) for direction in orientation)


def axes_named(orientation: str) -> str:
    """Return an orientation's axes by their usual names: Z, Y, X of SAR."""
    return ", ".join("XYZ"[axis] for axis in axes_of(orientation))
