"""Images that a text file lists, by paths or URLs."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from ...utils.text import printable, verb
from ..decoding.encoded import EncodedImage
from ..decoding.images import EncodedFile
from ..storage.ahead import Ahead, Piece
from ..storage.fetched import FetchedFile
from ..storage.locations import is_remote
from ..storage.reading import fetch, file_system, read_whole
from .folder import Files

COMMENT = "#"
"""Begins a line that is passed over; a file of such a name is written `./#name`."""

LOOKED_FOR = 10_000
"""Files that are looked for before a run, spread over the list; others are missed when they are read."""

ODD = 32
"""Characters below this one stand in no line but by mistake, as in a file that is not a text."""


class Listed(Files):
    """Files in the order of a list; those on servers are fetched when they are decoded."""

    schemes: ClassVar[tuple[str, ...]] = ("list",)

    def __init__(self, root: str, names: Sequence[str]) -> None:
        super().__init__(Path("" if is_remote(root) else root), names)
        self._base, self.local = root, not is_remote(root)
        self._ahead = Ahead()

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> Listed:
        """Open a list: a text file in UTF-8 of paths, relative to its folder, or URLs, one a line.

        Empty lines and lines that begin with `#` are passed over.
        """
        if not rest:
            raise ValueError("expected a text file of paths or URLs, one a line")
        return read_list(rest)

    def location(self, index: int) -> str:
        """Return the path or URL of an image."""
        name = self.name(index)
        if is_remote(name):
            return name
        return f"{self._base}/{name}" if is_remote(self._base) else os.path.join(self._base, name)

    def open(self, index: int) -> EncodedImage:
        """Return the file."""
        location = self.location(index)
        if not is_remote(location):
            return EncodedFile(location)
        return FetchedFile(partial(self._read, location), extension_name(location))

    def _read(self, url: str) -> bytes:
        return self._ahead.read(Piece(url), partial(read_whole, url))

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to fetch images from servers."""
        self._ahead.fetch([Piece(self.location(index)) for index in indices])


def extension_name(url: str) -> str:
    """Return the path of a URL, which ends in the file's extension: a token may follow it."""
    return urlsplit(url).path


def read_list(location: str) -> Listed:
    """Return the images that a text file lists; see :class:`Listed`.

    Raises:
        ValueError: if it cannot be read, lists nothing, or lists a file twice or one that does not exist.
    """
    names = [_normalized(line, location) for line in _lines(location)]
    if not names:
        raise ValueError("the file lists no images; expected a path or a URL in each line")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the file lists {printable(name)} more than once; remove the other lines")
        seen.add(name)
    if is_remote(location):
        return Listed(location.rpartition("/")[0], names)
    folder = str(Path(location).expanduser().absolute().parent)
    local = [name for name in names if not is_remote(name)]
    tried = [local[place * len(local) // min(len(local), LOOKED_FOR)] for place in range(min(len(local), LOOKED_FOR))]
    missing = [name for name in tried if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(tried)} files looked for {verb(len(missing), 'do')} not exist, such as "
            f"{printable(missing[0])}; paths are "
            f"relative to {folder}"
        )
    for scheme in {urlsplit(name).scheme for name in names if is_remote(name)}:
        file_system(next(name for name in names if name.startswith(f"{scheme}://")))
    return Listed(folder, names)


def _lines(location: str) -> list[str]:
    try:
        content = fetch(location, None, None) if is_remote(location) else Path(location).expanduser().read_bytes()
        text = content.decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise ValueError(f"the list cannot be read ({error.strerror or error})") from error
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if any(ord(character) < ODD and character != "\t" for character in line):
            raise ValueError(f"line {number} holds {printable(line[:40])!r}; expected a text file of paths or URLs")
        if line.strip() and not line.startswith(COMMENT):
            lines.append(line.strip())
    return lines


def _normalized(line: str, location: str) -> str:
    """Return a URL as it is, and a path in one spelling."""
    if is_remote(line):
        return line
    return posixpath.normpath(line) if is_remote(location) else os.path.normpath(os.path.expanduser(line))
