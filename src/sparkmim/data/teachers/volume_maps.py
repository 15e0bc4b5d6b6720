"""A teacher's maps of volumes in a folder, at their own resolution, and how a crop samples them.

```
FOLDER/identity.json  what they were computed by and of
FOLDER/maps.npy       float16 (positions of all volumes, channels), divided by `scale`
FOLDER/pooled.npy     float16 (volumes, channels)
FOLDER/state.npy      uint8 (volumes,): 0 not computed yet, 1 computed, 2 the volume cannot be read
```

Volumes are as large as they are, so the teacher sees tiles of its own size, and its maps have as many positions as fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...objectives.distill import TeacherTargets
from ...utils.axes import starts
from ...utils.text import counted
from ..crops import Crop, cut, places_in_whole
from ..decoding.encoded import Croppable
from .maps import TeacherMaps

OVERLAP = 0.5
"""Share of a tile that the next one shows too, at least: a position near a tile's edge counts less than one in its
middle."""


class VolumeMapsLayout:
    """The shape of a store.

    Attributes:
        sizes: positions of each volume's map along each axis.
        channels: of maps.
        stride: voxels between positions along each axis.
        pooled: channels of vectors.
        estimated: the volumes were not all measured, as for a plan, and the store of a run has another shape.
    """

    def __init__(
        self,
        extents: Sequence[Sequence[int]],
        channels: int,
        stride: Sequence[int],
        pooled: int,
        *,
        estimated: bool = False,
    ) -> None:
        self.estimated = estimated
        self.sizes = [tuple(math.ceil(n / s) for n, s in zip(extent, stride, strict=True)) for extent in extents]
        self.channels, self.stride, self.pooled = channels, tuple(stride), pooled

    @property
    def images(self) -> int:
        """Return the number of volumes."""
        return len(self.sizes)

    @cached_property
    def ends(self) -> list[int]:
        """Return the number of positions of all volumes up to each."""
        ends = [0]
        for size in self.sizes:
            ends.append(ends[-1] + math.prod(size))
        return ends

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array by the name of its file."""
        return {
            "maps": (self.ends[-1], self.channels),
            "pooled": (self.images, self.pooled),
            "state": (self.images,),
        }

    @property
    def bytes(self) -> int:
        """Return the size of all files together, in bytes."""
        return 2 * (self.ends[-1] * self.channels + self.images * self.pooled) + self.images

    def rows(self, index: int) -> slice:
        """Return the rows of the array of maps that a volume takes."""
        return slice(self.ends[index], self.ends[index + 1])

    def __str__(self) -> str:
        stride = " x ".join(map(str, self.stride))
        maps = f"maps of {self.channels} channels at every {stride} voxels"
        return f"{maps} and vectors of {self.pooled} of {counted(self.images, 'volume')}"


class VolumeTeacherMaps(TeacherMaps):
    """A store of maps of volumes to read from."""

    layout: VolumeMapsLayout

    def targets(self, index: int, place: Crop, view: Sequence[int]) -> TeacherTargets:
        """Return the teacher's map at a crop of a volume, `(1, channels, *grid)`, and its vector `(1, channels)`."""
        rows = torch.tensor(self.array("maps")[self.layout.rows(index)])
        maps = rows.T.unflatten(1, self.layout.sizes[index])
        pooled = torch.tensor(self.array("pooled")[index])
        sampled = sample_volume_map(maps, place, view, self.grid, self.layout.stride)
        return TeacherTargets(sampled.half()[None], pooled[None])


def sample_volume_map(
    maps: Float[Tensor, "channel depth height width"],
    crop: Crop,
    view: Sequence[int],
    grid: Sequence[int],
    stride: Sequence[int],
) -> Float[Tensor, "channel planes rows columns"]:
    """Sample the map of a whole volume at a crop of it, linearly, in float32.

    A position of the view that spans several of the map is the mean of as many samples. Beyond the volume the map's
    edge is repeated. A flipped crop sees the flipped map: the teacher has seen no mirror images.

    Args:
        maps: of the whole volume.
        crop: the place of the view.
        view: its voxels along each axis.
        grid: positions of the sample along each axis.
        stride: voxels between the map's positions along each axis.
    """
    steps = [n / g for n, g in zip(view, grid, strict=True)]
    fine = [max(1, math.ceil(step / s)) for step, s in zip(steps, stride, strict=True)]
    at = [
        (torch.arange(g * f, dtype=torch.float64) + 0.5) * (step / f) - 0.5
        for g, f, step in zip(grid, fine, steps, strict=True)
    ]
    places = places_in_whole(crop, view, at)
    seen = torch.tensor([n * s for n, s in zip(maps.shape[1:], stride, strict=True)], dtype=torch.float64)
    normalized = (2 * (places + 0.5) / seen - 1).flip(-1).float()  # grid_sample has the last axis first
    sampled = F.grid_sample(maps.float()[None], normalized[None], padding_mode="border", align_corners=False)
    return F.avg_pool3d(sampled, fine)[0]


class Tiled(NamedTuple):
    """What a teacher makes of a volume: a map `(channels, *size)`, and a vector `(channels,)`, the mean of tiles."""

    maps: Tensor
    pooled: Tensor


def map_of_tiles(
    run: Callable[[Tensor], tuple[Tensor, Tensor]], volume: Croppable, tile: Sequence[int], stride: Sequence[int]
) -> Tiled:
    """Compute a teacher's map of a volume by overlapping tiles, weighted by how far a position is from a tile's edge.

    Args:
        run: returns map and vector of a tile `(1, C, *tile)`, NaN where there is no data.
        volume: prepared.
        tile: voxels of a tile along each axis.
        stride: voxels between the map's positions; it divides the tile.
    """
    size = [math.ceil(n / s) for n, s in zip(volume.shape[1:], stride, strict=True)]
    span = [t // s for t, s in zip(tile, stride, strict=True)]
    total = weights = None
    vectors = []
    for corner in tile_corners(size, span):
        view = cut(volume, Crop(tuple(c * s for c, s in zip(corner, stride, strict=True))), tile)
        maps, pooled = run(view[None])
        weight = _weight(span).to(maps.device)
        if total is None or weights is None:
            total = maps.new_zeros(maps.shape[1], *(max(n, m) for n, m in zip(size, span, strict=True)))
            weights = maps.new_zeros(total.shape[1:])
        part = tuple(slice(c, c + m) for c, m in zip(corner, span, strict=True))
        total[(slice(None), *part)] += maps[0] * weight
        weights[part] += weight
        vectors.append(pooled[0])
    assert total is not None
    assert weights is not None
    inside = tuple(slice(0, n) for n in size)
    return Tiled((total / weights)[(slice(None), *inside)], torch.stack(vectors).mean(0))


def tile_corners(size: Sequence[int], span: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Return the first position of each tile along each axis; the last tiles end with the map."""
    return product(*(starts(max(n, m), m, OVERLAP) for n, m in zip(size, span, strict=True)))


def _weight(span: Sequence[int]) -> Tensor:
    """Return how much each position of a tile counts: the product over axes of its distance from the edge."""
    weight = torch.ones(())
    for m in span:
        steps = torch.arange(m)
        weight = weight[..., None] * torch.minimum(steps + 1, m - steps)
    return weight
