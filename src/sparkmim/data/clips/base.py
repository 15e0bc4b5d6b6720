"""The contract of a clip: how long and how large it is, and any of its frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..decoding.encoded import EncodedImage, UnreadableImage, require_pixels
from ..statistics import spread_indices

DECODED = 8
"""Frames, spread over a clip, that stand for all of it where it is measured."""


class ClipSize(NamedTuple):
    """The size of a clip.

    Attributes:
        frames: their number.
        height: of each, in pixels.
        width: likewise.
        rate: frames a second; None if it is not known.
    """

    frames: int
    height: int
    width: int
    rate: float | None = None


class Clip(EncodedImage):
    """A clip, some frames of which are read.

    Attributes:
        stride: frames from one of a view to the next.
    """

    stride: int = 1

    @abstractmethod
    def measure(self, channels: int) -> ClipSize:
        """Return the size of the clip, decoding no more than a frame.

        Raises:
            UnreadableImage: if it cannot be read.
        """

    @abstractmethod
    def read(self, indices: Sequence[int], channels: int, reduction: int = 1) -> list[Tensor]:
        """Decode some frames.

        Args:
            indices: of the frames, from 0, ascending.
            channels: as for :meth:`EncodedImage.decode`.
            reduction: likewise.

        Returns:
            `(channels, H, W)` for each.

        Raises:
            UnreadableImage: if one cannot be read.
        """

    def frames(self, indices: Sequence[int], channels: int, reduction: int = 1) -> Tensor:
        """Decode some frames to `(channels, frames, H, W)`, see :meth:`read`.

        Raises:
            UnreadableImage: if one cannot be read, or they are not of one size.
        """
        found = self.read(indices, channels, reduction)
        for index, frame in zip(indices, found, strict=True):
            if frame.shape != found[0].shape:
                first, other = ("x".join(map(str, part.shape[1:])) for part in (found[0], frame))
                raise UnreadableImage(f"frame {indices[0]} has {first} pixels, and frame {index} {other}; resize them")
        if len({frame.dtype for frame in found}) > 1:
            raise UnreadableImage("some frames are of 8 bits, and others are not; convert them")
        return torch.stack(found, 1)

    def decode(self, channels: int, reduction: int = 1) -> Tensor:
        """Decode a few frames spread over the clip, `(channels, frames, H, W)`; see :meth:`EncodedImage.decode`."""
        size = self.measure(channels)
        require_pixels(size.height, size.width, self.files)
        return self.frames(spread_indices(DECODED, size.frames), channels, reduction)
