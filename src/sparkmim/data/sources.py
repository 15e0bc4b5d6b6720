"""Where images come from: a folder, or the photographs that come with scikit-image."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from .arrays import KINDS
from .decode import read_image
from .jpeg import Reduction
from .randomness import keyed_generator

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

HELD_OUT = 1
"""Key of the randomness that chooses held-out images."""


class ImageSource(Protocol):
    """A numbered collection of images."""

    def __len__(self) -> int:
        """How many there are."""

    def name(self, index: int) -> str:
        """What to call an image in messages: its path within the folder."""

    def read(self, index: int, channels: int, reduction: Reduction | None = None) -> Tensor:
        """The image `(channels, H, W)`, see :func:`~sparkmim.data.read_image`.

        A source need not ask by what the image may be reduced; if it does, the image is whole, or reduced by that.
        """


class Files:
    """Image files below a folder.

    Their names are kept as one array of bytes, which worker processes share instead of copying.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded])

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> str:
        """The path below the folder."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

    def read(self, index: int, channels: int, reduction: Reduction | None = None) -> Tensor:
        """The decoded image."""
        return read_image(self.root / self.name(index), channels, reduction)


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


class Subset:
    """Some of a source's images."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """The name it has in the source."""
        return self.source.name(int(self.indices[index]))

    def read(self, index: int, channels: int, reduction: Reduction | None = None) -> Tensor:
        """The image as the source reads it."""
        return self.source.read(int(self.indices[index]), channels, reduction)


def find_images(folder: str | Path, flag: str = "--data") -> Files:
    """All files below a folder, however nested, whose extension is that of an image or array, in alphabetical order.

    Hidden files and folders (`.name`) are passed over. Links to folders are followed, each folder once.

    Args:
        folder: of the images.
        flag: by which the user has named it.

    Raises:
        ValueError: if there is no such folder, no image in it, or a folder below that cannot be read.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"{root} is a file; {flag} takes the folder" if root.exists() else f"there is no folder {root}; see {flag}"
        )
    Image.init()
    known = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN} | set(KINDS)
    names: list[str] = []
    others: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "lost+found")
        for file in files:
            extension = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                continue
            if extension in known:
                names.append(os.path.relpath(os.path.join(parent, file), root))
            else:
                others[extension or "no extension"] += 1
    if not names:
        found = ", ".join(f"{count} {extension}" for extension, count in others.most_common(4))
        raise ValueError(
            f"no image in {root}: it holds {found or 'no file'}; wanted are files that Pillow reads, as jpg or png"
        )
    return Files(root, sorted(names))


def _refuse(error: OSError) -> None:
    """os.walk would pass over a folder that cannot be listed, in silence."""
    raise ValueError(
        f"the folder {error.filename} cannot be read ({error.strerror}); make it readable, or name a folder without it"
    ) from error


def printable(name: str) -> str:
    """A name on one line that any terminal and file can take: line breaks and the like as Python writes them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


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


def held_out(source: ImageSource, share: float, seed: int) -> tuple[ImageSource, ImageSource]:
    """Split a source at random: what to train on, and a share of it, at least one image, held out.

    Raises:
        ValueError: if the share leaves nothing on one side.
    """
    count = max(1, round(share * len(source)))
    if not 0 < share < 1 or count >= len(source):
        raise ValueError(f"a share of {share} of {len(source)} images cannot be held out; see --val-share")
    order = torch.randperm(len(source), generator=keyed_generator(seed, HELD_OUT)).numpy()
    return Subset(source, np.sort(order[count:])), Subset(source, np.sort(order[:count]))


def fingerprint(source: ImageSource) -> str:
    """A short digest of the names of a source's images: another set of images has another one."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]
