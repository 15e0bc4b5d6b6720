"""Boxes of tiles: placed, merged across seams, and equal to those of whole images where one tile suffices."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sparkmim.data.config import ViewConfig
from sparkmim.data.sources.address import open_source
from sparkmim.transfer.detection.tiles import TILE_OVERLAP, merge, tile_placements
from sparkmim.transfer.detection.whole import each_detected

VIEW = (32, 48)
ROWS = 40


@pytest.mark.parametrize("size", [(32, 48), (20, 30), (33, 48), (32, 49), (64, 96), (100, 31), (5, 300), (131, 207)])
def test_tiles_cover_an_image_at_its_own_resolution(size: tuple[int, int]) -> None:
    seen = np.zeros(size, int)
    for one in tile_placements(*size, VIEW):
        top, left, height, width = one.source
        assert one.size == (height, width), "not scaled"
        assert height == min(size[0], VIEW[0])
        assert width == min(size[1], VIEW[1])
        assert top >= 0
        assert left >= 0
        seen[top : top + height, left : left + width] += 1
    assert seen.min() == 1 or size[0] * size[1] > 32 * 48
    assert seen.all(), "everything is seen"
    tops = sorted({one.source[0] for one in tile_placements(*size, VIEW)})
    assert all(b - a <= (1 - TILE_OVERLAP) * VIEW[0] for a, b in pairwise(tops))


class Finds(nn.Module):
    """Finds bright rectangles of a view: a detector without weights, which sees what is in the view alone."""

    nms_thresh = 0.5

    def forward(self, images: Tensor) -> Tensor:
        rows = torch.zeros(len(images), ROWS, 6)
        for row, image in zip(rows, images, strict=True):
            for place, value in enumerate(sorted({float(v) for v in image[0].unique() if v > 0.15})):
                mask = (image[0] - value).abs() < 1e-4
                ys, xs = mask.nonzero(as_tuple=True)
                box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                area = float((box[2] - box[0]) * (box[3] - box[1]))
                row[place] = torch.tensor([*map(float, box), min(0.99, area / 1000 + 0.1), 1 + place % 1])
        return rows


def found_in(path: Path, *, tiles: bool, view: tuple[int, int] = VIEW, batch_size: int = 2) -> list[Tensor]:
    data = ViewConfig(image_size=view, mean=(0.0,) * 3, std=(1.0,) * 3)
    own = each_detected(
        Finds(),
        open_source(path),
        data,
        3,
        batch_size=batch_size,
        workers=0,
        device=torch.device("cpu"),
        tiles=tiles,
    )
    return [row[row[:, 5] > 0] for _, row in own if row is not None]


def write(path: Path, size: tuple[int, int], boxes: list[tuple[int, int, int, int]]) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right] = 50 + 10 * number
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_objects_across_seams_are_found_once(tmp_path: Path, batch_size: int) -> None:
    """No object is larger than the overlap: each is whole in some tile, and its parts in others are dropped."""
    generator = np.random.default_rng(0)
    wanted = []
    for name in range(4):
        size = (int(generator.integers(40, 120)), int(generator.integers(60, 160)))
        boxes: list[Any] = []
        for row in range(0, size[0] - 9, 10):
            for column in range(0, size[1] - 13, 14):
                if len(boxes) < 19 and generator.random() < 0.5:
                    width, height = generator.integers(5, 13), generator.integers(4, 9)
                    boxes.append((column, row, column + int(width), row + int(height)))
        write(tmp_path / f"{name}.png", size, boxes)
        wanted.append(sorted(boxes))
    found = found_in(tmp_path, tiles=True, batch_size=batch_size)
    for own, truth in zip(found, wanted, strict=True):
        assert sorted(tuple(map(int, row[:4].tolist())) for row in own) == truth
        assert own[:, 4].tolist() == sorted(own[:, 4].tolist(), reverse=True)


def test_one_tile_is_the_whole_image(tmp_path: Path) -> None:
    """Images no larger than a view are predicted as without tiles, also beside larger ones in a batch."""
    for number, size in enumerate([(32, 48), (20, 48), (16, 20), (90, 90)]):
        write(tmp_path / f"{number}.png", size, [(2, 3, 10, 12), (12, 6, 19, 15)])
    plain, tiled = found_in(tmp_path, tiles=False, batch_size=4), found_in(tmp_path, tiles=True, batch_size=4)
    for one, other in zip(plain[:3], tiled[:3], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(plain[3], tiled[3])


def test_boxes_of_other_classes_and_scores_stay() -> None:
    placements = tile_placements(32, 84, VIEW)
    first, second = torch.zeros(3, 6), torch.zeros(3, 6)
    first[0] = torch.tensor([40.0, 5, 48, 15, 0.9, 1])  # cut by the first tile's right edge
    first[1] = torch.tensor([40.0, 5, 48, 15, 0.8, 2])  # likewise, of a class that the second tile does not find
    second[0] = torch.tensor([40.0, 5, 60, 15, 0.7, 1])
    merged = merge([first, second], placements, (32, 84), 0.5)
    assert [row[4:].tolist() for row in merged] == [pytest.approx([0.8, 2]), pytest.approx([0.7, 1])]
    assert len(merge([torch.zeros(3, 6), torch.zeros(3, 6)], placements, (32, 84), 0.5)) == 0
