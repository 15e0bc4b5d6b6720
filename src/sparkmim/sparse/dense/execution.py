"""The masked-dense reference: what the packed engine must equal, computed the simple and expensive way.

The whole map is kept, garbage at hidden positions included, and every operation that mixes positions is preceded and
followed by `where`, so that hidden positions are seen as what lies outside the image. (Not by a product with the mask,
as in the official `pretrain/encoder.py`: NaN times zero is NaN.) Statistics are taken over the visible positions,
picked out. It saves neither time nor memory; it is the oracle of the tests and `execution="masked-dense"`.

A position that holds several patches, where these are smaller than the network's total stride, is visible if one of
them is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import Layout
from ..reduction import Reduction
from ..window import Window, of_one_position, require_near_edges
from .mirrored import places_seen
from .whole_maps import WholeMaps, space_first


class MaskedDenseExecution(WholeMaps):
    """Runs a network on whole images as if hidden patches were outside; its maps are `(B, C, *size)`.

    Args:
        grid: the visible patches of the batch. Only its mask is used.

    Attributes:
        picks_positions: whether visible positions were picked out by the values of the mask, as statistics need them.
            A compiler cannot trace that, for their number is not known.
    """

    picks_positions = False

    def visible_rows(self, x: Tensor, layout: Layout) -> Tensor:
        self._note_picking()
        return super().visible_rows(x, layout)

    def _note_picking(self) -> None:
        if not self.compiling:
            self.picks_positions = True

    def in_patches(self, size: Sequence[int]) -> bool:
        """Return whether each position of a map of `size` lies in one patch."""
        return all(s % g == 0 for s, g in zip(size, self.visible.shape[1:], strict=True))

    def of_each_image(self, compute: Callable[[Tensor], Any], rows: Tensor, mask: Tensor) -> list[Any]:
        """Return `compute` of the visible positions `(images, positions, ...)`, of all images at once or one by one.

        They are taken one by one where they differ in number, as they may where positions hold several patches.
        """
        self._note_picking()
        numbers = mask.flatten(1).sum(1).tolist()
        if len(set(numbers)) == 1:
            return [compute(rows.unflatten(0, (len(mask), -1)))]
        return [compute(part.unsqueeze(0)) for part in rows.split(numbers)]

    def reduce_space(self, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
        order = space_first(x, layout)
        mask = self.mask_of(x, layout)

        def reduce_rows(rows: Tensor) -> Any:
            rows = rows.reshape(*rows.shape[:2], *[1] * (len(layout.space) - 1), *rows.shape[2:])
            return reduce(rows.permute([order.index(a) for a in range(x.ndim)]), axes)

        found = self.of_each_image(reduce_rows, x.permute(order)[mask], mask)
        batch = layout.batch if reduce.keep else layout.batch - sum(a < layout.batch for a in axes)
        if isinstance(found[0], Tensor):
            return torch.cat(found, batch)
        return tuple(torch.cat(parts, batch) for parts in zip(*found, strict=True))

    def reduce_batch(self, reduce: Reduction, x: Tensor, layout: Layout, axes: tuple[int, ...]) -> Any:
        if not layout.is_map:
            return reduce(x, axes)
        order = space_first(x, layout)
        rows = self.visible_rows(x, layout)
        rows = rows.reshape(len(rows), *[1] * len(layout.space), *rows.shape[1:])
        return reduce(rows.permute([order.index(a) for a in range(x.ndim)]), axes)

    def with_windows(
        self, func: Any, compute: Callable[..., Tensor], x: Tensor, window: Window, padding: Any
    ) -> Tensor:
        """Return `compute(map, padding)` of what windows see.

        That is the whole map, or each patch apart with its mirrored ring, since there a hidden position stands for
        another one to each patch that sees it.
        """
        if window.edge == "constant":
            return compute(self._entering(func, x, window), padding)
        self._note_picking()
        if self.in_patches(x.shape[2:]) and self.in_patches(window.out):
            visible = self.visible
            block = tuple(s // g for s, g in zip(x.shape[2:], self.visible.shape[1:], strict=True))
            span = tuple(lo + b + hi for lo, b, hi in zip(window.before, block, window.after, strict=True))
            window = window._replace(block=block, span=span)
            require_near_edges(func, window)
        else:
            visible = self.mask(x.shape[2:], func)
            window = of_one_position(func, window, x.shape[2:])
            block, span = window.block, window.span
        seen = [
            (image, *place)
            for image, *cell in visible.nonzero().tolist()
            for place in places_seen(visible[image].tolist(), cell, window)
        ]
        rows = x.movedim(1, -1)[torch.tensor(seen, device=x.device).unbind(1)]
        patches = compute(rows.unflatten(0, (-1, *span)).movedim(-1, 1), 0)
        out = patches.new_zeros(*visible.shape, *patches.shape[1:])
        out[visible] = patches
        behind = len(block) + 1  # (B, *grid, C, *block) to (B, C, *size)
        for _ in block:
            out = out.movedim(1, behind).flatten(behind, behind + 1)
        return out

    def _entering(self, func: Any, x: Tensor, window: Window) -> Tensor:
        """Return a map as a window sees it: hidden positions filled, and padding by `F.pad` carried out."""
        layout = self.require_map(func, x)
        x = self.where_visible(x, window.fill, func)
        return x if layout.padding is None else F.pad(x, layout.padding.sides, value=layout.padding.value)
