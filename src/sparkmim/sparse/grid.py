"""Where the visible patches of a batch lie: packing, unpacking and tables of neighbors.

Packing turns a batch of images `(B, C, *size)` into the batch of their visible patches `(N, C, *size / grid)` with
`N = B * visible patches per image`: row `n` is patch `n % K` (in row-major order of the grid) of image `n // K`.
All tables are int32 tensors made on the device of the mask by operations of static shape, so building and using them
never waits for the device. What of them depends on extents alone (:mod:`sparkmim.sparse.offsets`) is made once, so that
a table of a mask takes three operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import offsets


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
        # A stable sort of "hidden" brings the visible cells to the front in row-major order, without nonzero().
        hidden = visible.flatten(1).logical_not().to(torch.uint8)
        self.order = hidden.argsort(dim=1, stable=True)[:, :visible_per_image]
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
            size = tuple(g * b for g, b in zip(self.shape, block, strict=True))
            corners, inner = offsets.of_map(self.shape, block, self.order)
            pixels = math.prod(size)
            image = torch.arange(0, self.batch * pixels, pixels, dtype=torch.int32, device=self.order.device)
            corner = corners.index_select(0, self.order.flatten()).view(self.batch, -1) + image[:, None]
            self.tables[key] = corner.view(-1, *[1] * len(block)) + inner
        return self.tables[key]

    def scatter_index(self, block: tuple[int, ...]) -> Tensor:
        """Return the index of each dense position among packed ones (the last one if hidden): int32 `(B, *size)`."""
        key = ("row", block)
        if key not in self.tables:
            area, dims = math.prod(block), len(block)
            inner = offsets.of_patch(block, self.order)
            # Axes (image, patches, pixels, patches, pixels, ...)
            within = inner.view([e for extent in block for e in (1, extent)])
            cells = self._row_of_cell()[:, :-1].reshape(self.batch, *[e for g in self.shape for e in (g, 1)])
            table = torch.add(within, cells, alpha=area).clamp_max_(self.patches * area)
            for axis in range(1, dims + 1):
                table = table.flatten(axis, axis + 1)
            self.tables[key] = table
        return self.tables[key]

    def _row_of_cell(self) -> Tensor:
        """Return the packed index of each patch of the grid, N if hidden; one more than there are, for those outside.

        int32 `(B, patches of an image + 1)`.
        """
        key = ("row of cell",)
        if key not in self.tables:
            rows = torch.arange(self.patches, dtype=torch.int32, device=self.order.device).view(self.order.shape)
            hidden = rows.new_full((self.batch, math.prod(self.shape) + 1), self.patches)
            self.tables[key] = hidden.scatter(1, self.order, rows)
        return self.tables[key]

    # --- neighbors ---------------------------------------------------------------------------------------------

    def neighbors(self, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """Return the packed index of the patches around each patch; N where hidden or outside.

        int32 `(N, *(before + 1 + after))`.
        """
        around = tuple(b + 1 + a for b, a in zip(before, after, strict=True))
        return self._neighbors(before, after)[:, :-1].unflatten(1, around)

    def _neighbors(self, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """Return what :meth:`neighbors` does, flattened, and with N in one more column: int32 `(N, around + 1)`."""
        key = ("neighbors", before, after)
        if key not in self.tables:
            cells = offsets.around_cells(self.shape, before, after, self.order)
            places = cells.index_select(0, self.order.flatten()).view(self.batch, -1)
            self.tables[key] = self._row_of_cell().gather(1, places).view(self.patches, -1)
        return self.tables[key]

    def _table(self, reads: offsets.Reads, area: int) -> Tensor:
        """Return where in rows of `area` positions a patch the places of a window lie: int32 `(N, places)`.

        One past the last for those in hidden patches and outside the image, however far: for them the sum is larger.
        """
        neighbor = self._neighbors(reads.before, reads.after).index_select(1, reads.neighbor)
        return torch.add(reads.place, neighbor, alpha=area).clamp_max_(self.patches * area)

    def halo(self, block: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """Return the gather index of patches with the ring around them: where each value lies among packed positions.

        int32 `(N, *(before + block + after))`, indices into the `N * prod(block)` rows of packed positions; a position
        in a hidden patch or outside the image has the index one past the last. The ring may be wider than a patch;
        a negative `before` or `after` leaves positions of the patch itself out.
        """
        key = ("halo", block, before, after)
        if key not in self.tables:
            window = tuple(b + e + a for b, e, a in zip(before, block, after, strict=True))
            reads = offsets.of_halo(block, before, after, self.order)
            self.tables[key] = self._table(reads, math.prod(block)).view(self.patches, *window)
        return self.tables[key]

    def columns(
        self,
        block: tuple[int, ...],
        before: tuple[int, ...],
        after: tuple[int, ...],
        kernel: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> Tensor:
        """Return what a kernel of stride 1 reads at each of its places in :meth:`halo`: int32, flattened.

        In the order `(N, *out, *kernel)`.
        """
        key = ("columns", block, before, after, kernel, dilation)
        if key not in self.tables:
            table = self.halo(block, before, after)
            for axis, (k, d) in enumerate(zip(kernel, dilation, strict=True)):
                table = table.unfold(axis + 1, (k - 1) * d + 1, 1)[..., ::d]
            self.tables[key] = table.flatten()
        return self.tables[key]

    def readers(self, block: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
        """Return the adjoint of :meth:`halo`: for every packed position, the halo positions that read it.

        int32 `(N * prod(block), readers)`, indices into the flattened halo table; unused entries have the index one
        past its last.
        """
        key = ("readers", block, before, after)
        if key not in self.tables:
            area = math.prod([b + e + a for b, e, a in zip(before, block, after, strict=True)])
            reads = offsets.of_readers(block, before, after, self.order)
            self.tables[key] = self._table(reads, area).view(self.patches * math.prod(block), -1)
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
    return maps.permute(0, *range(2, maps.ndim), 1).reshape(-1, maps.shape[1])


def maps_of(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert :func:`rows_of`: `(n * prod(size), C)` to `(n, C, *size)` for `shape = (n, *size)`, a view."""
    last = len(shape)
    return rows.view(*shape, rows.shape[-1]).permute(0, last, *range(1, last))
