"""Schemes of what is no set of images: it is opened once the network is known, as reading it takes settings."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from .base import ImageSource


class OtherData(ImageSource):
    """What an address of such a scheme names.

    Attributes:
        commands: that take it.
    """

    commands: ClassVar[str]

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> NoReturn:
        """Raise where images are wanted.

        Raises:
            ValueError: naming the commands that take such data.
        """
        raise ValueError(f"images are wanted here; {cls.commands} take {cls.schemes[0]}")


class Volumes(OtherData):
    """`volumes://FOLDER`, which :mod:`sparkmim.data.volumes.opening` opens."""

    schemes = ("volumes",)
    commands = "pretrain, embed, knn, probe, reconstruct, stats and finetune --task segmentation"


class Signals(OtherData):
    """`signals://FOLDER`, which :mod:`sparkmim.data.signals.opening` opens."""

    schemes = ("signals",)
    commands = "pretrain, embed, reconstruct and stats"


class Clips(OtherData):
    """`clips://FOLDER`, which :mod:`sparkmim.data.clips.opening` opens."""

    schemes = ("clips",)
    commands = "pretrain, embed, reconstruct and stats"
