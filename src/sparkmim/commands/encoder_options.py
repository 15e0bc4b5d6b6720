"""Flags that commands share: of the encoder beside --model, and of the files of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..data.config import Pages

if TYPE_CHECKING:
    Address = str | Path
else:  # a path would lose the end of FOLDER/.
    Address = str


@dataclass(frozen=True)
class EncoderOptions:
    """What is not recorded in an encoder's file, or is to be something else."""

    stages: tuple[str, ...] = ()
    """Names of the submodules whose outputs are the feature maps, if the network does not offer them itself."""

    in_chans: int | None = None
    """Channels of the images; if not given those recorded, those of the weights, or 3."""

    mean: tuple[float, ...] = ()
    """Mean of each channel; if not given as recorded, as timm's configuration of the network says, or measured."""

    std: tuple[float, ...] = ()
    """Standard deviation of each channel, likewise."""

    trust: bool = False
    """Run the code of a network that the file of the encoder names: only for files whose source you trust."""

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the public functions."""
        return {
            "stages": self.stages,
            "in_chans": self.in_chans,
            "mean": self.mean or None,
            "std": self.std or None,
            "trust": self.trust,
        }


AS_RECORDED = EncoderOptions()

Encoder = Annotated[EncoderOptions, tyro.conf.arg(name="")]
"""Type of the parameter that holds them."""


@dataclass(frozen=True)
class FileOptions:
    """How files of images are read, where that is to be something else than recorded with the weights."""

    pages: Pages | None = None
    """What the pages of a TIFF file are: channels, images of their own, or images of which the first is taken; as
    recorded with the weights if not given."""

    nodata: float | None = None
    """Value of pixels without data, beside NaN; likewise."""

    max_pixels: int | None = None
    """Most pixels of an image; likewise."""

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the public functions."""
        return vars(self)


FILES_AS_RECORDED = FileOptions()

Files = Annotated[FileOptions, tyro.conf.arg(name="")]
"""Type of the parameter that holds them."""
