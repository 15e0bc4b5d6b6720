"""Random crops of volumes and signals for training, and the central crop for evaluation.

Crops are taken at the data's own resolution, which preparation has made the same for all. Where a crop reaches beyond
a volume or a signal there is no data: these values are NaN, take no part in the loss, and patches of nothing else are
hidden first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ViewConfig
from .decoding.encoded import Croppable, UnreadableImage
from .sources.base import ImageSource, open_image

ROTATION, SCALE = math.radians(30), (0.7, 1.4)
"""Largest angle about each axis, and range of sizes, of rotated and scaled crops: those of nnU-Net and nnssl."""

ROTATED = SCALED = 0.2
"""Shares of the crops that are rotated, and that are scaled, likewise."""

TRIES = 5
"""Random crops that are read before the one with the most foreground is taken."""

MOSTLY_EMPTY = 0.9
"""Share of a crop with one value, that of the background, above which another crop is tried."""

NUMBERS = 8
"""Random numbers drawn for a crop beside those of its places."""


class Crop(NamedTuple):
    """The place of a view in a volume or a signal, in voxels or samples.

    Attributes:
        start: first voxel along each axis; negative where the view begins before the data.
        matrix: from steps between voxels of the view to steps in the data, `(d, d)`; None if they are the same.
        flip: whether each axis is reversed.
    """

    start: tuple[int, ...]
    matrix: Tensor | None = None
    flip: tuple[bool, ...] = ()


class CropView:
    """The central crop of a volume or a signal.

    Attributes:
        config: size of views, and whether they are flipped.
    """

    def __init__(self, config: ViewConfig) -> None:
        self.config = config

    def look(self, source: ImageSource, index: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
        """Read the view of one item of a source.

        Returns:
            `(C, *image_size)` in float32, NaN where there is no data.

        Raises:
            UnreadableImage: if it cannot be read, or has another number of axes or channels.
        """
        return self.look_and_tell(source, index, channels, generator)[0]

    def look_and_tell(
        self, source: ImageSource, index: int, channels: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Crop]:
        """Read a view as :meth:`look` does; return its place too."""
        whole = open_image(source, index, self.config)
        if not isinstance(whole, Croppable) or len(whole.shape) != 1 + len(self.size):
            found = "a picture" if not isinstance(whole, Croppable) else f"of {len(whole.shape) - 1} axes"
            raise UnreadableImage(f"it is {found}, and the network takes data of {len(self.size)} axes")
        if whole.shape[0] != channels:
            raise UnreadableImage(f"it has {whole.shape[0]} channels, not {channels}")
        return self.choose(whole, whole.shape[1:], generator)

    @property
    def size(self) -> tuple[int, ...]:
        """Return the voxels or samples of a view along each axis."""
        return tuple(self.config.image_size)

    def choose(self, whole: Croppable, space: Sequence[int], generator: torch.Generator | None) -> tuple[Tensor, Crop]:
        """Return the view of what has the size `space`, and its place."""
        crop = Crop(central_start(space, self.size))
        return cut(whole, crop, self.size), crop


class CropTrainingView(CropView):
    """A crop at a random place, flipped along each axis, rotated and scaled at random, that is not empty.

    Source: nnssl's default augmentation, and nnU-Net's, which rotate and scale a fifth of the crops each.

    Args:
        config: size of views, and whether they are flipped.
        rotate: rotate and scale a share of the crops.
    """

    def __init__(self, config: ViewConfig, *, rotate: bool = True) -> None:
        super().__init__(config)
        self.rotate = rotate

    def choose(self, whole: Croppable, space: Sequence[int], generator: torch.Generator | None) -> tuple[Tensor, Crop]:
        """Return a random crop and its place: the first of several that is not empty, or the least empty one."""
        dims = len(self.size)
        numbers = torch.rand(NUMBERS + dims * TRIES, generator=generator, dtype=torch.float64).tolist()
        matrix = self._matrix(numbers[:NUMBERS]) if self.rotate else None
        flip = tuple(bits == "1" for bits in f"{int(numbers[NUMBERS - 1] * 2**dims):0{dims}b}")
        flip = flip if self.config.flip else (False,) * dims
        best: tuple[float, Tensor, Crop] | None = None
        for attempt in range(TRIES):
            places = numbers[NUMBERS + dims * attempt : NUMBERS + dims * (attempt + 1)]
            start = tuple(_place(s, w, place) for s, w, place in zip(space, self.size, places, strict=True))
            crop = Crop(start, matrix, flip)
            view = cut(whole, crop, self.size)
            empty = background_share(view)
            if best is None or empty < best[0]:
                best = empty, view, crop
            if empty <= MOSTLY_EMPTY or all(s <= w for s, w in zip(space, self.size, strict=True)):
                break
        assert best is not None
        return best[1:]

    def _matrix(self, numbers: Sequence[float]) -> Tensor | None:
        """Return a random rotation and scaling of the steps between voxels; None for neither."""
        dims = len(self.size)
        rotated, scaled, size, *angles = numbers
        if rotated >= ROTATED and scaled >= SCALED:
            return None
        matrix = torch.eye(dims, dtype=torch.float64)
        if rotated < ROTATED:
            planes = [(a, b) for a in range(dims) for b in range(a + 1, dims)]
            for (a, b), number in zip(planes, angles, strict=False):
                matrix = matrix @ _rotation(dims, a, b, (2 * number - 1) * ROTATION)
        if scaled < SCALED:
            low, high = SCALE
            matrix = matrix * (low * (high / low) ** size)
        return matrix


def cut(whole: Croppable, crop: Crop, size: Sequence[int]) -> Tensor:
    """Cut a view of `size` voxels or samples, NaN beyond the data; only what it needs is read."""
    view = _straight(whole, crop.start, size) if crop.matrix is None else _turned(whole, crop, size)
    axes = [axis for axis, flipped in enumerate(crop.flip, start=1) if flipped]
    return view.flip(axes) if axes else view


def central_start(space: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """Return the voxel of a volume at which its central view begins; negative where the view reaches beyond it."""
    return tuple((s - w) // 2 for s, w in zip(space, size, strict=True))


def background_share(view: Tensor) -> float:
    """Return the share of a view's voxels that have its least value, or no data, in all channels."""
    flat = view.flatten(1)
    known = ~flat.isnan()
    if not known.any():
        return 1.0
    least = flat.nan_to_num(math.inf).amin(1, keepdim=True)
    return float(((flat == least) | ~known).all(0).float().mean())


def _place(extent: int, wanted: int, fraction: float) -> int:
    """Return a random start: within the volume, or, where it is smaller than the view, so that it lies in the view."""
    low, high = min(0, extent - wanted), max(0, extent - wanted)
    return low + int(fraction * (high - low + 1))


def _straight(whole: Croppable, start: Sequence[int], size: Sequence[int]) -> Tensor:
    channels, *space = whole.shape
    inside = [(max(0, a), min(s, a + w)) for a, w, s in zip(start, size, space, strict=True)]
    view = torch.full((channels, *size), torch.nan)
    if all(a < b for a, b in inside):
        place = tuple(slice(a - first, b - first) for (a, b), first in zip(inside, start, strict=True))
        view[(slice(None), *place)] = whole.crop([a for a, _ in inside], [b for _, b in inside])
    return view


def places_in_whole(crop: Crop, size: Sequence[int], at: Sequence[Tensor]) -> Tensor:
    """Return where points of a view lie in what it was cut out of, `(*points, d)`, in voxels of that.

    Args:
        crop: the place of the view.
        size: voxels of the view along each axis.
        at: the points' coordinates along each axis of the view, in its voxels; all combinations are points.
    """
    flip = crop.flip or (False,) * len(size)
    along = [w - 1 - c if flipped else c for c, w, flipped in zip(at, size, flip, strict=True)]
    points = torch.stack(torch.meshgrid(*along, indexing="ij"), -1).double()
    first = torch.tensor(crop.start, dtype=torch.float64)
    if crop.matrix is None:
        return points + first
    middle = torch.tensor([(w - 1) / 2 for w in size], dtype=torch.float64)
    return (points - middle) @ crop.matrix.T + (first + middle)


class Placed(NamedTuple):
    """The places of a rotated and scaled view in a volume.

    Attributes:
        places: of each voxel of the view, `(*size, d)`, in voxels of the volume.
        low: first voxel of the part that is read, along each axis.
        read: its voxels along each axis.
    """

    places: Tensor
    low: list[int]
    read: list[int]

    def grid(self) -> Tensor:
        """Return the places for `grid_sample`: -1 and 1 at the middles of the part's ends, the last axis first."""
        extent = torch.tensor(self.read, dtype=torch.float64)
        return ((self.places - torch.tensor(self.low)) / (extent - 1) * 2 - 1).flip(-1)


def places_of_crop(crop: Crop, size: Sequence[int]) -> Placed:
    """Return where the voxels of a rotated and scaled view lie, about the center of the crop."""
    unflipped = crop._replace(flip=())
    places = places_in_whole(unflipped, size, [torch.arange(w, dtype=torch.float64) for w in size])
    low = places.flatten(0, -2).amin(0).floor().int().tolist()
    high = places.flatten(0, -2).amax(0).floor().int().tolist()
    return Placed(places, low, [b - a + 2 for a, b in zip(low, high, strict=True)])


def _turned(whole: Croppable, crop: Crop, size: Sequence[int]) -> Tensor:
    """Interpolate linearly at the places of a rotated and scaled view."""
    placed = places_of_crop(crop, size)
    dims = len(size)
    region = _straight(whole, placed.low, placed.read)
    grid = placed.grid().float()
    known = torch.cat([region.nan_to_num(0.0), (~region.isnan()).float()])
    if dims == 1:
        grid, known = torch.stack([grid[..., 0], torch.zeros_like(grid[..., 0])], -1)[None], known[:, None]
    sampled = F.grid_sample(known[None], grid[None], align_corners=True)[0]
    values, weights = (sampled[:, 0] if dims == 1 else sampled).chunk(2)
    return torch.where(weights > 0.5, values / weights.clamp_min(1e-6), torch.nan)


def _rotation(dims: int, a: int, b: int, angle: float) -> Tensor:
    """Return the rotation in the plane of two axes."""
    matrix = torch.eye(dims, dtype=torch.float64)
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return matrix
