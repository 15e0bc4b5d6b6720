"""Image files below a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..decoding.encoded import EncodedImage
from ..decoding.images import EncodedFile, image_extensions
from .base import ImageSource


class Files(ImageSource):
    """Image files below a folder.

    Names are kept in one array of bytes, which forked worker processes share instead of copying.
    """

    schemes = ("folder",)

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded])

    @classmethod
    def from_address(cls, rest: str, settings: None = None) -> Files:
        """Find the images below a folder, see :func:`find_images`."""
        return find_images(rest)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> str:
        """Return the path below the folder."""
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())

    def open(self, index: int) -> EncodedImage:
        """Return the file."""
        return EncodedFile(self.root / self.name(index))


def find_images(folder: str | Path, flag: str = "--data") -> Files:
    """Find all files below a folder, nested or not, with the extension of an image or array, in alphabetical order.

    Hidden files and folders (`.name`) are skipped. Links to folders are followed, each folder once.

    Args:
        folder: the folder of images.
        flag: the command-line option that named it, for messages.

    Raises:
        ValueError: if the folder does not exist, has no image, or a folder below it cannot be read.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"{root} is a file; {flag} takes the folder" if root.exists() else f"there is no folder {root}; see {flag}"
        )
    known = image_extensions()
    names: list[str] = []
    others: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "lost+found")
        for file in files:
            extension = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                continue
            if extension in known:
                names.append(os.path.relpath(os.path.join(parent, file), root))
            else:
                others[extension or "no extension"] += 1
    if not names:
        found = ", ".join(f"{count} {extension}" for extension, count in others.most_common(4))
        raise ValueError(
            f"no image in {root}: it holds {found or 'no file'}; expected files that Pillow reads, such as jpg or png"
        )
    return Files(root, sorted(names))


def _refuse(error: OSError) -> None:
    """Raise for a folder that cannot be listed; os.walk would skip it silently."""
    raise ValueError(
        f"the folder {error.filename} cannot be read ({error.strerror}); make it readable, or name a folder without it"
    ) from error
