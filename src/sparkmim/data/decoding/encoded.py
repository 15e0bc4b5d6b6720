"""The contract of an encoded image: its size from the header, its pixels when decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class UnreadableImage(Exception):
    """An image that cannot be decoded: the message gives the reason, and leaves the file's name to the caller."""


class EncodedImage(ABC):
    """One image of a source, decoded on demand."""

    def size(self, channels: int) -> tuple[int, int] | None:
        """Return height and width of the upright image without decoding it.

        A view then places its window first, and has no more decoded than it needs. The number of channels matters to
        arrays, which may be channels-first or channels-last, and to formats that cannot have that many.

        Returns:
            None where decoding tells as cheaply, or where no reduction can be had: the image is then decoded in full.

        Raises:
            UnreadableImage: if the header cannot be read, or the format cannot have that many channels.
        """
        return None

    @abstractmethod
    def decode(self, channels: int, reduction: int = 1) -> Tensor:
        """Decode the image.

        Args:
            channels: 1 (gray), 3 (RGB), 4 (RGBA, or four bands); any other number for arrays.
            reduction: 1, 2, 4 or 8: by what the sides may be divided, and rounded up, to decode in less time. Decoders
                may ignore it and return the whole image.

        Returns:
            `(channels, H, W)`: uint8 in 0 to 255, or float32 for images of more than 8 bits, with 65535 of 16 bits as 1
            and floating-point values unchanged.

        Raises:
            UnreadableImage: if the image cannot be decoded in full, or has another number of channels.
        """
