"""The contract of an encoded image: its size from the header, its pixels when decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from ..config import DEFAULT_FILES, FileConfig

CHANNELS = "a network takes the channels that it was made for (--in-chans where it is made)"
"""What is said of images with other channels than a network's, also where it is not made anew."""


class UnreadableImage(Exception):
    """An image that cannot be decoded: the message gives the reason, and leaves the file's name to the caller."""


class TooManyPixels(UnreadableImage):
    """An image of more pixels than may be decoded."""


class Box(NamedTuple):
    """A part of an image, in its pixels; `bottom` and `right` are the first row and column behind it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Return the number of rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return self.right - self.left

    @property
    def pixels(self) -> int:
        """Return the number of pixels."""
        return self.height * self.width

    def of(self, image: Tensor) -> Tensor:
        """Return the part of an image `(C, H, W)`."""
        return image[:, self.top : self.bottom, self.left : self.right]


ChooseBox = Callable[[int, int], Box]
"""Returns a part, not empty, of an image of some height and width."""


class EncodedImage(ABC):
    """One image of a source, decoded on demand.

    Attributes:
        files: how files are read, set by whoever opens the image (:func:`~sparkmim.data.sources.base.open_image`).
        page: number of the image in a file of several, from 0; None for files of one image.
    """

    files: FileConfig = DEFAULT_FILES
    page: int | None = None

    def images(self, channels: int) -> int:
        """Return the number of images that the file holds, where its pages are images (`files.pages`).

        Args:
            channels: of the network; those that a file declares are one image if they are as many.

        Raises:
            UnreadableImage: if the file cannot be read.
        """
        return 1

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
            `(channels, H, W)`: uint8 in 0 to 255; or float32, with 255 of 8 bits and 65535 of 16 bits as 1, other
            numbers unchanged, and NaN where a pixel has no data.

        Raises:
            UnreadableImage: if the image cannot be decoded in full, has another number of channels, more pixels than
                `files.max_pixels`, or no pixel with data.
        """

    def decode_part(self, channels: int, choose: ChooseBox) -> Tensor:
        """Decode a part of the image, and no more than that where the format allows it.

        Args:
            channels: as for :meth:`decode`.
            choose: called once with height and width of the upright image; returns the part.

        Returns:
            `(channels, *part)`, the same values as in the whole image. If pixels without data or of more than 8 bits
            decide on the type, those of the part alone may; and a part may have no pixel with data.

        Raises:
            UnreadableImage: as :meth:`decode`. `files.max_pixels` holds for what is decoded.
        """
        image = self.decode(channels)
        return choose(*image.shape[1:]).of(image)


class Croppable(EncodedImage):
    """A volume or a signal, of which parts are read."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Return `(C, *size)`: channels, and voxels or samples along each axis.

        Raises:
            UnreadableImage: if it cannot be read.
        """

    @abstractmethod
    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """Read a part.

        Args:
            start: first voxel or sample along each axis.
            stop: the one behind the last.

        Returns:
            `(C, *crop)`, float32.

        Raises:
            ValueError: if the crop is empty or reaches beyond the data.
            UnreadableImage: if it cannot be read.
        """

    def decode(self, channels: int, reduction: int = 1) -> Tensor:
        """Read all of it, see :meth:`EncodedImage.decode`; any reduction is ignored.

        Returns:
            `(C, *size)`, float32.

        Raises:
            UnreadableImage: if it has another number of channels, or cannot be read.
        """
        found, *size = self.shape
        if channels != found:
            raise UnreadableImage(f"expected {channels} channels, got {found}; {CHANNELS}")
        return self.crop([0] * len(size), size)


def require_pixels(height: int, width: int, files: FileConfig) -> None:
    """Raise if an image is larger than it may be; called with the size that its header gives.

    Raises:
        TooManyPixels: naming the limit.
    """
    if height * width > files.max_pixels:
        raise TooManyPixels(
            f"{height} x {width} pixels are more than the {files.max_pixels} of --max-pixels; cut it into smaller "
            "files, or raise the limit if the file can be trusted and decoded as a whole in memory"
        )
