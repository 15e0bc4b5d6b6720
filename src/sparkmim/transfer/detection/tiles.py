"""Detect objects in images larger than a view: by overlapping tiles at the image's own resolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ...utils.axes import starts
from .views import Placement

TILE_OVERLAP = 0.25
"""Share of a tile that the next one shows too, at least: objects up to that are whole in one of them."""

EDGE = 1.0
"""Pixels of a tile's inner edge at which a box ends that is cut by it."""

COVERED = 0.7
"""Share of a cut box's area within a box of the same class of another tile, from which on it is a part of that."""


def tile_placements(height: int, width: int, view: Sequence[int]) -> list[Placement]:
    """Return the tiles of an image at its own resolution; one, if it fits in a view.

    Args:
        height: of the image, in pixels.
        width: likewise.
        view: height and width of a view.
    """
    sides = [min(extent, side) for extent, side in zip((height, width), view, strict=True)]
    corners = product(
        *(starts(extent, side, TILE_OVERLAP) for extent, side in zip((height, width), sides, strict=True))
    )
    return [Placement((top, left, sides[0], sides[1]), (sides[0], sides[1]), (0, 0)) for top, left in corners]


def merge(rows: Sequence[Tensor], placements: Sequence[Placement], size: tuple[int, int], overlap: float) -> Tensor:
    """Return the detections of an image from those of its tiles, in the order of their scores.

    A box that ends at a tile's inner edge shows a part of an object: it is dropped where a box of its class from
    another tile covers it. Of boxes of a class that overlap, the one of the highest score is kept, as within a tile.

    Args:
        rows: of each tile `(D, columns)`, in pixels of the image; those that there are not have the class 0.
        placements: of the tiles.
        size: height and width of the image.
        overlap: intersection over union from which on boxes of a class are the same object.
    """
    if len(rows) == 1:
        return rows[0]
    found = [row[row[:, 5] > 0] for row in rows]
    table = torch.cat(found)
    tile = torch.cat([torch.full((len(part),), place) for place, part in enumerate(found)])
    cut = torch.cat([_cut(part[:, :4], one, size) for part, one in zip(found, placements, strict=True)])
    table = table[~_covered(table, tile, cut)]
    return table[batched_nms(table[:, :4], table[:, 4], table[:, 5].long(), overlap)]


def _cut(boxes: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    """Return which boxes end at an edge of their tile that is not the image's."""
    top, left, height, width = placement.source
    edges = torch.tensor((left, top, left + width, top + height), dtype=boxes.dtype)
    inner = torch.tensor((left > 0, top > 0, left + width < size[1], top + height < size[0]))
    return (((boxes - edges).abs() <= EDGE) & inner).any(1)


def _covered(table: Tensor, tile: Tensor, cut: Tensor) -> Tensor:
    """Return which boxes are cut and lie within a box of another tile that is not, of their class."""
    covered = torch.zeros(len(table), dtype=torch.bool)
    whole = ~cut
    for place in cut.nonzero().flatten().tolist():
        others = whole & (tile != tile[place]) & (table[:, 5] == table[place, 5])
        if not others.any():
            continue
        box, boxes = table[place, :4], table[others, :4]
        shared = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp_min(0).prod(1)
        covered[place] = bool((shared >= COVERED * (box[2:] - box[:2]).prod()).any())
    return covered
