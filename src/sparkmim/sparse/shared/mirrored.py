"""Halos of paddings whose values follow from the map's ("reflect", "replicate"): hidden is outside, so a patch meets
its own mirror image there."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..grid import maps_of, rows_of
from ..offsets import along


class Neighborhood(Protocol):
    """Patches that know which visible ones lie around them, as :class:`~sparkmim.sparse.grid.PatchGrid` does."""

    tables: dict[tuple[object, ...], Tensor]

    @property
    def patches(self) -> int:
        """Number of patches."""

    def neighbors(self, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """Return the index of the patches around each; `patches` where hidden or outside."""


def with_mirrored_halo(
    grid: Neighborhood, packed: Tensor, before: tuple[int, ...], after: tuple[int, ...], edge: str
) -> Tensor:
    """Gather `(N, C, *block)` to `(N, C, *window)`; what is hidden or outside is read at its mirror image.

    Args:
        grid: where the patches lie.
        packed: the patches.
        before, after: width of the ring, at most that of a patch (for "reflect", less than that).
        edge: "reflect" or "replicate".
    """
    table = mirrored_halo(grid, tuple(packed.shape[2:]), before, after, edge)
    out: Tensor = _Gather.apply(packed, table)  # type: ignore[no-untyped-call]
    return out


def mirrored_halo(
    grid: Neighborhood, block: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], edge: str
) -> Tensor:
    """Return the gather index of :meth:`PatchGrid.halo` with mirror images for positions hidden or outside.

    Each stands for its mirror image across the border of the patch, along those axes that bring it to a visible patch:
    as few as possible, and all of them (into the patch itself) where as few would do in several ways. Around a visible
    rectangle that is the ordinary padding.
    """
    key = ("mirrored halo", block, before, after, edge)
    if key in grid.tables:
        return grid.tables[key]
    dims, area = len(block), math.prod(block)
    neighbor = grid.neighbors((1,) * dims, (1,) * dims)
    device = neighbor.device
    positions = [torch.arange(-b, e + a, device=device) for b, e, a in zip(before, block, after, strict=True)]
    mirrored = [_into_patch(p, e, edge) for p, e in zip(positions, block, strict=True)]

    def landing(axes: tuple[int, ...]) -> Tensor:
        """Return where positions lie, mirrored along some axes; one past the last where not in a visible patch."""
        patch, inner = neighbor, torch.zeros((), dtype=torch.int64, device=device)
        moves = torch.ones((), dtype=torch.bool, device=device)
        for axis in range(dims):
            position = positions[axis]
            if axis in axes:
                moves = moves & along(mirrored[axis] != position, axis, dims)
                position = mirrored[axis]
            offset = torch.div(position, block[axis], rounding_mode="floor")
            patch = patch.index_select(axis + 1, offset + 1)
            inner = inner * block[axis] + along(position % block[axis], axis, dims)
        return torch.where((patch != grid.patches) & moves, patch * area + inner, grid.patches * area)

    # Along an axis on which a position is within the patch, its mirror image is itself: that does not count.
    own = torch.zeros((), dtype=torch.int64, device=device)
    for axis in range(dims):
        own = own * block[axis] + along(mirrored[axis], axis, dims)
    own = own + area * torch.arange(grid.patches, device=device).view(-1, *[1] * dims)
    table = own
    for count in range(dims - 1, -1, -1):
        found = torch.stack([landing(axes) for axes in combinations(range(dims), count)])
        seen = found != grid.patches * area
        ways = seen.sum(0)
        one = torch.where(seen, found, 0).sum(0)
        table = torch.where(ways == 1, one, torch.where(ways > 1, own, table))
    grid.tables[key] = table.to(torch.int32)
    return grid.tables[key]


def _into_patch(position: Tensor, extent: int, edge: str) -> Tensor:
    """Bring positions before and behind a patch into it."""
    if edge == "replicate":
        return position.clamp(0, extent - 1)
    return (extent - 1 - (extent - 1 - position.abs()).abs()).clamp(0, extent - 1)


class _Gather(torch.autograd.Function):
    """A gather of rows whose adjoint is a gather too: the places of the table, ordered by what they read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(table)
        ctx.shape = (x.shape[0], *x.shape[2:])
        return maps_of(rows_of(x).index_select(0, table.flatten()), table.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (table,) = ctx.saved_tensors
        read, places = table.flatten().sort(stable=True)
        rows = math.prod(ctx.shape)
        first = torch.searchsorted(read, torch.arange(rows, dtype=read.dtype, device=read.device))
        return maps_of(F.embedding_bag(places, rows_of(grad), first, mode="sum"), ctx.shape), None
