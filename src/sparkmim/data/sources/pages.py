"""The pages of files as images of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import FileConfig
from ..decoding.encoded import EncodedImage, UnreadableImage
from .base import ImageSource, open_image


class Pages(ImageSource):
    """The images of a source whose files hold several: a file's pages follow each other, and files keep their order.

    Args:
        source: the files.
        counts: number of images in each.
    """

    def __init__(self, source: ImageSource, counts: np.ndarray) -> None:
        self.source = source
        self.files = np.repeat(np.arange(len(counts)), counts)
        self._starts = np.cumsum(counts) - counts
        self._counts = counts

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the file's name, and of a file with several images `NAME#PAGE`, where pages count from 0."""
        file = int(self.files[index])
        name = self.source.name(file)
        return name if self._counts[file] == 1 else f"{name}#{index - self._starts[file]}"

    def open(self, index: int) -> EncodedImage:
        """Return the file, of which the page will be decoded."""
        file = int(self.files[index])
        image = self.source.open(file)
        image.page = None if self._counts[file] == 1 else int(index - self._starts[file])
        return image

    def first_indices(self) -> np.ndarray | None:
        """Return for each index the first one that shows the same page; None if every file is there once."""
        first = self.source.first_indices()
        if first is None:
            return None
        page = np.arange(len(self)) - self._starts[self.files]
        found: np.ndarray = self._starts[first[self.files]] + page
        return found

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to read files of the source."""
        self.source.prefetch([int(self.files[index]) for index in indices])


def count_pages(source: ImageSource, channels: int, files: FileConfig) -> np.ndarray | None:
    """Return the number of images in each file of a source; None if each is one image, or pages are not images.

    Files that cannot be read count as one, and turn out unreadable when they are read.

    Args:
        source: the files.
        channels: of the network.
        files: how they are read.
    """
    if files.pages != "images":
        return None
    counts = np.ones(len(source), np.int64)
    for index in range(len(source)):
        try:
            counts[index] = max(1, open_image(source, index, files).images(channels))
        except UnreadableImage:
            continue
    return None if (counts == 1).all() else counts


def by_page(source: ImageSource, channels: int, files: FileConfig) -> ImageSource:
    """Return the images of a source, where pages are images those of its files' pages; else the source itself."""
    counts = count_pages(source, channels, files)
    return source if counts is None else Pages(source, counts)
