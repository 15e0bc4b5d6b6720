"""What of gather indices of patches follows from extents alone: the same for every mask.

These are small tables, of a patch and its window. An eager run makes each once and keeps it for the process, so that a
step of training makes only what depends on its mask; a compiler, which fuses their making, makes them anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_KEPT: dict[tuple[object, ...], Any] = {}

MOST_KEPT = 1024


def _kept(key: tuple[object, ...], mask: Tensor, make: Callable[[torch.device], Any]) -> Any:
    """Return what `make` makes on the device of a mask, of an earlier call of this key where that was kept.

    Kept are ordinary tensors alone: not those of fake tensors, of a transform, or in memory of a graph under capture.
    Nor does such a graph use what is kept, which may be freed before it is replayed.
    """
    device = mask.device
    if torch.compiler.is_compiling() or type(mask) is not Tensor or _is_capturing(device):
        return make(device)
    place = (*key, device)
    found = _KEPT.get(place)
    if found is None:
        with torch.inference_mode(False):  # what is made in inference mode may not be kept for backward
            found = make(device)
        tensors = [found] if isinstance(found, Tensor) else [part for part in found if isinstance(part, Tensor)]
        plain = all(type(t) is Tensor and torch._C._functorch.maybe_get_level(t) < 0 for t in tensors)
        if plain:
            if len(_KEPT) >= MOST_KEPT:  # images of ever other sizes
                _KEPT.clear()
            _KEPT[place] = found
    return found


def _is_capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Reads(NamedTuple):
    """Which neighbor of a patch each place of a window lies in, and where there.

    Attributes:
        before, after: how many neighbors there are on each side, along each axis.
        neighbor: int32 `(places,)`, the neighbor in row-major order; one past the last for places that read nothing.
        place: int32 `(places,)`, the position in that neighbor.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    neighbor: Tensor
    place: Tensor


def of_halo(block: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], mask: Tensor) -> Reads:
    """Return what patches of `block` positions read with a ring around them, flattened `before + block + after`."""

    def make(device: torch.device) -> Reads:
        dims = len(block)
        reach = _reach([max(-((-b) // e), (e - 1 + a) // e, 0) for b, a, e in zip(before, after, block, strict=True)])
        neighbor = place = torch.zeros((), dtype=torch.int32, device=device)
        for axis in range(dims):
            position = _range(-before[axis], block[axis] + after[axis], device)
            patch = torch.div(position, block[axis], rounding_mode="floor")
            neighbor = neighbor * (2 * reach[axis] + 1) + along(patch + reach[axis], axis, dims)
            place = place * block[axis] + along(position - patch * block[axis], axis, dims)
        return Reads(reach, reach, neighbor.flatten(), place.flatten())

    return _kept(("halo", block, before, after), mask, make)  # type: ignore[no-any-return]


def of_readers(block: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], mask: Tensor) -> Reads:
    """Return which places of halos read each position of a patch, flattened `(prod(block), readers)`."""

    def make(device: torch.device) -> Reads:
        dims = len(block)
        window = tuple(b + e + a for b, e, a in zip(before, block, after, strict=True))
        # A position y is read by the patch `offset` patches away at y - offset * extent, if its window reaches it.
        first = [max((e - 1 + a) // e, 0) for a, e in zip(after, block, strict=True)]
        last = [max(-((-b) // e), 0) for b, e in zip(before, block, strict=True)]
        reach = _reach([max(pair) for pair in zip(first, last, strict=True)])
        within = torch.ones((), dtype=torch.bool, device=device)
        neighbor = place = torch.zeros((), dtype=torch.int32, device=device)
        for axis in range(dims):
            y = along(_range(0, block[axis], device), axis, 2 * dims)
            offset = along(_range(-first[axis], last[axis] + 1, device), dims + axis, 2 * dims)
            at = y - offset * block[axis] + before[axis]
            within = within & (at >= 0) & (at < window[axis])
            neighbor = neighbor * (2 * reach[axis] + 1) + (offset + reach[axis])
            place = place * window[axis] + at
        none = math.prod([2 * r + 1 for r in reach])
        neighbor, place = torch.where(within, neighbor, none), torch.where(within, place, 0)
        return Reads(reach, reach, neighbor.flatten(), place.flatten())

    return _kept(("readers", block, before, after), mask, make)  # type: ignore[no-any-return]


def _reach(needed: list[int]) -> tuple[int, ...]:
    """Return how many neighbors to take on each side: one at least, so that most layers share theirs."""
    return tuple(max(n, 1) for n in needed)


def around_cells(grid: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], mask: Tensor) -> Tensor:
    """Return the patches around each patch of a grid, in row-major order, and one that is outside.

    int64 `(prod(grid), around + 1)`; those outside are one past the last.
    """

    def make(device: torch.device) -> Tensor:
        dims, cells = len(grid), math.prod(grid)
        inside = torch.ones((), dtype=torch.bool, device=device)
        cell = torch.zeros((), dtype=torch.int64, device=device)
        for axis in range(dims):
            own = along(torch.arange(grid[axis], device=device), axis, 2 * dims)
            at = own + along(torch.arange(-before[axis], after[axis] + 1, device=device), dims + axis, 2 * dims)
            inside = inside & (at >= 0) & (at < grid[axis])
            cell = cell * grid[axis] + at
        found = torch.where(inside, cell, cells).reshape(cells, -1)
        return torch.cat([found, found.new_full((cells, 1), cells)], 1)

    return _kept(("around", grid, before, after), mask, make)  # type: ignore[no-any-return]


def of_map(grid: tuple[int, ...], block: tuple[int, ...], mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return where in a map each patch of a grid begins, and where from there its positions lie.

    int32 `(prod(grid),)` and `block`.
    """

    def make(device: torch.device) -> tuple[Tensor, Tensor]:
        dims = len(grid)
        corner = inner = torch.zeros((), dtype=torch.int32, device=device)
        for axis in range(dims):
            size = grid[axis] * block[axis]
            corner = corner * size + along(_range(0, grid[axis], device) * block[axis], axis, dims)
            inner = inner * size + along(_range(0, block[axis], device), axis, dims)
        return corner.flatten(), inner

    return _kept(("map", grid, block), mask, make)  # type: ignore[no-any-return]


def of_patch(block: tuple[int, ...], mask: Tensor) -> Tensor:
    """Return where in a patch its positions lie: int32 `block`."""
    return _kept(  # type: ignore[no-any-return]
        ("patch", block), mask, lambda device: _range(0, math.prod(block), device).view(block)
    )


def along(index: Tensor, axis: int, dims: int) -> Tensor:
    """Return a 1-D index as the given one of the last `dims` axes of a table."""
    return index.view(-1, *[1] * (dims - 1 - axis))


def _range(start: int, end: int, device: torch.device) -> Tensor:
    return torch.arange(start, end, dtype=torch.int32, device=device)
