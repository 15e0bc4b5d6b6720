"""A teacher's maps of whole images in a folder, and how a view samples them.

```
FOLDER/identity.json  what they were computed by and of
FOLDER/maps.npy       float16 (images, ways, channels, height, width), divided by `scale`; ways: as it is, mirrored
FOLDER/pooled.npy     float16 (images, ways, channels)
FOLDER/state.npy      uint8 (images,): 0 not computed yet, 1 computed, 2 the image cannot be read
```
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import roi_align

from ...objectives.distill import TeacherTargets
from ...utils.io import read_json
from ...utils.text import counted
from ..crops import Crop, CropView
from ..decoding.encoded import UnreadableImage
from ..sources.base import ImageSource
from ..views import View, Window

COMPUTED, UNREADABLE = 1, 2
"""States of an image; 0 is not computed yet."""


class StoreLayout(Protocol):
    """The shape of a store, and what it is called."""

    @property
    def images(self) -> int:
        """Return the number of images."""

    @property
    def estimated(self) -> bool:
        """Return whether the store of a run may have another shape."""

    @property
    def channels(self) -> int:
        """Return the channels of maps."""

    @property
    def pooled(self) -> int:
        """Return the channels of vectors."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array by the name of its file."""

    @property
    def bytes(self) -> int:
        """Return the size of all files together, in bytes."""


class MapsLayout(NamedTuple):
    """The shape of a store.

    Attributes:
        images: number of images.
        ways: 2 with mirrors, else 1.
        channels: of maps.
        size: height and width of maps.
        pooled: channels of vectors.
    """

    images: int
    ways: int
    channels: int
    size: tuple[int, int]
    pooled: int

    @property
    def estimated(self) -> bool:
        """Return whether the store of a run may have another shape: not that of images."""
        return False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each array by the name of its file."""
        return {
            "maps": (self.images, self.ways, self.channels, *self.size),
            "pooled": (self.images, self.ways, self.pooled),
            "state": (self.images,),
        }

    @property
    def bytes(self) -> int:
        """Return the size of all files together, in bytes."""
        return 2 * self.images * self.ways * (self.channels * math.prod(self.size) + self.pooled) + self.images

    def rows(self, index: int) -> int:
        """Return the row of the array of maps that an image takes."""
        return index

    def __str__(self) -> str:
        mirrors = " and their mirrors" if self.ways > 1 else ""
        size = f"{self.channels} x {self.size[0]} x {self.size[1]}"
        return f"maps of {size} and vectors of {self.pooled} of {counted(self.images, 'image')}{mirrors}"


class TeacherMaps(ABC):
    """A store to read from; each process opens its files when it first reads.

    Args:
        folder: of the store.
        layout: of it.
        grid: positions of samples along each axis: of the student's deepest map.
        blank: give zeros where there is no store of this layout yet, as the plan of a run does.
    """

    def __init__(self, folder: Path, layout: StoreLayout, grid: Sequence[int], *, blank: bool = False) -> None:
        self.folder, self.layout, self.grid, self.blank = folder, layout, tuple(grid), blank
        self._arrays: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    def array(self, name: str) -> np.ndarray:
        """Return an array of the store, opened once."""
        if name not in self._arrays:
            self._arrays[name] = open_array(self.folder, name, self.layout)
        return self._arrays[name]

    def sample(self, index: int, place: Any, view: Sequence[int]) -> TeacherTargets:
        """Return the teacher's map at a view of an image, `(1, channels, *grid)`, and its vector `(1, channels)`.

        Args:
            index: of the image.
            place: of the view: a Window of an image, a Crop of a volume.
            view: its pixels or voxels along each axis.

        Raises:
            UnreadableImage: if the teacher could not read the image.
        """
        if self.blank and (self.layout.estimated or not (self.folder / "state.npy").is_file()):
            return TeacherTargets(
                torch.zeros(1, self.layout.channels, *self.grid, dtype=torch.float16),
                torch.zeros(1, self.layout.pooled, dtype=torch.float16),
            )
        state = int(self.array("state")[index])
        if state != COMPUTED and not self.blank:
            raise UnreadableImage("the teacher could not read it" if state == UNREADABLE else "the teacher has no map")
        return self.targets(index, place, view)

    @abstractmethod
    def targets(self, index: int, place: Any, view: Sequence[int]) -> TeacherTargets:
        """Return what :meth:`sample` does, of an image that the store has."""


class ImageTeacherMaps(TeacherMaps):
    """A store of maps of images to read from."""

    layout: MapsLayout

    def targets(self, index: int, place: Window, view: Sequence[int]) -> TeacherTargets:
        """Return the teacher's map at a view of an image; a flipped one sees the map of the mirror image."""
        way = int(place.flip)
        maps = torch.from_numpy(np.array(self.array("maps")[index, way]))
        pooled = torch.from_numpy(np.array(self.array("pooled")[index, way]))
        return TeacherTargets(sample_map(maps, place, view, self.grid).half()[None], pooled[None])


class Taught(NamedTuple):
    """A view, and what the teacher makes of it."""

    view: Tensor
    targets: TeacherTargets


class TaughtView:
    """Look at an image, and sample the teacher's map where the view is."""

    def __init__(self, view: View | CropView, maps: TeacherMaps) -> None:
        self.view, self.maps = view, maps

    def look(self, source: ImageSource, index: int, channels: int, generator: torch.Generator | None = None) -> Taught:
        """Return a view with its targets.

        Raises:
            UnreadableImage: if the image cannot be decoded, or the teacher could not read it.
        """
        place: Window | Crop
        seen, place = self.view.look_and_tell(source, index, channels, generator)
        return Taught(seen, self.maps.sample(index, place, self.view.config.image_size))


def sample_map(
    maps: Float[Tensor, "channel height width"], window: Window, view: Sequence[int], grid: Sequence[int]
) -> Float[Tensor, "channel rows columns"]:
    """Sample the map of a whole image at a view, in float32; bins are averaged (RoIAlign, arXiv 1703.06870).

    Where the view reaches beyond the image the map's edge is repeated, as the view repeats the image's.

    Args:
        maps: of the whole image, of the mirrored one for a flipped view.
        window: of the view.
        view: its height and width in pixels.
        grid: rows and columns of the sample.
    """
    height, width = window.whole
    top, left, bottom, right = window.box(view)
    if window.flip:
        left, right = width - right, width - left
    tall, wide = maps.shape[1] / height, maps.shape[2] / width
    box = torch.tensor([left * wide, top * tall, right * wide, bottom * tall], dtype=torch.float32)
    edges = [max(0, math.ceil(-box[0])), max(0, math.ceil(box[2] - maps.shape[2]))]
    edges += [max(0, math.ceil(-box[1])), max(0, math.ceil(box[3] - maps.shape[1]))]
    padded = maps.float()[None]
    if any(edges):
        padded = F.pad(padded, edges, mode="replicate")
        box += torch.tensor([edges[0], edges[2], edges[0], edges[2]])
    sampled: Tensor = roi_align(padded, [box[None]], (grid[0], grid[1]), aligned=True)
    return sampled[0]


def open_array(folder: Path, name: str, layout: StoreLayout, mode: str = "r") -> np.ndarray:
    """Open a file of a store.

    Raises:
        ValueError: if it is damaged, or of another shape.
    """
    path = folder / f"{name}.npy"
    try:
        found = np.lib.format.open_memmap(path, mode=mode)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove {folder}, and it is computed anew") from error
    if found.shape != layout.shapes[name]:
        raise ValueError(f"{path} has the shape {found.shape}, not {layout.shapes[name]}; remove {folder}")
    return found  # type: ignore[no-any-return]


def read_identity(folder: Path) -> dict[str, Any]:
    """Return what a store was computed by and of, empty if there is none.

    Raises:
        ValueError: if it is damaged.
    """
    path = folder / "identity.json"
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove {folder}, and it is computed anew") from error
    return found if isinstance(found, dict) else {}
