"""Where the visible patches of a batch lie: packing, unpacking and tables of neighbors.

Packing turns a batch of images `(B, C, *size)` into the batch of their visible patches `(N, C, *size / grid)` with
`N = B * visible patches per image`: row `n` is patch `n % K` (in row-major order of the grid) of image `n // K`.
All tables are integer tensors made on the device of the mask by operations of static shape, so building and using
them never waits for the device. Those that a backward pass keeps are int32, to halve what they take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class PatchGrid:
    """The visible patches of a batch of images of any number of spatial dimensions.

    Args:
        visible: bool `(B, *grid)`, True = visible, the same number in every image.
        visible_per_image: that number. The caller, who drew the mask, knows it, so a mask on an accelerator is not read
            back; :func:`sparkmim.models.masking.count_visible` counts and validates a mask of unknown origin.

    Attributes:
        shape: patches along each spatial axis.
        order: int64 `(B, K)`, the cells of the visible patches of each image, ascending.
        tables: those made so far.
    """

    def __init__(self, visible: Tensor, visible_per_image: int) -> None:
        if visible.dtype != torch.bool or visible.ndim < 2:
            raise ValueError(
                f"visible must be a bool tensor (batch, *grid), got {visible.dtype} of shape {tuple(visible.shape)}"
            )
        self.visible = visible
        self.batch = visible.shape[0]
        self.shape = tuple(visible.shape[1:])
        self.visible_per_image = visible_per_image
        cells = visible.flatten(1)
        # A stable sort of "hidden" brings the visible cells to the front in row-major order, without nonzero().
        hidden = cells.logical_not().to(torch.uint8)
        self.order = hidden.argsort(dim=1, stable=True)[:, :visible_per_image]
        ordinal = cells.cumsum(1) - 1 + visible_per_image * torch.arange(self.batch, device=visible.device)[:, None]
        self._row_of_cell = torch.where(cells, ordinal, self.patches).view(self.batch, *self.shape)
        self.tables: dict[tuple[object, ...], Tensor] = {}

    @property
    def patches(self) -> int:
        """Number of packed patches, N."""
        return self.batch * self.visible_per_image

    def block_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the extent of a patch in a map of spatial `size`; raise ValueError if the grid does not divide it."""
        return _block_size(self.shape, size)

    # --- between dense maps and packed patches ------------------------------------------------------------------

    def pack(self, dense: Tensor) -> Tensor:
        """Gather the visible patches of `dense` `(B, C, *size)` as `(N, C, *block)`, channels last in memory."""
        block = self.block_size(dense.shape[2:])
        rows = rows_of(dense).index_select(0, self.gather_index(block).flatten())
        return maps_of(rows, (self.patches, *block))

    def unpack(self, packed: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """Invert :meth:`pack`: `(N, C, *block)` to `(B, C, *size)` with `fill` at hidden positions.

        `fill` is a number or one value a channel, `(C,)`; gradients flow to it.
        """
        block = tuple(packed.shape[2:])
        size = tuple(g * b for g, b in zip(self.shape, block, strict=True))
        rows = rows_of(packed)
        if not isinstance(fill, Tensor):
            fill = rows.new_full((), fill).expand(rows.shape[1])
        dense = _Fill.apply(rows, fill, self.scatter_index(block).flatten(), self.gather_index(block).flatten())
        return maps_of(dense, (self.batch, *size))

    def gather_index(self, block: tuple[int, ...]) -> Tensor:
        """Return the index of each packed position in the flattened dense map: int32 `(N, *block)`."""
        key = ("cell", block)
        if key not in self.tables:
            size = [g * b for g, b in zip(self.shape, block, strict=True)]
            image = torch.arange(self.batch, device=self.order.device)[:, None].expand_as(self.order)
            position = image.reshape(-1, *[1] * len(block))
            for axis, coordinate in enumerate(self._coordinates()):
                inner = along(torch.arange(block[axis], device=self.order.device), axis, len(block))
                position = position * size[axis] + (_column(coordinate, len(block)) * block[axis] + inner)
            self.tables[key] = position.to(torch.int32)
        return self.tables[key]

    def scatter_index(self, block: tuple[int, ...]) -> Tensor:
        """Return the index of each dense position among packed ones (the last one if hidden): int32 `(B, *size)`."""
        key = ("row", block)
        if key not in self.tables:
            row = mask_at(self._row_of_cell, [g * b for g, b in zip(self.shape, block, strict=True)])
            inner = torch.zeros((), dtype=torch.int64, device=row.device)
            for axis, extent in enumerate(block):
                index = torch.arange(self.shape[axis] * extent, device=row.device) % extent
                inner = inner * extent + along(index, axis, len(block))
            empty = self.patches * math.prod(block)
            table = torch.where(row == self.patches, empty, row * math.prod(block) + inner)
            self.tables[key] = table.to(torch.int32)
        return self.tables[key]

    def _coordinates(self) -> list[Tensor]:
        """Return where the packed patches lie in the grid: int64 `(N,)` for each axis."""
        cell = self.order.flatten()
        coordinates = []
        for extent in reversed(self.shape):
            coordinates.append(cell % extent)
            cell = cell // extent
        return coordinates[::-1]

    # --- neighbors ---------------------------------------------------------------------------------------------

    def neighbors(self, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """Return the packed index of the patches around each patch; N where hidden or outside.

        int64 `(N, *(before + 1 + after))`.
        """
        shape = [g + b + a for g, b, a in zip(self.shape, before, after, strict=True)]
        padded = self._row_of_cell.new_full((self.batch, *shape), self.patches)
        inside = tuple(slice(b, b + g) for b, g in zip(before, self.shape, strict=True))
        padded[(slice(None), *inside)] = self._row_of_cell
        dims = len(shape)
        image = torch.arange(self.batch, device=self.order.device)[:, None].expand_as(self.order)
        position = image.reshape(-1, *[1] * dims)
        for axis, coordinate in enumerate(self._coordinates()):
            offset = along(torch.arange(before[axis] + 1 + after[axis], device=self.order.device), axis, dims)
            position = position * shape[axis] + (_column(coordinate, dims) + offset)
        return padded.flatten()[position]

    def halo(self, block: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """Return the gather index of patches with the ring around them: where each value lies among packed positions.

        int32 `(N, *(before + block + after))`, indices into the `N * prod(block)` rows of packed positions; a position
        in a hidden patch or outside the image has the index one past the last. The ring may be wider than a patch;
        a negative `before` or `after` leaves positions of the patch itself out.
        """
        key = ("halo", block, before, after)
        if key not in self.tables:
            device = self.order.device
            dims = len(block)
            first = tuple(-((-b) // e) for b, e in zip(before, block, strict=True))  # neighbors needed on each side
            first = tuple(max(f, 0) for f in first)
            last = tuple(max((e - 1 + a) // e, 0) for a, e in zip(after, block, strict=True))
            neighbor = self.neighbors(first, last)
            inner = torch.zeros((), dtype=torch.int64, device=device)
            for axis in range(dims):
                position = torch.arange(-before[axis], block[axis] + after[axis], device=device)
                patch = torch.div(position, block[axis], rounding_mode="floor")
                neighbor = neighbor.index_select(axis + 1, patch + first[axis])
                inner = inner * block[axis] + along(position % block[axis], axis, dims)
            area = math.prod(block)
            table = torch.where(neighbor == self.patches, self.patches * area, neighbor * area + inner)
            self.tables[key] = table.to(torch.int32)
        return self.tables[key]

    def readers(self, block: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """Return the adjoint of :meth:`halo`: for every packed position, the halo positions that read it.

        int32 `(N * prod(block), readers)`, indices into the flattened halo table; unused entries have the index one
        past its last.
        """
        key = ("readers", block, before, after)
        if key not in self.tables:
            device = self.order.device
            dims = len(block)
            window = tuple(b + e + a for b, e, a in zip(before, block, after, strict=True))
            # A position y is read by the patch `offset` patches away at y - offset * extent, if its window reaches it.
            first = tuple(max((e - 1 + a) // e, 0) for a, e in zip(after, block, strict=True))
            last = tuple(max(-((-b) // e), 0) for b, e in zip(before, block, strict=True))
            reader = self.neighbors(first, last).reshape(
                self.patches, *[1] * dims, *[f + 1 + s for f, s in zip(first, last, strict=True)]
            )
            within = torch.ones((), dtype=torch.bool, device=device)
            place = torch.zeros((), dtype=torch.int64, device=device)
            for axis in range(dims):
                y = along(torch.arange(block[axis], device=device), axis, 2 * dims)
                offset = along(torch.arange(-first[axis], last[axis] + 1, device=device), dims + axis, 2 * dims)
                at = y - offset * block[axis] + before[axis]
                within = within & (at >= 0) & (at < window[axis])
                place = place * window[axis] + at
            area = math.prod(window)
            valid = within & (reader != self.patches)  # the same of all patches, but for which are neighbors
            table = torch.where(valid, reader * area + place, self.patches * area)
            self.tables[key] = table.reshape(self.patches * math.prod(block), -1).to(torch.int32)
        return self.tables[key]

    def at(self, size: Sequence[int]) -> PatchGrid | CoarseGrid:
        """Return the grid of maps of spatial `size`: a coarse one if positions hold several patches, else this."""
        if all(s % g == 0 for s, g in zip(size, self.shape, strict=True)):
            return self
        return CoarseGrid(mask_at(self.visible, size))

    # --- images and their patches -------------------------------------------------------------------------------

    def by_image(self, packed: Tensor, axis: int = 0) -> Tensor:
        """Split the patch axis into (image, patch): `(..., N, ...)` to `(..., B, K, ...)`, a view."""
        return packed.unflatten(axis, (self.batch, self.visible_per_image))

    def repeat(self, values: Tensor, axis: int = 0) -> Tensor:
        """Repeat one value an image to one a patch: `(..., B, ...)` to `(..., N, ...)`."""
        return values.repeat_interleave(self.visible_per_image, dim=axis)


class CoarseGrid:
    """The visible part of maps whose positions hold several patches each.

    A position is visible if one of its patches is. Images differ in how many are, and most are, so nothing is packed:
    maps are `(B, C, *size)`, of no meaning where hidden.

    Args:
        visible: bool `(B, *size)`, True = visible.
    """

    def __init__(self, visible: Tensor) -> None:
        self.visible = visible

    def pack(self, dense: Tensor) -> Tensor:
        """Return `dense` `(B, C, *size)` itself."""
        return dense

    def unpack(self, packed: Tensor, fill: Tensor | float = 0.0) -> Tensor:
        """Fill hidden positions of `(B, C, *size)` with `fill`, a number or one value a channel."""
        if isinstance(fill, Tensor):
            fill = fill.to(packed.dtype).view(-1, *[1] * (packed.ndim - 2))
        return torch.where(self.visible.unsqueeze(1), packed, fill)


class _Fill(torch.autograd.Function):
    """Rows laid out on a map, and one row `fill` at all other positions.

    Takes :meth:`PatchGrid.scatter_index` and :meth:`PatchGrid.gather_index`, both flattened. The adjoint of a plain
    gather would add up the gradient of `fill` one position after the other, in the map's own precision: in bf16 a sum
    stops growing at 256 times what is added.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, rows: Tensor, fill: Tensor, scatter_index: Tensor, gather_index: Tensor
    ) -> Tensor:
        ctx.save_for_backward(scatter_index, gather_index)
        ctx.fill = fill.dtype
        return torch.cat([rows, fill.to(rows.dtype)[None]]).index_select(0, scatter_index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scatter_index, gather_index = ctx.saved_tensors
        need_rows, need_fill = ctx.needs_input_grad[:2]
        of_rows = grad.index_select(0, gather_index) if need_rows else None
        hidden = (scatter_index == len(gather_index)).to(grad.dtype)
        of_fill = (hidden[None] @ grad)[0].to(ctx.fill) if need_fill else None  # adds up in float32, rounds once
        return of_rows, of_fill, None, None


def has_mask(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Return whether, along each axis, positions of a map of `size` lie in one patch of a grid or hold whole ones."""
    return len(size) == len(grid) and all(s > 0 and (s % g == 0 or g % s == 0) for s, g in zip(size, grid, strict=True))


def mask_at(visible: Tensor, size: Sequence[int]) -> Tensor:
    """Return a mask `(B, *grid)` at the resolution of a map, `(B, *size)`.

    A position that holds several patches is visible if one of them is. Raises ValueError where positions and patches
    straddle each other.
    """
    grid = tuple(visible.shape[1:])
    if not has_mask(grid, size):
        raise ValueError(f"a map of {tuple(size)} positions cannot be cut into a grid of {grid} patches")
    for axis, extent in enumerate(size, start=1):
        patches = visible.shape[axis]
        if extent % patches == 0:
            visible = visible.repeat_interleave(extent // patches, dim=axis)
        else:
            visible = visible.unflatten(axis, (extent, patches // extent)).any(axis + 1)
    return visible


def _block_size(grid: tuple[int, ...], size: Sequence[int]) -> tuple[int, ...]:
    if len(size) != len(grid) or any(s % g for s, g in zip(size, grid, strict=True)):
        raise ValueError(f"a map of {tuple(size)} positions cannot be cut into a grid of {grid} patches")
    return tuple(s // g for s, g in zip(size, grid, strict=True))


def rows_of(maps: Tensor) -> Tensor:
    """Return `(N, C, *size)` as a matrix `(N * prod(size), C)`; a view if the channels are last in memory."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def maps_of(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert :func:`rows_of`: `(n * prod(size), C)` to `(n, C, *size)` for `shape = (n, *size)`, a view."""
    return rows.view(*shape, rows.shape[-1]).movedim(-1, 1)


def along(index: Tensor, axis: int, dims: int) -> Tensor:
    """Return a 1-D index as the given one of the last `dims` axes of a table."""
    return index.view(-1, *[1] * (dims - 1 - axis))


def _column(values: Tensor, dims: int) -> Tensor:
    return values.view(-1, *[1] * dims)
