"""Image files below a folder of a server, or of any other file system that fsspec opens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import unquote

from ...utils.text import counted
from ..decoding.images import image_extensions
from ..storage.reading import ask, file_system
from ..storage.safety import is_hidden
from .folder import SCHEMES_OF_FILES
from .listed import Listed


class Remote(Listed):
    """Image files below a folder, in alphabetical order."""

    schemes: ClassVar[tuple[str, ...]] = ()
    scheme: ClassVar[str]

    def __init__(self, root: str, names: Sequence[str]) -> None:
        super().__init__(root, names)

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> Remote:
        """List the images below a folder."""
        url = f"{cls.scheme}://{rest}"
        ending = os.path.splitext(rest)[1].lower()
        if ending in SCHEMES_OF_FILES:
            raise ValueError(f"this is a file, not a folder of images; write {SCHEMES_OF_FILES[ending]}://{url}")
        return cls(url.rstrip("/"), list_images(url.rstrip("/") + "/"))

    def class_names(self) -> list[str] | None:
        """Return the first folder of each path, as in a folder of class folders."""
        return self.folders_of_names()


def list_images(url: str) -> list[str]:
    """Return the paths of the images below a URL, sorted.

    Raises:
        ValueError: if it cannot be listed, or there is none.
    """
    _, root = file_system(url)
    root = root.rstrip("/") + "/"
    known = image_extensions()
    found = (str(path) for path in ask(url, "find"))
    names = [path[len(root) :] for path in found if path.startswith(root)]
    chosen = sorted(n for n in names if os.path.splitext(n)[1].lower() in known and not is_hidden(unquote(n)))
    if not chosen:
        raise ValueError(f"no image in {url}: {counted(len(names), 'other file')}")
    return chosen


class OfHttps(Remote):
    """Images that pages of a server link to."""

    schemes, scheme = ("https",), "https"


class OfHttp(Remote):
    """Images that pages of a server link to."""

    schemes, scheme = ("http",), "http"


class OfS3(Remote):
    """Images in a bucket of S3."""

    schemes, scheme = ("s3",), "s3"


class OfGoogle(Remote):
    """Images in a bucket of Google Cloud Storage."""

    schemes, scheme = ("gs",), "gs"


class OfMemory(Remote):
    """Images in fsspec's file system in memory, of this process alone: for tests."""

    schemes, scheme = ("memory",), "memory"
