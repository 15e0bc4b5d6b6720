"""Images with targets of any kind, and the splits of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from .config import FileConfig
from .sources.base import ImageSource, Subset
from .sources.pages import Pages, count_pages


class TargetedImages(Protocol):
    """Images of which each has a target."""

    @property
    def source(self) -> ImageSource:
        """Return the images."""

    def __len__(self) -> int:
        """Return how many there are."""

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return some of the images with their targets."""


@dataclass(frozen=True)
class ImagesWithArrays:
    """Images whose targets are numbers.

    Attributes:
        source: the images.
        targets: `(images, ...)`, in the images' order.
    """

    source: ImageSource
    targets: np.ndarray

    def __post_init__(self) -> None:
        """Validate the number of targets.

        Raises:
            ValueError: if it is not that of the images.
        """
        if len(self.source) != len(self.targets):
            raise ValueError(f"expected a target for each of {len(self.source)} images, got {len(self.targets)}")

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImagesWithArrays:
        """Return some of the images with their targets."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ImagesWithArrays(Subset(self.source, chosen), self.targets[chosen])

    def by_page(self, channels: int, files: FileConfig) -> ImagesWithArrays:
        """Return the pages of files that hold several images, each with its file's target."""
        counts = count_pages(self.source, channels, files)
        return (
            self if counts is None else ImagesWithArrays(Pages(self.source, counts), np.repeat(self.targets, counts, 0))
        )

    def digest(self) -> str:
        """Return a short digest of the targets."""
        return hashlib.sha256(np.ascontiguousarray(self.targets).tobytes()).hexdigest()[:16]


ImagesT = TypeVar("ImagesT", bound=TargetedImages)


class Splits(NamedTuple, Generic[ImagesT]):
    """Images to train on, to validate with, and to score the result on."""

    train: ImagesT
    val: ImagesT | None
    test: ImagesT | None


class SplitPaths(NamedTuple):
    """Where the splits of a data set are."""

    train: Path
    val: Path | None
    test: Path | None


def split_paths(data: str, val_data: str | None, test_data: str | None) -> SplitPaths:
    """Return where the splits are: `data` itself, or train, val and test in it where none are named."""
    root = Path(data).expanduser()
    val, test = (None if path is None else Path(path).expanduser() for path in (val_data, test_data))
    if not (root / "train").is_dir():
        return SplitPaths(root, val, test)
    val = val or (root / "val" if (root / "val").is_dir() else None)
    test = test or (root / "test" if (root / "test").is_dir() else None)
    return SplitPaths(root / "train", val, test)
