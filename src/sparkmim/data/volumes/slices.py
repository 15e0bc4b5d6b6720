"""How volumes are cut into slices and how their files are ordered: what a set of them has in common, or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...utils.orientation import RAS
from ...utils.text import counted, printable
from .fingerprint import CaseFingerprint, Fingerprint

THICK = 2.0
"""Times that voxels are as long along one axis as along both others, from which that axis is the one through slices."""

PLANES = ("sagittal", "coronal", "axial")
"""Slices by the axis that they are at right angles to: X, Y, Z."""

ISOTROPIC = "isotropic"


def plane_of(spacing: Sequence[float]) -> str:
    """Return the plane of a volume's slices by its spacing along X, Y and Z; isotropic if no axis stands out."""
    longest = max(range(3), key=lambda axis: spacing[axis])
    others = max(side for axis, side in enumerate(spacing) if axis != longest)
    return PLANES[longest] if spacing[longest] >= THICK * others else ISOTROPIC


def planes(found: Fingerprint) -> Counter[str]:
    """Return how many volumes have slices in each plane."""
    return Counter(plane_of(case.spacing) for case in found.cases)


def stored_orders(found: Fingerprint) -> Counter[str]:
    """Return how many files have their axes in each order, such as RAS, of those that say so."""
    return Counter(case.stored for case in found.cases if case.stored)


def slices_in_words(found: Fingerprint) -> str:
    """Return what planes slices have, and in which orders of axes the files are, if that is not always RAS."""
    known = planes(found)
    parts = [_numbers(known)] if len(known) > 1 else [f"{next(iter(known))}"]
    orders = stored_orders(found)
    if set(orders) - {RAS}:
        files = _numbers(orders) if len(orders) > 1 else next(iter(orders))
        parts.append(f"axes in the order of the files: {files}")
    return "; ".join(parts)


def mixed_planes(found: Fingerprint) -> str | None:
    """Return a warning of slices in several planes, None if there is one.

    One spacing for such a set interpolates along the thick axis of some volumes, and averages away the detail within
    the slices of others.
    """
    known = {plane: count for plane, count in planes(found).items() if plane != ISOTROPIC}
    if len(known) < 2:
        return None
    named = ", ".join(
        f"{plane} in {counted(count, 'volume')}, such as {printable(_first(found, plane).name)}"
        for plane, count in sorted(known.items(), key=lambda item: -item[1])
    )
    finest = min(min(case.spacing) for case in found.cases)
    return (
        f"slices lie in different planes ({named}): along each axis some voxels are thick and others thin, and one "
        "spacing for all interpolates the former or loses detail of the latter; train on each plane by itself, or name "
        f"an isotropic spacing (the finest voxels have {finest:.3g} mm)"
    )


def _first(found: Fingerprint, plane: str) -> CaseFingerprint:
    return next(case for case in found.cases if plane_of(case.spacing) == plane)


def _numbers(known: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in known.most_common())
