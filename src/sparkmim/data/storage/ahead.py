"""Fetch what will be read next, many requests at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from .locations import is_remote
from .reading import fetch, keep, kept

REQUESTS = 16
"""Requests at a time, of each process that reads."""


class Piece(NamedTuple):
    """A file, or a range of it (:func:`~.reading.read_range`)."""

    location: str
    start: int | None = None
    stop: int | None = None
    stamp: str = ""


class Ahead:
    """Read pieces of files, of URLs those that are asked for together at the same time."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[Piece, Future[bytes]] = {}

    def fetch(self, pieces: Sequence[Piece]) -> None:
        """Begin to fetch pieces that are not in the cache; those that were fetched and not read are forgotten."""
        if self._process != os.getpid():  # threads do not survive a fork
            self._reset()
        self._coming = {piece: future for piece, future in self._coming.items() if piece in pieces}
        for piece in dict.fromkeys(pieces):
            if piece not in self._coming and is_remote(piece.location) and kept(*piece) is None:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="fetch")
                self._coming[piece] = self._pool.submit(fetch, *piece[:3])

    def read(self, piece: Piece, otherwise: Callable[[], bytes]) -> bytes:
        """Return a piece, read in another way if it is not on its way.

        Raises:
            OSError: if it cannot be read.
        """
        coming = self._coming.pop(piece, None) if self._process == os.getpid() else None
        if coming is None:
            return otherwise()
        data = coming.result()
        keep(*piece, data)
        return data

    def __reduce__(self) -> tuple[type[Ahead], tuple[()]]:
        return Ahead, ()
