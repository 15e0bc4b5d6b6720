"""Several sets of images as one, some of them shown more often than others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ...utils.text import printable
from ..decoding.encoded import EncodedImage
from ..storage.mixtures import read_mixture
from .address import open_source
from .base import ImageSource


class Mixed(ImageSource):
    """The images of several sources, those of each so often an epoch as its weight says.

    An image of weight 3 is shown three times as often as one of weight 1. The least weight counts as once an epoch. Of
    a weight between two whole numbers, that share of the images is shown once more, spread evenly over the source.

    Args:
        sources: by their addresses.
        weights: of an image of each source, above 0.
    """

    schemes: ClassVar[tuple[str, ...]] = ("mix",)

    def __init__(self, sources: dict[str, ImageSource], weights: Sequence[float]) -> None:
        self.addresses, self.sources = list(sources), list(sources.values())
        times = [weight / min(weights) for weight in weights]
        sizes = [max(1, round(time * len(source))) for time, source in zip(times, self.sources, strict=True)]
        self._ends = np.cumsum(sizes)

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> Mixed:
        """Open the addresses that a text file lists, one a line after its weight: `3 wds:///data/a/`."""
        if not rest:
            raise ValueError("expected a text file with a weight and an address in each line, such as 3 wds:///data/a/")
        entries = read_mixture(rest)
        sources: dict[str, ImageSource] = {}
        for _, address in entries:
            if address in sources:
                raise ValueError(f"{printable(address)} is listed twice; give it one line, with the sum of the weights")
            sources[address] = open_source(address, option=printable(rest))
        return cls(sources, [weight for weight, _ in entries])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[int, int, int]:
        """Return the number of an image's source, its index there, and how often it was shown before in an epoch."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, "right"))
        start = int(self._ends[number - 1]) if number else 0
        images = len(self.sources[number])
        time, inner = divmod(index - start, images)
        last = int(self._ends[number]) - start - time * images
        return number, inner if last >= images else inner * images // last, time

    def first_indices(self) -> np.ndarray:
        """Return for each index the first one that shows the same image: at first each source is shown in full."""
        first = np.arange(len(self))
        for source, end, start in zip(self.sources, self._ends, [0, *self._ends], strict=False):
            time, inner = np.divmod(first[start:end] - start, len(source))
            last = end - start - time * len(source)
            first[start:end] = start + np.where(last >= len(source), inner, inner * len(source) // last)
        return first

    def name(self, index: int) -> str:
        """Return the number of the set, the name in it and, from the second time on, how often it was shown."""
        number, inner, time = self._find(index)
        again = f" ({time + 1})" if time else ""
        return f"{number}/{self.sources[number].name(inner)}{again}"

    def open(self, index: int) -> EncodedImage:
        """Return the image from its source."""
        number, inner, _ = self._find(index)
        return self.sources[number].open(inner)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to read images of each source."""
        found: dict[int, list[int]] = {}
        for number, inner, _ in map(self._find, indices):
            found.setdefault(number, []).append(inner)
        for number, inner_ones in found.items():
            self.sources[number].prefetch(inner_ones)
