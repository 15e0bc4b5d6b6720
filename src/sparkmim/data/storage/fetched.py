"""Image files that are read when they are decoded."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property

from ..decoding.images import EncodedFile


class FetchedFile(EncodedFile):
    """An image file whose bytes a function reads, once.

    Args:
        read: returns them; what it raises makes the image unreadable.
        name: of the file, for messages and for what its extension tells.
    """

    def __init__(self, read: Callable[[], bytes], name: str) -> None:
        self._read = read
        self._extension = os.path.splitext(name)[1].lower()

    @cached_property
    def _content(self) -> bytes:  # type: ignore[override]
        return self._read()
