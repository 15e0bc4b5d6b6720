"""The scheme of signals, which are opened once the network is known."""

from __future__ import annotations

from typing import NoReturn

from .base import ImageSource


class SignalFiles(ImageSource):
    """What `signals://FOLDER` names; :mod:`~sparkmim.data.signals.opening` opens it, as reading takes settings."""

    schemes = ("signals",)

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> NoReturn:
        """Raise where images are wanted.

        Raises:
            ValueError: naming the commands that take signals.
        """
        raise ValueError("images are wanted here; pretrain, embed, reconstruct and stats take signals")
