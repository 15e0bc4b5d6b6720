"""The photographs that come with scikit-image."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ..decoding.jpeg import Reduction
from .folder import Files

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
"""Files of scikit-image that are photographs and need no download."""


class Photographs(Files):
    """A few image files, decoded once, reduced to a shorter side of 384 pixels, and kept in memory."""

    SHORTER_SIDE = 384

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        super().__init__(root, names)
        self._decoded: dict[tuple[int, int], Tensor] = {}

    def read(self, index: int, channels: int, reduction: Reduction | None = None) -> Tensor:
        """The decoded image."""
        if (index, channels) not in self._decoded:
            image = super().read(index, channels)
            if min(image.shape[1:]) > self.SHORTER_SIDE:
                image = resize(image, [self.SHORTER_SIDE], antialias=True)
            self._decoded[index, channels] = image
        return self._decoded[index, channels]


def builtin_photographs() -> Photographs:
    """The photographs that come with scikit-image.

    Raises:
        ValueError: without scikit-image.
    """
    try:
        root = Path(str(resources.files("skimage.data")))
    except ModuleNotFoundError:
        raise ValueError("the built-in photographs come with scikit-image: pip install scikit-image") from None
    return Photographs(root, PHOTOGRAPHS)
