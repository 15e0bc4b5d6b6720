"""The photographs that come with scikit-image."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ..decoding.encoded import EncodedImage
from ..decoding.images import read_image
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

SHORTER_SIDE = 384
"""Pixels of a photograph's shorter side, at most."""


class Photographs(Files):
    """A few image files, decoded once, resized if large, and kept in memory."""

    schemes = ("builtin",)

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> Photographs:
        """Open the built-in photographs; the rest of the address is empty."""
        if rest:
            raise ValueError("expected builtin:// with nothing after it")
        return builtin_photographs()

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        super().__init__(root, names)
        self._images = [Photograph(root / name) for name in names]

    def open(self, index: int) -> EncodedImage:
        """Return the photograph."""
        return self._images[index]


class Photograph(EncodedImage):
    """An image that is decoded once for each number of channels, and resized."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoded: dict[int, Tensor] = {}

    def decode(self, channels: int, reduction: int = 1) -> Tensor:
        """Return the whole image."""
        if channels not in self._decoded:
            image = read_image(self._path, channels)
            if min(image.shape[1:]) > SHORTER_SIDE:
                image = resize(image, [SHORTER_SIDE], antialias=True)
            self._decoded[channels] = image
        return self._decoded[channels]


def builtin_photographs() -> Photographs:
    """Open the photographs that come with scikit-image.

    Raises:
        ValueError: if scikit-image is not installed.
    """
    try:
        root = Path(str(resources.files("skimage.data")))
    except ModuleNotFoundError:
        raise ValueError("the built-in photographs are part of scikit-image: pip install scikit-image") from None
    return Photographs(root, PHOTOGRAPHS)
