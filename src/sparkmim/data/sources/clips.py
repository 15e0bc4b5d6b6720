"""The scheme of clips, which are opened once the network is known."""

from __future__ import annotations

from typing import NoReturn

from .base import ImageSource


class ClipFiles(ImageSource):
    """What `clips://FOLDER` names; :mod:`~sparkmim.data.clips.opening` opens it, as reading takes settings."""

    schemes = ("clips",)

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> NoReturn:
        """Raise where images are wanted.

        Raises:
            ValueError: naming the commands that take clips.
        """
        raise ValueError("images are wanted here; pretrain, embed, reconstruct and stats take clips")
