"""The contract of an image source, subsets of sources, and the fingerprint of a set of images."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ...utils.text import counted, printable, verb
from ..config import FileConfig
from ..decoding.encoded import EncodedImage
from ..seeding import Stream, keyed_generator
from ..storage.names import Names


class ImageSource(ABC):
    """A numbered collection of images.

    A class can be opened by address, see :func:`~sparkmim.data.sources.address.open_source`, as `FILE.py:CLASS://rest`;
    in a module of this package also by its schemes. Worker processes read from one object each: it must survive a fork
    and pickling, so a file that is read from is opened anew in each process.

    Attributes:
        schemes: what stands before `://` in addresses that the class opens.
        settings_type: a frozen dataclass of the source's settings, each with a docstring and a default; None if the
            source has none.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    settings_type: ClassVar[type[Any] | None] = None

    @classmethod
    def from_address(cls, rest: str, settings: Any) -> ImageSource:
        """Open a source.

        Args:
            rest: what follows `://` in the address.
            settings: an instance of `settings_type`; None if the class has none.

        Raises:
            ValueError: if there is no image at the address, with the remedy.
        """
        raise ValueError(f"{cls.__name__} cannot be opened by address; define its class method from_address")

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an image: unique, the same in every run, and shown in messages."""

    @abstractmethod
    def open(self, index: int) -> EncodedImage:
        """Return an image, encoded.

        Raises:
            UnreadableImage: if it cannot be found or read.
        """

    def each_name(self) -> Iterator[str]:
        """Yield the names of all images in order, which may take less time than to ask for each."""
        return (self.name(index) for index in range(len(self)))

    def names_ended_by_zeros(self) -> Iterator[bytes]:
        """Yield the names of all images in order in blocks of bytes, a zero byte after each; for their digest."""
        return (name.encode(errors="surrogateescape") + b"\0" for name in self.each_name())

    def first_indices(self) -> np.ndarray | None:
        """Return for each index the first one that shows the same image; None if every image is there once."""
        return None

    def prefetch(self, indices: Sequence[int]) -> None:  # noqa: B027
        """Begin to read images that will be opened next, where many are read at a time in less time than in turn."""

    def class_names(self) -> list[str] | None:
        """Return the class of each image; None if the source does not know.

        Raises:
            ValueError: if some have none.
        """
        return None

    def folders_of_names(self) -> list[str]:
        """Return the first folder in the name of each image, which is its class as in a folder of class folders.

        Raises:
            ValueError: if an image lies in none.
        """
        parts = [name.partition("/") for name in self.each_name()]
        loose = [name for name, slash, _ in parts if not slash]
        if loose:
            raise ValueError(
                f"{len(loose)} of {len(parts)} images "
                f"{verb(len(loose), 'lie')} outside of class folders, such as {printable(loose[0])}"
            )
        return [folder for folder, _, _ in parts]


class NamedImages(ImageSource):
    """Images whose names are known.

    Args:
        names: of the images, in order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = names if isinstance(names, Names) else Names.of(names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return the name of an image."""
        return self._names[index]

    def each_name(self) -> Iterator[str]:
        """Yield the names of all images."""
        return iter(self._names)

    def names_ended_by_zeros(self) -> Iterator[bytes]:
        """Yield the names of all images in blocks of bytes, a zero byte after each."""
        if type(self).each_name is not NamedImages.each_name:  # a class of its own names them otherwise
            return super().names_ended_by_zeros()
        return self._names.ended_by_zeros()


class Subset(ImageSource):
    """Some of a source's images."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Return the name that the image has in the source."""
        return self.source.name(int(self.indices[index]))

    def open(self, index: int) -> EncodedImage:
        """Return the image from the source."""
        return self.source.open(int(self.indices[index]))

    def first_indices(self) -> np.ndarray | None:
        """Return for each index the first one that shows the same image; None if every image is there once."""
        whole = self.source.first_indices()
        if whole is None:
            return None
        _, first, number = np.unique(whole[self.indices], return_index=True, return_inverse=True)
        found: np.ndarray = first[number]
        return found

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to read images of the source."""
        self.source.prefetch([int(self.indices[index]) for index in indices])


def inside_of(rest: str) -> tuple[str, str]:
    """Return what stands before and behind the last `#` of an address; nothing behind where that is part of a path."""
    before, found, behind = rest.rpartition("#")
    return (before, behind) if found and before and not os.path.exists(rest) else (rest, "")


def whole_of(source: ImageSource) -> ImageSource:
    """Return the source that a subset, or a subset of one, is part of; any other source itself."""
    while isinstance(source, Subset):
        source = source.source
    return source


def indices_in_whole(source: ImageSource) -> np.ndarray:
    """Return the index that each image of a source has in :func:`whole_of` it."""
    indices = np.arange(len(source))
    while isinstance(source, Subset):
        indices, source = source.indices[indices], source.source
    return indices


def open_image(source: ImageSource, index: int, files: FileConfig) -> EncodedImage:
    """Return an image of a source, encoded, that will be decoded as the settings say.

    Raises:
        UnreadableImage: if it cannot be found or read.
    """
    image = source.open(index)
    image.files = files
    return image


def held_out(source: ImageSource, share: float, seed: int) -> tuple[ImageSource, ImageSource]:
    """Split a source at random into images to train on and a held-out share of at least one image.

    An image that a source shows several times is held out as a whole, and is there once.

    Raises:
        ValueError: if the share leaves no image on one side.
    """
    first = source.first_indices()
    images = None if first is None else np.unique(first)
    size = len(source) if images is None else len(images)
    count = max(1, round(share * size))
    if not 0 < share < 1 or count >= size:
        raise ValueError(f"cannot hold out a share of {share} of {counted(size, 'image')}; see --val-share")
    order = torch.randperm(size, generator=keyed_generator(seed, Stream.HELD_OUT)).numpy()
    order = order if images is None else images[order]
    out = np.sort(order[:count])
    rest = np.sort(order[count:]) if first is None else np.flatnonzero(~np.isin(first, out))
    return Subset(source, rest), Subset(source, out)


def fingerprint(source: ImageSource) -> str:
    """Return a short digest of the names of a source's images, which differs between sets of images."""
    digest = hashlib.sha256()
    for block in source.names_ended_by_zeros():
        digest.update(block)
    return digest.hexdigest()[:16]
