"""An image source of your own: images inside a zip file.

sparkmim pretrain --data "examples/zip_source.py:ZipImages://photos.zip" --model resnet50 --output run
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sparkmim import ImageSource
from sparkmim.data.decoding.encoded import EncodedImage, UnreadableImage
from sparkmim.data.decoding.images import EncodedFile, image_extensions
from sparkmim.data.sources.folder import is_junk


@dataclass(frozen=True)
class ZipSettings:
    """Settings of :class:`ZipImages`."""

    inside: str = ""
    """Folder inside the zip file whose images are read, however nested; all of them if empty."""


class ZipImages(ImageSource):
    """Images inside a zip file, in alphabetical order."""

    settings_type = ZipSettings

    def __init__(self, path: Path, inside: str = "") -> None:
        self.path = path
        known = image_extensions()
        with zipfile.ZipFile(path) as archive:
            self.names = sorted(name for name in archive.namelist() if is_image(PurePosixPath(name), inside, known))
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    @classmethod
    def from_address(cls, rest: str, settings: ZipSettings) -> ZipImages:
        """Open the zip file at a path."""
        try:
            source = cls(Path(rest).expanduser(), settings.inside)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"expected a zip file after ://, got {rest!r} ({error})") from error
        if not len(source):
            raise ValueError(f"{rest} has no image in the folder {settings.inside or '/'}")
        return source

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the path inside the zip file."""
        return self.names[index]

    def open(self, index: int) -> EncodedImage:
        """Read the bytes of an image; they are decoded later, when its view is placed."""
        name = self.names[index]
        try:
            return EncodedFile(self._opened().read(name), name)
        except Exception as error:  # zipfile raises many kinds for a damaged archive
            raise UnreadableImage(f"{type(error).__name__}: {error}") from error

    def _opened(self) -> zipfile.ZipFile:
        """Return this process's own handle: forked processes would move each other's position in a shared one."""
        if self._archive is None or self._archive[0] != os.getpid():
            self._archive = os.getpid(), zipfile.ZipFile(self.path)
        return self._archive[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_archive": None}


def is_image(path: PurePosixPath, inside: str, extensions: set[str]) -> bool:
    """Return whether a file lies in a folder and has the extension of an image; junk (`__MACOSX`) is skipped."""
    wanted = not any(map(is_junk, path.parts))
    return wanted and path.suffix.lower() in extensions and path.is_relative_to(inside)
