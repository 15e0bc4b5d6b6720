"""Windows that see a mirrored map whose positions hold several patches: each position is taken for a patch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..shared.mirrored import with_mirrored_halo
from ..window import Window


class Positions:
    """All positions of whole maps as patches of one pixel, which know the visible ones around them.

    Args:
        visible: bool `(B, *size)`.
    """

    def __init__(self, visible: Tensor) -> None:
        self.visible = visible
        self.tables: dict[tuple[object, ...], Tensor] = {}

    @property
    def patches(self) -> int:
        """Number of positions of all images, visible or not."""
        return self.visible.numel()

    def neighbors(self, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """Return the index of the positions around each; `patches` where hidden or outside.

        int64 `(B * prod(size), *(before + 1 + after))`.
        """
        batch, *size = self.visible.shape
        place = torch.arange(self.patches, device=self.visible.device).view(self.visible.shape)
        padded = place.new_full(
            (batch, *[b + s + a for b, s, a in zip(before, size, after, strict=True)]), self.patches
        )
        inside = tuple(slice(b, b + s) for b, s in zip(before, size, strict=True))
        padded[(slice(None), *inside)] = torch.where(self.visible, place, self.patches)
        for axis, (b, a) in enumerate(zip(before, after, strict=True), start=1):
            padded = padded.unfold(axis, b + 1 + a, 1)
        return padded.flatten(0, len(size))


def around_positions(compute: Callable[[Tensor], Tensor], x: Tensor, visible: Tensor, window: Window) -> Tensor:
    """Return `compute` of each position of a map with the mirrored ring around it, as a map `(B, C, *size)`.

    Args:
        compute: makes of `(positions, C, *window)` some pixels for each position.
        x: the map.
        visible: its mask.
        window: of stride 1, its `block` of one pixel.
    """
    size = x.shape[2:]
    rows = x.movedim(1, -1).reshape(-1, x.shape[1], *[1] * len(size))
    out = compute(with_mirrored_halo(Positions(visible), rows, window.before, window.after, window.edge))
    out = out.unflatten(0, visible.shape)  # (B, *size, C, *pixels)
    behind = len(size) + 1
    for _ in size:
        out = out.movedim(1, behind).flatten(behind, behind + 1)
    assert math.prod(out.shape[2:]) % math.prod(size) == 0
    return out
