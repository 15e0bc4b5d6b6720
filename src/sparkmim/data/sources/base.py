"""Collections of images: the protocol, subsets, and what identifies a set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..decoding.jpeg import Reduction
from ..seeding import keyed_generator

HELD_OUT = 1
"""Key of the randomness that chooses held-out images."""


class ImageSource(Protocol):
    """A numbered collection of images."""

    def __len__(self) -> int:
        """How many there are."""

    def name(self, index: int) -> str:
        """What to call an image in messages: its path within the folder."""

    def read(self, index: int, channels: int, reduction: Reduction | None = None) -> Tensor:
        """The image `(channels, H, W)`, see :func:`~sparkmim.data.decoding.images.read_image`.

        A source need not ask by what the image may be reduced; if it does, the image is whole, or reduced by that.
        """


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
