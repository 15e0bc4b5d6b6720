"""Resampling that looks at neighbors: linear and cubic, by whole factors. Beyond its edge torch repeats the map's last
pixel, so a hidden neighbor is seen as that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..errors import unsupported
from ..execution import Execution
from ..extent import of_whole_map
from ..layout import Layout
from ..window import Window

NEAREST = ("nearest", "nearest-exact")
_REACH = {"linear": 1, "bilinear": 1, "trilinear": 1, "bicubic": 2}
"""Pixels that each mode looks at on either side."""


class Smooth(NamedTuple):
    """A resampling of patches with a ring of neighbors, per spatial axis.

    Attributes:
        mode: of `F.interpolate`.
        ring: pixels around a patch that are needed.
        size: of a patch in the result.
        margin: what the ring has become in the result, to be cut off.
    """

    mode: str
    ring: tuple[int, ...]
    size: tuple[int, ...]
    margin: tuple[int, ...]

    def window(self, block: tuple[int, ...]) -> Window:
        """Return the window that it sees around a patch of `block` pixels."""
        ones, span = (1,) * len(block), tuple(b + 2 * r for b, r in zip(block, self.ring, strict=True))
        return Window(block, ones, ones, ones, self.ring, self.ring, 0.0, "replicate", span, self.size, any(self.ring))

    def __call__(self, around: Tensor) -> Tensor:
        """Resample patches with their rings."""
        size = [s + 2 * m for s, m in zip(self.size, self.margin, strict=True)]
        out = F.interpolate(around, size=size, mode=self.mode, align_corners=False)
        for axis, (margin, extent) in enumerate(zip(self.margin, self.size, strict=True), start=2):
            out = out.narrow(axis, margin, extent)
        return out


def smooth(
    func: Any, mode: str, block: Sequence[int], size: Sequence[int], align_corners: bool | None, antialias: bool
) -> Smooth:
    """Build the resampling of patches of `block` pixels to `size`, a multiple or a divisor of these along each axis.

    Raises:
        UnsupportedOperation: for a mode or options that have no rule.
    """
    if mode not in _REACH:
        raise unsupported(func, f"{mode} resampling has no rule")
    if align_corners or antialias:
        raise unsupported(
            func, "with align_corners or antialias a pixel depends on the size of the whole map, or on more"
        )
    reach = _REACH[mode]
    ring = []
    for b, s in zip(block, size, strict=True):
        # Downwards, linear resampling stays within the pixels that become one. Cubic resampling reaches beyond these;
        # its ring is as wide as they are, so that the same pixels become one.
        ring.append(0 if b == s else reach if s > b else b // s if reach > 1 else 0)
    margin = [r * s // b for r, s, b in zip(ring, size, block, strict=True)]
    return Smooth(mode, tuple(ring), tuple(size), tuple(margin))


def shrinking(mode: str) -> str:
    """Return why a map is not resampled to positions that hold several patches, by a mode that looks at neighbors."""
    return (
        f"{mode} resampling to a part of the map's size mixes pixels of several patches, some of which may be hidden; "
        "average them (F.avg_pool2d), use mode='nearest', or a larger patch size"
    )


def local_sizes(execution: Execution, func: Any, layout: Layout, x: Tensor, size: Any) -> list[int]:
    """Return the sizes here of a map that is resampled to `size` on the whole map.

    Raises:
        UnsupportedOperation: where they are no whole numbers.
    """
    whole = of_whole_map([size] * len(layout.space) if isinstance(size, int) else list(size))
    axes = list(zip(layout.space, whole, strict=True))
    local = [execution.local_extent(layout, axis, x.shape[axis], extent) for axis, extent in axes]
    if any(extent is None or extent < 1 for extent in local):
        old = [execution.extent_of_whole(layout, axis, x.shape[axis]) for axis in layout.space]
        raise unsupported(func, f"maps of {tuple(old)} positions cannot be resampled to {tuple(whole)} patch by patch")
    return [extent for extent in local if extent is not None]
