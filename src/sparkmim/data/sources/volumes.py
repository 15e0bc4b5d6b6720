"""The scheme of volumes, whose files are prepared before they are read."""

from __future__ import annotations

from typing import NoReturn

from .base import ImageSource


class Volumes(ImageSource):
    """What `volumes://FOLDER` names; :mod:`~sparkmim.data.volumes.opening` opens it, as preparation takes settings."""

    schemes = ("volumes",)

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> NoReturn:
        """Raise where images are wanted.

        Raises:
            ValueError: naming the commands that take volumes.
        """
        raise ValueError(
            "images are wanted here; pretrain, embed, knn, probe, reconstruct, stats and finetune --task segmentation "
            "take volumes"
        )
